"""CNN: three convolutions with two max-pools between them, for images."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
)

from experiments.architectures import Architecture, Params
from experiments.architectures.preprocessing import (
    compile_classifier,
    normalized_batch,
    scaled_input,
)
from mlops.evaluation import scale_constants
from mlops.inputs import InputSpec

SMALLEST_VALID = 18
"""Pixels of the shorter side from which three 3x3 convolutions and two pools leave something over
without padding: 18 -> 16 -> 8 -> 6 -> 3 -> 1."""
SMALLEST_AUGMENTED = 16
"""Pixels of the shorter side from which images are shifted, turned and cut. Of the 8 of digits one
pixel is an eighth: a shift within the space blurs more than it moves, and cutout takes a stroke."""
BOTH_FLIPS = "horizontal_and_vertical"
AUGMENTATION = (
    keras.layers.RandomFlip,
    keras.layers.RandomTranslation,
    keras.layers.RandomRotation,
    keras.layers.RandomErasing,
)


class CNN(Architecture):
    """Augmentation, conv, pool, conv, pool, conv, Flatten, Dense, Dense classes.

    The baseline is the small network that tutorials train first on CIFAR-10: 32, 64 and 64 filters
    of 3x3, 64 dense units, ReLU, Adam; the loss is computed from logits. It augments nothing.
    """

    name = "cnn"
    kinds = ("image",)
    variable_params = ("dropout", "learning_rate")

    def space(self, data: InputSpec) -> dict[str, BaseDistribution]:
        return {
            "filters": CategoricalDistribution([16, 32, 64]),
            "dense_units": CategoricalDistribution([32, 64, 128]),
            "batch_norm": CategoricalDistribution([False, True]),
            "dropout": FloatDistribution(0.0, 0.5),
            "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
            "batch_size": CategoricalDistribution([32, 64, 128]),
            **_augmentation_space(data),
        }

    def baseline(self, data: InputSpec) -> Params:
        return {
            "filters": 32,
            "dense_units": 64,
            "batch_norm": False,
            "dropout": 0.0,
            "learning_rate": 1e-3,
            "batch_size": 32,
            **{name: "none" if name == "flip" else 0.0 for name in _augmentation_space(data)},
        }

    def build(self, params: Params, data: InputSpec, n_classes: int) -> keras.Model:
        padding = "valid" if min(data.shape[:2]) >= SMALLEST_VALID else "same"
        filters = params["filters"]

        def convolve(x: Any, n_filters: int) -> Any:
            x = keras.layers.Conv2D(
                n_filters, 3, padding=padding, use_bias=not params["batch_norm"]
            )(x)
            if params["batch_norm"]:
                x = normalized_batch(x)
            return keras.layers.ReLU()(x)

        inputs, x = scaled_input(data)
        for layer in _augmentation(params, data):
            x = layer(x)
        x = convolve(x, filters)
        x = keras.layers.MaxPooling2D(2, padding=padding)(x)
        x = convolve(x, 2 * filters)
        x = keras.layers.MaxPooling2D(2, padding=padding)(x)
        x = convolve(x, 2 * filters)
        x = keras.layers.Flatten()(x)
        x = keras.layers.Dense(params["dense_units"], activation="relu")(x)
        x = keras.layers.Dropout(params["dropout"])(x)
        model = keras.Model(inputs, keras.layers.Dense(n_classes, name="logits")(x))
        return compile_classifier(model, params["learning_rate"])

    def to_package(self, model: keras.Model) -> keras.Model:
        """Returns the model that is packaged: from raw rows to class probabilities.

        It augments nothing, whoever calls it: Keras' layers do, but where `training=False` is said.
        """
        x = model.input
        for layer in model.layers[1:]:
            x = x if isinstance(layer, AUGMENTATION) else layer(x)
        return keras.Model(model.input, keras.layers.Softmax()(x))


def _augmentation_space(data: InputSpec) -> dict[str, BaseDistribution]:
    """Returns the distributions of those kinds of augmentation that make sense for the data."""
    space: dict[str, BaseDistribution] = {}
    if data.flips:
        both = [BOTH_FLIPS] if len(data.flips) > 1 else []
        space["flip"] = CategoricalDistribution(["none", *data.flips, *both])
    if min(data.shape[:2]) >= SMALLEST_AUGMENTED:
        space["shift"] = FloatDistribution(0.0, 0.15, step=0.05)  # of the side, either way
        space["rotation"] = FloatDistribution(0.0, 15.0, step=5.0)  # degrees, either way
        space["cutout"] = FloatDistribution(0.0, 0.3, step=0.1)  # of each side
    return space


def _augmentation(params: Params, data: InputSpec) -> list[Any]:
    """Returns the layers that change images in [0, 1], in training only; none where all is off.

    A shifted or turned image goes on with the pixels of its edge. Cutout (DeVries and Taylor 2017)
    erases one window of each image, of its proportions, with the mean of the training rows.
    """
    layers = keras.layers
    found: list[Any] = []
    if params.get("flip", "none") != "none":
        found.append(layers.RandomFlip(params["flip"]))
    if shift := params.get("shift", 0.0):
        found.append(layers.RandomTranslation(shift, shift, fill_mode="nearest"))
    if degrees := params.get("rotation", 0.0):
        found.append(layers.RandomRotation(degrees / 360, fill_mode="nearest"))
    if side := params.get("cutout", 0.0):
        offset, scale = scale_constants(data)
        mean = float(((np.array(data.mean) - offset) / scale).mean())
        # factor: the chance to erase; scale: the erased share, of which each side is the root.
        share = side**2
        found.append(
            layers.RandomErasing(
                factor=(1.0, 1.0), scale=(share, share), fill_value=mean, value_range=(0.0, 1.0)
            )
        )
    return found
