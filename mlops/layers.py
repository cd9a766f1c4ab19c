"""The stock Keras layers that a packaged model may hold: how they are configured, what they make.

A layer's rule derives from its config and the shapes of its inputs which shape it gives and which
weights it makes. Shapes are those of one row: the batch axis is not in them. One more layer takes a
rule in the table, and in `KEYS` and `WORDS` whatever is new in its config.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np

Shape: TypeAlias = tuple[int, ...]
Built: TypeAlias = tuple[Shape, list[Shape]]
"""A layer's output shape, and the shapes of its weights."""
Rule: TypeAlias = Callable[[Mapping[str, Any], list[Shape]], Built]
"""Of a layer's config and the shapes of its inputs. A config that does not fit them raises KeyError,
TypeError, ValueError, IndexError or ArithmeticError."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ACTIVATIONS: Final = _words(
    "relu leaky_relu relu6 softmax celu elu selu softplus softsign squareplus soft_shrink "
    "sparse_plus silu swish gelu glu tanh tanh_shrink threshold sigmoid sparse_sigmoid "
    "exponential hard_sigmoid hard_silu hard_swish hard_tanh hard_shrink linear mish "
    "log_softmax log_sigmoid sparsemax"
)
WORDS: Final = _words(
    "valid same causal channels_last nearest bilinear constant reflect wrap horizontal "
    "vertical horizontal_and_vertical concat sum mul ave dot float32 float16 bfloat16 "
    "mixed_float16 mixed_bfloat16 uint8 int32 int64 bool fan_in fan_out fan_avg normal "
    "uniform truncated_normal untruncated_normal"
)
"""Under any other key but a name, a string is one of these."""
KEYS: Final = _words(
    "activation activity_regularizer attention_axes axis backward_layer batch_shape "
    "beta_constraint beta_initializer beta_regularizer bias_constraint bias_initializer "
    "bias_regularizer center cropping data_format depth_multiplier depthwise_constraint "
    "depthwise_initializer depthwise_regularizer dilation_rate dims dropout dtype "
    "embeddings_constraint embeddings_initializer embeddings_regularizer epsilon factor "
    "fill_mode fill_value filters gamma_constraint gamma_initializer gamma_regularizer "
    "go_backwards groups height_factor input_dim interpolation invert keepdims "
    "kernel_constraint kernel_initializer kernel_regularizer kernel_size key_dim layer "
    "mask_value mask_zero max_value mean merge_mode mode momentum moving_mean_initializer "
    "moving_variance_initializer name negative_slope num_heads offset output_dim padding "
    "pointwise_constraint pointwise_initializer pointwise_regularizer pool_size rate "
    "recurrent_activation recurrent_constraint recurrent_dropout recurrent_initializer "
    "recurrent_regularizer renorm_momentum reset_after return_sequences scale score_mode seed "
    "size strides synchronized target_shape threshold trainable unit_forget_bias units "
    "use_bias use_scale value_dim value_range variance width_factor zero_output_for_mask "
    "value mean stddev minval maxval distribution input_axes output_axes gain l1 l2 min_value"
)
"""Every other key must be absent, null or false: each makes weights or work of its own."""
HELPERS: Final = {
    "initializer": (
        "keras.initializers",
        _words(
            "Zeros Ones Constant RandomNormal RandomUniform TruncatedNormal VarianceScaling "
            "GlorotUniform GlorotNormal HeNormal HeUniform LecunNormal LecunUniform "
            "Orthogonal Identity"
        ),
    ),
    "regularizer": ("keras.regularizers", _words("L1 L2 L1L2")),
    "constraint": ("keras.constraints", _words("MaxNorm NonNeg UnitNorm MinMaxNorm")),
    "dtype": ("keras", _words("DTypePolicy")),
}
"""By the last word of its key, of which module and classes an object in a config may be."""
RECURRENT: Final = {"GRU": 3, "LSTM": 4, "SimpleRNN": 1}
"""Number of gates of each layer that may stand in a Bidirectional."""


def find_rule(module: str, class_name: str) -> Rule | None:
    """Returns the rule of a layer that may be in a network; None is a layer that may not."""
    rule = _LAYERS.get((module, class_name))
    return None if rule is None else lambda config, inputs: rule(_Config(config), inputs)


class _Config:
    """A layer's config, read with the types that sizes have."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def size(self, key: str) -> int:
        value = self.values[key]
        if not _is_size(value):
            raise ValueError(key)
        return int(value)

    def sizes(self, key: str, n: int) -> list[int]:
        value = self.values[key]
        values = value if isinstance(value, list) else [value] * n
        if len(values) != n or not all(map(_is_size, values)):
            raise ValueError(key)
        return values

    def pairs(self, key: str) -> list[list[int]]:
        value: list[list[int]] = self.values[key]
        flat = [v for pair in value for v in pair]
        if len(flat) != 4 or not all(v == 0 or _is_size(v) for v in flat):
            raise ValueError(key)
        return value

    def on(self, key: str) -> bool:
        value = self.values[key]
        if not isinstance(value, bool):
            raise ValueError(key)
        return value

    def axis(self, rank: int, key: str = "axis") -> int:
        """Index into the shape of one row; Keras counts the batch axis too."""
        value = self.values[key]
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if type(value) is not int or not (-rank <= value < 0 or 0 < value <= rank):
            raise ValueError(key)
        return value + rank if value < 0 else value - 1
