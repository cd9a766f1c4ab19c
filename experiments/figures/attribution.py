"""What a classifier looks at, class by class: integrated gradients and occlusion over rows.

Both are of the probability of a row's own class (`mlops.attribution`). The mean of the absolute
integrated gradients says where a class is decided. It says little of what was learned: where rows
are mostly zeros, so is the map of a network that learned nothing, and it looks much alike
(docs/benchmarks.md). The mean with its sign does not.

Sums over `FEWEST` rows and more show no row, so they are always drawn; a class of fewer rows is
left out, unless rows may be shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from experiments.figures import Subject
from experiments.figures.canvas import label, save, write_table
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
from mlops.attribution import (
    Parts,
    PathGradients,
    baselines_of,
    occlusion,
    parts_of,
    spread,
    summed,
)
from mlops.evaluation import scale_rows
from mlops.inputs import Kind

Floats = npt.NDArray[np.float32]

N_STEPS: Final = 64
"""Points of each row's path: one pass of the network."""
MOST_ROWS: Final = 32
"""Most rows of a class that are explained."""
FEWEST: Final = 5
"""Fewest rows that a mean is taken of where rows may not be shown."""
MOST_CLASSES: Final = 20
"""Most classes that are explained: those with the most rows."""
ENOUGH_S: Final = 2.0
"""Seconds after which no further row is explained, once each class has `FEWEST`."""
MOST_S: Final = 10.0
"""Seconds after which none is in any case."""
MOST_BARS: Final = 20
"""Most columns of a table that are drawn; all are in the CSV."""


@dataclass(frozen=True, slots=True)
class ClassMap:
    """What decides one class: means over rows of that class, in probability.

    Attributes:
        index: Of the class.
        rows: Which of the subject's rows.
        absolute: Mean of the absolute integrated gradients: (columns,) of a table, else of the
            shape of a row.
        signed: Mean of the integrated gradients, of the same shape.
        drop: Mean drop by occlusion; (columns,), (steps,), or the shape of an image.
        first: Integrated gradients of the first row.
    """

    index: int
    rows: list[int]
    absolute: Floats
    signed: Floats
    drop: Floats
    first: Floats


def draw_attributions(subject: Subject, folder: Path) -> None:
    """Writes what a classifier looks at, class by class; nothing of a VAE.

    Files: attribution.png; attribution.npz (`absolute`, `signed` and `drop`, each (classes, ...),
    `n_rows` and `class_names`); of tables and sequences attribution.csv, by column or by step; of
    images attribution_rows.png, one row a class, where rows may be shown.

    Takes at most about `ENOUGH_S` seconds besides compiling, `MOST_S` where the network is slow.
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


def explain_classes(subject: Subject, clock: Callable[[], float]) -> list[ClassMap]:
    """Returns a map for each class, in the order of the classes.

    Rows are taken in turns, one of each class, in their stored order, so that time that runs out
    costs all classes alike.

    Args:
        clock: Tells seconds, such as `time.monotonic`; it starts when the network is compiled.
    """
    from mlops.scoring import compile_forward

    data, rows = subject.data, subject.rows
    queues = _rows_by_class(subject)
    if not queues:
        return []
    parts = parts_of(data)
    forward = compile_forward(subject.network, data.shape, data.dtype, len(parts))
    path = PathGradients(subject.network)
    found: dict[int, list[tuple[int, Floats, Floats]]] = {index: [] for index in queues}
    began = None
    for index, row in _in_turns(queues):
        if began is not None and _is_over(clock() - began, found, queues):
            break
        one = rows[row : row + 1]
        start = baselines_of(data, one)
        slopes, _ = path.along(one[0].astype(np.float32), start[0], index, N_STEPS)
        drops = occlusion(lambda asked: forward(asked)[0], one, start, parts, [index])
        found[index].append((row, *_as_drawn(data.kind, slopes, drops[0], parts)))
        began = clock() if began is None else began
    least = 1 if subject.may_show_rows else FEWEST
    return [_mean(index, each) for index, each in sorted(found.items()) if len(each) >= least]


def _as_drawn(kind: Kind, slopes: Floats, drops: Floats, parts: Parts) -> tuple[Floats, Floats]:
    """Returns a row's attributions and drops: of a table by column, of a sequence drops by step."""
    if kind == "table":
        return summed(slopes[None], parts)[0], drops
    drop_map = spread(drops[None], parts)[0]
    return slopes, drop_map[:, 0] if kind == "sequence" else drop_map


def _rows_by_class(subject: Subject) -> dict[int, list[int]]:
    """Returns the rows to explain of each class, at most `MOST_ROWS`; empty classes left out."""
    assert subject.labels is not None
    least = 1 if subject.may_show_rows else FEWEST
    rows = {
        index: np.flatnonzero(subject.labels == index).tolist()
        for index in range(len(subject.class_names))
    }
    kept = sorted(rows, key=lambda index: -len(rows[index]))[:MOST_CLASSES]
    return {index: rows[index][:MOST_ROWS] for index in kept if len(rows[index]) >= least}


def _in_turns(queues: dict[int, list[int]]) -> list[tuple[int, int]]:
    """Returns (class, row): the first row of each class, then the second of each, and so on."""
    return [
        (index, rows[turn])
        for turn in range(MOST_ROWS)
        for index, rows in queues.items()
        if turn < len(rows)
    ]


def _is_over(seconds: float, found: dict[int, list[Any]], queues: dict[int, list[int]]) -> bool:
    is_enough = all(len(found[i]) >= min(FEWEST, len(rows)) for i, rows in queues.items())
    return seconds > (ENOUGH_S if is_enough else MOST_S)


def _mean(index: int, each: list[tuple[int, Floats, Floats]]) -> ClassMap:
    slopes = np.stack([one[1] for one in each])
    return ClassMap(
        index=index,
        rows=[one[0] for one in each],
        absolute=np.abs(slopes).mean(axis=0),
        signed=slopes.mean(axis=0),
        drop=np.stack([one[2] for one in each]).mean(axis=0),
        first=each[0][1],
    )


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
