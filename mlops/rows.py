"""What rows and labels must be, whatever they were read from.

What passes here can be trusted: finite numbers of one dtype, a label for every row, two classes or
more. What cannot be used is refused in one line that names file, key, count and first index; no
value of a row is repeated in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NoReturn

import numpy as np

from mlops.errors import DataError

MAX_CLASSES = 10_000
CHUNK_VALUES: Final = 2**22
"""Most values that are converted and checked at once."""
MAX_PADDED: Final = 2**31
"""Most values (8 GiB) of sequences after padding."""


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

    def at(self, bad: np.ndarray, start: int = 0) -> str:
        """Says where the first true element of `bad` is, whose first row is row `start`."""
        row, *others = (int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
        index = ", ".join(str(i) for i in (start + row, *others))
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
    """Returns x as it is stored: uint8 as it is, all else as finite float32, in C order.

    It is x itself where nothing has to change, so that a memory map stays one. Else chunks are
    converted into one new array.
    """
    if x.dtype.kind not in "biuf":
        raise DataError(f"{place} is {_dtype(x)}; expected integers, floats or bools.")
    if x.dtype == np.uint8:
        return x if x.flags.c_contiguous else np.ascontiguousarray(x)
    stored = x if _is_as_stored(x) else np.empty(x.shape, "<f4")
    n_nan = n_infinite = 0
    first = ""
    for start, values in _chunks(x):
        with np.errstate(over="ignore"):
            values = values.astype("<f4", copy=False)
        bad = ~np.isfinite(values)
        if bad.any():
            first = first or place.at(bad, start)
            n_nan += int(np.isnan(values).sum())
            n_infinite += int(np.isinf(values).sum())
        elif stored is not x:  # -0.0 becomes 0.0, so that equal rows have equal bytes
            np.add(values, np.float32(0), out=stored[start : start + len(values)])
    if first:
        raise DataError(
            f"{place} has {n_nan} NaN and {n_infinite} infinite values, the first {first}; "
            "expected finite numbers within float32 (3.4e38). Drop or fill these rows."
        )
    return stored


def _is_as_stored(x: np.ndarray) -> bool:
    if x.dtype != np.dtype("<f4") or not x.flags.c_contiguous:
        return False
    return not any((values.view("<u4") == 0x80000000).any() for _, values in _chunks(x))  # -0.0


def _chunks(x: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields x in slices of rows, each with the index of its first row."""
    step = max(1, CHUNK_VALUES // max(1, math.prod(x.shape[1:])))
    for start in range(0, len(x), step):
        yield start, x[start : start + step]


def cut_sequences(
    steps: np.ndarray, lengths: np.ndarray, where: str
) -> tuple[np.ndarray, bool, tuple[str, ...]]:
    """Returns the x, ragged and notes of `Rows` whose sequences have these steps.

    Args:
        steps: (total steps, features), as stored; the steps of all sequences one after another.
        lengths: (n,) int64 from 1 up, adding up to the total of steps.
        where: What messages call the source.

    Raises:
        DataError: The longest sequence would make the others too long.
    """
    n, shortest, longest = len(lengths), int(lengths.min()), int(lengths.max())
    if shortest == longest:
        return steps.reshape(n, longest, -1), False, ()
    if n * longest * (steps.shape[1] + 1) > MAX_PADDED:
        raise DataError(
            f"{where}: {n} sequences padded to the {longest} steps of the longest are more than "
            f"2**31 values; half of them have {int(np.median(lengths))} steps or fewer. Cut the "
            "longest ones, or leave them out."
        )
    is_step = np.arange(longest) < lengths[:, np.newaxis]
    x = np.zeros((n, longest, steps.shape[1] + 1), "<f4")
    x[..., :-1][is_step] = steps
    x[..., -1] = is_step
    note = f"{n} sequences of {shortest} to {longest} steps, padded to {longest} at their end."
    return x, True, (note,)


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
