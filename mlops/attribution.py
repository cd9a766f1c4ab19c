"""Explanations in Python: what each part of a row does to a network's answer, in two ways.

- `integrated_gradients` follows the network's slope from a baseline to the row. It needs the
  network itself, and its attributions add up to the change of the answer.
- `occlusion` replaces one part of a row after another by the baseline and asks again. It needs
  nothing but answers, so it takes any classifier, and one over HTTP too.

The two agree where an answer depends on parts one by one. Where one of two parts is enough,
occlusion finds neither, since the other is still there.

Example, a release that was downloaded:
    >>> network, spec = open_network(folder)
    >>> start = baselines_of(spec.input, rows)
    >>> targets = network.predict(rows).argmax(axis=1)
    >>> found, _ = integrated_gradients(network, rows, start, targets)
    >>> parts = parts_of(spec.input)
    >>> drops = occlusion(network.predict, rows, start, parts, targets)

Rows are as a network takes them, (n, *shape): categories as features, sequences padded
(`Dataset.part`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlops.inputs import InputSpec
from mlops.packaging import ModelSpec, check_model_folder
from mlops.scoring.explain import _PASS, STEPS, Gradients
from mlops.scoring.model import rows_for

Floats = npt.NDArray[np.float32]
Parts = npt.NDArray[np.bool_]
"""(k, *shape): which numbers of a row belong to each of k parts. Parts may overlap."""
Answer = Callable[[npt.NDArray[Any]], npt.ArrayLike]
"""From rows (n, *shape) to (n, answers): of a classifier the probabilities."""

MOST_AT_ONCE: Final = 1024
"""Most rows that an occlusion asks about at once, so that memory stays bounded."""
TILES: Final = 4
"""Patches of an image that lie side by side on its shorter side; others overlap them by half."""
MOST_WINDOWS: Final = 100
"""Parts that a sequence has at most: longer ones are covered by windows of several steps."""


def open_network(folder: Path) -> tuple[Any, ModelSpec]:
    """Returns the Keras network of a packaged model, and what the model is.

    Args:
        folder: That of the model or of the release: it holds MLmodel.

    Raises:
        StructureError: The check refuses the folder.
    """
    spec = check_model_folder(folder)
    import keras

    return keras.saving.load_model(folder / "data" / "model.keras", compile=False), spec


def baselines_of(data: InputSpec, rows: npt.NDArray[Any]) -> Floats:
    """Returns what explanations of rows start from, of their shape, the same as served ones.

    Black images; else the mean of the training rows, of a sequence in each step of its own.
    """
    return rows_for(data.to_json()).baseline(rows)


class PathGradients(Gradients):
    """Integrated gradients of one network, compiled once: rows one by one, with any n_steps.

    It adds what served explanations have no use for; that class lies in the runtime whose bytes
    packaged models are bound to.
    """

    def __init__(self, network: Any, likelihood: str | None = None) -> None:
        """Takes a packaged network; `likelihood` is that of a VAE."""
        task = "classifier" if likelihood is None else "vae"
        super().__init__(network, network.inputs[0].shape[1:], task, likelihood)

    def along(
        self, row: Floats, baseline: Floats, target: int, n_steps: int
    ) -> tuple[Floats, float]:
        """Returns the attributions, of the row's shape, and F at the baseline, both float32."""
        if self._compiled is None:
            self._compiled = self._compile()
        far = row - baseline
        total = np.zeros_like(row)
        for first in range(0, n_steps, _PASS):
            # A pass has room for so many points, and one more for the baseline. Those left over
            # weigh nothing, as it does.
            points = np.zeros(_PASS + 1, np.float32)
            inside = np.arange(first, min(first + _PASS, n_steps))
            points[: len(inside)] = (inside + 0.5) / n_steps
            weights = np.zeros(_PASS + 1, np.float32)
            weights[: len(inside)] = 1.0 / n_steps
            path = baseline + points.reshape(-1, *[1] * row.ndim) * far
            slopes, values = self._compiled(path, weights, np.int32(target))
            total += np.asarray(slopes)
        return total * far, float(np.asarray(values)[-1])


def integrated_gradients(
    network: Any,
    rows: npt.NDArray[Any],
    baselines: Floats,
    targets: Sequence[int] | npt.NDArray[np.int64] | None = None,
    *,
    likelihood: str | None = None,
    n_steps: int = STEPS,
) -> tuple[Floats, Floats]:
    """Returns what each number of each row adds to the answer, and the answer to the baselines.

    Of each number `x_i` of a row, `(x_i - b_i)` times the mean over `a` in [0, 1] of
    `dF(b + a (x - b)) / dx_i` (Sundararajan, Taly & Yan 2017, section 3, equation 1), the mean by
    the midpoint rule. F is the probability of a class, or a VAE's anomaly score in nats. By their
    axiom of completeness (proposition 1) a row's attributions add up to `F(x) - F(b)`, but for the
    error of that rule: docs/benchmarks.md has it.

    Args:
        network: A classifier, from rows to probabilities, or a VAE as it is packaged.
        rows: (n, *shape), of any dtype.
        baselines: (n, *shape), as `baselines_of` gives them.
        targets: (n,) index of the class to explain; of a VAE None.
        likelihood: "bernoulli" or "gaussian" for a VAE, None for a classifier.
        n_steps: Points of the path, 1 or more.

    Returns:
        Attributions (n, *shape) in units of F, and F at the baselines (n,); both float32.

    Raises:
        RuntimeError: Keras runs on another backend than TensorFlow or JAX.
    """
    path = PathGradients(network, likelihood)
    asked = np.zeros(len(rows), np.int64) if targets is None else np.asarray(targets)
    found = np.zeros(rows.shape, np.float32)
    before = np.zeros(len(rows), np.float32)
    for i, row in enumerate(rows.astype(np.float32)):
        found[i], before[i] = path.along(row, baselines[i], int(asked[i]), n_steps)
    return found, before


