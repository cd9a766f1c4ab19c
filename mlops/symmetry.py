"""Which ways of mirroring an image leave its class what it was.

A nearest-neighbour classifier is asked for small copies of validation rows, plain and mirrored. A
mirror that it does not notice is harmless. Weak evidence means that it is not (ADR 10).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from mlops.inputs import FLIPS

N_TRAIN: Final = 2000
N_VAL: Final = 500
"""Rows looked at, at most: with both the probe takes a fraction of a second on any dataset."""
SIDE: Final = 16
"""Pixels a side of the small copies. What tells left from right in digits is seen at 8."""
PIXELS_READ: Final = 64
"""Pixels a side that a small copy is the mean of, at most: huge images take no longer."""
KEPT: Final = 0.9
"""Share of the plain accuracy above chance that a harmless flip keeps. Not 1: with 500 rows two
accuracies that are equal in truth differ by a few points. A flip that makes one class in ten
another loses a tenth and more."""
MIN_ERRORS_ABOVE_CHANCE: Final = 3.0
"""Standard errors by which the plain accuracy is above chance, at least. Below, the probe sees
nothing in the images, mirrored or not."""
MAX_ERRORS_LOST: Final = 2.5
"""Standard errors by which a class may lose more rows than it wins. It catches a pair of classes
that a mirror swaps among many that it does not: seven rows lost and none won are too many."""

_AXES: Final = {"horizontal": 2, "vertical": 1}
_CHUNK: Final = 64


def find_flips(x: np.ndarray, y: np.ndarray, train: np.ndarray, val: np.ndarray) -> tuple[str, ...]:
    """Returns those of "horizontal" and "vertical" that the rows show to be harmless.

    Args:
        x: (n, height, width, channels); may be a memory map.
        y: (n,) class indices.
        train: Indices of the training rows.
        val: Indices of the validation rows.
    """
    train, val = _every(train, N_TRAIN), _every(val, N_VAL)
    if not len(train) or not len(val):
        return ()
    known, asked = _grey_levels(_small(x, train), _small(x, val))
    n_classes = int(y.max()) + 1
    plain = _is_right(known, asked, y[train], y[val])
    if not _sees_classes(plain, y[val], n_classes):
        return ()
    return tuple(
        name
        for name in FLIPS
        if x.shape[_AXES[name]] > 1
        and _is_harmless(
            plain,
            _is_right(known, np.flip(asked, _AXES[name]), y[train], y[val]),
            y[val],
            n_classes,
        )
    )


def _every(index: np.ndarray, n: int) -> np.ndarray:
    """Returns at most n of the indices, evenly spread: rows may be sorted by class."""
    if len(index) <= n:
        return index
    return index[np.arange(n) * len(index) // n]


def _small(x: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Returns these rows, pooled by means to at most SIDE x SIDE pixels, as float32."""
    steps = [-(-size // PIXELS_READ) for size in x.shape[1:3]]
    sizes = [-(-size // step) for size, step in zip(x.shape[1:3], steps, strict=True)]
    blocks = [-(-size // SIDE) for size in sizes]
    (rows, columns), channels = (s // b for s, b in zip(sizes, blocks, strict=True)), x.shape[3]
    # Cut at both ends alike, so that a mirrored copy is the copy of the mirrored image.
    top, left = ((s % b) // 2 for s, b in zip(sizes, blocks, strict=True))
    small = np.empty((len(index), rows, columns, channels), np.float32)
    for start in range(0, len(index), _CHUNK):
        part = index[start : start + _CHUNK]
        pixels = x[part, :: steps[0], :: steps[1]]
        pixels = pixels[:, top : top + rows * blocks[0], left : left + columns * blocks[1]]
        shape = (len(part), rows, blocks[0], columns, blocks[1], channels)
        summed = pixels.reshape(shape).sum(axis=2, dtype=np.float32).sum(axis=3)
        small[start : start + _CHUNK] = summed / (blocks[0] * blocks[1])
    return small


def _grey_levels(known: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns both with whole values from 0 to 255: distances are exact, so ties are ties."""
    low, high = float(known.min()), float(known.max())
    scale = 255 / (high - low) if high > low else 0.0
    rounded = [np.rint((part - low) * scale) for part in (known.astype(float), asked.astype(float))]
    return rounded[0], np.clip(rounded[1], 0, 255)


def _is_right(
    known: np.ndarray, asked: np.ndarray, y_known: np.ndarray, y_asked: np.ndarray
) -> np.ndarray:
    """Returns (n asked,) bool: whether the nearest of the known rows is of the same class."""
    a, b = asked.reshape(len(asked), -1), known.reshape(len(known), -1)
    distances = (b**2).sum(axis=1) - 2 * (a @ b.T)  # less the asked row's own square
    return np.asarray(y_known[distances.argmin(axis=1)] == y_asked)


def _accuracy(right: np.ndarray, y: np.ndarray, n_classes: int) -> float:
    """Returns the mean of the classes' accuracies, so that chance is 1 in n_classes."""
    rows = np.bincount(y, minlength=n_classes)
    hits = np.bincount(y, weights=right, minlength=n_classes)
    return float((hits[rows > 0] / rows[rows > 0]).mean())


def _sees_classes(right: np.ndarray, y: np.ndarray, n_classes: int) -> bool:
    chance = 1 / n_classes
    rows = np.bincount(y)
    rows = rows[rows > 0]
    error = np.sqrt(chance * (1 - chance) * (1 / rows).sum()) / len(rows)
    return _accuracy(right, y, n_classes) - chance > MIN_ERRORS_ABOVE_CHANCE * float(error)


def _is_harmless(plain: np.ndarray, flipped: np.ndarray, y: np.ndarray, n_classes: int) -> bool:
    chance = 1 / n_classes
    above = _accuracy(plain, y, n_classes) - chance
    if _accuracy(flipped, y, n_classes) - chance < KEPT * above:
        return False
    lost = np.bincount(y[plain & ~flipped], minlength=n_classes)
    won = np.bincount(y[~plain & flipped], minlength=n_classes)
    return not bool((lost - won > MAX_ERRORS_LOST * np.sqrt(lost + won)).any())
