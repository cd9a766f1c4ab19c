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
from mlops.data import Dataset
from mlops.evaluation import classifier_metrics

EVALUATION_BATCH = 512

TRAIN_METRICS = {"loss": "train_loss", "accuracy": "train_accuracy"}
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

OnEpoch = Callable[[int, dict[str, float]], bool]
"""Takes an epoch from 0 and its metrics; returns True to stop the training there."""


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
    objective: str | None = None,
    refit: bool = False,
    on_epoch: OnEpoch | None = None,
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
    """
    import keras

    keras.backend.clear_session()
    _seed_keras(seed)
    n_classes = len(dataset.class_names)
    model = architecture.build(params, dataset.input, n_classes)
    x, y = dataset.part("train")
    x_val, y_val = dataset.part("val")
    labelled = architecture.task == "classifier"
    validate = None
    if refit:
        objective = None
        x, y = np.concatenate([x, x_val]), np.concatenate([y, y_val])
    else:
        objective = objective or ("val_accuracy" if labelled else "val_elbo")
        validate = _classifier_validation(model, x_val, y_val, n_classes) if labelled else None
    watch = _watch(TRAIN_METRICS if labelled else VAE_METRICS, objective, validate, on_epoch)
    model.fit(
        x,
        y if labelled else None,
        validation_data=None if labelled or refit else (x_val, None),
        batch_size=params.get("batch_size", 32),
        validation_batch_size=EVALUATION_BATCH,
        epochs=epochs,
        class_weight=_class_weight(params, y, n_classes) if labelled else None,
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


def _class_weight(params: Params, y: np.ndarray, n_classes: int) -> dict[int, float] | None:
    """Returns the weight of a class's rows in the loss, n / (n_classes * rows of the class).

    So each class counts as much as any other (King & Zeng 2001, section 3.2).
    """
    if params.get("class_weight", "none") != "balanced":
        return None
    counts = np.bincount(y, minlength=n_classes)
    return {label: len(y) / (n_classes * int(count)) for label, count in enumerate(counts)}


def _classifier_validation(
    model: Any, x: np.ndarray, y: np.ndarray, n_classes: int
) -> Callable[[], dict[str, float]]:
    """Returns what scores the model on rows, after an epoch: its loss, and all metrics.

    One pass, in batches of one shape (the last is filled up), so that it is traced once. It takes
    the place of Keras' own validation, which would need a second pass for what Keras cannot count.
    """
    n_batches = -(-len(x) // EVALUATION_BATCH)
    size = -(-len(x) // n_batches)
    batches = [
        x[np.arange(start, start + size) % len(x)] for start in range(0, n_batches * size, size)
    ]

    def validate() -> dict[str, float]:
        outputs = [np.asarray(model.predict_on_batch(batch)) for batch in batches]
        logits = np.concatenate(outputs)[: len(x)]
        loss = float(model.compute_loss(y=y, y_pred=logits, training=False))
        # A row of NaN names no class; argmax would say it is the first.
        named = np.where(np.isfinite(logits).all(axis=1), logits.argmax(axis=1), -1)
        metrics = classifier_metrics(named, y, n_classes)
        return {"val_loss": loss, **{f"val_{name}": value for name, value in metrics.items()}}

    return validate


def _seed_keras(seed: int) -> None:
    """Seeds everything that Keras draws from, out of the reach of other threads.

    Keras takes the seeds of its layers from Python's global generator. The threads of a Dask worker
    draw from that too, now and then, and a trial's weights would differ from time to time.
    """
    import keras
    from keras.src.random import seed_generator

    keras.utils.set_random_seed(seed)
    seed_generator.python_random = random.Random(seed)


def _watch(
    names: dict[str, str],
    objective: str | None,
    validate: Callable[[], dict[str, float]] | None,
    on_epoch: OnEpoch | None,
) -> Any:
    import keras

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
            if validate is not None:
                metrics |= validate()
            metrics["learning_rate"] = float(np.asarray(self.model.optimizer.learning_rate))
            metrics["epoch_s"] = time.perf_counter() - self._began
            self.history_rows.append(metrics)
            value = 0.0 if objective is None else metrics[objective]
            if not math.isfinite(metrics["train_loss"]) or not math.isfinite(value):
                self.model.stop_training = True
            elif objective is not None and (self.best_value is None or value > self.best_value):
                self.best_value, self.best_epoch = value, epoch
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
