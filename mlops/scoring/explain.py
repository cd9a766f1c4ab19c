"""Explanations: what each number of a row adds to the answer, by integrated gradients.

An explanation costs as much as hundreds of answers, so here is also how many are made at a time.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .compiled import listed

MAX_EXPLAINED: Final = 64
"""Most rows of a request that asks for explanations: each costs as much as hundreds of others."""

EXPLAINED_AT_ONCE: Final = 2
"""Most requests that are explained at a time: each keeps one of the server's threads."""
EXPLAIN_S: Final = 30.0
"""Seconds after which no further row of a request is explained: nobody waits for it any more."""

STEPS: Final = 128
"""Points of the path from the baseline to a row at which an explanation takes the gradient."""
_PASS: Final = 64  # of them at a time


class OverloadedError(Exception):
    """There is no room or time for an explanation."""


_explaining = threading.BoundedSemaphore(EXPLAINED_AT_ONCE)


@contextlib.contextmanager
def room_to_explain() -> Iterator[None]:
    """Keeps one of the places of explained requests; raises OverloadedError if none is free."""
    if not _explaining.acquire(blocking=False):
        raise OverloadedError(
            f"{EXPLAINED_AT_ONCE} requests are being explained, which is the most at a time; "
            "expected one without an explanation, or later."
        )
    try:
        yield
    finally:
        _explaining.release()


class Gradients:
    """Integrated gradients (Sundararajan, Taly & Yan 2017, section 3, equation 1).

    Of each number `x_i` of a row, `(x_i - b_i)` times the mean over `a` in [0, 1] of
    `dF(b + a (x - b)) / dx_i`, where b is the baseline and F the probability of one class, or of a
    VAE the anomaly score in nats. The mean is that of `STEPS` points, by the midpoint rule.

    Their sum is `F(x) - F(b)`, but for the error of that rule. Of 64 rows each of a trained CNN,
    DNN and GRU the largest was 0.016 and the mean 0.002 in probability, of a VAE 0.010 and 0.004
    nats; with 32 points they were 0.128 and 0.012, 0.056 and 0.016.

    Compiled at the first use, which takes seconds; later ones wait for it.
    """

    def __init__(
        self, network: Any, shape: Sequence[int], task: str, likelihood: str | None
    ) -> None:
        self._network = network
        self._shape = tuple(shape)
        self._task = task
        self._likelihood = likelihood
        self._lock = threading.Lock()
        self._compiled: Callable[..., tuple[Any, Any]] | None = None

    def integrated(
        self, row: npt.NDArray[np.float32], baseline: npt.NDArray[np.float32], target: int
    ) -> tuple[npt.NDArray[np.float32], float]:
        """Returns the attributions, of the row's shape, and what F is at the baseline."""
        far = row - baseline
        total = np.zeros_like(row)
        weights = np.array([*[1.0 / STEPS] * _PASS, 0.0], np.float32)
        for alphas in ((np.arange(STEPS) + 0.5) / STEPS).astype(np.float32).reshape(-1, _PASS):
            # The baseline is the last point, and counts for nothing.
            path = np.append(alphas, np.float32(0)).reshape(-1, *[1] * row.ndim)
            with self._lock:  # one at a time, so that explanations leave room for scores
                if self._compiled is None:
                    self._compiled = self._compile()
                slopes, values = self._compiled(baseline + path * far, weights, np.int32(target))
            total += np.asarray(slopes)
        return total * far, float(np.asarray(values)[-1])

    def _compile(self) -> Callable[..., tuple[Any, Any]]:
        """Returns what gives the weighted sum of the gradients at points, and F at each."""
        import keras

        network = _of_floats(self._network)

        def values(points: Any, target: Any) -> Any:
            return self._value(listed(network(points, training=False)), target)

        if keras.backend.backend() == "tensorflow":
            return _tensorflow_gradients(values, self._shape)
        if keras.backend.backend() == "jax":
            return _jax_gradients(values)
        raise RuntimeError("explanations need the backend tensorflow or jax")

    def _value(self, outputs: list[Any], target: Any) -> Any:
        """Returns F of each row, shape (n,), as a tensor."""
        from keras import ops

        if self._task == "classifier":
            return ops.take(outputs[0], target, axis=1)
        x, out, mean, log_var = (ops.reshape(o, (_PASS + 1, -1)) for o in outputs)
        if self._likelihood == "bernoulli":
            error = ops.maximum(out, 0.0) - out * x + ops.log1p(ops.exp(-ops.abs(out)))
        else:
            error = 0.5 * ops.square(x - out) + 0.5 * math.log(2.0 * math.pi)
        kl = -0.5 * (1.0 + log_var - ops.square(mean) - ops.exp(log_var))
        return ops.sum(error, axis=1) + ops.sum(kl, axis=1)


def _of_floats(network: Any) -> Any:
    """Returns the same layers, weights shared, as a network of float32.

    One of uint8 rows casts what it gets to uint8 first, and no gradient passes that.
    """
    import keras

    rows = keras.Input(network.inputs[0].shape[1:], dtype="float32")
    inputs = keras.tree.map_structure(lambda _: rows, network.input)
    return keras.models.clone_model(network, inputs, clone_function=lambda layer: layer)


def _tensorflow_gradients(values: Any, shape: tuple[int, ...]) -> Callable[..., tuple[Any, Any]]:
    import tensorflow as tf

    @tf.function(  # type: ignore[untyped-decorator, unused-ignore]
        input_signature=[
            tf.TensorSpec([_PASS + 1, *shape], tf.float32),
            tf.TensorSpec([_PASS + 1], tf.float32),
            tf.TensorSpec([], tf.int32),
        ]
    )
    def gradients(points: Any, weights: Any, target: Any) -> tuple[Any, Any]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(points)
            found = values(points, target)
            total = tf.reduce_sum(weights * found)
        slopes = tape.gradient(total, points, unconnected_gradients="zero")
        return tf.reduce_sum(slopes, axis=0), found

    return gradients  # type: ignore[no-any-return, unused-ignore]


def _jax_gradients(values: Any) -> Callable[..., tuple[Any, Any]]:
    import jax

    def total(points: Any, weights: Any, target: Any) -> tuple[Any, Any]:
        found = values(points, target)
        return (weights * found).sum(), found

    @jax.jit  # type: ignore[untyped-decorator, unused-ignore]
    def gradients(points: Any, weights: Any, target: Any) -> tuple[Any, Any]:
        slopes, found = jax.grad(total, has_aux=True)(points, weights, target)
        return slopes.sum(axis=0), found

    return gradients  # type: ignore[no-any-return, unused-ignore]
