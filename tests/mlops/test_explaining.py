"""Integrated gradients and occlusion from Python, on networks whose answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops.attribution import (
    MOST_WINDOWS,
    baselines_of,
    columns,
    integrated_gradients,
    occlusion,
    open_network,
    parts_of,
    patches,
    spread,
    summed,
    windows,
)
from mlops.inputs import Column, InputSpec
from mlops.scoring.explain import Gradients
from tests.packaged_models import build, spec_of

IMAGE = InputSpec("image", (8, 8, 1), "float32", None, 0.0, 16.0, (4.9,), (36.0,))
TABLE = InputSpec(
    *("table", (5,), "float32"),
    (Column("width"), Column("colour", ("blue", "green"), "flagged"), Column("height")),
    *(-1.0, 9.0, (2.0, 0.0, 0.0, 0.0, 3.0), (1.0, 1.0, 1.0, 1.0, 4.0)),
)


def sequences(n_steps: int) -> InputSpec:
    return InputSpec("sequence", (n_steps, 2), "float32", None, 0.0, 1.0, (0.5,) * 2, (1.0,) * 2)


def of_sum(weights: np.ndarray) -> Any:
    """Answers a weighted sum of a row, and 1 less it: what each number adds is plain."""

    def answer(rows: np.ndarray) -> np.ndarray:
        value = (rows.astype(np.float64) * weights).reshape(len(rows), -1).sum(axis=1)
        return np.stack([value, 1.0 - value], axis=1)

    return answer


def softmax_of(weights: np.ndarray) -> Any:
    """A Keras classifier of two classes: the logit of the second is a weighted sum of a row."""
    import keras

    rows = keras.Input(weights.shape)
    dense = keras.layers.Dense(2)
    network = keras.Model(rows, keras.layers.Softmax()(dense(keras.layers.Flatten()(rows))))
    kernel = np.zeros((weights.size, 2), np.float32)
    kernel[:, 1] = weights.reshape(-1)
    dense.set_weights([kernel, np.zeros(2, np.float32)])
    return network


def test_occlusion_of_a_sum_finds_what_each_part_adds() -> None:
    random = np.random.default_rng(0)
    rows, start = random.normal(size=(2, 3, 4, 4, 1)).astype(np.float32)
    weights = random.normal(size=(4, 4, 1))
    parts = patches((4, 4, 1), 2, 2)
    expected = np.stack([((rows - start) * weights * part).sum(axis=(1, 2, 3)) for part in parts])
    drops = occlusion(of_sum(weights), rows, start, parts, [0, 0, 0])
    np.testing.assert_allclose(drops, expected.T, atol=1e-5)
    of_the_other = occlusion(of_sum(weights), rows, start, parts, [1, 0, 1])
    np.testing.assert_allclose(of_the_other, expected.T * [[-1], [1], [-1]], atol=1e-5)


def test_occlusion_asks_in_the_rows_own_dtype_and_never_too_many_at_once() -> None:
    asked = []

    def answer(rows: np.ndarray) -> np.ndarray:
        asked.append((len(rows), rows.dtype))
        return rows.reshape(len(rows), -1).sum(axis=1, keepdims=True).astype(float)

    rows = np.full((2, 1500), 3, np.uint8)
    parts = columns([1] * 1500)
    drops = occlusion(answer, rows, np.zeros((2, 1500), np.float32), parts, [0, 0])
    assert (drops == 3.0).all()
    assert {dtype for _, dtype in asked} == {np.dtype("uint8")}
    assert max(n for n, _ in asked) == 1024


def test_patches_overlap_and_leave_no_pixel_out() -> None:
    for shape, size, stride in (((8, 8, 1), 2, 1), ((9, 5, 3), 4, 3), ((32, 32, 3), 8, 4)):
        parts = patches(shape, size, stride)
        assert parts.any(axis=0).all()
        assert (parts.sum(axis=(1, 2, 3)) == size * size * shape[2]).all()
    assert len(parts) == 49
    np.testing.assert_array_equal(np.argwhere(patches((3, 3, 1), 2, 1)[0, :, :, 0])[-1], [1, 1])
    for size, stride in ((0, 1), (2, 3), (9, 1), (2, 0)):
        with pytest.raises(ValueError, match="expected 1 <= stride <= size <= 8, got size"):
            patches((8, 8, 1), size, stride)


def test_parts_are_patches_columns_and_steps() -> None:
    assert parts_of(IMAGE).shape == (49, 8, 8, 1)
    assert parts_of(TABLE).astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [0, 1, 1, 1, 0],  # all that a category became, and whether it is missing
        [0, 0, 0, 0, 1],
    ]
    one = parts_of(sequences(7))
    assert one.shape == (7, 7, 2) and one[3].any(axis=1).tolist() == [i == 3 for i in range(7)]
    many = parts_of(sequences(10 * MOST_WINDOWS - 3))
    assert len(many) == MOST_WINDOWS
    assert (many.sum(axis=0) == 1).all()
    assert windows((5, 1), 2)[-1, :, 0].tolist() == [False] * 4 + [True]


def test_a_column_has_the_sum_of_its_features_and_a_pixel_the_mean_of_its_patches() -> None:
    values = np.array([[1.0, 2.0, 3.0, 4.0, 5.0]], np.float32)
    assert summed(values, parts_of(TABLE)).tolist() == [[1.0, 9.0, 5.0]]
    maps = spread(np.array([[1.0, 3.0]], np.float32), windows((3, 1), 2))
    assert maps[0, :, 0].tolist() == [1.0, 1.0, 3.0]
    overlapping = np.array([[[1], [1], [0]], [[0], [1], [1]]], bool)
    maps = spread(np.array([[1.0, 3.0]], np.float32), overlapping)
    assert maps[0, :, 0].tolist() == [1.0, 2.0, 3.0]


def test_both_find_the_planted_part_and_nothing_else() -> None:
    """The answer depends on the top left patch alone, or on column 2 alone."""
    random = np.random.default_rng(1)
    corner = np.zeros((8, 8, 1))
    corner[:2, :2] = [[[0.3], [0.2]], [[0.4], [0.5]]]
    column = np.zeros(5)
    column[4] = 0.7
    tables = random.normal(2.0, 3.0, (6, 5)).astype(np.float32)
    images = random.uniform(1, 16, (6, 8, 8, 1)).astype(np.float32)
    for data, rows, weights in ((IMAGE, images, corner), (TABLE, tables, column)):
        network, start = softmax_of(weights), baselines_of(data, rows)
        targets = [1] * len(rows)
        found, before = integrated_gradients(network, rows, start, targets, n_steps=200)
        assert (found[:, weights == 0] == 0).all() and (found[:, weights != 0] != 0).all()
        after = np.asarray(network(rows))[:, 1]
        sums = found.reshape(len(rows), -1).sum(axis=1)
        np.testing.assert_allclose(sums, after - before, atol=1e-4)
        parts = patches(data.shape, 2, 2) if data.kind == "image" else parts_of(data)
        drops = occlusion(network, rows, start, parts, targets)
        planted = parts.reshape(len(parts), -1)[:, weights.reshape(-1) != 0].any(axis=1)
        assert planted.sum() == 1
        assert (drops[:, ~planted] == 0).all()
        # One part holds all that the answer depends on, so its drop is all that there is.
        np.testing.assert_allclose(drops[:, planted][:, 0], sums, atol=1e-4)


def test_any_number_of_points_is_a_midpoint_rule_and_the_served_one_is_the_same() -> None:
    random = np.random.default_rng(2)
    network = softmax_of(random.normal(size=(3, 2)))
    rows = random.normal(size=(2, 3, 2)).astype(np.float32) * 2
    start = np.full((2, 3, 2), 0.25, np.float32)
    for n_steps in (1, 5, 64, 65, 128):
        found, before = integrated_gradients(network, rows, start, [1, 0], n_steps=n_steps)
        alphas = (np.arange(n_steps) + 0.5) / n_steps
        kernel = network.layers[2].get_weights()[0][:, 1].reshape(3, 2)
        for i, sign in enumerate((1.0, -1.0)):
            logits = [(start[i] + a * (rows[i] - start[i])) @ kernel.T for a in alphas]
            second = 1 / (1 + np.exp(-np.array([np.trace(each) for each in logits])))
            slope = sign * (second * (1 - second)).mean()
            np.testing.assert_allclose(found[i], slope * kernel * (rows[i] - start[i]), atol=1e-5)
            at_start = np.asarray(network(start))[i, 1 - i]
            assert before[i] == pytest.approx(at_start, abs=1e-6)
    served, at_start = Gradients(network, (3, 2), "classifier", None).integrated(
        rows[0], start[0], 1
    )
    np.testing.assert_allclose(found[0], served, atol=1e-7)
    assert before[0] == at_start


@pytest.mark.parametrize("kind", ["mixed", "image_uint8", "vae"])
def test_a_packaged_model_is_explained_from_its_folder(kind: str, tmp_path: Path) -> None:
    packaged = build(tmp_path, kind)
    network, spec = open_network(packaged.folder)
    assert spec == spec_of(kind)
    rows = np.asarray(packaged.features)
    start = baselines_of(spec.input, rows)
    targets = None if spec.task == "vae" else [2] * len(rows)
    found, before = integrated_gradients(network, rows, start, targets, likelihood=spec.likelihood)
    assert found.shape == rows.shape and before.shape == (len(rows),)
    if targets is not None:
        change = packaged.outputs[0][:, 2] - before
        np.testing.assert_allclose(found.reshape(len(rows), -1).sum(axis=1), change, atol=2e-3)
        drops = occlusion(network, rows, start, parts_of(spec.input), targets)
        assert drops.shape == (len(rows), len(parts_of(spec.input)))
