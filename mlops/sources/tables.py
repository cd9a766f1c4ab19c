"""Rows from tables: CSV files."""

from __future__ import annotations

import csv
import difflib
import io
import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np

from mlops.errors import DataError, UsageError
from mlops.rows import Place, Rows, check_classes, checked_labels, stored_rows
from mlops.sources.files import listed, one_line, open_file, safe_name
from mlops.sources.reading import Reading


def read_table(path: Path, reading: Reading) -> Rows:
    """Reads a CSV file."""
    where = repr(str(path))
    with open_file(path) as file:
        columns, frame = _read_frame(file, where)
    label = _label_column(reading.label, columns, where)
    features = tuple(column for column in columns if column != label)
    if not features:
        raise DataError(f"{where} has no column beside the label {label!r}.")
    if len(frame) == 0:
        raise DataError(f"{where} has zero rows, only a header.")
    x = np.empty((len(frame), len(features)), "<f4")
    for i, column in enumerate(features):
        x[:, i] = _feature(frame[column], Place(where, column, is_column=True))
    place = Place(where, label, is_column=True)
    y = frame[label]
    # "None" and "NA" count as missing, although one may be a class: a loud mistake is the better.
    place.refuse(
        y.isna().to_numpy(),
        "missing labels",
        ". Drop these rows, or give their class another name.",
    )
    labels = checked_labels(
        y.to_numpy() if _is_numeric(y) else np.array([str(value) for value in y]), place
    )
    check_classes(labels, place)
    return Rows(safe_name(path), path.name, where, x, labels, columns=features)


def _read_frame(file: IO[bytes], where: str) -> tuple[list[str], Any]:
    """Returns the names of the columns, and a pandas DataFrame that has just these."""
    import pandas as pd

    try:
        text = io.StringIO(file.read().decode("utf-8-sig"), newline="")
        # pandas renames the second of two equal names, so the header is read by itself.
        columns = next((row for row in csv.reader(text) if row), [])
        _check_header(columns, where)
        text.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # index_col: else a row longer than the header turns the first column into an index.
            # low_memory: else the type of a column may change from block to block.
            return columns, pd.read_csv(text, index_col=False, low_memory=False)
    except UnicodeDecodeError as err:
        raise DataError(
            f"{where} is not UTF-8 text ({err.reason} at byte {err.start}). Save it as UTF-8."
        ) from err
    except (pd.errors.ParserError, pd.errors.ParserWarning, csv.Error) as err:
        raise DataError(
            f"{where} is not a table: {one_line(err)}. Give every row as many values as the "
            "header has names."
        ) from err


def _check_header(columns: list[str], where: str) -> None:
    if not columns:
        raise DataError(f"{where} is empty; expected a header and rows.")
    if "" in columns:
        raise DataError(
            f"{where} has a column without a name, column {columns.index('')} (counting from 0). "
            "Name it; if it numbers the rows, save the file without it (pandas: index=False)."
        )
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise DataError(f"{where} has columns of the same name: {listed(twice)}. Rename them.")


def _label_column(label: str | None, columns: list[str], where: str) -> str:
    if label is None:
        raise UsageError(f"{where} needs --label COLUMN; expected one of {listed(columns)}.")
    if label in columns:
        return label
    near = difflib.get_close_matches(label, columns, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    if len(columns) == 1:
        hint = " Are the values separated by commas?"
    raise UsageError(
        f"{where} has no column {label!r} for --label; expected one of {listed(columns)}.{hint}"
    )


def _feature(series: Any, place: Place) -> np.ndarray:
    import pandas as pd

    place.refuse(series.isna().to_numpy(), "missing values", ". Drop or fill these rows.")
    if not _is_numeric(series):
        series = pd.to_numeric(series, errors="coerce")
        place.refuse(
            series.isna().to_numpy(),
            "values that are not numeric",
            ". Encode this column as numbers, or leave it out.",
        )
    return stored_rows(series.to_numpy(), place)


def _is_numeric(series: Any) -> bool:
    return isinstance(series.dtype, np.dtype) and series.dtype.kind in "biuf"
