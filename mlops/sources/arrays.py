"""Rows from .npz archives. Only the arrays that are asked for are read, pickles never."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from mlops.errors import DataError
from mlops.rows import Place, Rows, check_classes, checked_labels, flat_labels, stored_rows
from mlops.sources.files import listed, one_line, open_file, safe_name

ONE_PART = ("x", "y")
TWO_PARTS = ("x_train", "y_train", "x_test", "y_test")


def read_npz(path: Path) -> Rows:
    where = repr(str(path))
    with open_file(path) as file:
        x, labels, is_test = checked_arrays(read_arrays(file, where), where)
    return Rows(safe_name(path), path.name, where, x, labels, is_test)


def read_arrays(file: IO[bytes], where: str) -> dict[str, np.ndarray]:
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
            f"{where} is truncated or damaged ({one_line(err)}). Save it anew."
        ) from err
    except Exception as err:  # a damaged archive fails in a dozen ways, each vendor's own
        if "Object arrays" in str(err):
            raise DataError(
                f"{where}: {key} is an object array; expected numbers (x) or integers, strings or "
                "bools (y). Object arrays hold pickles, which are never opened: save it with "
                "another dtype."
            ) from err
        raise DataError(
            f"{where}: {key or 'the archive'} cannot be read ({one_line(err)}). Save it anew."
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
        f"y_test, got {listed(found)}."
    )


def checked_arrays(
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
