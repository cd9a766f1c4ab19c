"""How many trials share a GPU, and what of its memory each may have. Pure, but for `find_gpus`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata

from experiments.config import SweepConfig
from mlops.errors import UsageError
from mlops.gpus import MEGABYTE, Gpu, list_gpus
from mlops.machine import find_lacking_cuda

CONTEXT_BYTES = 2**29
"""Of a GPU's memory, what a process takes beside what its framework counts: the CUDA context and
the kernels of its libraries. An assumption; not measured on a GPU."""

SLACK = 1.1
"""What is left to an allocator for its own rounding: a trial's peak counts for so much more."""

LEAST_BYTES = 2**28
"""The least that a trial is given."""

AUTO_AFTER = 4
"""Trials with a measured peak from which `--trials-per-gpu auto` packs by the largest."""


@dataclass(frozen=True, slots=True)
class Packing:
    """The worker processes of a machine's GPUs: number i of them has GPU number i modulo all.

    Attributes:
        trials_per_gpu: Processes that share a GPU; each has a part of its memory.
        n_workers: All of them.
    """

    gpus: tuple[Gpu, ...]
    trials_per_gpu: int
    n_workers: int

    def __str__(self) -> str:
        names = ", ".join(dict.fromkeys(gpu.name for gpu in self.gpus))
        shared = f", {self.trials_per_gpu} a GPU" if self.trials_per_gpu > 1 else ""
        return f"{self.n_workers} worker(s) on {len(self.gpus)} GPU(s) ({names}){shared}"


def find_gpus(
    backend: str | None = None, gpus: Callable[[], Sequence[Gpu]] = list_gpus
) -> tuple[tuple[Gpu, ...], str | None]:
    """Returns the GPUs that networks can be trained on here, and why those that are there cannot.

    Args:
        backend: Of Keras; by default as the environment says.
    """
    found = tuple(gpus())
    if not found:
        return (), None
    backend = backend or os.environ.get("KERAS_BACKEND") or "tensorflow"
    lacks = {"tensorflow": find_lacking_cuda, "jax": _find_lacking_jax}.get(backend, list)()
    if not lacks:
        return found, None
    return (), (
        f"there is a GPU ({found[0].name}), but {lacks[0]} is not installed, so trials are trained "
        "on the CPU; python -m mlops.doctor says what to install"
    )


def _find_lacking_jax() -> list[str]:
    """Returns what JAX lacks to compute on an NVIDIA GPU, by the name of its package."""
    for version in (13, 12):
        with contextlib.suppress(metadata.PackageNotFoundError):
            metadata.version(f"jax-cuda{version}-plugin")
            return []
    return ["jax[cuda12]"]


def check_gpus(config: SweepConfig, gpus: Sequence[Gpu], why_none: str | None = None) -> None:
    """Refuses what asks for GPUs where there is none, and more trials than one of them can hold.

    Args:
        gpus: Those of this machine, as `find_gpus` has them.
        why_none: Why there is none.

    Raises:
        UsageError: says what to leave out.
    """
    if config.cluster is None and not gpus:
        for flag, value in (
            ("--trials-per-gpu", config.trials_per_gpu),
            ("--budget-gpu-hours", config.budget_gpu_hours),
        ):
            if value is not None:
                reason = why_none or "expected one that the NVIDIA driver names, found none"
                raise UsageError(
                    f"{flag} needs a GPU on this machine; {reason}. Leave it out to train on the "
                    "CPU."
                )
    shared = config.trials_per_gpu
    if not isinstance(shared, int):
        return
    for gpu in gpus:
        if shared > (most := _most_that_fit(gpu.memory_bytes, LEAST_BYTES)):
            raise UsageError(
                f"--trials-per-gpu {shared} leaves a trial less than {_mb(LEAST_BYTES)} of GPU "
                f"{gpu.index} ({gpu.name}), which has {_mb(gpu.memory_bytes)}; expected at most "
                f"{max(1, most)}, or auto."
            )


def first_packing(config: SweepConfig, gpus: Sequence[Gpu]) -> Packing | None:
    """Returns how a sweep begins: one process a GPU, or as many as asked for; None without a GPU.

    `--workers` without `--trials-per-gpu` shares that many processes out among the GPUs; with it,
    there are no more than so many.
    """
    if not gpus:
        return None
    shared = 1 if config.trials_per_gpu == "auto" else config.trials_per_gpu
    if shared is None:
        shared = -(-(config.workers or 1) // len(gpus))
    return pack(config, gpus, shared)


def pack(config: SweepConfig, gpus: Sequence[Gpu], trials_per_gpu: int) -> Packing:
    """Returns so many processes a GPU, and no more than `--workers` of all."""
    n_workers = len(gpus) * trials_per_gpu
    return Packing(tuple(gpus), trials_per_gpu, min(n_workers, config.workers or n_workers))


def choose_packing(config: SweepConfig, gpus: Sequence[Gpu], peak_bytes: int) -> int:
    """Returns how many trials of a peak fit on each GPU, at least 1, and at most the cores.

    A GPU of memory M holds K trials where `M / K >= SLACK * peak_bytes + CONTEXT_BYTES`. Of GPUs
    that differ the smallest counts.

    Args:
        peak_bytes: The largest of all measured ones.
    """
    memory_bytes = min(gpu.memory_bytes for gpu in gpus)
    n_processes = config.n_cores // config.threads
    if config.workers is not None:
        n_processes = min(n_processes, config.workers)
    most = -(-n_processes // len(gpus)) if config.workers else n_processes // len(gpus)
    return max(1, min(most, _most_that_fit(memory_bytes, max(LEAST_BYTES, SLACK * peak_bytes))))


def cap_bytes(memory_bytes: int, trials_per_gpu: int) -> int | None:
    """Returns what a framework may take of a GPU that it shares; None where it has all of it."""
    return None if trials_per_gpu == 1 else memory_bytes // trials_per_gpu - CONTEXT_BYTES


def _most_that_fit(memory_bytes: int, each_bytes: float) -> int:
    return int(memory_bytes // (each_bytes + CONTEXT_BYTES))


def describe_peak(peak_bytes: int, gpus: Sequence[Gpu]) -> str:
    """Returns what a packing was chosen by, in words."""
    memory_bytes = min(gpu.memory_bytes for gpu in gpus)
    return f"the largest peak was {_mb(peak_bytes)} of {_mb(memory_bytes)}"


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / MEGABYTE:,.0f} MB"
