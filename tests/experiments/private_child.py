"""Private trainings on JAX, for tests: Keras takes its backend but once a process.

`python -m tests.experiments.private_child` prints what came out as one JSON line. With the names of
architectures it trains those privately, three epochs each.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from experiments.architectures import open_architecture
from experiments.built_in import BUILT_IN
from experiments.checkpoint import Checkpoint
from experiments.jax_passes import JaxPasses, read_state
from experiments.numerics import DEFAULT
from experiments.passes import EVALUATION_BATCH, make_variables
from experiments.privacy import passes as private_passes
from experiments.privacy.accounting import Mechanism, Privacy, plan
from experiments.training import hash_weights, seed_keras, train
from mlops.data import Dataset, load_dataset
from mlops.errors import StructureError

N = 48
HUGE = 1e9


def build(
    dropout: float = 0.0,
    optimizer: Callable[[], Any] = lambda: keras.optimizers.SGD(0.5),
    norm: Any = None,
) -> Any:
    """Returns a network of 8 -> 16 -> 3, with all its variables."""
    seed_keras(3)
    layers = [keras.layers.Dense(16, activation="tanh")]
    layers += [] if norm is None else [norm]
    layers += [keras.layers.Dropout(dropout), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((8,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer(), loss=loss)
    make_variables(model, tuple(part[:1] for part in ROWS))
    return model


_random = np.random.default_rng(5)
ROWS = (_random.normal(size=(N, 8)).astype(np.float32), _random.integers(0, 3, N).astype(np.int64))


def norm_of(gradients: list[Any]) -> float:
    return float(np.sqrt(sum(float((np.asarray(one, np.float64) ** 2).sum()) for one in gradients)))


def passes(model: Any, mechanism: Mechanism, clip: float, seed: int | None = 0) -> Any:
    privacy = Privacy(1.0, 1e-5, clip, N, mechanism)
    if seed is None:
        return private_passes.PrivatePasses(model, EVALUATION_BATCH, privacy)
    return private_passes.PrivatePasses(model, EVALUATION_BATCH, privacy, _bytes(seed))


def distance_to_plain_step() -> float:
    """Between weights after a step on all rows: private without noise or clipping, and plain."""
    private, plain = build(), build()
    passes(private, Mechanism(0.0, 1.0, 1), HUGE).train(ROWS, np.arange(N), N)
    plain_rows = (*ROWS, np.ones(N, np.float32))
    JaxPasses(plain, EVALUATION_BATCH, DEFAULT).train(plain_rows, np.arange(N), N)
    start = build().get_weights()
    after = list(zip(private.get_weights(), plain.get_weights(), start, strict=True))
    assert max(float(np.abs(b - c).max()) for _, b, c in after) > 0.01  # a step was made
    return max(float(np.abs(a - b).max()) for a, b, _ in after)


def share_of_clip() -> dict[str, float]:
    """The largest norm of one row's gradient over the clipping norm, for rows of all sizes."""
    model = build()
    state, key = read_state(model), jax.random.key(0)
    found: dict[str, float] = {}

    @jax.jit
    def one(x: Any, y: Any, clip: Any) -> Any:
        return private_passes.sum_clipped(model, state, (x, y), jnp.zeros(1, bool), key, clip)

    for clip in (1e-3, 0.1, 1.0, 100.0):
        norms = []
        for factor in (1e-6, 1.0, 1e3, 1e8, np.inf, np.nan):
            for index in range(6):
                x = ROWS[0][index : index + 1] * np.float32(factor)
                norms.append(norm_of(one(x, ROWS[1][index : index + 1], clip)))
        found[str(clip)] = max(norms) / clip
    return found


