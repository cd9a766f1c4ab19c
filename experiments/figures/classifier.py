"""What a classifier gets right and wrong on the validation rows, by class, and how sure it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from experiments.figures import Subject
from experiments.figures.canvas import (
    BLUE,
    GREY,
    ORANGE,
    label,
    new_canvas,
    save,
    write_json,
    write_table,
)
from mlops.evaluation import Calibration, calibrate, named_classes, per_class_table

MOST_NUMBERS: Final = 20
"""Classes up to which the cells of a confusion matrix have room for numbers."""

MOST_NAMES: Final = 40
"""Classes up to which both sides of it have room for names."""

MOST_IN_TABLE: Final = 30
"""Classes that are drawn one by one; of more, the worst."""


def read_answers(
    subject: Subject,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]] | None:
    """Returns probabilities (n, classes) and true classes (n,); None of what is no classifier."""
    if subject.task != "classifier" or subject.labels is None:
        return None
    return np.asarray(subject.outputs[0], dtype=np.float64), subject.labels


def count_confusion(
    named: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], n_classes: int
) -> npt.NDArray[np.int64]:
    """Returns (classes, classes) counts of rows: by true class down, by named class across.

    Args:
        named: (n,) index of the class that was named; -1 for none, which is in no cell.
        labels: (n,) index of the true class.
        n_classes: Number of classes.
    """
    known = named >= 0
    cells = labels[known] * n_classes + named[known]
    return np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)


def draw_confusion(subject: Subject, folder: Path) -> None:
    """Writes confusion_matrix.png, and confusion_matrix.csv with a line a true class."""
    found = read_answers(subject)
    if found is None:
        return
    probabilities, labels = found
    n_classes = probabilities.shape[1]
    named = named_classes(probabilities)
    counts = count_confusion(named, labels, n_classes)
    write_table(
        folder / "confusion_matrix.csv",
        ["true class", *subject.class_names],
        ([name, *row] for name, row in zip(subject.class_names, counts.tolist(), strict=True)),
    )
    size = min(9.0, max(4.6, 2.4 + 0.42 * min(n_classes, MOST_NUMBERS)))
    canvas = new_canvas(size + 1.0, size)
    axes = canvas.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    canvas.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    if n_classes <= MOST_NUMBERS:
        _write_counts(axes, counts, shares)
    _name_sides(axes, subject.class_names)
    axes.set_xlabel("named class")
    axes.set_ylabel("true class")
    right = int(np.trace(counts))
    axes.set_title(f"{right} of {len(labels)} validation rows right{_not_finite(named)}")
    save(canvas, folder / "confusion_matrix.png")


def _write_counts(
    axes: Any, counts: npt.NDArray[np.int64], shares: npt.NDArray[np.float64]
) -> None:
    for row, column in np.argwhere(counts > 0).tolist():
        colour = "white" if shares[row, column] > 0.5 else "black"
        number = counts[row, column]
        axes.text(column, row, f"{number}", ha="center", va="center", color=colour, fontsize=8)


def _name_sides(axes: Any, names: tuple[str, ...]) -> None:
    if len(names) > MOST_NAMES:
        axes.set_xticks([])
        axes.set_yticks([])
        return
    short = [label(name, 14) for name in names]
    long = max(map(len, short)) > 2
    size = 9 if len(names) <= MOST_NUMBERS else 6
    axes.set_xticks(range(len(names)), short, rotation=90 if long else 0, fontsize=size)
    axes.set_yticks(range(len(names)), short, fontsize=size)


def _not_finite(named: npt.NDArray[np.int64]) -> str:
    n = int((named < 0).sum())
    return f"\n{n} without a finite answer" if n else ""


def draw_per_class(subject: Subject, folder: Path) -> None:
    """Writes per_class.csv and per_class.png: precision, recall, F1 and rows of each class."""
    found = read_answers(subject)
    if found is None:
        return
    probabilities, labels = found
    n_classes = probabilities.shape[1]
    table = per_class_table(named_classes(probabilities), labels, n_classes)
    write_table(
        folder / "per_class.csv",
        ["class", "precision", "recall", "f1", "n_rows"],
        (
            [name, round(one.precision, 6), round(one.recall, 6), round(one.f1, 6), one.n_rows]
            for name, one in zip(subject.class_names, table, strict=True)
        ),
    )
    worst = sorted(range(n_classes), key=lambda index: (table[index].f1, index))[:MOST_IN_TABLE]
    canvas = new_canvas(6.4, 1.8 + 0.27 * len(worst))
    axes = canvas.subplots()
    places = np.arange(len(worst))
    marks = {"precision": ("<", BLUE), "recall": (">", ORANGE), "f1": ("o", "black")}
    lows = [min(table[index].precision, table[index].recall) for index in worst]
    highs = [max(table[index].precision, table[index].recall) for index in worst]
    axes.hlines(places, lows, highs, color=GREY, linewidth=1.5)
    for name, (mark, colour) in marks.items():
        values = [getattr(table[index], name) for index in worst]
        text = "F1" if name == "f1" else name
        axes.scatter(values, places, marker=mark, color=colour, s=30, label=text, zorder=3)
    rows = [f"{label(subject.class_names[one])} ({table[one].n_rows})" for one in worst]
    axes.set_yticks(places, rows)
    axes.set_ylim(len(worst) - 0.5, -0.5)
    axes.set_xlim(min(0.9, *lows) - 0.03, 1.03)
    axes.grid(alpha=0.3, axis="x")
    of = f", the worst {len(worst)} of {n_classes}" if n_classes > len(worst) else ""
    axes.set_title(f"each class and its validation rows{of}", fontsize=11)
    canvas.legend(loc="outside lower center", ncols=3)
    save(canvas, folder / "per_class.png")


def draw_calibration(subject: Subject, folder: Path) -> None:
    """Writes calibration.png, the reliability diagram of Guo et al. 2017, and calibration.json."""
    found = read_answers(subject)
    if found is None:
        return
    probabilities, labels = found
    bins = calibrate(probabilities, labels)
    if not bins.n_rows.any():
        return
    edges = np.linspace(0.0, 1.0, len(bins.n_rows) + 1)
    write_json(
        folder / "calibration.json",
        {
            "expected_calibration_error": bins.error,
            "n_rows": int(bins.n_rows.sum()),
            "bins": [
                {
                    "above": round(float(edges[index]), 6),
                    "to": round(float(edges[index + 1]), 6),
                    "n_rows": int(bins.n_rows[index]),
                    "confidence": float(bins.confidence[index]),
                    "accuracy": float(bins.accuracy[index]),
                }
                for index in np.flatnonzero(bins.n_rows)
            ],
        },
    )
    canvas = new_canvas(5.2, 5.6)
    upper, lower = canvas.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    _draw_reliability(upper, bins, edges)
    upper.set_title(
        f"expected calibration error {bins.error:.3f} on {bins.n_rows.sum()} validation rows",
        fontsize=11,
    )
    lower.bar(edges[:-1], bins.n_rows, np.diff(edges), align="edge", color=GREY, edgecolor="white")
    lower.set_yscale("symlog", linthresh=10)
    lower.set_ylim(bottom=0)
    lower.set_ylabel("rows")
    lower.set_xlabel("confidence: probability of the named class")
    canvas.legend(loc="outside lower center", ncols=3)
    save(canvas, folder / "calibration.png")


def _draw_reliability(axes: Any, bins: Calibration, edges: npt.NDArray[np.float64]) -> None:
    filled = bins.n_rows > 0
    left, width = edges[:-1][filled], np.diff(edges)[filled]
    accuracy, confidence = bins.accuracy[filled], bins.confidence[filled]
    style = {"align": "edge", "color": BLUE, "alpha": 0.55, "edgecolor": "white"}
    axes.bar(left, accuracy, width, label="accuracy", **style)
    axes.vlines(confidence, accuracy, confidence, color=ORANGE, linewidth=3, label="gap")
    axes.plot(confidence, confidence, "_", color=ORANGE, markersize=9)
    axes.plot([0, 1], [0, 1], "--", color="black", linewidth=1, label="as sure as right")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("accuracy")
