"""An architecture that asks for more memory than any machine has, for tests of that."""

from __future__ import annotations

from typing import Any

import keras
from optuna.distributions import BaseDistribution, CategoricalDistribution

from experiments.architectures import Architecture
from experiments.architectures.preprocessing import compile_classifier, scaled_input
from experiments.workers.gpu_share import find_share
from mlops.inputs import InputSpec

TOO_MANY = 2**45
"""Numbers: 128 TiB. Of a layer so large XLA sometimes ends the process instead of saying so."""


class Hungry(Architecture):
    """Runs out of memory for good with the appetite "always", and beside others with "shared"."""

    name = "hungry"
    kinds = ("image",)

    def space(self, data: InputSpec) -> dict[str, BaseDistribution]:
        return {"appetite": CategoricalDistribution(["none", "shared", "always"])}

    def baseline(self, data: InputSpec) -> dict[str, Any]:
        return {"appetite": "none"}

    def build(self, params: dict[str, Any], data: InputSpec, n_classes: int) -> keras.Model:
        share = find_share()
        crowded = share is not None and share.trials_per_gpu > 1
        too_much = params["appetite"] == "always" or (params["appetite"] == "shared" and crowded)
        inputs, x = scaled_input(data)
        if too_much:
            keras.ops.zeros((TOO_MANY,))
        x = keras.layers.Dense(8)(keras.layers.Flatten()(x))
        return compile_classifier(keras.Model(inputs, keras.layers.Dense(n_classes)(x)), 0.01)
