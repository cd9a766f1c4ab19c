"""Rows from tables: CSV and Parquet files, a row or a step of a sequence a line."""

from __future__ import annotations

import csv
import difflib
import io
import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np

from mlops.errors import DataError, UsageError
from mlops.rows import Place, Rows, check_classes, checked_labels, cut_sequences
from mlops.sources.columns import (
    TO_NUMBERS,
    Wrong,
    is_numeric,
    read_columns,
    read_steps,
    refuse_columns,
)
from mlops.sources.files import check_start, listed, one_line, open_file, safe_name
from mlops.sources.reading import Reading


def read_table(path: Path, reading: Reading) -> Rows:
    """Reads a table, each column as numbers or as categories.

    Numbers are numbers, bools (as 0 and 1), and text that says a number in every cell. Other text
    is categories, and so is every column that `reading.categorical` names. A cell may be missing:
    empty, null, NaN, and what pandas takes as such in a CSV file (NA, None, ...).

    With `reading.sequence_id` the lines of one identifier are the steps of one sequence, in the
    file's order; all columns but the label are numbers then.

    Raises:
        UsageError: An option names a column that is not there, or that cannot be what it says.
        DataError: The file cannot be used.
    """
    where = repr(str(path))
    with open_file(path) as file:
        read = _read_parquet if path.suffix.lower() == ".parquet" else _read_csv
        columns, frame, notes = read(file, reading.categorical, where)
    label = _check_options(reading, columns, where)
    features = tuple(name for name in columns if name not in (label, reading.sequence_id))
    if not features:
        beside = "" if reading.sequence_id is None else f" and {reading.sequence_id!r}"
        raise DataError(f"{where} has no column beside the label {label!r}{beside}.")
    if len(frame) == 0:
        raise DataError(f"{where} has zero rows, only a header.")
    labels = _labels(frame[label], Place(where, label, is_column=True))
    name, source = safe_name(path), path.name
    if reading.sequence_id is None:
        x, categories = read_columns(frame, features, reading.categorical, where)
        return Rows(name, source, where, x, labels, None, features, categories, notes=notes)
    id_place = Place(where, reading.sequence_id, is_column=True)
    sequence = _sequences(frame[reading.sequence_id], id_place)
    labels = _one_label_each(sequence, labels, Place(where, label, is_column=True))
    steps = read_steps(frame, features, where)[np.argsort(sequence, kind="stable")]
    x, ragged, notes = cut_sequences(steps, np.bincount(sequence), where)
    return Rows(name, source, where, x, labels, ragged=ragged, notes=notes)


# Files


def _read_csv(
    file: IO[bytes], categorical: tuple[str, ...], where: str
) -> tuple[list[str], Any, tuple[str, ...]]:
    """Returns the names of the columns, a DataFrame that has just these, and notes."""
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
            frame = pd.read_csv(text, index_col=False, low_memory=False)
        return columns, frame, _keep_zeros(text, frame, categorical)
    except UnicodeDecodeError as err:
        raise DataError(
            f"{where} is not UTF-8 text ({err.reason} at byte {err.start}). Save it as UTF-8."
        ) from err
    except (pd.errors.ParserError, pd.errors.ParserWarning, csv.Error) as err:
        raise DataError(
            f"{where} is not a table: {one_line(err)}. Give every row as many values as the "
            "header has names."
        ) from err


def _keep_zeros(text: io.StringIO, frame: Any, categorical: tuple[str, ...]) -> tuple[str, ...]:
    """Puts the text of codes such as 01234, which pandas reads as numbers, into the frame."""
    import pandas as pd

    notes = []
    for name in categorical:
        if name not in frame or not is_numeric(frame[name]):
            continue
        text.seek(0)
        codes = pd.read_csv(text, index_col=False, usecols=[name], dtype=str)[name]
        if codes.str.match(r"\s*[+-]?0\d").any():
            frame[name] = codes
            notes.append(f"Column {name!r} keeps its leading zeros; send it as text.")
    return tuple(notes)


