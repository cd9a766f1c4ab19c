"""Cells: what may stand where a number or a category belongs, and what nested lists hold.

Requests come as whatever JSON, pandas and MLflow make of them. These functions look at values and
keep them what they are, without a copy where one would take a long text many times.
"""

from __future__ import annotations

import contextlib
import decimal
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .errors import refuse

IS_BOOL: Final = "holds true or false where a number was expected"
IS_TEXT: Final = "holds text where a number was expected"
LACKS: Final = "lacks a value"
_IS_NULL: Final = "holds null"


def is_nested(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim > 0)


def is_text_list(array: npt.NDArray[Any]) -> bool:
    return array.ndim == 1 and len(array) > 0 and isinstance(array[0], (str, bytes))


def columns_of(records: Sequence[Mapping[Any, Any]], most: int) -> dict[Any, npt.NDArray[Any]]:
    """Returns records as columns; a cell that only some records have is None in the others.

    Args:
        most: How many names there may be.
    """
    names: dict[Any, None] = {}
    for record in records:
        names.update(dict.fromkeys(record))
        if len(names) > most:
            wrong = "the input's rows have more names than this model has columns"
            refuse("unknown_key", wrong, field="columns")
    return {
        name: as_objects((record.get(name) for record in records), len(records)) for name in names
    }


def as_objects(values: Iterable[Any], n: int) -> npt.NDArray[Any]:
    """Returns values as they are in a flat array of objects; MLflow puts each into an array."""
    plain = (
        value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
        for value in values
    )
    return np.fromiter(plain, object, n)


def as_flat(cells: Any) -> npt.NDArray[Any]:
    """Returns the cells of one column as an array that leaves each what it is."""
    if isinstance(cells, np.ndarray) and cells.dtype.kind != "O":
        return cells
    return as_objects(cells, len(cells))


def as_said(texts: npt.NDArray[Any], column: Mapping[str, Any]) -> npt.NDArray[Any]:
    """Returns cells with their numbers as numbers again.

    Of a list that holds numbers and text MLflow makes an array of text: 3.0 becomes "3.0". What
    is the name of a category stays text.
    """
    names = frozenset(column["categories"] or ())
    cells = texts.tolist()
    return as_objects((text if text in names else _said(text) for text in cells), len(cells))


def _said(text: str) -> Any:
    for read in (int, float):
        with contextlib.suppress(ValueError):
            if str(read(text)) == text:
                return read(text)
    return {"True": True, "False": False}.get(text, text)


def flattened(rows: Sequence[Any], sizes: tuple[int, ...]) -> list[Any] | None:
    """Returns the cells of rows that are nested lists of these sizes; None if any is not."""
    level: Any = rows
    for size in sizes:
        if set(map(type, level)) != {list} or set(map(len, level)) != {size}:
            return None
        level = list(chain.from_iterable(level))
    return level  # type: ignore[no-any-return]


def bytes_of(cells: list[Any]) -> npt.NDArray[np.uint8] | None:
    """Returns ints of 0 to 255 as an array; None if any is something else, as a bool is."""
    try:
        array = np.frombuffer(bytes(cells), np.uint8)
    except (ValueError, TypeError):
        return None
    # bytes takes bools, but they can only be where it has 0 or 1.
    few = map(cells.__getitem__, np.flatnonzero(array <= 1).tolist())
    return None if bool in set(map(type, few)) else array


def not_a_number(row: Any) -> str | None:
    """Says what in nested lists is no number, if anything is: text before all else."""
    found = None
    for value in _leaves(row):
        kind = value.dtype.kind if isinstance(value, np.ndarray) else None
        if isinstance(value, (str, bytes)) or kind in ("U", "S"):
            return IS_TEXT
        if isinstance(value, (bool, np.bool_)) or kind == "b":
            found = found or IS_BOOL
        if value is None:
            found = found or _IS_NULL
    return found


def has_text(row: Any) -> bool:
    return any(isinstance(value, (str, bytes)) for value in _leaves(row))


def _leaves(row: Any) -> Iterator[Any]:
    """Yields what nested lists hold, not what lists of numbers only hold; without recursion."""
    levels = [row]
    while levels:
        value = levels.pop()
        if not isinstance(value, (list, tuple)):
            yield value
        elif not set(map(type, value)) <= {int, float}:
            levels.extend(value)


def read_number(value: Any) -> float:
    """Returns a plain number as a float; text that says a number is none."""
    if value is None:
        refuse("not_a_number", _IS_NULL)
    if isinstance(value, (str, bytes)):
        refuse("not_a_number", IS_TEXT)
    if not isinstance(value, (numbers.Real, np.bool_, decimal.Decimal)):
        refuse("not_a_number", "holds something else than numbers")
    try:
        return float(value)
    except (OverflowError, ValueError, TypeError):
        refuse("out_of_range", "holds a number too large")
