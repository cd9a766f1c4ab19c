"""Where trials run otherwise: the workers of a Dask cluster that runs already (`--cluster`).

Nothing of it is the sweep's own. Workers come and go, other sweeps use them too, and they live on
when the driver ends. So:

- A worker joins before it gets a trial: the same code, study database and threads; it works in the
  sweep's home where it sees that, and otherwise in one of its own (`experiments.workers.joining`).
- A trial is sent to one worker, by its address, and Dask moves it to no other. It is out, or it has
  ended, or its worker is gone. At most one a worker: of several sweeps each has one waiting there,
  and Dask takes them in turn, so that none starves.
- Nothing of the cluster is ended. A call that its driver let go of ends after its epoch
  (`experiments.workers.wanted`).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import pickle
import queue
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.built_in import BUILT_IN
from experiments.config import SweepConfig
from experiments.trial import set_up_process
from experiments.workers.cluster import SILENT_S, RepeatedError, WorkerDiedError
from experiments.workers.joining import CALLS, MARKER, NotJoinedError, Terms, run_joined
from experiments.workers.members import FETCH_S, Member, Members
from experiments.workers.same_code import describe_code
from experiments.workers.wanted import NotWantedError
from mlops.errors import MlopsError, first_line
from mlops.lease import try_lock
from mlops.settings import Settings

NO_WORKER_S = 180.0
TELL_S = 3.0
ANSWERS_S = 10.0
LOCK = "lock"
GONE = "the worker's process is gone: it was killed, ran out of memory, or left"
START = "dask worker {} --nthreads 1 --memory-limit 0 --preload experiments.trial"


@dataclass(frozen=True, slots=True)
class Call:
    """A call that is out: its future, the file of its result, and who runs it."""

    future: Any
    place: Path
    member: Member


class RemoteCluster:
    """The `Workers` of a cluster that is there already.

    Args:
        members: Its worker processes.
        folder: Of the results of calls; the workers that share the home see it too.
        at_most: Workers to use at a time; None means all.
        note: Takes a line for the person at the terminal.
    """

    def __init__(
        self, members: Members, folder: Path, at_most: int | None, note: Callable[[str], None]
    ) -> None:
        self._members = members
        self._folder = folder
        self._at_most = at_most
        self._note = note
        self._out: dict[str, Call] = {}
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._ends: dict[str, str] = {}
        self._numbers = itertools.count()

    def n_alive(self) -> int:
        n_ready = len(self._members.ready())
        return n_ready if self._at_most is None else min(n_ready, self._at_most)

    def n_joining(self) -> int:
        return len(self._members.joining())

    @property
    def has_own_homes(self) -> bool:
        """Whether any worker that took part keeps its files in a home of its own."""
        return self._members.have_own_homes

    def wait(self, timeout_s: float = NO_WORKER_S) -> None:
        """Waits until a worker has joined; one that trains for another sweep is waited for.

        Raises:
            MlopsError: all that are there are refused, or none has come.
        """
        began = time.monotonic()
        deadline, told = began + timeout_s, False
        while True:
            self.end_silent()
            if self.n_alive():
                return
            refused = self._members.refused()
            if refused:
                rest = f" So are {len(refused) - 1} more." if len(refused) > 1 else ""
                raise MlopsError(refused[0].refusal + rest)
            now = time.monotonic()
            if self.n_joining():
                deadline = now + timeout_s
            if not told and now - began > TELL_S:
                told = True
                busy = ", which may be busy with another sweep" if self.n_joining() else ""
                self._note(f"waiting for a worker of {self._members.address}{busy}.")
            if now > deadline:
                raise MlopsError(
                    f"no worker has joined {self._members.address} for {timeout_s:.0f} s; start "
                    f"one: {START.format(self._members.address)}"
                )
            time.sleep(0.1)

    def tell_workers(self, timeout_s: float = ANSWERS_S) -> list[str]:
        """Returns lines that say how many workers can train, and who cannot and why.

        Args:
            timeout_s: To wait for those that have not answered; one that trains answers after that.
        """
        deadline = time.monotonic() + timeout_s
        while self.n_joining() and time.monotonic() < deadline:
            time.sleep(0.1)
            self.end_silent()
        refusals = self._members.refusals()
        n_ready = len(self._members.ready())
        parts = [f"{n_ready} worker(s) of {self._members.address} can train"]
        if self.n_alive() < n_ready:
            parts.append(f"{self.n_alive()} would be used")
        if self.n_joining():
            parts.append(f"{self.n_joining()} gave no answer yet: busy with another sweep, perhaps")
        if refusals:
            parts.append(f"{len(refusals)} cannot")
        return ["; ".join(parts) + ".", *(f"  {one}" for one in refusals)]

    def submit(self, call: Callable[..., Any], *args: Any) -> Any:
        """Starts a call with the worker that has least to do; returns its ticket."""
        used = [one.member for one in self._out.values()]
        free = [member for member in self._members.ready() if member not in used]
        member = min(free, key=lambda one: one.n_tasks)
        number = next(self._numbers)
        place = self._folder / str(number)
        future = self._members.send(member, run_joined, self._folder.name, number, call, *args)
        member.n_tasks += 1
        self._out[future.key] = Call(future, place, member)
        future.add_done_callback(self._done.put)
        return future

    def next_done(self, timeout_s: float) -> Any | None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                ticket = self._done.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return None
            call = self._out.get(ticket.key)
            if call is None:
                continue  # it was given up and taken before
            if ticket.cancelled() and ticket.key not in self._ends:
                # Dask lets go of all calls when the connection breaks. What has ended counts.
                self._members.lose()
                if _read_kept(call.place) is None:
                    continue
            return ticket

    def result(self, ticket: Any) -> Any:
        """Returns what the call returned, or raises what it raised.

        Raises:
            WorkerDiedError: the worker is gone, or is given up.
        """
        from distributed.client import FutureCancelledError
        from distributed.scheduler import KilledWorker

        call = self._out.pop(ticket.key)
        reason = self._ends.pop(ticket.key, None)
        # The file first: Dask would ask a worker for it that may be gone by now.
        kept = _read_kept(call.place)
        if kept is None and reason is not None:
            raise WorkerDiedError(reason)
        try:
            found = ticket.result(timeout=FETCH_S) if kept is None else pickle.loads(kept)
        except (
            FutureCancelledError,
            KilledWorker,
            NotJoinedError,
            NotWantedError,
            RepeatedError,
            TimeoutError,
        ) as err:
            raise WorkerDiedError(GONE) from err
        ticket.release()
        call.member.n_tasks -= 1
        self._members.renew_grown(call.member)
        return found

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Runs one call and waits for it; one whose worker is gone is sent to another."""
        from distributed.client import FutureCancelledError
        from distributed.scheduler import KilledWorker

        while True:
            self.wait()
            member = self._members.ready()[0]
            future = self._members.send(member, function, *args, first=True)
            while not future.done() and self._members.is_there(member):
                time.sleep(0.05)
                self.end_silent()
            if future.done():
                with contextlib.suppress(FutureCancelledError, KilledWorker, TimeoutError):
                    return future.result(timeout=FETCH_S)

    def end_silent(self, silent_s: float = SILENT_S) -> None:
        """Looks who is there, and gives up the calls of who is gone or silent.

        Raises:
            MlopsError: the scheduler is gone.
        """
        if not self._members.look(silent_s):
            return
        for key, call in self._out.items():
            if not self._members.is_there(call.member):
                self._give_up(key, GONE)
            elif call.member.is_silent:
                self._give_up(key, f"the worker gave no sign of life for {silent_s:.0f} s")

    def kill(self) -> None:
        """Lets go of all that is out: each training ends after its epoch, and no worker does."""
        futures = [call.future for call in self._out.values()]
        self._out.clear()
        self._members.let_go(futures, "the sweep has ended")

    def _give_up(self, key: str, reason: str) -> None:
        """Has a call end with WorkerDiedError."""
        if key not in self._ends:
            future = self._out[key].future
            self._ends[key] = reason
            self._members.let_go([future], reason)
            self._done.put(future)


