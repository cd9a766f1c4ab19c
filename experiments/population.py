"""Trains many networks of one shape in one compiled program, on JAX.

A small network leaves most of a GPU idle, and most of a CPU's time goes into the call of a step. So
the states of P trainings are stacked, and one `jax.vmap` of the training step moves all of them on.
What members may differ in is what their networks hold in variables: weights, the learning rate, the
rates of dropout, a VAE's beta, the state of every generator, and the order of the rows.

P is part of a training: XLA may round a program of another P otherwise. At one P a member's weights
are the same, bit for bit, whoever its neighbours are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from experiments.architectures import Architecture, Params
from experiments.checkpoint import Progress
from experiments.jax_passes import DeviceRows, State, compile_epoch, read_state, take
from experiments.numerics import DEFAULT, Numerics
from experiments.passes import EVALUATION_BATCH, make_variables
from experiments.training import (
    OnEpoch,
    Trained,
    hash_weights,
    named,
    note_epoch,
    order_rows,
    row_weights,
    score_classifier,
    seed_keras,
)
from mlops.data import Dataset
from mlops.errors import StructureError


@dataclass(frozen=True, slots=True)
class Member:
    """A training of a population.

    Attributes:
        on_epoch: Is told of each epoch; returns True to stop the training there.
        on_end: Is told how it went, or why it could not go on.
    """

    params: Params
    seed: int
    on_epoch: OnEpoch
    on_end: Callable[[Trained | Exception], None]


@dataclass(slots=True)
class _Slot:
    """A member under way.

    Attributes:
        model: Its own, built as if it were alone; what is packaged of it in the end.
    """

    member: Member
    model: Any
    progress: Progress = field(default_factory=Progress)


class VariableDropout(keras.layers.Layer):  # type: ignore[misc]
    """Dropout whose rate is a variable: 0 to below 1. `keras.layers.Dropout` has it in its code."""

    def __init__(self, rate: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.generator = keras.random.SeedGenerator(0)
        # Not cast to the precision of what it drops: a rate has more digits.
        self.rate = keras.Variable(rate, dtype="float32", trainable=False, autocast=False)

    def call(self, inputs: Any, training: bool = False) -> Any:
        if not training:
            return inputs
        key = jnp.asarray(self.generator.next(), jnp.uint32)
        keep = 1.0 - self.rate.value
        mask = jax.random.bernoulli(key, keep, inputs.shape)
        kept = (inputs / keep).astype(inputs.dtype)
        return jnp.where(mask, kept, jnp.zeros_like(inputs))


class Population:
    """P trainings of one architecture on one dataset, side by side.

    Args:
        size: P.
        epochs: Of each member.
        objective: The metric that is maximised, as in a `Description`.
        numerics: How each member's training computes.
    """

    def __init__(
        self,
        architecture: Architecture,
        dataset: Dataset,
        *,
        size: int,
        epochs: int,
        objective: str,
        numerics: Numerics = DEFAULT,
    ) -> None:
        self._numerics = numerics
        self._architecture = architecture
        self._dataset = dataset
        self._epochs = epochs
        self._objective = objective
        self._slots: list[_Slot | None] = [None] * size
        self._labelled = architecture.task == "classifier"
        self._train, self._val = dataset.part("train"), dataset.part("val")  # copies: taken once
        self._weights: dict[str, np.ndarray] = {}
        self._rows = DeviceRows()
        self._program: _Program | None = None
        self._state: State | None = None

    def train(self, members: Iterator[Member]) -> None:
        """Trains members until there are none: as one ends, the next takes its place."""
        self._fill(members)
        while any(self._slots):
            self._run_epoch()
            self._fill(members)

    def _fill(self, members: Iterator[Member]) -> None:
        for place, slot in enumerate(self._slots):
            while slot is None and (member := next(members, None)) is not None:
                slot = self._begin(member, place)
                self._slots[place] = slot

    def _begin(self, member: Member, place: int) -> _Slot | None:
        """Builds a member's network as if it were alone, and lays its state into a place."""
        try:
            keras.backend.clear_session()  # so that layers have the same names
            seed_keras(member.seed)
            n_classes = len(self._dataset.class_names)
            model = self._architecture.build(member.params, self._dataset.input, n_classes)
            self._numerics.set_up(model)
            make_variables(model, tuple(part[:1] for part in self._train_rows(member)))
            if self._program is None:
                self._program = _Program(model, self._numerics)
            state = self._program.state_of(model)
        except Exception as err:
            member.on_end(err)
            return None
        if self._state is None:  # what is in the places that nobody takes is nobody's
            self._state = jax.tree.map(lambda one: jnp.stack([one] * len(self._slots)), state)
        else:
            self._state = _put(self._state, state, place)
        return _Slot(member, model)

    def _train_rows(self, member: Member) -> tuple[np.ndarray, ...]:
        """Returns the same arrays each time: so they stay on the device."""
        x, y = self._train
        if not self._labelled:
            return (x,)
        weighing = member.params.get("class_weight", "none")
        if weighing not in self._weights:
            n_classes = len(self._dataset.class_names)
            self._weights[weighing] = row_weights(member.params, y, n_classes)
        return (x, y, self._weights[weighing])

    def _run_epoch(self) -> None:
        """Trains all places by one epoch, and tells of those that are somebody's."""
        assert self._program is not None and self._state is not None
        live = {place: slot for place, slot in enumerate(self._slots) if slot is not None}
        began = time.perf_counter()
        some = next(iter(live.values()))
        rows, batch_size = self._train_rows(some.member), some.member.params.get("batch_size", 32)
        order = np.tile(np.arange(len(rows[0])), (len(self._slots), 1))
        for place, slot in live.items():
            epoch = len(slot.progress.history)
            order[place] = order_rows(slot.member.seed, epoch, len(rows[0]))
        state = self._program.reset_metrics(self._state)
        for part, chosen in self._rows.take(rows, order, batch_size):
            state = self._program.train(state, part, chosen, batch_size)
        self._state = state
        trained = self._program.read_metrics(state, live)
        validated = self._validate(live)
        rates = self._program.learning_rates(state)
        spent_s = time.perf_counter() - began
        for place, slot in live.items():
            metrics = named("train", trained[place]) | validated[place]
            metrics |= {"learning_rate": float(rates[place]), "epoch_s": spent_s}
            self._tell(place, slot, metrics)

    def _tell(self, place: int, slot: _Slot, metrics: dict[str, float]) -> None:
        assert self._program is not None and self._state is not None
        state, program, epoch = self._state, self._program, len(slot.progress.history)
        try:
            finite = note_epoch(
                slot.progress,
                epoch,
                metrics,
                self._objective,
                lambda: program.weights(state, place),
            )
            stopped = slot.member.on_epoch(epoch, metrics)
        except Exception as err:
            self._slots[place] = None
            slot.member.on_end(err)
            return
        if stopped or not finite or epoch + 1 >= self._epochs:
            self._slots[place] = None
            slot.member.on_end(self._finish(place, slot, stopped=stopped))

    def _finish(self, place: int, slot: _Slot, *, stopped: bool) -> Trained:
        assert self._program is not None and self._state is not None
        progress, model = slot.progress, slot.model
        best = progress.best_weights or self._program.weights(self._state, place)
        model.set_weights(best)
        return Trained(
            model=model,
            history=tuple(progress.history),
            best_epoch=progress.best_epoch,
            value=progress.best_value,
            stopped=stopped,
            weights_sha256=hash_weights(model),
        )

    def _validate(self, live: dict[int, _Slot]) -> dict[int, dict[str, float]]:
        assert self._program is not None and self._state is not None
        x, y = self._val
        if not self._labelled:
            found = self._program.evaluate(self._state, x, live)
            return {place: named("val", one) for place, one in found.items()}
        logits = self._program.forward(self._state, x)
        n_classes = len(self._dataset.class_names)
        return {
            place: score_classifier(slot.model, logits[place], y, n_classes)
            for place, slot in live.items()
        }


