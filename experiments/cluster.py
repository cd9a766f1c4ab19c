"""Where trials run: worker processes on this machine, by Dask, that live as long as the sweep."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.trial import LOG_VARIABLE, THREADS_VARIABLE
from mlops.errors import MlopsError


class WorkerDiedError(MlopsError):
    """The process that ran a call was killed, or killed itself (out of memory)."""


class Cluster:
    """Runs calls in worker processes. One call a worker at a time is the caller's duty.

    A call whose worker dies is never repeated by Dask: it would run again on the same Optuna trial
    and mix two attempts' reports.
    """

    def __init__(self, client: Any, cluster: Any) -> None:
        self._client = client
        self._cluster = cluster
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def n_alive(self) -> int:
        """Counts the workers that are there now; one that was killed is started anew in seconds."""
        return len(self._cluster.scheduler.workers)

    def submit(self, call: Callable[..., Any], *args: Any) -> Any:
        """Starts a call; returns a ticket that `next_done` gives back."""
        future = self._client.submit(call, *args, pure=False, retries=0)
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

        try:
            return ticket.result()
        except (KilledWorker, FutureCancelledError) as err:
            raise WorkerDiedError(
                "the worker's process was killed (out of memory is the usual cause)"
            ) from err

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Runs one call and waits for it."""
        return self._client.submit(function, *args, pure=False, retries=0).result()

    def kill(self) -> None:
        """Ends the workers at once; `Cluster` is of no use afterwards. Used after an interrupt."""
        for nanny in list(self._cluster.workers.values()):
            with contextlib.suppress(Exception):
                self._client.sync(nanny.kill, timeout=0.5)


@contextlib.contextmanager
def open_cluster(
    n_workers: int, threads: int, log: Path, preload: str = "experiments.trial"
) -> Iterator[Cluster]:
    """Starts worker processes on this machine; ends them on exit.

    Args:
        n_workers: How many processes.
        threads: Threads that a trial computes with.
        log: File that takes what the workers write.
        preload: Module with a `dask_setup` that makes a worker's process ready.
    """
    import dask
    from distributed import Client, LocalCluster

    log.parent.mkdir(parents=True, exist_ok=True)
    settings = {
        "distributed.scheduler.allowed-failures": 0,
        "distributed.worker.daemon": True,
        # Dask samples the stack of a running call 100 times a second: a fifth of a trial's time.
        "distributed.worker.profile.enabled": False,
        # A trial holds the interpreter for long; that is no reason to think a worker dead.
        "distributed.scheduler.worker-ttl": "30 minutes",
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
            env={THREADS_VARIABLE: str(threads), LOG_VARIABLE: str(log)},
        )
        client = Client(cluster, set_as_default=False)
        try:
            yield Cluster(client, cluster)
        finally:
            with contextlib.suppress(Exception):
                client.close(timeout=2)
            with contextlib.suppress(Exception):
                cluster.close(timeout=5)
