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


class Standing:
    """Counts of a study's trials, and the best of them.

    Attributes:
        n_trials: Trials that were ever made, in any state.
        n_retries: Trials that stand for one whose process died.
        last_cell: The last cell of the grid that was enqueued; -1 before the first.
        n_errors: Failed trials with a reason of their own: neither interrupted nor tried again.
        last_error: The latest of those reasons.
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
        complete = []
        for trial in trials:
            self.note(trial.number, trial.state, trial.user_attrs)
            if trial.state is TrialState.COMPLETE:
                complete.append(trial)
        self.best: list[FrozenTrial] = goals.find_best(complete)

    @property
    def n_trials(self) -> int:
        return len(self._states)

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
        if state is TrialState.FAIL and "reason" in attrs:
            self.n_errors += 1
            self.last_error = attrs["reason"]

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
