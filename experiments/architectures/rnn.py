"""RNN: GRU or LSTM layers, for sequences, and for images read row by row."""

from __future__ import annotations

import keras
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from experiments.architectures import Architecture, Params
from experiments.architectures.preprocessing import compile_classifier, scaled_input
from mlops.inputs import InputSpec

CELLS = {"gru": keras.layers.GRU, "lstm": keras.layers.LSTM}


class RNN(Architecture):
    """Recurrent layers of one width over the time axis; the last state goes to a Dense layer.

    An image `(height, width, channels)` is a sequence of `height` steps, each a row of
    `width * channels` features. Of sequences of unequal length the padding is masked, so that an
    answer does not depend on how much of it there is.
    """

    name = "rnn"
    kinds = ("sequence", "image")
    variable_params = ("dropout", "learning_rate")

    def space(self, data: InputSpec) -> dict[str, BaseDistribution]:
        return {
            "cell": CategoricalDistribution(list(CELLS)),
            "n_layers": IntDistribution(1, 2),
            "units": IntDistribution(32, 128, log=True),
            "bidirectional": CategoricalDistribution([False, True]),
            "dropout": FloatDistribution(0.0, 0.5),
            "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
            "batch_size": CategoricalDistribution([32, 64, 128]),
        }

    def baseline(self, data: InputSpec) -> Params:
        return {
            "cell": "gru",
            "n_layers": 1,
            "units": 64,
            "bidirectional": False,
            "dropout": 0.0,
            "learning_rate": 1e-3,
            "batch_size": 32,
        }

    def build(self, params: Params, data: InputSpec, n_classes: int) -> keras.Model:
        inputs, x = scaled_input(data)
        if data.kind == "image":
            height, width, channels = data.shape
            x = keras.layers.Reshape((height, width * channels))(x)
        if data.ragged:
            x = keras.layers.Masking(0.0)(x)
        for index in range(params["n_layers"]):
            last = index == params["n_layers"] - 1
            layer = CELLS[params["cell"]](params["units"], return_sequences=not last)
            x = (keras.layers.Bidirectional(layer) if params["bidirectional"] else layer)(x)
            x = keras.layers.Dropout(params["dropout"])(x)
        model = keras.Model(inputs, keras.layers.Dense(n_classes, name="logits")(x))
        return compile_classifier(model, params["learning_rate"])
