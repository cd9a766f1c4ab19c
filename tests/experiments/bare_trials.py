"""Trials that train nothing, in the workers of a real Dask cluster; all else of a sweep is real.

As a program it is a driver: python -m tests.experiments.bare_trials ADDRESS EXPERIMENT
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna

from experiments.architectures import Description, Params
from experiments.config import SweepConfig
from experiments.tasks import Training, TrialResult
from experiments.training import OnEpoch, Trained
from experiments.trial import Fitted
from experiments.workers.remote_cluster import RemoteCluster, open_remote_cluster
from experiments.workers.wanted import NotWantedError
from mlops.settings import Settings
from tests.faults.zeros import write_network

OBJECTIVE = "val_accuracy"
SPACE = {"units": optuna.distributions.IntDistribution(1, 10**6)}


def bare_config(address: str, experiment: str, trials: int = 4) -> SweepConfig:
    return SweepConfig(
        architectures=("nobody:Flat",),
        trials=trials,
        epochs=3,
        sampler="random",
        pruner="none",
        experiment=experiment,
        cluster=address,
        plots="none",
    )


def leave_as_it_is(threads: int) -> None:
    """Sets no threads up: nothing computes here."""


class Bare:
    """A cluster whose trials are pauses; each writes on a tape when it begins and how it ends.

    They stand still as long as there is a file of the tape's name that ends in .hold.
    """

    def __init__(self, cluster: RemoteCluster, tape: Path, pace_s: float) -> None:
        self._cluster = cluster
        self._tape = tape
        self._pace_s = pace_s

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cluster, name)

    def submit(self, call: Callable[..., Any], *args: Any) -> Any:
        return self._cluster.submit(run_bare, call, self._tape, self._pace_s, *args)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return describe_flat(SPACE, {"units": 32})


def describe_flat(space: Mapping[str, Any], baseline: Params, *variable_params: str) -> Description:
    """Describes the architecture that there is none of."""
    return Description(
        path="nobody:Flat",
        name="flat",
        task="classifier",
        objective=OBJECTIVE,
        left_out=None,
        space={name: optuna.distributions.distribution_to_json(one) for name, one in space.items()},
        baseline=baseline,
        likelihood=None,
        variable_params=variable_params,
    )


def run_bare(call: Callable[..., TrialResult], tape: Path, pace_s: float, task: Any) -> TrialResult:
    """In a worker: a trial without training."""

    def fit(training: Training, on_epoch: OnEpoch, *_: Any) -> Fitted:
        rng = random.Random(training.seed)
        history = []
        for epoch in range(training.epochs):
            time.sleep(pace_s)
            while tape.with_suffix(".hold").exists():
                time.sleep(0.05)
            history.append({"train_loss": rng.random(), OBJECTIVE: rng.random()})
            on_epoch(epoch, history[-1])
            write(tape, f"epoch{epoch}", task.training.name)
        values = [metrics[OBJECTIVE] for metrics in history]
        best = values.index(max(values))
        return Fitted(
            Trained(None, tuple(history), best, values[best], False, "0" * 64), write_network
        )

    write(tape, "begin", task.training.name)
    try:
        result = call(task, fit=fit)
    except NotWantedError:
        write(tape, "let go", task.training.name)
        raise
    write(tape, result.state, task.training.name)
    return result


def write(tape: Path, what: str, name: str) -> None:
    with tape.open("a") as file:
        file.write(f"{os.getpid()}\t{what}\t{name}\n")


def read(tape: Path) -> dict[str, list[tuple[int, str]]]:
    """Returns what is on a tape: process and trial, by what happened, in order."""
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for line in tape.read_text().splitlines() if tape.exists() else ():
        pid, what, name = line.split("\t")
        found[what].append((int(pid), name))
    return found


def sleep_here(seconds: float) -> int:
    """In a worker: sleeps, and returns the process."""
    time.sleep(seconds)
    return os.getpid()


_grown: list[bytes] = []


def grow(n_bytes: int) -> int:
    """In a worker: takes memory and keeps it."""
    _grown.append(b"x" * n_bytes)
    return os.getpid()


def main() -> int:
    from experiments.sweep import run_sweep

    address, experiment, tape = sys.argv[1:]
    settings = Settings.from_env()
    config = bare_config(address, experiment)
    with open_remote_cluster(config, settings, print, leave_as_it_is) as cluster:
        bare: Any = Bare(cluster, Path(tape), 0.5)
        result = run_sweep(config, settings=settings, cluster=bare)
    return 130 if result.interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
