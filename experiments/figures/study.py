"""Figures of a whole study, for its parent run: which params count, and where good ones lie."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from experiments.figures.canvas import BLUE, GREY, label, new_canvas, save, write_json
from experiments.importances import measure_importances
from experiments.study import Search

FEWEST: Final = 4
"""Complete trials below which nothing can be said of params."""

MOST_TRIALS: Final = 1000
"""Trials that are looked at; of more, as many are drawn by lot, so that the time is bounded."""

MOST_PARAMS: Final = 10
"""Params that are drawn: those that count most."""

_NOTE: Final[dict[str, Any]] = {
    "xytext": (4, 0),
    "textcoords": "offset points",
    "fontsize": 8,
    "va": "center",
    "bbox": {"boxstyle": "square,pad=0.1", "facecolor": "white", "alpha": 0.75, "linewidth": 0},
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trials:
    """What is drawn of a study.

    Attributes:
        title: What the study is called.
        objective: What its trials are compared by; more is better.
        params: Each param's distribution, those that count most first where that is known.
        values: By param, of each trial; None where a trial does not have it.
        quality: (trials,) the objective.
        numbers: (trials,) of the trials, in the order they were asked for.
    """

    title: str
    objective: str
    params: dict[str, BaseDistribution]
    values: Mapping[str, Sequence[Any]]
    quality: npt.NDArray[np.float64]
    numbers: npt.NDArray[np.int64]


def write_study_figures(search: Search, folder: Path) -> None:
    """Writes importances.json, importances.png, parallel_coordinates.png and slice.png.

    Nothing where fewer than 4 trials are complete, or all are as good; no importances where too few
    are complete to tell (`experiments.importances`). It raises nothing: what cannot be drawn is not
    there.
    """
    try:
        complete = _choose(search.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
        quality = np.array([search.goals.quality_of(trial) for trial in complete])
        if len(complete) < FEWEST or float(np.ptp(quality)) == 0.0:
            return
        changed = _find_changed(complete)
        importances = dict(measure_importances(complete, quality.tolist(), changed).shares)
    except Exception:
        _log.warning("the figures of %s failed", search.name, exc_info=True)
        return
    trials = _read(search, complete, quality, list(importances) or changed)
    draws: dict[str, Callable[[], Any]] = {
        "importances.png": lambda: _draw_importances(trials, importances, folder),
        "parallel_coordinates.png": lambda: _draw_parallel(trials),
        "slice.png": lambda: _draw_slices(trials),
    }
    for name, draw in draws.items():
        try:
            if (canvas := draw()) is not None:
                save(canvas, folder / name)
        except Exception:
            (folder / name).unlink(missing_ok=True)
            _log.warning("%s of %s failed", name, search.name, exc_info=True)


def _choose(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Returns the trials that are looked at, in their order."""
    trials = [one for one in trials if one.values and all(map(math.isfinite, one.values))]
    if len(trials) <= MOST_TRIALS:
        return trials
    chosen = np.random.default_rng(0).choice(len(trials), MOST_TRIALS, replace=False)
    return [trials[index] for index in np.sort(chosen)]


def _find_changed(trials: Sequence[FrozenTrial]) -> list[str]:
    """Returns the params that all trials have, and not all with the same value."""
    return [
        name
        for name in trials[0].params
        if all(name in one.params for one in trials)
        and len({one.params[name] for one in trials}) > 1
    ]


def _read(
    search: Search,
    complete: Sequence[FrozenTrial],
    quality: npt.NDArray[np.float64],
    names: Sequence[str],
) -> Trials:
    space: dict[str, BaseDistribution] = {}
    for trial in complete:
        space = {**trial.distributions, **space}
    chosen = [name for name in names if name in space][:MOST_PARAMS]
    return Trials(
        title=search.name,
        objective=search.description.objective,
        params={name: space[name] for name in chosen},
        values={name: [trial.params.get(name) for trial in complete] for name in chosen},
        quality=quality,
        numbers=np.array([trial.number for trial in complete]),
    )


def _draw_importances(trials: Trials, importances: Mapping[str, float], folder: Path) -> Any:
    if not importances:
        return None
    write_json(folder / "importances.json", importances)
    names = list(importances)[:MOST_PARAMS]
    shares = [importances[name] for name in names]
    canvas = new_canvas(6.4, 1.4 + 0.36 * len(names))
    axes = canvas.subplots()
    bars = axes.barh(range(len(names)), shares, color=BLUE)
    axes.bar_label(bars, [f"{share:.2f}" for share in shares], padding=3)
    axes.set_yticks(range(len(names)), [label(name) for name in names])
    axes.invert_yaxis()
    axes.set_xlim(0.0, 1.12 * max(shares))
    axes.set_xlabel(f"importance for {trials.objective}; all add up to 1")
    axes.set_title(f"{label(trials.title, 40)}: {len(trials.quality)} trials", fontsize=11)
    return canvas