def _read_parquet(
    file: IO[bytes], categorical: tuple[str, ...], where: str
) -> tuple[list[str], Any, tuple[str, ...]]:
    """Returns the names of the columns, a DataFrame that has just these, and no notes."""
    import pyarrow.parquet as pq

    check_start(file, b"PAR1", where, "a Parquet file", "to_parquet")
    try:
        table = pq.ParquetFile(file, page_checksum_verification=True).read()
        metadata = table.schema.pandas_metadata or {"index_columns": (), "columns": ()}
        columns = [name for name in table.column_names if name not in metadata["index_columns"]]
        _check_header(columns, where)
        table = table.select(columns)
        refuse_columns(_of_other_types(table), where)
        frame = table.to_pandas(ignore_metadata=True)
        for known in metadata["columns"]:  # of numbers pandas forgets that they were categories
            if known["pandas_type"] == "categorical" and known["field_name"] in columns:
                frame[known["field_name"]] = frame[known["field_name"]].astype("category")
        return columns, frame, ()
    except DataError:
        raise
    except Exception as err:  # a damaged file fails in a dozen ways
        raise DataError(
            f"{where} is truncated or damaged ({one_line(err)}). Save it anew."
        ) from err


def _of_other_types(table: Any) -> list[Wrong]:
    """Returns the columns that hold neither numbers nor bools nor text."""
    import pyarrow.types as pt

    known = (
        pt.is_integer,
        pt.is_floating,
        pt.is_boolean,
        pt.is_string,
        pt.is_large_string,
        pt.is_string_view,
        pt.is_null,
    )
    wrong = []
    for field in table.schema:
        held = field.type.value_type if pt.is_dictionary(field.type) else field.type
        if not any(is_known(held) for is_known in known):
            what = f"is of type {str(held)[:60]}; expected numbers, bools or text"
            wrong.append(Wrong(field.name, what, TO_NUMBERS))
    return wrong


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


# Options


def _check_options(reading: Reading, columns: list[str], where: str) -> str:
    """Returns the label; every column that an option names is there, and named once."""
    label, sequence_id = reading.label, reading.sequence_id
    if label is None:
        raise UsageError(f"{where} needs --label COLUMN; expected one of {listed(columns)}.")
    _check_column(label, "--label", columns, where)
    if sequence_id is not None:
        _check_column(sequence_id, "--sequence-id", columns, where)
    for name in reading.categorical:
        _check_column(name, "--categorical", columns, where)
    if sequence_id == label:
        raise UsageError(f"{where}: column {label!r} is both --label and --sequence-id. Name two.")
    if label in reading.categorical:
        raise UsageError(
            f"{where}: column {label!r} is the label, whose values are classes anyhow. Leave it "
            "out of --categorical."
        )
    if sequence_id is not None and reading.categorical:
        raise UsageError(
            f"{where}: the steps of a sequence are numbers. Leave out --categorical, or "
            "--sequence-id."
        )
    return label


def _check_column(name: str, option: str, columns: list[str], where: str) -> None:
    if name in columns:
        return
    near = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    if len(columns) == 1:
        hint = " Are the values separated by commas?"
    raise UsageError(
        f"{where} has no column {name!r} for {option}; expected one of {listed(columns)}.{hint}"
    )


# Labels and sequences


def _labels(y: Any, place: Place) -> np.ndarray:
    # "None" and "NA" count as missing, although one may be a class: a loud mistake is the better.
    place.refuse(
        y.isna().to_numpy(),
        "missing labels",
        ". Drop these rows, or give their class another name.",
    )
    values = y.to_numpy() if is_numeric(y) else np.array([str(value) for value in y])
    labels = checked_labels(values, place)
    check_classes(labels, place)
    return labels


def _sequences(ids: Any, place: Place) -> np.ndarray:
    """Returns for each line the sequence that it belongs to, numbered as they first appear."""
    import pandas as pd

    place.refuse(ids.isna().to_numpy(), "missing values", ". Say which sequence each line is of.")
    sequence: np.ndarray = pd.factorize(ids)[0]
    if len(sequence) == sequence.max() + 1:
        raise DataError(
            f"{place} is another in every line, so that no sequence has two steps. Leave out "
            "--sequence-id, or name the column that is equal in all lines of a sequence."
        )
    return sequence


def _one_label_each(sequence: np.ndarray, labels: np.ndarray, place: Place) -> np.ndarray:
    """Returns the label of each sequence, which all its lines have."""
    first = np.unique(sequence, return_index=True)[1]
    differs = labels != labels[first][sequence]
    if differs.any():
        mixed = np.unique(sequence[differs])
        begins = np.zeros(len(labels), bool)
        begins[first[mixed]] = True
        raise DataError(
            f"{place} changes within a sequence: in {len(mixed)} of {len(first)} sequences, the "
            f"first of which begins {place.at(begins)}; expected one label a sequence. Correct "
            "these lines, or give these sequences other identifiers."
        )
    check_classes(labels[first], place)
    return labels[first]
