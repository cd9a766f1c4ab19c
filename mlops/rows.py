"""What rows and labels must be, whatever they were read from.

What passes here can be trusted: finite numbers of one dtype, a label for every row, two classes or
more. What cannot be used is refused in one line that names file, key, count and first index; no
value of a row is repeated in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from mlops.errors import DataError

MAX_CLASSES = 10_000


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Checked rows, before they have a kind and a split.

    Attributes:
        name: Safe as an experiment's name.
        source: Where they came from, for the record.
        where: What messages call them: the name or the quoted path.
        x: (n, ...) of rank 2, 3 or 4; uint8 or little-endian float32, C order, finite but for the
            missing values of a table with columns, which are NaN. May be a read-only memory map.
        labels: (n,) bool, int64 from 0 up, or non-empty strings.
        is_test: (n,) bool where the source brings its own test rows, else None.
        columns: Names of the features, for tables.
        categories: For each column of a table the names of its categories, sorted by code point:
            x holds an index into them. None for a column of numbers.
        ragged: Whether rows are sequences of unequal length. Then x is (n, time, features + 1):
            the last feature is 1.0 for a step of the sequence and 0.0 for padding after its end,
            and padding is 0.0 throughout.
        notes: What was done to the rows that their owner must know, a sentence each.
    """

    name: str
    source: str
    where: str
    x: np.ndarray
    labels: np.ndarray
    is_test: np.ndarray | None = None
    columns: tuple[str, ...] | None = None
    categories: tuple[tuple[str, ...] | None, ...] | None = None
    ragged: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """What a message is about: a key of an archive or a column of a CSV file."""

    where: str
    key: str
    is_column: bool = False

    def __str__(self) -> str:
        return (
            f"{self.where}: column {self.key!r}" if self.is_column else f"{self.where}: {self.key}"
        )

    def at(self, bad: np.ndarray) -> str:
        """Says where the first true element of `bad` is."""
        index = ", ".join(str(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
        if self.is_column:
            return f"in row {index} (counting from 0, without the header)"
        return f"at {self.key}[{index}]"

    def refuse(self, bad: np.ndarray, wrong: str, advice: str) -> None:
        """Raises a DataError with count and first index if anything is `bad`."""
        if bad.any():
            raise DataError(
                f"{self} has {wrong}: {int(bad.sum())} of {bad.size}, "
                f"the first {self.at(bad)}{advice}"
            )


def stored_rows(x: np.ndarray, place: Place) -> np.ndarray:
    """Returns x as it is stored: uint8 as it is, all else as finite float32, in C order."""
    if x.dtype.kind not in "biuf":
        raise DataError(f"{place} is {_dtype(x)}; expected integers, floats or bools.")
    if x.dtype == np.uint8:
        return np.ascontiguousarray(x)
    with np.errstate(over="ignore"):
        stored = x.astype("<f4", order="C")
    bad = ~np.isfinite(stored)
    if bad.any():
        n_nan = int(np.isnan(stored).sum())
        raise DataError(
            f"{place} has {n_nan} NaN and {int(bad.sum()) - n_nan} infinite values, the first "
            f"{place.at(bad)}; expected finite numbers within float32 (3.4e38). "
            "Drop or fill these rows."
        )
    stored += np.float32(0)  # -0.0 becomes 0.0, so that equal rows have equal bytes
    return stored


def flat_labels(y: np.ndarray, place: Place) -> np.ndarray:
    """Returns labels of rank 1; the (n, 1) that Keras gives is taken as (n,)."""
    if y.ndim == 2 and y.shape[1] == 1:
        return y[:, 0]
    if y.ndim == 1:
        return y
    is_binary = y.ndim == 2 and y.dtype.kind in "biuf" and bool(np.isin(y, (0, 1)).all())
    if is_binary and bool((y.sum(axis=1) == 1).all()):
        raise DataError(
            f"{place} looks one-hot, shape {y.shape}; expected one label a row, shape (n,). "
            f"Save {place.key}.argmax(1)."
        )
    raise DataError(
        f"{place} has rank {y.ndim}, shape {y.shape}; expected one label a row, shape (n,)."
    )


def checked_labels(y: np.ndarray, place: Place) -> np.ndarray:
    """Returns (n,) labels as bool, int64 or str."""
    if y.dtype.kind == "f":
        _refuse_floats(y, place)
    if y.dtype.kind in "iu":
        place.refuse(
            y < 0,
            "labels out of range, negative",
            "; expected integers from 0 up. If -1 means unlabelled, drop these rows; else give "
            "class names as strings.",
        )
        place.refuse(
            y > np.iinfo(np.int64).max,
            "labels out of range, beyond int64",
            "; expected integers below 2**63. Give class names as strings.",
        )
        return y.astype(np.int64)
    if y.dtype.kind == "S":
        try:
            y = np.char.decode(y, "utf-8")
        except UnicodeDecodeError as err:
            raise DataError(
                f"{place} has bytes that are not UTF-8. Save the labels as str."
            ) from err
    if y.dtype.kind == "U":
        place.refuse(y == "", "empty strings as labels", ". Drop these rows, or name their class.")
        return y
    if y.dtype.kind == "b":
        return y
    raise DataError(f"{place} is {_dtype(y)}; expected integers, strings or bools.")


def _refuse_floats(y: np.ndarray, place: Place) -> NoReturn:
    finite = np.isfinite(y)
    place.refuse(
        finite & (y != np.floor(np.where(finite, y, 0))),
        "continuous labels",
        "; expected integers, strings or bools. Podium does classification only.",
    )
    place.refuse(
        ~finite,
        "NaN or infinite labels",
        ". Drop these rows, and save integers, as with y.astype(int).",
    )
    raise DataError(
        f"{place} has whole numbers stored as {_dtype(y)}; expected integers, strings or bools. "
        "Save integers, as with y.astype(int)."
    )


def check_classes(y: np.ndarray, place: Place) -> None:
    classes = np.unique(y)
    if len(classes) == 1:
        raise DataError(f"{place} has one class only, {str(classes[0])!r}; expected two or more.")
    if len(classes) > MAX_CLASSES:
        raise DataError(
            f"{place} has {len(classes)} classes; expected at most {MAX_CLASSES}. If these are "
            "identifiers or quantities: Podium does classification only."
        )


def _dtype(array: np.ndarray) -> str:
    return "a structured array" if array.dtype.names else f"of dtype {array.dtype}"
