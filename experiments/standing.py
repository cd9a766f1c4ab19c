"""What a driver knows of its study's trials, at a constant cost a trial.

Optuna's storage is the record of truth. Reading all of it again for each trial that ends would make
the ten thousandth cost a hundred times the hundredth; a driver is the only one that asks and tells,
so it reads the trials once, when it opens the study, and then notes what it does itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from experiments.goals import Goals
from experiments.pareto import Point, find_members

ALONE = "alone"
"""User attribute of a trial that is to have a GPU to itself: it ran out of memory beside others."""

OUT_OF_MEMORY = "out_of_memory"
"""Of a trial that ran out of memory: how many trials shared its GPU."""

GPU_S = "gpu_s"
GPU_PEAK = "gpu_peak_bytes"


class Standing:
    """Counts of a study's trials, and the best of them.

    Attributes:
        n_trials: Trials that were ever made, in any state.
        n_retries: Trials that stand for one whose process died.
        last_cell: The last cell of the grid that was enqueued; -1 before the first.
        n_errors: Failed trials with a reason of their own: neither interrupted nor tried again.
        last_error: The latest of those reasons.
        n_out_of_memory: Trials that ran out of memory with none beside them; they are no errors.
        n_waiting_alone: Trials that wait to have a GPU to themselves.
        gpu_s: GPU seconds that all trials have used.
        n_gpu_peaks: Trials whose GPU memory was measured.
        largest_gpu_peak: The most bytes of them.
        best: The best complete trials, as `Goals.find_best` has them.
    """

    def __init__(self, goals: Goals, trials: Iterable[FrozenTrial]) -> None:
        self._goals = goals
        self._states: dict[int, TrialState] = {}
        self._counts: Counter[TrialState] = Counter()
        self.n_retries = 0
        self.last_cell = -1
        self.n_errors = 0
        self.last_error = ""
        self.n_out_of_memory = 0
        self._waiting_alone: set[int] = set()
        self.gpu_s = 0.0
        self.n_gpu_peaks = self.largest_gpu_peak = 0
        complete = []
        for trial in trials:
            self.note(trial.number, trial.state, trial.user_attrs)
            self.note_gpu(trial.user_attrs)
            if trial.state is TrialState.COMPLETE:
                complete.append(trial)
        self.best: list[FrozenTrial] = goals.find_best(complete)

    @property
    def n_trials(self) -> int:
        return len(self._states)

    @property
    def n_waiting_alone(self) -> int:
        return len(self._waiting_alone)

    def count(self, *states: TrialState) -> int:
        return sum(self._counts[state] for state in states)

    def note(self, number: int, state: TrialState, attrs: Mapping[str, Any]) -> None:
        """Takes a trial that is new, or has another state than before.

        Args:
            attrs: Its user attributes; of a new one those that it was enqueued with, of a failed
                one its reason.
        """
        before = self._states.get(number)
        if before is state:
            return
        if before is None:
            self.n_retries += "retry_of" in attrs
            self.last_cell = max(self.last_cell, attrs.get("cell", -1))
        else:
            self._counts[before] -= 1
        self._counts[state] += 1
        self._states[number] = state
        if state is TrialState.WAITING and attrs.get(ALONE):
            self._waiting_alone.add(number)
        else:
            self._waiting_alone.discard(number)
        if state is not TrialState.FAIL or "reason" not in attrs:
            return
        if OUT_OF_MEMORY not in attrs:
            self.n_errors += 1
            self.last_error = attrs["reason"]
        elif attrs[OUT_OF_MEMORY] == 1:  # beside others it is tried again, alone
            self.n_out_of_memory += 1

    def note_gpu(self, attrs: Mapping[str, Any]) -> None:
        """Takes what a trial used of a GPU, once, as its user attributes say it."""
        self.gpu_s += attrs.get(GPU_S) or 0.0
        if peak := attrs.get(GPU_PEAK):
            self.n_gpu_peaks += 1
            self.largest_gpu_peak = max(self.largest_gpu_peak, peak)

    def note_complete(
        self, number: int, metrics: Mapping[str, float], read: Callable[[], FrozenTrial]
    ) -> None:
        """Takes a trial that is complete.

        Args:
            metrics: What it was measured at.
            read: Reads the trial; is called where it is one of the best.
        """
        self.note(number, TrialState.COMPLETE, {})
        # Only one of the best can be beaten by what is new: the rest was beaten before.
        points = [*map(self._goals.point, self.best), Point(number, metrics, {})]
        members = find_members(points, self._goals.objectives, self._goals.requirements)
        if any(one.number == number for one in members):
            self.best = self._goals.find_best([*self.best, read()])
