"""The worker's side: train one trial.

`train` is the pure part: params, seed and data in, weights and history out. The same call alone, in
a fresh process with as many threads, gives the same weights. `run_trial` is what a Dask worker does
around it: it reports each epoch to the study (for pruning) and to the journal, and saves the
network if it is the study's best so far.

Dask imports this module when a worker starts (`dask_setup`), so TensorFlow is imported once a
worker and no trial waits for it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.architectures import Architecture, Params, open_architecture
from mlops.data import Dataset
from mlops.dataset_store import open_dataset_store
from mlops.journal import Journal
from mlops.tracking import Run, Status

THREADS_VARIABLE = "_MLOPS_WORKER_THREADS"
LOG_VARIABLE = "_MLOPS_WORKER_LOG"
EVALUATION_BATCH = 512

CLASSIFIER_METRICS = {
    "loss": "train_loss",
    "accuracy": "train_accuracy",
    "val_loss": "val_loss",
    "val_accuracy": "val_accuracy",
}
VAE_METRICS = {
    "loss": "train_loss",
    "elbo": "train_elbo",
    "reconstruction": "train_reconstruction",
    "kl": "train_kl",
    "val_loss": "val_loss",
    "val_elbo": "val_elbo",
    "val_reconstruction": "val_reconstruction",
    "val_kl": "val_kl",
}

STATUS: dict[str, Status] = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}

OnEpoch = Callable[[int, dict[str, float]], bool]
"""Takes an epoch from 0 and its metrics; returns True to stop the training there."""


@dataclass(frozen=True, slots=True)
class TrialTask:
    """What a worker needs to train one trial: small, and nothing but data."""

    architecture: str
    params: Params
    seed: int
    epochs: int
    dataset_fingerprint: str
    datasets_url: str
    study: str
    study_url: str
    trial_id: int
    number: int
    pruner: Any
    journal_folder: Path
    run_key: str
    network: Path


@dataclass(frozen=True, slots=True)
class TrialResult:
    """How a trial ended.

    Attributes:
        state: "complete", "pruned", or "failed" with a `reason`.
        value: The objective at the best epoch; None if there is none.
        best_epoch: From 0.
        weights_sha256: Hash of the best epoch's weights.
        saved: Whether the network was saved, being the best so far.
    """

    state: Literal["complete", "pruned", "failed"]
    value: float | None
    best_epoch: int | None
    weights_sha256: str | None
    saved: bool = False
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model, with the best epoch's weights in it, and how it came about."""

    model: Any
    history: tuple[dict[str, float], ...]
    best_epoch: int | None
    value: float | None
    stopped: bool
    weights_sha256: str


def train(
    architecture: Architecture,
    params: Params,
    dataset: Dataset,
    *,
    seed: int,
    epochs: int,
    on_epoch: OnEpoch | None = None,
) -> Trained:
    """Trains one network and puts the best epoch's weights back into it.

    The best epoch is the first with the highest objective. A loss that is not finite ends the
    training: what came before it counts.

    Args:
        seed: 0 to 2**32 - 1; decides initial weights, dropout, noise and the order of rows.
    """
    import keras

    keras.backend.clear_session()
    _seed_keras(seed)
    model = architecture.build(params, dataset.input, len(dataset.class_names))
    watch = _watch(architecture, on_epoch)
    x, y = dataset.part("train")
    x_val, y_val = dataset.part("val")
    labelled = architecture.task == "classifier"
    model.fit(
        x,
        y if labelled else None,
        validation_data=(x_val, y_val) if labelled else (x_val, None),
        batch_size=params.get("batch_size", 32),
        validation_batch_size=EVALUATION_BATCH,
        epochs=epochs,
        callbacks=[watch],
        verbose=0,
    )
    if watch.best_weights is not None:
        model.set_weights(watch.best_weights)
    return Trained(
        model=model,
        history=tuple(watch.history_rows),
        best_epoch=watch.best_epoch,
        value=watch.best_value,
        stopped=watch.stopped,
        weights_sha256=hash_weights(model),
    )


def _seed_keras(seed: int) -> None:
    """Seeds everything that Keras draws from, out of the reach of other threads.

    Keras takes the seeds of its layers from Python's global generator. The threads of a Dask worker
    draw from that too, now and then, and a trial's weights would differ from time to time.
    """
    import keras
    from keras.src.random import seed_generator

    keras.utils.set_random_seed(seed)
    seed_generator.python_random = random.Random(seed)


