"""The first layers of every network: from the dataset's own units to what a network likes.

They are part of the model, so that a client sends raw data. Their constants come from the training
rows only (`InputSpec`), never from what is validated or tested.
"""

from __future__ import annotations

from typing import Any

import keras

from mlops.data import InputSpec


def scaled_input(data: InputSpec) -> tuple[Any, Any]:
    """Returns the input tensor `(n, *data.shape)` and its scaled form, float32, same shape.

    Images are scaled to [0, 1]: by 255 if they are bytes, else by the training rows' range. Tables
    and sequences are standardised: mean 0 and variance 1 over the training rows, for each feature.
    """
    inputs = keras.Input(data.shape, dtype=data.dtype, name="rows")
    if data.kind == "image":
        low, high = (0.0, 255.0) if data.dtype == "uint8" else (data.low, data.high)
        span = (high - low) or 1.0
        layer = keras.layers.Rescaling(1.0 / span, offset=-low / span, name="scale")
    else:
        # A feature that never changed carries nothing: 1 keeps it from being blown up.
        variance = [value if value > 0.0 else 1.0 for value in data.variance]
        layer = keras.layers.Normalization(mean=list(data.mean), variance=variance, name="scale")
    return inputs, layer(inputs)


def compile_classifier(model: keras.Model, learning_rate: float) -> keras.Model:
    """Compiles a network whose output is logits: Adam, cross-entropy from logits, accuracy."""
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model
