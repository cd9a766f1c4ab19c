"""What networks are compared by: objectives, requirements, and what a network costs.

An objective of quality (val_accuracy) comes out of the training; one of cost (latency_ms) is
measured on the network that would be packaged. A requirement is a bound on either, as
`latency_ms<5`; a trial that does not keep one is infeasible, however good it is.

What users write is read as `experiments.entries` does: nothing raises, problems are returned, a
sentence each.
"""

from __future__ import annotations

import math
import re
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from mlops.errors import choose

if TYPE_CHECKING:
    import numpy as np

    from experiments.built_in import Task

Direction = Literal["maximize", "minimize"]
"""As Optuna spells them."""

Operator = Literal["<", "<=", ">", ">="]

WARM_UP: Final = 3
"""Passes before the first that is timed; the one that traces comes before these."""

LEAST_TIMED: Final = 5
MOST_TIMED: Final = 100
"""Passes that are timed."""

TIMED_S: Final = 0.5
"""Seconds after which `LEAST_TIMED` passes are enough."""

_FORM: Final = re.compile(r"(\w+)\s*(<=|>=|<|>)\s*([^<>=\s].*)")


@dataclass(frozen=True, slots=True)
class Objective:
    """One number that networks are compared by.

    Attributes:
        task: Whose networks have it; None for what every network costs.
        low: No network has less.
        high: No network has more.
        unit: Of the number; empty where it has none.
    """

    name: str
    direction: Direction
    task: Task | None = None
    low: float = -math.inf
    high: float = math.inf
    unit: str = ""

    @property
    def is_cost(self) -> bool:
        """Whether it is measured on the network, and not found in training."""
        return self.task is None


OBJECTIVES: Final = {
    one.name: one
    for one in (
        Objective("val_accuracy", "maximize", "classifier", low=0, high=1),
        Objective("val_balanced_accuracy", "maximize", "classifier", low=0, high=1),
        Objective("val_macro_f1", "maximize", "classifier", low=0, high=1),
        Objective("val_elbo", "maximize", "vae", unit="nats"),
        Objective("latency_ms", "minimize", low=0, unit="milliseconds"),
        Objective("size_bytes", "minimize", low=0, unit="bytes"),
        Objective("n_weights", "minimize", low=0),
    )
}
"""All there are, by name."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """A bound that a trial must keep. `str` of it is as the user writes it: `latency_ms<5`."""

    metric: str
    operator: Operator
    bound: float

    def __str__(self) -> str:
        return f"{self.metric}{self.operator}{self.bound:.15g}"

    @property
    def is_upper(self) -> bool:
        return self.operator in ("<", "<=")

    def is_met(self, values: Mapping[str, float]) -> bool:
        """Tells whether values by metric keep the bound; one that is missing or NaN does not."""
        value = values.get(self.metric, math.nan)
        if self.operator == "<":
            return value < self.bound
        if self.operator == "<=":
            return value <= self.bound
        return value > self.bound if self.operator == ">" else value >= self.bound

    def violation(self, values: Mapping[str, float]) -> float:
        """Returns how far values are beyond the bound: 0 or less if, and only if, they keep it.

        This is what `optuna.Trial.set_constraint` takes. Optuna's samplers add the violations of
        all constraints up, so it has no unit: the distance to the bound divided by the bound's
        magnitude, so that 10 ms where 5 are allowed weighs as much as 2 MB where 1 is. A bound of 0
        divides by 1. Infinity if the value is missing or NaN; never NaN.
        """
        value = values.get(self.metric, math.nan)
        if math.isnan(value):
            return math.inf
        beyond = value - self.bound if self.is_upper else self.bound - value
        relative = beyond / (abs(self.bound) or 1.0)
        # At a strict bound itself the distance is 0, and close to one it may round to 0.
        return min(relative, 0.0) if self.is_met(values) else max(relative, sys.float_info.min)


def parse_objectives(names: Sequence[str]) -> tuple[tuple[Objective, ...], list[str]]:
    """Reads names like `val_accuracy` and `latency_ms`.

    Returns:
        What they say, in their order, and what is wrong with those that say nothing. The first of
        quality among them chooses a trial's best epoch.

    Example:
        >>> [one.direction for one in parse_objectives(["val_accuracy", "latency_ms"])[0]]
        ['maximize', 'minimize']
    """
    wrong = [
        f"unknown objective {name!r}; {choose(name, OBJECTIVES)}"
        for name in dict.fromkeys(names)
        if name not in OBJECTIVES
    ]
    wrong += [f"{name!r} is named twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    objectives = tuple(OBJECTIVES[name] for name in dict.fromkeys(names) if name in OBJECTIVES)
    if not wrong and all(one.is_cost for one in objectives):
        quality = [one.name for one in OBJECTIVES.values() if not one.is_cost]
        wrong.append(f"no objective of quality is named; add one of {', '.join(quality)}")
    return objectives, wrong


def parse_requirements(entries: Sequence[str]) -> tuple[tuple[Requirement, ...], list[str]]:
    """Reads entries like `latency_ms<5` and `val_accuracy >= 0.9`.

    Returns:
        What they say, and what is wrong with those that say nothing or cannot be kept.

    Example:
        >>> parse_requirements(["latency_ms < 5"])[0]
        (Requirement(metric='latency_ms', operator='<', bound=5.0),)
    """
    found: list[Requirement] = []
    wrong: list[str] = []
    for entry in entries:
        read = _parse_requirement(entry)
        if isinstance(read, str):
            wrong.append(read)
        elif read not in found:  # Optuna takes a constraint once
            found.append(read)
    wrong += _find_contradictions(found)
    return tuple(found), wrong


def _parse_requirement(entry: str) -> Requirement | str:
    """Returns a requirement, or what is wrong with it."""
    form = _FORM.fullmatch(entry.strip())
    if form is None:
        # An unquoted < is the shell's, and what follows it never comes here.
        return (
            f"{entry!r} is not of the form metric<number, with <, <=, > or >=, in quotes: "
            '"latency_ms<5"'
        )
    metric, operator, text = form.groups()
    if metric not in OBJECTIVES:
        return f"{entry!r}: unknown metric {metric!r}; {choose(metric, OBJECTIVES)}"
    objective = OBJECTIVES[metric]
    try:
        bound = float(text)
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        of = f" of {objective.unit}" if objective.unit else ""
        return f"{entry!r}: expected a finite number{of}, got {text!r}"
    requirement = Requirement(metric, cast(Operator, operator), bound)
    # Whoever asks for the best value that there can be, and more, has mistaken the unit.
    best = {metric: objective.low if requirement.is_upper else objective.high}
    if not requirement.is_met(best):
        return f"{entry!r} cannot be kept; {metric} is {_range(objective)}"
    return requirement


def _range(objective: Objective) -> str:
    if math.isinf(objective.high):
        return f"{objective.low:g} or more"
    return f"from {objective.low:g} to {objective.high:g}"


def _find_contradictions(requirements: Sequence[Requirement]) -> Iterator[str]:
    for upper in requirements:
        for lower in requirements:
            if upper.metric != lower.metric or not upper.is_upper or lower.is_upper:
                continue
            meet = upper.bound == lower.bound and upper.operator == "<=" and lower.operator == ">="
            if lower.bound >= upper.bound and not meet:
                yield f"'{upper}' and '{lower}' cannot both be kept"


def objectives_of(
    objectives: Sequence[Objective], task: Task, default: str
) -> tuple[Objective, ...]:
    """Returns the objectives of the networks of one task, in their order.

    A sweep may search both kinds at once: of the objectives of quality those of the other task are
    left out. If none is left, `default` stands where the first was.

    Args:
        default: Name of an objective of quality of this task.
    """
    kept = [one for one in objectives if one.task in (None, task)]
    if all(one.is_cost for one in kept):
        at = next((i for i, one in enumerate(objectives) if not one.is_cost), 0)
        kept.insert(at, OBJECTIVES[default])
    return tuple(kept)


def are_several(objectives: Sequence[Objective]) -> bool:
    """Tells whether the networks of one task are compared by more than one of them."""
    tasks = {one.task for one in objectives if one.task is not None}
    return any(sum(one.task in (None, task) for one in objectives) > 1 for task in tasks)


def requirements_of(requirements: Sequence[Requirement], task: Task) -> tuple[Requirement, ...]:
    """Returns the requirements that networks of one task can be held to."""
    return tuple(one for one in requirements if OBJECTIVES[one.metric].task in (None, task))


def find_quality(objectives: Sequence[Objective]) -> Objective:
    """Returns the first objective of quality, by which a trial's best epoch is chosen."""
    return next(one for one in objectives if not one.is_cost)


