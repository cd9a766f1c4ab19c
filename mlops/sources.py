"""Where rows come from: scikit-learn's digits, `keras.datasets`, .npz files, CSV files.

Only what is asked for is read, and an archive's pickles are never opened. Errors of the parts
become one line that names the file. What rows must be, rows.py says.
"""

from __future__ import annotations

import csv
import difflib
import io
import os
import re
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from mlops.errors import DataError, UsageError, choose
from mlops.rows import Place, Rows, check_classes, checked_labels, flat_labels, stored_rows
from mlops.settings import QUIET

KERAS = ("cifar10", "mnist", "fashion_mnist")
NAMED = ("digits", *KERAS)
DOWNLOAD_TIMEOUT_S = 1800.0
ONE_PART = ("x", "y")
TWO_PARTS = ("x_train", "y_train", "x_test", "y_test")

# A child, because `import keras.datasets` imports TensorFlow.
KERAS_CHILD = """
import importlib, sys
import numpy as np
train, test = importlib.import_module("keras.datasets." + sys.argv[1]).load_data()
np.savez(sys.argv[2], x_train=train[0], y_train=train[1], x_test=test[0], y_test=test[1])
"""


def read_rows(name: str, label: str | None = None) -> Rows:
    """Reads `digits`, `cifar10`, `mnist`, `fashion_mnist`, or the .npz or .csv file at a path.

    In an .npz, the four keys that bring a split win over x and y; other keys are ignored.

    Raises:
        UsageError: No such dataset or column, or `label` without a CSV file.
        DataError: The file is not there or cannot be used.
    """
    is_csv = name.lower().endswith(".csv")
    if label is not None and not is_csv:
        raise UsageError(f"--label names a column of a CSV file, got {name!r}. Leave it out.")
    if name == "digits":
        return _read_digits()
    if name in KERAS:
        return _read_keras(name)
    if is_csv:
        return _read_csv(Path(name), label)
    if name.lower().endswith(".npz"):
        return _read_npz(Path(name))
    raise UsageError(
        f"there is no dataset {name!r}; {choose(name, NAMED)} "
        "The name of a file must end in .npz or .csv."
    )


def _read_digits() -> Rows:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = stored_rows(digits.images[..., np.newaxis], Place("digits", "x"))
    return Rows("digits", "digits (scikit-learn)", "digits", x, digits.target.astype(np.int64))


def _read_keras(name: str) -> Rows:
    with tempfile.TemporaryDirectory(prefix="podium-") as folder:
        path = Path(folder, "rows.npz")
        _fetch_keras(name, path)
        with path.open("rb") as file:
            x, labels, is_test = _checked(_read_arrays(file, name), name)
    if x.ndim == 3:
        x = x[..., np.newaxis]
    return Rows(name, f"keras.datasets.{name}", name, x, labels, is_test)


def _fetch_keras(name: str, path: Path) -> None:
    """Has a child process fetch a dataset of Keras and write it to `path`, as .npz."""
    # -P: the working folder is the user's, and a numpy.py in it is not numpy.
    command = [sys.executable, "-P", "-c", KERAS_CHILD, name, str(path)]
    env = {**QUIET, **os.environ}
    try:
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S
        )
        failed, lines = done.returncode != 0, done.stderr.split("\n")
        cause = next((line for line in reversed(lines) if line.strip()), f"exit {done.returncode}")
    except subprocess.TimeoutExpired:
        failed, cause = True, f"no end after {DOWNLOAD_TIMEOUT_S:.0f} s"
    if failed:
        raise DataError(
            f"keras.datasets.{name} could not be fetched: {_one_line(cause)}. Without a network, "
            "save it elsewhere as .npz with x_train, y_train, x_test and y_test, and pass the path."
        )


def _read_npz(path: Path) -> Rows:
    where = repr(str(path))
    with _open(path) as file:
        x, labels, is_test = _checked(_read_arrays(file, where), where)
    return Rows(_safe_name(path), path.name, where, x, labels, is_test)


def _read_arrays(file: IO[bytes], where: str) -> dict[str, np.ndarray]:
    """Reads the two or the four arrays of an .npz, and nothing else in it."""
    start = file.read(2)
    file.seek(0)
    if not start:
        raise DataError(f"{where} is empty; expected an .npz archive. Save it with np.savez.")
    if start != b"PK":
        raise DataError(f"{where} is not an .npz archive. Save it with np.savez.")
    key = ""
    try:
        with np.load(file, allow_pickle=False) as archive:
            keys = _wanted_keys(archive.files, where)
            arrays = {}
            for key in keys:
                arrays[key] = archive[key]
    except DataError:
        raise
    except zipfile.BadZipFile as err:
        raise DataError(
            f"{where} is truncated or damaged ({_one_line(err)}). Save it anew."
        ) from err
    except Exception as err:  # a damaged archive fails in a dozen ways, each vendor's own
        if "Object arrays" in str(err):
            raise DataError(
                f"{where}: {key} is an object array; expected numbers (x) or integers, strings or "
                "bools (y). Object arrays hold pickles, which are never opened: save it with "
                "another dtype."
            ) from err
        raise DataError(
            f"{where}: {key or 'the archive'} cannot be read ({_one_line(err)}). Save it anew."
        ) from err
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise DataError(f"{where}: {key} is not an array. Save the file with np.savez.")
    return arrays


