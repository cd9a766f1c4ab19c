from __future__ import annotations

import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops.data import load_dataset
from mlops.errors import DataError
from mlops.rows import CHUNK_VALUES, Place, stored_rows
from mlops.sources.arrays import read_npz

N = 120
PLACE = Place("'a.npz'", "x")


def labels_of(n: int = N, n_classes: int = 2) -> np.ndarray:
    return np.arange(n) % n_classes


def lengths_of(n: int = N, low: int = 1, high: int = 9) -> np.ndarray:
    lengths = np.random.default_rng(1).integers(low, high + 1, n)
    lengths[:2] = low, high
    return lengths


def steps_of(n_steps: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n_steps, *shape)).astype(np.float32)


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def changed(array: np.ndarray, index: Any, value: Any) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


# Sequences


def test_sequences_of_unequal_length_are_padded_at_their_end(tmp_path: Path) -> None:
    lengths, steps = lengths_of(), steps_of(int(lengths_of().sum()), 3)
    path = save(tmp_path / "a.npz", x=steps, lengths=lengths, y=labels_of())
    rows = read_npz(path)
    assert rows.ragged
    assert rows.notes == ("120 sequences of 1 to 9 steps, padded to 9 at their end.",)
    assert rows.x.shape == (N, 9, 4)
    assert rows.x.dtype == np.float32
    start = 0
    for row, length in zip(rows.x, lengths.tolist(), strict=True):
        np.testing.assert_array_equal(row[:length, :3], steps[start : start + length])
        assert (row[:length, 3] == 1.0).all()
        assert (row[length:] == 0.0).all()
        start += length


def test_sequences_come_back_from_a_dataset_as_they_were(tmp_path: Path) -> None:
    lengths, steps = lengths_of(), steps_of(int(lengths_of().sum()), 3)
    path = save(tmp_path / "a.npz", x=steps, lengths=lengths, y=labels_of())
    dataset = load_dataset(str(path))
    assert (dataset.input.kind, dataset.input.ragged) == ("sequence", True)
    assert dataset.input.shape == (9, 4)
    sent = dataset.requests("test")
    cut = np.split(steps, np.cumsum(lengths)[:-1])
    expected = [cut[i] for i in np.flatnonzero(dataset.split == 2)]
    assert len(sent) == len(expected) > 0
    for one, other in zip(sent, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float64"])
def test_steps_of_one_number_of_any_dtype_are_sequences_too(tmp_path: Path, dtype: str) -> None:
    steps = np.arange(int(lengths_of().sum())).astype(dtype)
    rows = read_npz(save(tmp_path / "a.npz", x=steps, lengths=lengths_of(), y=labels_of()))
    assert rows.x.shape == (N, 9, 2)
    assert rows.x.dtype == np.float32
    np.testing.assert_array_equal(rows.x[..., 0][rows.x[..., 1] == 1], steps.astype("f4"))


@pytest.mark.parametrize(("shape", "n_features"), [((), 1), ((3,), 3)])
def test_sequences_of_equal_length_are_plain_rows(
    tmp_path: Path, shape: tuple[int, ...], n_features: int
) -> None:
    x = np.random.default_rng(0).integers(0, 256, (N * 5, *shape), np.uint8)
    cut = save(tmp_path / "a.npz", x=x, lengths=np.full(N, 5), y=labels_of())
    plain = save(tmp_path / "b.npz", x=x.reshape(N, 5, n_features), y=labels_of())
    rows = read_npz(cut)
    assert (rows.ragged, rows.notes) == (False, ())
    assert load_dataset(str(cut)).fingerprint == load_dataset(str(plain)).fingerprint


LENGTHS = lengths_of()
TOTAL = int(LENGTHS.sum())
REFUSED_LENGTHS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "sum too low": (
        {"lengths": changed(LENGTHS, 1, 8)},
        (f"lengths add up to {TOTAL - 1} steps, and x has {TOTAL}; expected equal numbers",),
    ),
    "sum beyond int64": (
        {"lengths": changed(LENGTHS.astype(np.uint64), [3, 4], 2**63)},
        ("lengths add up to 18446744073709",),
    ),
    "zero": (
        {"lengths": changed(LENGTHS, [6, 9], 0)},
        ("lengths has sequences without a step: 2 of 120, the first at lengths[6]", "from 1 up"),
    ),
    "negative": (
        {"lengths": changed(LENGTHS, 4, -3)},
        ("lengths has sequences without a step: 1 of 120, the first at lengths[4]",),
    ),
    "floats": ({"lengths": LENGTHS.astype(float)}, ("lengths is of dtype float64; expected int",)),
    "bools": ({"lengths": LENGTHS > 1}, ("lengths is of dtype bool; expected integers",)),
    "text": ({"lengths": LENGTHS.astype(str)}, ("lengths is of dtype <U", "expected integers")),
    "objects": ({"lengths": LENGTHS.astype(object)}, ("lengths is an object array",)),
    "rank 2": (
        {"lengths": LENGTHS[:, np.newaxis]},
        ("lengths has rank 2, shape (120, 1); expected one length a sequence, shape (n,)",),
    ),
    "more than y": (
        {"y": labels_of(N - 1)},
        ("lengths and y have unequal lengths, 120 and 119; expected one label for each sequence",),
    ),
    "a label a step": (
        {"y": labels_of(TOTAL)},
        (f"lengths and y have unequal lengths, 120 and {TOTAL}",),
    ),
    "padded already": (
        {"x": np.zeros((N, 9, 3), np.float32)},
        ("x has rank 3, shape (120, 9, 3); expected, beside lengths, the steps", "np.concatenate"),
    ),
    "no steps": ({"x": np.zeros((0, 3))}, ("x has zero rows",)),
    "no features": ({"x": np.zeros((TOTAL, 0))}, ("x has rows without values",)),
    "nan": (
        {"x": changed(steps_of(TOTAL, 3), (17, 2), np.nan)},
        ("x has 1 NaN and 0 infinite values, the first at x[17, 2]",),
    ),
    "text steps": ({"x": steps_of(TOTAL).astype(str)}, ("x is of dtype <U",)),
    "negative label": ({"y": labels_of() - 1}, ("y has labels out of range, negative: 60 of 120",)),
    "one class": ({"y": labels_of() * 0}, ("y has one class only, '0'",)),
}


