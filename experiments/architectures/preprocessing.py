"""Layers that several networks share; first those from the dataset's units to what a network likes.

Those are part of the model, so that a client sends raw data. Their constants come from the training
rows only (`InputSpec`), never from what is validated or tested.
"""

from __future__ import annotations

from typing import Any

import keras

from mlops.evaluation import scale_constants
from mlops.inputs import InputSpec

BATCH_NORM_MOMENTUM = 0.9
"""How much of the moving mean and variance a training step keeps. With Keras' 0.99 they lag some
hundred steps behind the weights; a small dataset's whole training may be no longer than that."""


def scaled_input(data: InputSpec) -> tuple[Any, Any]:
    """Returns the input tensor `(n, *data.shape)` and its scaled form, float32, same shape.

    Images are scaled to [0, 1], tables and sequences standardised: `scale_constants` says how. The
    padding of sequences of unequal length becomes exactly 0.0 in every feature, a step of theirs
    never.
    """
    inputs = keras.Input(data.shape, dtype=data.dtype, name="rows")
    offset, scale = scale_constants(data)
    if data.kind == "image":
        span = float(scale[0])
        layer = keras.layers.Rescaling(1.0 / span, offset=-float(offset[0]) / span, name="scale")
    else:
        layer = keras.layers.Normalization(
            mean=offset.tolist(), variance=(scale**2).tolist(), name="scale"
        )
    return inputs, layer(inputs)


def normalized_batch(x: Any) -> Any:
    """Returns `x` normalised over its batch; same shape."""
    return keras.layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM)(x)


def compile_classifier(model: keras.Model, learning_rate: float) -> keras.Model:
    """Compiles a network whose output is logits: Adam, cross-entropy from logits, accuracy."""
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model
