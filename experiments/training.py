"""Training one network: params, seed and data in, weights and history out.

The same call alone, in a fresh process with as many threads, gives the same weights.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.architectures import Architecture, Params
from experiments.checkpoint import Checkpoint, Progress
from experiments.numerics import DEFAULT, Numerics
from experiments.passes import open_passes
from experiments.privacy.accounting import Privacy
from mlops.data import Dataset
from mlops.evaluation import classifier_metrics

METRICS = ("loss", "accuracy", "elbo", "reconstruction", "kl")
"""What is told of a network's own metrics, as train_loss and so on."""

OnEpoch = Callable[[int, dict[str, float]], bool]
"""Takes an epoch from 0 and its metrics; returns True to stop the training there."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model, with the best epoch's weights in it, and how it came about.

    Attributes:
        n_before: Epochs that were trained in another process, before this one went on.
    """

    model: Any
    history: tuple[dict[str, float], ...]
    best_epoch: int | None
    value: float | None
    stopped: bool
    weights_sha256: str
    n_before: int = 0


def train(
    architecture: Architecture,
    params: Params,
    dataset: Dataset,
    *,
    seed: int,
    epochs: int,
    objective: str | None = None,
    refit: bool = False,
    numerics: Numerics = DEFAULT,
    privacy: Privacy | None = None,
    on_epoch: OnEpoch | None = None,
    checkpoint: Checkpoint | None = None,
) -> Trained:
    """Trains one network and puts the best epoch's weights back into it.

    The best epoch is the first with the highest objective. A loss that is not finite ends the
    training: what came before it counts.

    Args:
        seed: 0 to 2**32 - 1; decides initial weights, dropout, noise and the order of rows.
        objective: The metric that is maximised, as in a `Description`; by default val_accuracy, and
            val_elbo of a VAE.
        refit: Learns from training and validation rows together. There is nothing left to choose
            an epoch by, then: the last one's weights count.
        numerics: How the training computes. The network that is returned, and that is validated,
            computes in float32 whatever it is.
        privacy: What the training may spend, where it is private. What it learns from its rows then
            differs from time to time, whatever the seed; nothing is told of the rows but the
            weights, so there are no metrics of the training.
        on_epoch: Is told of each epoch, those of a checkpoint too.
        checkpoint: Where to go on from, and what to save in. Where it goes on makes no difference
            to the weights.
    """
    import keras

    keras.backend.clear_session()
    seed_keras(seed)
    n_classes = len(dataset.class_names)
    model = architecture.build(params, dataset.input, n_classes)
    numerics.set_up(model)
    x, y = dataset.part("train")
    x_val, y_val = dataset.part("val")
    labelled = architecture.task == "classifier"
    if refit:
        objective = None
        x, y = np.concatenate([x, x_val]), np.concatenate([y, y_val])
    else:
        objective = objective or ("val_accuracy" if labelled else "val_elbo")
    rows: tuple[np.ndarray, ...] = (x, y) if labelled else (x,)
    if labelled and privacy is None:
        rows = (x, y, row_weights(params, y, n_classes))
    passes = open_passes(model, rows, numerics, privacy)

    def validate() -> dict[str, float]:
        if refit:
            return {}
        if labelled:
            return score_classifier(model, passes.forward(x_val), y_val, n_classes)
        return named("val", passes.evaluate(x_val))

    progress = (checkpoint and checkpoint.load(model)) or Progress()
    n_before = len(progress.history)
    for epoch, metrics in enumerate(progress.history):
        if on_epoch is not None:
            on_epoch(epoch, metrics)  # to whoever goes on with the trial they are news
    stopped = False
    for epoch in range(n_before, epochs):
        began = time.perf_counter()
        order = order_rows(seed, epoch, len(x))
        metrics = named("train", passes.train(rows, order, params.get("batch_size", 32)))
        metrics |= validate()
        metrics["learning_rate"] = float(np.asarray(model.optimizer.learning_rate))
        metrics["epoch_s"] = time.perf_counter() - began
        if privacy is not None:
            metrics["dp_epsilon"] = privacy.spent(epoch + 1)
        finite = note_epoch(progress, epoch, metrics, objective, model.get_weights)
        stopped = on_epoch is not None and on_epoch(epoch, metrics)
        if stopped or not finite:
            break
        if checkpoint is not None:
            checkpoint.save(model, progress)
    if progress.best_weights is not None:
        model.set_weights(progress.best_weights)
    return Trained(
        model=model,
        history=tuple(progress.history),
        best_epoch=progress.best_epoch,
        value=progress.best_value,
        stopped=stopped,
        weights_sha256=hash_weights(model),
        n_before=n_before,
    )


