"""Datasets: checked, split and fingerprinted rows, and the store that keeps them.

The split belongs to the dataset, not to a sweep. A row's own content, hashed with the split seed,
gives u in [0, 1): below 0.2 it is a test row, below 0.4 a validation row, else a training row.
These are thresholds and not ranks, so rows that are added later move no old row; the label is not
hashed, so duplicates stay on one side, whatever their labels; and the order of rows plays no part.
Where a source brings its own test rows they stay test, u below 0.2 makes a training row a
validation row, and a training row that also stands in test is left out of every part. A dataset
some class of which has no row in one of the three parts is refused.

uint8 rows stay uint8. Every other number (ints, bools, float16, float64) becomes float32: integers
above 2**24 are rounded, and what is beyond 3.4e38 is refused as infinite.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import urllib.parse
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np

from mlops.errors import DataError, MlopsError, UsageError, choose
from mlops.rows import Rows
from mlops.sources import read_rows

Kind = Literal["table", "sequence", "image"]
Part = Literal["train", "val", "test"]

PARTS: Final[tuple[Part, ...]] = get_args(Part)
"""Names of the parts; the index of a name is its code in `Dataset.split`."""
LEFT_OUT: Final = 3
FORMAT: Final = 1
"""Version of split, fingerprint and stored folder; a change of any of them is another format."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What one row is, and what the training rows look like; travels in every packaged model.

    Attributes:
        kind: How rows are to be read.
        shape: Of one row: (features,), (time, features) or (height, width, channels).
        dtype: "uint8" or "float32": what rows are stored and sent in.
        columns: Names of the features in order, for tables from CSV.
        low: Minimum over the training rows, in the data's own units.
        high: Maximum over the training rows, in the data's own units.
        mean: Over the training rows, one for each index of the last axis.
        variance: Population variance, likewise, in squared units.
    """

    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    columns: tuple[str, ...] | None
    low: float
    high: float
    mean: tuple[float, ...]
    variance: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns plain values that JSON keeps exactly."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, value: Any) -> InputSpec:
        """Reads what `to_json` gave.

        Raises:
            DataError: It is anything else; it may come from a stranger's model.
        """
        try:
            spec = cls(
                kind=value["kind"],
                shape=tuple(int(size) for size in value["shape"]),
                dtype=value["dtype"],
                columns=None if value["columns"] is None else tuple(map(str, value["columns"])),
                low=float(value["low"]),
                high=float(value["high"]),
                mean=tuple(map(float, value["mean"])),
                variance=tuple(map(float, value["variance"])),
            )
            sound = (
                spec.kind in RANKS
                and len(spec.shape) == RANKS[spec.kind] - 1
                and min(spec.shape) > 0
                and spec.dtype in ("uint8", "float32")
                and (spec.columns is None or spec.shape == (len(spec.columns),))
                and len(spec.mean) == len(spec.variance) == spec.shape[-1]
                and bool(np.isfinite([spec.low, spec.high, *spec.mean, *spec.variance]).all())
            )
        except (KeyError, TypeError, ValueError, OverflowError) as err:
            raise DataError(f"not an input specification: {type(err).__name__} {err}.") from err
        if not sound:
            raise DataError("not an input specification: its values do not fit one another.")
        return spec


RANKS: Final[dict[str, int]] = {"table": 2, "sequence": 3, "image": 4}


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Rows, labels and the split that belongs to them.

    Attributes:
        name: "digits", or the file's stem; [A-Za-z0-9_.-] only.
        fingerprint: 64 hex digits. Same rows in the same order and same split seed: same
            fingerprint, on every machine, whatever the name and the source.
        input: What one row is.
        class_names: Sorted: integers by value, strings by code point, "False" before "True".
        x: (n, *shape) of dtype `input.dtype`; may be a read-only memory map.
        y: (n,) int64, index into `class_names`.
        split: (n,) uint8: 0 train, 1 val, 2 test, 3 left out.
        split_seed: Seed of the split.
        source: "digits (scikit-learn)", "keras.datasets.mnist", or the file's name.
    """

    name: str
    fingerprint: str
    input: InputSpec
    class_names: tuple[str, ...]
    x: np.ndarray = field(repr=False)
    y: np.ndarray = field(repr=False)
    split: np.ndarray = field(repr=False)
    split_seed: int
    source: str

    def part(self, name: Part) -> tuple[np.ndarray, np.ndarray]:
        """Returns copies of x and y of one part, in stored order."""
        index = np.flatnonzero(self.split == PARTS.index(name))
        return self.x[index], self.y[index]

    def counts(self) -> dict[str, int]:
        """Returns the number of rows of each part."""
        return {name: int((self.split == code).sum()) for code, name in enumerate(PARTS[:3])}


