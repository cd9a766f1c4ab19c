"""What the child processes of the rows do: log, deliver, and die when they are told to.

They are forked from a server process that has imported this module, so each starts in
milliseconds, with MLflow's client in memory.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import mlflow
import mlflow.store.artifact.mlflow_artifacts_repo  # noqa: F401

from mlops.drain import Drain
from mlops.errors import TrackingError
from mlops.journal import Journal
from mlops.mlflow_sink import MlflowSink
from mlops.mlflow_store import open_client
from tests.faults.tape import PARENT, LoggedRun, Tape, read_tape

REST_S = 5.0


@dataclass(frozen=True, slots=True)
class Script:
    """What the processes of one seed log, and where.

    Attributes:
        name: Unique in a store: of the experiment, the runs' keys and the candidate.
        folder: The sweep's journal folder.
        tapes: Where they say what they logged.
        model: A packaged model; note: a file.
        url: Of the tracking server.
        timeout_s: How long a client waits for an answer.
        pace_s: Pause between two calls, at most.
    """

    name: str
    seed: int
    folder: Path
    tapes: Path
    model: Path
    note: Path
    url: str
    timeout_s: int
    n_runs: int = 3
    n_epochs: int = 5
    pace_s: float = 0.01

    def key(self, number: int) -> str:
        return f"{self.name}-{number}"

    def is_worker_s(self, number: int) -> bool:
        """Whether the run's metrics and its end come from the worker's process."""
        return number % 2 == 1


def open_sink(script: Script) -> MlflowSink:
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(script.timeout_s)
    return MlflowSink(open_client(script.url))


def log_as_driver(script: Script, drains: bool, flush_s: float) -> None:
    """Begins all runs and ends the parent; with `drains` delivers them as a sweep's driver does."""
    tape = Tape(script.tapes / "1-driver.tape")
    with Journal(script.folder, "driver") as journal:
        drain = Drain(script.folder, lambda: open_sink(script))
        if drains:
            drain.start()
        _log_runs(script, journal, tape, _pause(script))
    if drains:
        drain.flush(flush_s)


def log_as_worker(script: Script) -> None:
    """Logs the metrics and ends of its runs, each once the driver has begun it."""
    tape = Tape(script.tapes / "2-worker.tape")
    pause = _pause(replace(script, seed=script.seed + 1))
    for number in filter(script.is_worker_s, range(script.n_runs)):
        if not _wait_for(script.tapes / "1-driver.tape", script.key(number)):
            return
        with Journal(script.folder, f"trial{number}") as journal:
            _train(script, LoggedRun(journal, tape, script.key(number)), number, pause)


def deliver(script: Script) -> None:
    """Delivers the folder until it is killed."""
    drain = Drain(script.folder, lambda: open_sink(script)).start()
    while True:
        time.sleep(REST_S)
        drain.start()


def log_until_signal(script: Script, flush_s: float) -> None:
    """As the driver; Ctrl-C ends the parent's run, as a program's last act."""
    tape = Tape(script.tapes / "1-driver.tape")
    with Journal(script.folder, "driver") as journal:
        drain = Drain(script.folder, lambda: open_sink(script)).start()
        try:
            _log_runs(script, journal, tape, _pause(script))
        except KeyboardInterrupt:
            for number in range(script.n_runs):
                if _wait_for(script.tapes / "1-driver.tape", script.key(number), at_most_s=0):
                    LoggedRun(journal, tape, script.key(number)).end("KILLED")
            LoggedRun(journal, tape, script.key(-1)).end("KILLED")
    drain.flush(flush_s)


def log_with_clock_set_back(script: Script, flush_s: float, after: int) -> None:
    """As the driver, in a process whose clock goes back an hour after some calls.

    There is no need of a changed system clock: the journal asks `time.time_ns` and nothing else.
    """
    true_ns, true_s = time.time_ns, time.time
    pause = _pause(script)
    calls = iter(range(10**9))

    def pause_and_set_back() -> None:
        pause()
        if next(calls) == after:
            time.time_ns = lambda: true_ns() - 3_600_000_000_000
            time.time = lambda: true_s() - 3600

    tape = Tape(script.tapes / "1-driver.tape")
    with Journal(script.folder, "driver") as journal:
        drain = Drain(script.folder, lambda: open_sink(script)).start()
        _log_runs(script, journal, tape, pause_and_set_back, alone=True)
    # The same command once more: its journal's name sorts before that of the first.
    with Journal(script.folder, "driver") as journal:
        parent = LoggedRun(journal, tape, script.key(-1))
        parent.end("RUNNING")
        parent.log_metrics({"best": 1.0}, step=1)
        parent.end("FINISHED")
    drain.flush(flush_s)


def log_with_failing_fsync(script: Script, after: int) -> None:
    """Logs until an fsync has failed; notes each later call that says nothing of it."""
    tape = Tape(script.tapes / "1-driver.tape")
    calls = iter(range(10**9))
    failed = threading.Event()

    def fsync(fd: int) -> None:
        if next(calls) >= after:
            failed.set()
            raise OSError(5, "Input/output error")
        os.fsync(fd)

    try:
        with Journal(script.folder, "driver", fsync=fsync) as journal:
            _log_runs(script, journal, tape, _pause(script), alone=True)
    except TrackingError:
        tape.note("told")
        _log_on(journal, tape, script)
    tape.note("failed" if failed.is_set() else "whole")


