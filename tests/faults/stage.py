"""Where a row plays: a server that can be harmed, behind a front, and the processes that log."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from mlops.errors import MlopsError
from mlops.lease import ServerFolder
from mlops.mlflow_store import open_store_client
from mlops.server import Server, open_server
from mlops.settings import Settings
from mlops.sync import SyncResult, sync
from tests.faults import children
from tests.faults.check import Found, Outcome, compare, read_mlflow, read_recorder
from tests.faults.front import Front, Relay
from tests.faults.recorder import Recorder
from tests.faults.tape import Item, Said, count_done, read_tapes
from tests.forked import FORK
from tests.mlops.test_tracking import write_model

Kind = Literal["recorder", "mlflow"]
Wanted = Callable[[Item, Found], bool]
DEFAULT = "Default"
"""MLflow's own experiment: nothing of ours belongs there."""


class Harmed(Protocol):
    """A server, and what can be done to it. All is undone by the end of a row."""

    kind: Kind
    front: Front
    timeout_s: int

    def kill(self) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def go_on(self) -> None: ...
    def fill_disk(self) -> None: ...
    def free_disk(self) -> None: ...
    def hold_database(self, hold_s: float) -> Callable[[], None]:
        """Holds the database as another process would; returns what waits for the end of that."""
        ...

    def read(self, experiment: str) -> list[Found]: ...


@dataclass(slots=True)
class RecorderServer:
    """The recorder and its front, new for each seed."""

    kind: Kind = "recorder"
    timeout_s: int = 1
    recorder: Recorder = field(default_factory=Recorder)
    front: Front = field(init=False)

    def __post_init__(self) -> None:
        self.front = Front(self.recorder)

    def kill(self) -> None:
        self.front.close()

    def start(self) -> None:
        self.front.open()

    def stop(self) -> None:
        self.front.hang()

    def go_on(self) -> None:
        self.front.go_on()

    def fill_disk(self) -> None:
        self.recorder.full = True

    def free_disk(self) -> None:
        self.recorder.full = False

    def hold_database(self, hold_s: float) -> Callable[[], None]:
        self.recorder.held.set()
        until = time.monotonic() + hold_s

        def wait() -> None:
            time.sleep(max(0.0, until - time.monotonic()))
            self.recorder.held.clear()

        return wait

    def read(self, experiment: str) -> list[Found]:
        self.front.wait_idle()
        return read_recorder(self.recorder)


class MlflowServer:
    """A real embedded MLflow, shared by rows and seeds; its database is read past the server.

    `place` is its home's parent; `small` says that it lies on a disk of its own that can be full.
    """

    kind: Kind = "mlflow"
    timeout_s = 6

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._leases = ExitStack()
        self._server = self._open()
        self.front = Front(Relay(self._server.url))
        self._client: Any = None

    def close(self) -> None:
        self.front.close()
        self._leases.close()

    def kill(self) -> None:
        os.kill(self._pid(), signal.SIGKILL)

    def start(self) -> None:
        """Waits until the server answers again: its supervisor starts it, some times."""
        self.front.open()
        try:
            self._server.wait()
        except MlopsError:
            self._server = self._open()
            self.front.backend = Relay(self._server.url)

    def stop(self) -> None:
        os.kill(self._pid(), signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self._pid(), signal.SIGCONT)

    def fill_disk(self) -> None:
        """Lets no file of the server grow: SQLite then fails as it does on a full disk."""
        import resource

        size = (self.settings.home / "mlflow.db").stat().st_size
        _, hard = resource.prlimit(self._pid(), resource.RLIMIT_FSIZE)
        resource.prlimit(self._pid(), resource.RLIMIT_FSIZE, (min(size, 4096), hard))

    def free_disk(self) -> None:
        import resource

        _, hard = resource.prlimit(self._pid(), resource.RLIMIT_FSIZE)
        resource.prlimit(self._pid(), resource.RLIMIT_FSIZE, (hard, hard))

    def hold_database(self, hold_s: float) -> Callable[[], None]:
        ready = self.settings.home / f"held-{time.monotonic_ns()}"
        process = FORK.Process(
            target=children.hold_database,
            args=(self.settings.home / "mlflow.db", ready, hold_s),
            daemon=True,
        )
        process.start()
        while not ready.exists():
            time.sleep(0.005)
        return process.join

    def read(self, experiment: str) -> list[Found]:
        self.front.wait_idle()
        if self._client is None:
            self._client = open_store_client(self.settings)
        return read_mlflow(self._client, (experiment, DEFAULT))

    def _open(self) -> Server:
        server = self._leases.enter_context(open_server(self.settings))
        server.wait()
        return server

    def _pid(self) -> int:
        address = ServerFolder(self.settings.home / "server").find_address()
        assert address is not None
        return address.mlflow_pid