class _Scale:
    """Where values of a param lie on an axis from 0 to 1, and what is written there."""

    def __init__(self, distribution: BaseDistribution, values: Sequence[Any]) -> None:
        self._choices: list[Any] | None = None
        if isinstance(distribution, CategoricalDistribution):
            self._choices = list(distribution.choices)
            return
        known = [float(value) for value in values if value is not None]
        self.is_log = bool(getattr(distribution, "log", False)) and min(known) > 0
        self._low, self._high = min(known), max(known)

    def place(self, value: Any) -> float:
        if value is None:
            return math.nan
        if self._choices is not None:
            return self._choices.index(value) / max(1, len(self._choices) - 1)
        low, high, at = map(self._bend, (self._low, self._high, float(value)))
        return (at - low) / (high - low) if high > low else 0.5

    def _bend(self, value: float) -> float:
        return math.log(value) if self.is_log else value

    @property
    def ticks(self) -> list[tuple[float, str]]:
        if self._choices is not None:
            return [(self.place(one), label(one, 14)) for one in self._choices]
        ends = {self._low, self._high}
        return [(self.place(value), f"{value:.3g}") for value in sorted(ends)]


def _draw_parallel(trials: Trials) -> Any:
    """Draws a line a trial through all its params to its objective, the better the darker."""
    if not trials.params:
        return None
    from matplotlib.collections import LineCollection

    names = list(trials.params)
    scales = [_Scale(trials.params[name], trials.values[name]) for name in names]
    places = [
        [scale.place(value) for value in trials.values[name]]
        for name, scale in zip(names, scales, strict=True)
    ]
    low, high = float(trials.quality.min()), float(trials.quality.max())
    height = (trials.quality - low) / (high - low)
    canvas = new_canvas(2.0 + 1.25 * (len(names) + 1), 4.6)
    axes = canvas.subplots()
    colours, order = _colours(trials.quality)
    lines = np.column_stack([*map(np.array, places), height])
    faint = 0.9 if len(lines) <= 30 else 0.5 if len(lines) <= 200 else 0.25
    steps = np.arange(lines.shape[1])
    paths = [np.column_stack([steps, line]) for line in lines[order]]
    rgba = colours.to_rgba(trials.quality[order])
    axes.add_collection(LineCollection(paths, colors=rgba, alpha=faint, linewidths=1.3))
    for across, scale in enumerate(scales):
        axes.axvline(across, color="black", linewidth=0.8)
        for up, text in scale.ticks:
            axes.annotate(text, (across, up), **_NOTE)
    axes.axvline(len(names), color="black", linewidth=0.8)
    for up, value in ((0.0, low), (1.0, high)):
        axes.annotate(f"{value:.4g}", (len(names), up), **_NOTE)
    heads = [label(name, 16) for name in (*names, trials.objective)]
    axes.set_xticks(range(len(heads)), heads, rotation=20, ha="right")
    axes.set_xlim(-0.1, len(names) + 0.5)
    axes.set_yticks([])
    axes.set_ylim(-0.05, 1.05)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title(f"{label(trials.title, 40)}: {len(trials.quality)} trials", fontsize=11)
    canvas.colorbar(colours, ax=axes, label=trials.objective, pad=0.01)
    return canvas


def _colours(quality: npt.NDArray[np.float64]) -> tuple[Any, npt.NDArray[np.int64]]:
    """Returns a map from quality to colour, and the order in which the best is drawn last.

    One trial that went wrong must not take all colours: the map begins at the tenth part.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    low = float(np.quantile(quality, 0.1))
    high = float(quality.max())
    low = low if low < high else float(quality.min())
    return ScalarMappable(Normalize(low, high), "viridis_r"), np.argsort(quality, kind="stable")


def _draw_slices(trials: Trials) -> Any:
    """Draws the objective over each param alone; later trials are darker."""
    if not trials.params:
        return None
    names = list(trials.params)
    across = min(4, len(names))
    down = -(-len(names) // across)
    canvas = new_canvas(0.8 + 2.7 * across, 0.8 + 2.5 * down)
    grid = canvas.subplots(down, across, sharey=True, squeeze=False)
    for axes in grid.ravel()[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(grid.ravel(), names, strict=False):
        points = _draw_slice(axes, trials, name)
    for axes in grid[:, 0]:
        axes.set_ylabel(trials.objective)
    canvas.suptitle(f"{label(trials.title, 40)}: {len(trials.quality)} trials", fontsize=11)
    canvas.colorbar(points, ax=grid, label="trial", shrink=0.9)
    return canvas


def _draw_slice(axes: Any, trials: Trials, name: str) -> Any:
    from matplotlib.ticker import MaxNLocator

    distribution = trials.params[name]
    values: list[Any] = list(trials.values[name])
    if isinstance(distribution, CategoricalDistribution):
        choices = list(distribution.choices)
        values = [None if value is None else choices.index(value) for value in values]
        axes.set_xticks(range(len(choices)), [label(one, 14) for one in choices])
        axes.set_xlim(-0.5, len(choices) - 0.5)
    elif getattr(distribution, "log", False):
        axes.set_xscale("log")
        ticks = _log_ticks([float(value) for value in values if value is not None])
        axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        axes.set_xticks([], minor=True)
    else:
        whole = isinstance(distribution, IntDistribution)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=whole))
    axes.tick_params(labelsize=8)
    places = [math.nan if value is None else float(value) for value in values]
    axes.set_xlabel(label(name))
    axes.grid(alpha=0.3)
    style = {"cmap": "Blues", "edgecolors": GREY, "linewidths": 0.6, "s": 26}
    return axes.scatter(places, trials.quality, c=trials.numbers, **style)


def _log_ticks(values: Sequence[float]) -> list[float]:
    """Returns up to 5 round numbers between the least and the largest, or else these two."""
    low, high = min(values), max(values)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [tick for tick in ticks if 0.999 * low <= tick <= 1.001 * high]
        if 2 <= len(ticks) <= 5:
            return ticks
    return sorted({low, high})
