"""Learning curves: each metric by epoch, of a network and of its architecture's baseline.

The baseline is what a study tries first, so its curves say what the search has gained. A trial
keeps its curves in the study if its network was the best so far or its params are the baseline's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from experiments.figures.canvas import BLUE, GREY, new_canvas, save, write_table

CURVES: Final = "curves"
"""The user attribute of a trial that holds its curves."""

MOST_POINTS: Final = 500

Curves = dict[str, list[float | None]]
"""Values by epoch, from 0, by metric, and the epochs themselves as "epoch"; None is not finite."""


def keep_curves(history: Sequence[Mapping[str, float]], objective: str) -> Curves:
    """Returns the losses and the objective of a training, at 500 epochs at most.

    Args:
        history: The metrics of each epoch, as `Trained.history`.
        objective: As val_accuracy; of the training rows the same, where it is known.
    """
    step = max(1, math.ceil(len(history) / MOST_POINTS))
    epochs = [*range(0, len(history), step)]
    names = dict.fromkeys(
        ("train_loss", "val_loss", objective.replace("val_", "train_", 1), objective)
    )
    there = [name for name in names if all(name in history[epoch] for epoch in epochs)]
    values = {name: [_rounded(history[epoch][name]) for epoch in epochs] for name in there}
    return {"epoch": [*map(float, epochs)], **values}


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def find_curves(trial: Any, objective: str) -> Curves | None:
    """Returns the curves of a trial (Optuna's `FrozenTrial`); None where it reported nothing.

    Where it kept none, its reports are its objective by epoch.
    """
    if (kept := trial.user_attrs.get(CURVES)) is not None:
        return dict(kept)
    reported = sorted(trial.intermediate_values.items())
    if not reported:
        return None
    return {
        "epoch": [float(epoch) for epoch, _ in reported],
        objective: [_rounded(value) for _, value in reported],
    }


def find_baseline_curves(study: Any) -> Curves | None:
    """Returns the curves of a study's baseline: its first trial with those params that has any."""
    from optuna.trial import TrialState

    described = study.user_attrs["description"]
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    for trial in study.get_trials(deepcopy=False, states=states):
        if trial.params == described["baseline"]:
            curves = find_curves(trial, described["objective"])
            if curves is not None:
                return curves
    return None


def name_network(architecture: str, number: str) -> str:
    """Returns what people call a network; `number` is a trial's, as "00012", or a final's name."""
    return f"{architecture}, {f'trial {int(number)}' if number.isdecimal() else number}"


def draw_curves(
    curves: Curves, baseline: Curves | None, objective: str, title: str, folder: Path
) -> None:
    """Writes learning_curves.png and learning_curves.csv.

    Args:
        curves: Of the network.
        baseline: Of the baseline; None where there is none, or where the network is its own.
        objective: What networks are compared by.
        title: What the network is called.
    """
    _write(folder / "learning_curves.csv", {"": curves, "baseline_": baseline or {}})
    panels = [name for name in ("loss", objective.removeprefix("val_")) if _has(curves, name)]
    if not panels:
        return
    canvas = new_canvas(1.0 + 4.6 * len(panels), 4.2)
    canvas.suptitle(title, fontsize=11)
    marks: dict[str, Any] = {}
    for axes, name in zip(canvas.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        if baseline is not None:
            _draw_lines(axes, baseline, name, "baseline", GREY)
        _draw_lines(axes, curves, name, "this network", BLUE)
        axes.set_xlabel("epoch")
        axes.set_ylabel(name.replace("_", " "))
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if name == "loss" and _is_wide(axes):
            axes.set_yscale("log")
        for mark, text in zip(*axes.get_legend_handles_labels(), strict=True):
            marks.setdefault(text, mark)
    canvas.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=2)
    save(canvas, folder / "learning_curves.png")


def _draw_lines(axes: Any, curves: Curves, name: str, whose: str, colour: str) -> None:
    """Draws a metric by epoch, of training rows dashed."""
    epochs = curves["epoch"]
    for part, rows, style in (("train", "training", "--"), ("val", "validation", "-")):
        if (found := curves.get(f"{part}_{name}")) is None:
            continue
        values = [math.nan if value is None else value for value in found]
        dot = "o" if len(values) == 1 else None
        axes.plot(epochs, values, style, marker=dot, color=colour, label=f"{whose}, {rows} rows")


def _has(curves: Curves, name: str) -> bool:
    return f"train_{name}" in curves or f"val_{name}" in curves


def _is_wide(axes: Any) -> bool:
    """Tells whether values differ so much that only a logarithmic axis shows the small ones."""
    values = [
        float(value)
        for line in axes.get_lines()
        for value in line.get_ydata()
        if math.isfinite(value)
    ]
    return bool(values) and min(values) > 0 and max(values) > 20 * min(values)


def _write(path: Path, both: Mapping[str, Curves]) -> None:
    by_epoch: dict[float, dict[str, float | None]] = {}
    for prefix, curves in both.items():
        for name, values in curves.items():
            if name == "epoch":
                continue
            for epoch, value in zip(curves["epoch"], values, strict=True):
                by_epoch.setdefault(float(epoch or 0), {})[prefix + name] = value
    names = list(dict.fromkeys(name for row in by_epoch.values() for name in row))
    rows = [[int(epoch), *map(row.get, names)] for epoch, row in sorted(by_epoch.items())]
    write_table(path, ["epoch", *names], rows)
