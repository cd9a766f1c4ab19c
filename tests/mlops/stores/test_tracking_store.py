"""MLflow's database and server, whole and broken, and runs that nobody ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from mlops.drain import Delivery, hold_folder
from mlops.journal import Journal
from mlops.mlflow_sink import MlflowSink
from mlops.mlflow_store import open_store_client
from mlops.settings import Settings
from mlops.stores.database_check import find_package, read_revisions
from mlops.stores.store import Finding
from mlops.stores.tracking_store import TrackingStore, check_backend
from mlops.sync import sync
from mlops.tracked_runs import read_tracked_runs
from mlops.tracking import Run
from tests.conftest import Tracking
from tests.mlops.stores.test_journal_store import kill_a_writer


@pytest.fixture
def settings(home_with_database: Settings) -> Settings:
    return home_with_database


def findings(settings: Settings) -> tuple[Finding, ...]:
    return TrackingStore(settings).check().findings


def with_server(settings: Settings, url: str) -> Settings:
    return Settings.from_env({"MLOPS_HOME": str(settings.home), "MLFLOW_TRACKING_URI": url})


@contextlib.contextmanager
def serve(version: str, status: int = 200) -> Iterator[str]:
    """A server that answers /health with a status and /version with a version."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"OK" if self.path == "/health" else version.encode())

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_run_of_a_killed_process_is_an_orphan_until_sync_closes_it(settings: Settings) -> None:
    folder = settings.home / "journal" / "digits-1"
    kill_a_writer(folder)
    assert findings(settings) == ()  # MLflow has no run of it yet: its journal tells of that
    with hold_folder(folder):  # a drain delivers all, and is killed before it removes the journal
        Delivery(folder, lambda: MlflowSink(open_store_client(settings))).run_pass()
    (one,) = findings(settings)
    assert one.wrong == "1 run(s) are RUNNING in MLflow and their processes are gone: n."
    assert one.mend.endswith("python -m mlops.sync")
    assert sync(settings).closed == 1
    assert findings(settings) == ()
    (run,) = read_tracked_runs(settings)
    assert (run.key, run.status, run.trial, run.is_deleted) == ("left", "FAILED", None, False)


def test_the_run_of_a_living_process_is_none(settings: Settings) -> None:
    with Journal(settings.home / "journal" / "digits-1", "driver") as journal:
        Run.create(journal, experiment="e", name="n", key="alive")
        sync(settings)
        assert [run.status for run in read_tracked_runs(settings, running=True)] == ["RUNNING"]
        assert findings(settings) == ()


def test_a_server_is_asked_what_a_database_is_asked(
    tracking: Tracking, settings: Settings, tmp_path: Path
) -> None:
    with Journal(tmp_path / "journal" / "asked", "driver") as journal:
        for key in ("asked-1", "asked-2"):
            Run.create(
                journal,
                experiment="asked",
                name=key,
                key=key,
                tags={"mlops.sweep": "s", "mlops.study": "s-dnn", "mlops.trial": "7"},
            )
        Run(journal, "asked-1").end("FINISHED")
    sink = MlflowSink(open_store_client(with_server(settings, tracking.url)))
    with hold_folder(journal.folder):
        Delivery(journal.folder, lambda: sink).run_pass()
    run_id = sink.find_run_id("asked-2")
    sink.client.delete_run(run_id)

    def asked(settings: Settings, *, running: bool = False) -> dict[str, object]:
        runs = read_tracked_runs(settings, running=running)
        return {run.key: run for run in runs if run.key.startswith("asked")}

    served = with_server(settings, tracking.url)
    assert asked(served) == asked(tracking.settings)
    assert set(asked(served)) == {"asked-1", "asked-2"}
    assert set(asked(served, running=True)) == set(asked(tracking.settings, running=True))
    assert findings(served) == ()
    sink.client.restore_run(run_id)
    sink.client.set_terminated(run_id)


