"""How well a classifier's probabilities tell each class from all others, at every threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from experiments.figures import Subject
from experiments.figures.canvas import GREY, label, new_canvas, save, write_json
from experiments.figures.classifier import read_answers

MOST_NAMED: Final = 5
"""Classes whose curves have a colour and a name: the worst."""

MOST_DRAWN: Final = 60
"""Classes whose curves are drawn at all."""

GRID: Final = np.linspace(0.0, 1.0, 401)
"""Where the curves of the classes are averaged."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ranking:
    """A class against the rest, at each threshold, from the highest to the lowest.

    Attributes:
        false_positive_rate: (thresholds + 1,) share of the others' rows at or above it, from 0.
        recall: (thresholds + 1,) share of the class's rows at or above it, from 0; the true
            positive rate.
        precision: (thresholds + 1,) share of the class among the rows at or above it; 1 before
            the first.
    """

    false_positive_rate: Floats
    recall: Floats
    precision: Floats

    @property
    def roc_auc(self) -> float:
        """The area under the ROC curve by trapezoids (Fawcett 2006, section 7), 0 to 1."""
        return float(np.trapezoid(self.recall, self.false_positive_rate))

    @property
    def average_precision(self) -> float:
        """The sum of each gain in recall times the precision there, 0 to 1.

        Not by trapezoids, which would interpolate between points that no threshold reaches (Davis
        & Goadrich 2006, section 4).
        """
        return float((np.diff(self.recall) * self.precision[1:]).sum())

    @property
    def reached(self) -> tuple[Floats, Floats]:
        """Each recall that is reached, ascending, and the best precision there."""
        recall, first = np.unique(self.recall, return_index=True)
        return recall, self.precision[first]

    def recall_on(self, grid: Floats) -> Floats:
        """Returns the true positive rate at these false positive rates."""
        return np.interp(grid, self.false_positive_rate, self.recall)

    def precision_on(self, grid: Floats) -> Floats:
        """Returns the precision at the highest threshold that reaches each recall."""
        return np.asarray(self.precision[np.searchsorted(self.recall, grid - 1e-12)])


def rank(scores: npt.ArrayLike, is_class: npt.ArrayLike) -> Ranking | None:
    """Ranks rows by their scores; None where all rows, or none, are of the class.

    Args:
        scores: (n,) probability of the class.
        is_class: (n,) whether it is the true one.
    """
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    values, hits = np.asarray(scores)[order], np.asarray(is_class, bool)[order]
    if hits.all() or not hits.any():
        return None
    # Equal scores are one threshold.
    last = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    true = np.cumsum(hits)[last]
    false = last + 1 - true
    return Ranking(
        false_positive_rate=np.append(0.0, false / false[-1]),
        recall=np.append(0.0, true / true[-1]),
        precision=np.append(1.0, true / (true + false)),
    )


def draw_ranking(subject: Subject, folder: Path) -> None:
    """Writes roc.png, precision_recall.png and ranking.json, with the areas of each class.

    Each class is ranked against the rest; the mean over classes counts each alike.
    """
    found = read_answers(subject)
    if found is None:
        return
    probabilities, labels = found
    finite = np.isfinite(probabilities).all(axis=1)
    probabilities, labels = probabilities[finite], labels[finite]
    ranked = {
        name: one
        for index, name in enumerate(subject.class_names)
        if (one := rank(probabilities[:, index], labels == index)) is not None
    }
    if not ranked:
        return
    areas = {
        name: {"roc_auc": one.roc_auc, "average_precision": one.average_precision}
        for name, one in ranked.items()
    }
    means = {
        area: float(np.mean([one[area] for one in areas.values()]))
        for area in ("roc_auc", "average_precision")
    }
    write_json(
        folder / "ranking.json",
        {
            "macro_roc_auc": means["roc_auc"],
            "macro_average_precision": means["average_precision"],
            "n_rows": len(labels),
            "classes": areas,
        },
    )
    _draw_roc(ranked, means["roc_auc"], folder / "roc.png")
    _draw_precision_recall(ranked, means["average_precision"], folder / "precision_recall.png")


def _draw_roc(ranked: dict[str, Ranking], mean: float, path: Path) -> None:
    canvas, axes = _open_axes("false positive rate", "true positive rate")
    axes.plot([0, 1], [0, 1], ":", color="black", linewidth=1, label="by chance")
    worst = sorted(ranked, key=lambda name: ranked[name].roc_auc)
    for name, style in _styles(worst, [ranked[one].roc_auc for one in worst]):
        axes.plot(ranked[name].false_positive_rate, ranked[name].recall, **style)
    curve = np.mean([one.recall_on(GRID) for one in ranked.values()], axis=0)
    mark = {"color": "black", "linewidth": 2, "label": f"mean of {len(ranked)} classes {mean:.4f}"}
    axes.plot(np.append(0.0, GRID), np.append(0.0, curve), **mark)
    axes.legend(loc="lower right", fontsize=8, title="area under the curve", title_fontsize=8)
    axes.set_title("ROC: each class against the rest", fontsize=11)
    save(canvas, path)


def _draw_precision_recall(ranked: dict[str, Ranking], mean: float, path: Path) -> None:
    canvas, axes = _open_axes("recall", "precision")
    worst = sorted(ranked, key=lambda name: ranked[name].average_precision)
    for name, style in _styles(worst, [ranked[one].average_precision for one in worst]):
        axes.step(*ranked[name].reached, where="pre", **style)
    curve = np.mean([one.precision_on(GRID) for one in ranked.values()], axis=0)
    text = f"mean of {len(ranked)} classes {mean:.4f}"
    axes.step(GRID, curve, where="pre", color="black", linewidth=2, label=text)
    axes.legend(loc="lower left", fontsize=8, title="average precision", title_fontsize=8)
    axes.set_title("Precision and recall: each class against the rest", fontsize=11)
    save(canvas, path)


def _open_axes(across: str, up: str) -> tuple[Any, Any]:
    canvas = new_canvas(5.4, 5.0)
    axes = canvas.subplots()
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.3)
    return canvas, axes


def _styles(worst: Sequence[str], areas: Sequence[float]) -> list[tuple[str, dict[str, Any]]]:
    """Returns how each curve is drawn, the worst last, so that it lies above the others."""
    styles: list[tuple[str, dict[str, Any]]] = []
    for place, (name, area) in enumerate(zip(worst, areas, strict=True)):
        if place < MOST_NAMED:
            text = f"{label(name)} {area:.4f}"
            styles.append((name, {"color": f"C{place}", "linewidth": 1.2, "label": text}))
        elif place < MOST_DRAWN:
            styles.append((name, {"color": GREY, "linewidth": 0.7, "alpha": 0.6}))
    return styles[::-1]
