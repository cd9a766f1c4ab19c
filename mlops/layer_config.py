"""What the configuration of a stock Keras layer may hold: plain values, known words, stock helpers.

One more layer takes its rule in mlops/layers.py, and here whatever keys and words are new with it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from typing import Any, Final, NoReturn

from mlops.errors import refuse_model


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ACTIVATIONS: Final = _words(
    "relu leaky_relu relu6 softmax celu elu selu softplus softsign squareplus soft_shrink "
    "sparse_plus silu swish gelu glu tanh tanh_shrink threshold sigmoid sparse_sigmoid "
    "exponential hard_sigmoid hard_silu hard_swish hard_tanh hard_shrink linear mish "
    "log_softmax log_sigmoid sparsemax"
)
# Under any other key but a name, a string is one of these.
WORDS: Final = _words(
    "valid same causal channels_last nearest bilinear constant reflect wrap horizontal "
    "vertical horizontal_and_vertical concat sum mul ave dot float32 float16 bfloat16 "
    "mixed_float16 mixed_bfloat16 uint8 int32 int64 bool fan_in fan_out fan_avg normal "
    "uniform truncated_normal untruncated_normal"
)
# Every other key must be absent, null or false: each makes weights or work of its own.
_KEYS: Final = _words(
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
# By the last word of the key: module and classes of an object that a config may hold.
_HELPERS: Final[dict[str, tuple[str, Collection[str]]]] = {
    "initializer": (
        "keras.initializers",
        _words(
            "Zeros Ones Constant RandomNormal RandomUniform TruncatedNormal VarianceScaling "
            "GlorotUniform GlorotNormal HeNormal HeUniform LecunNormal LecunUniform "
            "Orthogonal Identity"
        ),
    ),
    "regularizer": ("keras.regularizers", ("L1", "L2", "L1L2")),
    "constraint": ("keras.constraints", ("MaxNorm", "NonNeg", "UnitNorm", "MinMaxNorm")),
    "dtype": ("keras", ("DTypePolicy",)),
}
_OBJECT_KEYS: Final = _words(
    "module class_name config registered_name build_config compile_config name inbound_nodes "
    "shared_object_id"
)
_NAME: Final = re.compile(r"[A-Za-z0-9_.\-]{1,128}")


class ConfigCheck:
    """The check of all configs of one file; what it refuses raises StructureError.

    `where` is the subject of the sentence: the layer, and the key in it.
    """

    def __init__(self, file: str) -> None:
        self._file = file
        self._shared: dict[int, str] = {}

    def check(self, config: Any, where: str) -> None:
        """Every value of a config is a number, a known word, or an allowed helper."""
        if not isinstance(config, dict):
            self._bad(where, "has no configuration")
        for key, value in config.items():
            if key not in _KEYS:
                if value is not None and value is not False:
                    self._bad(where, f"sets {str(key)[:40]!r}, which Podium does not know")
            elif isinstance(value, dict):
                self._check_helper(key, value, where)
            elif key in ("activation", "recurrent_activation"):
                if value is not None and value not in _ACTIVATIONS:
                    self._bad(where, "has an activation that is not one of Keras' own")
            elif key == "name":
                self.check_name(value)
            else:
                self._check_value(value, f"{where}: {key}", 0)

    def check_name(self, name: Any) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            self._bad("a layer", "has a name of other characters than letters and digits")

    def identify(self, value: dict[str, Any], where: str) -> tuple[str, str]:
        """Returns module and class of a serialized object; they may be anything."""
        if not set(value) <= _OBJECT_KEYS:
            self._bad(where, "has keys that Keras does not write")
        module, name = value["module"], value["class_name"]
        if value.get("registered_name") is not None and value["registered_name"] != name:
            self._bad(where, "is a class registered by someone's code; use stock Keras layers")
        return module, name

    def _check_value(self, value: Any, where: str, depth: int) -> None:
        if isinstance(value, list):
            if depth > 3 or len(value) > 100_000:
                self._bad(where, "is nested too deep or too long")
            for item in value:
                self._check_value(item, where, depth + 1)
        elif isinstance(value, str):
            if value not in WORDS:
                self._bad(where, "is a word that Podium does not know")
        elif not (value is None or isinstance(value, (bool, int, float))):
            self._bad(where, "is not a plain value")
        elif isinstance(value, float) and not math.isfinite(value):
            self._bad(where, "is not finite")

    def _check_helper(self, key: str, value: dict[str, Any], where: str) -> None:
        role = key.rsplit("_", 1)[-1]
        module, names = _HELPERS.get(role, ("", ()))
        found, name = self.identify(value, f"{where}: {key}")
        if found != module or name not in names:
            self._bad(where, f"has as {key} something else than a stock Keras {role}")
        where = f"{where}: {key}"
        config = value["config"]
        if not isinstance(config, dict) or any(
            isinstance(v, (dict, list)) for v in config.values()
        ):
            self._bad(where, "has a configuration that is not plain")
        if role != "dtype":
            self.check(config, where)
        elif set(config) != {"name"} or config["name"] not in WORDS:
            self._bad(where, "is not a stock policy")
        if value.get("build_config") or value.get("compile_config") or "inbound_nodes" in value:
            self._bad(where, "has keys of a layer")
        if (shared := value.get("shared_object_id")) is not None:
            # Keras returns the first object of an id, whatever the second one says.
            identity = json.dumps([module, name, config], sort_keys=True)
            if self._shared.setdefault(shared, identity) != identity:
                self._bad(where, "says to be an object that it is not")

    def _bad(self, where: str, wrong: str) -> NoReturn:
        refuse_model(self._file, f"{where} {wrong}")
