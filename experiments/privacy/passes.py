"""Passes of DP-SGD on JAX: Abadi et al. 2016, section 3.1, algorithm 1.

A step draws its batch (each row with the chance q, so its size varies), takes each row's gradient
g, scales it to g / max(1, |g| / C), adds N(0, (noise_multiplier * C)^2) to each coordinate of their
sum, and divides by the batch size that was asked for, never by the one that was drawn. What comes
out goes to the network's own optimizer: what is made of it costs no privacy. `jax-privacy` clips,
draws the batches and the noise; the accounting is in `experiments/privacy.py`.

Nothing else of the training rows leaves a pass. There are no means over them, so no training loss;
and what a network's layers would note of the rows they see (a moving mean) is thrown away.

The noise and the batches are secret: who knows them can take the noise off again. They come from
the operating system's entropy, not from the trial's seed, which stands on its run. Initial weights
alone come from that. So a private training cannot be repeated.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax_privacy import batch_selection, clipping, noise_addition

from experiments.device_rows import KeptRows
from experiments.jax_passes import JaxPasses, State, read_state, room_bytes, take, write_state
from experiments.numerics import Numerics
from experiments.privacy.accounting import Privacy
from mlops.errors import StructureError

Draw = Callable[[int], bytes]
"""Returns so many bytes that nobody can guess."""

GRADIENT_BYTES: Final = 2**30
"""What gradients of rows may take of a GPU's memory at once; more come in parts."""
SIGMAS: Final = 4.0
"""Standard deviations of a batch's size that it finds room for. One of 30,000 is larger."""
_SEEDS: Final = "seed_generator_state"


