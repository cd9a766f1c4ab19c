from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlops.drain import Delivery, Drain, Part, hold_folder
from mlops.journal import Journal, find_journals
from mlops.mlflow_sink import MlflowSink
from mlops.mlflow_store import open_client, open_store_client
from mlops.settings import Settings
from mlops.sync import close_orphans, main, sync
from mlops.tracking import RUN_KEY, Run, new_run_key
from tests.conftest import Tracking

# A driver that began two runs, a worker's journal that ended one; killed, or waiting to be.
DRIVER = """
import sys
from pathlib import Path
from mlops.journal import Journal
from mlops.tracking import Run

folder, ended, left = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
driver = Journal(folder, "driver")
Run.create(driver, experiment="sync", name="ended", key=ended)
run = Run.create(driver, experiment="sync", name="left", key=left)
run.log_metrics({"loss": 1.0}, step=0)
with Journal(folder, "trial0") as worker:
    Run(worker, ended).end("FINISHED")
print("ready", flush=True)
sys.stdin.read()
"""


WORKER = """
import sys
from pathlib import Path
from mlops.journal import Journal
from mlops.tracking import Run

journal = Journal(Path(sys.argv[1]), "trial1")
Run(journal, sys.argv[2]).log_metrics({"loss": 0.5}, step=1)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """An embedded home whose store no server has open; the tests share it, by sweeps."""
    return Settings.from_env({"MLOPS_HOME": str(tmp_path_factory.mktemp("sync") / "home")})


@pytest.fixture
def folder(settings: Settings, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The journal folder of a sweep named after the test, the only one."""
    folder = settings.home / "journal" / request.node.name[:40]
    yield folder
    for path in folder.glob("*"):
        if path.is_file():
            path.unlink()
    if folder.exists():
        folder.rmdir()


class Died:
    """A driver process, still alive; `kill` is kill -9."""

    def __init__(self, folder: Path) -> None:
        self.ended, self.left = new_run_key(), new_run_key()
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(folder), self.ended, self.left],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def find_run(client: Any, key: str) -> Any:
    experiments = [one.experiment_id for one in client.search_experiments()]
    (run,) = client.search_runs(experiments, f"tags.`{RUN_KEY}` = '{key}'")
    return run


def states(client: Any, died: Died) -> tuple[str, str]:
    return (
        find_run(client, died.ended).info.status,
        find_run(client, died.left).info.status,
    )


def test_what_a_killed_driver_left_is_delivered_and_its_open_runs_closed(
    settings: Settings, folder: Path
) -> None:
    died = Died(folder)
    died.kill()
    result = sync(settings)
    assert (result.closed, result.undelivered, result.busy, result.problems) == (1, 0, (), ())
    assert result.delivered == 5  # two creations, a metric, an end, and the orphan's
    client = open_store_client(settings)
    assert states(client, died) == ("FINISHED", "FAILED")
    left = find_run(client, died.left)
    assert left.data.tags["mlops.orphaned"] == "true"
    assert left.data.metrics == {"loss": 1.0}
    (point,) = client.get_metric_history(left.info.run_id, "loss")
    assert left.info.end_time == point.timestamp  # its last sign of life
    assert "mlops.orphaned" not in find_run(client, died.ended).data.tags
    assert settings.artifact_root in Path(left.info.artifact_uri).parents
    assert not folder.exists()
    again = sync(settings)
    assert again.to_json() == {"delivered": 0, "closed": 0, "undelivered": 0, "busy": []}


def test_a_run_whose_end_was_delivered_by_a_worker_that_is_gone_is_no_orphan(
    settings: Settings, folder: Path
) -> None:
    died = Died(folder)
    with hold_folder(folder):
        # A drain delivered all and removed the worker's journal; then all were killed.
        sink = MlflowSink(open_store_client(settings))
        delivery = Delivery(folder, lambda: sink)
        while delivery.run_pass():
            pass
    assert len(find_journals(folder)) == 1
    died.kill()
    result = sync(settings)
    assert (result.closed, result.delivered) == (1, 1)  # nothing is said of the one that ended
    assert states(sink.client, died) == ("FINISHED", "FAILED")