def _read_kept(place: Path) -> bytes | None:
    """Returns the result that a call left; None while there is none."""
    try:
        return place.read_bytes() or None
    except OSError:
        return None


@contextlib.contextmanager
def open_remote_cluster(
    config: SweepConfig,
    settings: Settings,
    note: Callable[[str], None],
    set_up: Callable[[int], None] = set_up_process,
) -> Iterator[RemoteCluster]:
    """Connects to `config.cluster` and waits for its first worker; leaves it as it is on exit.

    Args:
        note: Takes a line for the person at the terminal.
        set_up: Makes a worker's process compute with so many threads.

    Raises:
        MlopsError: no scheduler answers, or no worker can take part.
    """
    import dask
    from distributed.utils import silence_logging_cmgr

    address = str(config.cluster)
    own = tuple(name.partition(":")[0] for name in config.architectures if name not in BUILT_IN)
    with contextlib.ExitStack() as end:
        folder = end.enter_context(_open_folder(settings.home))
        settings_of_dask = {
            "distributed.admin.tick.limit": "1 hour",
            # A network travels to be drawn; Dask would advise the user how to write Dask.
            "distributed.admin.large-graph-warning-threshold": "1 TB",
        }
        end.enter_context(dask.config.set(settings_of_dask))
        end.enter_context(silence_logging_cmgr(logging.CRITICAL))
        client = _connect(address)
        end.callback(_close, client)
        terms = Terms(
            token=folder.name,
            home=settings.home,
            folder=folder,
            threads=config.threads,
            tracking_uri=settings.tracking_uri,
            study_url=settings.study_url,
            datasets_url=settings.datasets_url,
            code=describe_code(own),
            own=own,
            set_up=set_up,
        )
        members = Members(client, address, terms, note)
        cluster = RemoteCluster(members, folder, config.workers, note)
        end.callback(cluster.kill)
        cluster.wait()
        yield cluster


