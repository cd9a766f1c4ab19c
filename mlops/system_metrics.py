"""What a trial costs its machine: CPU, memory and GPU, sampled while the trial runs.

Names are those of MLflow's own system metrics, so that the tab of that name in its UI shows them,
with two of the process itself beside them:

    system/cpu_utilization_percentage           of all cores together, 0 to 100
    system/system_memory_usage_megabytes        in use on the machine
    system/system_memory_usage_percentage
    system/process_cpu_utilization_percentage   of this process; 100 is one core kept busy
    system/process_memory_usage_megabytes       of this process: resident memory
    system/gpu_<i>_utilization_percentage       share of the time in which some kernel ran
    system/gpu_<i>_memory_usage_megabytes       in use on the card, whoever uses it
    system/gpu_<i>_memory_usage_percentage
    system/gpu_<i>_power_usage_watts

A megabyte is 10**6 bytes, as it is to MLflow. `<i>` is the card's number in nvidia-smi. A CPU
figure is the mean since the sample before, and since the start in the first one.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import psutil

from mlops.gpus import MEGABYTE, Gpus, find_gpus

Log = Callable[[Mapping[str, float], int], None]
"""Takes metrics by name, and their step."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SystemSummary:
    """What a trial cost, as of the last sample.

    Attributes:
        n_samples: Samples that were logged.
        n_lost: Samples that could not be taken or not be logged.
        cpu_s: CPU seconds of the process since the start, all its threads together.
        peak_memory_mb: Most resident memory of the process, in megabytes of 10**6 bytes. On Linux
            the kernel's own high-water mark; elsewhere the largest sample.
        gpu_peak_memory_mb: Most memory in use in any sample on the card that trains, the first,
            whoever used it; None without a GPU.
        gpu_utilization_percentage: Mean over samples of that card, 0 to 100; None without a GPU, or
            where it is not supported (MIG).
    """

    n_samples: int
    n_lost: int
    cpu_s: float
    peak_memory_mb: float
    gpu_peak_memory_mb: float | None
    gpu_utilization_percentage: float | None


class Readings(Protocol):
    """What is read of the machine and of this process."""

    def cpu_times(self) -> tuple[float, float]:
        """Returns seconds in which cores were busy, and all seconds of all cores, since boot."""

    def memory(self) -> tuple[int, int]:
        """Returns bytes in use on the machine, and all bytes it has."""

    def process_cpu_s(self) -> float:
        """Returns the CPU seconds of this process since it began."""

    def process_memory(self) -> int:
        """Returns the bytes of resident memory of this process."""

    def begin_peak(self) -> None:
        """Forgets the most resident memory so far, where that can be."""

    def peak_memory(self) -> int:
        """Returns the most bytes since `begin_peak`; 0 where nobody counts them."""


