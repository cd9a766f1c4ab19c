"""Sweeps on a real Dask cluster: a scheduler and workers of their own, and PostgreSQL.

Most trials train nothing (tests/experiments/bare_trials.py); one sweep is as a user types it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import optuna
import psutil
import pytest
from distributed import Client

from experiments.config import SweepConfig
from experiments.storage import open_storage
from experiments.study import Tally
from experiments.sweep import main, run_sweep
from experiments.trial import THREADS_VARIABLE
from experiments.workers.cluster import Cluster, WorkerDiedError
from experiments.workers.joining import CALLS, MARKER, Place, Terms, join
from experiments.workers.remote_cluster import RemoteCluster, open_remote_cluster
from experiments.workers.same_code import describe_code, find_difference
from mlops.errors import MlopsError
from mlops.mlflow_store import open_client
from mlops.settings import Settings
from tests.conftest import Tracking
from tests.experiments.bare_trials import Bare, bare_config, grow, leave_as_it_is, read, sleep_here
from tests.experiments.test_sweep import Notes, everything_in, runs_of
from tests.registry.test_ledger import postgresql  # noqa: F401

pytestmark = pytest.mark.usefixtures("tracking")  # in one process: the cluster is made once
ROOT = Path(__file__).parents[2]
WITHOUT_DASHBOARD = ("--no-dashboard", "--dashboard-address", "127.0.0.1:0")


class Processes:
    """A `dask scheduler` and its workers, as a person starts them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "scheduler.json"
        self.address = ""
        self.scheduler: psutil.Popen | None = None
        self._started: list[psutil.Popen] = []

    def start_scheduler(self) -> None:
        self.file.unlink(missing_ok=True)
        port = self.address.rpartition(":")[2] or "0"
        self.scheduler = self.start(
            "scheduler", "--host", "127.0.0.1", "--port", port, "--scheduler-file", str(self.file)
        )
        wait_for(self.file.exists)
        self.address = json.loads(self.file.read_text())["address"]

    def start_workers(self, *args: str, n: int = 1, env: dict[str, str] | None = None) -> Any:
        return self.start(
            *("worker", self.address, "--host", "127.0.0.1", "--nworkers", str(n)),
            *("--memory-limit", "0", "--local-directory", str(self.folder)),
            *(args or ("--nthreads", "1")),
            env=env,
        )

    def start(self, *args: str, env: dict[str, str] | None = None) -> Any:
        with (self.folder / f"{args[0]}.log").open("a") as log:
            process = psutil.Popen(
                [sys.executable, "-m", "dask", *args, *WITHOUT_DASHBOARD],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
                stdout=log,
                stderr=log,
            )
        self._started.append(process)
        return process

    def end(self, *which: psutil.Popen) -> None:
        for process in which or self._started:
            family = [process, *process.children(recursive=True)] if process.is_running() else []
            for one in family:
                one.kill()
            process.wait()


def n_workers_of(address: str) -> int:
    with Client(address, set_as_default=False) as client:
        return len(client.scheduler_info(n_workers=-1)["workers"])


def wait_for(done: Callable[[], Any], at_most_s: float = 120.0) -> None:
    deadline = time.monotonic() + at_most_s
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    one = Processes(tmp_path_factory.mktemp("cluster"))
    try:
        one.start_scheduler()
        one.start_workers(n=2)
        yield one
    finally:
        one.end()


@pytest.fixture
def settings(tracking: Tracking, postgresql: str) -> Settings:  # noqa: F811
    return dataclasses.replace(tracking.settings, study_url=postgresql)


@pytest.fixture
def client(tracking: Tracking) -> Any:
    return open_client(tracking.url)


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    return tmp_path / "tape"


@pytest.fixture
def cluster(processes: Processes, settings: Settings) -> Iterator[RemoteCluster]:
    """Two workers that have joined."""
    config = bare_config(processes.address, "direct")
    with open_remote_cluster(config, settings, print, leave_as_it_is) as opened:
        wait_until(opened, lambda: opened.n_alive() == 2)
        yield opened


def wait_until(cluster: RemoteCluster, done: Callable[[], Any], silent_s: float = 60.0) -> None:
    def look() -> Any:
        cluster.end_silent(silent_s)
        return done()

    wait_for(look)


