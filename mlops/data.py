"""Datasets: checked, split and fingerprinted rows.

The split belongs to the dataset, not to a sweep. A row's own content, hashed with the split seed,
gives u in [0, 1): below 0.2 it is a test row, below 0.4 a validation row, else a training row.
These are thresholds and not ranks, so rows that are added later move no old row; the label is not
hashed, so duplicates stay on one side, whatever their labels; categories are hashed by name and
sequences without their padding; and the order of rows plays no part.
Where a source brings its own test rows they stay test, u below 0.2 makes a training row a
validation row, and a training row that also stands in test is left out of every part. A dataset
some class of which has no row in one of the three parts is refused.

Rows are kept as they came, so that what is served can be asked just what a client would ask. What
a network sees of them (categories as features, missing values filled, sequences padded) follows
from the training rows alone: `InputSpec` says how, and `Dataset.part` does it.

uint8 rows stay uint8. Every other number (ints, bools, float16, float64) becomes float32: integers
above 2**24 are rounded, and what is beyond 3.4e38 is refused as infinite.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np

from mlops.encoding import describe, encode, to_frame, to_sequences
from mlops.errors import DataError, UsageError, choose
from mlops.inputs import RANKS, Categories, InputSpec, Kind
from mlops.rows import Rows
from mlops.sources import read_rows
from mlops.sources.reading import Reading

Part = Literal["train", "val", "test"]

PARTS: Final[tuple[Part, ...]] = get_args(Part)
"""Names of the parts; the index of a name is its code in `Dataset.split`."""
LEFT_OUT: Final = 3
FORMAT: Final = 1
"""Version of split, fingerprint and stored folder; a change of any of them is another format."""


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Rows, labels and the split that belongs to them.

    Attributes:
        name: "digits", or the file's stem; [A-Za-z0-9_.-] only.
        fingerprint: 64 hex digits. Same rows in the same order and same split seed: same
            fingerprint, on every machine, whatever the name and the source.
        input: What one row is.
        class_names: Sorted: integers by value, strings by code point, "False" before "True".
        x: The rows as they came, (n, ...) of dtype `input.dtype`; may be a read-only memory map.
            Of shape (n, *input.shape), but for a table with columns: there (n, columns), a missing
            value is NaN, and a category is its index in `categories`. Sequences of unequal length
            are padded with 0.0 (`InputSpec.ragged`).
        y: (n,) int64, index into `class_names`.
        split: (n,) uint8: 0 train, 1 val, 2 test, 3 left out.
        split_seed: Seed of the split.
        source: "digits (scikit-learn)", "keras.datasets.mnist", or the file's name.
        categories: For each column of a table the names of all its categories; None for numbers.
        notes: What was done to the rows that their owner must know; not stored.
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
    categories: Categories | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    def part(self, name: Part) -> tuple[np.ndarray, np.ndarray]:
        """Returns one part, in stored order: x (n, *input.shape) as a network takes it, and y."""
        index = self._index(name)
        return encode(self.x[index], self.input, self.categories), self.y[index]

    def requests(self, name: Part) -> Any:
        """Returns one part's rows as a client sends them.

        A DataFrame for a table with columns, a list of arrays (time, features) for sequences of
        unequal length, else x.
        """
        x = self.x[self._index(name)]
        if self.input.columns is not None:
            return to_frame(x, self.input.columns, self.categories)
        return to_sequences(x) if self.input.ragged else x

    def labels(self, name: Part) -> np.ndarray:
        """Returns one part's y, (n,) int64."""
        labels: np.ndarray = self.y[self._index(name)]
        return labels

    def class_counts(self, name: Part) -> list[int]:
        """Returns the rows of each class in one part."""
        counts: list[int] = np.bincount(self.labels(name), minlength=len(self.class_names)).tolist()
        return counts

    def counts(self) -> dict[str, int]:
        """Returns the number of rows of each part."""
        return {name: int((self.split == code).sum()) for code, name in enumerate(PARTS[:3])}

    def _index(self, name: Part) -> np.ndarray:
        return np.flatnonzero(self.split == PARTS.index(name))


