from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops.data import Dataset, load_dataset
from mlops.dataset_store import open_dataset_store
from mlops.errors import DataError, MlopsError, UsageError
from mlops.inputs import InputSpec, Kind

DIGITS = "f50af8048f6be94d5c36dcb37bfa9e7c446eedd471dc98c08058936786de88fc"
"""Golden: where this changes, so does the split or the format, and stored datasets are orphans."""

N = 120


def rows_of(shape: tuple[int, ...] = (4,), n: int = N, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, *shape))


def labels_of(n: int = N, n_classes: int = 2) -> np.ndarray:
    return np.arange(n) % n_classes


def changed(array: np.ndarray, index: Any, value: Any) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


def save(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


def four(**others: Any) -> dict[str, Any]:
    return {
        "x_train": rows_of(),
        "y_train": labels_of(),
        "x_test": rows_of(n=30, seed=1),
        "y_test": labels_of(30),
        **others,
    }


def refusal(error: type[MlopsError], load: Callable[[], object]) -> str:
    with pytest.raises(MlopsError) as caught:
        load()
    message = str(caught.value)
    assert type(caught.value) is error
    assert caught.value.exit_code == 2
    assert "\n" not in message
    assert len(message) < 600
    return message


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


seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=25, deadline=None)


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
    path = tmp_path / "a.csv"
    path.write_text("a,b,y\n" + "\n".join(f"{i / 7},{i * i},{i % 2}" for i in range(N)))
    for dataset in (load_dataset("digits"), load_dataset(str(path), label="y")):
        text = json.dumps(dataset.input.to_json(), allow_nan=False)
        assert InputSpec.from_json(json.loads(text)) == dataset.input


SPEC = {"kind": "table", "shape": [2], "dtype": "float32", "columns": ["a", "b"]} | {
    "low": 0.0,
    "high": 1.0,
    "mean": [0.5, 0.5],
    "variance": [0.1, 0.1],
}


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "video"},
        {"kind": []},
        {"shape": [2, 2]},
        {"shape": [-2]},
        {"shape": []},
        {"shape": "ab"},
        {"dtype": "object"},
        {"columns": ["a"]},
        {"mean": [0.5]},
        {"variance": [0.1, float("nan")]},
        {"low": None},
        {"high": float("inf")},
    ],
    ids=str,
)
def test_what_is_no_input_spec_is_refused(change: dict[str, Any]) -> None:
    assert InputSpec.from_json(SPEC).columns == ("a", "b")
    message = refusal(DataError, lambda: InputSpec.from_json(SPEC | change))
    assert "not an input specification" in message


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


# CSV


def csv_of(header: str, row: Callable[[int], str], n: int = N) -> str:
    return "\n".join([header, *(row(i) for i in range(n))]) + "\n"


def plain(i: int) -> str:
    return f"{i / 8},{i % 7},{i % 3 == 0},{'ja' if i % 2 else 'nein'}"


PLAIN = csv_of("width,height,round,answer", plain)


def except_at(row: int, text: str) -> str:
    lines = PLAIN.splitlines()
    lines[row + 1] = text
    return "\n".join(lines)


def test_a_csv_is_a_table_with_named_columns(tmp_path: Path) -> None:
    path = tmp_path / "Größe 2.csv"
    path.write_text(PLAIN, encoding="utf-8-sig")
    dataset = load_dataset(str(path), label="answer")
    assert dataset.input.kind == "table"
    assert dataset.input.columns == ("width", "height", "round")
    assert dataset.class_names == ("ja", "nein")
    assert dataset.x[9].tolist() == [1.125, 2.0, 1.0]
    assert (dataset.name, dataset.source) == ("Gr-e-2", "Größe 2.csv")


