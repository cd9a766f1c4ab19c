"""The worker's side: train one trial, and tell of it.

`run_trial` reports each epoch to the study (for pruning) and to the journal, and saves the network
if it is the study's best so far. `run_final` does what comes after the search.

Dask imports this module when a worker starts (`dask_setup`; `dask worker --preload`), so TensorFlow
is imported once a worker and no trial waits for it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from experiments.architectures import Architecture, open_architecture
from experiments.checkpoint import Checkpoint
from experiments.figures import FOLDER
from experiments.figures.curves import (
    Curves,
    draw_curves,
    find_baseline_curves,
    keep_curves,
    name_network,
)
from experiments.kept_result import keep_result
from experiments.objectives import measure_costs
from experiments.privacy.budget import Spending
from experiments.reproducing.environment import ENVIRONMENT, describe_environment
from experiments.tasks import NETWORKS, STATUS, FinalTask, Training, TrialResult, TrialTask
from experiments.training import OnEpoch, Trained, loss_of, train
from experiments.workers.gpu_share import (
    GpuMeter,
    find_share,
    is_out_of_memory,
    limit_tensorflow,
    take_share,
)
from experiments.workers.same_code import hash_sources
from experiments.workers.wanted import check_wanted
from mlops.data import Dataset
from mlops.dataset_store import open_datasets
from mlops.deliver import start_delivery
from mlops.journal import AWAY, Journal
from mlops.settings import quiet
from mlops.system_metrics import SystemMetrics
from mlops.tracking import Run

THREADS_VARIABLE = "_MLOPS_WORKER_THREADS"
LOG_VARIABLE = "_MLOPS_WORKER_LOG"
CHECKPOINT_EVERY_S = 10.0
SEND_S = 60.0
LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class Fitted:
    """A network that was trained, what writes it to a file, and what measures its costs there.

    Attributes:
        measure: Takes the file and the names of the costs that are wanted.
        draw: Draws its figures into a folder, which may show rows with True; returns a sentence for
            each that could not be drawn.
    """

    trained: Trained
    save: Callable[[Path], None]
    measure: Callable[[Path, tuple[str, ...]], dict[str, float]] = lambda *_: {}
    draw: Callable[[Path, bool], list[str]] = lambda *_: []


Fit = Callable[[Training, OnEpoch, bool], Fitted]
"""Trains a network and tells of each epoch; with True on training and validation rows together."""


def fit_network(training: Training, on_epoch: OnEpoch, refit: bool) -> Fitted:
    """The `Fit` of every sweep: the architecture's network, by Keras."""
    architecture = open_architecture(training.architecture)
    dataset = open_dataset(training)
    trained = train(
        architecture,
        training.params,
        dataset,
        seed=training.seed,
        epochs=training.epochs,
        objective=training.objective,
        refit=refit,
        numerics=training.numerics,
        privacy=training.privacy,
        on_epoch=on_epoch,
        checkpoint=Checkpoint(training.checkpoint, _key(training, refit), CHECKPOINT_EVERY_S),
    )
    return as_fitted(architecture, dataset, trained)


def as_fitted(architecture: Architecture, dataset: Dataset, trained: Trained) -> Fitted:
    """Returns a trained network with what saves and measures it."""

    @functools.cache
    def package() -> Any:
        return architecture.to_package(trained.model)

    def save(path: Path) -> None:
        from mlops.packaging import save_network

        path.parent.mkdir(parents=True, exist_ok=True)
        save_network(package(), path)

    def measure(path: Path, wanted: tuple[str, ...]) -> dict[str, float]:
        return measure_costs(package(), path, dataset.x[:1], wanted)

    def draw(folder: Path, may_show_rows: bool) -> list[str]:
        from experiments.figures import drawing

        likelihood = architecture.likelihood(dataset.input)
        subject = drawing.make_subject(
            package(), dataset, architecture.task, likelihood, may_show_rows
        )
        return drawing.draw(subject, folder)

    return Fitted(trained, save, measure, draw)


def _key(training: Training, refit: bool) -> str:
    """Returns what tells this training from any other."""
    import keras

    decides = (
        training.architecture,
        training.objective,
        sorted(training.params.items()),
        training.seed,
        training.epochs,
        training.dataset_fingerprint,
        refit,
        training.numerics,
        training.privacy,
        os.environ.get(THREADS_VARIABLE),
        keras.config.backend(),
        metadata.version("keras"),
    )
    return repr(decides)


def run_trial(task: TrialTask, fit: Fit = fit_network, n_together: int = 1) -> TrialResult:
    """Trains a trial in a worker; every way it can go is a result, but for the worker's death.

    Args:
        n_together: Trials that run in one program, this one among them.
    """
    result = _tell(task.training, lambda run: _run_trial(task, run, fit), n_together)
    keep_result(_open_storage(task.study_url), task.trial_id, result)
    return result


def run_final(task: FinalTask, fit: Fit = fit_network) -> TrialResult:
    """Trains the best params once more, in a worker; saves the network."""
    return _tell(task.training, lambda run: _run_final(task, run, fit))


