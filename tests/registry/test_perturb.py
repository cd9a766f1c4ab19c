from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlops.data import Dataset, load_dataset
from registry.perturb import add_noise, changed_requests, shift
from tests.mlops.table_files import MIXED, csv_file, lines_of_sequences


def images(tmp_path: Path, dtype: str) -> Dataset:
    x = np.random.default_rng(0).integers(0, 256, (200, 6, 5, 3)).astype(dtype)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(200) % 2)
    return load_dataset(str(tmp_path / "a.npz"))


def test_noise_is_a_tenth_of_each_features_own_deviation(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal([0, 500, 3], [1, 100, 0], (4000, 3))
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(4000) % 2)
    dataset = load_dataset(str(tmp_path / "a.npz"))
    test: Any = dataset.requests("test")
    noise = changed_requests(dataset)["noise"] - test
    assert noise.std(axis=0) == pytest.approx([0.1, 10, 0], rel=0.1)
    assert noise.mean(axis=0) == pytest.approx([0, 0, 0], abs=1)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_images_stay_images_and_are_also_shifted(tmp_path: Path, dtype: str) -> None:
    dataset = images(tmp_path, dtype)
    test: Any = dataset.requests("test")
    changed = changed_requests(dataset)
    assert set(changed) == {"noise", "shift"}
    for rows in changed.values():
        assert (rows.shape, rows.dtype) == (test.shape, test.dtype)
        assert rows.min() >= dataset.input.low
        assert rows.max() <= dataset.input.high
    moved = np.abs(changed["noise"].astype(float) - test)
    assert 3 < moved.mean() < 9  # 10 % of the deviation of 74 is 7.4, the mean of |N| 0.8 of that
    assert np.array_equal(changed["shift"][:, 1:, 1:], test[:, :-1, :-1])


def test_only_the_numbers_of_a_table_change(tmp_path: Path) -> None:
    dataset = load_dataset(csv_file(tmp_path / "a.csv", MIXED), label="answer")
    test: Any = dataset.requests("test")
    changed = changed_requests(dataset)
    assert set(changed) == {"noise"}
    frame = changed["noise"]
    for name in ("colour", "shape"):
        assert frame[name].equals(test[name])
    for name in ("weight", "size"):
        assert (frame[name].isna() == test[name].isna()).all()
        there = test[name].notna()
        assert (frame[name] != test[name])[there].all()
        assert ((frame[name] - test[name])[there].abs() < test[name].std() * 0.6).all()


def test_sequences_keep_their_lengths(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "a.csv", lines_of_sequences([2 + i % 6 for i in range(80)]))
    dataset = load_dataset(path, label="answer", sequence_id="recording")
    test: Any = dataset.requests("test")
    noisy = changed_requests(dataset)["noise"]
    assert [row.shape for row in noisy] == [row.shape for row in test]
    assert all((a != b).all() for a, b in zip(noisy, test, strict=True))


def test_the_same_dataset_is_changed_the_same_way_each_time(tmp_path: Path) -> None:
    dataset = images(tmp_path, "uint8")
    noise = [changed_requests(dataset, seed)["noise"] for seed in (0, 0, 1)]
    assert np.array_equal(noise[0], noise[1])
    assert not np.array_equal(noise[0], noise[2])


@given(x=arrays(np.uint8, st.tuples(*[st.integers(1, 5)] * 4)))
def test_a_shift_moves_each_pixel_by_one_and_repeats_the_edge(x: np.ndarray) -> None:
    moved = shift(x)
    _, height, width, _ = x.shape
    for row in range(height):
        for column in range(width):
            from_there = x[:, max(row - 1, 0), max(column - 1, 0)]
            assert np.array_equal(moved[:, row, column], from_there)


def test_bytes_at_the_ends_of_their_range_do_not_wrap(tmp_path: Path) -> None:
    spec = images(tmp_path, "uint8").input
    x = np.repeat(np.array([0, 255], np.uint8), 3000).reshape(2, 20, 50, 3)
    noisy = add_noise(x, spec, np.random.default_rng(0))
    assert noisy[0].max() < 100
    assert noisy[1].min() > 150
