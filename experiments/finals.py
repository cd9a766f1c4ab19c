"""After the search: the best params trained again, with other seeds or on more rows.

What is best of many trials is best by luck too. `--seeds K` trains its params with K seeds that the
search never used, so that their mean and interval are honest, and the median network is the
candidate. `--refit` trains the last network on training and validation rows together.

What is done stands in the study, under the number of the best trial; the same command goes on with
what is not. A search that went on and found a better trial begins its finals anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from experiments.architectures import Params
from experiments.figures.curves import Curves, find_curves
from experiments.study import Search, new_seed
from experiments.tasks import TrialResult


@dataclass(frozen=True, slots=True)
class Final:
    """One training after the search.

    Attributes:
        name: "seed-00", "seed-01", ... or "refit".
    """

    name: str
    kind: Literal["seed", "refit"]
    params: Params
    seed: int
    epochs: int


@dataclass(frozen=True, slots=True)
class SeedSummary:
    """The objective over `n` seeds, with Student's 95 % interval of its mean.

    It tells of the spread over seeds, on one split; not of that over other rows.
    """

    n: int
    mean: float
    low: float
    high: float
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Chosen:
    """The network that becomes a candidate.

    Attributes:
        name: Of its file: a trial's number, or a final's name.
        value: The objective that it competes with. A refit has none of its own: it has that of the
            network whose training it repeats.
    """

    name: str
    run_key: str
    value: float


def summarise_seeds(values: Sequence[float]) -> SeedSummary | None:
    """Returns mean and interval of the values over seeds; None of fewer than two."""
    n = len(values)
    if n < 2:
        return None
    from scipy.stats import t

    mean = sum(values) / n
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)
    return SeedSummary(n, mean, mean - half, mean + half, tuple(values))


class Finals:
    """The finals of one study."""

    def __init__(self, search: Search) -> None:
        self._search = search

    def pending(self) -> list[Final]:
        """Returns what can be trained now: all missing seeds, then the refit."""
        best = self._search.best()
        if best is None:
            return []
        config, done = self._search.config, self._done()
        seeds = [
            Final(
                name=f"seed-{number:02d}",
                kind="seed",
                params=best.params,
                seed=new_seed(config.seed, self._search.description.name, "final", number),
                epochs=config.epochs,
            )
            for number in range(config.seeds or 0)
        ]
        missing = [final for final in seeds if final.name not in done]
        if missing or not config.refit or "refit" in done:
            return missing
        epochs, seed = self._to_repeat()
        return [Final("refit", "refit", best.params, seed, epochs)]

    def begin(self, final: Final, run_key: str) -> None:
        """Notes that a final is under way, so that whoever comes after can end its run."""
        self._write("begun", final.name, run_key)

    def note(self, final: Final, run_key: str, result: TrialResult) -> None:
        """Notes how a final ended. One that failed counts as done: the others decide."""
        entry = {
            "run_key": run_key,
            "state": result.state,
            "value": result.value,
            "best_epoch": result.best_epoch,
            "seed": final.seed,
            "curves": result.curves,
        }
        self._write("done", final.name, entry)

    def left_behind(self) -> list[str]:
        """Returns the run keys of finals that a dead driver left under way."""
        done = {entry["run_key"] for entry in self._done().values()}
        begun = self._state().get("begun", {})
        return [run_key for run_key in begun.values() if run_key not in done]

    def summary(self) -> SeedSummary | None:
        """Returns mean and interval over the seeds; None with fewer than two."""
        return summarise_seeds([entry["value"] for entry in self._complete_seeds().values()])

    def chosen(self) -> Chosen | None:
        """Returns the refit, else what `judged` returns."""
        chosen, refit = self.judged(), self._done().get("refit")
        if chosen is not None and refit is not None and refit["state"] == "complete":
            return Chosen("refit", refit["run_key"], chosen.value)
        return chosen

    def judged(self) -> Chosen | None:
        """Returns the median seed (of an even number the lower), else the best.

        It has never learned from the validation rows; a refit repeats its training on them too.
        """
        best = self._search.best()
        if best is None:
            return None
        median = self._median()
        if median is None:
            value = self._search.goals.quality_of(best)
            return Chosen(f"{best.number:05d}", best.user_attrs["run_key"], value)
        name, entry = median
        return Chosen(name, entry["run_key"], entry["value"])

    def curves(self) -> Curves | None:
        """Returns the curves of what `judged` returns; None where none were kept."""
        best, median = self._search.best(), self._median()
        if median is not None:
            return median[1].get("curves")
        return None if best is None else find_curves(best, self._search.description.objective)

    def _to_repeat(self) -> tuple[int, int]:
        """Epochs and seed of the training that a refit repeats on more rows."""
        median = self._median()
        if median is not None:
            return median[1]["best_epoch"] + 1, median[1]["seed"]
        best = self._search.best()
        assert best is not None
        return best.user_attrs["best_epoch"] + 1, best.user_attrs["seed"]

    def _median(self) -> tuple[str, dict[str, Any]] | None:
        ranked = sorted(self._complete_seeds().items(), key=lambda item: item[1]["value"])
        return ranked[(len(ranked) - 1) // 2] if ranked else None

    def _complete_seeds(self) -> dict[str, dict[str, Any]]:
        return {
            name: entry
            for name, entry in self._done().items()
            if name != "refit" and entry["state"] == "complete"
        }

    def _done(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = self._state().get("done", {})
        return found

    def _state(self) -> dict[str, Any]:
        best = self._search.best()
        state: dict[str, Any] = self._search.study.user_attrs.get("finals", {})
        return state if best is not None and state.get("trial") == best.number else {}

    def _write(self, part: str, name: str, value: Any) -> None:
        best = self._search.best()
        assert best is not None
        state = {"trial": best.number, **self._state()}
        state[part] = {**state.get(part, {}), name: value}
        self._search.study.set_user_attr("finals", state)