def on_both(
    cluster: RemoteCluster, call: Callable[[Any], int], arg: Any, silent_s: float = 60.0
) -> list[int | str]:
    """Runs a call in each of two workers; returns the processes, or why there is none."""
    tickets = [cluster.submit(call, arg) for _ in range(2)]
    done: list[Any] = []

    def look() -> bool:
        ticket = cluster.next_done(0.1)
        done.extend([] if ticket is None else [ticket])
        return len(done) == 2

    wait_until(cluster, look, silent_s)
    assert done in (tickets, tickets[::-1])
    ends: list[int | str] = []
    for ticket in tickets:
        try:
            ends.append(cluster.result(ticket))
        except WorkerDiedError as err:
            ends.append(str(err))
    return ends


def sweep(
    config: SweepConfig, settings: Settings, tape: Path, notes: Notes, pace_s: float = 0.1
) -> Any:
    with open_remote_cluster(config, settings, notes.note, leave_as_it_is) as cluster:
        bare: Any = Bare(cluster, tape, pace_s)
        return run_sweep(config, settings=settings, cluster=bare, progress=notes)


def states_of(settings: Settings, sweep_id: str) -> Counter[str]:
    study = optuna.load_study(
        study_name=f"{sweep_id}-flat", storage=open_storage(settings.study_url)
    )
    return Counter(trial.state.name for trial in study.trials)


def statuses_of(client: Any, sweep_id: str) -> Counter[str]:
    parents, children = runs_of(client, sweep_id)
    assert [run.info.status for run in parents] == ["FINISHED"]
    return Counter(run.info.status for run in children)


def sweep_of(settings: Settings, experiment: str) -> str:
    (folder,) = (settings.home / "sweeps").glob(f"{experiment}-*")
    return folder.name


def test_a_sweep_on_a_cluster_has_each_trial_once_and_leaves_the_cluster_as_it_was(
    processes: Processes, settings: Settings, client: Any, tape: Path
) -> None:
    config = bare_config(str(processes.file), "once")
    notes = Notes()
    result = sweep(config, settings, tape, notes)
    assert result.undelivered == 0 and result.studies[0].candidate.version
    assert states_of(settings, result.sweep_id) == {"COMPLETE": 4}
    assert statuses_of(client, result.sweep_id) == {"FINISHED": 4}
    begun, done = read(tape)["begin"], read(tape)["complete"]
    assert sorted(begun) == sorted(done) and len({name for _, name in done}) == 4
    assert any("joined" in line for line in notes.lines)
    assert not (settings.home / CALLS).exists()
    before = {pid for pid, _ in begun}
    again = sweep(dataclasses.replace(config, workers=1), settings, tape, Notes())
    assert again.sweep_id != result.sweep_id
    after = {pid for pid, _ in read(tape)["begin"][4:]}
    assert len(after) == 1 and after <= before  # --workers 1 uses one of the two


def test_a_worker_that_is_killed_costs_its_trial_an_attempt_and_the_next_one_gets_work(
    processes: Processes, settings: Settings, client: Any, tape: Path
) -> None:
    def pids() -> set[int]:
        return {pid for pid, _ in read(tape)["begin"]}

    def kill_one_in_training() -> None:
        wait_for(lambda: read(tape)["epoch0"] and len(pids()) == 2)
        hold.touch()
        os.kill(read(tape)["epoch0"][0][0], signal.SIGKILL)
        wait_for(lambda: len(pids()) == 3)  # a worker that joins late gets work
        hold.unlink()

    hold = tape.with_suffix(".hold")
    killer = threading.Thread(target=kill_one_in_training)
    killer.start()
    notes = Notes()
    config = bare_config(processes.address, "killed", trials=6)
    result = sweep(config, settings, tape, notes)
    killer.join()
    assert states_of(settings, result.sweep_id) == {"COMPLETE": 6, "FAIL": 1}
    assert statuses_of(client, result.sweep_id) == {"FINISHED": 6, "FAILED": 1}
    assert result.undelivered == 0
    assert any("killed" in line and "tried again" in line for line in notes.lines)
    _, children = runs_of(client, result.sweep_id)
    assert [run.data.tags["mlops.attempt"] for run in children].count("2") == 1


