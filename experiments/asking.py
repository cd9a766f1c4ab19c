"""Which trials are sent next to a worker: one, or with populations several of one shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

from experiments.config import SweepConfig
from experiments.study import Ask, Search


class Asking:
    """Asks the studies of a sweep.

    What was asked for and had another shape than the population of then begins the next one.
    """

    def __init__(self, config: SweepConfig) -> None:
        self._config = config
        self._held: dict[str, Ask] = {}

    @property
    def holds_any(self) -> bool:
        """Whether something was asked for that is not sent yet."""
        return bool(self._held)

    def ask(self, search: Search, n_begun: int, n_workers: int) -> list[Ask]:
        """Returns the trial that is to be trained next; with populations several of one shape.

        Where trials are pruned those are twice as many as fit in, which take the places that become
        free. What is left is shared out among the workers.

        Args:
            n_begun: Trials of the study that are finished or under way.
        """
        first = self._held.pop(search.name, None) or search.ask()
        if first is None or self._config.population is None:
            return [] if first is None else [first]
        most = self._config.population * (1 if self._config.resolved().pruner == "none" else 2)
        left = self._config.trials - n_begun
        most = min(most, max(1, math.ceil(left / max(1, n_workers))))
        asks, shape = [first], search.shape_of(first.params)
        while len(asks) < most and (ask := search.ask(shape)) is not None:
            if search.shape_of(ask.params) != shape:
                self._held[search.name] = ask
                break
            asks.append(ask)
        return asks

    def let_go(self, searches: Sequence[Search]) -> None:
        """Gives back trials that were asked for and did not come to be trained."""
        for search in searches:
            if (ask := self._held.pop(search.name, None)) is not None:
                search.retry(ask.number, "interrupted", charge=False)
