from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_sample_images

from mlops.symmetry import find_flips


def parts(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices of 60 % of the rows, and of 20 %, drawn at random."""
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[: n * 3 // 5]), np.sort(order[n * 3 // 5 : n * 4 // 5])


def flips_of(x: np.ndarray, y: np.ndarray, seed: int = 0) -> tuple[str, ...]:
    return find_flips(x, y, *parts(len(x), seed))


def crops(n: int, side: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Crops of two photos, and which of the two."""
    photos = load_sample_images().images
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = []
    for which in y:
        height, width, _ = photos[which].shape
        top, left = rng.integers(0, height - side), rng.integers(0, width - side)
        x.append(photos[which][top : top + side, left : left + side])
    return np.stack(x), y


def signs(n_classes: int, n_rows: int, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
    """Symmetrical patterns with noise, one a class; the last two mirror one another if asked."""
    rng = np.random.default_rng(1)
    patterns = rng.integers(0, 200, (n_classes, 12, 12, 1))
    patterns = (patterns + patterns[:, :, ::-1]) // 2
    if mirrored:
        patterns[-1] = rng.integers(0, 200, (12, 12, 1))
        patterns[-2] = patterns[-1, :, ::-1]
    y = rng.integers(0, n_classes, n_rows)
    return (patterns[y] + rng.integers(0, 50, (n_rows, 12, 12, 1))).astype(np.uint8), y


@pytest.mark.parametrize("seed", range(3))
def test_digits_may_not_be_mirrored(seed: int) -> None:
    digits = load_digits()
    x = digits.images[..., np.newaxis].astype(np.float32)
    assert flips_of(x, digits.target, seed) == ()


@pytest.mark.parametrize("seed", range(3))
def test_photos_may_be_mirrored_horizontally(seed: int) -> None:
    x, y = crops(3000, 24, seed)
    assert "horizontal" in flips_of(x, y, seed)


def test_what_has_no_up_and_down_may_be_mirrored_both_ways() -> None:
    x, y = signs(5, 1000, mirrored=False)
    x = np.maximum(x, x[:, ::-1])
    assert flips_of(x, y) == ("horizontal", "vertical")


def test_one_pair_of_classes_that_mirror_each_other_is_enough_to_forbid_it() -> None:
    # The pair is a twenty-fifth of the rows: over all classes, more than 90 % is kept.
    assert flips_of(*signs(50, 3000, mirrored=False)) == ("horizontal",)
    assert flips_of(*signs(50, 3000, mirrored=True)) == ()


def test_classes_that_are_mirror_images_are_seen() -> None:
    x, y = signs(2, 300, mirrored=True)
    assert flips_of(x, y) == ()


def test_images_in_which_nothing_is_seen_are_not_mirrored() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (400, 9, 9, 1)).astype(np.uint8)
    y = rng.integers(0, 4, 400)
    assert flips_of(noise, y) == ()
    assert flips_of(np.zeros_like(noise), y) == ()


def test_few_rows_are_weak_evidence() -> None:
    x, y = crops(10, 24)
    assert flips_of(x, y) == ()
    nothing = np.array([], np.int64)
    assert find_flips(x, y, nothing, nothing) == ()


def test_a_row_of_pixels_has_no_up_and_down() -> None:
    x, y = signs(5, 1000, mirrored=False)
    assert flips_of(x[:, :1], y) == ("horizontal",)


def test_rows_sorted_by_class_and_odd_sizes_do_not_matter() -> None:
    x, y = crops(3000, 37)
    order = np.argsort(y, kind="stable")
    train, val = parts(len(x))
    assert "horizontal" in find_flips(x[order], y[order], train, val)


def test_the_answer_is_the_same_each_time_and_from_a_memory_map(tmp_path: Path) -> None:
    x, y = crops(600, 24)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert flips_of(x, y) == flips_of(x, y) == flips_of(mapped, y)


@pytest.mark.parametrize("shape", [(60_000, 28, 28, 1), (4000, 224, 224, 3)])
def test_it_takes_a_fraction_of_a_second(shape: tuple[int, ...]) -> None:
    x = np.zeros(shape, np.uint8)
    y = np.arange(shape[0]) % 10
    x[:, 0, 0, 0] = 20 * y
    began = time.process_time()
    flips_of(x, y)
    assert time.process_time() - began < 3.0  # of all threads; about 0.3 where nothing else runs