def _log_on(journal: Journal, tape: Tape, script: Script) -> None:
    """Tries on in a journal that has failed: each call must say so."""
    for _ in range(3):
        try:
            LoggedRun(journal, tape, script.key(-1)).set_tags({"later": "x"})
        except TrackingError:
            continue
        tape.note("silent")


def log_alone(script: Script) -> None:
    """As the driver, with all that its workers would log; delivers nothing."""
    tape = Tape(script.tapes / "1-driver.tape")
    with Journal(script.folder, "driver") as journal:
        _log_runs(script, journal, tape, _pause(script), alone=True)


def log_on_limited_disk(script: Script, pipe: Path, space: int) -> None:
    """Logs; limits the journal to some more bytes and logs until it is told; logs the rest.

    The limit holds for every file of this process, so what it says goes through a pipe.
    """
    tape = Tape(pipe)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(script.folder, "driver") as journal:
        parent = LoggedRun(journal, tape, script.key(-1)).create(script.name, {"lr": "1"}, {})
        size = journal.path.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + space, hard))
        for step in range(10_000):
            try:
                parent.log_metrics({"loss": step / 7}, step=step)
            except TrackingError:
                tape.note("told", step)
                break
        else:
            tape.note("silent")
        try:
            parent.log_artifact(script.model, "later")
            tape.note("silent")
        except TrackingError:
            tape.note("told")
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        parent.log_metrics({"loss": 1.0}, step=20_000)
        parent.log_artifact(script.note, "notes")
        parent.end("FINISHED")


def copy_pipe(pipe: Path, tape: Path) -> None:
    """Writes to a tape what comes through a pipe, until its writer has ended."""
    with pipe.open("rb") as source, tape.open("wb") as file:
        shutil.copyfileobj(source, file)


def hold_database(path: Path, ready: Path, hold_s: float) -> None:
    """Holds an SQLite database, so that nobody else writes or reads."""
    connection = sqlite3.connect(path, timeout=60, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    ready.touch()
    time.sleep(hold_s)
    connection.execute("ROLLBACK")
    connection.close()


def log_in_folder(script: Script, number: int, flush_s: float) -> None:
    """One of many that deliver at once, each a folder of its own to the same store."""
    own = replace(
        script,
        name=f"{script.name}-w{number}",
        seed=script.seed + 1000 * number,
        folder=script.folder.with_name(f"{script.folder.name}-{number}"),
        n_runs=1,
        pace_s=0.0,
    )
    tape = Tape(script.tapes / f"{number}-driver.tape")
    with Journal(own.folder, "driver") as journal:
        drain = Drain(own.folder, lambda: open_sink(own)).start()
        _log_runs(own, journal, tape, lambda: None, experiment=script.name, alone=True)
    drain.flush(flush_s)


def _log_runs(
    script: Script,
    journal: Journal,
    tape: Tape,
    pause: Callable[[], None],
    *,
    experiment: str | None = None,
    alone: bool = False,
) -> None:
    """Begins the parent and its runs, trains those that are the driver's, ends the parent."""
    name = experiment or script.name
    parent = LoggedRun(journal, tape, script.key(-1)).create(
        name, {"trials": "3"}, {"mlops.s": "1"}
    )
    for number in range(script.n_runs):
        pause()
        run = LoggedRun(journal, tape, script.key(number))
        tags = {"mlops.trial": str(number), PARENT: parent.key}
        run.create(name, {"lr": f"0.{number}1", "units": "64"}, tags)
        if alone or not script.is_worker_s(number):
            _train(script, run, number, pause)
    parent.log_metrics({"best": 0.5}, step=0)
    parent.end("FINISHED")


def _train(script: Script, run: LoggedRun, number: int, pause: Callable[[], None]) -> None:
    rng = random.Random(script.seed * 100 + number)
    for epoch in range(script.n_epochs):
        pause()
        run.log_metrics({"loss": rng.random(), "val_accuracy": rng.random()}, step=epoch)
    run.set_tags({"mlops.weights": f"{rng.random()}"})
    if rng.random() < 0.5:
        run.log_artifact(script.note, "notes")
    pause()
    if number < 2:
        run.register_candidate(script.name, script.model)
    pause()
    run.end("KILLED" if rng.random() < 0.3 else "FINISHED")


def _pause(script: Script) -> Callable[[], None]:
    rng = random.Random(script.seed)
    return lambda: time.sleep(rng.uniform(0, 2 * script.pace_s))


def _wait_for(tape: Path, key: str, at_most_s: float = 30.0) -> bool:
    """Waits until a run's creation is acknowledged; False if that never comes."""
    deadline = time.monotonic() + at_most_s
    while ("done", ("run", key)) not in set(read_tape(tape)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
