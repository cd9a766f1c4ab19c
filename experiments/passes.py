"""Passes over rows: one epoch of training, a network's outputs, its metrics.

On TensorFlow, and on JAX (`jax_passes`), a pass is a compiled loop over rows. `Model.fit` feeds a
small network's batches one by one through an input pipeline, which takes longer than the network
(docs/benchmarks.md), and traces the training step twice where the optimizer and the metrics have no
variables yet. Under another backend, and where it runs eagerly, a pass is Keras' own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

EVALUATION_BATCH = 512
CHUNK_BYTES = 64 * 2**20
"""Rows that are handed to a compiled loop at once: a dataset larger than this, or one that is
mapped from disk, is never copied whole."""


class Passes(Protocol):
    """What is done with a network's rows.

    `rows` are arrays of equal length: x, or x and y and the weight of each row in the loss.
    """

    def train(
        self, rows: tuple[np.ndarray, ...], order: np.ndarray, batch_size: int
    ) -> dict[str, float]:
        """Trains on each row once, in this order; returns the means over the epoch by name."""
        ...

    def evaluate(self, x: np.ndarray) -> dict[str, float]:
        """Returns loss and metrics of a network that learns from x alone, by name."""
        ...

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Returns the network's output for each row, as in serving."""
        ...


def open_passes(model: Any, rows: tuple[np.ndarray, ...]) -> Passes:
    """Returns the passes of a compiled model; makes the variables that its training needs.

    Args:
        rows: What it will be trained on; the first row tells the shapes.
    """
    import keras

    make_variables(model, tuple(part[:1] for part in rows))
    if model.run_eagerly:
        return _KerasPasses(model)
    if keras.config.backend() == "tensorflow":
        return _TensorFlowPasses(model)
    if keras.config.backend() == "jax":
        from experiments.jax_passes import JaxPasses

        return JaxPasses(model, EVALUATION_BATCH)
    return _KerasPasses(model)


def make_variables(model: Any, row: tuple[np.ndarray, ...]) -> None:
    """Makes the variables that a model's training needs, from one row."""
    x, y, weight = (*row, None, None)[:3]
    y_pred = model(x, training=False)
    model.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=weight, training=False)
    model.compute_metrics(x, y, y_pred, sample_weight=weight)
    model.reset_metrics()
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)


class _TensorFlowPasses:
    """One `tf.function` a kind of pass; batches are slices of tensors."""

    def __init__(self, model: Any) -> None:
        import tensorflow as tf

        self._model = model
        self._train = _loop(model.train_step, model.jit_compile)
        self._test = _loop(model.test_step, model.jit_compile)
        self._forward = tf.function(
            lambda x: model(x, training=False), reduce_retracing=True, autograph=False
        )

    def train(
        self, rows: tuple[np.ndarray, ...], order: np.ndarray, batch_size: int
    ) -> dict[str, float]:
        self._model.reset_metrics()
        for chosen in _chunks(order, rows, batch_size):
            self._train(tuple(part[chosen] for part in rows), batch_size)
        return _means(self._model)

    def evaluate(self, x: np.ndarray) -> dict[str, float]:
        self._model.reset_metrics()
        for chosen in _chunks(np.arange(len(x)), (x,), EVALUATION_BATCH):
            self._test((x[chosen],), EVALUATION_BATCH)
        return _means(self._model)

    def forward(self, x: np.ndarray) -> np.ndarray:
        batches = range(0, len(x), EVALUATION_BATCH)
        return np.concatenate(
            [np.asarray(self._forward(x[start : start + EVALUATION_BATCH])) for start in batches]
        )


def _loop(step: Callable[[Any], Any], jit_compile: bool) -> Callable[..., None]:
    """Compiles a loop that calls `step` with one batch after another."""
    import tensorflow as tf

    if jit_compile:
        step = tf.function(step, jit_compile=True, reduce_retracing=True, autograph=False)

    def loop(rows: tuple[Any, ...], batch_size: Any) -> None:
        n = tf.shape(rows[0])[0]

        def body(start: Any) -> tuple[Any]:
            end = tf.minimum(start + batch_size, n)
            step(tuple(part[start:end] for part in rows))
            return (end,)

        tf.while_loop(lambda start: start < n, body, (tf.constant(0),), parallel_iterations=1)

    compiled = tf.function(loop, reduce_retracing=True, autograph=False)

    def run(rows: tuple[np.ndarray, ...], batch_size: int) -> None:
        # As tensors: the length of an array would be a constant of the graph.
        compiled(tuple(map(tf.convert_to_tensor, rows)), tf.constant(batch_size))

    return run


def _chunks(
    order: np.ndarray, rows: tuple[np.ndarray, ...], batch_size: int
) -> Iterator[np.ndarray]:
    """Yields parts of an order, each of whole batches but for the last."""
    row_bytes = sum(part.itemsize * int(np.prod(part.shape[1:])) for part in rows)
    n = max(1, CHUNK_BYTES // max(1, row_bytes * batch_size)) * batch_size
    for start in range(0, len(order), n):
        yield order[start : start + n]


class _KerasPasses:
    """The same by `Model.fit` and its kin: without a loop of ours."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def train(
        self, rows: tuple[np.ndarray, ...], order: np.ndarray, batch_size: int
    ) -> dict[str, float]:
        x, y, weight = (*(part[order] for part in rows), None, None)[:3]
        history = self._model.fit(
            x, y, sample_weight=weight, batch_size=batch_size, shuffle=False, verbose=0
        ).history
        return {name: float(values[-1]) for name, values in history.items()}

    def evaluate(self, x: np.ndarray) -> dict[str, float]:
        found = self._model.evaluate(x, batch_size=EVALUATION_BATCH, verbose=0, return_dict=True)
        return {name: float(value) for name, value in found.items()}

    def forward(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self._model.predict(x, batch_size=EVALUATION_BATCH, verbose=0))


def _means(model: Any) -> dict[str, float]:
    return {name: float(np.asarray(value)) for name, value in model.get_metrics_result().items()}
