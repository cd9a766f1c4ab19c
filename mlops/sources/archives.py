"""Rows from local copies of the archives of CIFAR-10, MNIST and Fashion-MNIST.

A file is compared with the published checksum before anything in it is parsed, and nothing is
extracted to disk. The rows are those that `keras.datasets` gives, in the same order.

Formats: cs.toronto.edu/~kriz/cifar.html describes CIFAR-10's two; that of the other two, IDX, is a
magic number, the sizes as big-endian integers of 32 bits, and the bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import pickle
import tarfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from mlops.errors import DataError
from mlops.rows import Rows
from mlops.sources.arrays import TWO_PARTS, read_arrays
from mlops.sources.files import listed, one_line, open_file
from mlops.sources.named import named_rows

Arrays = dict[str, np.ndarray]
Checksums = Mapping[str, Mapping[str, str]]
_Batch = tuple[np.ndarray, np.ndarray]

CIFAR_PYTHON: Final = "cifar-10-python.tar.gz"
CIFAR_BINARY: Final = "cifar-10-binary.tar.gz"
IDX: Final = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
"""Files in the order of `TWO_PARTS`; MNIST's and Fashion-MNIST's have the same names."""

CHECKSUMS: Final[Checksums] = {
    "cifar10": {
        CIFAR_PYTHON: "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        CIFAR_BINARY: "c32a1d4ab5d03f1284b67883e8d87530",
    },
    "mnist": {
        "mnist.npz": "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1",
        IDX[0]: "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        IDX[1]: "d53e105ee54ea40749a09fcbcd1e9432",
        IDX[2]: "9fb629c4189551a2d022fa330f9573f3",
        IDX[3]: "ec29112dd5afa0611ce80d1b7f02629c",
    },
    "fashion_mnist": {
        IDX[0]: "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        IDX[1]: "25c81989df183df01b3e8a0aad5dffbe",
        IDX[2]: "bef4ecab320f06d8554ea6380940ec79",
        IDX[3]: "bb300cfdad3c16e7a12a480ee83cd310",
    },
}
"""Of each dataset's files, as published: SHA-256 where there is one, else MD5."""


