"""What a network sees of rows as they came: learned from the training rows, done to all alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from mlops.errors import DataError
from mlops.inputs import Categories, Column, InputSpec, Kind, Missing
from mlops.rows import Rows
from mlops.scoring import encode_table
from mlops.symmetry import find_flips


def describe(
    rows: Rows, kind: Kind, x: np.ndarray, y: np.ndarray, train: np.ndarray, val: np.ndarray
) -> InputSpec:
    """Returns what one row is; all that is learned from rows is learned from the training rows.

    Args:
        rows: Where x is from.
        kind: How rows are to be read.
        x: (n, ...) as `Dataset.x` has them.
        y: (n,) class indices.
        train: Indices of the training rows.
        val: Indices of the validation rows: which flips are harmless is tried on them.

    Raises:
        DataError: A column is missing in every training row.
    """
    shape = tuple(x.shape[1:])
    columns = None
    indicators = np.zeros(shape[-1], bool)
    if rows.ragged:
        indicators[-1] = True
    elif kind == "table" and rows.columns is not None:
        columns = _columns(rows, x, train)
        indicators = np.array([flag for column in columns for flag in _indicators(column)])
        shape = indicators.shape
    flips = find_flips(x, y, train, val) if kind == "image" else ()
    zeros = (0.0,) * shape[-1]  # until they are known; nothing that is measured depends on them
    spec = InputSpec(kind, shape, str(x.dtype), columns, 0.0, 0.0, zeros, zeros, rows.ragged, flips)
    return replace(
        spec, **_statistics(lambda: _chunks(x, train, spec, rows.categories), indicators)
    )


def encode(x: np.ndarray, spec: InputSpec, categories: Categories | None) -> np.ndarray:
    """Returns rows as a network takes them, (n, *spec.shape); those rows where nothing is to do.

    Args:
        x: (n, ...) as `Dataset.x` has them.
        spec: What one row is.
        categories: The names that the indices in x stand for, as `Dataset.categories`.
    """
    if not spec.is_encoded:
        return x
    if spec.columns is not None:
        columns = [asdict(column) for column in spec.columns]
        return encode_table(to_frame(x, spec.columns, categories), columns)
    padding = np.array([*spec.mean[:-1], 0.0], x.dtype)
    return np.where(x[..., -1:] > 0, x, padding)


def to_frame(x: np.ndarray, columns: tuple[Column, ...], categories: Categories | None) -> Any:
    """Returns a table as a client sends it: a DataFrame that has categories by name."""
    import pandas as pd

    values: dict[str, Any] = {}
    for i, column in enumerate(columns):
        names = None if categories is None else categories[i]
        if names is None:
            values[column.name] = x[:, i]
        else:
            codes = np.where(np.isnan(x[:, i]), -1, x[:, i]).astype(np.int64)
            values[column.name] = pd.Categorical.from_codes(codes, categories=list(names))
    return pd.DataFrame(values)


def to_sequences(x: np.ndarray) -> list[np.ndarray]:
    """Returns padded sequences as a client sends them: arrays (time, features) without padding."""
    return [row[: int(row[:, -1].sum()), :-1] for row in x]


def _columns(rows: Rows, x: np.ndarray, train: np.ndarray) -> tuple[Column, ...]:
    """Returns how each column becomes numbers, as the training rows have it."""
    assert rows.columns is not None
    columns = []
    for i, name in enumerate(rows.columns):
        known = None if rows.categories is None else rows.categories[i]
        values = x[train, i].astype(np.float64)
        there = values[~np.isnan(values)]
        if not len(there):
            raise DataError(
                f"{rows.where}: column {name!r} is missing in every training row. Leave it out of "
                "the file."
            )
        missing: Missing = "refused"
        if np.isnan(x[:, i]).any():
            missing = "filled" if len(there) == len(values) else "flagged"
        if known is not None:
            categories = tuple(known[int(code)] for code in np.unique(there))
            columns.append(Column(name, categories, missing))
        else:
            fill = None if missing == "refused" else float(there.mean())
            columns.append(Column(name, None, missing, fill))
    return tuple(columns)


def _indicators(column: Column) -> list[bool]:
    """Returns for each feature of a column whether it says that something is there."""
    return [column.categories is not None or i > 0 for i in range(len(column.features))]


def _statistics(
    chunks: Callable[[], Iterator[np.ndarray]], indicators: np.ndarray
) -> dict[str, Any]:
    """Returns low, high, mean and variance, in float64, over chunks of (values, last axis)."""
    low, high, count = np.inf, -np.inf, 0
    total: Any = 0.0
    for values in chunks():
        low, high = min(low, values.min()), max(high, values.max())
        total += values.sum(axis=0)
        count += len(values)
    mean = total / count
    squares: Any = 0.0
    for values in chunks():
        squares += np.square(values - mean).sum(axis=0)
    variance = squares / count
    # 0 and 1 as they are: what is not there, and what never was, stays exactly 0
    mean[indicators], variance[indicators] = 0.0, 1.0
    return {
        "low": float(low),
        "high": float(high),
        "mean": tuple(mean.tolist()),
        "variance": tuple(variance.tolist()),
    }


def _chunks(
    x: np.ndarray, index: np.ndarray, spec: InputSpec, categories: Categories | None
) -> Iterator[np.ndarray]:
    """Yields rows as (values, last axis) in float64, at most 4096 rows and about 32 MiB at once."""
    step = max(1, min(4096, 2**22 // math.prod(spec.shape)))
    for start in range(0, len(index), step):
        rows = encode(x[index[start : start + step]], spec, categories).astype(np.float64)
        values = rows.reshape(-1, rows.shape[-1])
        yield values[values[:, -1] > 0] if spec.ragged else values