@pytest.mark.parametrize("case", REFUSED_LENGTHS)
def test_lengths_that_do_not_fit_are_refused_in_one_sentence(tmp_path: Path, case: str) -> None:
    arrays, fragments = REFUSED_LENGTHS[case]
    good = {"x": steps_of(TOTAL, 3), "lengths": LENGTHS, "y": labels_of()}
    path = save(tmp_path / "a.npz", **{**good, **arrays})
    message = refusal(lambda: read_npz(path))
    assert repr(str(path)) in message
    for fragment in fragments:
        assert fragment in message


def test_one_sequence_far_longer_than_the_others_is_refused_before_it_is_padded(
    tmp_path: Path,
) -> None:
    lengths = changed(np.ones(2_000, int), 7, 1_100_000)
    x = np.zeros(lengths.sum(), np.uint8)
    path = save(tmp_path / "a.npz", x=x, lengths=lengths, y=labels_of(2_000))
    message = refusal(lambda: read_npz(path))
    assert (
        "2000 sequences padded to the 1100000 steps of the longest are more than 2**31" in message
    )
    assert "half of them have 1 steps or fewer. Cut the longest ones" in message


# Memory maps


def as_map(x: np.ndarray, path: Path) -> np.ndarray:
    np.save(path, x)
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize("dtype", ["uint8", "<f4"])
def test_what_is_as_it_is_stored_is_not_copied(tmp_path: Path, dtype: str) -> None:
    mapped = as_map(np.arange(60).reshape(6, 10).astype(dtype), tmp_path / "x.npy")
    assert stored_rows(mapped, PLACE) is mapped


@pytest.mark.parametrize(
    "x",
    [
        np.arange(60.0).reshape(6, 10),
        np.arange(60).reshape(6, 10).astype(">f4"),
        np.asfortranarray(np.arange(60, dtype="<f4").reshape(6, 10)),
        np.asfortranarray(np.arange(60, dtype=np.uint8).reshape(6, 10)),
        np.arange(60).reshape(6, 10) % 2 == 0,
        changed(np.arange(60, dtype="<f4").reshape(6, 10), (4, 4), -0.0),
    ],
    ids=["float64", "big-endian", "Fortran order", "Fortran bytes", "bools", "negative zero"],
)
def test_what_is_not_is_converted_once(tmp_path: Path, x: np.ndarray) -> None:
    stored = stored_rows(as_map(x, tmp_path / "x.npy"), PLACE)
    assert not isinstance(stored, np.memmap)
    assert stored.flags.c_contiguous
    assert stored.dtype == (np.uint8 if x.dtype == np.uint8 else np.dtype("<f4"))
    np.testing.assert_array_equal(stored, x.astype("f4"))
    if stored.dtype != np.uint8:
        assert not np.signbit(stored).any()


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_bad_values_are_counted_over_all_chunks_and_the_first_is_named(dtype: str) -> None:
    n = 2 * CHUNK_VALUES // 1024 + 100  # two chunks and a bit
    x = np.zeros((n, 1024), dtype)
    x[[5000, n - 1, n - 1], [3, 0, 1]] = [np.nan, np.inf, np.nan]
    message = refusal(lambda: stored_rows(x, PLACE))
    assert "x has 2 NaN and 1 infinite values, the first at x[5000, 3];" in message