def load_dataset(
    name: str, *, kind: Kind | None = None, label: str | None = None, split_seed: int = 0
) -> Dataset:
    """Loads, checks, splits and fingerprints a dataset; writes nothing.

    Args:
        name: digits, cifar10, mnist, fashion_mnist, or the path of an .npz file (x and y, or
            x_train, y_train, x_test and y_test) or of a .csv file.
        kind: Read rows as this instead of by rank (2 table, 3 sequence, 4 image). An image is
            read as a sequence of its pixel rows, a flat row as a sequence of single values.
        label: Column of the labels; for CSV, and only there.
        split_seed: From 0 to 2**64 - 1. Another seed is another dataset, with another fingerprint.

    Raises:
        UsageError: No such dataset, kind or column.
        DataError: The data cannot be used; one line says file, key, count and first index.

    Example:
        >>> load_dataset("digits").input.shape
        (8, 8, 1)
    """
    if kind is not None and kind not in RANKS:
        raise UsageError(f"there is no kind {kind!r}; {choose(kind, RANKS)}")
    if not 0 <= split_seed < 2**64:
        raise UsageError(
            f"--split-seed is out of range; expected 0 to 2**64 - 1, got {split_seed}."
        )
    rows = read_rows(name, label)
    kind, x = _as_kind(rows, kind)
    classes, y = np.unique(rows.labels, return_inverse=True)
    y = y.astype("<i8")
    class_names = tuple(str(value) for value in classes.tolist())
    split = _split(x, rows.is_test, split_seed)
    _check_coverage(rows, y, split, class_names)
    columns = rows.columns if kind == "table" else None
    header = {
        "format": FORMAT,
        "kind": kind,
        "dtype": str(x.dtype),
        "shape": x.shape,
        "class_names": class_names,
        "columns": columns,
        "split_seed": split_seed,
        "split_given": rows.is_test is not None,
    }
    return Dataset(
        name=rows.name,
        fingerprint=_fingerprint(header, x, y, rows.is_test),
        input=_describe(x, np.flatnonzero(split == 0), kind, columns),
        class_names=class_names,
        x=x,
        y=y,
        split=split,
        split_seed=split_seed,
        source=rows.source,
    )


def _as_kind(rows: Rows, kind: Kind | None) -> tuple[Kind, np.ndarray]:
    """Returns the kind, and x with the rank of that kind."""
    x = rows.x
    n, rank = len(x), x.ndim
    if kind is None:
        kind = {2: "table", 3: "sequence", 4: "image"}[rank]  # type: ignore[assignment]
    if kind == "table":
        return "table", x.reshape(n, -1)
    if kind == "sequence":
        return "sequence", x[..., np.newaxis] if rank == 2 else x.reshape(n, x.shape[1], -1)
    if rank == 2:
        raise DataError(
            f"{rows.where}: x cannot be read as images; expected rank 3 or 4, got rank 2, shape "
            f"{x.shape}. Leave out --kind image, or save x as (n, height, width, channels)."
        )
    x = x[..., np.newaxis] if rank == 3 else x
    if x.shape[-1] > 4:
        raise DataError(
            f"{rows.where}: x has images of {x.shape[-1]} channels; expected 1 to 4, got shape "
            f"{x.shape}. Save the channels last (np.moveaxis(x, 1, -1)), or use --kind sequence."
        )
    return "image", x