def find_costs(
    objectives: Sequence[Objective], requirements: Sequence[Requirement]
) -> tuple[str, ...]:
    """Returns the names of the costs that must be measured, each once."""
    names = [one.name for one in objectives] + [one.metric for one in requirements]
    return tuple(name for name in dict.fromkeys(names) if OBJECTIVES[name].is_cost)


Forward = Callable[[Any], Sequence[Any]]
"""From rows to a network's outputs."""


def compile_as_served(model: Any, row: np.ndarray) -> Forward:
    """Returns the forward pass that the packaged model answers with, traced once."""
    from mlops.scoring import compile_forward

    forward: Forward = compile_forward(model, row.shape[1:], row.dtype.name)
    return forward


def measure_costs(
    model: Any,
    network: Path,
    row: np.ndarray,
    wanted: Collection[str] = ("n_weights", "size_bytes", "latency_ms"),
    *,
    compile_forward: Callable[[Any, np.ndarray], Forward] = compile_as_served,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Returns what a network costs, by the names that are wanted.

    - n_weights: values of all weights, trained or not (the statistics of a Normalization or a
      BatchNormalization too), as Keras' `count_params` has it.
    - size_bytes: of the file `network`, which is what is deployed.
    - latency_ms: median wall time in milliseconds of the forward pass of one row, outputs copied to
      numpy. That is the answer of a served model less the parsing of the request. It depends on
      this device, on the threads of this process and on what else runs here: compare it within one
      sweep, and expect no two measurements to be the same.

    Args:
        model: The network that is packaged (`Architecture.to_package`), not compiled.
        network: The file that it was saved to.
        row: (1, *shape), one row as the network takes it, in its dtype.
        wanted: Latency is the only one that takes time: a trace, then up to `TIMED_S` seconds, or
            `LEAST_TIMED` passes where they take longer.
    """
    costs: dict[str, float] = {}
    if "n_weights" in wanted:
        costs["n_weights"] = int(model.count_params())
    if "size_bytes" in wanted:
        costs["size_bytes"] = network.stat().st_size
    if "latency_ms" in wanted:
        costs["latency_ms"] = 1000 * _median_s(compile_forward(model, row), row, clock)
    return costs


def _median_s(forward: Forward, row: np.ndarray, clock: Callable[[], float]) -> float:
    """Returns the median seconds of a pass, a row through and out as numpy."""
    import numpy as np

    seconds: list[float] = []
    for index in range(-WARM_UP, MOST_TIMED):
        began_s = clock()
        for output in forward(row):
            np.asarray(output)  # waits for a device that computes on its own
        if index >= 0:
            seconds.append(clock() - began_s)
        if len(seconds) >= LEAST_TIMED and sum(seconds) > TIMED_S:
            break
    return statistics.median(seconds)