def test_workers_that_are_not_the_same_are_refused_with_what_differs(
    processes: Processes, settings: Settings, tmp_path: Path
) -> None:
    fake = tmp_path / "numpy-0.0.1.dist-info"
    fake.mkdir()
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.0.1\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    other = processes.start_workers("--nthreads", "1", env={"PYTHONPATH": path})
    wide = processes.start_workers("--nthreads", "2")
    notes = Notes()
    config = bare_config(processes.address, "refused")
    try:
        with open_remote_cluster(config, settings, notes.note, leave_as_it_is) as cluster:
            wait_until(cluster, lambda: "".join(notes.lines).count("refused") == 2)
            wait_until(cluster, lambda: cluster.n_alive() == 2)
            first, *others = cluster.tell_workers()
        assert first == f"2 worker(s) of {processes.address} can train; 2 cannot."
        refused = "\n".join(notes.lines)
        assert len(others) == 2 and all(line.strip() in refused for line in others)
        here = describe_code()["numpy"]
        assert "it does not run what this sweep runs: numpy is 0.0.1 instead of " + here in refused
        assert "it runs 2 calls at a time" in refused and "--nthreads 1" in refused
    finally:
        processes.end(other, wide)


def test_a_dry_run_where_all_are_refused_says_why_of_each(
    processes: Processes,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = Processes(tmp_path)
    home = tmp_path / "home"
    monkeypatch.setenv("MLOPS_HOME", str(home))
    monkeypatch.setenv("MLOPS_STUDY_URL", settings.study_url)
    try:
        own.start_scheduler()
        own.start_workers("--nthreads", "3")
        own.start_workers("--nthreads", "2")
        wait_for(lambda: n_workers_of(own.address) == 2)
        assert main(["--cluster", own.address, "--dry-run"]) == 1
        *refused, last = capsys.readouterr().err.strip().splitlines()
        assert len(refused) == 2 and last.endswith("So are 1 more.")
        assert all("is refused: it runs" in line for line in refused)
        assert everything_in(home) == set()
    finally:
        own.end()


def test_a_dry_run_waits_not_for_ever_for_a_worker_that_trains(
    processes: Processes, settings: Settings, cluster: RemoteCluster
) -> None:
    busy = cluster.submit(sleep_here, 8.0)
    config = dataclasses.replace(bare_config(processes.address, "rehearsed"), workers=1)
    with open_remote_cluster(config, settings, print, leave_as_it_is) as other:
        (line,) = other.tell_workers(timeout_s=2.0)
        assert line == (
            f"1 worker(s) of {processes.address} can train; "
            "1 gave no answer yet: busy with another sweep, perhaps."
        )
        (line,) = other.tell_workers(timeout_s=30.0)
        assert line == f"2 worker(s) of {processes.address} can train; 1 would be used."
    wait_for(lambda: cluster.next_done(0.1) is busy)
    cluster.result(busy)


def test_a_sweep_with_other_threads_is_refused_by_workers_that_compute_with_as_many_already(
    processes: Processes, settings: Settings, cluster: RemoteCluster
) -> None:
    config = dataclasses.replace(bare_config(processes.address, "threads"), threads=2)
    with (
        pytest.raises(MlopsError, match=r"computes with 1 thread\(s\).*So are 1 more"),
        open_remote_cluster(config, settings, print, leave_as_it_is),
    ):
        pass
    assert sorted(path.name for path in (settings.home / CALLS).iterdir()) == [cluster._folder.name]


def test_a_scheduler_that_dies_ends_the_sweep_and_the_same_command_goes_on(
    processes: Processes, settings: Settings, client: Any, tape: Path
) -> None:
    config = bare_config(processes.address, "lost", trials=6)

    def kill_scheduler(study: str, tally: Tally) -> None:
        if tally.n_finished == 2 and processes.scheduler.is_running():
            processes.scheduler.kill()

    with pytest.raises(MlopsError, match=r"scheduler at .* is gone\. .* the same command goes on"):
        sweep(config, settings, tape, Notes(kill_scheduler), pace_s=0.2)
    sweep_id = sweep_of(settings, "lost")
    assert states_of(settings, sweep_id)["RUNNING"] == 0
    assert {run.info.status for run in runs_of(client, sweep_id)[1]} <= {"FINISHED", "KILLED"}
    processes.scheduler.wait()
    workers = [one for one in processes._started if one is not processes.scheduler]
    for one in workers:
        one.wait(120)  # without a scheduler they end by themselves
    processes.start_scheduler()
    processes.start_workers(n=2)
    result = sweep(config, settings, tape, Notes(), pace_s=0.1)
    assert result.sweep_id == sweep_id and result.undelivered == 0
    assert states_of(settings, sweep_id)["COMPLETE"] == 6
    assert statuses_of(client, sweep_id)["FINISHED"] == 6


def test_a_driver_that_is_interrupted_or_killed_leaves_the_workers_and_ends_its_trials(
    processes: Processes, settings: Settings, client: Any, tape: Path
) -> None:
    config = bare_config(processes.address, "left")
    env = {
        **os.environ,
        "MLOPS_HOME": str(settings.home),
        "MLOPS_STUDY_URL": settings.study_url,
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "tests.experiments.bare_trials"]
    hold = tape.with_suffix(".hold")
    hold.touch()
    driver = subprocess.Popen([*command, config.cluster, "left", str(tape)], env=env)
    wait_for(lambda: len(read(tape)["begin"]) == 2)
    driver.kill()
    driver.wait()
    hold.unlink()
    wait_for(lambda: len(read(tape)["let go"]) == 2)
    assert len(list((settings.home / CALLS).iterdir())) == 1

    def interrupt() -> None:
        wait_for(lambda: len(read(tape)["begin"]) == 4)
        os.kill(os.getpid(), signal.SIGINT)

    hold.touch()
    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    result = sweep(config, settings, tape, Notes())
    interrupter.join()
    assert result.interrupted and result.sweep_id == sweep_of(settings, "left")
    assert states_of(settings, result.sweep_id)["RUNNING"] == 0
    hold.unlink()
    wait_for(lambda: len(read(tape)["let go"]) == 4)
    assert not (settings.home / CALLS).exists()

    result = sweep(config, settings, tape, Notes())
    assert states_of(settings, result.sweep_id) == {"COMPLETE": 4, "FAIL": 4}
    assert statuses_of(client, result.sweep_id) == {"FINISHED": 4, "KILLED": 4}
    assert len({pid for pid, _ in read(tape)["begin"]}) == 2  # never a new worker


def test_a_sweep_that_comes_later_gets_its_turn(
    processes: Processes, settings: Settings, tape: Path
) -> None:
    later = tape.with_name("later")
    seen: list[int] = []

    def start(name: str, tape: Path, notes: Notes) -> threading.Thread:
        config = bare_config(processes.address, name, trials=12)
        thread = threading.Thread(target=sweep, args=(config, settings, tape, notes, 0.2))
        thread.start()
        return thread

    def count(study: str, tally: Tally) -> None:
        if tally.n_finished == 12:
            seen.append(len(read(later)["complete"]))

    threads = [start("first", tape, Notes(count))]
    wait_for(lambda: len(read(tape)["begin"]) == 2)
    threads.append(start("later", later, Notes()))
    for thread in threads:
        thread.join()
    assert seen[0] >= 3
    assert len(read(tape)["complete"]) == len(read(later)["complete"]) == 12


def test_a_worker_that_stands_still_is_given_up_and_used_again_when_it_is_back(
    cluster: RemoteCluster,
) -> None:
    stopped, other = on_both(cluster, sleep_here, 0.5)
    assert isinstance(stopped, int)
    os.kill(stopped, signal.SIGSTOP)
    try:
        assert on_both(cluster, sleep_here, 0.5, silent_s=6.0) == [
            "the worker gave no sign of life for 6 s",
            other,
        ]
        assert cluster.n_alive() == 1
    finally:
        os.kill(stopped, signal.SIGCONT)
    wait_until(cluster, lambda: cluster.n_alive() == 2)


def test_a_worker_whose_memory_has_grown_too_far_is_started_anew(cluster: RemoteCluster) -> None:
    grown = set(on_both(cluster, grow, 0))
    assert set(on_both(cluster, grow, 2**30 + 2**28)) == grown
    out: list[Any] = []
    seen: set[int] = set()

    def go_on() -> bool:
        """As a driver does: a call for each worker."""
        if len(out) < cluster.n_alive():
            out.append(cluster.submit(sleep_here, 0.2))
        ticket = cluster.next_done(0.1)
        if ticket is not None:
            out.remove(ticket)
            seen.add(cluster.result(ticket))
        return len(seen - grown) == 2

    wait_until(cluster, go_on)
    assert not any(psutil.pid_exists(int(pid)) for pid in grown)


def test_studies_in_sqlite_are_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path / "home"))
    for extra in ([], ["--dry-run"]):
        assert main(["--cluster", "tcp://127.0.0.1:9", *extra]) == 2
        said = capsys.readouterr().err
        assert "expected MLOPS_STUDY_URL as postgresql+psycopg://" in said and "SQLite" in said
    monkeypatch.setenv("MLOPS_STUDY_URL", "postgresql+psycopg://127.0.0.1:9/studies")
    assert main(["--cluster", str(tmp_path / "none.json")]) == 2
    assert "there is no scheduler file" in capsys.readouterr().err
    assert main(["--cluster", "127.0.0.1:8786"]) == 2
    assert "as tcp://HOST:8786" in capsys.readouterr().err
    assert everything_in(tmp_path) == set()


