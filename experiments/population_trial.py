"""The worker's side of a population: trials of one shape, trained side by side.

Each is told of as if it were alone: `run_trial` runs for it in a thread of its own, and stands
still while the population trains. Only one of all these threads goes on at a time.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.architectures import open_architecture
from experiments.tasks import Training, TrialResult, TrialTask
from experiments.training import OnEpoch, Trained
from experiments.trial import Fitted, as_fitted, open_dataset, run_trial

if TYPE_CHECKING:
    from experiments.population import Member


@dataclass(frozen=True, slots=True)
class PopulationTask:
    """Trials whose params are of one shape.

    Attributes:
        trials: The first `size` are trained at once; as one ends, the next takes its place.
        size: Part of what decides their weights, so it is not how many there are.
    """

    trials: tuple[TrialTask, ...]
    size: int

    def moved(self, home: Path, server: str) -> PopulationTask:
        return replace(self, trials=tuple(one.moved(home, server) for one in self.trials))


def run_population(task: PopulationTask) -> list[TrialResult | None]:
    """Trains trials side by side, in a worker.

    Returns:
        How each ended; None for one that was not begun, since the program failed before.
    """
    from experiments.population import Population

    first = task.trials[0].training
    architecture, dataset = open_architecture(first.architecture), open_dataset(first)
    population = Population(
        architecture,
        dataset,
        size=task.size,
        epochs=first.epochs,
        objective=first.objective,
        numerics=first.numerics,
    )
    n_together = min(task.size, len(task.trials))
    trials = [_Trial(one, n_together) for one in task.trials]

    def members() -> Iterator[Member]:
        for one in trials:
            if (member := one.begin()) is not None:
                yield member

    error: BaseException | None = None
    try:
        population.train(members())
    except BaseException as err:
        error = err
        if not isinstance(err, Exception):
            raise
    finally:
        for one in trials:
            one.end(error)
    return [one.result for one in trials]


class _Trial:
    """A trial in a thread, which stands still from the beginning of its training to the end."""

    def __init__(self, task: TrialTask, n_together: int) -> None:
        self.result: TrialResult | None = None
        self._task = task
        self._n_together = n_together
        self._member: Member | None = None
        self._outcome: Trained | BaseException | None = None
        self._may_go_on, self._stands = threading.Semaphore(0), threading.Semaphore(0)
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), daemon=True)

    def begin(self) -> Member | None:
        """Begins the trial; returns what is to be trained, or None if it failed before that."""
        self._thread.start()
        self._stands.acquire()
        return self._member

    def end(self, error: BaseException | None) -> None:
        """Ends a trial that is under way, since the population cannot go on."""
        if self._thread.is_alive() and self._outcome is None:
            self._on_end(error or RuntimeError("the population ended before this trial"))

    def _run(self) -> None:
        try:
            self.result = run_trial(self._task, self._fit, self._n_together)
        except BaseException as err:  # it was told of where it could be
            self._outcome = self._outcome or err
        finally:
            self._stands.release()

    def _fit(self, training: Training, on_epoch: OnEpoch, refit: bool) -> Fitted:
        from experiments.population import Member

        self._member = Member(training.params, training.seed, on_epoch, self._on_end)
        self._stands.release()
        self._may_go_on.acquire()
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        assert self._outcome is not None
        architecture = open_architecture(training.architecture)
        return as_fitted(architecture, open_dataset(training), self._outcome)

    def _on_end(self, outcome: Trained | BaseException) -> None:
        """Lets the trial tell how it went, and waits until it has."""
        self._outcome = outcome
        self._may_go_on.release()
        self._stands.acquire()
