"""The stock Keras layers that a packaged model may hold: what each gives, what weights it makes.

Both follow from the layer's config and the shapes of its inputs. All shapes are those of one row:
the batch axis is not in them. One more layer takes its rule here, and whatever keys and words are
new with it in mlops/layer_config.py.
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
"""Takes a layer's config and the shapes of its inputs. Where they do not fit one another it raises
KeyError, TypeError, ValueError, IndexError or ArithmeticError."""

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
        value: int = self.values[key]
        if not _is_size(value):
            raise ValueError(key)
        return value

    def sizes(self, key: str, n: int) -> list[int]:
        value = self.values[key]
        values = value if isinstance(value, list) else [value] * n
        if len(values) != n or not all(map(_is_size, values)):
            raise ValueError(key)
        return values

    def pairs(self, key: str) -> list[list[int]]:
        value: list[list[int]] = self.values[key]
        flat = [v for pair in value for v in pair]
        if len(flat) != 4 or not all(_is_size(v, least=0) for v in flat):
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


def _is_size(value: Any, least: int = 1) -> bool:
    return type(value) is int and least <= value < 1 << 31


_OneRule: TypeAlias = Callable[[_Config, Shape], Built]
_ManyRule: TypeAlias = Callable[[_Config, list[Shape]], Built]


def _one(rule: _OneRule, rank: int | None = None) -> _ManyRule:
    """Of a layer with one input, which may have to be of a rank."""

    def rule_of_inputs(config: _Config, inputs: list[Shape]) -> Built:
        if len(inputs) != 1 or (rank is not None and len(inputs[0]) != rank):
            raise ValueError("inputs")
        return rule(config, inputs[0])

    return rule_of_inputs


def _same(config: _Config, shape: Shape) -> Built:
    return shape, []


def _rescaling(config: _Config, shape: Shape) -> Built:
    for key in ("scale", "offset"):
        value = config.values[key]
        if isinstance(value, list) and len(value) not in (1, shape[-1]):
            raise ValueError(key)
    return shape, []


def _normalization(config: _Config, shape: Shape) -> Built:
    last = shape[config.axis(len(shape))]
    mean = config.values["mean"]
    if mean is None:
        return shape, [(last,), (last,), ()]
    if len(mean if isinstance(mean, list) else [mean]) not in (1, last):
        raise ValueError("mean")
    return shape, []


def _norm(config: _Config, shape: Shape, moving: int) -> Built:
    n = moving + config.on("scale") + config.on("center")
    return shape, [(shape[config.axis(len(shape))],)] * n


def _bias(config: _Config, *shape: int) -> list[Shape]:
    return [shape] if config.on("use_bias") else []


def _dense(config: _Config, shape: Shape) -> Built:
    units = config.size("units")
    return (*shape[:-1], units), [(shape[-1], units), *_bias(config, units)]


def _embedding(config: _Config, shape: Shape) -> Built:
    n, size = config.size("input_dim"), config.size("output_dim")
    return (*shape, size), [(n, size)]


def _recurrent(config: _Config, shape: Shape, gates: int) -> Built:
    steps, features = shape
    units = config.size("units")
    twice = gates == 3 and config.on("reset_after")  # a GRU's bias, of the input and of the state
    bias = _bias(config, *([2] if twice else []), gates * units)
    made = (steps, units) if config.on("return_sequences") else (units,)
    return made, [(features, gates * units), (units, gates * units), *bias]


def _windows(
    config: _Config, shape: Shape, key: str, dilated: bool = True
) -> tuple[list[int], list[int]]:
    """Window sizes, and how many windows fit along each spatial axis."""
    rank = len(shape) - 1
    sizes, strides = config.sizes(key, rank), config.sizes("strides", rank)
    dilation = config.sizes("dilation_rate", rank) if dilated else [1] * rank
    padding = config.values["padding"]
    if padding not in ("valid", "same", "causal"):
        raise ValueError("padding")
    counts = [
        (n - d * (k - 1) - 1) // s + 1 if padding == "valid" else -(-n // s)
        for n, k, s, d in zip(shape, sizes, strides, dilation, strict=False)
    ]
    return sizes, counts


def _slide(config: _Config, shape: Shape, filters: int, *kernel: int) -> Built:
    """A kernel (*kernel_size, *kernel) slid over the spatial axes, and a bias a filter."""
    sizes, counts = _windows(config, shape, "kernel_size")
    return (*counts, filters), [(*sizes, *kernel), *_bias(config, filters)]


def _conv(config: _Config, shape: Shape) -> Built:
    filters, groups = config.size("filters"), config.size("groups")
    if shape[-1] % groups or filters % groups:
        raise ValueError("groups")
    return _slide(config, shape, filters, shape[-1] // groups, filters)


def _separable_conv(config: _Config, shape: Shape) -> Built:
    filters, depth = config.size("filters"), config.size("depth_multiplier")
    made, weights = _slide(config, shape, filters, shape[-1], depth)
    return made, [*weights, (1, 1, shape[-1] * depth, filters)]


def _depthwise_conv(config: _Config, shape: Shape) -> Built:
    depth = config.size("depth_multiplier")
    return _slide(config, shape, shape[-1] * depth, shape[-1], depth)


def _conv_transpose(config: _Config, shape: Shape) -> Built:
    filters = config.size("filters")
    kernel, strides, dilation = (
        config.sizes(key, 2) for key in ("kernel_size", "strides", "dilation_rate")
    )
    valid = config.values["padding"] == "valid"
    counts = [
        (n - 1) * s + max(d * (k - 1) + 1, s) if valid else n * s
        for n, k, s, d in zip(shape, kernel, strides, dilation, strict=False)
    ]
    return (*counts, filters), [(*kernel, filters, shape[-1]), *_bias(config, filters)]


def _pooling(config: _Config, shape: Shape) -> Built:
    _, counts = _windows(config, shape, "pool_size", dilated=False)
    return (*counts, shape[-1]), []


def _global_pooling(config: _Config, shape: Shape) -> Built:
    ones = (1,) * (len(shape) - 1) if config.on("keepdims") else ()
    return (*ones, shape[-1]), []


def _around(config: _Config, shape: Shape, key: str, sign: int) -> Built:
    (top, bottom), (left, right) = config.pairs(key)
    return (shape[0] + sign * (top + bottom), shape[1] + sign * (left + right), shape[2]), []


def _up_sampling(config: _Config, shape: Shape) -> Built:
    rows, columns = config.sizes("size", 2)
    return (shape[0] * rows, shape[1] * columns, shape[2]), []


def _flatten(config: _Config, shape: Shape) -> Built:
    return (math.prod(shape),), []


def _reshape(config: _Config, shape: Shape) -> Built:
    target: list[int] = config.values["target_shape"]
    n = math.prod(shape)
    known = math.prod(size for size in target if size != -1)
    made = tuple(n // known if size == -1 else size for size in target)
    if target.count(-1) > 1 or math.prod(made) != n:
        raise ValueError("target_shape")
    return made, []


def _permute(config: _Config, shape: Shape) -> Built:
    dims = config.sizes("dims", len(shape))
    if sorted(dims) != list(range(1, len(shape) + 1)):
        raise ValueError("dims")
    return tuple(shape[dim - 1] for dim in dims), []


def _any(config: _Config, shape: Shape) -> Built:
    if config.values["axis"] != -1 or config.on("keepdims"):
        raise ValueError("axis")
    return shape[:-1], []


def _merge(config: _Config, inputs: list[Shape]) -> Built:
    if len({len(shape) for shape in inputs}) != 1:
        raise ValueError("ranks")
    return tuple(int(size) for size in np.broadcast_shapes(*inputs)), []


def _concatenate(config: _Config, inputs: list[Shape]) -> Built:
    axis = config.axis(len(inputs[0]))
    if len({(*shape[:axis], *shape[axis + 1 :]) for shape in inputs}) != 1:
        raise ValueError("shapes")
    size = sum(shape[axis] for shape in inputs)
    return (*inputs[0][:axis], size, *inputs[0][axis + 1 :]), []


def _attention(config: _Config, inputs: list[Shape]) -> Built:
    query, value = inputs[0], inputs[1]
    scalars = config.on("use_scale") + (config.values["score_mode"] == "concat")
    return (*query[:-1], value[-1]), [()] * scalars


def _multi_head_attention(config: _Config, inputs: list[Shape]) -> Built:
    query, value, key = (*inputs, inputs[1])[:3]
    heads, key_dim, value_dim = (config.size(k) for k in ("num_heads", "key_dim", "value_dim"))
    weights: list[Shape] = []
    for shape, dim in ((query, key_dim), (key, key_dim), (value, value_dim)):
        weights += [(shape[-1], heads, dim), *_bias(config, heads, dim)]
    return query, [*weights, (heads, value_dim, query[-1]), *_bias(config, query[-1])]


_STOCK: Final[dict[str, _ManyRule]] = {
    **dict.fromkeys(("Activation", "LeakyReLU", "Masking", "ReLU", "Softmax"), _one(_same)),
    **dict.fromkeys(("Dropout", "SpatialDropout1D", "SpatialDropout2D"), _one(_same)),
    **dict.fromkeys(("RandomContrast", "RandomFlip", "RandomRotation"), _one(_same)),
    **dict.fromkeys(("RandomErasing", "RandomTranslation", "RandomZoom"), _one(_same)),
    "Bidirectional": _one(_same),  # the two layers that it holds are walked instead
    "Rescaling": _one(_rescaling),
    "Normalization": _one(_normalization),
    "BatchNormalization": _one(partial(_norm, moving=2)),
    "LayerNormalization": _one(partial(_norm, moving=0)),
    "Dense": _one(_dense),
    "Embedding": _one(_embedding),
    **{name: _one(partial(_recurrent, gates=n), 2) for name, n in RECURRENT.items()},
    "Conv1D": _one(_conv, 2),
    "Conv2D": _one(_conv, 3),
    "Conv2DTranspose": _one(_conv_transpose, 3),
    "SeparableConv2D": _one(_separable_conv, 3),
    "DepthwiseConv2D": _one(_depthwise_conv, 3),
    **dict.fromkeys(("AveragePooling1D", "MaxPooling1D"), _one(_pooling, 2)),
    **dict.fromkeys(("AveragePooling2D", "MaxPooling2D"), _one(_pooling, 3)),
    **dict.fromkeys(("GlobalAveragePooling1D", "GlobalMaxPooling1D"), _one(_global_pooling, 2)),
    **dict.fromkeys(("GlobalAveragePooling2D", "GlobalMaxPooling2D"), _one(_global_pooling, 3)),
    "ZeroPadding2D": _one(partial(_around, key="padding", sign=1), 3),
    "Cropping2D": _one(partial(_around, key="cropping", sign=-1), 3),
    "UpSampling2D": _one(_up_sampling, 3),
    "Flatten": _one(_flatten),
    "Reshape": _one(_reshape),
    "Permute": _one(_permute),
    **dict.fromkeys(("Add", "Multiply"), _merge),
    "Concatenate": _concatenate,
    "Attention": _attention,
    "MultiHeadAttention": _multi_head_attention,
}
_LAYERS: Final[dict[tuple[str, str], _ManyRule]] = {
    **{("keras.layers", name): rule for name, rule in _STOCK.items()},
    # What Masking and Embedding(mask_zero=True) leave in the graph.
    ("keras.src.ops.numpy", "NotEqual"): _one(_same),
    ("keras.src.ops.numpy", "Any"): _one(_any),
    ("keras.src.ops.numpy", "LogicalOr"): _merge,
    ("keras.src.ops.core", "ConvertToTensor"): _one(_same),
}