def occlusion(
    answer: Answer,
    rows: npt.NDArray[Any],
    baselines: Floats,
    parts: Parts,
    targets: Sequence[int] | npt.NDArray[np.int64],
) -> Floats:
    """Returns how much the answer drops where each part of a row is replaced by the baseline.

    `F(x) - F(x with the part from b)`, F being the probability of one class (Zeiler & Fergus 2014,
    section 4.2, where a grey square covers a part of the image). Above 0: the part speaks for the
    class.

    Args:
        answer: From rows to (n, answers), such as a Keras model's `predict`. It gets rows of the
            dtype of `rows`, at most `MOST_AT_ONCE` at a time.
        rows: (n, *shape).
        baselines: (n, *shape), as `baselines_of` gives them.
        parts: (k, *shape), as `parts_of` gives them.
        targets: (n,) index of the answer to explain.

    Returns:
        (n, k) float32, in units of F.
    """
    asked = np.asarray(targets)
    before = _answers(answer, rows, asked)
    drops = np.zeros((len(rows), len(parts)), np.float32)
    starts = baselines.astype(rows.dtype)
    for i, row in enumerate(rows):
        for first in range(0, len(parts), MOST_AT_ONCE):
            some = slice(first, first + MOST_AT_ONCE)
            covered = np.where(parts[some], starts[i], row)
            drops[i, some] = before[i] - _answers(
                answer, covered, np.repeat(asked[i], len(covered))
            )
    return drops


def _answers(answer: Answer, rows: npt.NDArray[Any], targets: npt.NDArray[Any]) -> Floats:
    """Returns the one answer that is asked of each row, (n,)."""
    chunks = range(0, len(rows), MOST_AT_ONCE)
    found = [np.asarray(answer(rows[start : start + MOST_AT_ONCE])) for start in chunks]
    one: Floats = np.concatenate(found)[np.arange(len(rows)), targets].astype(np.float32)
    return one


def parts_of(data: InputSpec) -> Parts:
    """Returns what occlusion replaces together: patches, columns or time steps.

    Of an image square patches, each a quarter of its shorter side, that overlap by half. Of a table
    the features of one column. Of a sequence one step; of more than `MOST_WINDOWS` steps windows,
    side by side.
    """
    if data.kind == "image":
        size = math.ceil(min(data.shape[:2]) / TILES)
        return patches(data.shape, size, max(1, size // 2))
    if data.kind == "sequence":
        return windows(data.shape, math.ceil(data.shape[0] / MOST_WINDOWS))
    widths = [len(column.features) for column in data.columns or ()] or [1] * data.shape[0]
    return columns(widths)


def patches(shape: tuple[int, ...], size: int, stride: int) -> Parts:
    """Returns square patches of an image (height, width, channels), all channels together.

    The first lies in the top left corner; the last of a row or of a column of patches touches the
    edge, so that no pixel is left out.

    Raises:
        ValueError: A patch does not fit into the image, or the stride leaves gaps.

    Example:
        >>> patches((4, 4, 1), 2, 2).shape
        (4, 4, 4, 1)
    """
    height, width = shape[:2]
    if not 1 <= stride <= size <= min(height, width):
        raise ValueError(
            f"no such patches; expected 1 <= stride <= size <= {min(height, width)}, got size "
            f"{size} and stride {stride}."
        )
    corners = [
        (top, left)
        for top in _starts(height, size, stride)
        for left in _starts(width, size, stride)
    ]
    found = np.zeros((len(corners), *shape), bool)
    for part, (top, left) in zip(found, corners, strict=True):
        part[top : top + size, left : left + size] = True
    return found


def _starts(length: int, size: int, stride: int) -> list[int]:
    return sorted({*range(0, length - size, stride), length - size})


def columns(widths: Sequence[int]) -> Parts:
    """Returns the columns of a table that become so many features each, in order.

    Example:
        >>> columns([1, 2]).astype(int).tolist()
        [[1, 0, 0], [0, 1, 1]]
    """
    owner = np.repeat(np.arange(len(widths)), widths)
    return np.equal(owner, np.arange(len(widths))[:, None])


def windows(shape: tuple[int, ...], size: int = 1) -> Parts:
    """Returns windows of so many steps, side by side, of a sequence (time, features).

    Example:
        >>> windows((3, 1), 2)[..., 0].astype(int).tolist()
        [[1, 1, 0], [0, 0, 1]]
    """
    owner = np.arange(shape[0]) // size
    inside = np.equal(owner, np.arange(owner[-1] + 1)[:, None])
    return np.repeat(inside[..., None], shape[1], axis=-1)


def summed(attributions: Floats, parts: Parts) -> Floats:
    """Returns the sums of attributions (n, *shape) over each part: (n, k).

    What a column adds is the sum over its features.
    """
    n, k = len(attributions), len(parts)
    sums: Floats = attributions.reshape(n, -1) @ parts.reshape(k, -1).T.astype(np.float32)
    return sums


def spread(drops: Floats, parts: Parts) -> Floats:
    """Returns drops (n, k) as maps (n, *shape): of each number the mean over the parts it is in."""
    n, k = drops.shape
    covers = parts.reshape(k, -1).astype(np.float32)
    maps: Floats = (drops @ covers) / np.maximum(covers.sum(axis=0), 1.0)
    return maps.reshape(n, *parts.shape[1:])
