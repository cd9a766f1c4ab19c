"""What a report says of a sweep: plain, frozen values, and nothing that reads or writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.finals import SeedSummary
from experiments.importances import Importances
from experiments.objectives import Objective
from experiments.overview import State


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """The rows of a sweep; where they are not stored here, no more than their fingerprint.

    Attributes:
        fingerprint: None of a study that is older than the record of it.
        rows: What one row is, in words; None where that is not known here.
        counts: Rows of each part ("train", "val", "test").
        class_counts: Training rows of each class, in the order of the names.
    """

    name: str
    fingerprint: str | None
    source: str | None = None
    rows: str | None = None
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    class_counts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TrialFacts:
    """A complete trial.

    Attributes:
        value: Its quality.
        best_epoch: From 0; None where it was not kept.
        metrics: Of its best epoch, and what the network costs, by name, as far as they were kept.
    """

    number: int
    value: float
    params: Mapping[str, Any]
    best_epoch: int | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HistoryPoint:
    """A trial in the order of the search.

    Attributes:
        counts: Whether it is complete and keeps what is required.
        value: Of a pruned one the best that it reported.
    """

    number: int
    counts: bool
    value: float


@dataclass(frozen=True, slots=True)
class Failure:
    """Trials that failed for one reason.

    Attributes:
        numbers: Of the first of them.
        params: Of those trials.
    """

    reason: str
    n: int
    numbers: tuple[int, ...]
    params: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class ParamRange:
    """What was searched of a param: a range, or choices; one choice is a fixed param."""

    name: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    whole: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def is_fixed(self) -> bool:
        return len(self.choices) == 1 or (self.low is not None and self.low == self.high)


@dataclass(frozen=True, slots=True)
class ParetoFacts:
    """The trials that no other beats, the best quality first; all others are `beaten`.

    Attributes:
        members, beaten: Of each trial its number and its values by metric. Of many that are beaten
            some.
        params: Of the members, by number.
        bounds: What is required: metric and bound.
    """

    metrics: tuple[Objective, ...]
    members: tuple[tuple[int, Mapping[str, float]], ...]
    beaten: tuple[tuple[int, Mapping[str, float]], ...]
    params: Mapping[int, Mapping[str, Any]]
    bounds: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class StudyFacts:
    """How one architecture's study stands.

    Attributes:
        objective: The quality that its best trial is chosen by.
        best: None where no complete trial kept what is required.
        top: The best complete trials, best first, `best` among them.
        seeds: The objective over the seeds of `--seeds`; None where there were none.
        n_best_at_last: Complete trials whose best epoch was their last.
        pruned_after: Median of the epochs that pruned trials had; None where none was pruned.
        trial_s: Wall seconds of all its trials, added up.
        gpu_s: GPU seconds of all its trials; None where none used a GPU.
        history: All trials with a value, or some of `n_history`; those that were best so far are
            all there.
        candidate: The version of the candidate; None where none is known.
    """

    study: str
    architecture: str
    task: str
    objective: str
    objectives: tuple[str, ...]
    requirements: tuple[str, ...]
    space: tuple[ParamRange, ...]
    target: int
    n_complete: int
    n_pruned: int
    n_failed: int
    n_running: int
    best: TrialFacts | None
    top: tuple[TrialFacts, ...]
    seeds: SeedSummary | None
    has_refit: bool
    n_best_at_last: int
    pruned_after: float | None
    trial_s: float
    gpu_s: float | None
    history: tuple[HistoryPoint, ...]
    n_history: int
    importances: Importances
    pareto: ParetoFacts | None
    failures: tuple[Failure, ...]
    has_candidate: bool
    candidate: int | None
    config_fingerprint: str

    @property
    def n_finished(self) -> int:
        return self.n_complete + self.n_pruned

    @property
    def searched(self) -> tuple[ParamRange, ...]:
        """The params that have more than one value to choose from."""
        return tuple(one for one in self.space if not one.is_fixed)


@dataclass(frozen=True, slots=True)
class SweepFacts:
    """How a sweep stands.

    Attributes:
        began, ended: ISO 8601, UTC: when its first trial began and its last one ended; None before.
        busy_s: Wall seconds in which any trial was under way; `--seeds` and `--refit` not counted.
        gpu_price: Of a GPU hour; None where none was given.
        config: As its `sweep.toml` says; empty where that is not here.
        config_file: Where that is; None where it is not here.
        environment: Versions and commit that it was begun with, by name; empty of old studies.
        commands: What to type next.
    """

    sweep_id: str
    experiment: str | None
    state: State
    home: str
    began: str | None
    ended: str | None
    busy_s: float
    gpu_price: float | None
    dataset: DatasetFacts
    config: Mapping[str, Any]
    config_file: str | None
    environment: Mapping[str, str]
    studies: tuple[StudyFacts, ...]
    commands: tuple[str, ...] = ()

    @property
    def ranked(self) -> tuple[StudyFacts, ...]:
        """The studies, the best first; those with another objective apart."""
        return tuple(sorted(self.studies, key=_rank))

    @property
    def gpu_s(self) -> float | None:
        known = [one.gpu_s for one in self.studies if one.gpu_s is not None]
        return sum(known) if known else None

    def cost(self, gpu_s: float | None) -> float | None:
        """Returns what GPU seconds cost, in the currency of the price; None where not known."""
        if gpu_s is None or self.gpu_price is None:
            return None
        return gpu_s / 3600 * self.gpu_price


def _rank(one: StudyFacts) -> tuple[str, float]:
    return one.objective, float("inf") if one.best is None else -one.best.value


def to_json(facts: Any) -> dict[str, Any]:
    """Returns a dataclass of this module as plain values."""
    plain: dict[str, Any] = _plain(dataclasses.asdict(facts))
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
