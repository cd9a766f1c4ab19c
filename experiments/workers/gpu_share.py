"""The worker's side of a GPU: which one a process has, what of it, and what a trial used.

A process takes its share before TensorFlow or JAX is imported (`take_share`): they read
CUDA_VISIBLE_DEVICES when they start, and never again.

Memory grows as it is needed, and a share has a cap. TensorFlow's API takes one of the two for a
device and refuses the other; so the cap is set there (`limit_tensorflow`), and growth by
TF_FORCE_GPU_ALLOW_GROWTH, which its allocator asks for whatever the API said. JAX has a variable
for each. None of it was measured on a GPU.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from experiments.workers.packing import Packing, cap_bytes
from mlops.gpus import MEBIBYTE, MEGABYTE, VISIBLE, find_gpus
from mlops.system_metrics import SystemSummary

GPUS_VARIABLE = "_MLOPS_WORKER_GPUS"
"""What a driver says to its workers of the machine's GPUs; JSON."""

SHARE_VARIABLE = "_MLOPS_WORKER_GPU_SHARE"
"""What of those this process has; JSON."""

JAX_FRACTION, NEW_JAX_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION"
WHOLE = "0.95"
"""Of a GPU that JAX has to itself: the rest is for the CUDA context. By itself it takes 0.75."""