def _split(x: np.ndarray, is_test: np.ndarray | None, seed: int) -> np.ndarray:
    """Returns (n,) uint8, the part of each row. The module's docstring states the design."""
    content = x.reshape(-1).view(np.uint8).data
    size = len(content) // len(x)
    salt = seed.to_bytes(16, "little")
    digests = [
        hashlib.blake2b(
            content[i : i + size], digest_size=16, salt=salt, person=b"podium-split-1"
        ).digest()
        for i in range(0, len(content), size)
    ]
    # 53 of the first 64 bits: just what a float64 holds, so u is below 1 and the same everywhere.
    u = (np.frombuffer(b"".join(digests), "<u8")[::2] >> np.uint64(11)) * 2.0**-53
    if is_test is None:
        return np.select([u < 0.2, u < 0.4], [2, 1], 0).astype(np.uint8)
    in_test = {digest for digest, test in zip(digests, is_test.tolist(), strict=True) if test}
    repeated = np.fromiter((digest in in_test for digest in digests), bool, len(digests))
    return np.select([is_test, repeated, u < 0.2], [2, LEFT_OUT, 1], 0).astype(np.uint8)


def _check_coverage(
    rows: Rows, y: np.ndarray, split: np.ndarray, class_names: tuple[str, ...]
) -> None:
    n_rows = np.bincount(y, minlength=len(class_names))
    for code, part in enumerate(PARTS):
        counts = np.bincount(y[split == code], minlength=len(class_names))
        empty = np.flatnonzero(counts == 0)
        if not len(empty):
            continue
        others = f" (and {len(empty) - 1} more classes)" if len(empty) > 1 else ""
        advice = "Add rows of it, or try another --split-seed."
        if rows.is_test is not None and part == "test":
            advice = "Add rows of it to the test rows."
        n = int(n_rows[empty[0]])
        raise DataError(
            f"{rows.where}: too few rows to split: class {class_names[empty[0]]!r} has {n} "
            f"{'row' if n == 1 else 'rows'}, none of them in the {part} part{others}; expected "
            f"each class in each part. {advice}"
        )


def _fingerprint(
    header: dict[str, Any], x: np.ndarray, y: np.ndarray, is_test: np.ndarray | None
) -> str:
    # The header gives every length that follows, so no two datasets share the hashed bytes.
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode("ascii") + b"\n")
    for array in (x, y) if is_test is None else (x, y, is_test):
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _describe(
    x: np.ndarray, train: np.ndarray, kind: Kind, columns: tuple[str, ...] | None
) -> InputSpec:
    """Returns the spec, with statistics in float64 over the rows `train` (indices)."""
    low, high, count = np.inf, -np.inf, 0
    total = np.zeros(x.shape[-1])
    for values in _chunks(x, train):
        low, high = min(low, values.min()), max(high, values.max())
        total += values.sum(axis=0)
        count += len(values)
    mean = total / count
    squares = np.zeros(x.shape[-1])
    for values in _chunks(x, train):
        squares += np.square(values - mean).sum(axis=0)
    return InputSpec(
        kind=kind,
        shape=tuple(x.shape[1:]),
        dtype=str(x.dtype),
        columns=columns,
        low=float(low),
        high=float(high),
        mean=tuple(mean.tolist()),
        variance=tuple((squares / count).tolist()),
    )


