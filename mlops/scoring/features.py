"""From the cells of a table to the features that a network sees.

Training and serving both call `encode_table`. The columns say what it does of each: numbers with
what fills their gaps, and categories by name, one feature each. Pandas is imported at first use.
"""

from __future__ import annotations

import contextlib
import decimal
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .cells import LACKS, read_number
from .errors import BadInputError, refuse

_FEW: Final = 50
"""Rows up to which finding the distinct cells takes longer than it saves."""

_NUMBERS: Final = {"boolean", "decimal", "floating", "integer", "mixed-integer-float"}
"""What pandas calls objects that are numbers throughout."""


def encode_table(frame: Any, columns: Sequence[Mapping[str, Any]]) -> npt.NDArray[np.float32]:
    """Returns the features that a network sees of a table, shape (n, features).

    Training and serving use this very function. A cell is missing if it is None, NaN, NA or an
    empty text.

    Args:
        frame: A DataFrame that has all of `columns`, in any order; others are not looked at.
        columns: As `InputSpec.to_json` gives them: name, categories, missing, fill.

    Raises:
        ValueError: A cell holds what its column cannot; names the column and the first row.
    """
    return encode(frame, len(frame), columns)


def category_name(value: Any) -> str:
    """Returns the name of a category: text as it is, a whole number without a point.

    Raises:
        ValueError: It is neither text nor a number nor a bool.

    Example:
        >>> category_name(3.0), category_name("3"), category_name(True)
        ('3', '3', 'True')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value))
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if not isinstance(value, (numbers.Real, decimal.Decimal)):
        refuse("wrong_type", "holds something else than text or numbers")
    number = float(value)
    return str(int(number)) if number.is_integer() else repr(number)


def width_of(column: Mapping[str, Any]) -> int:
    """Returns how many features a column becomes."""
    values = 1 if column["categories"] is None else len(column["categories"])
    return values + int(column["missing"] == "flagged")


def encode(cells: Any, n: int, columns: Sequence[Mapping[str, Any]]) -> npt.NDArray[np.float32]:
    """Encodes `cells`, which hold a Series or an array of n by the name of the column."""
    widths = list(map(width_of, columns))
    features = np.zeros((n, sum(widths)), np.float32)
    start = 0
    for column, width in zip(columns, widths, strict=True):
        encode = _encode_numbers if column["categories"] is None else _encode_categories
        missing = encode(cells[column["name"]], column, features[:, start : start + width])
        if column["missing"] == "refused" and missing.any():
            code = "not_a_number" if column["categories"] is None else "wrong_type"
            refuse(code, LACKS, int(missing.argmax()), column["name"])
        if column["missing"] == "flagged":
            features[:, start + width - 1] = missing
        start += width
    return features


def _encode_numbers(
    cells: Any, column: Mapping[str, Any], out: npt.NDArray[np.float32]
) -> npt.NDArray[np.bool_]:
    """Writes the numbers into the first feature of `out`; returns where they are missing."""
    values = _column_numbers(cells, column["name"])
    missing: npt.NDArray[np.bool_] = np.isnan(values)
    with np.errstate(over="ignore"):
        out[:, 0] = values
    infinite = ~np.isfinite(out[:, 0]) & ~missing
    if infinite.any():
        wrong = "holds infinity or a number too large"
        refuse("out_of_range", wrong, int(infinite.argmax()), column["name"])
    out[:, 0] += np.float32(0)  # -0.0 becomes 0.0
    if column["fill"] is not None:
        out[missing, 0] = column["fill"]
    return missing


def _column_numbers(cells: Any, name: str) -> npt.NDArray[Any]:
    """Returns numbers of any dtype, NaN where missing."""
    import pandas as pd

    if not isinstance(cells.dtype, np.dtype) and pd.api.types.is_numeric_dtype(cells.dtype):
        return np.asarray(cells.to_numpy(np.float64, na_value=np.nan))
    if cells.dtype.kind in "biuf":
        return np.asarray(cells)
    objects = np.asarray(cells, object)
    values = np.full(len(objects), np.nan)
    there = np.flatnonzero(~pd.isna(objects))
    if pd.api.types.infer_dtype(objects, skipna=True) in _NUMBERS:
        with contextlib.suppress(OverflowError, ValueError):  # the loop below says in which row
            values[there] = objects[there].astype(np.float64)
            return values
    for row in there.tolist():
        if isinstance(objects[row], str) and not objects[row]:
            continue
        try:
            values[row] = read_number(objects[row])
        except BadInputError as err:
            refuse(err.code, err.wrong, row, name)
    return values


def _encode_categories(
    cells: Any, column: Mapping[str, Any], out: npt.NDArray[np.float32]
) -> npt.NDArray[np.bool_]:
    """Writes 1.0 into the feature of each row's category; returns where it is missing."""
    codes, names = _column_names(cells, column["name"])
    known = {category: feature for feature, category in enumerate(column["categories"])}
    # The code -1 means missing: the last of these.
    feature = np.array([*(known.get(name, -1) for name in names), -1])[codes]
    rows = np.flatnonzero(feature >= 0)
    out[rows, feature[rows]] = 1.0
    missing: npt.NDArray[np.bool_] = np.array([*(not name for name in names), True])[codes]
    return missing


def _column_names(cells: Any, name: str) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Returns names of categories, and for each row the index of its own.

    Where a cell is missing the index is -1, or that of an empty name.
    """
    import pandas as pd

    if len(cells) > _FEW and _can_factorize(cells):
        codes, distinct = pd.factorize(cells)
    else:
        codes, distinct = np.arange(len(cells)), np.asarray(cells, object)
    names = []
    for code, (value, missing) in enumerate(zip(distinct, pd.isna(distinct), strict=True)):
        try:
            names.append("" if missing else category_name(value))
        except BadInputError as err:
            refuse(err.code, err.wrong, int((codes == code).argmax()), name)
    return codes, names


def _can_factorize(cells: Any) -> bool:
    """Whether equal cells are the same category: among objects True is equal to 1."""
    import pandas as pd

    if cells.dtype != object:
        return True
    sort = pd.api.types.infer_dtype(cells, skipna=True)
    return sort == "string" or sort in _NUMBERS
