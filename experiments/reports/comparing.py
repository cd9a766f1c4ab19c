"""Sweeps side by side: what can be compared, what differs, and by how much."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from experiments.finals import SeedSummary
from experiments.reports.facts import DatasetFacts, StudyFacts, SweepFacts

NAMES: Final = ("study", "experiment", "workers", "cluster", "gpu_price", "warm_start")
"""Of a config, what decides nothing of a network."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better the best of one sweep is than that of another.

    Attributes:
        about: The architecture, or what is common to both bests.
        first, second: Names of both, and their values as they were compared.
        value: Second less first; over seeds where both have them.
        low, high: Its 95 % interval; None where each is one value.
    """

    about: str
    objective: str
    first: str
    second: str
    first_value: float
    second_value: float
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Sweeps side by side.

    Attributes:
        is_comparable: Whether values of all of them were measured on the same validation rows.
        about_data: That in a sentence, with what is different.
        differences: Of the later sweeps from the first; none where they cannot be compared.
        config: What differs in the configs: by name the value of each sweep.
    """

    sweeps: tuple[SweepFacts, ...]
    is_comparable: bool
    about_data: str
    differences: tuple[Difference, ...]
    config: tuple[tuple[str, tuple[str, ...]], ...]


def compare(sweeps: Sequence[SweepFacts], same_rows: bool | None = None) -> Comparison:
    """Compares sweeps with the first of them.

    Args:
        same_rows: Where fingerprints differ, whether validation and test rows were looked at and
            are the same all the same; None where that could not be looked at.
    """
    is_comparable, about = _compare_data([one.dataset for one in sweeps], same_rows)
    found = [one for other in sweeps[1:] for one in _differences(sweeps[0], other) if is_comparable]
    return Comparison(
        tuple(sweeps),
        is_comparable,
        about,
        tuple(found),
        _differing([one.config for one in sweeps]),
    )


def _compare_data(data: Sequence[DatasetFacts], same_rows: bool | None) -> tuple[bool, str]:
    prints = {one.fingerprint for one in data}
    if None in prints:
        return False, (
            "Not comparable: of a sweep that an older version made it is not known which rows it "
            "was on."
        )
    if len(prints) == 1:
        return True, (
            "Comparable: the same dataset by its fingerprint, so the same training, validation and "
            "test rows."
        )
    names = ", ".join(f"{one.name} {str(one.fingerprint)[:12]}" for one in data)
    if same_rows:
        return True, (
            f"Comparable: the fingerprints differ ({names}), but the validation and test rows and "
            "their labels are the same; the training rows differ."
        )
    if same_rows is None:
        return False, (
            f"Not comparable: the fingerprints differ ({names}), and the rows are not all stored "
            "on this machine, to look whether they do."
        )
    return False, (
        f"Not comparable: the sweeps were on other validation or test rows ({names}). Their values "
        "stand side by side all the same; a difference between them may be one of the rows."
    )


def _differences(first: SweepFacts, second: SweepFacts) -> Iterator[Difference]:
    """Yields the difference of each architecture that both have, then that of the bests."""
    theirs = {(one.architecture, one.objective): one for one in second.studies}
    for one in first.ranked:
        other = theirs.get((one.architecture, one.objective))
        if other is not None and one.best is not None and other.best is not None:
            yield _differ(one.architecture, first, one, second, other)
    for objective in dict.fromkeys(one.objective for one in first.ranked):
        bests = [_best_of(sweep, objective) for sweep in (first, second)]
        if bests[0] is not None and bests[1] is not None:
            names = " and ".join(dict.fromkeys(one.architecture for one in bests if one))
            if bests[0].architecture != bests[1].architecture:
                yield _differ(f"best: {names}", first, bests[0], second, bests[1])


def _best_of(sweep: SweepFacts, objective: str) -> StudyFacts | None:
    found = [one for one in sweep.ranked if one.objective == objective and one.best is not None]
    return found[0] if found else None


def _differ(
    about: str, first: SweepFacts, one: StudyFacts, second: SweepFacts, other: StudyFacts
) -> Difference:
    assert one.best is not None and other.best is not None
    names = (about, one.objective, first.sweep_id, second.sweep_id)
    if one.seeds is None or other.seeds is None:
        a, b = one.best.value, other.best.value
        return Difference(*names, a, b, b - a)
    low, high = welch_interval(one.seeds, other.seeds)
    a, b = one.seeds.mean, other.seeds.mean
    return Difference(*names, a, b, b - a, low, high)


def welch_interval(first: SeedSummary, second: SeedSummary) -> tuple[float, float]:
    """Returns the 95 % interval of the difference of two means, second less first.

    Welch's, for spreads that may differ (Welch 1947): with s² / n of each side as a and b it is the
    difference plus and minus t * sqrt(a + b), t at 0.975 with (a + b)² / (a² / (n₁ - 1) + b² /
    (n₂ - 1)) degrees of freedom. Where no value of either differs it has no width.
    """
    a, b = _squared_error(first), _squared_error(second)
    apart = second.mean - first.mean
    if a + b == 0:
        return apart, apart
    from scipy.stats import t

    freedom = (a + b) ** 2 / (a**2 / (first.n - 1) + b**2 / (second.n - 1))
    half = float(t.ppf(0.975, freedom)) * math.sqrt(a + b)
    return apart - half, apart + half


def _squared_error(seeds: SeedSummary) -> float:
    """The squared standard error of the mean."""
    total = sum((value - seeds.mean) ** 2 for value in seeds.values)
    return total / (seeds.n - 1) / seeds.n


def _differing(configs: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    found = []
    for name in dict.fromkeys(key for one in configs for key in one):
        values = tuple(_show(one.get(name)) for one in configs)
        if name not in NAMES and len({*values}) > 1:
            found.append((name, values))
    return tuple(found)


def _show(value: Any) -> str:
    if value in (None, [], {}):
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