def load_dataset(
    name: str,
    *,
    kind: Kind | None = None,
    label: str | None = None,
    categorical: tuple[str, ...] = (),
    sequence_id: str | None = None,
    image_size: tuple[int, int] | None = None,
    data_dir: Path | str | None = None,
    split_seed: int = 0,
) -> Dataset:
    """Loads, checks, splits and fingerprints a dataset; writes nothing.

    Args:
        name: digits, cifar10, mnist, fashion_mnist; the path of a .csv or .parquet table, or of an
            .npz file (x and y, with `lengths` for sequences of unequal length, or x_train, y_train,
            x_test and y_test); or a folder of pictures with one subfolder a class.
        kind: Read rows as this instead of by rank (2 table, 3 sequence, 4 image). An image is
            read as a sequence of its pixel rows, a flat row as a sequence of single values.
        label: Column of the classes; for tables, and only there.
        categorical: Columns to take as categories although they hold numbers; for tables.
        sequence_id: Column that says which sequence a line belongs to; for tables.
        image_size: (height, width) in pixels to bring pictures to; for folders.
        data_dir: Folder that holds the archives of a named dataset, instead of the network.
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
    folder = None if data_dir is None else Path(data_dir)
    rows = read_rows(name, Reading(label, tuple(categorical), sequence_id, image_size, folder))
    kind, x = _as_kind(rows, kind)
    classes, y = np.unique(rows.labels, return_inverse=True)
    y = y.astype("<i8")
    class_names = tuple(str(value) for value in classes.tolist())
    split = _split(_row_contents(x, rows.ragged, rows.categories), rows.is_test, split_seed)
    _check_coverage(rows, y, split, class_names)
    train, val = (np.flatnonzero(split == PARTS.index(part)) for part in ("train", "val"))
    header = {
        "format": FORMAT,
        "kind": kind,
        "dtype": str(x.dtype),
        "shape": x.shape,
        "class_names": class_names,
        "columns": rows.columns if kind == "table" else None,
        "split_seed": split_seed,
        "split_given": rows.is_test is not None,
    }
    # Named only where they are there, so that other datasets keep their fingerprints.
    header |= {"categories": rows.categories} if rows.categories is not None else {}
    header |= {"ragged": True} if rows.ragged else {}
    return Dataset(
        name=rows.name,
        fingerprint=_fingerprint(header, x, y, rows.is_test),
        input=describe(rows, kind, x, y, train, val),
        class_names=class_names,
        x=x,
        y=y,
        split=split,
        split_seed=split_seed,
        source=rows.source,
        categories=rows.categories,
        notes=rows.notes,
    )


def count_shared(test_of: Dataset, others: Dataset) -> int:
    """Returns how many test rows of one dataset stand in another's train or val part.

    Rows are the same by content, as the split has it: categories by name, sequences without their
    padding, whatever their labels. Where rows differ in kind, dtype, shape or the columns' names
    none is shared.

    Example:
        >>> digits = load_dataset("digits")
        >>> count_shared(digits, digits), count_shared(digits, load_dataset("digits", split_seed=1))
        (0, 318)
    """
    if _layout(test_of) != _layout(others):
        return 0
    known = set(_content_digests(others, others.split < PARTS.index("test")))
    asked = _content_digests(test_of, test_of.split == PARTS.index("test"))
    return sum(digest in known for digest in asked)


def _layout(dataset: Dataset) -> tuple[Any, ...]:
    """Returns what two datasets have in common where the bytes of their rows compare."""
    spec, shape = dataset.input, dataset.x.shape[1:]
    if spec.kind == "sequence":  # of any length; ragged ones say in a feature what is padding
        shape = (shape[-1] - spec.ragged,)
    names = None if spec.columns is None else [column.name for column in spec.columns]
    return spec.kind, spec.dtype, shape, names


def _content_digests(dataset: Dataset, which: np.ndarray) -> Iterator[bytes]:
    x = dataset.x[which]
    for content in _row_contents(x, dataset.input.ragged, dataset.categories) if len(x) else ():
        yield hashlib.blake2b(content, digest_size=16).digest()


def _as_kind(rows: Rows, kind: Kind | None) -> tuple[Kind, np.ndarray]:
    """Returns the kind, and x with the rank of that kind."""
    x = rows.x
    n, rank = len(x), x.ndim
    if kind is None:
        kind = {2: "table", 3: "sequence", 4: "image"}[rank]  # type: ignore[assignment]
    only = "sequence" if rows.ragged else "table" if rows.categories is not None else kind
    if kind != only:
        what = "sequences of unequal length" if rows.ragged else "categories or missing values"
        raise DataError(
            f"{rows.where} has {what}; expected --kind {only}, got {kind}. Leave out --kind."
        )
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


def _row_contents(
    x: np.ndarray, ragged: bool, categories: Categories | None
) -> Iterator[bytes | memoryview]:
    """Yields the bytes of each row that decide its part: what stays when other rows are added."""
    if ragged:  # the longest sequence decides the padding of all
        for row in to_sequences(x):
            yield np.ascontiguousarray(row).tobytes()
        return
    if categories is not None:  # a new category moves the index of others
        x = np.concatenate(
            [_cell_contents(x[:, i], known) for i, known in enumerate(categories)], axis=1
        )
    content = x.reshape(-1).view(np.uint8).data
    size = len(content) // len(x)
    for start in range(0, len(content), size):
        yield content[start : start + size]


def _cell_contents(values: np.ndarray, known: tuple[str, ...] | None) -> np.ndarray:
    """Returns the bytes of a column's cells, (n, bytes): a number's own, a category's by name."""
    if known is None:
        return np.ascontiguousarray(values)[:, np.newaxis].view(np.uint8)
    # No name is empty: the digest of "" stands for missing.
    digests = np.frombuffer(b"".join(map(_digest, (*known, ""))), np.uint8).reshape(-1, 16)
    return digests[np.where(np.isnan(values), len(known), values).astype(np.intp)]


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _split(
    contents: Iterator[bytes | memoryview], is_test: np.ndarray | None, seed: int
) -> np.ndarray:
    """Returns (n,) uint8, the part of each row. The module's docstring states the design."""
    salt = seed.to_bytes(16, "little")
    digests = [
        hashlib.blake2b(content, digest_size=16, salt=salt, person=b"podium-split-1").digest()
        for content in contents
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