def _wanted_keys(found: list[str], where: str) -> tuple[str, ...]:
    if set(TWO_PARTS) <= set(found):
        return TWO_PARTS
    if set(ONE_PART) <= set(found):
        return ONE_PART
    wanted = TWO_PARTS if set(TWO_PARTS) & set(found) else ONE_PART
    missing = ", ".join(key for key in wanted if key not in found)
    raise DataError(
        f"{where} lacks the key {missing}; expected x and y, or x_train, y_train, x_test and "
        f"y_test, got {_listed(found)}."
    )


def _checked(
    arrays: dict[str, np.ndarray], where: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Returns x, labels and is_test of what an .npz holds."""
    if set(arrays) == set(ONE_PART):
        x, y = _checked_pair(arrays, "x", "y", where)
        check_classes(y, Place(where, "y"))
        return x, y, None
    x, y = _checked_pair(arrays, "x_train", "y_train", where)
    x_test, y_test = _checked_pair(arrays, "x_test", "y_test", where)
    check_classes(y, Place(where, "y_train"))
    for key, got, wanted in (
        ("x", f"rows of shape {x_test.shape[1:]}", f"rows of shape {x.shape[1:]}"),
        ("x", f"dtype {x_test.dtype}", f"dtype {x.dtype}"),
        ("y", f"labels of kind {y_test.dtype.kind!r}", f"labels of kind {y.dtype.kind!r}"),
    ):
        if got != wanted:
            raise DataError(
                f"{where}: {key}_test differs from {key}_train; expected {wanted}, got {got}."
            )
    Place(where, "y_test").refuse(
        ~np.isin(y_test, y),
        "labels that y_train lacks",
        ". Add rows of these classes to the training rows, or drop these rows.",
    )
    is_test = np.repeat([False, True], [len(y), len(y_test)])
    return np.concatenate([x, x_test]), np.concatenate([y, y_test]), is_test


def _checked_pair(
    arrays: dict[str, np.ndarray], x_key: str, y_key: str, where: str
) -> tuple[np.ndarray, np.ndarray]:
    x, y = arrays[x_key], arrays[y_key]
    if x.ndim not in (2, 3, 4):
        raise DataError(
            f"{where}: {x_key} has rank {x.ndim}, shape {x.shape}; expected rank 2 (table), "
            "3 (n, time, features) or 4 (n, height, width, channels)."
        )
    if len(x) == 0:
        raise DataError(f"{where}: {x_key} has zero rows.")
    if x.size == 0:
        raise DataError(f"{where}: {x_key} has rows without values, shape {x.shape}.")
    y = flat_labels(y, Place(where, y_key))
    if len(x) != len(y):
        raise DataError(
            f"{where}: {x_key} and {y_key} have unequal lengths, {len(x)} and {len(y)}; expected "
            "one label for each row."
        )
    return stored_rows(x, Place(where, x_key)), checked_labels(y, Place(where, y_key))


def _read_csv(path: Path, label: str | None) -> Rows:
    where = repr(str(path))
    with _open(path) as file:
        columns, frame = _read_frame(file, where)
    label = _label_column(label, columns, where)
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
    return Rows(_safe_name(path), path.name, where, x, labels, columns=features)


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
            f"{where} is not a table: {_one_line(err)}. Give every row as many values as the "
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
        raise DataError(f"{where} has columns of the same name: {_listed(twice)}. Rename them.")


def _label_column(label: str | None, columns: list[str], where: str) -> str:
    if label is None:
        raise UsageError(f"{where} needs --label COLUMN; expected one of {_listed(columns)}.")
    if label in columns:
        return label
    near = difflib.get_close_matches(label, columns, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    if len(columns) == 1:
        hint = " Are the values separated by commas?"
    raise UsageError(
        f"{where} has no column {label!r} for --label; expected one of {_listed(columns)}.{hint}"
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


def _open(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except FileNotFoundError as err:
        raise DataError(f"there is no file {str(path)!r}.") from err
    except IsADirectoryError as err:
        raise DataError(f"{str(path)!r} is a folder; expected a file.") from err
    except OSError as err:
        raise DataError(f"{str(path)!r} cannot be read: {err.strerror}.") from err


def _safe_name(path: Path) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", path.stem).strip("-.") or "dataset"


def _one_line(cause: object) -> str:
    return " ".join(str(cause).split())[:300].rstrip(".")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return (", ".join(repr(name) for name in names[:20]) or "nothing") + more