def test_a_cluster_that_is_not_there_is_said_in_one_sentence(
    settings: Settings, tmp_path: Path
) -> None:
    settings = dataclasses.replace(settings, home=tmp_path / "home")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(MlopsError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9 "),
        open_remote_cluster(bare_config("tcp://127.0.0.1:9", "none"), settings, print),
    ):
        pass
    assert everything_in(tmp_path) == set()


@pytest.fixture
def terms(tmp_path: Path, settings: Settings) -> Terms:
    (tmp_path / MARKER).write_text("token")
    return Terms(
        token="token",
        home=tmp_path,
        folder=tmp_path,
        threads=1,
        tracking_uri=None,
        study_url=settings.study_url,
        datasets_url=str(tmp_path / "datasets"),
        code=describe_code(),
        own=(),
        set_up=leave_as_it_is,
    )


def test_a_worker_says_why_it_cannot_take_part(
    terms: Terms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(THREADS_VARIABLE, raising=False)

    def says(**changes: Any) -> str:
        return str(join(dataclasses.replace(terms, **changes)))

    assert "expected the same folder at" in says(folder=tmp_path / "elsewhere")
    assert "expected the same folder at" in says(token="another")
    assert "cannot open the study database (OperationalError" in says(
        study_url="postgresql+psycopg://ada:secret@127.0.0.1:9/studies"
    )
    assert "secret" not in says(study_url="postgresql+psycopg://ada:secret@127.0.0.1:9/studies")

    def too_late(threads: int) -> None:
        raise RuntimeError

    monkeypatch.delenv(THREADS_VARIABLE, raising=False)
    assert "something else has used TensorFlow" in says(set_up=too_late)
    assert "mlflow is" in says(code={**terms.code, "mlflow": "1.0"})
    assert isinstance(join(terms), Place)
    assert "computes with 1 thread(s)" in says(threads=2)


def test_an_own_architecture_is_part_of_the_code_and_is_not_imported_to_find_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "__init__.py").write_text("raise SystemExit")
    module = tmp_path / "parts" / "net_one.py"
    module.write_text("raise SystemExit")
    here = describe_code(["parts.net_one"])
    assert len(here["parts.net_one"]) == 12 and "missing" not in here.values()
    assert find_difference(here, dict(here)) is None
    there = {**here, **describe_code(["parts.net_two"])}
    assert there["parts.net_two"] == "missing"
    del there["parts.net_one"]
    assert find_difference(here, there) == (
        f"parts.net_one is missing instead of {here['parts.net_one']}"
    )