def _connect(place: str) -> Any:
    from distributed import Client

    known = {"scheduler_file": place} if place.endswith(".json") else {"address": place}
    try:
        return Client(**known, set_as_default=False)
    except Exception as err:
        raise MlopsError(
            f"no Dask scheduler answers at {place} ({first_line(err).rstrip('.')}). Start one with "
            "`dask scheduler`, or leave --cluster out to train on this machine."
        ) from err


def _close(client: Any) -> None:
    with contextlib.suppress(Exception):
        client.close(timeout=2)


@contextlib.contextmanager
def _open_folder(home: Path) -> Iterator[Path]:
    """Makes a folder of this driver's own in its home, and removes it on exit.

    It holds the results of calls, and the marker by which a worker knows the home. A driver that
    is killed leaves its folder; the next one removes it, since its lock is free.
    """
    is_new = not home.exists()
    root = home / CALLS
    for left in root.glob("*/"):
        _remove_left(left)
    lock = None
    while lock is None:  # another driver may look at it, unlocked as it is, at this very moment
        folder = root / secrets.token_hex(8)
        folder.mkdir(parents=True)
        lock = try_lock(folder / LOCK)
    try:
        (folder / MARKER).write_text(folder.name)
        yield folder
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            root.rmdir()  # unless others work in it
            if is_new:
                home.rmdir()


def _remove_left(folder: Path) -> None:
    """Removes the folder of a driver that was killed."""
    with contextlib.suppress(OSError):
        lock = try_lock(folder / LOCK, create=False)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
