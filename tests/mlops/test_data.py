from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops.data import Dataset, count_shared, load_dataset
from mlops.dataset_store import DatasetStore
from mlops.errors import DataError, UsageError
from mlops.inputs import Column, InputSpec, Kind
from tests.mlops.table_files import (
    DIGITS,
    MIXED,
    PLAIN,
    N,
    changed,
    csv_file,
    four,
    labels_of,
    lines_of_sequences,
    refusal,
    rows_of,
    save,
)

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=25, deadline=None)

MIXED_TABLE = "ce21cde1436e0b2eaf9b8e9f40d4a23efca8a06e4dedca6842ee29e60114dd7f"
SEQUENCES = "9b4dfb322fbcb755215df79212ee420005c8dd6f0e919cd88d31167c29c415e0"
"""Golden, as that of the digits is."""


# Golden


def test_the_digits_have_the_fingerprint_and_the_parts_they_always_had() -> None:
    digits = load_dataset("digits")
    assert digits.fingerprint == DIGITS
    assert [len(digits.part(part)[0]) for part in ("train", "val", "test")] == [1051, 361, 385]
    assert [np.bincount(digits.part(part)[1]).tolist() for part in ("train", "val", "test")] == [
        [105, 102, 111, 99, 103, 112, 111, 101, 98, 109],
        [34, 40, 32, 36, 46, 35, 27, 40, 37, 34],
        [39, 40, 34, 48, 32, 35, 43, 38, 39, 37],
    ]


def test_the_digits_are_images_in_their_own_units() -> None:
    digits = load_dataset("digits")
    assert (digits.name, digits.source) == ("digits", "digits (scikit-learn)")
    assert digits.class_names == tuple("0123456789")
    assert digits.x.shape == (1797, 8, 8, 1)
    assert (digits.input.kind, digits.input.shape) == ("image", (8, 8, 1))
    assert (digits.input.dtype, digits.x.dtype) == ("float32", np.float32)
    assert (digits.input.low, digits.input.high) == (0.0, 16.0)
    assert digits.y.dtype == np.int64
    assert digits.split.dtype == np.uint8