@pytest.mark.parametrize("dtype", ["uint8", "<f4", "<f8", ">i2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_mapped_archive_gives_the_rows_of_a_read_one(
    tmp_path: Path, dtype: str, order: Any
) -> None:
    x = np.arange(1, N * 15 + 1).reshape(N, 3, 5).astype(dtype, order=order)
    path = save(tmp_path / "a.npz", notes=np.zeros(7), x=x, y=labels_of())
    mapped, read = read_npz(path, mapped_from=0), read_npz(path)
    assert not isinstance(read.x, np.memmap)
    assert isinstance(mapped.x, np.memmap) == (order == "C" and dtype in ("uint8", "<f4"))
    assert mapped.x.dtype == read.x.dtype
    np.testing.assert_array_equal(mapped.x, read.x)
    np.testing.assert_array_equal(mapped.labels, read.labels)


def test_a_mapped_given_split_and_mapped_sequences_are_those_that_are_read(tmp_path: Path) -> None:
    x, y = steps_of(N, 4), labels_of()
    split = save(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:30], y_test=y[:30])
    cut = save(tmp_path / "b.npz", x=steps_of(TOTAL, 3), lengths=LENGTHS, y=y)
    for path in (split, cut):
        mapped, read = read_npz(path, mapped_from=0), read_npz(path)
        np.testing.assert_array_equal(mapped.x, read.x)
        np.testing.assert_array_equal(mapped.labels, read.labels)


def test_a_compressed_archive_is_read(tmp_path: Path) -> None:
    x = np.arange(N * 4, dtype=np.uint8).reshape(N, 4)
    np.savez_compressed(tmp_path / "a.npz", x=x, y=labels_of())
    rows = read_npz(tmp_path / "a.npz", mapped_from=0)
    assert not isinstance(rows.x, np.memmap)
    np.testing.assert_array_equal(rows.x, x)


def test_objects_are_refused_where_arrays_are_mapped_too(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", x=np.ones((N, 4), object), y=labels_of())
    assert "x is an object array" in refusal(lambda: read_npz(path, mapped_from=0))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_archive_is_never_mapped_as_if_it_were_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.npz"
    x = np.arange(N * 4, dtype=np.uint8).reshape(N, 4)
    save(path, x=x, y=labels_of())
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del whole[data.draw(st.integers(4, len(whole))) :]
    path.write_bytes(whole)
    try:
        rows = read_npz(path, mapped_from=0)
    except DataError as err:
        assert "\n" not in str(err)
    else:
        np.testing.assert_array_equal(rows.x, x)
        np.testing.assert_array_equal(rows.labels, labels_of())


@pytest.mark.parametrize("at", [0.3, 0.9])
def test_a_flipped_byte_is_found_by_the_checksum_although_the_array_is_mapped(
    tmp_path: Path, at: float
) -> None:
    path = save(tmp_path / "a.npz", x=np.zeros((N, 400), np.uint8), y=labels_of())
    with zipfile.ZipFile(path) as archive:
        size = archive.getinfo("x.npy").file_size
    whole = bytearray(path.read_bytes())
    whole[int(at * size)] ^= 1
    path.write_bytes(whole)
    message = refusal(lambda: read_npz(path, mapped_from=0))
    assert "is truncated or damaged (Bad CRC-32 for file 'x.npy')" in message


def test_200_megabytes_are_loaded_without_holding_them(tmp_path: Path) -> None:
    # tracemalloc counts what numpy and Python allocate, and no page of a mapped file, which the
    # system may drop whenever it likes: the resident size would count these too.
    x = np.empty((20_000, 10_000), np.uint8)
    x[:] = np.arange(10_000) % 251
    x[:, :2] = np.arange(20_000, dtype="<u2")[:, np.newaxis].view(np.uint8)
    path = save(tmp_path / "a.npz", x=x, y=labels_of(20_000))
    del x
    tracemalloc.start()
    try:
        dataset = load_dataset(str(path))
        peak = tracemalloc.get_traced_memory()[1]
        assert isinstance(dataset.x, np.memmap)
        assert not dataset.x.flags.writeable
        assert peak < path.stat().st_size * 0.75
    finally:
        tracemalloc.stop()
        path.unlink()