def _watch(architecture: Architecture, on_epoch: OnEpoch | None) -> Any:
    import keras

    names = CLASSIFIER_METRICS if architecture.task == "classifier" else VAE_METRICS
    objective = architecture.objective

    class Watch(keras.callbacks.Callback):
        """Keeps the best weights and tells of each epoch."""

        def __init__(self) -> None:
            super().__init__()
            self.history_rows: list[dict[str, float]] = []
            self.best_value: float | None = None
            self.best_epoch: int | None = None
            self.best_weights: list[Any] | None = None
            self.stopped = False
            self._began = 0.0

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self._began = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs = logs or {}
            metrics = {names[key]: float(logs[key]) for key in names if key in logs}
            metrics["learning_rate"] = float(np.asarray(self.model.optimizer.learning_rate))
            metrics["epoch_s"] = time.perf_counter() - self._began
            self.history_rows.append(metrics)
            if not math.isfinite(metrics["train_loss"]) or not math.isfinite(metrics[objective]):
                self.model.stop_training = True
            elif self.best_value is None or metrics[objective] > self.best_value:
                self.best_value, self.best_epoch = metrics[objective], epoch
                self.best_weights = self.model.get_weights()
            if on_epoch is not None and on_epoch(epoch, metrics):
                self.stopped = self.model.stop_training = True

    return Watch()


def hash_weights(model: Any) -> str:
    """Returns the SHA-256 of all weights, in the model's order, as little-endian bytes."""
    digest = hashlib.sha256()
    for value in model.get_weights():
        array = np.asarray(value)
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).tobytes())
    return digest.hexdigest()


def run_trial(task: TrialTask) -> TrialResult:
    """Trains a trial in a worker; every way it can go is a result, but for the worker's death."""
    with Journal(task.journal_folder, f"trial{task.number}") as journal:
        run = Run(journal, task.run_key)
        try:
            result = _run_trial(task, run)
        except Exception as err:
            result = TrialResult("failed", None, None, None, reason=_reason(err))
        tags = {"mlops.weights_sha256": result.weights_sha256, "mlops.failure": result.reason}
        run.set_tags({name: value for name, value in tags.items() if value is not None})
        if result.state == "pruned":
            run.set_tags({"mlops.pruned": "true"})
        run.end(STATUS[result.state])
        return result


def _run_trial(task: TrialTask, run: Run) -> TrialResult:
    import optuna

    storage = _open_storage(task.study_url)
    study = optuna.load_study(study_name=task.study, storage=storage, pruner=task.pruner)
    trial = optuna.trial.Trial(study, task.trial_id)
    # From here on a death of this process is this trial's own; before, it was a neighbour's.
    trial.set_user_attr("started", True)
    architecture = open_architecture(task.architecture)
    dataset = _open_dataset(task.datasets_url, task.dataset_fingerprint)

    def on_epoch(epoch: int, metrics: dict[str, float]) -> bool:
        run.log_metrics(metrics, step=epoch)
        value = metrics[architecture.objective]
        if not math.isfinite(value):
            return False
        trial.report(value, epoch)
        return trial.should_prune() and epoch < task.epochs - 1

    trained = train(
        architecture, task.params, dataset, seed=task.seed, epochs=task.epochs, on_epoch=on_epoch
    )
    if trained.value is None:
        return TrialResult(
            "failed", None, None, trained.weights_sha256, reason="the loss is not finite"
        )
    assert trained.best_epoch is not None
    run.log_metrics(
        {f"best_{architecture.objective}": trained.value, "best_epoch": trained.best_epoch},
        step=0,  # one point each: the UI draws bars of them, side by side over all runs
    )
    saved = False
    if not trained.stopped and trained.value >= _best_so_far(study):
        from mlops.packaging import save_network

        task.network.parent.mkdir(parents=True, exist_ok=True)
        save_network(architecture.to_package(trained.model), task.network)
        saved = True
    return TrialResult(
        "pruned" if trained.stopped else "complete",
        trained.value,
        trained.best_epoch,
        trained.weights_sha256,
        saved,
    )


def _best_so_far(study: Any) -> float:
    from optuna.trial import TrialState

    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return max((trial.value for trial in finished), default=-math.inf)


def _reason(err: Exception) -> str:
    first = str(err).strip().split("\n", 1)[0]
    return f"{type(err).__name__}: {first}"[:500]


@functools.lru_cache(maxsize=1)
def _open_storage(url: str) -> Any:
    from experiments.storage import open_storage

    return open_storage(url)


@functools.lru_cache(maxsize=1)
def _open_dataset(url: str, fingerprint: str) -> Dataset:
    return open_dataset_store(url).get(fingerprint)


def set_up_process(threads: int) -> None:
    """Imports Keras with `threads` threads. The first act in a process: later it has no effect."""
    from mlops.settings import quiet

    quiet()
    import keras

    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)


def dask_setup(worker: Any) -> None:
    """Dask calls this when a worker process starts."""
    # A terminal sends Ctrl-C to every process of the sweep; the driver decides what ends when.
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    log = os.environ.get(LOG_VARIABLE)
    if log:
        # TensorFlow writes to file descriptors directly; the terminal belongs to the progress bar.
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)
    set_up_process(int(os.environ.get(THREADS_VARIABLE, "1")))