def _tell(
    training: Training, run_it: Callable[[Run], TrialResult], n_together: int = 1
) -> TrialResult:
    """Runs a training and ends its run as it went; its driver does, where nobody waits for it."""
    with _open_journal(training) as journal:
        run = Run(journal, training.run_key)
        meter = GpuMeter(n_together)
        with SystemMetrics(run.log_metrics) as system:
            try:
                result = run_it(run)
            except Exception as err:
                result = _fail(err, meter)
        if (use := meter.use(system.summary)) is not None:
            run.log_metrics(use.metrics(training.gpu_price), step=0)
            result = replace(result, gpu_s=use.gpu_s, gpu_peak_bytes=use.peak_bytes)
        tags = {"mlops.weights_sha256": result.weights_sha256, "mlops.failure": result.reason}
        # Asked now: a user's own module is found once its architecture was opened.
        tags[ENVIRONMENT] = json.dumps(describe_environment(training.architecture))
        run.set_tags({name: value for name, value in tags.items() if value is not None})
        if result.state == "pruned":
            run.set_tags({"mlops.pruned": "true"})
        if result.saved and training.server is not None:
            run.log_artifact(training.network, NETWORKS)
        run.end(STATUS[result.state])
    training.checkpoint.unlink(missing_ok=True)
    if result.saved and training.server is not None:
        _send_network(training, journal)
    return result


def _open_journal(training: Training) -> Journal:
    """Begins a training's journal; in a home of the worker's own, has its host deliver it."""
    if training.server is None:
        return Journal(training.journal_folder, training.name)
    _deliver(training)
    return Journal(training.journal_folder, f"{AWAY}-{training.name}")


def _deliver(training: Training) -> None:
    assert training.server is not None
    start_delivery(training.journal_folder, training.home, training.server)


def _send_network(training: Training, journal: Journal) -> None:
    """Waits until the artifact store has a network, for a while: then this host may die.

    Where no server answers it goes on, and the journal keeps the network until one does.
    """
    deadline = time.monotonic() + SEND_S
    while journal.path.exists() and time.monotonic() < deadline:
        _deliver(training)  # that it was killed is no reason to wait
        time.sleep(LOOK_S)
    training.network.unlink(missing_ok=True)


def _run_trial(task: TrialTask, run: Run, fit: Fit) -> TrialResult:
    training, goals = task.training, task.goals
    trial = _open_trial(task)
    # From here on a death of this process is this trial's own; before, it was a neighbour's.
    trial.set_user_attr("started", True)
    spending = Spending(trial, training)

    def on_epoch(epoch: int, metrics: dict[str, float]) -> bool:
        check_wanted()
        run.log_metrics(metrics, step=epoch)
        spending.go_on_after(epoch)
        value = metrics[training.objective]
        if goals.is_multi or not math.isfinite(value):
            return False  # Optuna prunes by one objective only
        trial.report(value, epoch)
        return trial.should_prune() and epoch < training.epochs - 1

    fitted = fit(training, on_epoch, False)
    trained = fitted.trained
    spending.end(len(trained.history) - trained.n_before)
    _log_before(run, trained)
    if trained.value is None or trained.best_epoch is None:
        return _not_finite(trained)
    _log_best(run, training.objective, trained)
    metrics = dict(trained.history[trained.best_epoch])
    if goals.costs:
        fitted.save(training.network)
        costs = fitted.measure(training.network, goals.costs)
        run.log_metrics(costs, step=0)
        metrics |= costs
    for one in goals.requirements:
        trial.set_constraint(str(one), one.violation(metrics))
    is_kept = not trained.stopped and goals.are_met(metrics)
    is_kept = is_kept and (goals.is_multi or trained.value >= task.to_beat)
    if not is_kept:
        training.network.unlink(missing_ok=True)
    elif not goals.costs:
        fitted.save(training.network)
    curves = keep_curves(trained.history, training.objective)
    if training.plots and not trained.stopped:
        _log_figures(run, training, fitted, curves, find_baseline_curves(trial.study))
    return TrialResult(
        "pruned" if trained.stopped else "complete",
        trained.value,
        trained.best_epoch,
        trained.weights_sha256,
        is_kept,
        metrics=metrics,
        curves=curves if is_kept or task.is_baseline else None,
    )


def _open_trial(task: TrialTask) -> Any:
    import optuna

    storage = _open_storage(task.study_url)
    study = optuna.load_study(study_name=task.study, storage=storage, pruner=task.pruner)
    return optuna.trial.Trial(study, task.trial_id)


