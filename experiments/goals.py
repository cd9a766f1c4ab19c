"""What the trials of one study are compared by, and which of them are the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from experiments.architectures import Description
from experiments.built_in import Task
from experiments.config import SweepConfig
from experiments.objectives import (
    Direction,
    Objective,
    Requirement,
    find_costs,
    find_quality,
    objectives_of,
    parse_objectives,
    parse_requirements,
    requirements_of,
)
from experiments.pareto import Point, find_members

METRICS = "metrics"
"""The user attribute of a trial that holds what it was measured at, where goals ask for that."""


@dataclass(frozen=True, slots=True)
class Goals:
    """The objectives of a study, in the order of Optuna's directions, and what it requires."""

    objectives: tuple[Objective, ...]
    requirements: tuple[Requirement, ...] = ()

    @property
    def quality(self) -> Objective:
        """The objective that a trial's best epoch is chosen by, and candidates compete with."""
        return find_quality(self.objectives)

    @property
    def quality_index(self) -> int:
        return self.objectives.index(self.quality)

    @property
    def is_multi(self) -> bool:
        return len(self.objectives) > 1

    @property
    def are_plain(self) -> bool:
        """Whether there is nothing but one objective."""
        return not self.is_multi and not self.requirements

    @property
    def directions(self) -> list[Direction]:
        return [one.direction for one in self.objectives]

    @property
    def costs(self) -> tuple[str, ...]:
        """What must be measured on a trained network."""
        return find_costs(self.objectives, self.requirements)

    def values(self, metrics: Mapping[str, float]) -> list[float]:
        """Returns the objectives' values, as Optuna is told them."""
        return [metrics[one.name] for one in self.objectives]

    def metrics_of(self, trial: FrozenTrial) -> dict[str, float]:
        """Returns what a complete trial was measured at, by metric."""
        values = {one.name: value for one, value in zip(self.objectives, trial.values, strict=True)}
        return {**trial.user_attrs.get(METRICS, {}), **values}

    def quality_of(self, trial: FrozenTrial) -> float:
        return float(trial.values[self.quality_index])

    def are_met(self, metrics: Mapping[str, float]) -> bool:
        """Tells whether a network keeps all requirements."""
        return all(one.is_met(metrics) for one in self.requirements)

    def point(self, trial: FrozenTrial) -> Point:
        return Point(trial.number, self.metrics_of(trial), trial.params)

    def find_best(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Returns the complete trials that keep all requirements and that no other beats.

        With one objective that is the earliest of the best; with more it is the Pareto set. The
        first has the best quality.
        """
        points = [self.point(trial) for trial in trials]
        members = {one.number for one in find_members(points, self.objectives, self.requirements)}
        chosen = [trial for trial in trials if trial.number in members]
        chosen.sort(key=lambda trial: (-self.quality_of(trial), trial.number))
        return chosen if self.is_multi else chosen[:1]


def goals_of(config: SweepConfig, description: Description) -> Goals:
    """Returns the goals of one architecture's study, by a config that was checked."""
    return _make(config.objectives, config.require, description.task, description.objective)


def goals_of_study(attrs: Mapping[str, Any]) -> Goals:
    """Returns the goals of a study that was made, from its user attributes."""
    described = attrs["description"]
    objectives, require = attrs.get("objectives", ()), attrs.get("require", ())
    return _make(objectives, require, described["task"], described["objective"])


def to_attrs(config: SweepConfig) -> dict[str, Any]:
    """Returns what `goals_of_study` finds in a study's user attributes, beside its description."""
    return {"objectives": [*config.objectives], "require": [*config.require]}


def _make(names: Sequence[str], require: Sequence[str], task: Task, default: str) -> Goals:
    objectives, _ = parse_objectives(names or (default,))
    requirements, _ = parse_requirements(require)
    return Goals(objectives_of(objectives, task, default), requirements_of(requirements, task))
