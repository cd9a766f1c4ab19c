from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from experiments.architectures.cnn import CNN
from experiments.training import train
from mlops.data import Dataset, load_dataset
from mlops.inputs import InputSpec
from mlops.packaging import save_network

COLOUR = InputSpec(
    "image", (20, 24, 3), "uint8", None, 0.0, 255.0, (51.0, 102.0, 153.0), (900.0,) * 3
)
BOTH = dataclasses.replace(COLOUR, flips=("horizontal", "vertical"))
OFF = {"flip": "none", "shift": 0.0, "rotation": 0.0, "cutout": 0.0}
ALL = {"flip": "horizontal_and_vertical", "shift": 0.1, "rotation": 10.0, "cutout": 0.2}
LAYERS = {
    "flip": "RandomFlip",
    "shift": "RandomTranslation",
    "rotation": "RandomRotation",
    "cutout": "RandomErasing",
}


def network(data: InputSpec, **params: Any) -> keras.Model:
    keras.utils.set_random_seed(3)
    return CNN().build({**CNN().baseline(data), **params}, data, 3)


def augmented(data: InputSpec, rows: np.ndarray, **params: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns what the first convolution sees of rows, in training and in inference."""
    model = network(data, **params)
    first = next(layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D))
    seen = keras.Model(model.input, first.input)
    return np.asarray(seen(rows, training=True)), np.asarray(seen(rows, training=False))


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, *BOTH.shape)).astype(np.uint8)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def test_the_space_of_digits_augments_nothing(digits: Dataset) -> None:
    assert not set(CNN().space(digits.input)) & set(LAYERS)
    assert not set(CNN().baseline(digits.input)) & set(LAYERS)


def test_each_kind_is_in_the_space_only_where_it_makes_sense() -> None:
    def kinds(data: InputSpec) -> list[str]:
        return [name for name in CNN().space(data) if name in LAYERS]

    small = dataclasses.replace(BOTH, shape=(15, 24, 3))
    assert kinds(BOTH) == ["flip", "shift", "rotation", "cutout"]
    assert kinds(COLOUR) == ["shift", "rotation", "cutout"]
    assert kinds(small) == ["flip"]
    one = dataclasses.replace(COLOUR, flips=("horizontal",))
    assert CNN().space(one)["flip"].choices == ("none", "horizontal")  # type: ignore[attr-defined]
    assert CNN().space(BOTH)["flip"].choices == (  # type: ignore[attr-defined]
        "none",
        "horizontal",
        "vertical",
        "horizontal_and_vertical",
    )


def test_the_baseline_augments_nothing_and_has_no_layer_for_it() -> None:
    assert {name: CNN().baseline(BOTH)[name] for name in OFF} == OFF
    assert not [layer for layer in network(BOTH).layers if "Random" in type(layer).__name__]


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_changes_training_batches_and_no_other(name: str, rows: np.ndarray) -> None:
    params = {**OFF, name: ALL[name]}
    layers = [type(layer).__name__ for layer in network(BOTH, **params).layers]
    assert layers[1:4] == ["Rescaling", LAYERS[name], "Conv2D"]
    training, inference = augmented(BOTH, rows, **params)
    np.testing.assert_allclose(inference, rows / np.float32(255), rtol=1e-6)
    assert training.shape == rows.shape
    assert training.dtype == np.float32
    assert 0.0 <= training.min() < training.max() <= 1.0
    assert np.abs(training - inference).max() > 0.1


def test_flips_mirror_the_axes_they_name(rows: np.ndarray) -> None:
    for flip, axis in (("horizontal", 2), ("vertical", 1)):
        training, plain = augmented(BOTH, rows, flip=flip)
        mirrored = np.flip(plain, axis)
        kinds = [
            "plain" if np.allclose(found, one) else "mirrored" if np.allclose(found, two) else "?"
            for found, one, two in zip(training, plain, mirrored, strict=True)
        ]
        assert set(kinds) == {"plain", "mirrored"}


def test_cutout_erases_one_window_of_each_image_with_the_mean(rows: np.ndarray) -> None:
    training, plain = augmented(BOTH, rows, cutout=0.25)
    for found, one in zip(training, plain, strict=True):
        erased = (found != one).all(axis=-1)
        height, width = erased.any(axis=1).sum(), erased.any(axis=0).sum()
        assert erased.sum() == height * width
        assert (abs(height - 5), abs(width - 6)) <= (1, 1)  # a quarter of 20 and of 24
        np.testing.assert_allclose(found[erased], 0.4, rtol=1e-6)  # 102 of 255


def test_a_flat_image_stays_flat_when_shifted_and_turned() -> None:
    flat = np.full((4, *BOTH.shape), 204, np.uint8)
    training, _ = augmented(BOTH, flat, shift=0.15, rotation=15.0)
    np.testing.assert_allclose(training, 0.8, rtol=1e-5)


def test_the_layers_are_allowed_in_a_packaged_network(tmp_path: Path) -> None:
    model = network(BOTH, **ALL)
    assert {type(layer).__name__ for layer in model.layers} >= set(LAYERS.values())
    save_network(keras.Model(model.input, model.output), tmp_path / "model.keras")


def test_the_packaged_network_augments_nothing_whoever_calls_it(
    tmp_path: Path, rows: np.ndarray
) -> None:
    model = network(BOTH, batch_norm=True, dropout=0.3, **ALL)
    save_network(CNN().to_package(model), tmp_path / "model.keras")
    packaged = keras.models.load_model(tmp_path / "model.keras")
    assert not [layer for layer in packaged.layers if "Random" in type(layer).__name__]
    expected = np.asarray(keras.ops.softmax(model(rows, training=False)))
    np.testing.assert_allclose(np.asarray(packaged(rows)), expected, rtol=1e-5)


def test_an_augmented_training_repeats(digits: Dataset) -> None:
    large = np.repeat(np.repeat(digits.x[:200], 2, axis=1), 2, axis=2)
    data = dataclasses.replace(digits.input, shape=(16, 16, 1), flips=("horizontal", "vertical"))
    dataset = dataclasses.replace(
        digits, x=large, y=digits.y[:200], split=digits.split[:200], input=data
    )
    params = {**CNN().baseline(data), "filters": 16, **ALL}
    one, again = (train(CNN(), params, dataset, seed=7, epochs=2) for _ in range(2))
    plain = train(CNN(), {**params, **OFF}, dataset, seed=7, epochs=2)
    assert one.weights_sha256 == again.weights_sha256 != plain.weights_sha256
