"""An architecture of your own: a multilayer perceptron with residual connections.

Search it beside one that comes with Podium (type this in the folder that holds this file):

    python -m experiments.sweep --architectures own_architecture:ResidualMLP dnn

Use stock Keras layers only. A sweep packages the untrained network before it trains anything, and
refuses one that a server could not check and load, with the name of the layer.
"""

from __future__ import annotations

import keras
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from experiments.architectures import Architecture, Params
from experiments.architectures.preprocessing import compile_classifier, scaled_input
from mlops.inputs import InputSpec


class ResidualMLP(Architecture):
    """Pre-normalised residual blocks over flat rows (He et al. 2016, "Identity Mappings")."""

    name = "residual"
    kinds = ("table", "sequence", "image")

    def space(self, data: InputSpec) -> dict[str, BaseDistribution]:
        """What is searched. One trial gets one value of each."""
        return {
            "n_blocks": IntDistribution(1, 4),
            "units": IntDistribution(32, 256, log=True),
            "dropout": FloatDistribution(0.0, 0.5),
            "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
        }

    def baseline(self, data: InputSpec) -> Params:
        """What the first trial tries: one value inside the space for each."""
        return {"n_blocks": 2, "units": 64, "dropout": 0.1, "learning_rate": 1e-3}

    def build(self, params: Params, data: InputSpec, n_classes: int) -> keras.Model:
        """Returns a compiled network from raw rows (n, *data.shape) to logits (n, n_classes)."""
        inputs, x = scaled_input(data)  # so that clients send raw rows
        x = keras.layers.Dense(params["units"])(keras.layers.Flatten()(x))
        for _ in range(params["n_blocks"]):
            y = keras.layers.LayerNormalization()(x)
            y = keras.layers.Dense(params["units"], activation="relu")(y)
            y = keras.layers.Dropout(params["dropout"])(y)
            x = keras.layers.Add()([x, keras.layers.Dense(params["units"])(y)])
        logits = keras.layers.Dense(n_classes, name="logits")(keras.layers.LayerNormalization()(x))
        return compile_classifier(keras.Model(inputs, logits), params["learning_rate"])
