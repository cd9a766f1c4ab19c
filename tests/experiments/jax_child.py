"""Trainings on JAX, for tests: Keras takes its backend but once a process.

`python -m tests.experiments.jax_child NAME...` trains populations of each architecture and prints
what came out as one JSON line.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from experiments.architectures import Architecture, Params, open_architecture
from experiments.built_in import BUILT_IN
from experiments.numerics import DEFAULT, Numerics, mixed_layers
from experiments.population import Member, Population
from experiments.training import Trained, train
from mlops.data import Dataset, load_dataset
from mlops.errors import StructureError

SIZE, EPOCHS = 3, 2


def train_together(
    architecture: Architecture,
    dataset: Dataset,
    specs: list[tuple[Params, int]],
    stop: dict[int, int] | None = None,
    numerics: Numerics = DEFAULT,
) -> list[Trained | Exception]:
    """Trains a population; `stop` has the epoch after which a member is stopped, by its place."""
    out: dict[int, Trained | Exception] = {}
    seen: list[tuple[int, int]] = []

    def member(index: int, params: Params, seed: int) -> Member:
        def on_epoch(epoch: int, _: dict[str, float]) -> bool:
            seen.append((index, epoch))
            return (stop or {}).get(index) == epoch

        return Member(params, seed, on_epoch, lambda outcome: out.update({index: outcome}))

    objective = "val_elbo" if architecture.task == "vae" else "val_accuracy"
    population = Population(
        architecture, dataset, size=SIZE, epochs=EPOCHS, objective=objective, numerics=numerics
    )
    population.train(member(index, *spec) for index, spec in enumerate(specs))
    assert len(set(seen)) == len(seen)
    return [out[index] for index in range(len(specs))]


def report(name: str, dataset: Dataset) -> dict[str, Any]:
    architecture = open_architecture(BUILT_IN[name])
    params = architecture.baseline(dataset.input)
    free = "beta" if name == "vae" else "dropout"
    specs = [
        ({**params, free: value, "learning_rate": rate}, seed)
        for value, rate, seed in [(0.5, 1e-3, 7), (0.0, 4e-3, 8), (0.3, 2e-3, 9), (0.1, 1e-3, 10)]
    ]
    if name == "vae":
        specs[1][0]["beta"] = 2.0
    mixed = train_together(architecture, dataset, specs, stop={0: 0})
    copies = train_together(architecture, dataset, [specs[3]] * SIZE)
    alone = train(architecture, specs[1][0], dataset, seed=8, epochs=EPOCHS)
    again = train(architecture, specs[1][0], dataset, seed=8, epochs=EPOCHS)
    other = {**params, "learning_rate": 1e-3, "batch_size": 64, "units": 64}
    odd = (
        train_together(architecture, dataset, [specs[0], (other, 1)])[1] if name == "dnn" else None
    )
    return {
        "hashes": [one.weights_sha256 for one in mixed],
        "epochs": [len(one.history) for one in mixed],
        "stopped": [one.stopped for one in mixed],
        "rates": [one.history[0]["learning_rate"] for one in mixed],
        "values": [one.value for one in mixed],
        "copies": [one.weights_sha256 for one in copies],
        "alone": alone.value,
        "alone_hashes": [alone.weights_sha256, again.weights_sha256],
        "distance": max(
            float(np.abs(a - b).max())
            for a, b in zip(alone.model.get_weights(), mixed[1].model.get_weights(), strict=True)
        ),
        "odd": str(odd) if isinstance(odd, StructureError) else None,
        "bfloat16": report_mixed(architecture, dataset, specs[:SIZE]),
    }


def report_mixed(
    architecture: Architecture, dataset: Dataset, specs: list[tuple[Params, int]]
) -> dict[str, Any]:
    numerics = Numerics("bfloat16")
    members = train_together(architecture, dataset, specs, numerics=numerics)
    copies = train_together(architecture, dataset, [specs[1]] * SIZE, numerics=numerics)
    params, seed = specs[1]
    alone = train(architecture, params, dataset, seed=seed, epochs=EPOCHS, numerics=numerics)
    return {
        "hashes": [one.weights_sha256 for one in members],
        "copies": [one.weights_sha256 for one in copies],
        "n_mixed": len(mixed_layers(members[1].model)),
        "computes": sorted({one.compute_dtype for one in members[1].model._flatten_layers()}),
        "value": members[1].value,
        "alone": alone.value,
        "distance": max(
            float(np.abs(a - b).max())
            for a, b in zip(alone.model.get_weights(), members[1].model.get_weights(), strict=True)
        ),
    }


def main() -> None:
    dataset = load_dataset("digits")
    json.dump({name: report(name, dataset) for name in sys.argv[1:]}, sys.stdout)


if __name__ == "__main__":
    main()