class _Program:
    """The compiled passes of a population, and how its stacked state relates to single models."""

    def __init__(self, model: Any, numerics: Numerics) -> None:
        self._signature = _signature(model)
        self._model = model = _with_variable_dropout(model)
        step = numerics.step(model, model.train_step)
        self._epoch = compile_epoch(
            lambda state, rows, chosen: jax.vmap(lambda one, mine: step(one, take(rows, mine))[1])(
                state, chosen
            )
        )
        self._test = jax.jit(
            lambda state, x: jax.vmap(lambda one: model.test_step(one, (x,))[1])(state)
        )
        self._forward = jax.jit(
            jax.vmap(
                lambda weights, others, x: model.stateless_call(weights, others, x, training=False)[
                    0
                ],
                in_axes=(0, 0, None),
            )
        )
        self._rates = {
            id(layer.rate) for layer in model.layers if isinstance(layer, VariableDropout)
        }
        kept = [variable for variable in model.weights if id(variable) not in self._rates]
        index = {
            id(variable): (group, place)
            for group, variables in enumerate(_variables(model)[:2])
            for place, variable in enumerate(variables)
        }
        self._weights_at = [index[id(variable)] for variable in kept]
        self._rate_at = [id(one) for one in model.optimizer.variables].index(
            id(model.optimizer._learning_rate)
        )

    def state_of(self, model: Any) -> State:
        """Returns the state of a model that was built alone, as this program has it.

        Raises:
            StructureError: its shape or its code is another.
        """
        if _signature(model) != self._signature:
            raise StructureError(
                "a network differs from others of its population in more than its variables; "
                "expected params of one shape."
            )
        if not self._rates:
            return read_state(model)
        values: dict[int, Any] = {}
        for own, single in zip(self._model.layers, model.layers, strict=True):
            if isinstance(own, VariableDropout):
                generator = getattr(single, "seed_generator", own.generator)
                values[id(own.generator.state)] = generator.state.value
                values[id(own.rate)] = jnp.asarray(single.rate, jnp.float32)
                continue
            for mine, its in zip(own.variables, single.variables, strict=True):
                values[id(mine)] = its.value
        weights, others, _, _ = _variables(self._model)
        _, _, optimizer, metrics = read_state(model)
        return (
            [values[id(one)] for one in weights],
            [values[id(one)] for one in others],
            optimizer,
            metrics,
        )

    def train(self, state: State, rows: tuple[Any, ...], order: Any, batch_size: int) -> State:
        return self._epoch(state, rows, order, batch_size)

    def forward(self, state: State, x: np.ndarray) -> np.ndarray:
        """Returns the outputs `(size, n, ...)` of all places."""
        batches = range(0, len(x), EVALUATION_BATCH)
        parts = [
            np.asarray(self._forward(state[0], state[1], x[start : start + EVALUATION_BATCH]))
            for start in batches
        ]
        return np.concatenate(parts, axis=1)

    def evaluate(self, state: State, x: np.ndarray, places: Any) -> dict[int, dict[str, float]]:
        weights, others, optimizer, metrics = self.reset_metrics(state)
        for start in range(0, len(x), EVALUATION_BATCH):
            batch = jnp.asarray(x[start : start + EVALUATION_BATCH])
            _, _, metrics = self._test((weights, others, metrics), batch)
        return self.read_metrics((weights, others, optimizer, metrics), places)

    def reset_metrics(self, state: State) -> State:
        weights, others, optimizer, metrics = state
        return weights, others, optimizer, [jnp.zeros_like(one) for one in metrics]

    def read_metrics(self, state: State, places: Any) -> dict[int, dict[str, float]]:
        values = [np.asarray(one) for one in state[3]]
        found = {}
        for place in places:
            for variable, value in zip(self._model.metrics_variables, values, strict=True):
                variable.assign(value[place])
            means = self._model.get_metrics_result()
            found[place] = {name: float(np.asarray(one)) for name, one in means.items()}
        return found

    def learning_rates(self, state: State) -> np.ndarray:
        return np.asarray(state[2][self._rate_at])

    def weights(self, state: State, place: int) -> list[np.ndarray]:
        """Returns a member's weights, in the order of `get_weights` of its own model."""
        return [np.array(state[group][index][place]) for group, index in self._weights_at]


def _put(state: State, one: State, place: int) -> State:
    """Returns a stacked state with another member in a place."""
    put: State = jax.tree.map(lambda all_, mine: all_.at[place].set(mine), state, one)
    return put


def _variables(model: Any) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    return (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )


def _signature(model: Any) -> str:
    """Returns what a model is but for its variables: two of one signature run by one program."""
    found: list[Any] = []
    for layer in model.layers:
        config = layer.get_config()
        if type(layer) is keras.layers.Dropout:
            del config["rate"]
        found.append((type(layer).__name__, config))
    optimizer = model.optimizer.get_config()
    del optimizer["learning_rate"]
    compiled = dict(model.get_compile_config() or {}) | {"optimizer": optimizer}
    return repr((found, compiled))


def _with_variable_dropout(model: Any) -> Any:
    """Returns the model with rates of dropout in variables; all else is shared with it."""
    if not any(type(layer) is keras.layers.Dropout for layer in model.layers):
        return model

    def change(layer: Any) -> Any:
        if type(layer) is keras.layers.Dropout:
            return VariableDropout(layer.rate, name=layer.name)
        return layer

    changed = keras.models.clone_model(model, clone_function=change)
    changed.compile_from_config(model.get_compile_config())
    return changed