_SIGNS = (
    "RESOURCE_EXHAUSTED",
    "OOM when allocating",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_FRAMEWORKS = ("tensorflow", "jax", "jaxlib")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Share:
    """What of a GPU a process has.

    Attributes:
        uuid: Names the GPU in CUDA_VISIBLE_DEVICES; empty where somebody else chose it.
        memory_bytes: All that the GPU has; 0 where that is not known.
        trials_per_gpu: Processes that share it.
    """

    uuid: str = ""
    memory_bytes: int = 0
    trials_per_gpu: int = 1

    @property
    def cap_bytes(self) -> int | None:
        return cap_bytes(self.memory_bytes, self.trials_per_gpu)


@dataclass(frozen=True, slots=True)
class GpuUse:
    """What a trial used of its GPU.

    Attributes:
        gpu_s: Seconds on the clock times the part of the GPU that it had.
        peak_bytes: Most memory that its framework had in use; None where that is not known.
        utilization: Percentage of the time in which some kernel ran on the GPU, whoever's it was.
    """

    gpu_s: float
    peak_bytes: int | None
    utilization: float | None

    def metrics(self, price: float | None) -> dict[str, float]:
        """Returns what is logged of it.

        Args:
            price: Of a GPU hour; None where none was given.
        """
        found = {
            "gpu_s": self.gpu_s,
            "gpu_peak_memory_mb": self.peak_bytes and self.peak_bytes / MEGABYTE,
            "gpu_utilization_percentage": self.utilization,
            "cost": None if price is None else price * self.gpu_s / 3600,
        }
        return {name: value for name, value in found.items() if value is not None}


def tell_workers(packing: Packing) -> dict[str, str]:
    """Returns the environment by which the processes of a packing know their GPUs."""
    shares = [Share(gpu.uuid, gpu.memory_bytes, packing.trials_per_gpu) for gpu in packing.gpus]
    return {GPUS_VARIABLE: json.dumps([asdict(share) for share in shares])}


def take_share(worker: Any, environ: MutableMapping[str, str] = os.environ) -> Share | None:
    """Takes this process's share, by its number among the workers; None where nobody gave any.

    The first act in a process: a framework that has started has another GPU already.

    Args:
        worker: Its name in Dask, a whole number; whoever starts it anew keeps that.
    """
    told = environ.get(GPUS_VARIABLE)
    if told is None:
        return None
    shares = [Share(**one) for one in json.loads(told)]
    share = shares[int(worker) % len(shares)]
    environ[SHARE_VARIABLE] = json.dumps(asdict(share))
    environ[VISIBLE] = share.uuid
    environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if share.cap_bytes is not None:
        environ.pop(NEW_JAX_FRACTION, None)  # JAX takes one of the two
        environ[JAX_FRACTION] = f"{share.cap_bytes / share.memory_bytes:.4f}"
    elif NEW_JAX_FRACTION not in environ:
        environ.setdefault(JAX_FRACTION, WHOLE)
    return share


def find_share(environ: MutableMapping[str, str] = os.environ) -> Share | None:
    """Returns what this process has of a GPU; None where it trains on the CPU.

    A worker of a cluster that runs already has what CUDA_VISIBLE_DEVICES says; it is taken to be
    alone there.
    """
    if SHARE_VARIABLE in environ:
        return Share(**json.loads(environ[SHARE_VARIABLE]))
    gpus = find_gpus()
    return None if gpus is None or gpus.first is None else Share()


def limit_tensorflow(share: Share | None, tf: Any) -> None:
    """Gives TensorFlow the memory of a share, before it uses the GPU.

    Args:
        tf: The module tensorflow.
    """
    if share is None or share.cap_bytes is None:
        return
    for device in tf.config.list_physical_devices("GPU"):
        limit = tf.config.LogicalDeviceConfiguration(memory_limit=share.cap_bytes // MEBIBYTE)
        tf.config.set_logical_device_configuration(device, [limit])


class Memory(Protocol):
    """What a framework says of the GPU memory that it has in use."""

    def begin(self) -> None:
        """Counts the peak from now on, where that can be."""

    def peak(self) -> int:
        """Returns the most bytes that were in use."""


class TensorFlowMemory:
    """TensorFlow's own count on its first GPU."""

    def __init__(self, tf: Any) -> None:
        self._config = tf.config.experimental

    def begin(self) -> None:
        self._config.reset_memory_stats("GPU:0")

    def peak(self) -> int:
        return int(self._config.get_memory_info("GPU:0")["peak"])


class JaxMemory:
    """JAX's own count on its first GPU. It cannot begin anew: it has earlier trials' peak too."""

    def __init__(self, device: Any) -> None:
        self._device = device

    def begin(self) -> None:
        pass

    def peak(self) -> int:
        return int(self._device.memory_stats()["peak_bytes_in_use"])


def open_memory(modules: MutableMapping[str, Any] = sys.modules) -> Memory | None:
    """Returns what counts this process's GPU memory; None on a CPU, or without Keras yet."""
    keras = modules.get("keras")
    backend = None if keras is None else keras.config.backend()
    tf, jax = modules.get("tensorflow"), modules.get("jax")
    if backend == "tensorflow" and tf is not None and tf.config.list_logical_devices("GPU"):
        return TensorFlowMemory(tf)
    if backend == "jax" and jax is not None:
        device = jax.local_devices()[0]
        return JaxMemory(device) if device.platform != "cpu" else None
    return None


class GpuMeter:
    """Measures what a trial uses of its GPU, from now on. On a CPU it measures nothing.

    A measurement is no reason for a trial to fail: what cannot be read is left out.

    Args:
        n_together: Trials that run in one program; each counts for its part of the time.
        share: What this process has of a GPU.
        memory: Opens what counts its memory.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        n_together: int = 1,
        *,
        share: Callable[[], Share | None] = find_share,
        memory: Callable[[], Memory | None] = open_memory,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.share = share()
        self._n_together = n_together
        self._clock = clock
        self._began_s = clock()
        self._memory: Memory | None = None
        if self.share is None:
            return
        try:
            self._memory = memory()
            if self._memory is not None:
                self._memory.begin()
        except Exception as err:
            _log.debug("no GPU memory is measured: %s", err)
            self._memory = None

    def use(self, summary: SystemSummary) -> GpuUse | None:
        """Returns what was used so far; None on a CPU.

        Args:
            summary: What NVML said. Of a GPU that is not shared it says the peak, where the
                framework does not: it is the card's, with the CUDA context.
        """
        if self.share is None:
            return None
        part = 1 / (self.share.trials_per_gpu * self._n_together)
        peak = self._peak()
        card_mb = summary.gpu_peak_memory_mb
        if not peak and self.share.trials_per_gpu == 1 and card_mb is not None:
            peak = int(card_mb * MEGABYTE)
        elapsed_s = self._clock() - self._began_s
        return GpuUse(elapsed_s * part, peak, summary.gpu_utilization_percentage)

    def explain(self) -> str:
        """Returns with whom a trial shared the memory that was not enough, for its reason."""
        shared = f" with {self.n_sharing} trials on its GPU" if self.n_sharing > 1 else ""
        program = f" in a program of {self._n_together} trials" if self._n_together > 1 else ""
        return f"out of memory{shared}{program}"

    @property
    def n_sharing(self) -> int:
        """How many processes share the memory that this one computes in; 1 on a CPU."""
        return 1 if self.share is None else self.share.trials_per_gpu

    def _peak(self) -> int | None:
        try:
            return None if self._memory is None else self._memory.peak()
        except Exception as err:
            _log.debug("a trial's GPU memory is not known: %s", err)
            return None


def is_out_of_memory(err: BaseException) -> bool:
    """Tells whether a training failed for lack of memory, on a GPU or of the host.

    That is Python's own MemoryError, and what TensorFlow and JAX raise. Keras raises some errors
    anew, as a RuntimeError: what one came from counts too.
    """
    return any(_says_so(one) for one in _chain(err))


def _says_so(err: BaseException) -> bool:
    if isinstance(err, MemoryError):
        return True
    kinds = type(err).__mro__
    if not any(kind.__module__.partition(".")[0] in _FRAMEWORKS for kind in kinds):
        return False
    is_exhausted = any(kind.__name__ == "ResourceExhaustedError" for kind in kinds)
    return is_exhausted or any(sign in str(err) for sign in _SIGNS)


def _chain(err: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while err is not None and id(err) not in seen:
        seen.add(id(err))
        yield err
        err = err.__cause__ or err.__context__
