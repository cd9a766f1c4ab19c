"""Passes over rows on JAX: an epoch is one compiled loop, over rows that lie on the device.

A training's state is what Keras' own stateless step takes: weights, other variables (moving means,
generators), the optimizer's, the metrics'. Here it goes in and out of the model once a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.device_rows import DEVICE_SHARE, KeptRows
from experiments.numerics import Numerics

DEVICE_BYTES = 2**31
"""Rows up to this size are kept on a device that does not tell its memory: a CPU."""
CHUNK_BYTES = 2**28
"""Of more rows, so much is brought there at once."""

State = tuple[list[Any], list[Any], list[Any], list[Any]]
"""Weights, other variables, the optimizer's, the metrics'."""
Step = Callable[[State, tuple[Any, ...], Any], State]
"""Takes state, rows, and which of them; returns the state after a step on those."""


class JaxPasses:
    """The `Passes` of one compiled model."""

    def __init__(self, model: Any, evaluation_batch: int, numerics: Numerics) -> None:
        self._model = model
        self._batch = evaluation_batch
        step = numerics.step(model, model.train_step)
        self._train = compile_epoch(lambda state, rows, chosen: step(state, take(rows, chosen))[1])
        self._test = jax.jit(model.test_step)
        self._forward = jax.jit(
            lambda weights, others, x: model.stateless_call(weights, others, x, training=False)[0]
        )
        self._rows = DeviceRows()

    def train(
        self, rows: tuple[np.ndarray, ...], order: np.ndarray, batch_size: int
    ) -> dict[str, float]:
        self._model.reset_metrics()
        state = read_state(self._model)
        for part, chosen in self._rows.take(rows, order, batch_size):
            state = self._train(state, part, chosen, batch_size)
        write_state(self._model, state)
        return self._means()

    def evaluate(self, x: np.ndarray) -> dict[str, float]:
        self._model.reset_metrics()
        weights, others, optimizer, metrics = read_state(self._model)
        for start in range(0, len(x), self._batch):
            batch = (jnp.asarray(x[start : start + self._batch]),)
            _, (_, _, metrics) = self._test((weights, others, metrics), batch)
        write_state(self._model, (weights, others, optimizer, metrics))
        return self._means()

    def forward(self, x: np.ndarray) -> np.ndarray:
        weights, others, _, _ = read_state(self._model)
        batches = range(0, len(x), self._batch)
        return np.concatenate(
            [
                np.asarray(self._forward(weights, others, x[start : start + self._batch]))
                for start in batches
            ]
        )

    def _means(self) -> dict[str, float]:
        found = self._model.get_metrics_result().items()
        return {name: float(np.asarray(value)) for name, value in found}


class DeviceRows:
    """Rows on the device: from one epoch to the next, where they have room there."""

    def __init__(self) -> None:
        self._kept = KeptRows(jnp.asarray, room_bytes())

    def take(
        self, rows: tuple[np.ndarray, ...], order: np.ndarray, batch_size: int
    ) -> Iterator[tuple[tuple[Any, ...], Any]]:
        """Yields arrays on the device, and which of their rows come one after another.

        Args:
            rows: Arrays of equal length.
            order: int (n,); or (members, n), where each member has its own order.
            batch_size: Rows of a step; but for the last part each has whole batches.
        """
        kept = self._kept.find(rows)
        if kept is not None:
            yield kept, jnp.asarray(order)
            return
        row_bytes = sum(part.itemsize * int(np.prod(part.shape[1:])) for part in rows)
        n = max(1, CHUNK_BYTES // max(1, row_bytes * batch_size)) * batch_size
        for start in range(0, order.shape[-1], n):
            chosen = order[..., start : start + n]
            wanted, places = np.unique(chosen, return_inverse=True)
            part = tuple(jnp.asarray(part[wanted]) for part in rows)
            yield part, jnp.asarray(places.reshape(chosen.shape))


def room_bytes() -> float:
    """Returns the bytes that rows may take of the device's memory."""
    told = jax.local_devices()[0].memory_stats()
    if not told or "bytes_limit" not in told:
        return DEVICE_BYTES
    return DEVICE_SHARE * float(max(0, told["bytes_limit"] - told["bytes_in_use"]))


def compile_epoch(step: Step) -> Callable[[State, tuple[Any, ...], Any, int], State]:
    """Compiles a training on each row of an order once; the last batch has what is left.

    On a CPU each step is a call: inside a compiled loop XLA computes convolutions by one thread.
    Elsewhere the loop is compiled with its steps.

    Returns:
        Takes state, rows, order `(..., n)` of ints, and batch size; returns the state after it.
    """

    def all_whole(state: State, rows: tuple[Any, ...], order: Any, batch_size: int) -> State:
        batches = jnp.moveaxis(order.reshape(*order.shape[:-1], -1, batch_size), -2, 0)
        ended: State = jax.lax.scan(
            lambda state, chosen: (step(state, rows, chosen), None), state, batches
        )[0]
        return ended

    one = jax.jit(step)
    whole = jax.jit(all_whole, static_argnames="batch_size")

    def epoch(state: State, rows: tuple[Any, ...], order: Any, batch_size: int) -> State:
        n = order.shape[-1]
        n_whole = n - n % batch_size
        starts = range(0, n, batch_size)
        if jax.default_backend() != "cpu" and n_whole:
            state = whole(state, rows, order[..., :n_whole], batch_size)
            starts = range(n_whole, n, batch_size)
        for start in starts:
            state = one(state, rows, order[..., start : start + batch_size])
        return state

    return epoch


def take(rows: tuple[Any, ...], chosen: Any) -> tuple[Any, ...]:
    return tuple(part[chosen] for part in rows)


def read_state(model: Any) -> State:
    """Returns the state of a model's training."""
    return (
        [variable.value for variable in model.trainable_variables],
        [variable.value for variable in model.non_trainable_variables],
        [variable.value for variable in model.optimizer.variables],
        [variable.value for variable in model.metrics_variables],
    )


def write_state(model: Any, state: State) -> None:
    """Puts a state into the model that it is of."""
    for variables, values in zip(
        (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        ),
        state,
        strict=True,
    ):
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
