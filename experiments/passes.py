"""Passes over rows: one epoch of training, a network's outputs, its metrics.

On TensorFlow, and on JAX (`jax_passes`), a pass is a compiled loop over rows. `Model.fit` feeds a
small network's batches one by one through an input pipeline, which takes longer than the network
(docs/benchmarks.md), and traces the training step twice where the optimizer and the metrics have no
variables yet. Under another backend, and where it runs eagerly, a pass is Keras' own.

On a GPU training rows stay in its memory from one epoch to the next where they have room there
(`device_rows`), and batches are gathered there. Of a CPU's rows each pass takes slices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from experiments.device_rows import DEVICE_SHARE, KeptRows
from experiments.numerics import DEFAULT, Numerics
from experiments.privacy.accounting import Privacy

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


def open_passes(
    model: Any,
    rows: tuple[np.ndarray, ...],
    numerics: Numerics = DEFAULT,
    privacy: Privacy | None = None,
) -> Passes:
    """Returns the passes of a compiled model; makes the variables that its training needs.

    Args:
        rows: What it will be trained on; the first row tells the shapes.
        numerics: What the model was set up for. Only training computes in its precision.
        privacy: What the training may spend; that needs JAX. None: it is not private.
    """
    import keras

    make_variables(model, tuple(part[:1] for part in rows))
    if privacy is not None:
        from experiments.privacy.passes import PrivatePasses

        return PrivatePasses(model, EVALUATION_BATCH, privacy)
    if model.run_eagerly:
        return _KerasPasses(model, numerics)
    if keras.config.backend() == "tensorflow":
        return TensorFlowPasses(model, rows, numerics, _room_on_gpu())
    if keras.config.backend() == "jax":
        from experiments.jax_passes import JaxPasses

        return JaxPasses(model, EVALUATION_BATCH, numerics)
    return _KerasPasses(model, numerics)


def make_variables(model: Any, row: tuple[np.ndarray, ...]) -> None:
    """Makes the variables that a model's training needs, from one row."""
    x, y, weight = (*row, None, None)[:3]
    y_pred = model(x, training=False)
    model.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=weight, training=False)
    model.compute_metrics(x, y, y_pred, sample_weight=weight)
    model.reset_metrics()
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)


def _room_on_gpu() -> float:
    """Returns the bytes that rows may take of the GPU's memory; 0 without a GPU."""
    import tensorflow as tf

    if not tf.config.list_logical_devices("GPU"):
        return 0.0
    in_use = tf.config.experimental.get_memory_info("GPU:0")["current"]
    return DEVICE_SHARE * float(max(0, _gpu_limit() - in_use))


@functools.cache
def _gpu_limit() -> int:
    """Returns the bytes that this process' TensorFlow may take of its first GPU."""
    from tensorflow.python.client import device_lib  # what is public tells no limit

    found = (one for one in device_lib.list_local_devices() if one.device_type == "GPU")
    return next((int(one.memory_limit) for one in found), 0)


class TensorFlowPasses:
    """One `tf.function` a kind of pass.

    Args:
        rows: Of the dtypes and shapes that it will be trained on.
        room_bytes: What training rows may take of the device's memory, to stay there. Others come
            there each epoch, in the order of the epoch, and batches are slices of them.
    """

    def __init__(
        self, model: Any, rows: tuple[np.ndarray, ...], numerics: Numerics, room_bytes: float
    ) -> None:
        import tensorflow as tf

        self._model = model
        train_step = numerics.step(model, model.train_step)
        self._kept = KeptRows(lambda part: tf.convert_to_tensor(_pack(part)), room_bytes)
        self._train = _loop(train_step, model.jit_compile, _slice)
        self._train_kept = _loop(train_step, model.jit_compile, _gather_of(rows))
        self._test = _loop(model.test_step, model.jit_compile, _slice)
        self._forward = tf.function(
            lambda x: model(x, training=False), reduce_retracing=True, autograph=False
        )

    def train(
        self, rows: tuple[np.ndarray, ...], order: np.ndarray, batch_size: int
    ) -> dict[str, float]:
        self._model.reset_metrics()
        kept = self._kept.find(rows)
        if kept is not None:
            self._train_kept((order, *kept), batch_size)
            return _means(self._model)
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


Take = Callable[[tuple[Any, ...], Any, Any], tuple[Any, ...]]
"""Takes tensors of equal length, and where a batch begins and ends; returns the batch."""


def _slice(rows: tuple[Any, ...], start: Any, end: Any) -> tuple[Any, ...]:
    return tuple(part[start:end] for part in rows)


def _gather_of(like: tuple[np.ndarray, ...]) -> Take:
    """Returns a `Take` of the order of the rows and, after it, of packed rows.

    Args:
        like: Arrays of the dtypes and shapes of the rows, before they were packed.
    """
    import tensorflow as tf

    def gather(ordered: tuple[Any, ...], start: Any, end: Any) -> tuple[Any, ...]:
        order, *rows = ordered
        chosen = order[start:end]
        return tuple(
            _unpack(tf.gather(part, chosen), one.dtype, one.shape[1:])
            for part, one in zip(rows, like, strict=True)
        )

    return gather


def _is_packed(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "iu" and dtype.itemsize < 4


def _pack(rows: np.ndarray) -> np.ndarray:
    """Returns rows of small integers as int64 `(n, words)`, others as they are.

    TensorFlow 2.21 gathers no integers below 32 bits on a GPU: it would do so on the CPU.
    """
    if not _is_packed(rows.dtype):
        return rows
    flat = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
    words = -(-flat.shape[1] // 8)
    packed = np.zeros((len(rows), 8 * words), np.uint8)
    packed[:, : flat.shape[1]] = flat
    return packed.view(np.int64)


def _unpack(rows: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    """Returns a tensor of packed rows as what they were, of this dtype and shape of a row."""
    import tensorflow as tf

    if not _is_packed(dtype):
        return rows
    size = int(np.prod(shape))
    flat = tf.reshape(tf.bitcast(rows, dtype), (tf.shape(rows)[0], -1))
    return tf.reshape(flat[:, :size], (-1, *shape))


def _loop(step: Callable[[Any], Any], jit_compile: bool, take: Take) -> Callable[..., None]:
    """Compiles a loop that calls `step` with one batch after another."""
    import tensorflow as tf

    if jit_compile:
        step = tf.function(step, jit_compile=True, reduce_retracing=True, autograph=False)

    def loop(rows: tuple[Any, ...], batch_size: Any) -> None:
        n = tf.shape(rows[0])[0]

        def body(start: Any) -> tuple[Any]:
            end = tf.minimum(start + batch_size, n)
            step(take(rows, start, end))
            return (end,)

        tf.while_loop(lambda start: start < n, body, (tf.constant(0),), parallel_iterations=1)

    compiled = tf.function(loop, reduce_retracing=True, autograph=False)

    def run(rows: tuple[Any, ...], batch_size: int) -> None:
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

    def __init__(self, model: Any, numerics: Numerics) -> None:
        self._model = model
        self._fit = numerics.step(model, model.fit)

    def train(
        self, rows: tuple[np.ndarray, ...], order: np.ndarray, batch_size: int
    ) -> dict[str, float]:
        x, y, weight = (*(part[order] for part in rows), None, None)[:3]
        history = self._fit(
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
