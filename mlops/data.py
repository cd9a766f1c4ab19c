"""Datasets: checked, split and fingerprinted rows.

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
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, get_args

import numpy as np

from mlops.errors import DataError, UsageError, choose
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
