"""Accuracy at a privacy budget, beside no privacy: `python -m benchmarks.privacy`, on JAX.

The digits, two architectures, one training a budget and seed. Params are fixed, the same for every
budget, and were not searched for any: a search would spend a budget for each of its trials. A row
is n seeds of one cell. What answers the test rows is the epoch with the best validation accuracy.
Noise and batches come from the system's entropy, so another run gives other figures within the
spread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.tables import print_heading, print_rows
from experiments.privacy.accounting import CLIP, default_delta, plan

BUDGETS = (None, 8.0, 3.0, 1.0)
PARAMS: dict[str, dict[str, Any]] = {
    "dnn": {"n_layers": 1, "units": 128, "dropout": 0.0, "batch_size": 128, "learning_rate": 5e-3},
    "cnn": {"filters": 16, "dense_units": 32, "batch_size": 128, "learning_rate": 5e-3},
}
EPOCHS = 30


def measure(name: str, epsilon: float | None, seed: int, epochs: int) -> dict[str, float]:
    """Trains once; returns test accuracy, the epsilon spent, the noise multiplier and seconds."""
    from experiments.architectures import open_architecture
    from experiments.built_in import BUILT_IN
    from experiments.training import train
    from mlops.data import load_dataset

    dataset = load_dataset("digits")
    architecture = open_architecture(BUILT_IN[name])
    params = architecture.baseline(dataset.input) | PARAMS[name]
    n_rows = dataset.counts()["train"]
    privacy = None
    if epsilon is not None:
        delta, batch_size = default_delta(n_rows), params["batch_size"]
        privacy = plan(epsilon, delta, CLIP, n_rows=n_rows, batch_size=batch_size, epochs=epochs)
    began = time.perf_counter()
    trained = train(architecture, params, dataset, seed=seed, epochs=epochs, privacy=privacy)
    x, y = dataset.part("test")
    answers = trained.model.predict(x, verbose=0).argmax(axis=1)
    return {
        "accuracy": float((answers == y).mean()),
        "noise": privacy.mechanism.noise_multiplier if privacy else 0.0,
        "spent": privacy.spent(epochs) if privacy else float("inf"),
        "seconds": time.perf_counter() - began,
    }


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.privacy", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--architectures", nargs="+", default=list(PARAMS), choices=list(PARAMS))
    options = parser.parse_args(args)
    os.environ["KERAS_BACKEND"] = "jax"
    from experiments.trial import set_up_process

    set_up_process(1)
    title = f"Accuracy at a privacy budget, {options.epochs} epochs"
    names = " ".join(options.architectures)
    command = f"python -m benchmarks.privacy --seeds {options.seeds} --architectures {names}"
    print_heading(title, "digits", command)
    rows = []
    for name in options.architectures:
        for epsilon in BUDGETS:
            found = [measure(name, epsilon, one, options.epochs) for one in range(options.seeds)]
            accuracies = [one["accuracy"] for one in found]
            rows.append(
                (
                    name,
                    "none" if epsilon is None else f"epsilon {epsilon:g}",
                    found[0]["noise"],
                    len(found),
                    statistics.mean(accuracies),
                    statistics.stdev(accuracies) if len(found) > 1 else None,
                    min(accuracies),
                    max(accuracies),
                    statistics.median(one["seconds"] for one in found),
                )
            )
    columns = ("architecture", "privacy", "noise multiplier", "n", "mean test accuracy")
    print_rows((*columns, "deviation", "least", "most", "median s"), rows)


if __name__ == "__main__":
    main()