@pytest.mark.long
def test_a_sweep_as_a_user_types_it_trains_the_same_networks_on_a_plain_dask_worker(
    settings: Settings,
    workers: Cluster,
    client: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = Processes(tmp_path)
    monkeypatch.setenv("MLOPS_HOME", str(settings.home))
    monkeypatch.setenv("MLOPS_STUDY_URL", settings.study_url)
    args = ["--architectures", "dnn", "--trials", "2", "--epochs", "2", "--experiment", "typed"]
    try:
        own.start_scheduler()
        own.start_workers("--nthreads", "1", "--preload", "experiments.trial")
        before = everything_in(settings.home)
        assert main([*args, "--cluster", own.address, "--dry-run"]) == 0
        said = capsys.readouterr().out
        assert f"Using all worker(s) of {own.address}." in said
        assert f"\n1 worker(s) of {own.address} can train.\n" in said and "dnn: 2 trials" in said
        assert everything_in(settings.home) == before
        assert main([*args, "--cluster", own.address, "--json"]) == 0
        study = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["studies"][0]
        assert study["n_complete"] == 2 and study["candidate"]["version"]
    finally:
        own.end()
    here = SweepConfig(architectures=("dnn",), trials=2, epochs=2, experiment="here")
    other = dataclasses.replace(settings, study_url=f"sqlite:///{tmp_path / 'studies.db'}")
    result = run_sweep(here, settings=other, cluster=workers, progress=Notes())
    weights = [
        {run.data.tags["mlops.trial"]: run.data.tags["mlops.weights_sha256"] for run in children}
        for _, children in (
            runs_of(client, sweep) for sweep in (sweep_of(settings, "typed"), result.sweep_id)
        )
    ]
    assert weights[0] == weights[1] and set(weights[0]) == {"0", "1"}