class PrivatePasses(JaxPasses):
    """The `Passes` of one compiled model that learns from its rows privately.

    Args:
        draw: Where the noise and the batches come from; tests pass in what they can repeat.
    """

    def __init__(
        self,
        model: Any,
        evaluation_batch: int,
        privacy: Privacy,
        draw: Draw = secrets.token_bytes,
    ) -> None:
        check_layers(model)
        super().__init__(model, evaluation_batch, Numerics())
        self._privacy = privacy
        self._draw = draw
        self._kept = KeptRows(jnp.asarray, room_bytes())
        self._steps: dict[int, Callable[..., State]] = {}

    def train(
        self, rows: tuple[np.ndarray, ...], order: np.ndarray, batch_size: int
    ) -> dict[str, float]:
        """Trains as many steps as the rows fill batches; each draws its own, whatever `order` is.

        Returns nothing: means over training rows would give away what the noise hides.
        """
        assert len(rows[0]) == self._privacy.n_rows  # or what is accounted is not what is done
        kept = self._kept.find(rows)
        width, part = self._shape_batch(batch_size)
        if batch_size not in self._steps:
            self._steps[batch_size] = self._compile(batch_size, part)
        step = self._steps[batch_size]
        state = read_state(self._model)
        for chosen, is_padding, key in self._draw_batches(width):
            batch = take(kept or rows, chosen)
            state = step(state, batch, is_padding, key)
        write_state(self._model, state)
        return {}

    def _shape_batch(self, batch_size: int) -> tuple[int, int]:
        """Returns the rows that nearly every batch finds room in, and how many go at once.

        On a CPU each goes alone: many at once take as long or longer, and so do those that are but
        padding.
        """
        rate = self._privacy.mechanism.rate
        rows = math.ceil(batch_size + SIGMAS * math.sqrt(batch_size * (1.0 - rate)))
        if jax.default_backend() == "cpu":
            return rows, 1
        n_weights = sum(int(np.prod(one.shape)) for one in self._model.trainable_variables)
        part = min(rows, max(1, GRADIENT_BYTES // (4 * max(1, n_weights))))
        return part * math.ceil(rows / part), part

    def _draw_batches(self, width: int) -> Iterator[tuple[np.ndarray, np.ndarray, Any]]:
        """Yields which rows, `(k * width,)`; which of them are padding; and the key of the noise.

        A batch that is larger than its room is never cut short: it gets twice as much, or more.
        """
        mechanism = self._privacy.mechanism
        generator = np.random.default_rng(int.from_bytes(self._draw(16), "little"))
        batches = batch_selection.CyclicPoissonSampling(
            sampling_prob=mechanism.rate, iterations=mechanism.steps_per_epoch
        )
        for found in batches.batch_iterator(self._privacy.n_rows, rng=generator):
            chosen = np.zeros(width * max(1, math.ceil(len(found) / width)), np.int32)
            chosen[: len(found)] = found
            yield chosen, np.arange(len(chosen)) >= len(found), self._draw_key()

    def _draw_key(self) -> Any:
        return jax.random.wrap_key_data(jnp.asarray(np.frombuffer(self._draw(8), np.uint32)))

    def _compile(self, batch_size: int, part: int) -> Callable[..., State]:
        """Compiles a step on a batch `(k * part, ...)`."""
        model, clip = self._model, self._privacy.clip
        noise_std = self._privacy.mechanism.noise_multiplier * clip

        def step(state: State, batch: tuple[Any, ...], is_padding: Any, key: Any) -> State:
            weights, others, optimizer, metrics = state
            of_rows, of_noise = jax.random.split(key)
            at_once = part if len(is_padding) > part else None
            gradients = sum_clipped(model, state, batch, is_padding, of_rows, clip, at_once)
            noisy = add_noise(gradients, noise_std, of_noise)
            mean = [one / batch_size for one in noisy]
            weights, optimizer = model.optimizer.stateless_apply(optimizer, mean, weights)
            return weights, others, optimizer, metrics

        compiled: Callable[..., State] = jax.jit(step)
        return compiled


def sum_clipped(
    model: Any,
    state: State,
    batch: tuple[Any, ...],
    is_padding: Any,
    key: Any,
    clip: float,
    at_once: int | None = None,
) -> list[Any]:
    """Returns the sum of the rows' gradients, each clipped to the L2 norm `clip` over all weights.

    Args:
        batch: x `(n, ...)`, or x and y.
        is_padding: bool (n,): rows that count as no rows.
        key: What the rows' dropout, noise and augmentation follow from, each its own.
        at_once: Rows whose gradients are held at once; divides n. None: all.
    """
    weights, others, optimizer, metrics = state
    is_seed = [variable.name == _SEEDS for variable in model.non_trainable_variables]

    def loss(weights: list[Any], key: Any, *row: Any) -> Any:
        seeds = jax.random.bits(key, (len(others), 2), jnp.uint32)
        own = [
            seed if mine else other
            for mine, seed, other in zip(is_seed, seeds, others, strict=True)
        ]
        x, y = (*row, None)[:2]
        return model.compute_loss_and_updates(
            weights, own, metrics, x, y, None, training=True, optimizer_variables=optimizer
        )[0]

    of_batch = clipping.clipped_grad(
        loss,
        l2_clip_norm=clip,
        batch_argnums=tuple(range(2, 2 + len(batch))),
        prng_argnum=1,
        microbatch_size=at_once,
    )
    found: list[Any] = of_batch(weights, key, *batch, is_padding_example=is_padding)
    return found


def add_noise(gradients: list[Any], std: float, key: Any) -> list[Any]:
    """Returns gradients plus a normal number of standard deviation `std` in each coordinate."""
    privatizer = noise_addition.gaussian_privatizer(stddev=std, prng_key=key)
    noisy: list[Any] = privatizer.update(gradients, privatizer.init(gradients))[0]
    return noisy


def check_layers(model: Any) -> None:
    """Refuses a network that mixes the rows of a batch.

    Raises:
        StructureError: it normalises over its batch.
    """
    import keras

    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            raise StructureError(
                f"the layer {layer.name!r} normalises over its batch, so that a row's gradient "
                "tells of the other rows; a private training needs a network without. "
                "Use LayerNormalization or GroupNormalization."
            )