@dataclass(slots=True)
class Stage:
    """One seed of one row.

    Attributes:
        place: An empty folder, the seed's own.
        rng: Decides what goes wrong, and when.
        spoiled: The keys of runs whose creation the row destroyed: of them things are refused.
    """

    server: Harmed
    place: Path
    script: children.Script
    settings: Settings
    rng: random.Random
    spoiled: frozenset[str] = frozenset()
    _children: list[Any] = field(default_factory=list)

    def start(self, target: Callable[..., None], *args: Any, daemon: bool = True) -> Any:
        """Starts a child process of the script; one that is no daemon may have its own."""
        process = FORK.Process(target=target, args=(self.script, *args), daemon=daemon)
        process.start()
        self._children.append(process)
        return process

    def tape(self, name: str = "1-driver") -> Path:
        return self.script.tapes / f"{name}.tape"

    def n_done(self) -> int:
        return sum(count_done(path) for path in self.script.tapes.glob("*.tape"))

    def is_alive(self) -> bool:
        """Tells whether a process is left that logs."""
        return any(child.is_alive() for child in self._children)

    def wait_for_done(self, wanted: int) -> None:
        """Returns once so many items are acknowledged, or no process is left that logs."""
        while self.n_done() < wanted and self.is_alive():
            time.sleep(0.002)

    def said(self) -> Said:
        return read_tapes(self.script.tapes)

    def sync(self) -> SyncResult:
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(self.script.timeout_s * 5)
        self.server.front.wait_idle()
        return sync(self.settings)

    def join(self) -> None:
        for child in self._children:
            child.join()

    def end(self, said: Said | None = None, wanted: Wanted = lambda item, run: True) -> Outcome:
        """Delivers what is left with a server that is well again, and compares.

        Args:
            said: What to compare with; by default what the tapes say.
            wanted: Tells of an item of a run whether it is compared.
        """
        self.join()
        self.server.front.plan = lambda request: None
        result = self.sync()
        if result.undelivered or result.problems:
            result = self.sync()  # what a server did late may have been in the way once
        found = [
            replace(run, items=tuple(item for item in run.items if wanted(item, run)))
            for run in self.server.read(self.script.name)
        ]
        outcome = compare(said or self.said(), found)
        left = [f"{result.undelivered} records are left: {one}" for one in result.problems]
        left += [
            f"refused: {one}"
            for one in result.refused
            if not any(key in one for key in self.spoiled)
        ]
        # A record that is left, and one that is refused, is an acknowledged one that is lost.
        return outcome + Outcome(0, lost=len(left), said=tuple(left))


@contextlib.contextmanager
def open_stage(server: Harmed, place: Path, row: str, seed: int) -> Iterator[Stage]:
    """Sets a stage in an empty folder; ends its processes."""
    name = f"{row}-{server.kind}-{seed}"
    settings = Settings.from_env(
        {"MLOPS_HOME": str(place / "home"), "MLFLOW_TRACKING_URI": server.front.url}
    )
    note = place / "note.txt"
    note.write_text(f"a note of seed {seed}\n")
    script = children.Script(
        name=name,
        seed=seed,
        folder=settings.home / "journal" / name,
        tapes=place / "tapes",
        model=write_model(place),
        note=note,
        url=server.front.url,
        timeout_s=server.timeout_s,
    )
    stage = Stage(server, place, script, settings, random.Random(f"{row} {seed}"))
    try:
        yield stage
    finally:
        server.front.plan = lambda request: None
        for child in stage._children:
            child.kill()
            child.join()
