"""Where trials run on this machine's GPUs: worker processes that can be packed anew.

How many share a GPU is fixed when a process starts: TensorFlow and JAX take their memory once. To
change it all processes end and others start, while no trial is out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from experiments.config import SweepConfig
from experiments.workers.cluster import SILENT_S, Workers, open_cluster
from experiments.workers.gpu_share import tell_workers
from experiments.workers.packing import Packing, pack

OpenPacked = Callable[[Packing], AbstractContextManager[Workers]]
"""Starts the worker processes of a packing, and ends them."""


class GpuCluster:
    """The `Workers` of this machine's GPUs.

    Args:
        config: Of the sweep, for `--workers` and `--threads`.
        packing: How it begins.
        open_packed: Starts the processes of a packing.

    Attributes:
        packing: How the GPUs are shared now.
    """

    def __init__(self, config: SweepConfig, packing: Packing, open_packed: OpenPacked) -> None:
        self.packing = packing
        self._config = config
        self._open_packed = open_packed
        self._end = ExitStack()
        self._workers = self._end.enter_context(open_packed(packing))

    def repack(self, trials_per_gpu: int) -> None:
        """Starts other processes, so many a GPU, each with its part of the memory.

        To be used while nothing is out: what is would be lost.
        """
        self._end.close()
        self.packing = pack(self._config, self.packing.gpus, trials_per_gpu)
        self._workers = self._end.enter_context(self._open_packed(self.packing))

    def close(self) -> None:
        self._end.close()

    def n_alive(self) -> int:
        return self._workers.n_alive()

    def n_joining(self) -> int:
        return self._workers.n_joining()

    @property
    def has_own_homes(self) -> bool:
        return False

    def submit(self, call: Callable[..., Any], *args: Any) -> Any:
        return self._workers.submit(call, *args)

    def next_done(self, timeout_s: float) -> Any | None:
        return self._workers.next_done(timeout_s)

    def result(self, ticket: Any) -> Any:
        return self._workers.result(ticket)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._workers.call(function, *args)

    def end_silent(self, silent_s: float = SILENT_S) -> None:
        self._workers.end_silent(silent_s)

    def kill(self) -> None:
        self._workers.kill()


@contextlib.contextmanager
def open_gpu_cluster(
    config: SweepConfig,
    packing: Packing,
    log: Path,
    preload: str = "experiments.trial",
) -> Iterator[GpuCluster]:
    """Starts worker processes on this machine's GPUs; ends them on exit.

    Args:
        log: File that takes what the workers write.
        preload: Module with a `dask_setup` that makes a worker's process ready; it must let the
            process take its share (`experiments.workers.gpu_share.take_share`).
    """

    def open_packed(packing: Packing) -> AbstractContextManager[Workers]:
        return open_cluster(
            packing.n_workers, config.threads, log, preload, env=tell_workers(packing)
        )

    with contextlib.closing(GpuCluster(config, packing, open_packed)) as cluster:
        yield cluster
