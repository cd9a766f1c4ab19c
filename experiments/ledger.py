"""What a driver knows of its study's trials, at a constant cost a trial.

Optuna's storage is the record of truth. Reading all of it again for each trial that ends would make
the ten thousandth cost a hundred times the hundredth; a driver is the only one that asks and tells,
so it reads the trials once, when it opens the study, and then notes what it does itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from optuna.trial import FrozenTrial, TrialState

from experiments.goals import Goals


class Ledger:
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
        self.best: list[FrozenTrial] = []
        complete = []
        for trial in trials:
            self._note(trial)
            if trial.state is TrialState.COMPLETE:
                complete.append(trial)
        self.best = goals.find_best(complete)

    @property
    def n_trials(self) -> int:
        return len(self._states)

    def count(self, *states: TrialState) -> int:
        return sum(self._counts[state] for state in states)

    def note(self, trial: FrozenTrial) -> None:
        """Takes a trial that is new, or has another state than before."""
        if self._note(trial) and trial.state is TrialState.COMPLETE:
            # Only a member can be beaten by what is new: the rest was beaten before.
            self.best = self._goals.find_best([*self.best, trial])

    def _note(self, trial: FrozenTrial) -> bool:
        """Counts a trial; returns whether it was not counted so before."""
        before = self._states.get(trial.number)
        if before is trial.state:
            return False
        if before is None:
            self.n_retries += "retry_of" in trial.user_attrs
            self.last_cell = max(self.last_cell, trial.user_attrs.get("cell", -1))
        else:
            self._counts[before] -= 1
        self._counts[trial.state] += 1
        self._states[trial.number] = trial.state
        if trial.state is TrialState.FAIL and "reason" in trial.user_attrs:
            self.n_errors += 1
            self.last_error = trial.user_attrs["reason"]
        return True