def test_a_label_may_stand_anywhere_and_be_numbers_or_bools(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(csv_of("code,width,flag", lambda i: f"{10 - i % 2},{i},{i % 3 == 0}"))
    numbers = load_dataset(str(path), label="code")
    assert (numbers.class_names, numbers.input.columns) == (("9", "10"), ("width", "flag"))
    bools = load_dataset(str(path), label="flag")
    assert (bools.class_names, bools.input.columns) == (("False", "True"), ("code", "width"))


def test_a_column_has_one_type_from_its_first_row_to_its_last(tmp_path: Path) -> None:
    # pandas guesses types anew every 2**20 cells: here about 4096 rows.
    path, zeros = tmp_path / "a.csv", ",0" * 127
    header = ",".join(f"v{i}" for i in range(128)) + ",y"
    labels = [f"0{i % 2}" for i in range(4_900)] + ["a"] * 100
    path.write_text(csv_of(header, lambda i: f"{i}{zeros},{labels[i]}", 5_000))
    assert load_dataset(str(path), label="y").class_names == ("00", "01", "a")


def test_a_csv_read_as_sequences_has_no_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(PLAIN)
    dataset = load_dataset(str(path), label="answer", kind="sequence")
    assert (dataset.input.shape, dataset.input.columns) == ((3, 1), None)


CSV_REFUSALS: dict[str, tuple[str | bytes, tuple[str, ...]]] = {
    "missing value": (
        except_at(3, "1,,True,ja"),
        ("column 'height' has missing values: 1 of 120", "first in row 3 (counting from 0, "),
    ),
    "short row": (
        except_at(5, "1,2"),
        ("column 'round' has missing values: 1 of 120, the first in row 5 ",),
    ),
    "missing label": (
        except_at(0, "1,2,True,"),
        ("column 'answer' has missing labels: 1 of 120", "in row 0 (counting from 0, without the"),
    ),
    "text": (
        except_at(7, "1,high,True,ja"),
        ("column 'height' has values that are not numeric: 1 of 120, the first in row 7 ",),
    ),
    "infinite": (
        except_at(7, "1e39,2,True,ja"),
        ("column 'width' has 0 NaN and 1 infinite values, the first in row 7 ",),
    ),
    "long row": (except_at(7, "1,2,True,ja,5"), ("is not a table", "as many values")),
    "long rows": (
        csv_of("width,height,round,answer", lambda i: plain(i) + ",5"),
        ("is not a table", "as many values as the header has names"),
    ),
    "open quote": (except_at(7, '"1,2,True,ja'), ("is not a table",)),
    "same name": (
        "width,width,round,answer\n" + plain(0),
        ("has columns of the same name: 'width'",),
    ),
    "no name": (
        csv_of(",width,round,answer", plain),
        ("column without a name, column 0 (counting from 0)", "index=False"),
    ),
    "empty": ("", ("is empty; expected a header and rows",)),
    "blank lines": ("\n\n", ("is empty; expected a header and rows",)),
    "header only": ("width,height,answer\n", ("has zero rows, only a header",)),
    "label only": ("answer\nja\n", ("has no column beside the label 'answer'",)),
    "not utf-8": (PLAIN.encode() + b"\xff\xfe,1,True,ja\n", ("is not UTF-8 text",)),
    "header not utf-8": (b"gr\xf6\xdfe,answer\n1,ja\n", ("is not UTF-8 text",)),
    "continuous label": (
        csv_of("width,answer", lambda i: f"{i},{i / 7}"),
        ("column 'answer' has continuous labels", "in row 1 (", "Podium does classification only"),
    ),
    "whole floats": (
        csv_of("width,answer", lambda i: f"{i},{i % 2}.0"),
        ("column 'answer' has whole numbers stored as of dtype float64",),
    ),
    "negative label": (
        csv_of("width,answer", lambda i: f"{i},{i % 2 - 1}"),
        ("column 'answer' has labels out of range, negative: 60 of 120, the first in row 0 (",),
    ),
    "one class": (
        csv_of("width,answer", lambda i: f"{i},ja"),
        ("column 'answer' has one class only, 'ja'",),
    ),
}


@pytest.mark.parametrize("case", CSV_REFUSALS)
def test_a_csv_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    text, fragments = CSV_REFUSALS[case]
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    message = refusal(DataError, lambda: load_dataset("a.csv", label="answer"))
    assert "'a.csv'" in message
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize(
    ("name", "options", "fragments"),
    [
        ("digit", {}, ("no dataset 'digit'", "did you mean 'digits'?", "end in .npz or .csv")),
        ("rows.parquet", {}, ("expected one of digits, cifar10, mnist, fashion_mnist", ".npz or")),
        ("digits", {"label": "y"}, ("--label names a column of a CSV file, got 'digits'",)),
        ("a.npz", {"label": "y"}, ("--label names a column of a CSV file, got 'a.npz'",)),
        ("digits", {"kind": "images"}, ("no kind 'images'", "did you mean 'image'?")),
        ("digits", {"split_seed": -1}, ("--split-seed is out of range", "got -1")),
        ("digits", {"split_seed": 2**64}, ("--split-seed is out of range",)),
        ("a.csv", {}, ("'a.csv' needs --label COLUMN", "'width', 'height', 'round', 'answer'")),
        ("a.csv", {"label": "anser"}, ("no column 'anser' for --label", "Did you mean 'answer'?")),
        ("b.csv", {"label": "answer"}, ("'width;answer'", "separated by commas?")),
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
    Path("b.csv").write_text("width;answer\n1;ja\n")
    message = refusal(UsageError, lambda: load_dataset(name, **options))
    for fragment in fragments:
        assert fragment in message


def test_a_missing_csv_is_said_as_such(tmp_path: Path) -> None:
    message = refusal(DataError, lambda: load_dataset(str(tmp_path / "a.csv"), label="y"))
    assert message == f"there is no file {str(tmp_path / 'a.csv')!r}."


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


# The store


def same(one: Dataset, other: Dataset) -> bool:
    arrays = ("x", "y", "split")
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in Dataset.__slots__}
    return all(
        a.dtype == b.dtype and np.array_equal(a, b) if name in arrays else a == b
        for name, (a, b) in pairs.items()
    )


def test_a_stored_dataset_comes_back_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(PLAIN)
    store = open_dataset_store(str(tmp_path / "deep" / "store"))
    for dataset in (
        load_dataset("digits"),
        load_dataset(str(tmp_path / "a.csv"), label="answer"),
        load_dataset(save(tmp_path / "a.npz", **four(y_test=labels_of(30))), split_seed=9),
    ):
        assert not store.has(dataset.fingerprint)
        store.put(dataset)
        assert store.has(dataset.fingerprint)
        back = store.get(dataset.fingerprint)
        assert same(back, dataset)
        assert isinstance(back.x, np.memmap)
        assert not back.x.flags.writeable
        assert all(
            np.array_equal(a, b)
            for part in ("train", "val", "test")
            for a, b in zip(back.part(part), dataset.part(part), strict=True)
        )


def test_the_layout_of_the_store_is_four_files_a_fingerprint(tmp_path: Path) -> None:
    open_dataset_store(str(tmp_path)).put(load_dataset("digits"))
    assert [path.name for path in tmp_path.iterdir()] == [DIGITS]
    assert sorted(path.name for path in (tmp_path / DIGITS).iterdir()) == [
        "dataset.json",
        "split.npy",
        "x.npy",
        "y.npy",
    ]
    record = json.loads((tmp_path / DIGITS / "dataset.json").read_text())
    assert record["format"] == 1


def test_a_second_put_changes_nothing(tmp_path: Path) -> None:
    store = open_dataset_store(tmp_path.as_uri())
    store.put(load_dataset("digits"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / DIGITS).iterdir()}
    store.put(store.get(DIGITS))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / DIGITS).iterdir()} == before
    assert len(list(tmp_path.iterdir())) == 1