def report_sums() -> dict[str, float]:
    """How far the sum of some rows is from the same rows beside padding, and in parts."""
    model = build()
    state, key = read_state(model), jax.random.key(0)
    padding = np.arange(N) >= N // 2

    @functools.partial(jax.jit, static_argnums=2)
    def sums(rows: Any, is_padding: Any, at_once: int | None = None) -> list[Any]:
        return private_passes.sum_clipped(model, state, rows, is_padding, key, 0.5, at_once)

    alone = sums(tuple(part[: N // 2] for part in ROWS), padding[: N // 2])
    beside, in_parts = sums(ROWS, padding), sums(ROWS, padding, 8)
    each = sums(ROWS, padding, 1)
    nothing = sums(ROWS, np.ones(N, bool))

    def apart(one: list[Any]) -> float:
        return max(float(jnp.abs(a - b).max()) for a, b in zip(alone, one, strict=True))

    return {
        "size": norm_of(alone),
        "beside": apart(beside),
        "in_parts": apart(in_parts),
        "each": apart(each),
        "nothing": norm_of(nothing),
    }


def dropout_differs() -> float:
    """How far the gradients of two equal rows of one batch are apart, where dropout differs."""
    model = build(dropout=0.5)
    state, key = read_state(model), jax.random.key(0)
    twice = tuple(np.repeat(part[:1], 2, axis=0) for part in ROWS)

    @jax.jit
    def one(padding: Any) -> Any:
        return private_passes.sum_clipped(model, state, twice, padding, key, HUGE)

    first, second = (one(np.array(padding)) for padding in ([False, True], [True, False]))
    return norm_of([a - b for a, b in zip(first, second, strict=True)])


def noise_of_steps() -> dict[str, float]:
    """The noise that steps on no row at all add to the weights, in units of what it should be.

    A step of SGD at rate 1 subtracts noise / batch size.
    """
    noise, clip, n_steps, batch_size = 1.7, 0.3, 200, 16
    model = build(optimizer=lambda: keras.optimizers.SGD(1.0))
    start = np.concatenate([one.ravel() for one in model.get_weights()])
    mechanism = Mechanism(noise, 1e-12, n_steps)  # no row is ever drawn
    passes(model, mechanism, clip, seed=11).train(ROWS, np.arange(N), batch_size)
    moved = np.concatenate([one.ravel() for one in model.get_weights()]) - start
    per_step = moved * batch_size / np.sqrt(n_steps)
    added = private_passes.add_noise([jnp.zeros((400, 500))], noise * clip, jax.random.key(1))[0]
    return {
        "n_moved": moved.size,
        "moved": float(per_step.std() / (noise * clip)),
        "added": float(np.asarray(added).std() / (noise * clip)),
        "added_mean": float(np.asarray(added).mean() / (noise * clip)),
    }


def report_batches() -> dict[str, Any]:
    """What batches hold: sizes beside a binomial's, and how often each row is in one."""
    model = build()
    n_steps, rate = 1000, 0.25
    one = passes(model, Mechanism(1.0, rate, n_steps), 1.0, seed=2)
    times, sizes, keys, repeats = np.zeros(N), [], set(), 0
    for chosen, is_padding, key in one._draw_batches(10):
        rows = chosen[~is_padding]
        times[rows] += 1
        sizes.append(len(rows))
        repeats += len(rows) - len(set(rows.tolist()))
        keys.add(tuple(np.asarray(jax.random.key_data(key)).tolist()))
        assert len(chosen) % 10 == 0
    return {
        "mean": float(np.mean(sizes)) / (rate * N),
        "variance": float(np.var(sizes)) / (rate * (1 - rate) * N),
        "largest": max(sizes),
        "often": [float(times.min() / n_steps), float(times.max() / n_steps)],
        "repeats": repeats,
        "n_keys": len(keys),
    }


def hashes_by_seed() -> list[str]:
    """Of weights: twice from one seed of the noise, then twice from the system's entropy."""
    model = build()
    start, one = model.get_weights(), passes(model, Mechanism(1.0, 0.5, 2), 1.0, seed=None)
    of_system, found = one._draw, []
    for draw in (_bytes(4), _bytes(4), of_system, of_system):
        model.set_weights(start)
        one._draw = draw
        one.train(ROWS, np.arange(N), N // 2)
        found.append(hash_weights(model))
    return found


def _bytes(seed: int) -> Callable[[int], bytes]:
    return np.random.default_rng(seed).bytes


def refusal_of_batch_norm() -> str:
    try:
        passes(build(norm=keras.layers.BatchNormalization()), Mechanism(1.0, 0.5, 2), 1.0)
    except StructureError as err:
        return str(err)
    return "none"


class CutError(Exception):
    """A training that is cut short."""


def report_training(name: str, dataset: Dataset, epochs: int = 3) -> dict[str, Any]:
    """Trains privately, cut after an epoch, then from its checkpoint."""
    architecture = open_architecture(BUILT_IN[name])
    params = architecture.baseline(dataset.input) | {"batch_size": 64}
    n_rows = dataset.counts()["train"]
    privacy = plan(8.0, 1e-5, 1.0, n_rows=n_rows, batch_size=64, epochs=epochs)

    def cut(epoch: int, _: dict[str, float]) -> bool:
        if epoch == 1:
            raise CutError
        return False

    with tempfile.TemporaryDirectory() as folder:
        told: dict[str, Any] = {"seed": 0, "epochs": epochs, "privacy": privacy}
        checkpoint = Checkpoint(Path(folder) / "checkpoint", "key", 0.0)
        told["checkpoint"] = checkpoint
        with contextlib.suppress(CutError):
            train(architecture, params, dataset, **told, on_epoch=cut)
        found = train(architecture, params, dataset, **told)
    return {
        "n_before": found.n_before,
        "epsilons": [one["dp_epsilon"] for one in found.history],
        "names": sorted(found.history[0]),
        "value": found.value,
        "elbos": [one.get("val_elbo") for one in found.history],
        "packaged": len(architecture.to_package(found.model).layers),
    }


def main() -> None:
    names = sys.argv[1:]
    if names:
        dataset = load_dataset("digits")
        json.dump({name: report_training(name, dataset) for name in names}, sys.stdout)
        return
    report = {
        "distance": distance_to_plain_step(),
        "share_of_clip": share_of_clip(),
        "sums": report_sums(),
        "dropout": dropout_differs(),
        "noise": noise_of_steps(),
        "batches": report_batches(),
        "hashes": hashes_by_seed(),
        "batch_norm": refusal_of_batch_norm(),
    }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
