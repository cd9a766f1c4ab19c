"""The Pareto set of a study: its members, a table of them, a plot.

A trial is a member if it keeps every requirement and no other that does is better in one objective
and no worse in any.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from experiments.objectives import OBJECTIVES, Direction, Objective, Requirement

_BLOCK: Final = 256
"""Points that are compared with all before them at once."""

_MOST_LABELS: Final = 12
"""Members that are named in the plot; more names would hide it."""

_LOG_FROM: Final = 20.0
"""Largest for smallest cost from which an axis is logarithmic."""


_STYLES: Final[dict[str, dict[str, Any]]] = {
    "dominated": {"color": "0.65", "s": 22},
    "not as required": {"color": "tab:red", "marker": "x", "s": 26, "alpha": 0.7},
    "Pareto set": {"color": "tab:orange", "edgecolors": "black", "s": 48, "zorder": 3},
}


@dataclass(frozen=True, slots=True)
class Point:
    """A complete trial: its number, all that was measured by metric, and its params."""

    number: int
    values: Mapping[str, float]
    params: Mapping[str, Any]


def pareto_set(points: npt.ArrayLike, directions: Sequence[Direction]) -> npt.NDArray[np.int64]:
    """Returns the indices of the points that no other point dominates, ascending.

    One point dominates another if it is no worse in all objectives and better in one (Deb et al.
    2002, section III.A). Equal points do not dominate each other: all of them are returned, or
    none. A point with a NaN is in nobody's way and is not returned.

    Time grows with n log n and with n times the size of the set.

    Args:
        points: (n, k) float.
        directions: Of the k objectives.

    Example:
        >>> pareto_set([[0.9, 5], [0.8, 2], [0.8, 3]], ["maximize", "minimize"])
        array([0, 1])
    """
    signs = [-1.0 if direction == "maximize" else 1.0 for direction in directions]
    losses = np.asarray(points, float).reshape(-1, len(signs)) * signs
    known = np.flatnonzero(~np.isnan(losses).any(axis=1))
    # Sorted so, no point is dominated by one after it; what is dominated by a point that is itself
    # dominated is dominated by a member, too, so members are all that a block is compared with.
    order = known[np.lexsort(losses[known].T[::-1])]
    members = np.empty(0, np.int64)
    for start in range(0, len(order), _BLOCK):
        block = order[start : start + _BLOCK]
        for others in (members, block):
            block = block[~_are_dominated(losses[block], losses[others])]
        members = np.concatenate([members, block])
    return np.sort(members).astype(np.int64)


def _are_dominated(losses: np.ndarray, others: np.ndarray) -> npt.NDArray[np.bool_]:
    """Tells which of the (m, k) losses any of the (n, k) others dominates."""
    no_worse = np.ones((len(losses), len(others)), bool)
    better = np.zeros(no_worse.shape, bool)
    for mine, theirs in zip(losses.T, others.T, strict=True):
        no_worse &= theirs <= mine[:, np.newaxis]
        better |= theirs < mine[:, np.newaxis]
    return np.asarray((no_worse & better).any(axis=1))


def find_members(
    points: Sequence[Point],
    objectives: Sequence[Objective],
    requirements: Sequence[Requirement] = (),
) -> list[Point]:
    """Returns the Pareto set of the points that keep all requirements, the best first.

    That is the best in the first objective; of equals, the earlier trial.
    """
    feasible = [one for one in points if all(need.is_met(one.values) for need in requirements)]
    if not feasible:
        return []
    table = [[one.values.get(goal.name, np.nan) for goal in objectives] for one in feasible]
    chosen = pareto_set(table, [goal.direction for goal in objectives])
    first = objectives[0]
    sign = -1 if first.direction == "maximize" else 1
    members = [feasible[index] for index in chosen]
    return sorted(members, key=lambda one: (sign * one.values[first.name], one.number))


def write_pareto(
    folder: Path,
    title: str,
    points: Sequence[Point],
    objectives: Sequence[Objective],
    requirements: Sequence[Requirement] = (),
) -> list[Point]:
    """Writes pareto.csv and pareto.png into a folder, and returns the members.

    The table has a line a member: its trial's number, what was measured, its params. The plot has
    the first objective over each of the others, and over what else is required; with nothing to
    draw it over (one objective, no requirement on another metric) there is no plot.
    """
    members = find_members(points, objectives, requirements)
    named = [one.name for one in objectives] + [one.metric for one in requirements]
    metrics = [OBJECTIVES[name] for name in dict.fromkeys(named)]
    _write_table(folder / "pareto.csv", members, [one.name for one in metrics])
    if len(metrics) > 1:
        figure = _draw(title, points, members, metrics, requirements)
        if len(objectives) == 2:
            _draw_front(figure.axes[0], members, metrics)
        figure.savefig(folder / "pareto.png", dpi=120)
    return members


def _write_table(path: Path, members: Sequence[Point], first: Sequence[str]) -> None:
    others = sorted({name for one in members for name in one.values} - {*first})
    params = sorted({name for one in members for name in one.params})
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["number", *first, *others, *params])
        for one in members:
            values = [one.values.get(name) for name in (*first, *others)]
            writer.writerow([one.number, *values, *(one.params.get(name) for name in params)])


def _draw(
    title: str,
    points: Sequence[Point],
    members: Sequence[Point],
    metrics: Sequence[Objective],
    requirements: Sequence[Requirement],
) -> Any:
    """Returns a figure with a panel for each metric but the first, which is the height of all."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    height, *others = metrics
    figure = Figure(figsize=(1.0 + 5.5 * len(others), 4.8), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, len(others), sharey=True, squeeze=False)[0]
    for axes, across in zip(panels, others, strict=True):
        _draw_points(axes, points, members, (across, height), requirements)
        costs = [value for one in points if (value := one.values.get(across.name)) is not None]
        if across.is_cost and costs and min(costs) > 0 and max(costs) > _LOG_FROM * min(costs):
            axes.set_xscale("log")
        axes.set_xlabel(_label(across))
        axes.grid(alpha=0.3)
        _draw_bounds(axes, (across, height), requirements)
        _write_plainly(axes.xaxis, across)
    panels[0].set_ylabel(_label(height))
    _write_plainly(panels[0].yaxis, height)
    _draw_legend(figure, panels)
    return figure