PUT = """
import sys
from mlops.data import load_dataset
from mlops.dataset_store import open_dataset_store
dataset, store = load_dataset(sys.argv[1]), open_dataset_store(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    store.put(dataset)
    assert store.get(dataset.fingerprint).x.shape == (5_000, 8)
"""


def big(folder: Path) -> str:
    return save(folder / "big.npz", x=rows_of((8,), n=5_000), y=labels_of(5_000))


def test_of_two_processes_that_put_one_dataset_both_succeed(tmp_path: Path) -> None:
    pipe, store = subprocess.PIPE, tmp_path / "store"
    command = [sys.executable, "-c", PUT, big(tmp_path), str(store)]
    racers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    for racer in racers:
        racer.communicate(timeout=60)
    assert [racer.returncode for racer in racers] == [0, 0]
    assert [path.name for path in store.iterdir()] == [load_dataset(big(tmp_path)).fingerprint]


class Interleaved(Dataset):
    """A dataset during whose writing another writer finishes: the race, at its worst moment."""

    __slots__ = ("rival",)

    def __getattribute__(self, name: str) -> Any:
        if name == "split":
            object.__getattribute__(self, "rival")()
        return object.__getattribute__(self, name)


def test_the_writer_that_comes_second_leaves_the_first_ones_dataset(tmp_path: Path) -> None:
    digits, store = load_dataset("digits"), open_dataset_store(str(tmp_path))
    late = Interleaved(**{name: getattr(digits, name) for name in Dataset.__slots__})
    object.__setattr__(late, "rival", lambda: store.put(digits))
    store.put(late)
    assert [path.name for path in tmp_path.iterdir()] == [DIGITS]
    assert same(store.get(DIGITS), digits)


