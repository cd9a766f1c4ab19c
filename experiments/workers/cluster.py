"""Where trials run: worker processes on this machine, by Dask, that live as long as the sweep.

`remote_cluster` has the other place: the workers of a cluster that runs already.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import queue
import shutil
import signal
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import psutil

from experiments.trial import LOG_VARIABLE, THREADS_VARIABLE
from mlops.errors import MlopsError

SILENT_S = 60.0
"""Seconds without a sign of life after which a worker is ended. Its event loop gives one each half
second, whatever a trial does; a process that was stopped, or never gets the CPU, gives none."""

LOOK_S = 1.0
GROWTH_BYTES = 2**30
"""What a worker may hold more than after its first call, before a fresh process takes its place.
TensorFlow keeps some megabytes of each network that was ever built (docs/benchmarks.md)."""

KILLED = "the worker's process was killed (out of memory is the usual cause)"


class WorkerDiedError(MlopsError):
    """The process that ran a call was killed, or killed itself (out of memory)."""


class Workers(Protocol):
    """Worker processes that calls run in. One call a worker at a time is the caller's duty.

    A call is run once or not at all; one whose worker is gone is never run again.
    """

    def n_alive(self) -> int:
        """Counts the workers that can take a call now, those that run one too."""
        ...

    def n_joining(self) -> int:
        """Counts the workers that are there, and may soon take a call."""
        ...

    @property
    def has_own_homes(self) -> bool:
        """Whether any worker that took part keeps its files in a home of its own."""
        ...

    def submit(self, call: Callable[..., Any], *args: Any) -> Any:
        """Starts a call; returns a ticket that `next_done` gives back."""
        ...

    def next_done(self, timeout_s: float) -> Any | None:
        """Returns the ticket of a call that has ended, or None after the time is over."""
        ...

    def result(self, ticket: Any) -> Any:
        """Returns what the call returned, or raises what it raised.

        Raises:
            WorkerDiedError: the worker is gone, or is given up.
        """
        ...

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Runs one call and waits for it."""
        ...

    def end_silent(self, silent_s: float = SILENT_S) -> None:
        """Ends or gives up workers that have given no sign of life; to be asked again and again.

        Raises:
            MlopsError: all of them are out of reach.
        """
        ...

    def kill(self) -> None:
        """Ends what is out at once. Of no use afterwards."""
        ...


class Cluster:
    """The `Workers` of this machine.

    A call whose worker dies is never repeated: it would run again on the same Optuna trial and mix
    two attempts' reports. Dask does repeat one whose worker died with a result that nobody had
    fetched; so the result is kept in a file too, and found there (`run_once`).
    """

    def __init__(self, client: Any, cluster: Any) -> None:
        self._client = client
        self._cluster = cluster
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._out: dict[str, Path] = {}
        self._taken: dict[str, Path] = {}
        self._results = Path(tempfile.mkdtemp(prefix="podium-results-"))
        weakref.finalize(self, shutil.rmtree, self._results, ignore_errors=True)
        self._numbers = itertools.count()
        self._ends: dict[str, str] = {}
        self._signs: dict[int, tuple[float, float]] = {}
        self._looked = time.monotonic()
        self._rss: dict[int, int] = {}

    def n_alive(self) -> int:
        """Counts the workers that are there now; one that was killed is started anew in seconds."""
        return len(self._cluster.scheduler.workers)

    def n_joining(self) -> int:
        return 0

    @property
    def has_own_homes(self) -> bool:
        return False

    def submit(self, call: Callable[..., Any], *args: Any) -> Any:
        """Starts a call; returns a ticket that `next_done` gives back."""
        place = self._results / str(next(self._numbers))
        future = self._client.submit(run_once, place, call, *args, pure=False, retries=0)
        self._out[future.key] = place
        future.add_done_callback(self._done.put)
        return future

    def next_done(self, timeout_s: float) -> Any | None:
        """Returns the ticket of a call that has ended, or None after the time is over."""
        try:
            return self._done.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def result(self, ticket: Any) -> Any:
        """Returns what the call returned, or raises what it raised.

        Raises:
            WorkerDiedError: the worker's process is gone.
        """
        from distributed.client import FutureCancelledError
        from distributed.scheduler import KilledWorker

        self._taken[ticket.key] = self._out.pop(ticket.key)
        try:
            found = ticket.result()
        except (KilledWorker, FutureCancelledError, RepeatedError) as err:
            raise WorkerDiedError(self._ends.pop(ticket.key, KILLED)) from err
        self._renew_grown(ticket.key)
        ticket.release()
        self._forget_taken()
        return found

    def _forget_taken(self) -> None:
        """Removes the files of results that Dask has let go of: until then it may ask again."""
        known = self._cluster.scheduler.tasks
        for key in [key for key in self._taken if key not in known]:
            self._taken.pop(key).unlink(missing_ok=True)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Runs one call and waits for it."""
        return self._client.submit(function, *args, pure=False, retries=0).result()

    def end_silent(self, silent_s: float = SILENT_S) -> None:
        """Ends workers that have given no sign of life; their calls end with WorkerDiedError.

        Only time in which this process ran itself counts: after a laptop slept, or a debugger held
        the driver, nobody is taken for dead.
        """
        now = time.monotonic()
        if (passed_s := now - self._looked) < LOOK_S:
            return
        self._looked = now
        for pid, worker in self._workers():
            seen, waited_s = self._signs.get(pid, (worker.last_seen, 0.0))
            waited_s = 0.0 if seen != worker.last_seen else waited_s + min(passed_s, 5 * LOOK_S)
            self._signs[pid] = (worker.last_seen, waited_s)
            if waited_s > silent_s:
                for task in list(worker.processing):
                    self._ends[task.key] = f"the worker gave no sign of life for {silent_s:.0f} s"
                _kill(pid)

    def _workers(self) -> list[tuple[int, Any]]:
        """Returns process id and Dask's record of each worker that is there."""
        records = self._cluster.scheduler.workers
        nannies = list(self._cluster.workers.values())
        found = [(nanny.pid, records.get(nanny.worker_address)) for nanny in nannies]
        return [(pid, record) for pid, record in found if pid and record is not None]

    def _renew_grown(self, key: str) -> None:
        """Ends the worker that ran a call, if its memory has grown too far and it is idle."""
        task = self._cluster.scheduler.tasks.get(key)
        ran = [] if task is None else list(task.who_has or ())
        workers = self._workers()
        assigned = {one.key for _, worker in workers for one in list(worker.processing)}
        for pid, worker in workers:
            if worker not in ran:
                continue
            with contextlib.suppress(psutil.Error):
                rss = psutil.Process(pid).memory_info().rss
                grown = rss - self._rss.setdefault(pid, rss) > GROWTH_BYTES
                # What was submitted and stands with no worker yet might be on its way to this one.
                if grown and not worker.processing and self._out.keys() <= assigned:
                    _kill(pid)

    def kill(self) -> None:
        """Ends the workers at once; `Cluster` is of no use afterwards. Used after an interrupt."""
        for nanny in list(self._cluster.workers.values()):
            with contextlib.suppress(Exception):
                self._client.sync(nanny.kill, timeout=0.5)


