"""What the driver decides about GPUs: who shares one, who is to be alone, and when the budget ends.

The driver asks before it sends a trial. Where the GPUs are to be shared otherwise than they are,
nothing is sent until all that is out has ended; then they are packed anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from experiments.config import SweepConfig
from experiments.study import Search
from experiments.workers.cluster import Workers
from experiments.workers.gpu_cluster import GpuCluster
from experiments.workers.packing import AUTO_AFTER, choose_packing, describe_peak


class Sharing:
    """The GPUs of one sweep, seen by its driver; on a CPU it lets everything be.

    Args:
        searches: Its studies; the list may grow.
        note: Takes a line for the person at the terminal.
        clock: Seconds that never go back.

    Attributes:
        finals_alone: Whether what is trained after the search is to have a GPU to itself.
    """

    def __init__(
        self,
        config: SweepConfig,
        cluster: Workers,
        searches: Sequence[Search],
        note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.finals_alone = False
        self._config = config
        self._cluster = cluster if isinstance(cluster, GpuCluster) else None
        self._searches = searches
        self._note = note
        self._clock = clock
        self._usual = 1 if self._cluster is None else self._cluster.packing.trials_per_gpu
        self._sent: dict[Any, tuple[float, float]] = {}
        self._told_spent = False

    def may_send(self) -> bool:
        """Packs the GPUs anew where that is due; False while what is out must end before."""
        alone = any(search.waits_alone for search in self._searches)
        return self._is_packed(alone)

    def may_send_final(self) -> bool:
        """As `may_send`, for what is trained after the search."""
        return self._is_packed(self.finals_alone)

    def is_spent(self) -> bool:
        """Tells whether `--budget-gpu-hours` is used up, what is out counted so far."""
        budget = self._config.budget_gpu_hours
        if budget is None:
            return False
        now = self._clock()
        out_s = sum((now - began_s) * part for began_s, part in self._sent.values())
        used_hours = (sum(search.gpu_s for search in self._searches) + out_s) / 3600
        if used_hours < budget:
            return False
        if not self._told_spent:
            self._told_spent = True
            self._note(
                f"the budget of {budget:g} GPU hours is used up ({used_hours:.4g}); no trial is "
                "started any more. The same command with a larger one goes on."
            )
        return True

    def begin(self, ticket: Any) -> None:
        """Notes that trials are out at a worker."""
        if self._cluster is not None:
            self._sent[ticket] = self._clock(), 1 / self._cluster.packing.trials_per_gpu

    def end(self, ticket: Any) -> float | None:
        """Notes that they are back; returns the GPU seconds since; None on a CPU."""
        began = self._sent.pop(ticket, None)
        return None if began is None else (self._clock() - began[0]) * began[1]

    def _is_packed(self, alone: bool) -> bool:
        if self._cluster is None:
            return True
        wanted = 1 if alone else self._choose()
        if wanted == self._cluster.packing.trials_per_gpu:
            return True
        if self._sent:
            return False
        why = "one has run out of memory and is tried again alone" if alone else self._reason
        self._note(f"from now on {wanted} trial(s) a GPU: {why}.")
        self._cluster.repack(wanted)
        return True

    def _choose(self) -> int:
        """Returns how many trials share a GPU, but for those that are to be alone."""
        assert self._cluster is not None
        n_peaks, peak_bytes = self._peaks()
        if self._config.trials_per_gpu == "auto" and n_peaks >= AUTO_AFTER:
            return choose_packing(self._config, self._cluster.packing.gpus, peak_bytes)
        return self._usual

    @property
    def _reason(self) -> str:
        assert self._cluster is not None
        if self._config.trials_per_gpu == "auto":
            return describe_peak(self._peaks()[1], self._cluster.packing.gpus)
        return "as before"

    def _peaks(self) -> tuple[int, int]:
        """Returns how many trials' memory is known, and the largest peak in bytes."""
        peaks = [search.gpu_peaks for search in self._searches]
        return sum(n for n, _ in peaks), max((most for _, most in peaks), default=0)
