"""Rows from .npz archives. Only the arrays that are asked for are read, pickles never.

A big array that lies in the archive uncompressed, as np.savez writes it, is not read but mapped: it
takes no memory of its own, and its file must stay as it is for as long as the rows are used.
"""

from __future__ import annotations

import math
import struct
import zipfile
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from mlops.errors import DataError
from mlops.rows import (
    Place,
    Rows,
    check_classes,
    checked_labels,
    cut_sequences,
    flat_labels,
    stored_rows,
)
from mlops.sources.files import check_start, listed, one_line, open_file, safe_name

ONE_PART = ("x", "y")
TWO_PARTS = ("x_train", "y_train", "x_test", "y_test")
SEQUENCES = ("x", "lengths", "y")

MAPPED_FROM: Final = 64 << 20
"""Bytes from which an array is mapped; a smaller one is read, and its file may change then."""

_HEADERS: Final = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npz(path: Path, mapped_from: int = MAPPED_FROM) -> Rows:
    """Reads x and y, those two and `lengths`, or the four of a given split."""
    where = repr(str(path))
    with open_file(path) as file:
        arrays = read_arrays(file, where, mapped_from)
    if "lengths" in arrays:
        return _read_sequences(arrays, path)
    x, labels, is_test = checked_arrays(arrays, where)
    return Rows(safe_name(path), path.name, where, x, labels, is_test)


def read_arrays(
    file: IO[bytes], where: str, mapped_from: int = MAPPED_FROM
) -> dict[str, np.ndarray]:
    """Reads the arrays of an .npz that make a dataset, and nothing else in it.

    Args:
        file: Open for reading; may be closed when this has returned.
        where: What messages call it.
        mapped_from: Bytes from which an uncompressed array is mapped.
    """
    check_start(file, b"PK", where, "an .npz archive", "np.savez")
    key = ""
    try:
        with np.load(file, allow_pickle=False) as archive:
            keys = _wanted_keys(archive.files, where)
            arrays = {}
            for key in keys:
                mapped = _mapped(file, archive.zip, f"{key}.npy", mapped_from)
                arrays[key] = archive[key] if mapped is None else mapped
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


def _mapped(
    file: IO[bytes], archive: zipfile.ZipFile, member: str, mapped_from: int
) -> np.ndarray | None:
    """Returns an array as a read-only map of the file; None where numpy is to read it."""
    if archive.namelist().count(member) != 1:
        return None
    info = archive.getinfo(member)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size < mapped_from:
        return None
    with archive.open(info) as stream:
        header: Any = _HEADERS.get(np.lib.format.read_magic(stream))
        if header is None:
            return None
        shape, fortran_order, dtype = header(stream)
        start = stream.tell()
        fits = 0 < math.prod(shape) * dtype.itemsize <= info.file_size - start
        if dtype.hasobject or min(shape, default=1) < 1 or not fits:
            return None
        while stream.read(1 << 20):  # at the end zipfile compares the checksum, which no map does
            pass
    # Before the content of a member stand 30 bytes, its name and what is called extra.
    file.seek(info.header_offset + 26)
    n_name, n_extra = struct.unpack("<HH", file.read(4))
    offset = info.header_offset + 30 + n_name + n_extra + start
    return np.memmap(file, dtype, "r", offset, shape, "F" if fortran_order else "C")


def _wanted_keys(found: list[str], where: str) -> tuple[str, ...]:
    for keys in (TWO_PARTS, SEQUENCES, ONE_PART):
        if set(keys) <= set(found):
            return keys
    wanted = TWO_PARTS if set(TWO_PARTS) & set(found) else ONE_PART
    missing = ", ".join(key for key in wanted if key not in found)
    raise DataError(
        f"{where} lacks the key {missing}; expected x and y, or x_train, y_train, x_test and "
        f"y_test, got {listed(found)}."
    )


def checked_arrays(
    arrays: dict[str, np.ndarray], where: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Returns x, labels and is_test of the two or the four arrays of an .npz."""
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
    _check_values(x, x_key, where)
    y = flat_labels(y, Place(where, y_key))
    if len(x) != len(y):
        raise DataError(
            f"{where}: {x_key} and {y_key} have unequal lengths, {len(x)} and {len(y)}; expected "
            "one label for each row."
        )
    return stored_rows(x, Place(where, x_key)), checked_labels(y, Place(where, y_key))


def _check_values(x: np.ndarray, key: str, where: str) -> None:
    if len(x) == 0:
        raise DataError(f"{where}: {key} has zero rows.")
    if x.size == 0:
        raise DataError(f"{where}: {key} has rows without values, shape {x.shape}.")


def _read_sequences(arrays: dict[str, np.ndarray], path: Path) -> Rows:
    """Cuts x, the steps of all sequences one after another, into sequences."""
    where = repr(str(path))
    x, y = arrays["x"], flat_labels(arrays["y"], Place(where, "y"))
    if x.ndim not in (1, 2):
        raise DataError(
            f"{where}: x has rank {x.ndim}, shape {x.shape}; expected, beside lengths, the steps "
            "of all sequences one after another, shape (steps, features). Save "
            "np.concatenate(sequences), or leave out lengths."
        )
    _check_values(x, "x", where)
    lengths = _checked_lengths(arrays["lengths"], len(x), len(y), where)
    steps = stored_rows(x.reshape(len(x), -1), Place(where, "x"))
    labels = checked_labels(y, Place(where, "y"))
    check_classes(labels, Place(where, "y"))
    x, ragged, notes = cut_sequences(steps, lengths, where)
    return Rows(safe_name(path), path.name, where, x, labels, ragged=ragged, notes=notes)


def _checked_lengths(lengths: np.ndarray, n_steps: int, n_labels: int, where: str) -> np.ndarray:
    """Returns (n,) int64 from 1 up that add up to `n_steps`."""
    place = Place(where, "lengths")
    if lengths.ndim != 1:
        raise DataError(
            f"{place} has rank {lengths.ndim}, shape {lengths.shape}; expected one length a "
            "sequence, shape (n,)."
        )
    if lengths.dtype.kind not in "iu":
        raise DataError(
            f"{place} is of dtype {lengths.dtype}; expected integers. Save lengths.astype(int)."
        )
    if len(lengths) != n_labels:
        raise DataError(
            f"{where}: lengths and y have unequal lengths, {len(lengths)} and {n_labels}; "
            "expected one label for each sequence."
        )
    place.refuse(
        lengths < 1,
        "sequences without a step",
        "; expected lengths from 1 up. Drop these sequences and their labels.",
    )
    total = sum(lengths.tolist())  # of Python's integers, which do not overflow
    if total != n_steps:
        raise DataError(
            f"{place} add up to {total} steps, and x has {n_steps}; expected equal numbers."
        )
    return lengths.astype(np.int64)