def _draw_legend(figure: Any, panels: Sequence[Any]) -> None:
    """Explains each mark once, below the panels, where it hides none."""
    marks: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            marks.setdefault(label, handle)
    if marks:
        columns = min(len(marks), 3 * len(panels))
        figure.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=columns)


def _write_plainly(axis: Any, metric: Objective) -> None:
    """Writes an axis' numbers as people do: 0.5 and 20 of milliseconds, 50k and 2M of others."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

    if not metric.is_cost:
        return
    counts = metric.name != "latency_ms"
    axis.set_major_formatter(EngFormatter(sep="") if counts else StrMethodFormatter("{x:g}"))
    if axis.get_scale() == "log":
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_minor_formatter(NullFormatter())


def _draw_points(
    axes: Any,
    points: Sequence[Point],
    members: Sequence[Point],
    pair: tuple[Objective, Objective],
    requirements: Sequence[Requirement],
) -> None:
    chosen = {one.number for one in members}
    groups: dict[str, list[Point]] = {"dominated": [], "not as required": [], "Pareto set": []}
    for one in points:
        kept = all(need.is_met(one.values) for need in requirements)
        group = "Pareto set" if one.number in chosen else "dominated" if kept else "not as required"
        groups[group].append(one)
    for group, inside in groups.items():
        places = [tuple(one.values.get(goal.name, np.nan) for goal in pair) for one in inside]
        if places:
            axes.scatter(*zip(*places, strict=True), label=group, **_STYLES[group])
    for one in members if len(members) <= _MOST_LABELS else ():
        place = tuple(one.values[goal.name] for goal in pair)
        axes.annotate(
            str(one.number), place, xytext=(4, -10), textcoords="offset points", fontsize=8
        )


def _draw_bounds(
    axes: Any, pair: tuple[Objective, Objective], requirements: Sequence[Requirement]
) -> None:
    """Draws what is required of either metric of a panel, and shades what is not allowed."""
    sides = (
        (pair[0], axes.axvline, axes.axvspan, axes.get_xlim, axes.set_xlim),
        (pair[1], axes.axhline, axes.axhspan, axes.get_ylim, axes.set_ylim),
    )
    for metric, draw_line, shade, limits, set_limits in sides:
        bounds = [one for one in requirements if one.metric == metric.name]
        for one in bounds:
            draw_line(one.bound, color="tab:red", linestyle="--", linewidth=1, label=str(one))
        low, high = set_limits(*limits())  # holds them; a shade would move them again
        for one in bounds:
            area = (one.bound, high) if one.is_upper else (low, one.bound)
            shade(*area, color="tab:red", alpha=0.06, linewidth=0)


def _draw_front(axes: Any, members: Sequence[Point], metrics: Sequence[Objective]) -> None:
    """Draws the steps between members: what is on their far side is dominated."""
    height, across = metrics[0], metrics[1]
    places = sorted((one.values[across.name], one.values[height.name]) for one in members)
    if places:
        # The step is where the worse of two members is still the best there is.
        where = "post" if across.direction == "minimize" else "pre"
        axes.step(*zip(*places, strict=True), where=where, color="tab:orange", linewidth=1)


def _label(metric: Objective) -> str:
    better = "higher" if metric.direction == "maximize" else "lower"
    unit = f", {metric.unit}" if metric.unit and not metric.is_cost else ""  # a cost's name has it
    return f"{metric.name}{unit} ({better} is better)"
