"""How a training computes: in what precision, and whether XLA compiles its step.

Both decide weights, so both are part of a study. Mixed precision (Micikevicius et al. 2018, "Mixed
Precision Training") computes products in bfloat16 and keeps weights, their updates, statistics and
the loss in float32. Of bfloat16's 16 bits as many are the exponent's as of float32's, so no
gradient is lost that float32 holds, and the loss is not scaled. float16 would need that, and is not
offered.

The network itself is float32, before the training and after it. Only while its training step is
traced its layers say that they compute in bfloat16. So what validates is what is packaged, to the
bit, and a package tells nothing of how it was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

from mlops.errors import UsageError

Precision = Literal["float32", "bfloat16"]
Xla = Literal["auto", "on", "off"]

LEAST_CAPABILITY: Final = (8, 0)
"""CUDA compute capability from which a GPU computes in bfloat16 (Ampere, 2020)."""
_MIXED: Final = "mixed_bfloat16"
_EXACT: Final = "float32"
_PREPROCESSING: Final = "keras.src.layers.preprocessing."


@dataclass(frozen=True, slots=True)
class Numerics:
    """How a training computes.

    Attributes:
        precision: Of products and activations in the training step.
        xla: Whether XLA compiles TensorFlow's step. "auto" leaves it as the network was compiled,
            which by Keras' own rule is yes on a GPU and no on a CPU. JAX compiles by XLA always.
    """

    precision: Precision = "float32"
    xla: Xla = "auto"

    def set_up(self, model: Any) -> None:
        """Sets a compiled network up to be trained so.

        Raises:
            UsageError: this process' GPU does not compute in bfloat16.
        """
        check_device(self.precision)
        if self.xla != "auto":
            model.jit_compile = self.xla == "on"

    def step(self, model: Any, step: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a training step of a network that computes in the precision.

        Args:
            step: `model.train_step`, or what calls it. The network's layers may not be called by
                another thread while it is traced.
        """
        if self.precision == "float32":
            return step

        def mixed(*args: Any, **kwargs: Any) -> Any:
            with _computing_mixed(model):
                return step(*args, **kwargs)

        return mixed


DEFAULT: Final = Numerics()


@contextmanager
def _computing_mixed(model: Any) -> Iterator[None]:
    before = [(layer, layer.dtype_policy) for layer in mixed_layers(model)]
    try:
        for layer, _ in before:
            layer.dtype_policy = _MIXED
        yield
    finally:
        for layer, policy in before:
            layer.dtype_policy = policy


def mixed_layers(model: Any) -> list[Any]:
    """Returns the layers that compute in bfloat16: all but those whose numbers need more digits.

    float32 stay the layers that take raw rows (a column's 51,234 is 51,200 in bfloat16), those that
    augment (they compute places of pixels), and those that make an output: logits, a reconstruction
    and its latent mean. So do models, which only hand on, and layers that say another dtype.
    """
    import keras

    every = [model, *model._flatten_layers(include_self=False)]
    exact: set[int] = set()
    for one in every:
        if isinstance(one, keras.Model):
            exact.add(id(one))
            alone = _output_layers(one)
        else:
            alone = [one] if _is_preprocessing(one) else []
        exact.update(id(part) for layer in alone for part in layer._flatten_layers())
    return [
        one
        for one in every
        if id(one) not in exact
        and one.dtype_policy.name == _EXACT
        and not isinstance(one, keras.layers.InputLayer)
    ]


def _output_layers(model: Any) -> list[Any]:
    """Returns the layers of a Functional or Sequential model that make its outputs.

    Those are the last with weights, and what comes after them: a Reshape, a Softmax.
    """
    import keras

    found: list[Any] = []
    waiting = list(getattr(model, "outputs", None) or ())
    while waiting:
        operation, node, _ = waiting.pop()._keras_history
        if isinstance(operation, keras.Model):
            continue  # its own outputs count
        if isinstance(operation, keras.layers.Layer):
            found.append(operation)
        if not getattr(operation, "weights", ()):
            waiting += operation._inbound_nodes[node].input_tensors
    return found


def _is_preprocessing(layer: Any) -> bool:
    return any(one.__module__.startswith(_PREPROCESSING) for one in type(layer).__mro__)


def check_device(precision: Precision) -> None:
    """Refuses a precision that this process' GPU lacks; a CPU has both. Runs in a worker.

    Raises:
        UsageError: names the GPU.
    """
    if precision == "float32":
        return
    for name, capability in find_keras_gpus():
        check_gpu(name, capability)


def check_gpu(name: str, capability: tuple[int, ...] | None) -> None:
    """Refuses a GPU without bfloat16; one that does not tell its capability is taken at its word.

    Raises:
        UsageError: names it.
    """
    if capability is not None and capability < LEAST_CAPABILITY:
        raise UsageError(
            f"--precision bfloat16 needs a GPU of compute capability 8.0 or more; {name} has "
            f"{'.'.join(map(str, capability))}. Leave --precision out."
        )


def find_keras_gpus() -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """Yields name and CUDA compute capability of the GPUs that Keras computes on."""
    import keras

    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        for device in tf.config.list_physical_devices("GPU"):
            details = tf.config.experimental.get_device_details(device)
            yield details.get("device_name", device.name), details.get("compute_capability")
    elif keras.config.backend() == "jax":
        import jax

        for device in jax.local_devices():
            said = getattr(device, "compute_capability", None)
            if device.platform == "gpu":
                yield device.device_kind, said and tuple(map(int, str(said).split(".")))