def test_the_runs_of_a_living_process_are_left_alone(settings: Settings, folder: Path) -> None:
    died = Died(folder)
    result = sync(settings)
    assert (result.closed, result.undelivered) == (0, 0)
    client = open_store_client(settings)
    assert states(client, died) == ("FINISHED", "RUNNING")
    died.kill()
    assert sync(settings).closed == 1
    assert states(client, died) == ("FINISHED", "FAILED")


def test_a_run_that_a_living_worker_speaks_of_is_no_orphan(
    settings: Settings, folder: Path
) -> None:
    died = Died(folder)
    with Journal(folder, "trial1") as worker:
        Run(worker, died.left).log_metrics({"loss": 0.5}, step=1)
        died.kill()
        assert sync(settings).closed == 0
        Run(worker, died.left).end("FINISHED")
    sync(settings)
    assert states(open_store_client(settings), died) == ("FINISHED", "FINISHED")


def test_a_worker_that_outlives_its_driver_and_dies_then_leaves_no_open_run(
    settings: Settings, folder: Path
) -> None:
    died = Died(folder)
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder), died.left],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None and worker.stdin is not None
    assert worker.stdout.readline() == "ready\n"
    died.kill()
    result = sync(settings)
    assert (result.closed, result.undelivered) == (0, 0)
    assert len(find_journals(folder)) == 1  # the driver's, with the creation, is delivered and gone
    worker.kill()
    worker.communicate()
    assert sync(settings).closed == 1
    assert states(open_store_client(settings), died) == ("FINISHED", "FAILED")


def test_a_run_that_was_opened_again_by_a_living_driver_is_no_orphan(
    settings: Settings, folder: Path
) -> None:
    died = Died(folder)
    died.kill()
    with Journal(folder, "driver") as journal:
        Run(journal, died.left).end("RUNNING")
        assert sync(settings).closed == 0
        Run(journal, died.left).end("KILLED")
    assert sync(settings).closed == 0
    assert states(open_store_client(settings), died) == ("FINISHED", "KILLED")


