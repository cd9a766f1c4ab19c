"""DNN: fully connected layers, for any data."""

from __future__ import annotations

import keras
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from experiments.architectures import Architecture, Params
from experiments.architectures.preprocessing import (
    compile_classifier,
    normalized_batch,
    scaled_input,
)
from mlops.inputs import InputSpec


class DNN(Architecture):
    """Flatten, then Dense blocks of one width, ReLU, with dropout."""

    name = "dnn"
    kinds = ("table", "sequence", "image")
    variable_params = ("dropout", "learning_rate")

    def space(self, data: InputSpec) -> dict[str, BaseDistribution]:
        return {
            "n_layers": IntDistribution(1, 3),
            "units": IntDistribution(32, 512, log=True),
            "dropout": FloatDistribution(0.0, 0.5),
            "batch_norm": CategoricalDistribution([False, True]),
            "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
            "batch_size": CategoricalDistribution([32, 64, 128]),
        }

    def baseline(self, data: InputSpec) -> Params:
        return {
            "n_layers": 2,
            "units": 128,
            "dropout": 0.2,
            "batch_norm": False,
            "learning_rate": 1e-3,
            "batch_size": 32,
        }

    def build(self, params: Params, data: InputSpec, n_classes: int) -> keras.Model:
        inputs, x = scaled_input(data)
        x = keras.layers.Flatten()(x)
        for _ in range(params["n_layers"]):
            x = keras.layers.Dense(params["units"], use_bias=not params["batch_norm"])(x)
            if params["batch_norm"]:
                x = normalized_batch(x)
            x = keras.layers.ReLU()(x)
            x = keras.layers.Dropout(params["dropout"])(x)
        model = keras.Model(inputs, keras.layers.Dense(n_classes, name="logits")(x))
        return compile_classifier(model, params["learning_rate"])