def _chunks(x: np.ndarray, index: np.ndarray) -> Iterator[np.ndarray]:
    """Yields rows as (values, last axis) in float64, at most 4096 rows and about 32 MiB at once."""
    step = max(1, min(4096, 2**22 * len(x) // x.size))
    for start in range(0, len(index), step):
        yield x[index[start : start + step]].astype(np.float64).reshape(-1, x.shape[-1])


class DatasetStore:
    """Keeps datasets in a folder, each once, under its fingerprint.

    A dataset is a folder of x.npy, y.npy, split.npy and, written last, dataset.json. It is written
    beside its place, synced and renamed: a reader sees all of it or nothing, and of two writers
    one wins. A crash leaves at most a folder `.writing-...`, which nothing reads.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, dataset: Dataset) -> None:
        """Stores the dataset; does nothing where its fingerprint is there, under whatever name.

        Raises:
            MlopsError: The store cannot be written.
        """
        if self.has(dataset.fingerprint):
            return
        record = {
            "format": FORMAT,
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "input": dataset.input.to_json(),
            "class_names": list(dataset.class_names),
            "n_rows": len(dataset.x),
            "split_seed": dataset.split_seed,
            "source": dataset.source,
        }
        writing = self._folder / f".writing-{dataset.fingerprint[:12]}-{uuid.uuid4().hex}"
        try:
            writing.mkdir(parents=True)
            for key in ("x", "y", "split"):
                with (writing / f"{key}.npy").open("wb") as file:
                    np.save(file, getattr(dataset, key), allow_pickle=False)
                    file.flush()
                    os.fsync(file.fileno())
            with (writing / "dataset.json").open("w", encoding="utf-8") as text:
                json.dump(record, text, indent=1)
                text.flush()
                os.fsync(text.fileno())
            _sync_folder(writing)
            writing.rename(self._folder / dataset.fingerprint)
            _sync_folder(self._folder)
        except OSError as err:
            if not self.has(dataset.fingerprint):  # else another process won the race
                raise MlopsError(
                    f"the dataset store {str(self._folder)!r} cannot be written: "
                    f"{err.strerror or err}. Check its rights and free space."
                ) from err
        finally:
            shutil.rmtree(writing, ignore_errors=True)

    def get(self, fingerprint: str) -> Dataset:
        """Returns the stored dataset, its x a read-only memory map.

        Raises:
            DataError: It is not there, or it is damaged.
        """
        if not self.has(fingerprint):
            raise DataError(
                f"the dataset store {str(self._folder)!r} has no dataset {fingerprint!r}. Set "
                "MLOPS_DATASETS_URL to the store that the sweep used, or sweep the data again "
                "to store it."
            )
        folder = self._folder / fingerprint
        try:
            record = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
            if record["format"] != FORMAT:
                raise ValueError(f"format; expected {FORMAT}, got {record['format']!r}")
            dataset = Dataset(
                name=record["name"],
                fingerprint=record["fingerprint"],
                input=InputSpec.from_json(record["input"]),
                class_names=tuple(record["class_names"]),
                x=np.load(folder / "x.npy", mmap_mode="r", allow_pickle=False),
                y=np.load(folder / "y.npy", allow_pickle=False),
                split=np.load(folder / "split.npy", allow_pickle=False),
                split_seed=record["split_seed"],
                source=record["source"],
            )
            n = record["n_rows"]
        except (DataError, OSError, EOFError, ValueError, KeyError, TypeError) as err:
            raise _damaged(folder, f"{type(err).__name__}: {err}") from err
        for what, got, wanted in (
            ("fingerprint", dataset.fingerprint, fingerprint),
            ("shape of x", dataset.x.shape, (n, *dataset.input.shape)),
            ("dtype of x", str(dataset.x.dtype), dataset.input.dtype),
            ("shape of y", dataset.y.shape, (n,)),
            ("dtype of y", str(dataset.y.dtype), "int64"),
            ("shape of split", dataset.split.shape, (n,)),
            ("dtype of split", str(dataset.split.dtype), "uint8"),
        ):
            if got != wanted:
                raise _damaged(folder, f"{what}; expected {wanted}, got {got}")
        return dataset

    def has(self, fingerprint: str) -> bool:
        """Whether the whole dataset is stored here."""
        # The pattern also keeps a fingerprint such as "../x" from naming a folder elsewhere.
        if not re.fullmatch("[0-9a-f]{64}", fingerprint):
            return False
        return (self._folder / fingerprint / "dataset.json").is_file()


def open_dataset_store(url: str) -> DatasetStore:
    """Returns the store in a folder, given as a path or a file:// URL; creates nothing.

    Raises:
        UsageError: Another scheme, or a file.
    """
    parts = urllib.parse.urlsplit(url)
    if "://" not in url and url:
        folder = Path(url).expanduser()
    elif parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path:
        folder = Path(urllib.parse.unquote(parts.path))
    else:  # the scheme only: the rest of a URL may hold a password
        raise UsageError(
            "this version keeps datasets in a folder; expected a path or file:///path, got "
            f"{parts.scheme or url!r}. Set MLOPS_DATASETS_URL to a folder."
        )
    folder = folder.absolute()
    if folder.exists() and not folder.is_dir():
        raise UsageError(
            f"the dataset store {str(folder)!r} is a file; expected a folder. "
            "Set MLOPS_DATASETS_URL to a folder."
        )
    return DatasetStore(folder)


def _damaged(folder: Path, cause: str) -> DataError:
    cause = " ".join(cause.split())
    return DataError(
        f"the stored dataset {str(folder)!r} is damaged, or of another version of Podium "
        f"({cause}). Move it away, and sweep the data again to store it."
    )


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":  # which cannot open a folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
