"""Tables with columns: which cell belongs to which column, in every form that a table comes in.

A table is a DataFrame, records, a dictionary of lists, or lists by position; lists and arrays as
wide as the network's features are taken as these. `features` makes numbers of the cells.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .cells import LACKS, as_flat, as_objects, as_said, columns_of, is_nested
from .errors import refuse
from .features import encode, width_of
from .rows import Rows

_MORE_NAMES: Final = 16
"""How many more names than the model has columns records may have: each becomes a column."""


class TableRows(Rows):
    """Tables with columns: cells by name in any order or by position, or features."""

    takes_bools = True

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__(spec)
        self.columns = list(spec["columns"])
        self.names = [column["name"] for column in self.columns]
        self.has_categories = any(column["categories"] is not None for column in self.columns)
        # Plain: the cells are the features.
        self.is_plain = not self.has_categories and all(
            column["missing"] == "refused" for column in self.columns
        )

    @property
    def expected(self) -> str:
        sorts = ", ".join(
            f"{column['name']} ({'number' if column['categories'] is None else 'category'})"
            for column in self.columns
        )
        if len(sorts) > 1000:
            return f"a table with {len(self.columns)} columns"
        return f"a table with columns {sorts}"

    def attributed(self, row: npt.NDArray[Any], attributions: npt.NDArray[Any]) -> Any:
        """Returns one number a column: the sum over its features."""
        ends = np.cumsum(list(map(width_of, self.columns)))
        sums = [float(part.sum()) for part in np.split(attributions, ends[:-1])]
        return dict(zip(self.names, sums, strict=True))

    def _from_array(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        is_features = array.dtype.kind in "biuf" and self.is_plain
        is_wrong = array.dtype.kind == "U" and not self.has_categories
        if array.ndim != 2 or array.shape[1] != len(self.names) or is_features or is_wrong:
            return super()._from_array(array)
        return self._from_cells(self.names, list(map(as_flat, array.T)))

    def _from_list(self, rows: Sequence[Any]) -> npt.NDArray[Any]:
        if rows and all(isinstance(row, Mapping) for row in rows):
            return self._from_columns(columns_of(rows, len(self.names) + _MORE_NAMES))
        if rows and not self.is_plain and all(isinstance(row, (list, tuple)) for row in rows):
            return self._from_nested(rows)  # an array would make text of numbers beside text
        return super()._from_list(rows)

    def _from_nested(self, rows: Sequence[Any]) -> npt.NDArray[Any]:
        width = len(self.names)
        is_row = [is_nested(row) and len(row) == width for row in rows]
        if self.is_plain or not any(is_row):
            return super()._from_nested(rows)
        if not all(is_row):
            wrong = f"is not a list of {width} cells"
            refuse("ragged", wrong, is_row.index(False))
        cells = [as_objects((row[i] for row in rows), len(rows)) for i in range(width)]
        return self._from_cells(self.names, cells)

    def _from_columns(self, columns: Mapping[Any, Any]) -> npt.NDArray[Any]:
        if not all(is_nested(values) for values in columns.values()):
            refuse("wrong_type", "the input's columns are not lists")
        if len(columns) == 1 and not columns.keys() <= set(self.names):
            ((_, values),) = columns.items()
            rows = self._from_single(list(values))
            if rows is not None:
                return rows
        cells = list(map(as_flat, columns.values()))
        shapes = {values.shape for values in cells}
        if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
            refuse("ragged", "the input's columns are not flat lists of one length")
        if shapes <= {(0,)}:
            return self._no_rows()
        return self._from_cells(list(columns), cells)

    def _from_frame(self, frame: Any) -> npt.NDArray[Any]:
        if not len(frame):
            return self._no_rows()
        names = list(frame.columns)
        _refuse_odd_names(names)
        if names == list(range(len(names))):  # no names at all
            if len(names) in (1, self.size) and len(names) != len(self.names):
                return super()._from_frame(frame)
            if len(names) != len(self.names):
                wrong = f"the input has {len(names)} columns; expected {len(self.names)}"
                refuse("wrong_shape", wrong)
            names = self.names
        elif len(names) == 1 and names[0] not in self.names:
            rows = self._from_single(frame.iloc[:, 0].tolist())
            if rows is not None:
                return rows
        if self.is_plain:  # all at once is faster
            self._check_names(names)
            array = frame.to_numpy()
            if array.dtype.kind in "biuf":
                place = {name: index for index, name in enumerate(names)}
                array = array[:, [place[name] for name in self.names]]
                self._refuse_first(~np.isnan(array), LACKS)
                return self._cast(array)
        return self._from_cells(names, [cells for _, cells in frame.items()])

    def _from_cells(self, names: Sequence[Any], cells: Sequence[Any]) -> npt.NDArray[Any]:
        """Encodes columns, each a Series or a flat array."""
        _refuse_odd_names(names)
        self._check_names(names)
        found = dict(zip(names, cells, strict=True))
        for column in self.columns:
            values = found[column["name"]]
            if isinstance(values, np.ndarray) and values.dtype.kind == "U":
                found[column["name"]] = as_said(values, column)
            elif isinstance(values, np.ndarray) and values.dtype.kind not in "biufO":
                code = "not_a_number" if column["categories"] is None else "wrong_type"
                wrong = f"column {column['name']!r} holds {values.dtype.name}"
                refuse(code, wrong, field=f"columns.{column['name']}")
        return self._cast(encode(found, len(cells[0]), self.columns))

    def _check_names(self, names: Sequence[Any]) -> None:
        own, given = set(self.names), set(names)
        absent = [name for name in self.names if name not in given]
        if absent:
            missing = list(map(repr, absent))
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            are = "columns {} are" if len(missing) > 1 else "column {} is"
            wrong = f"{are.format(', '.join(missing[:5]) + more)} missing"
            refuse("missing_key", wrong, field=f"columns.{absent[0]}")
        n_unknown = sum(name not in own for name in names)
        if n_unknown:
            # Without their names: those of a CSV without a header are data.
            are = "a column is" if n_unknown == 1 else f"{n_unknown} columns are"
            refuse("unknown_key", f"{are} not of this model's", field="columns")
        if len(names) != len(self.names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            refuse("unknown_key", f"column {twice!r} is there twice", field=f"columns.{twice}")

    def _refuse_first(self, good: npt.NDArray[np.bool_], wrong: str) -> None:
        if not self.is_plain or good.all():
            super()._refuse_first(good, wrong)
            return
        row, column = np.unravel_index(good.argmin(), good.shape)
        code = "not_a_number" if wrong == LACKS else "out_of_range"
        refuse(code, wrong, int(row), self.names[column])


def _refuse_odd_names(names: Iterable[Any]) -> None:
    """Refuses names that may not even be compared."""
    if not all(isinstance(name, (str, numbers.Real)) for name in names):
        refuse("wrong_type", "a column's name is neither text nor a number", field="columns")