def _run_final(task: FinalTask, run: Run, fit: Fit) -> TrialResult:
    training = task.training

    def on_epoch(epoch: int, metrics: dict[str, float]) -> bool:
        check_wanted()
        run.log_metrics(metrics, step=epoch)
        return False

    fitted = fit(training, on_epoch, task.refit)
    trained = fitted.trained
    _log_before(run, trained)
    if not math.isfinite(loss_of(trained.history[-1])) and trained.value is None:
        return _not_finite(trained)
    if trained.value is not None:
        _log_best(run, training.objective, trained)
    fitted.save(training.network)
    curves = keep_curves(trained.history, training.objective)
    if training.plots and not task.refit:  # which has seen the validation rows
        _log_figures(run, training, fitted, curves, None)
    return TrialResult(
        "complete",
        trained.value,
        trained.best_epoch,
        trained.weights_sha256,
        saved=True,
        curves=curves,
    )


def _log_figures(
    run: Run, training: Training, fitted: Fitted, curves: Curves, baseline: Curves | None
) -> None:
    """Draws a network and logs what was drawn; what cannot be is said in a tag of its run."""
    try:
        with tempfile.TemporaryDirectory(prefix="podium-") as scratch:
            folder = Path(scratch)
            problems = fitted.draw(folder, training.log_rows)
            title = name_network(training.study, training.number)
            draw_curves(curves, baseline, training.objective, title, folder)
            run.log_artifact(folder, FOLDER)
    except Exception as err:
        problems = [_reason(err)]
    if problems:
        run.set_tags({"mlops.figures_failed": "; ".join(problems)})


def _not_finite(trained: Trained) -> TrialResult:
    reason = "the loss is not finite"
    return TrialResult("failed", None, None, trained.weights_sha256, reason=reason)


def _log_before(run: Run, trained: Trained) -> None:
    if trained.n_before:
        run.set_tags({"mlops.epochs_before": str(trained.n_before)})


def _log_best(run: Run, objective: str, trained: Trained) -> None:
    assert trained.value is not None and trained.best_epoch is not None
    # One point each: the UI draws bars of them, side by side over all runs.
    best = {f"best_{objective}": trained.value, "best_epoch": trained.best_epoch}
    run.log_metrics(best, step=0)


def _fail(err: Exception, meter: GpuMeter) -> TrialResult:
    reason = _reason(err)
    if not is_out_of_memory(err):
        return TrialResult("failed", None, None, None, reason=reason)
    reason = f"{meter.explain()}: {reason}"[:500]
    n_sharing = meter.n_sharing
    return TrialResult("failed", None, None, None, reason=reason, out_of_memory=n_sharing)


def _reason(err: Exception) -> str:
    first = str(err).strip().split("\n", 1)[0]
    return f"{type(err).__name__}: {first}"[:500]


@functools.lru_cache(maxsize=1)
def _open_storage(url: str) -> Any:
    """Returns the storage with the cache that Optuna puts before it: one for all trials.

    Each `load_study` would make another, and the pruner read all earlier trials into it.
    """
    import optuna

    from experiments.storage import open_storage

    return optuna.storages.get_storage(open_storage(url))


class Stored(Protocol):
    """What says where a dataset is: a `Training`, or a `DrawTask`."""

    @property
    def datasets_url(self) -> str: ...
    @property
    def datasets_folder(self) -> Path: ...
    @property
    def dataset_fingerprint(self) -> str: ...


def open_dataset(stored: Stored) -> Dataset:
    """Returns the dataset of a training; the last one is kept for the next."""
    return _open_dataset(stored.datasets_url, stored.datasets_folder, stored.dataset_fingerprint)


@functools.lru_cache(maxsize=1)
def _open_dataset(url: str, copies: Path, fingerprint: str) -> Dataset:
    return open_datasets(url, copies).get(fingerprint)


def set_up_process(threads: int) -> None:
    """Imports Keras with `threads` threads. The first act in a process: later it has no effect."""
    quiet()
    os.environ["NPROC"] = str(threads)  # how many XLA computes with on a CPU, for JAX
    import keras

    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        limit_tensorflow(find_share(), tf)


def keep_own_gpu() -> None:
    """Leaves a worker of dask-cuda the one GPU that is its own; before anything uses it.

    dask-cuda shows each of its workers all GPUs, its own as the first, and TensorFlow and JAX take
    the memory of every one they see.
    """
    first, _, others = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")
    if others:
        os.environ["CUDA_VISIBLE_DEVICES"] = first


def leave_terminal() -> None:
    """Makes a worker's process deaf to Ctrl-C, and writes what it prints to the workers' log."""
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


def dask_setup(worker: Any) -> None:
    """Dask calls this when a worker process starts."""
    if worker.nanny:  # without one this process is what a person started, and ends with Ctrl-C
        leave_terminal()
    take_share(worker.name)
    threads = os.environ.get(THREADS_VARIABLE)
    hash_sources()  # as they are now: what runs here is not what takes their place later
    if threads is not None:
        set_up_process(int(threads))
        return
    # A worker of a cluster that runs already: which sweeps come, with how many threads, is not
    # known yet (`experiments.workers.joining`).
    quiet()
    if "dask_cuda" in sys.modules:
        keep_own_gpu()
    # Dask samples the stack of a running call 100 times a second: a fifth of a trial's time.
    for name in ("profile", "profile-cycle"):
        worker.periodic_callbacks.pop(name, None)
    importlib.import_module("keras")