class Machine:
    """The `Readings` of the machine and the process that this is."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._counts_peak = False

    def cpu_times(self) -> tuple[float, float]:
        times = psutil.cpu_times()
        # Linux counts guests' time in user and nice, too.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        return total - times.idle - getattr(times, "iowait", 0.0), total

    def memory(self) -> tuple[int, int]:
        memory = psutil.virtual_memory()
        return memory.used, memory.total

    def process_cpu_s(self) -> float:
        # Not psutil: that counts in ticks of 10 ms, and a trial may be shorter.
        return time.process_time()

    def process_memory(self) -> int:
        return int(self._process.memory_info().rss)

    def begin_peak(self) -> None:
        # proc(5): 5 sets VmHWM back to what is resident now, so that a worker's earlier trials do
        # not count.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_bytes(b"5")
            self._counts_peak = True

    def peak_memory(self) -> int:
        if not self._counts_peak:
            return 0
        _, _, rest = Path("/proc/self/status").read_bytes().partition(b"VmHWM:")
        words = rest.split(maxsplit=1)
        return int(words[0]) * 1024 if words else 0  # it says kB and means 1024 bytes


class SystemMetrics:
    """Samples the machine around one trial, every few seconds and once at the end.

    Steps count from 0. The last sample is taken in the thread that leaves the block, whether the
    trial failed or not, so that the shortest trial has one.

    A sample that cannot be taken or logged is lost, counted, and said once in the process's log; no
    exception comes out of here. Where the journal's disk is full the trial meets the same error by
    itself, at its next epoch or at its end; should there be space again by then, later samples are
    logged. A measurement is no reason for a trial to fail.

    One at a time in a process: a second one would begin the peak of memory anew.

    Args:
        log: `Run.log_metrics`. It is called from a thread of its own.
        every_s: Seconds between samples.
        machine: What is read; by default this machine.
        gpus: Finds the cards that are read, if there are any.
        clock: Seconds that never go back.

    Example:
        >>> with SystemMetrics(run.log_metrics) as system:
        ...     train()
        >>> system.summary.peak_memory_mb
        812.4
    """

    def __init__(
        self,
        log: Log,
        *,
        every_s: float = 10.0,
        machine: Readings | None = None,
        gpus: Callable[[], Gpus | None] = find_gpus,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log_metrics = log
        self._every_s = every_s
        self._machine = Machine() if machine is None else machine
        self._gpus = gpus()
        self._clock = clock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)
        self._before = self._times()
        self._began_s = self._before.own_s
        self._n_samples = self._n_lost = 0
        self._peak = 0
        self._gpu_memory_mb: list[float] = []
        self._gpu_percentages: list[float] = []

    @property
    def summary(self) -> SystemSummary:
        """What was found so far; all of it, once the block is left."""
        used = self._gpu_percentages
        return SystemSummary(
            n_samples=self._n_samples,
            n_lost=self._n_lost,
            cpu_s=self._before.own_s - self._began_s,
            peak_memory_mb=self._peak / MEGABYTE,
            gpu_peak_memory_mb=max(self._gpu_memory_mb, default=None),
            gpu_utilization_percentage=sum(used) / len(used) if used else None,
        )

    def __enter__(self) -> SystemMetrics:
        self._machine.begin_peak()
        self._before = self._times()
        self._began_s = self._before.own_s
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        while not self._stopping.wait(self._every_s):
            self._sample()

    def _sample(self) -> None:
        try:
            self._log_metrics(self._read(), self._n_samples)
            self._n_samples += 1
        except Exception as err:
            self._n_lost += 1
            if self._n_lost == 1:
                _log.warning("system metrics of a trial are lost: %s", err)

    def _read(self) -> dict[str, float]:
        used, total = self._machine.memory()
        resident = self._machine.process_memory()
        before, self._before = self._before, self._times()
        metrics = {
            **_cpu_metrics(before, self._before),
            "system/system_memory_usage_megabytes": used / MEGABYTE,
            "system/system_memory_usage_percentage": 100 * used / total,
            "system/process_memory_usage_megabytes": resident / MEGABYTE,
        }
        self._peak = max(self._peak, resident, self._machine.peak_memory())
        gpus = {} if self._gpus is None else self._gpus.read()
        own = "" if self._gpus is None else f"system/gpu_{self._gpus.first}"
        if (used_mb := gpus.get(f"{own}_memory_usage_megabytes")) is not None:
            self._gpu_memory_mb.append(used_mb)
        if (percentage := gpus.get(f"{own}_utilization_percentage")) is not None:
            self._gpu_percentages.append(percentage)
        return metrics | gpus

    def _times(self) -> _Times:
        own_s = self._machine.process_cpu_s()
        return _Times(self._clock(), own_s, *self._machine.cpu_times())


class _Times(NamedTuple):
    """What CPU figures are made of, all in seconds; each counts from some time of its own."""

    at_s: float
    own_s: float
    busy_s: float
    total_s: float


def _cpu_metrics(before: _Times, now: _Times) -> dict[str, float]:
    """Returns the mean CPU use between two times; what no time was measured for is left out."""
    elapsed_s, own_s, busy_s, total_s = (b - a for a, b in zip(before, now, strict=True))
    metrics = {}
    if total_s > 0:  # it is counted in ticks, and none may have passed
        share = min(1.0, max(0.0, busy_s / total_s))
        metrics["system/cpu_utilization_percentage"] = 100 * share
    if elapsed_s > 0:
        metrics["system/process_cpu_utilization_percentage"] = 100 * own_s / elapsed_s
    return metrics