def note_epoch(
    progress: Progress,
    epoch: int,
    metrics: dict[str, float],
    objective: str | None,
    get_weights: Callable[[], list[np.ndarray]],
) -> bool:
    """Notes an epoch, and the weights if it is the best so far; False if it is not finite."""
    progress.history.append(metrics)
    value = 0.0 if objective is None else metrics[objective]
    if not math.isfinite(loss_of(metrics)) or not math.isfinite(value):
        return False
    if objective is not None and (progress.best_value is None or value > progress.best_value):
        progress.best_value, progress.best_epoch = value, epoch
        progress.best_weights = get_weights()
    return True


def loss_of(metrics: dict[str, float]) -> float:
    """Returns the loss that tells whether an epoch went well: of a private one, val_loss."""
    return metrics.get("train_loss", metrics.get("val_loss", 0.0))


def order_rows(seed: int, epoch: int, n: int) -> np.ndarray:
    """Returns the order (n,) of an epoch's rows: of nothing but the seed and the epoch."""
    return np.random.default_rng([seed, epoch]).permutation(n)


def named(part: str, metrics: dict[str, float]) -> dict[str, float]:
    return {f"{part}_{name}": metrics[name] for name in METRICS if name in metrics}


def row_weights(params: Params, y: np.ndarray, n_classes: int) -> np.ndarray:
    """Returns each row's weight in the loss: 1, or n / (n_classes * rows of its class).

    So each class counts as much as any other (King & Zeng 2001, section 3.2).
    """
    if params.get("class_weight", "none") != "balanced":
        return np.ones(len(y), np.float32)
    counts = np.bincount(y, minlength=n_classes)
    weights: np.ndarray = (len(y) / (n_classes * np.maximum(counts, 1))).astype(np.float32)[y]
    return weights


def score_classifier(
    model: Any, logits: np.ndarray, y: np.ndarray, n_classes: int
) -> dict[str, float]:
    """Scores logits `(n, n_classes)` of labelled rows: the model's loss, and all metrics."""
    loss = float(model.compute_loss(y=y, y_pred=logits, training=False))
    # A row of NaN names no class; argmax would say it is the first.
    named = np.where(np.isfinite(logits).all(axis=1), logits.argmax(axis=1), -1)
    metrics = classifier_metrics(named, y, n_classes)
    return {"val_loss": loss, **{f"val_{name}": value for name, value in metrics.items()}}


def seed_keras(seed: int) -> None:
    """Seeds everything that Keras draws from, out of the reach of other threads.

    Keras takes the seeds of its layers from Python's global generator. The threads of a Dask worker
    draw from that too, now and then, and a trial's weights would differ from time to time.
    """
    import keras
    from keras.src.random import seed_generator

    keras.utils.set_random_seed(seed)
    seed_generator.python_random = random.Random(seed)


def hash_weights(model: Any) -> str:
    """Returns the SHA-256 of all weights, in the model's order, as little-endian bytes."""
    digest = hashlib.sha256()
    for value in model.get_weights():
        array = np.asarray(value)
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).tobytes())
    return digest.hexdigest()
