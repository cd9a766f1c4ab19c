"""The network's forward pass, compiled by the backend that Keras runs on, and warm.

TensorFlow and JAX are imported when a network is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .batches import BATCH

Forward = Callable[[npt.NDArray[Any]], list[npt.NDArray[Any]]]

CHUNK_ROWS: Final = 1024
"""Most rows of one forward pass; more go through in turns, so that memory stays bounded."""


def most_rows(max_batch: int) -> int:
    """Returns the most rows of one forward pass."""
    import keras

    if keras.backend.backend() != "jax":
        return CHUNK_ROWS
    # Each padded size takes a compilation, so not up to CHUNK_ROWS. At least BATCH: who shares no
    # passes still sends many rows.
    return 1 << (max(max_batch, BATCH) - 1).bit_length()


def compile_forward(network: Any, shape: Sequence[int], dtype: str, n_rows: int = 1) -> Forward:
    """Returns the forward pass, compiled and warm for 1 to `n_rows` rows: no request waits."""
    import keras

    if keras.backend.backend() == "tensorflow":
        return _compile_tensorflow(network, shape, dtype)
    if keras.backend.backend() == "jax":
        return _compile_jax(network, shape, dtype, n_rows)

    def forward(rows: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        outputs = listed(network(rows, training=False))
        return [keras.ops.convert_to_numpy(output) for output in outputs]

    forward(np.zeros((1, *shape), dtype))
    return forward


def _compile_tensorflow(network: Any, shape: Sequence[int], dtype: str) -> Forward:
    import tensorflow as tf

    # One trace for every number of rows, which are not padded to a few sizes: on a CPU the first
    # pass of a new size took up to 5 ms longer, once, and padding to powers of two made passes of
    # 1 to 32 rows 16 to 33% slower (baseline CNN, 32x32x3). Its concrete function: tf.function's
    # own dispatch took 0.12 ms of 0.54 a row. Not jit_compile: XLA was 2 to 4 times slower for
    # small networks on a CPU.
    signature = [tf.TensorSpec([None, *shape], dtype)]
    compiled = tf.function(
        lambda rows: listed(network(rows, training=False)), input_signature=signature
    ).get_concrete_function()

    def forward(rows: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        return [output.numpy() for output in compiled(tf.constant(rows))]

    for n in (1, 2):  # several rows take other kernels than one
        forward(np.zeros((n, *shape), dtype))
    return forward


def _compile_jax(network: Any, shape: Sequence[int], dtype: str, n_rows: int) -> Forward:
    """JAX compiles anew for each number of rows: they are padded to powers of two."""
    import jax

    variables = [variable.value for variable in network.trainable_variables]
    others = [variable.value for variable in network.non_trainable_variables]

    @jax.jit  # type: ignore[untyped-decorator, unused-ignore]
    def compiled(variables: Any, others: Any, rows: Any) -> list[Any]:
        return listed(network.stateless_call(variables, others, rows, training=False)[0])

    def forward(rows: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        n = len(rows)
        padded = np.zeros((1 << (n - 1).bit_length(), *shape), dtype)
        padded[:n] = rows
        return [np.asarray(output)[:n] for output in compiled(variables, others, padded)]

    for power in range((n_rows - 1).bit_length() + 1):
        forward(np.zeros((1 << power, *shape), dtype))
    return forward


def listed(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