class RepeatedError(Exception):
    """A call was to run a second time."""


def run_once(place: Path, call: Callable[..., Any], *args: Any) -> Any:
    """Runs a call in a worker; asked again, returns what it returned.

    Args:
        place: A file of this call's own: empty from its beginning on, its result once it has ended.

    Raises:
        RepeatedError: it is asked again, and the first time did not end.
    """
    try:
        place.touch(exist_ok=False)
    except FileExistsError:
        if kept := place.read_bytes():
            return pickle.loads(kept)
        raise RepeatedError from None
    result = call(*args)
    draft = place.with_suffix(".draft")
    draft.write_bytes(pickle.dumps(result))
    draft.replace(place)
    return result


def _kill(pid: int) -> None:
    """Kills a worker at once; its nanny starts another."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def open_cluster(
    n_workers: int,
    threads: int,
    log: Path,
    preload: str = "experiments.trial",
    env: Mapping[str, str] | None = None,
) -> Iterator[Cluster]:
    """Starts worker processes on this machine; ends them on exit.

    Args:
        n_workers: How many processes.
        threads: Threads that a trial computes with.
        log: File that takes what the workers write.
        preload: Module with a `dask_setup` that makes a worker's process ready.
        env: More for the environment of each process.
    """
    import dask
    from distributed import Client, LocalCluster

    log.parent.mkdir(parents=True, exist_ok=True)
    settings = {
        "distributed.scheduler.allowed-failures": 0,
        "distributed.worker.daemon": True,
        # Dask samples the stack of a running call 100 times a second: a fifth of a trial's time.
        "distributed.worker.profile.enabled": False,
        # It goes by the clock on the wall, and would end all workers after a laptop slept;
        # `Cluster.end_silent` does not.
        "distributed.scheduler.worker-ttl": None,
        # A worker that was killed imports TensorFlow before it is back. Dask gives it 15 s, and
        # then lets go of it for good.
        "distributed.deploy.lost-worker-timeout": "1 hour",
        "distributed.comm.timeouts.connect": "60s",
        "distributed.admin.tick.limit": "1 hour",
    }
    with dask.config.set(settings):
        cluster = LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            # Who may connect may run code: certificates of this sweep's own keep other users out.
            protocol="tls",
            security=True,
            memory_limit=0,
            silence_logs=50,
            local_directory=str(log.parent / "workers"),
            preload=[preload],
            env={THREADS_VARIABLE: str(threads), LOG_VARIABLE: str(log), **(env or {})},
        )
        client = Client(cluster, set_as_default=False)
        try:
            yield Cluster(client, cluster)
        finally:
            with contextlib.suppress(Exception):
                client.close(timeout=2)
            with contextlib.suppress(Exception):
                cluster.close(timeout=5)