def test_a_folder_that_a_drain_holds_is_left_to_it(
    settings: Settings, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    class Nowhere:
        def deliver(self, folder: Path, part: Part) -> None:
            raise ConnectionError("no server")

        def flush(self) -> None:
            pass

    with Journal(folder, "driver") as journal:
        drain = Drain(folder, Nowhere).start()
        while drain.problem is None:
            time.sleep(0.01)
        Run.create(journal, experiment="sync", name="theirs").end("FINISHED")
        monkeypatch.setenv("MLOPS_HOME", str(settings.home))
        assert main(["--json"]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out) == {
            "delivered": 0,
            "closed": 0,
            "undelivered": 0,
            "busy": [folder.name],
        }
        assert f"{folder.name}: left alone, another process delivers it." in err
        drain.stop(5.0)
    assert sync(settings).delivered == 2


def test_a_server_that_does_not_answer_leaves_all_and_exits_1(
    settings: Settings, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    died = Died(folder)
    died.kill()
    monkeypatch.setenv("MLOPS_HOME", str(settings.home))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for _ in range(2):  # the second finds the orphan's end written down already
        assert main([]) == 1
        out, err = capsys.readouterr()
        assert out == "0 records delivered, 0 orphaned runs closed, 5 records left.\n"
        assert "127.0.0.1" in err and "Traceback" not in err
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "delivered": 5,
        "closed": 1,
        "undelivered": 0,
        "busy": [],
    }


def test_a_record_that_was_cut_short_is_dropped_and_said(
    settings: Settings, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    died = Died(folder)
    died.kill()
    path = find_journals(folder)[0]
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"0123 4")
    monkeypatch.setenv("MLOPS_HOME", str(settings.home))
    assert main([]) == 0
    _, err = capsys.readouterr()
    assert f"{path.name}: the last record was cut short" in err
    assert f"6 bytes from byte {size} on are dropped." in err


def test_a_damaged_header_is_named_with_what_mends_it(
    settings: Settings, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    died = Died(folder)
    died.kill()
    path = find_journals(folder)[0]
    path.write_bytes(path.read_bytes().replace(b'"boot"', b'"root"', 1))
    monkeypatch.setenv("MLOPS_HOME", str(settings.home))
    assert main([]) == 1
    _, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if "damaged at byte 0" in line]
    subprocess.run(line.split("type: ")[1], shell=True, check=True)
    assert main([]) == 0
    assert states(open_store_client(settings), died) == ("FINISHED", "FAILED")


def test_a_damaged_journal_is_named_and_the_rest_delivered(
    settings: Settings, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    with Journal(folder, "a") as journal:
        Run.create(journal, experiment="sync", name="before")
        journal.append("tags", "x", values={"note": "damage me"})
    path = journal.path
    path.write_bytes(path.read_bytes().replace(b"damage", b"dAmage"))
    with Journal(folder, "b") as journal:
        other = Run.create(journal, experiment="sync", name="other")
        other.end("FINISHED")
    monkeypatch.setenv("MLOPS_HOME", str(settings.home))
    assert main([]) == 1
    out, err = capsys.readouterr()
    assert out.endswith("1 records left.\n")
    assert f"{path.name} is damaged at byte" in err
    assert find_run(open_store_client(settings), other.key).info.status == "FINISHED"
    assert find_journals(folder) == [path]


def test_what_a_running_server_serves_is_seen_from_the_store_and_back(
    tracking: Tracking,
) -> None:
    """Embedded mode with the server running: sync goes past it, to the same store."""
    folder = tracking.settings.home / "journal" / "beside-a-server"
    died = Died(folder)
    died.kill()
    result = sync(tracking.settings)
    assert result.closed == 1 and not folder.exists()
    assert states(open_client(tracking.url), died) == ("FINISHED", "FAILED")


def test_an_experiment_that_sync_made_takes_artifacts_of_a_server_too(
    tracking: Tracking, tmp_path: Path
) -> None:
    folder = tracking.settings.home / "journal" / "artifacts"
    (tmp_path / "note.txt").write_text("a note")
    with Journal(folder, "driver") as journal:
        run = Run.create(journal, experiment="made by sync", name="first")
        run.log_artifact(tmp_path / "note.txt")
    sync(tracking.settings)
    client = open_client(tracking.url)
    found = find_run(client, run.key)
    assert [file.path for file in client.list_artifacts(found.info.run_id)] == ["note.txt"]
    second = client.create_run(found.info.experiment_id)
    client.log_artifact(second.info.run_id, str(tmp_path / "note.txt"))
    place = Path(second.info.artifact_uri.removeprefix("file://"))
    assert tracking.settings.artifact_root in place.parents


def test_what_a_killed_drain_left_of_a_finished_sweep_is_removed(
    settings: Settings, folder: Path
) -> None:
    empty = folder.parent / "empty"
    (empty / "1-driver-1.files" / "left").mkdir(parents=True)
    (empty / "1-driver-1.sent").write_text("10\n")
    sync(settings)
    assert not empty.exists() and folder.parent.exists()


def test_nothing_to_do_imports_nothing_heavy_and_makes_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from mlops.sync import main; code = main([]); "
        "assert not {'mlflow', 'sqlalchemy', 'tensorflow'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MLOPS_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "0 records delivered, 0 orphaned runs closed, 0 records left.\n",
        "",
    )
    assert not (tmp_path / "home").exists()


def test_the_end_of_an_orphan_is_written_down_once(folder: Path) -> None:
    Died(folder).kill()
    for _ in range(2):
        assert close_orphans(folder) == 0
        assert len([path for path in find_journals(folder) if "-sync-" in path.name]) == 1


def test_open_runs_of_another_machine_are_counted_and_left(
    settings: Settings, folder: Path
) -> None:
    died = Died(folder)
    died.kill()
    path = find_journals(folder)[0]
    _header, rest = path.read_bytes().split(b"\n", 1)
    body = b'0 {"kind": "open", "run": "", "host": "moon", "boot": "other", "pid": 1}'
    path.write_bytes(b"%08x %b\n" % (zlib.crc32(body), body) + rest)
    result = sync(settings)
    assert (result.closed, result.undelivered, result.elsewhere) == (0, 0, 1)
    assert states(open_store_client(settings), died) == ("FINISHED", "RUNNING")
    assert find_journals(folder) == [path]
