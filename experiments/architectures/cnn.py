"""CNN: three convolutions with two max-pools between them, for images."""

from __future__ import annotations

from typing import Any

import keras
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
)

from experiments.architectures import Architecture, Params
from experiments.architectures.preprocessing import compile_classifier, scaled_input
from mlops.inputs import InputSpec

SMALLEST_VALID = 18
"""Pixels of the shorter side from which three 3x3 convolutions and two pools leave something over
without padding: 18 -> 16 -> 8 -> 6 -> 3 -> 1."""


class CNN(Architecture):
    """Conv, pool, conv, pool, conv, Flatten, Dense, Dense classes.

    The baseline is the small network that tutorials train first on CIFAR-10: 32, 64 and 64 filters
    of 3x3, 64 dense units, ReLU, Adam; the loss is computed from logits.
    """

    name = "cnn"
    kinds = ("image",)

    def space(self, data: InputSpec) -> dict[str, BaseDistribution]:
        return {
            "filters": CategoricalDistribution([16, 32, 64]),
            "dense_units": CategoricalDistribution([32, 64, 128]),
            "batch_norm": CategoricalDistribution([False, True]),
            "dropout": FloatDistribution(0.0, 0.5),
            "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
            "batch_size": CategoricalDistribution([32, 64, 128]),
        }

    def baseline(self, data: InputSpec) -> Params:
        return {
            "filters": 32,
            "dense_units": 64,
            "batch_norm": False,
            "dropout": 0.0,
            "learning_rate": 1e-3,
            "batch_size": 32,
        }

    def build(self, params: Params, data: InputSpec, n_classes: int) -> keras.Model:
        padding = "valid" if min(data.shape[:2]) >= SMALLEST_VALID else "same"
        filters = params["filters"]

        def convolve(x: Any, n_filters: int) -> Any:
            x = keras.layers.Conv2D(
                n_filters, 3, padding=padding, use_bias=not params["batch_norm"]
            )(x)
            if params["batch_norm"]:
                x = keras.layers.BatchNormalization()(x)
            return keras.layers.ReLU()(x)

        inputs, x = scaled_input(data)
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
