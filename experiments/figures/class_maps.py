"""Maps of what a classifier looks at, class by class: means of integrated gradients and occlusion.

Both are of the probability of a row's own class (`mlops.attribution`). A mean over `FEWEST` rows
and more shows no row; a class of fewer is left out, unless rows may be shown (ADR 37). Time is
bounded: so many rows are explained as it allows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from experiments.figures import Subject
from mlops.attribution import (
    Parts,
    PathGradients,
    baselines_of,
    occlusion,
    parts_of,
    spread,
    summed,
)
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


def explain_classes(subject: Subject, clock: Callable[[], float]) -> list[ClassMap]:
    """Returns a map for each class, in the order of the classes.

    Rows are taken in turns, one of each class, in their stored order, so that time that runs out
    costs all classes alike. Rows whose answer is not finite are left out.

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
        if np.isfinite(slopes).all() and np.isfinite(drops).all():
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