def test_a_server_that_is_not_there_or_hangs_is_said_within_its_time(settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and listens to nobody
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        (one,) = findings(with_server(settings, url))
        assert f"expected {url}/health within 3 s, got: " in one.wrong
        assert one.mend.endswith("python -m mlops.sync")
        taken.listen()
        (one,) = findings(with_server(settings, url))
        assert "timed out" in one.wrong


def test_a_server_of_another_version_and_one_that_answers_an_error_are_said(
    settings: Settings,
) -> None:
    with serve("2.9.1") as url:
        (one,), ready = check_backend(with_server(settings, url))
        assert ready
        assert "expected MLflow 3." in one.wrong and "got 2.9.1" in one.wrong
        assert "python -m pip install mlflow==3." in one.mend
    with serve("3.17.2", status=503) as url:
        (one,) = findings(with_server(settings, url))
        assert "503" in one.wrong


def test_what_a_killed_server_left_is_removed_by_the_command(settings: Settings) -> None:
    folder = settings.home / "server"
    (folder / "leases").mkdir(parents=True)
    for name in ("start.lock", "server.lock", "leases/1-dead"):
        (folder / name).write_text("")
    write_address(folder, port=1)
    with (folder / "leases" / "2-alive").open("w") as lease:
        fcntl.flock(lease, fcntl.LOCK_EX)
        (one,) = findings(settings)
        assert "an embedded server or one that used it was killed" in one.wrong
        subprocess.run(one.mend, shell=True, check=True)
    assert sorted(path.name for path in folder.iterdir()) == ["leases", "server.lock", "start.lock"]
    assert [path.name for path in (folder / "leases").iterdir()] == ["2-alive"]
    (folder / "leases" / "2-alive").unlink()
    assert findings(settings) == ()


def test_an_embedded_server_that_hangs_is_said_once_it_should_answer(settings: Settings) -> None:
    folder = settings.home / "server"
    folder.mkdir(parents=True)
    (folder / "start.lock").write_text("")
    with (folder / "server.lock").open("w") as lock, socket.create_server(("127.0.0.1", 0)) as mute:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_address(folder, port=mute.getsockname()[1])
        (one,) = findings(settings)
        assert "the embedded server runs but does not answer" in one.wrong
        assert one.mend == "kill -9 12345678"
        write_address(folder, port=mute.getsockname()[1], started_at="2999-01-01T00:00:00+00:00")
        assert findings(settings) == ()  # it is being started


def write_address(
    folder: Path, *, port: int, started_at: str = "2026-01-01T00:00:00+00:00"
) -> None:
    address = {
        "url": f"http://127.0.0.1:{port}",
        "host": "127.0.0.1",
        "port": port,
        "supervisor_pid": 12345677,
        "mlflow_pid": 12345678,
        "started_at": started_at,
    }
    (folder / "server.json").write_text(json.dumps(address))


def test_a_damaged_database_is_said_with_what_saves_it(settings: Settings) -> None:
    file = settings.home / "mlflow.db"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    (one,) = findings(settings)
    assert one.wrong.startswith("the database of MLflow's runs is damaged: ")
    assert f"sqlite3 {file} .recover | sqlite3 {file}.salvaged" in one.mend
    data = bytearray(whole)
    data[5] ^= 0x10
    file.write_bytes(data)
    (one,) = findings(settings)
    assert "file is not a database" in one.wrong
    data[5] ^= 0x10
    file.write_bytes(data)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'runs'"
        ((page,),) = connection.execute(query)
        ((page_bytes,),) = connection.execute("PRAGMA page_size")
    place = (page - 1) * page_bytes
    data[place : place + 8] = b"\xff" * 8
    file.write_bytes(data)
    (one,) = findings(settings)
    assert "is damaged" in one.wrong


def test_a_database_that_is_locked_or_of_another_version_is_said(settings: Settings) -> None:
    file = settings.home / "mlflow.db"
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN EXCLUSIVE")
        (one,) = findings(settings)
        assert "cannot be read: " in one.wrong and "locked" in one.wrong
        assert one.mend.endswith(f"fuser {file}")
        other.rollback()
        other.execute("UPDATE alembic_version SET version_num = '0584bdc529eb'")
        other.commit()
        (one,) = findings(settings)
        assert "is of another version; expected schema " in one.wrong
        assert one.mend.endswith("python -m mlops.upgrade")
        other.execute("UPDATE alembic_version SET version_num = 'of tomorrow'")
        other.commit()
        (one,) = findings(settings)
        assert "got of tomorrow" in one.wrong
        assert "written by a newer version" in one.mend


def test_the_last_revision_is_the_one_of_a_new_database(mlflow_database: Path) -> None:
    known, head = read_revisions(find_package("mlflow") / "store" / "db_migrations" / "versions")
    with contextlib.closing(sqlite3.connect(mlflow_database)) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (head,)
    assert len(known) > 50


def test_a_database_server_that_is_not_there_is_said_at_once(settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        url = f"postgresql+psycopg://ada:secret@127.0.0.1:{port}/mlflow"
        (one,) = findings(with_server(settings, url))
        assert f"nothing answers at 127.0.0.1 port {port} within 3 s" in one.wrong
        assert "secret" not in one.wrong + one.mend
        assert "let MLFLOW_TRACKING_URI name another" in one.mend


def test_without_a_database_there_is_no_run_yet_and_none_is_made(settings: Settings) -> None:
    (settings.home / "mlflow.db").unlink()
    health = TrackingStore(settings).check()
    assert (health.says, health.findings) == ("no run yet", ())
    assert list(settings.home.iterdir()) == []