def test_the_fingerprint_is_what_its_definition_says(tmp_path: Path) -> None:
    x, y = rows_of(), np.array(["b", "a"] * (N // 2))
    dataset = load_dataset(save(tmp_path / "a.npz", x=x, y=y), split_seed=7)
    header = (
        '{"class_names":["a","b"],"columns":null,"dtype":"float32","format":1,"kind":"table",'
        '"shape":[120,4],"split_given":false,"split_seed":7}\n'
    )
    codes = np.array([1, 0] * (N // 2), "<i8")
    expected = hashlib.sha256(header.encode() + x.astype("<f4").tobytes() + codes.tobytes())
    assert dataset.fingerprint == expected.hexdigest()


def test_mixed_tables_and_sequences_keep_their_fingerprints(tmp_path: Path) -> None:
    table = load_dataset(csv_file(tmp_path / "a.csv", MIXED), label="answer")
    assert table.fingerprint == MIXED_TABLE
    lines = lines_of_sequences([3 + i % 5 for i in range(60)])
    path = csv_file(tmp_path / "b.csv", lines)
    sequences = load_dataset(path, label="answer", sequence_id="recording")
    assert sequences.fingerprint == SEQUENCES


@few
@given(row=st.integers(0, N - 1), column=st.integers(0, 5))
def test_the_fingerprint_changes_with_any_cell_of_a_mixed_table(
    tmp_path_factory: pytest.TempPathFactory, row: int, column: int
) -> None:
    lines = [line.split(",") for line in MIXED.splitlines()]
    others = ["99", "98", "False", "violet", "oval", "ja"]
    if lines[row + 1][column] == others[column]:
        others[2], others[5] = "True", "no"
    lines[row + 1][column] = others[column]
    path = tmp_path_factory.mktemp("rows") / "a.csv"
    text = "\n".join(",".join(line) for line in lines)
    changed_cell = load_dataset(csv_file(path, text), label="answer")
    assert changed_cell.fingerprint != MIXED_TABLE


# The split


def test_the_split_is_what_its_definition_says() -> None:
    digits = load_dataset("digits", split_seed=3)
    salt = (3).to_bytes(16, "little")
    for row, code in zip(digits.x[:200], digits.split[:200], strict=True):
        digest = hashlib.blake2b(
            row.tobytes(), digest_size=16, salt=salt, person=b"podium-split-1"
        ).digest()
        u = int.from_bytes(digest[:8], "little") / 2**64
        assert code == (2 if u < 0.2 else 1 if u < 0.4 else 0)


@few
@given(seed=seeds, n_more=st.integers(1, 200))
def test_rows_that_are_added_move_no_old_row(
    tmp_path_factory: pytest.TempPathFactory, seed: int, n_more: int
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    x, more = rows_of(seed=seed), rows_of(n=n_more, seed=seed + 1)
    old = load_dataset(save(folder / "a.npz", x=x, y=labels_of()), split_seed=seed)
    both = {"x": np.concatenate([x, more]), "y": np.concatenate([labels_of(), labels_of(n_more)])}
    new = load_dataset(save(folder / "a.npz", **both), split_seed=seed)
    np.testing.assert_array_equal(new.split[:N], old.split)


@few
@given(seed=seeds)
def test_the_order_of_rows_plays_no_part(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    order = np.random.default_rng(seed).permutation(N)
    x, y = rows_of(seed=seed), labels_of()
    plain = load_dataset(save(folder / "a.npz", x=x, y=y))
    shuffled = load_dataset(save(folder / "a.npz", x=x[order], y=y[order]))
    np.testing.assert_array_equal(shuffled.split, plain.split[order])


@few
@given(seed=seeds)
def test_duplicates_stay_on_one_side_whatever_their_labels(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    x = rows_of(seed=seed)
    x[:20] = 0.0
    x[5:10] = -0.0  # the same number, in other bytes
    copies = np.random.default_rng(seed).integers(0, N, 2 * N)
    both = {"x": np.concatenate([x, x[copies]]), "y": labels_of(3 * N, n_classes=3)}
    dataset = load_dataset(save(folder / "a.npz", **both))
    np.testing.assert_array_equal(dataset.split[N:], dataset.split[:N][copies])
    assert len(set(dataset.split[:20].tolist())) == 1


def test_another_split_seed_gives_other_parts_and_another_fingerprint() -> None:
    one, other = load_dataset("digits", split_seed=1), load_dataset("digits", split_seed=2)
    assert one.fingerprint != other.fingerprint
    assert 0.3 < np.mean(one.split == other.split) < 0.6  # 0.44 where they are independent
    np.testing.assert_array_equal(one.x, other.x)


def test_the_kind_of_reading_moves_no_row() -> None:
    image, table = load_dataset("digits"), load_dataset("digits", kind="table")
    np.testing.assert_array_equal(image.split, table.split)
    assert image.fingerprint != table.fingerprint


@few
@given(seed=seeds, data=st.data())
def test_the_fingerprint_changes_with_any_byte(
    tmp_path_factory: pytest.TempPathFactory, seed: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    x = np.random.default_rng(seed).integers(0, 256, (N, 4), np.uint8)
    y = labels_of(n_classes=3)
    plain = load_dataset(save(folder / "a.npz", x=x, y=y), split_seed=1)
    flat = data.draw(st.integers(0, x.size - 1))
    bit = np.uint8(1 << data.draw(st.integers(0, 7)))
    row = data.draw(st.integers(0, N - 1))
    other_x = save(folder / "x.npz", x=changed(x, divmod(flat, 4), x.flat[flat] ^ bit), y=y)
    other_y = save(folder / "y.npz", x=x, y=changed(y, row, (y[row] + 1) % 3))
    assert load_dataset(other_x, split_seed=1).fingerprint != plain.fingerprint
    assert load_dataset(other_y, split_seed=1).fingerprint != plain.fingerprint


def test_the_fingerprint_ignores_the_name_and_how_numbers_were_saved(tmp_path: Path) -> None:
    x = rows_of().astype(np.float32)
    one = load_dataset(save(tmp_path / "one.npz", x=x, y=labels_of()))
    fortran = np.asfortranarray(x.astype(">f8"))
    two = load_dataset(save(tmp_path / "two.npz", x=fortran, y=labels_of().astype(">u2")))
    assert (one.name, two.name) == ("one", "two")
    assert one.fingerprint == two.fingerprint


def test_a_given_split_is_another_fingerprint_and_keeps_its_test_rows(tmp_path: Path) -> None:
    given_split = load_dataset(save(tmp_path / "a.npz", **four()))
    x, y = np.concatenate([rows_of(), rows_of(n=30, seed=1)]), np.r_[labels_of(), labels_of(30)]
    plain = load_dataset(save(tmp_path / "b.npz", x=x, y=y))
    assert given_split.fingerprint != plain.fingerprint
    np.testing.assert_array_equal(given_split.split == 2, np.arange(N + 30) >= N)
    # u < 0.2 made these test rows; here, of the training rows, the same rows become validation.
    np.testing.assert_array_equal(given_split.split[:N] == 1, plain.split[:N] == 2)
    np.testing.assert_array_equal(given_split.part("test")[0], rows_of(n=30, seed=1).astype("f4"))


def test_a_training_row_that_stands_in_test_is_left_out(tmp_path: Path) -> None:
    x_test = changed(rows_of(n=30, seed=1), slice(0, 2), rows_of()[[3, 50]])
    dataset = load_dataset(save(tmp_path / "a.npz", **four(x_test=x_test)))
    assert np.flatnonzero(dataset.split == 3).tolist() == [3, 50]
    assert (dataset.split[N:] == 2).all()
    parts = [len(dataset.part(part)[0]) for part in ("train", "val", "test")]
    assert sum(parts) == N + 30 - 2


@pytest.mark.parametrize(
    ("labels", "fragments"),
    [
        (["c"] * 2, ("class 'c' has 2 rows, none of them in the", "try another --split-seed")),
        (["c"], ("class 'c' has 1 row, none of them in the", "each class in each part")),
        (
            [f"c{i}" for i in range(60)],
            ("has 1 row, none", "more classes); expected each class in each part"),
        ),
    ],
)
def test_a_class_with_too_few_rows_to_split_is_named(
    tmp_path: Path, labels: list[str], fragments: tuple[str, ...]
) -> None:
    y = np.array(labels + ["a", "b"] * N)[:N]
    message = refusal(DataError, lambda: load_dataset(save(tmp_path / "a.npz", x=rows_of(), y=y)))
    assert "too few rows to split" in message
    for fragment in fragments:
        assert fragment in message


def test_a_class_that_the_given_test_rows_lack_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", **four(y_train=labels_of(n_classes=3)))
    message = refusal(DataError, lambda: load_dataset(path))
    assert "class '2' has 40 rows, none of them in the test part" in message
    assert "Add rows of it to the test rows." in message


def test_seventy_thousand_rows_are_split_in_seconds(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (70_000, 28, 28, 1), np.uint8)
    path = save(tmp_path / "a.npz", x=x, y=labels_of(70_000, 10))
    started_s = time.process_time()
    dataset = load_dataset(path)
    assert time.process_time() - started_s < 10.0
    share = np.bincount(dataset.split, minlength=4) / 70_000
    np.testing.assert_allclose(share, [0.6, 0.2, 0.2, 0.0], atol=0.01)


@few
@given(seed=seeds, data=st.data())
def test_lines_with_new_categories_and_missing_values_move_no_old_line(
    tmp_path_factory: pytest.TempPathFactory, seed: int, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.csv"
    old = load_dataset(csv_file(path, MIXED), label="answer", split_seed=seed)
    colours = data.draw(st.lists(st.text("abz ßé", min_size=1), min_size=1, max_size=9))
    lines = [f'{i},,{i % 2 == 0},"{colour}",oval,ja' for i, colour in enumerate(colours)]
    new = load_dataset(csv_file(path, MIXED + "\n".join(lines)), label="answer", split_seed=seed)
    np.testing.assert_array_equal(new.split[:N], old.split)
    assert new.fingerprint != old.fingerprint


def test_a_first_missing_number_moves_no_old_line(tmp_path: Path) -> None:
    old = load_dataset(csv_file(tmp_path / "a.csv", PLAIN), label="answer")
    new = load_dataset(csv_file(tmp_path / "a.csv", PLAIN + ",3,True,ja\n"), label="answer")
    assert (old.categories, new.categories) == (None, (None, None, None))
    np.testing.assert_array_equal(new.split[:N], old.split)


@few
@given(seed=seeds, lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_longer_sequences_move_no_old_sequence(
    tmp_path_factory: pytest.TempPathFactory, seed: int, lengths: list[int]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.csv"
    options: dict[str, Any] = {"label": "answer", "sequence_id": "recording"}
    old_lengths = [4] * 60  # of one length: without padding, and without a feature that tells of it
    old = load_dataset(csv_file(path, lines_of_sequences(old_lengths, seed)), **options)
    new = load_dataset(csv_file(path, lines_of_sequences(old_lengths + lengths, seed)), **options)
    np.testing.assert_array_equal(new.split[:60], old.split)


def test_the_split_hashes_a_category_by_its_name(tmp_path: Path) -> None:
    dataset = load_dataset(csv_file(tmp_path / "a.csv", MIXED), label="answer", split_seed=3)
    assert dataset.categories is not None
    for row, code in zip(dataset.x, dataset.split, strict=True):
        content = b""
        for value, names in zip(row, dataset.categories, strict=True):
            if names is None:
                content += b"\0\0\xc0\x7f" if np.isnan(value) else value.tobytes()
            else:
                name = "" if np.isnan(value) else names[int(value)]
                content += hashlib.blake2b(name.encode(), digest_size=16).digest()
        digest = hashlib.blake2b(
            content, digest_size=16, salt=(3).to_bytes(16, "little"), person=b"podium-split-1"
        ).digest()
        u = int.from_bytes(digest[:8], "little") / 2**64
        assert code == (2 if u < 0.2 else 1 if u < 0.4 else 0)


# What one row is


@pytest.mark.parametrize(
    ("shape", "kind", "expected_kind", "expected_shape"),
    [
        ((6,), None, "table", (6,)),
        ((6,), "sequence", "sequence", (6, 1)),
        ((6, 5), None, "sequence", (6, 5)),
        ((6, 5), "image", "image", (6, 5, 1)),
        ((6, 5), "table", "table", (30,)),
        ((6, 5, 3), None, "image", (6, 5, 3)),
        ((6, 5, 3), "sequence", "sequence", (6, 15)),
        ((6, 5, 3), "table", "table", (90,)),
        ((6, 5, 9), "sequence", "sequence", (6, 45)),
    ],
)
def test_rows_are_read_by_rank_or_as_the_kind_asked_for(
    tmp_path: Path,
    shape: tuple[int, ...],
    kind: Kind | None,
    expected_kind: str,
    expected_shape: tuple[int, ...],
) -> None:
    path = save(tmp_path / "a.npz", x=rows_of(shape), y=labels_of())
    dataset = load_dataset(path, kind=kind)
    assert (dataset.input.kind, dataset.input.shape) == (expected_kind, expected_shape)
    assert dataset.x.shape == (N, *expected_shape)
    assert len(dataset.input.mean) == len(dataset.input.variance) == expected_shape[-1]


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        ("uint8", "uint8"),
        ("bool", "float32"),
        ("int8", "float32"),
        ("uint64", "float32"),
        ("float16", "float32"),
        (">f8", "float32"),
        ("float32", "float32"),
    ],
)
def test_uint8_stays_and_every_other_number_becomes_float32(
    tmp_path: Path, dtype: str, stored: str
) -> None:
    x = np.maximum(rows_of((12,)) * 30, 0).astype(dtype)
    dataset = load_dataset(save(tmp_path / "a.npz", x=x, y=labels_of()))
    assert dataset.input.dtype == str(dataset.x.dtype) == stored
    np.testing.assert_array_equal(dataset.x, x.astype("float32"))


def test_the_statistics_are_numpys_over_the_training_rows_only(tmp_path: Path) -> None:
    x = rows_of((3, 5, 2), n=9_000) * [1.0, 100.0] + [0.0, 1e6]  # more than two chunks
    path = save(tmp_path / "a.npz", x=x, y=labels_of(9_000))
    dataset = load_dataset(path)
    train = dataset.part("train")[0].astype(np.float64)
    assert (dataset.input.low, dataset.input.high) == (train.min(), train.max())
    np.testing.assert_allclose(dataset.input.mean, train.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(dataset.input.variance, train.var(axis=(0, 1, 2)), rtol=1e-9)
    assert abs(dataset.input.mean[0] - x[..., 0].mean()) > 1e-6  # not over all rows
    assert load_dataset(path).input == dataset.input


def test_an_input_spec_comes_back_from_json_as_it_was(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "a.csv", MIXED)
    for dataset in (load_dataset("digits"), load_dataset(path, label="answer")):
        text = json.dumps(dataset.input.to_json(), allow_nan=False)
        assert InputSpec.from_json(json.loads(text)) == dataset.input


NUMBERS = {"name": "a", "categories": None, "missing": "flagged", "fill": 0.5}
COLOURS = {"name": "b", "categories": ["green", "red"], "missing": "refused", "fill": None}
SPEC = {"kind": "table", "shape": [4], "dtype": "float32", "columns": [NUMBERS, COLOURS]} | {
    "low": 0.0,
    "high": 1.0,
    "mean": [0.5, 0.0, 0.0, 0.0],
    "variance": [0.1, 1.0, 1.0, 1.0],
    "ragged": False,
    "flips": [],
}
SEQUENCE = SPEC | {"kind": "sequence", "shape": [9, 4], "columns": None, "ragged": True}
IMAGE = SPEC | {"kind": "image", "shape": [8, 8, 4], "columns": None, "flips": ["vertical"]}


def columns(**changes: Any) -> dict[str, Any]:
    """A change of the specification: of its column of numbers."""
    return {"columns": [NUMBERS | changes, COLOURS]}


def colours(**changes: Any) -> dict[str, Any]:
    return {"columns": [NUMBERS, COLOURS | changes]}


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "video"},
        {"kind": []},
        {"shape": [4, 4]},
        {"shape": [-4]},
        {"shape": []},
        {"shape": "ab"},
        {"dtype": "object"},
        {"dtype": "uint8"},
        {"columns": ["a", "b"]},
        {"columns": [NUMBERS]},
        {"columns": [NUMBERS, NUMBERS]},
        {"columns": []},
        {"mean": [0.5]},
        {"variance": [0.1, 1.0, 1.0, float("nan")]},
        {"low": None},
        {"high": float("inf")},
        {"ragged": True},
        {"ragged": 0},
        {"flips": ["vertical"]},
        {"flips": "vertical"},
        {"more": 1},
        {"kind": "sequence"},
        columns(name=""),
        columns(name=None),
        columns(fill=None),
        columns(fill="0.5"),
        columns(fill=float("inf")),
        columns(missing="refused"),
        columns(missing="allowed"),
        columns(missing=[]),
        columns(more=1),
        colours(name="a"),
        colours(fill=0.5),
        colours(categories=["red", "green"]),
        colours(categories=["red", "red"]),
        colours(categories=["", "red"]),
        colours(categories=[1, 2]),
        colours(categories=["red"]),
        colours(categories="gr"),
    ],
    ids=str,
)
def test_what_is_no_input_spec_is_refused(change: dict[str, Any]) -> None:
    message = refusal(DataError, lambda: InputSpec.from_json(SPEC | change))
    assert "not an input specification" in message


@pytest.mark.parametrize("spec", [SPEC, SEQUENCE, IMAGE], ids=["table", "sequence", "image"])
def test_what_is_an_input_spec_is_read(spec: dict[str, Any]) -> None:
    assert InputSpec.from_json(spec).to_json() == spec


@pytest.mark.parametrize(
    "spec",
    [
        SEQUENCE | {"dtype": "uint8"},
        SEQUENCE | {"shape": [9, 1], "mean": [0.0], "variance": [1.0]},
        SEQUENCE | {"flips": ["vertical"]},
        IMAGE | {"flips": ["vertical", "vertical"]},
        IMAGE | {"flips": ["diagonal"]},
        IMAGE | {"flips": [["vertical"]]},
        IMAGE | {"ragged": True},
        IMAGE | {"columns": [NUMBERS, COLOURS]},
    ],
    ids=str,
)
def test_what_fits_another_kind_is_no_input_spec(spec: dict[str, Any]) -> None:
    message = refusal(DataError, lambda: InputSpec.from_json(spec))
    assert "not an input specification" in message


def test_a_column_names_the_features_that_it_becomes() -> None:
    assert Column("a").features == ("a",)
    assert Column("a", None, "filled", 1.0).features == ("a",)
    assert Column("a", ("x", "y"), "filled").features == ("a=x", "a=y")
    assert Column("a", ("x", "y"), "flagged").features == ("a=x", "a=y", "a is missing")
    assert Column("a", None, "flagged", 1.0).features == ("a", "a is missing")
    assert [Column("a").is_plain, Column("a", ("x",)).is_plain] == [True, False]


@pytest.mark.parametrize("value", [None, [], "spec", {}, 3])
def test_what_is_not_even_a_mapping_is_no_input_spec(value: Any) -> None:
    message = refusal(DataError, lambda: InputSpec.from_json(value))
    assert "not an input specification" in message


# Labels


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (np.array([10, 9, 100]), ("9", "10", "100")),
        (np.array([0, 2**63 - 1], np.uint64), ("0", "9223372036854775807")),
        (np.array(["b", "B", "ä"]), ("B", "b", "ä")),
        (np.array(["10", "9"]), ("10", "9")),
        (np.array(["zwölf".encode(), b"elf"]), ("elf", "zwölf")),
        (np.array([True, False]), ("False", "True")),
    ],
)
def test_class_names_are_sorted_and_y_points_into_them(
    tmp_path: Path, classes: np.ndarray, names: tuple[str, ...]
) -> None:
    y = classes[labels_of(n_classes=len(classes))]
    dataset = load_dataset(save(tmp_path / "a.npz", x=rows_of(), y=y))
    assert dataset.class_names == names
    decoded = [v.decode() if isinstance(v, bytes) else str(v) for v in y.tolist()]
    assert [dataset.class_names[i] for i in dataset.y] == decoded


def test_labels_in_one_column_are_taken_as_they_are(tmp_path: Path) -> None:
    flat = load_dataset(save(tmp_path / "a.npz", x=rows_of(), y=labels_of()))
    column = load_dataset(save(tmp_path / "b.npz", x=rows_of(), y=labels_of()[:, np.newaxis]))
    assert flat.fingerprint == column.fingerprint


# Refusals of .npz files

HALF = np.arange(N) + 0.5
ONE_HOT = np.eye(3)[labels_of(n_classes=3)]
NPZ_REFUSALS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "missing y": (
        {"x": rows_of(), "labels": labels_of()},
        ("'a.npz' lacks the key y;", "got 'x', 'labels'."),
    ),
    "missing both": ({"X": rows_of()}, ("lacks the key x, y;", "got 'X'.")),
    "no keys": ({}, ("lacks the key x, y;", "got nothing.")),
    "missing x_test": (
        {key: value for key, value in four().items() if key != "x_test"},
        ("lacks the key x_test;", "'y_test'"),
    ),
    "zero rows": ({"x": rows_of(n=0), "y": labels_of(0)}, ("'a.npz': x has zero rows",)),
    "zero test rows": (four(x_test=rows_of(n=0), y_test=[]), ("x_test has zero rows",)),
    "empty rows": ({"x": np.zeros((N, 0)), "y": labels_of()}, ("x has rows without values",)),
    "unequal lengths": (
        {"x": rows_of(), "y": labels_of(7)},
        ("x and y have unequal lengths, 120 and 7",),
    ),
    "unequal test lengths": (
        four(y_test=labels_of(7)),
        ("x_test and y_test have unequal lengths, 30 and 7",),
    ),
    "shapes differ": (
        four(x_test=rows_of((5,), n=30)),
        ("x_test differs from x_train", "expected rows of shape (4,), got rows of shape (5,)"),
    ),
    "dtypes differ": (
        four(x_test=rows_of(n=30).astype(np.uint8)),
        ("x_test differs from x_train", "expected dtype float32, got dtype uint8"),
    ),
    "labels differ": (
        four(y_test=labels_of(30).astype(str)),
        ("y_test differs from y_train", "expected labels of kind 'i', got labels of kind 'U'"),
    ),
    "rank 0": ({"x": 3.0, "y": labels_of()}, ("x has rank 0, shape (); expected rank 2",)),
    "rank 1": ({"x": HALF, "y": labels_of()}, ("x has rank 1, shape (120,); expected rank 2",)),
    "rank 5": ({"x": rows_of((2, 2, 2, 2)), "y": labels_of()}, ("x has rank 5",)),
    "nan": (
        {"x": changed(rows_of(), ([7, 9], [2, 1]), np.nan), "y": labels_of()},
        ("'a.npz': x has 2 NaN and 0 infinite values, the first at x[7, 2]",),
    ),
    "infinite": (
        {"x": changed(rows_of((2, 3)), (3, 1, 2), -np.inf), "y": labels_of()},
        ("x has 0 NaN and 1 infinite values, the first at x[3, 1, 2]", "Drop or fill"),
    ),
    "beyond float32": (
        {"x": changed(rows_of(), (8, 0), 1e39), "y": labels_of()},
        ("x has 0 NaN and 1 infinite values, the first at x[8, 0]", "within float32 (3.4e38)"),
    ),
    "nan in test": (
        four(x_test=changed(rows_of(n=30), (0, 3), np.nan)),
        ("x_test has 1 NaN and 0 infinite values, the first at x_test[0, 3]",),
    ),
    "complex x": ({"x": rows_of() + 1j, "y": labels_of()}, ("x is of dtype complex128",)),
    "string x": ({"x": rows_of().astype(str), "y": labels_of()}, ("x is of dtype <U",)),
    "dates x": ({"x": rows_of().astype("M8[s]"), "y": labels_of()}, ("x is of dtype datetime64",)),
    "structured x": (
        {"x": np.zeros((N, 4), [("a", "f4")]), "y": labels_of()},
        ("x is a structured array; expected integers, floats or bools",),
    ),
    "object x": (
        {"x": rows_of().astype(object), "y": labels_of()},
        ("'a.npz': x is an object array", "never opened"),
    ),
    "object y": (
        {"x": rows_of(), "y": labels_of().astype(object)},
        ("'a.npz': y is an object array", "never opened"),
    ),
    "complex y": ({"x": rows_of(), "y": labels_of() * 1j}, ("y is of dtype complex128",)),
    "continuous": (
        {"x": rows_of(), "y": changed(labels_of().astype(float), 5, 0.5)},
        ("y has continuous labels: 1 of 120, the first at y[5]", "does classification only"),
    ),
    "continuous with nan": (
        {"x": rows_of(), "y": changed(HALF, 0, np.nan)},
        ("y has continuous labels: 119 of 120, the first at y[1]",),
    ),
    "integral floats": (
        {"x": rows_of(), "y": labels_of().astype(float)},
        ("y has whole numbers stored as of dtype float64", "y.astype(int)"),
    ),
    "nan label": (
        {"x": rows_of(), "y": changed(labels_of().astype(float), 4, np.nan)},
        ("y has NaN or infinite labels: 1 of 120, the first at y[4]",),
    ),
    "negative": (
        {"x": rows_of(), "y": changed(labels_of(), [6, 8], -1)},
        (
            "'a.npz': y has labels out of range, negative: 2 of 120, the first at y[6]",
            "-1 means unlabelled, drop these rows",
            "class names as strings",
        ),
    ),
    "beyond int64": (
        {"x": rows_of(), "y": changed(labels_of().astype(np.uint64), 2, 2**63)},
        ("y has labels out of range, beyond int64: 1 of 120, the first at y[2]",),
    ),
    "one-hot": ({"x": rows_of(), "y": ONE_HOT}, ("y looks one-hot, shape (120, 3)", "y.argmax(1)")),
    "one-hot bools": ({"x": rows_of(), "y": ONE_HOT.astype(bool)}, ("y looks one-hot",)),
    "many labels a row": (
        {"x": rows_of(), "y": np.ones((N, 3), int)},
        ("y has rank 2, shape (120, 3); expected one label a row",),
    ),
    "scalar y": ({"x": rows_of(), "y": 1}, ("y has rank 0, shape ()",)),
    "strange test label": (
        four(y_test=changed(labels_of(30), 9, 5)),
        ("y_test has labels that y_train lacks: 1 of 30, the first at y_test[9]",),
    ),
    "one class": (
        {"x": rows_of(), "y": np.full(N, 3)},
        ("y has one class only, '3'; expected two or more",),
    ),
    "one class in training": (four(y_train=np.zeros(N, int)), ("y_train has one class only, '0'",)),
    "too many classes": (
        {"x": rows_of((1,), n=10_001), "y": np.arange(10_001)},
        ("y has 10001 classes; expected at most 10000", "classification only"),
    ),
    "empty string": (
        {"x": rows_of(), "y": changed(labels_of().astype(str), 3, "")},
        ("y has empty strings as labels: 1 of 120, the first at y[3]",),
    ),
    "bytes not utf-8": (
        {"x": rows_of(), "y": np.array([b"\xff", b"a"] * (N // 2))},
        ("y has bytes that are not UTF-8",),
    ),
    "too many channels": (
        {"x": rows_of((3, 8, 8)), "y": labels_of()},
        ("images of 8 channels; expected 1 to 4", "np.moveaxis(x, 1, -1)", "--kind sequence"),
    ),
}


@pytest.mark.parametrize("case", NPZ_REFUSALS)
def test_an_archive_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    arrays, fragments = NPZ_REFUSALS[case]
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", **arrays)
    message = refusal(DataError, lambda: load_dataset("a.npz"))
    assert "'a.npz'" in message
    for fragment in fragments:
        assert fragment in message


def test_a_table_is_refused_as_images(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", x=rows_of(), y=labels_of())
    message = refusal(DataError, lambda: load_dataset(path, kind="image"))
    assert "x cannot be read as images; expected rank 3 or 4, got rank 2" in message


def test_keys_beside_the_required_ones_are_left_alone(tmp_path: Path) -> None:
    pickle = np.array([object], dtype=object)
    path = save(tmp_path / "a.npz", x=rows_of(), y=labels_of(), notes=pickle)
    assert load_dataset(path).x.shape == (N, 4)


def damage(kind: str, path: Path) -> None:
    whole = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "flipped":
        path.write_bytes(whole[:900] + bytes([whole[900] ^ 1]) + whole[901:])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("x,y\n1,2\n")
    elif kind == "single array":
        np.save(path.with_suffix(".npy"), rows_of())
        path.with_suffix(".npy").rename(path)
    elif kind == "other archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", b"\x93NUMPY\x01\x00\x05\x00junk!")
            archive.writestr("y.npy", b"\x93NUMPY\x01\x00\x05\x00junk!")
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "link to itself":
        path.unlink()
        path.symlink_to(path)
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("kind", "fragment"),
    [
        ("truncated", "is truncated or damaged"),
        ("flipped", "is truncated or damaged (Bad CRC-32"),
        ("empty", "is empty; expected an .npz archive"),
        ("text", "is not an .npz archive"),
        ("single array", "is not an .npz archive"),
        ("other archive", ": x cannot be read ("),
        ("folder", "is a folder; expected a file"),
        ("link to itself", "cannot be read: Too many levels of symbolic links"),
        ("missing", "there is no file "),
    ],
)
def test_a_file_that_is_no_whole_archive_is_refused_by_name(
    tmp_path: Path, kind: str, fragment: str
) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, x=rows_of(), y=labels_of())
    damage(kind, path)
    message = refusal(DataError, lambda: load_dataset(str(path)))
    assert repr(str(path)) in message
    assert fragment in message


def test_bytes_instead_of_an_array_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", "text")
        archive.writestr("y", "text")
    assert "x is not an array" in refusal(DataError, lambda: load_dataset(str(path)))


@few
@given(data=st.data())
def test_a_damaged_archive_loads_whole_or_is_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.npz"
    np.savez_compressed(path, x=labels_of(N * 4).reshape(N, 4), y=labels_of())
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    try:
        load_dataset(str(path))
    except DataError as err:
        assert "\n" not in str(err)


@pytest.mark.parametrize(
    ("name", "options", "fragments"),
    [
        ("digit", {}, ("no dataset 'digit'", "did you mean 'digits'?", ".csv, .parquet or .npz")),
        ("digits", {"label": "y"}, ("--label is for a table", "scikit-learn's digits. Leave it")),
        ("a.npz", {"label": "y"}, ("--label is for a table, and 'a.npz' is an .npz archive.",)),
        ("a.npz", {"categorical": ("y",)}, ("--categorical is for a table",)),
        ("a.npz", {"sequence_id": "y"}, ("--sequence-id is for a table",)),
        ("a.csv", {"image_size": (8, 8)}, ("--image-size is for a folder of pictures",)),
        ("digits", {"kind": "images"}, ("no kind 'images'", "did you mean 'image'?")),
        ("digits", {"split_seed": -1}, ("--split-seed is out of range", "got -1")),
        ("digits", {"split_seed": 2**64}, ("--split-seed is out of range",)),
    ],
)
def test_a_wrong_request_is_answered_with_the_choices(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    options: dict[str, Any],
    fragments: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text(PLAIN)
    message = refusal(UsageError, lambda: load_dataset(name, **options))
    for fragment in fragments:
        assert fragment in message


# keras.datasets, by a fake package that the child finds first


def fake_keras(folder: Path, name: str, code: str) -> str:
    package = folder / "keras" / "datasets"
    package.mkdir(parents=True)
    (folder / "keras" / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / f"{name}.py").write_text(
        "import numpy as np\n\ndef load_data():\n" + textwrap.indent(textwrap.dedent(code), "    ")
    )
    return str(folder)


@pytest.mark.parametrize(
    ("name", "shape", "read"),
    [
        ("mnist", (28, 28), (28, 28, 1)),
        ("fashion_mnist", (28, 28), (28, 28, 1)),
        ("cifar10", (32, 32, 3), (32, 32, 3)),
    ],
)
def test_a_dataset_of_keras_is_fetched_in_a_child_and_keeps_its_test_rows(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    shape: tuple[int, ...],
    read: tuple[int, ...],
) -> None:
    code = f"""
        print("Downloading data")
        rng = np.random.default_rng(0)
        def part(n):
            return rng.integers(0, 256, (n, *{shape}), np.uint8), (np.arange(n) % 10)[:, None]
        return part(400), part(50)
    """
    monkeypatch.setenv("PYTHONPATH", fake_keras(tmp_path, name, code))
    dataset = load_dataset(name)
    assert (dataset.name, dataset.source) == (name, f"keras.datasets.{name}")
    assert (dataset.input.kind, dataset.input.shape) == ("image", read)
    assert dataset.input.dtype == "uint8"
    assert np.flatnonzero(dataset.split == 2).tolist() == list(range(400, 450))
    assert "keras" not in sys.modules or not str(sys.modules["keras"].__file__).startswith(
        str(tmp_path)
    )


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (
            "raise Exception('URL fetch failure on there:\\n  Name or service not known')",
            "not known",
        ),
        ("import os; os._exit(3)", "exit 3"),
    ],
)
def test_a_dataset_of_keras_that_cannot_be_fetched_is_one_line_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, cause: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", fake_keras(tmp_path, "mnist", code))
    message = refusal(DataError, lambda: load_dataset("mnist"))
    assert message.startswith("keras.datasets.mnist could not be fetched: ")
    assert cause in message
    assert "as .npz with x_train, y_train, x_test and y_test, and pass the path" in message


# What the import costs


def test_the_import_brings_no_heavy_part() -> None:
    code = "import sys, mlops.data; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"tensorflow", "keras", "sklearn", "pandas", "scipy", "mlflow", "optuna"}
    assert heavy & set(loaded.stdout.split()) == set()
    assert "numpy" in loaded.stdout.split()


# Rows that two datasets share


def test_a_dataset_shares_no_test_row_with_itself(tmp_path: Path) -> None:
    x = np.repeat(rows_of(n=60), 3, axis=0)  # duplicates stay on one side
    path = save(tmp_path / "a.npz", x=x, y=np.random.default_rng(0).integers(0, 2, 180))
    dataset = load_dataset(path)
    assert count_shared(dataset, dataset) == 0
    given = load_dataset(save(tmp_path / "b.npz", **four(x_test=rows_of()[:30])))
    assert given.counts()["test"] == 30
    assert count_shared(given, given) == 0  # what stands in both is left out of training


@few
@given(seed=seeds)
def test_shared_rows_are_counted_as_their_bytes_say(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("shared")
    random = np.random.default_rng(seed)
    x = random.integers(0, 4, (300, 3)).astype(np.float32)
    y = np.arange(300) % 2
    one = load_dataset(save(folder / "a.npz", x=x, y=y))
    kept = random.random(300) < 0.7
    other = load_dataset(save(folder / "b.npz", x=x[kept], y=y[kept]), split_seed=1)
    known = {row.tobytes() for part in ("train", "val") for row in other.part(part)[0]}
    shared = sum(row.tobytes() in known for row in one.part("test")[0])
    assert count_shared(one, other) == shared


def test_categories_are_shared_by_name_whatever_their_index(tmp_path: Path) -> None:
    header, *lines = MIXED.splitlines()
    one = load_dataset(csv_file(tmp_path / "a.csv", MIXED), label="answer")
    # A category that comes first by name moves the index of all others.
    more = [line.replace("red", "amber") for line in lines if "red" in line]
    text = "\n".join([header, *lines, *more]) + "\n"
    other = load_dataset(csv_file(tmp_path / "b.csv", text), label="answer", split_seed=3)
    assert one.categories != other.categories
    elsewhere = load_dataset(csv_file(tmp_path / "a.csv", MIXED), label="answer", split_seed=3)
    shared = count_shared(one, elsewhere)
    assert 0 < shared < one.counts()["test"]
    assert count_shared(one, other) == shared


def test_sequences_are_shared_without_their_padding(tmp_path: Path) -> None:
    def dataset(name: str, lengths: list[int], split_seed: int) -> Dataset:
        path = csv_file(tmp_path / name, lines_of_sequences(lengths))
        return load_dataset(path, label="answer", sequence_id="recording", split_seed=split_seed)

    lengths = [3 + i % 5 for i in range(60)]
    one, elsewhere = dataset("a.csv", lengths, 0), dataset("a.csv", lengths, 3)
    longer = dataset("b.csv", [*lengths, 30, 31], 3)
    assert one.input.shape != longer.input.shape
    assert 0 < count_shared(one, elsewhere) == count_shared(one, longer)
    # Of one length, they are stored without padding.
    even, uneven = dataset("c.csv", [4] * 60, 0), dataset("d.csv", [4] * 60 + [9], 3)
    assert (even.input.ragged, uneven.input.ragged) == (False, True)
    assert 0 < count_shared(even, uneven) == count_shared(even, dataset("c.csv", [4] * 60, 3))


def test_rows_of_another_shape_dtype_or_columns_are_not_shared(tmp_path: Path) -> None:
    x, y = np.zeros((60, 4), np.uint8), labels_of(60)
    x += np.arange(60, dtype=np.uint8)[:, None]
    bytes_ = load_dataset(save(tmp_path / "a.npz", x=x, y=y))
    assert count_shared(bytes_, load_dataset(save(tmp_path / "b.npz", x=x, y=y), split_seed=1)) > 0
    for name, rows in {"c": x.astype(np.float32), "d": x[:, :2], "e": x.reshape(60, 2, 2)}.items():
        other = load_dataset(save(tmp_path / f"{name}.npz", x=rows, y=y), split_seed=1)
        assert count_shared(bytes_, other) == 0
    one = load_dataset(csv_file(tmp_path / "a.csv", PLAIN), label="answer")
    renamed = csv_file(tmp_path / "b.csv", PLAIN.replace("width", "breadth"))
    assert count_shared(one, load_dataset(renamed, label="answer", split_seed=1)) == 0


def test_what_is_shared_does_not_depend_on_the_store(tmp_path: Path) -> None:
    digits, elsewhere = load_dataset("digits"), load_dataset("digits", split_seed=1)
    store = DatasetStore(tmp_path)
    store.put(digits)
    assert count_shared(store.get(DIGITS), elsewhere) == count_shared(digits, elsewhere) == 318