def read_archive(name: str, folder: Path, checksums: Checksums = CHECKSUMS) -> Rows:
    """Reads a named dataset from the files its authors, or Keras, hand out.

    Args:
        name: cifar10, mnist or fashion_mnist.
        folder: Holds the files, compressed as they came.
        checksums: For each dataset the SHA-256 or MD5 of each file, in hex.

    Raises:
        DataError: A file is missing, truncated or of other content; names it.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {str(folder)!r} for --data-dir.")
    form, paths = _find_form(name, folder)
    where = repr(str(paths[0]))
    with ExitStack() as stack:
        files = [stack.enter_context(open_file(path)) for path in paths]
        for file, path, published in zip(files, paths, form.files, strict=True):
            _check_sum(file, path, name, published, checksums)
        try:
            arrays = form.read(files)
        except DataError:
            raise
        except Exception as err:  # what its checksum let through fails in a dozen ways
            raise DataError(f"{where} cannot be read ({one_line(err)}). Download it anew.") from err
    return named_rows(name, paths[0].name, where, arrays)


@dataclass(frozen=True, slots=True)
class _Form:
    """One way in which a dataset is handed out.

    Attributes:
        read: From the files, open and checked, to the arrays of `TWO_PARTS`.
        files: Their names as published, in order; all are needed.
        aliases: What else the file may be called, where it is one.
    """

    read: Callable[[list[IO[bytes]]], Arrays]
    files: tuple[str, ...]
    aliases: tuple[str, ...] = ()


def _find_form(name: str, folder: Path) -> tuple[_Form, list[Path]]:
    """Returns the first form all of whose files are there, and the files."""
    choices = [
        (form, names)
        for form in _FORMS[name]
        for names in (form.files, *((alias,) for alias in form.aliases))
    ]
    for form, names in choices:
        paths = [folder / file for file in names]
        if all(path.exists() for path in paths):
            return form, paths
    one = " or ".join(", ".join(names) for _, names in choices)
    some = [file for _, names in choices for file in names if (folder / file).exists()]
    got = f"only {listed(some)}" if some else "none of them"
    raise DataError(
        f"{str(folder)!r} holds no archive of {name}; expected {one}, got {got}. Download what is "
        "missing, or name another folder by --data-dir."
    )


def _check_sum(
    file: IO[bytes], path: Path, name: str, published: str, checksums: Checksums
) -> None:
    """Compares a whole file with its published checksum, and goes back to its start."""
    expected = checksums[name][published]
    algorithm = "sha256" if len(expected) == 64 else "md5"
    try:
        found = hashlib.file_digest(
            file,  # type: ignore[arg-type]
            lambda: hashlib.new(algorithm, usedforsecurity=False),
        ).hexdigest()
    except OSError as err:
        raise DataError(f"{str(path)!r} cannot be read: {err.strerror}.") from err
    file.seek(0)
    if found == expected:
        return
    for other, sums in checksums.items():
        if sums.get(published) == found:
            raise DataError(
                f"{str(path)!r} is the file of {other}, which has the same name; expected that of "
                f"{name}. Ask for {other}, or name the folder of {name} by --data-dir."
            )
    raise DataError(
        f"{str(path)!r} is truncated, or is not the file that was published: its "
        f"{algorithm.upper()} differs; expected {expected}, got {found}. Download it anew."
    )


# CIFAR-10: a record is 1024 bytes of red, then green, then blue, each row by row.


def _read_cifar_python(files: list[IO[bytes]]) -> Arrays:
    def parse(content: IO[bytes]) -> tuple[np.ndarray, np.ndarray]:
        values = _ArraysOnly(content, encoding="bytes").load()
        # Python 2 wrote the published file, so that its keys are bytes.
        batch = {key.decode() if isinstance(key, bytes) else key: values[key] for key in values}
        return batch["data"], np.asarray(batch["labels"])

    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    return _from_batches(
        _parse_members(files[0], [f"cifar-10-batches-py/{name}" for name in names], parse)
    )


def _read_cifar_binary(files: list[IO[bytes]]) -> Arrays:
    def parse(content: IO[bytes]) -> tuple[np.ndarray, np.ndarray]:
        records = np.frombuffer(content.read(), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
        return records[:, 1:], records[:, 0]

    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    return _from_batches(
        _parse_members(files[0], [f"cifar-10-batches-bin/{name}" for name in names], parse)
    )


def _parse_members(
    file: IO[bytes], names: list[str], parse: Callable[[IO[bytes]], _Batch]
) -> list[_Batch]:
    """Returns what `parse` makes of members of a .tar.gz, which are known by their exact names."""
    parsed = {}
    with tarfile.open(fileobj=file, mode="r:gz") as archive:
        for info in archive:  # in the archive's order: going back means unpacking from its start
            content = archive.extractfile(info) if info.name in names and info.isreg() else None
            if content is not None:
                parsed[info.name] = parse(content)
    missing = [name for name in names if name not in parsed]
    if missing:
        raise ValueError(f"it lacks {listed(missing)}")
    return [parsed[name] for name in names]


def _from_batches(batches: list[_Batch]) -> Arrays:
    """The last of the six batches holds the test rows."""
    images = [data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for data, _ in batches]
    labels = [labels for _, labels in batches]
    values = (np.concatenate(images[:5]), np.concatenate(labels[:5]), images[5], labels[5])
    return dict(zip(TWO_PARTS, values, strict=True))


class _ArraysOnly(pickle.Unpickler):
    """Reads a pickle of arrays, bytes, text, lists and dicts; refuses every other object."""

    _ALLOWED: Final[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"its pickle asks for {module}.{name}") from None


# MNIST and Fashion-MNIST


def _read_idx_files(files: list[IO[bytes]]) -> Arrays:
    ranks = (3, 1, 3, 1)
    values = [_read_idx(file, rank) for file, rank in zip(files, ranks, strict=True)]
    return dict(zip(TWO_PARTS, values, strict=True))


def _read_idx(file: IO[bytes], rank: int) -> np.ndarray:
    """Returns the bytes of an IDX file: 0, 0, 8 (unsigned bytes), the rank, sizes, values."""
    with gzip.open(file) as stream:
        content = stream.read()
    if content[:4] != bytes([0, 0, 8, rank]):
        raise ValueError(f"its magic number is not that of unsigned bytes of rank {rank}")
    shape = np.frombuffer(content, ">u4", rank, offset=4).tolist()
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _read_keras_npz(files: list[IO[bytes]]) -> Arrays:
    return read_arrays(files[0], repr(files[0].name))


_FORMS: Final = {
    "cifar10": (
        _Form(
            _read_cifar_python,
            (CIFAR_PYTHON,),
            # What keras.datasets keeps it as: now, and before version 3.
            ("cifar-10-batches-py-target_archive", "cifar-10-batches-py.tar.gz"),
        ),
        _Form(_read_cifar_binary, (CIFAR_BINARY,)),
    ),
    "mnist": (_Form(_read_keras_npz, ("mnist.npz",)), _Form(_read_idx_files, IDX)),
    "fashion_mnist": (_Form(_read_idx_files, IDX),),
}
