"""What a classifier looks at, class by class, drawn.

The mean of the absolute integrated gradients says where a class is decided. It says little of what
was learned: where rows are mostly zeros, the map of a network that learned nothing looks much alike
(docs/benchmarks.md). The mean with its sign does not. Occlusion stands beside them.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from experiments.figures import Subject
from experiments.figures.canvas import label, save, write_table
from experiments.figures.class_maps import ClassMap, explain_classes
from experiments.figures.panels import (
    as_pictures,
    beside,
    column_names,
    explain_marks,
    gap_of,
    mosaic,
    new_figure,
    show_picture,
    show_strip,
)
from mlops.evaluation import scale_rows

MOST_BARS: Final = 20
"""Most columns of a table that are drawn; all are in the CSV."""


def draw_attributions(subject: Subject, folder: Path) -> None:
    """Writes what a classifier looks at, class by class; nothing of a VAE.

    Files: attribution.png; attribution.npz (`absolute`, `signed` and `drop`, each (classes, ...),
    `n_rows` and `class_names`); of tables and sequences attribution.csv, by column or by step; of
    images attribution_rows.png, one row a class, where rows may be shown.

    Takes about 2 s besides compiling, 10 s where the network is slow (`class_maps`).
    """
    if subject.task != "classifier" or subject.labels is None:
        return
    maps = explain_classes(subject, time.monotonic)
    if not maps:
        return
    np.savez_compressed(
        folder / "attribution.npz",
        absolute=np.stack([one.absolute for one in maps]),
        signed=np.stack([one.signed for one in maps]),
        drop=np.stack([one.drop for one in maps]),
        n_rows=np.array([len(one.rows) for one in maps]),
        class_names=np.array([subject.class_names[one.index] for one in maps]),
    )
    if subject.data.kind == "image":
        _draw_images(subject, maps, folder / "attribution.png")
        if subject.may_show_rows:
            _draw_rows(subject, maps, folder / "attribution_rows.png")
        return
    by_step = subject.data.kind == "sequence"
    (_draw_sequences if by_step else _draw_table)(subject, maps, folder / "attribution.png")
    _write_table(subject, maps, folder / "attribution.csv")


def _title(subject: Subject, maps: list[ClassMap]) -> str:
    numbers = sorted({len(one.rows) for one in maps})
    least, most = numbers[0], numbers[-1]
    n = f"{most}" if least == most else f"{least} to {most}"
    return f"What decides each class: means over {n} validation rows of it"


_KINDS: Final = (
    ("absolute", "|integrated\ngradients|", False),
    ("signed", "integrated\ngradients", True),
    ("drop", "drop by\nocclusion", True),
)


def _draw_images(subject: Subject, maps: list[ClassMap], path: Path) -> None:
    """A strip of maps a kind; channels are summed, of a drop it is their mean."""
    figure = new_figure(1.4 + 1.1 * len(maps), 4.2, _title(subject, maps))
    for axes, (name, said, signed) in zip(figure.subplots(len(_KINDS)), _KINDS, strict=True):
        over = np.mean if name == "drop" else np.sum
        each = [over(getattr(one, name), axis=-1) for one in maps]
        show_strip(axes, each, _names(subject, maps), signed, "probability")
        axes.set_aspect("equal")
        axes.set_ylabel(said, fontsize="x-small")
    save(figure, path)


def _names(subject: Subject, maps: list[ClassMap]) -> list[str]:
    return [label(subject.class_names[one.index], 14) for one in maps]


def _draw_rows(subject: Subject, maps: list[ClassMap], path: Path) -> None:
    """The first explained row of each class, and its integrated gradients below it."""
    figure = new_figure(1.4 + 1.1 * len(maps), 3.0, "One validation row of each class")
    above, below = figure.subplots(2, sharex=True)
    slopes = [one.first.sum(axis=-1) for one in maps]
    rows = np.array([one.rows[0] for one in maps])
    pictures = as_pictures(scale_rows(subject.rows[rows], subject.data))
    show_picture(above, mosaic(pictures, len(maps), gap_of(slopes)))
    show_strip(below, slopes, _names(subject, maps), True, "probability")
    above.tick_params(length=0)
    below.set_aspect("equal")
    below.set_ylabel("integrated\ngradients", fontsize="x-small")
    save(figure, path)


def _draw_table(subject: Subject, maps: list[ClassMap], path: Path) -> None:
    """Bars for the columns that decide most, over all classes; a panel a class."""
    names = column_names(subject.data)
    order = np.argsort(-sum(one.absolute for one in maps), kind="stable")[:MOST_BARS][::-1]
    n_across = min(5, len(maps))
    n_down = -(-len(maps) // n_across)
    height = n_down * (1.1 + 0.24 * len(order))
    figure = new_figure(1.8 + 2.2 * n_across, 0.8 + height, _title(subject, maps))
    panels = figure.subplots(n_down, n_across, squeeze=False, sharey=True, sharex=True)
    places = np.arange(len(order))
    for axes, one in zip(panels.flat, maps, strict=False):
        for shift, (name, said, _) in zip((0.27, 0.0, -0.27), _KINDS, strict=True):
            drawn = getattr(one, name)[order]
            axes.barh(places + shift, drawn, 0.27, label=said.replace("\n", " "))
        axes.axvline(0.0, color="0.3", linewidth=0.6)
        axes.set_yticks(places, [label(names[i], 24) for i in order], fontsize="x-small")
        axes.set_title(label(subject.class_names[one.index], 24), fontsize="small")
    for axes in panels.flat[len(maps) :]:
        axes.set_visible(False)
    for axes in panels[-1]:
        axes.set_xlabel("probability", fontsize="small")
    explain_marks(figure, panels[0, 0])
    save(figure, path)


def _draw_sequences(subject: Subject, maps: list[ClassMap], path: Path) -> None:
    """Over time, class beside class: sums over features by step; below it step by feature."""
    own = _own_features(subject)
    figure = new_figure(1.8 + 2.0 * len(maps), 4.8, _title(subject, maps))
    above, below = figure.subplots(2, sharex=True)
    heat = [one.signed[:, :own].T for one in maps]
    show_strip(below, heat, _names(subject, maps), True, "probability")
    lines = (
        [one.absolute[:, :own].sum(axis=1) for one in maps],
        [one.signed[:, :own].sum(axis=1) for one in maps],
        [one.drop for one in maps],
    )
    for each, (_, said, _) in zip(lines, _KINDS, strict=True):
        above.plot(beside([values[None] for values in each])[0], label=said.replace("\n", " "))
    above.axhline(0.0, color="0.3", linewidth=0.6)
    above.set_ylabel("probability", fontsize="small")
    below.set_ylabel("feature", fontsize="small")
    ticks = range(0, own, 1 + own // 8)
    below.set_yticks(ticks, list(map(str, ticks)), fontsize="x-small")
    below.set_xlabel(f"steps 0 to {len(maps[0].drop) - 1} of each class", fontsize="small")
    explain_marks(figure, above)
    save(figure, path)


def _own_features(subject: Subject) -> int:
    """How many features a step has; with sequences of unequal length one more marks padding."""
    return subject.data.shape[-1] - int(subject.data.ragged)


def _write_table(subject: Subject, maps: list[ClassMap], path: Path) -> None:
    """A line a class and column, or a class and step: there the sum over its features."""
    by_step = subject.data.kind == "sequence"
    own = _own_features(subject)
    places: list[Any] = list(range(len(maps[0].drop))) if by_step else column_names(subject.data)
    head = ("class", "step" if by_step else "column", "n_rows", "absolute", "signed", "drop")
    lines = []
    for one in maps:
        absolute, signed = (
            values[:, :own].sum(axis=1) if by_step else values
            for values in (one.absolute, one.signed)
        )
        name, n_rows = subject.class_names[one.index], len(one.rows)
        for place, *values in zip(places, absolute, signed, one.drop, strict=True):
            lines.append((name, place, n_rows, *(f"{value:.6g}" for value in values)))
    write_table(path, head, lines)
