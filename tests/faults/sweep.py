"""What the processes of a sweep do in the rows that harm one: all but the training is real.

The driver, Optuna's storage, Dask's workers, the journals and the drain are those of every sweep.
A trial's body is a few pauses that are told as epochs, and what it saves is a network of zeros.
"""

from __future__ import annotations

import importlib
import os
import random
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import dask
import optuna

# What the processes of a sweep import on their way is imported once, in the process that they are
# forked from: it is most of their time.
for _name in (
    "alembic.command",
    "cryptography.x509",
    "distributed.deploy",
    "distributed.http.scheduler.json",
    "distributed.nanny",
    "experiments.driver",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "mlflow.tracking",
    "optuna.storages._rdb.storage",
    "sqlalchemy.dialects.sqlite",
    "zict",
):
    importlib.import_module(_name)

from experiments.architectures import Description
from experiments.config import SweepConfig
from experiments.preparation import load_data
from experiments.study import Tally
from experiments.sweep import run_sweep
from experiments.tasks import Training, TrialResult
from experiments.training import OnEpoch, Trained
from experiments.trial import Fitted, leave_terminal
from experiments.workers.cluster import Cluster, open_cluster
from mlops.settings import Settings
from tests.faults.children import Script
from tests.faults.tape import Item, Tape
from tests.faults.zeros import write_network

N_TRIALS, N_EPOCHS, N_WORKERS = 4, 3, 2
OBJECTIVE = "val_accuracy"
PATH = "tests.faults.sweep:Flat"
SPACE = {
    "units": optuna.distributions.CategoricalDistribution([16, 32, 64]),
    "learning_rate": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
}
load_data(SweepConfig())  # reads what it needs into this process, for all that are forked from it


class Bare(Cluster):
    """Workers whose trials train nothing."""

    def __init__(self, cluster: Cluster, script: Script) -> None:
        super().__init__(cluster._client, cluster._cluster)
        self._script = script

    def submit(self, call: Callable[..., Any], *args: Any) -> Any:
        return super().submit(run_bare, call, self._script.tapes, self._script.pace_s, *args)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Describes the architecture that there is none of."""
        return Description(
            path=PATH,
            name="flat",
            task="classifier",
            objective=OBJECTIVE,
            left_out=None,
            space={n: optuna.distributions.distribution_to_json(one) for n, one in SPACE.items()},
            baseline={"units": 32, "learning_rate": 1e-3},
            likelihood=None,
        )


class TapeProgress:
    """Puts down how many trials the driver says are finished."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape

    def __enter__(self) -> TapeProgress:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, study: str, tally: Tally) -> None:
        self._tape.note("finished", tally.n_finished)

    def note(self, line: str) -> None:
        print(line, flush=True)


def drive(script: Script, home: Path, warm: str | None) -> None:
    """The command that a user types, and types again; exits as the program does.

    Args:
        warm: Address of a process that has all imported, from which workers are forked. Without it
            they are started as Dask does by itself.
    """
    log = os.open(home.parent / "driver.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(script.timeout_s)
    if warm is not None:
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
        forkserver._forkserver._forkserver_address = warm  # the one that forked this process
        forkserver._forkserver.ensure_running = lambda: None
    config = SweepConfig(
        architectures=(PATH,),
        trials=N_TRIALS,
        epochs=N_EPOCHS,
        sampler="random",
        pruner="none",
        experiment=script.name,
        workers=N_WORKERS,
        plots="none",
    )
    settings = Settings.from_env({"MLOPS_HOME": str(home), "MLFLOW_TRACKING_URI": script.url})
    tape = Tape(script.tapes / "0-driver.tape")
    with open_cluster(N_WORKERS, 1, home / "workers.log", preload="tests.faults.sweep") as cluster:
        result = run_sweep(
            config,
            settings=settings,
            cluster=Bare(cluster, script),
            progress=TapeProgress(tape),
        )
    raise SystemExit(130 if result.interrupted else 0)


def run_bare(
    call: Callable[..., TrialResult], tapes: Path, pace_s: float, task: Any
) -> TrialResult:
    """In a worker: a trial without training, told on the worker's tape."""
    tape = Tape(tapes / f"{os.getpid()}.tape")
    key = task.training.run_key
    last: list[Item] = []

    def fit(training: Training, on_epoch: OnEpoch, *_: Any, **__: Any) -> Fitted:
        rng = random.Random(training.seed)
        history = []
        for epoch in range(training.epochs):
            time.sleep(rng.uniform(0, 2 * pace_s))
            metrics = {"train_loss": rng.random(), OBJECTIVE: rng.random()}
            history.append(metrics)
            items = [("metric", key, name, epoch, value) for name, value in metrics.items()]
            tape.about(items)
            on_epoch(epoch, metrics)
            tape.done(items)
        values = [metrics[OBJECTIVE] for metrics in history]
        best = values.index(max(values))
        last.append(("metric", key, f"best_{OBJECTIVE}", 0, values[best]))
        last.append(("metric", key, "best_epoch", 0, float(best)))
        tape.about(last)
        trained = Trained(None, tuple(history), best, values[best], False, "0" * 64)
        return Fitted(trained, write_network)

    result = call(task, fit=fit)
    tape.done(last)
    return result


def dask_setup(worker: Any) -> None:
    """Dask calls this when a worker process starts."""
    leave_terminal()
