"""From a request to one checked array: rows of one shape, in any form that they may come in.

What images, sequences of unequal length and tables have of their own is in `pictures`, `ragged`
and `tables`, each a subclass of `Rows`.
"""

from __future__ import annotations

import base64
import contextlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .cells import (
    IS_BOOL,
    IS_TEXT,
    bytes_of,
    columns_of,
    flattened,
    has_text,
    is_nested,
    is_text_list,
    not_a_number,
    read_number,
)
from .errors import BadInputError, refuse

_NUMBER: Final = re.compile(r"[-+]?[\d.]+([eE][-+]?\d+)?(\.\d+)?")
"""A number as pandas makes a name of it: where it comes again, a dot and a count follow."""


class Rows:
    """Turns any form of a request into one checked array of shape (n, *shape).

    This one reads rows of one shape without names; what images, sequences of unequal length and
    tables have of their own is in the subclasses.
    """

    takes_bools = False
    """Whether true and false are numbers."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.shape = tuple(spec["shape"])
        self.size = math.prod(self.shape)
        self.dtype = np.dtype(spec["dtype"]).newbyteorder("<")
        self.mean = np.array(spec["mean"], np.float32)

    @property
    def expected(self) -> str:
        """What rows should be, for the end of a sentence."""
        return f"{self.dtype.name} of shape (n, {', '.join(map(str, self.shape))})"

    def parse(self, data: Any) -> npt.NDArray[Any]:
        """Returns `data` as an array (n, *shape) of the model's dtype; raises BadInputError."""
        if isinstance(data, np.ndarray):
            return self._from_array(data)
        if isinstance(data, (list, tuple)):
            return self._from_list(data)
        if hasattr(data, "columns") and hasattr(data, "to_numpy"):
            return self._from_frame(data)
        if not isinstance(data, Mapping):
            refuse("wrong_type", f"the input is a {type(data).__name__}, which holds no rows")
        return self._from_columns(data)

    def baseline(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Returns what an explanation of `rows` starts from, of their shape: the training mean."""
        return np.broadcast_to(self.mean, rows.shape)

    def attributed(self, row: npt.NDArray[Any], attributions: npt.NDArray[Any]) -> Any:
        """Returns the attributions of one row as plain values, in the form that the row has."""
        return attributions.tolist()

    def _from_array(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if array.dtype.kind in "US" or (array.dtype.kind == "O" and is_text_list(array)):
            if array.ndim != 1 or array.dtype.kind == "S":
                refuse("not_a_number", "the input holds text where numbers were expected")
            return self._from_text(array.tolist())
        if array.dtype.kind == "O":
            if array.ndim == 1 and len(array) and all(map(is_nested, array)):
                return self._from_nested(list(array))
            array = self._numbers(array)
        if array.dtype.kind not in "biuf":
            wrong = f"the input holds {array.dtype.name} where numbers were expected"
            refuse("not_a_number", wrong)
        return self._cast(self._stacked(array))

    def _from_list(self, rows: Sequence[Any]) -> npt.NDArray[Any]:
        if rows and all(isinstance(row, (str, bytes)) for row in rows):
            return self._from_text(rows)
        if rows and all(isinstance(row, Mapping) for row in rows):
            return self._from_records(rows)
        array = self._from_plain(rows)
        if array is not None:
            return self._cast(array)
        # numpy makes numbers of bools, and text of numbers beside text, each as long as the longest
        for index, row in enumerate(rows):
            wrong = not_a_number(row)
            if wrong == IS_TEXT or (wrong and not self.takes_bools):
                refuse("not_a_number", wrong, index)
        try:
            array = np.asarray(rows)
        except (ValueError, TypeError, OverflowError):
            return self._from_nested(rows)
        return self._from_array(array)

    def _from_records(self, rows: Sequence[Mapping[Any, Any]]) -> npt.NDArray[Any]:
        # Without pandas, which raises what it likes of text that is no Unicode.
        names = rows[0].keys()
        for index, row in enumerate(rows):
            if row.keys() != names:
                refuse("ragged", "has other names than row 0", index)
        if len(names) != 1:
            self._check_width(len(names))
        columns = list(columns_of(rows, len(names)).values())
        if len(columns) == 1:
            array = self._from_single(columns[0].tolist())
            if array is not None:
                return array
        self._check_width(len(columns))
        array = self._numbers(np.stack(columns, axis=1))
        return self._cast(array.reshape(len(array), *self.shape))

    def _check_width(self, n_columns: int) -> None:
        if n_columns != self.size:
            refuse("wrong_shape", f"the input has {n_columns} columns; expected {self.size}")

    def _from_plain(self, rows: Sequence[Any]) -> npt.NDArray[Any] | None:
        """Reads nested lists of ints and floats in just the right shape; None of anything else.

        What most clients send. np.asarray takes three times as long, and hides bools among ints.
        """
        cells = flattened(rows, self.shape) or flattened(rows, (self.size,))
        if cells is None:
            return None
        array = bytes_of(cells) if self.dtype.kind == "u" else None
        if array is None and set(map(type, cells)) <= {int, float}:
            with contextlib.suppress(OverflowError):  # the slow way says in which row
                array = np.fromiter(cells, np.float64, len(cells))
        return None if array is None else array.reshape(-1, *self.shape)

    def _from_nested(self, rows: Sequence[Any]) -> npt.NDArray[Any]:
        """Rows that are lists or arrays of their own: names the first that is not as expected."""
        parsed = []
        for index, row in enumerate(rows):
            try:
                array = np.asarray(row, object if has_text(row) else None)
            except (ValueError, TypeError, OverflowError):
                refuse("ragged", "is ragged, or not made of numbers", index)
            try:
                parsed.append(self._row(array, index))
            except BadInputError as err:
                if err.code == "wrong_shape" and self._are_unequal(rows):
                    refuse("ragged", err.wrong, index)
                raise
        return self._cast(np.stack(parsed))

    def _are_unequal(self, rows: Sequence[Any]) -> bool:
        """Whether rows differ in length where they must not."""
        return len({len(row) if is_nested(row) else -1 for row in rows}) > 1

    def _from_text(self, rows: Sequence[str | bytes]) -> npt.NDArray[Any]:
        """Base64 strings, or raw bytes (a binary column of Parquet), one a row."""
        parsed = []
        for index, row in enumerate(rows):
            if isinstance(row, bytes):
                content = row
            elif isinstance(row, str):
                try:
                    content = base64.b64decode(row, validate=True)  # strict: padded, no line ends
                except ValueError:
                    refuse("not_base64", "is text but not base64", index)
            else:
                refuse("not_base64", "is not a base64 string", index)
            parsed.append(self._decoded(content, index))
        # One row is the usual request, and np.stack would copy it.
        return self._cast(np.stack(parsed) if len(parsed) > 1 else parsed[0][np.newaxis])

    def _from_columns(self, columns: Mapping[Any, Any]) -> npt.NDArray[Any]:
        refuse("wrong_type", "the input is a dictionary, but this model knows no column names")

    def _from_frame(self, frame: Any) -> npt.NDArray[Any]:
        _refuse_a_row_of_names(list(frame.columns))
        if not len(frame):
            return self._no_rows()
        if frame.shape[1] == 1:
            rows = self._from_single(frame.iloc[:, 0].tolist())
            if rows is not None:
                return rows
        self._check_width(frame.shape[1])
        array = frame.to_numpy()
        if array.dtype.kind not in "biuf":
            array = self._numbers(array.astype(object))
        return self._cast(array.reshape(len(array), *self.shape))

    def _from_single(self, cells: Sequence[Any]) -> npt.NDArray[Any] | None:
        """Reads the only column of a table where its cells are whole rows."""
        if any(isinstance(cell, (str, bytes)) for cell in cells):
            return self._from_text(cells)
        return self._from_nested(cells) if any(map(is_nested, cells)) else None

    def _no_rows(self) -> npt.NDArray[Any]:
        return np.empty((0, *self.shape), self.dtype)

    def _row(self, array: npt.NDArray[Any], index: int) -> npt.NDArray[Any]:
        """Returns one row in `shape`."""
        if array.shape != self.shape and array.shape != (self.size,):
            refuse("wrong_shape", f"has shape {array.shape}", index)
        return self._checked(array, index).reshape(self.shape)

    def _checked(self, row: npt.NDArray[Any], index: int) -> npt.NDArray[Any]:
        """Returns a row of numbers."""
        if row.dtype.kind == "O":
            return self._numbers(row, index)
        if row.dtype.kind not in "biuf":
            refuse("not_a_number", "holds something else than numbers", index)
        if row.dtype.kind == "b" and not self.takes_bools:
            refuse("not_a_number", IS_BOOL, index)
        return row

    def _numbers(self, array: npt.NDArray[Any], row: int | None = None) -> npt.NDArray[np.float64]:
        """Casts an object array of plain numbers; names the row that holds anything else."""
        result = np.empty(array.shape, np.float64)
        for index, value in np.ndenumerate(array):
            plain = value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
            try:
                if isinstance(plain, (bool, np.bool_)) and not self.takes_bools:
                    refuse("not_a_number", IS_BOOL)
                result[index] = read_number(plain)
            except BadInputError as err:
                at = row if row is not None else index[0] if index else None
                refuse(err.code, err.wrong, at)
        return result

    def _decoded(self, content: bytes, index: int) -> npt.NDArray[Any]:
        """Returns the row that lies in bytes."""
        n_bytes = self.size * self.dtype.itemsize
        if len(content) != n_bytes:
            wrong = f"decodes to {len(content)} bytes; expected {n_bytes}"
            refuse("wrong_shape", wrong, index)
        return np.frombuffer(content, self.dtype).reshape(self.shape)

    def _stacked(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Returns an array of rows in (n, *shape)."""
        if array.shape == (0,):
            return self._no_rows()
        if not array.ndim or array.shape[1:] not in (self.shape, (self.size,)):
            wrong = f"the input has shape {array.shape}"
            if array.shape == self.shape:
                wrong = "the input is one row without the batch axis; put it into a list"
            refuse("wrong_shape", wrong)
        return array.reshape(len(array), *self.shape)

    def _cast(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Casts to the model's dtype; a number it cannot hold is refused, not wrapped."""
        if array.dtype == self.dtype and self.dtype.kind == "u":
            return array
        if array.dtype.kind == "b" and array.size and not self.takes_bools:
            refuse("not_a_number", IS_BOOL, 0)
        if self.dtype.kind == "u":
            good = (array >= 0) & (array <= np.iinfo(self.dtype).max)
            if array.dtype.kind == "f":
                good &= np.floor(array) == array
            self._refuse_first(good, "holds a value that is not a whole number from 0 to 255")
            return array.astype(self.dtype)
        with np.errstate(over="ignore"):
            cast = array.astype(self.dtype, copy=False)
        good = np.isfinite(cast)
        self._refuse_first(good, "holds NaN, infinity or a number too large")
        return cast

    def _refuse_first(self, good: npt.NDArray[np.bool_], wrong: str) -> None:
        """Refuses the first row that has anything not `good`."""
        if not good.all():
            refuse("out_of_range", wrong, int(np.unravel_index(good.argmin(), good.shape)[0]))


def _refuse_a_row_of_names(names: Sequence[Any]) -> None:
    """Refuses a table whose first row was taken for the names of its columns: it would be lost.

    The numbers of the columns are names, as pandas writes them: 0, 1, 2 and so on.
    """
    counted = [str(number) for number in range(len(names))]
    if names != counted and all(
        isinstance(name, str) and _NUMBER.fullmatch(name) for name in names
    ):
        wrong = "the table begins with numbers, where the names of its columns were expected"
        refuse("missing_key", wrong, field="columns")