def put_under_limit(folder: Path, how: str) -> subprocess.CompletedProcess[str]:
    """Puts a dataset in a process that may write 64 KiB a file: it fails or is killed midway."""
    code = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.{how})
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
{PUT}"""
    return subprocess.run(
        [sys.executable, "-c", code, big(folder), str(folder / "store")],
        input="\n",
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_writer_killed_midway_leaves_nothing_that_is_taken_for_a_dataset(tmp_path: Path) -> None:
    killed = put_under_limit(tmp_path, "SIG_DFL")
    assert killed.returncode == -signal.SIGXFSZ
    (left,) = (tmp_path / "store").iterdir()
    assert left.name.startswith(".writing-")
    assert (left / "x.npy").stat().st_size > 0
    dataset, store = load_dataset(big(tmp_path)), open_dataset_store(str(tmp_path / "store"))
    assert not store.has(dataset.fingerprint)
    assert "has no dataset" in refusal(DataError, lambda: store.get(dataset.fingerprint))
    store.put(dataset)
    assert same(store.get(dataset.fingerprint), dataset)


def test_a_store_that_cannot_be_written_is_said_so_and_left_clean(tmp_path: Path) -> None:
    failed = put_under_limit(tmp_path, "SIG_IGN")
    assert failed.returncode == 1
    last = failed.stderr.strip().splitlines()[-1]
    assert f"MlopsError: the dataset store {str(tmp_path / 'store')!r} cannot be written: " in last
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize("fingerprint", ["0" * 64, "", "..", "../store", DIGITS.upper()])
def test_an_absent_fingerprint_is_said_with_the_store_and_what_to_do(
    tmp_path: Path, fingerprint: str
) -> None:
    (tmp_path / "dataset.json").write_text("{}")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "dataset.json").write_text("{}")
    store = open_dataset_store(str(tmp_path / "store"))
    assert not store.has(fingerprint)
    message = refusal(DataError, lambda: store.get(fingerprint))
    assert f"{str(tmp_path / 'store')!r} has no dataset {fingerprint!r}" in message
    assert "Set MLOPS_DATASETS_URL" in message


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("harm", "fragment"),
    [
        (lambda folder: rewrite(folder, format=2), "(ValueError: format; expected 1, got 2)"),
        (lambda folder: rewrite(folder, fingerprint="0" * 64), "Podium (fingerprint"),
        (lambda folder: rewrite(folder, n_rows=5), "expected (5, 8, 8, 1), got (1797, 8, 8, 1)"),
        (lambda folder: rewrite(folder, input={}), "not an input specification"),
        (lambda folder: (folder / "dataset.json").write_text("{"), "Podium (JSONDecodeError"),
        (lambda folder: (folder / "dataset.json").write_text("{}"), "Podium (KeyError"),
        (lambda folder: (folder / "x.npy").unlink(), "Podium (FileNotFoundError"),
        (lambda folder: os.truncate(folder / "x.npy", 5_000), "Podium (ValueError"),
        (lambda folder: os.truncate(folder / "y.npy", 0), "Podium (EOFError"),
        (lambda folder: np.save(folder / "y.npy", labels_of()), "(shape of y; expected"),
        (lambda folder: np.save(folder / "y.npy", np.zeros(1797)), "(dtype of y; expected"),
        (lambda folder: np.save(folder / "split.npy", labels_of()), "(shape of split"),
        (
            lambda folder: np.save(folder / "y.npy", np.array([print]), allow_pickle=True),
            "Podium (ValueError: Object arrays cannot be loaded",
        ),
    ],
)
def test_a_damaged_dataset_is_not_handed_out(
    tmp_path: Path, harm: Callable[[Path], object], fragment: str
) -> None:
    store = open_dataset_store(str(tmp_path))
    store.put(load_dataset("digits"))
    harm(tmp_path / DIGITS)
    message = refusal(DataError, lambda: store.get(DIGITS))
    assert fragment in message
    assert DIGITS in message


@pytest.mark.parametrize("url", ["s3://user:secret@bucket/key", "file://datasets", "http://x", ""])
def test_a_store_that_is_no_folder_is_refused_without_showing_its_url(url: str) -> None:
    message = refusal(UsageError, lambda: open_dataset_store(url))
    assert "this version keeps datasets in a folder" in message
    assert "secret" not in message


def test_a_store_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    message = refusal(UsageError, lambda: open_dataset_store(str(tmp_path / "store")))
    assert "is a file; expected a folder" in message


def test_a_store_is_a_path_or_a_file_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a b"
    open_dataset_store(str(folder)).put(load_dataset("digits"))
    monkeypatch.chdir(tmp_path)
    for url in (folder.as_uri(), "a b", f"file://localhost{folder.as_uri()[7:]}"):
        store = open_dataset_store(url)
        assert store.has(DIGITS)
    assert re.search(r"%20", folder.as_uri())


# What the import costs


def test_the_import_brings_no_heavy_part() -> None:
    code = "import sys, mlops.data; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"tensorflow", "keras", "sklearn", "pandas", "scipy", "mlflow", "optuna"}
    assert heavy & set(loaded.stdout.split()) == set()
    assert "numpy" in loaded.stdout.split()
