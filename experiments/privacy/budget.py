"""A sweep's privacy budget: what each training may spend, and what all have spent together.

All trainings of a sweep learn from the same rows, and everybody may look at each of them. So the
sweep's epsilon is that of all of them composed: complete, pruned, failed and cut short, and those
after the search. What each has done stands in the study. A trial's steps are noted before they are
made, so that a worker that dies has spent no more than was noted; an attempt that goes on from a
checkpoint counts the steps that it makes itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from experiments.architectures import Params
from experiments.config import SweepConfig
from experiments.privacy.accounting import CLIP, Mechanism, Privacy, compose, default_delta, plan

if TYPE_CHECKING:
    from experiments.study import Ask, Search
    from experiments.tasks import Training

MECHANISM: Final = "dp_mechanism"
"""Attribute of a trial: the noise multiplier, the rate, and the steps of an epoch."""
EPOCHS: Final = "dp_epochs"
"""Attribute of a trial: epochs that it has begun, at most."""
FINALS: Final = "dp_finals"
"""Attribute of a study: mechanism and epochs of each training that was begun after the search."""
SPENT: Final = "dp_spent"
"""Attribute of a study: what its sweep had spent when it ended last."""
BATCH_SIZE: Final = 32


@dataclass(frozen=True, slots=True)
class Spent:
    """What the trainings of a sweep have spent together.

    Attributes:
        epsilon: Of one training, at most.
        total: Of all of them, composed, at `delta`.
        n_trainings: That were begun.
    """

    epsilon: float
    delta: float
    total: float
    n_trainings: int

    def __str__(self) -> str:
        return (
            f"epsilon {self.total:.4g} at delta {self.delta:.2g}, over {self.n_trainings} "
            f"training(s) of epsilon {self.epsilon:g} each"
        )


class Budget:
    """What the trainings of one sweep may spend.

    Args:
        config: With `dp_epsilon`, or nothing is private.
        n_rows: Training rows.
    """

    def __init__(self, config: SweepConfig, n_rows: int) -> None:
        self._config = config
        self._n_rows = n_rows

    @property
    def delta(self) -> float:
        return self._config.dp_delta or default_delta(self._n_rows)

    def plan(self, params: Params) -> Privacy | None:
        """Returns how a training of these params keeps to its budget; None if none is private."""
        if self._config.dp_epsilon is None:
            return None
        return plan(
            self._config.dp_epsilon,
            self.delta,
            self._config.dp_clip or CLIP,
            n_rows=self._n_rows,
            batch_size=params.get("batch_size", BATCH_SIZE),
            epochs=self._config.epochs,
        )

    def begin(self, search: Search, ask: Ask) -> Privacy | None:
        """Notes how a trial will be trained, before a worker has it."""
        privacy = self.plan(ask.params)
        if privacy is not None:
            search.set_trial_attr(ask, MECHANISM, _as_list(privacy.mechanism))
        return privacy

    def begin_final(self, search: Search, params: Params) -> Privacy | None:
        """Notes a training after the search, as one of all epochs, before a worker has it."""
        privacy = self.plan(params)
        if privacy is not None:
            begun = search.study.user_attrs.get(FINALS, [])
            one = [_as_list(privacy.mechanism), self._config.epochs]
            search.study.set_user_attr(FINALS, [*begun, one])
        return privacy

    def spent(self, searches: Sequence[Search]) -> Spent | None:
        """Returns what all trainings of these studies have spent; None if none is private."""
        if self._config.dp_epsilon is None:
            return None
        done = [one for search in searches for one in trainings_of(search.study)]
        total = compose(done, self.delta)
        return Spent(self._config.dp_epsilon, self.delta, total, len(done))


def note_spent(search: Search, spent: Spent) -> None:
    """Keeps in a study what its sweep has spent: trials may be taken out of it later."""
    search.study.set_user_attr(SPENT, asdict(spent))


def find_spent(search: Search) -> Spent | None:
    """Returns what a study's sweep had spent when it ended last."""
    found = search.study.user_attrs.get(SPENT)
    return None if found is None else Spent(**found)


def trainings_of(study: Any) -> Iterator[tuple[Mechanism, int]]:
    """Yields mechanism and epochs of each private training that was begun in a study."""
    for trial in study.get_trials(deepcopy=False):
        attrs = trial.user_attrs
        if MECHANISM in attrs and attrs.get(EPOCHS):
            yield Mechanism(*attrs[MECHANISM]), attrs[EPOCHS]
    for mechanism, n_epochs in study.user_attrs.get(FINALS, []):
        yield Mechanism(*mechanism), n_epochs


def _as_list(mechanism: Mechanism) -> list[float]:
    return [mechanism.noise_multiplier, mechanism.rate, mechanism.steps_per_epoch]


class Spending:
    """The worker's side: notes the epochs of a trial in its study, each before it begins."""

    def __init__(self, trial: Any, training: Training) -> None:
        self._trial = trial
        self._n_epochs = training.epochs
        self._is_private = training.privacy is not None
        self.end(1)

    def go_on_after(self, epoch: int) -> None:
        """Notes that the epoch after this one (from 0), if there is one, may begin."""
        self.end(min(epoch + 2, self._n_epochs))

    def end(self, n_epochs: int) -> None:
        """Notes how many epochs the trial has been trained here."""
        if self._is_private:
            self._trial.set_user_attr(EPOCHS, n_epochs)
