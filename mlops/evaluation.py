"""What a model is worth on a dataset. Pure numpy: answers in, scores out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlops.data import Dataset
from mlops.inputs import InputSpec
from mlops.scoring import reconstruction_error

CLASSIFIER_METRICS = ("accuracy", "balanced_accuracy", "macro_f1")


@dataclass(frozen=True, slots=True)
class Score:
    """A model's worth on rows it has not seen.

    Attributes:
        metric: One of `CLASSIFIER_METRICS` (0 to 1) or "elbo_at_mean" (nats a row).
        value: The metric over the rows; higher is better. A VAE's is over finite answers.
        chance: The value that needs no model: of a constant answer, or `chance_elbo`.
        n_rows: Rows that were scored.
        n_not_finite: Rows whose answer holds NaN or infinity.
        values: Every metric of the task, by name; `metric` is among them.
        per_row: (n_rows,) float64, for paired tests: 1.0 where a classifier names the right class
            and 0.0 elsewhere; a VAE's ELBO of the row.
    """

    metric: str
    value: float
    chance: float
    n_rows: int
    n_not_finite: int
    values: dict[str, float]
    per_row: npt.NDArray[np.float64]


def classifier_metrics(
    answers: npt.ArrayLike, labels: npt.ArrayLike, n_classes: int
) -> dict[str, float]:
    """Returns accuracy, balanced accuracy and macro-F1, each from 0 to 1.

    Balanced accuracy is the mean recall over classes (Brodersen et al. 2010, section 2). Macro-F1
    is the mean of the classes' own F1, `2 TP / (2 TP + FP + FN)`, 0 where that is 0/0 (Opitz &
    Burst 2019, section 2, the first of their two). Classes without rows are left out of both.

    Args:
        answers: (n,) index of the class that was named; -1 for none.
        labels: (n,) index of the true class.
        n_classes: Number of classes.

    Example:
        >>> classifier_metrics([0, 0, 0, 1], [0, 0, 1, 1], 2)["balanced_accuracy"]
        0.75
    """
    named, truth = np.asarray(answers), np.asarray(labels)
    hits = np.bincount(truth[named == truth], minlength=n_classes)
    n_true = np.bincount(truth, minlength=n_classes)
    n_named = np.bincount(named[named >= 0], minlength=n_classes)
    there = n_true > 0
    return {
        "accuracy": float(hits.sum() / len(truth)),
        "balanced_accuracy": float((hits[there] / n_true[there]).mean()),
        "macro_f1": float((2.0 * hits[there] / (n_true + n_named)[there]).mean()),
    }


def score_classifier(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, metric: str = "accuracy"
) -> Score:
    """Scores class probabilities `(n, classes)` against true class indices `(n,)`.

    A row whose answer is not finite counts as wrong.
    """
    answers = np.asarray(probabilities, dtype=np.float64)
    truth = np.asarray(labels)
    finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(answers).all(axis=1))
    named = np.where(finite, np.where(finite[:, None], answers, 0.0).argmax(axis=1), -1)
    values = classifier_metrics(named, truth, answers.shape[1])
    return Score(
        metric=metric,
        value=values[metric],
        chance=chance_metrics(truth)[metric],
        n_rows=len(truth),
        n_not_finite=int((~finite).sum()),
        values=values,
        per_row=(named == truth).astype(np.float64),
    )


def score_vae(answers: Sequence[dict[str, float]], chance: float) -> Score:
    """Scores a packaged VAE's answers: the ELBO at the posterior mean, nats a row.

    It is the negative anomaly score. No noise is drawn, so it is above the ELBO of training by the
    noise's share, and two models compare exactly.
    """
    elbo = -np.array([answer["anomaly_score"] for answer in answers], dtype=np.float64)
    finite = np.isfinite(elbo)
    value = float(elbo[finite].mean()) if finite.any() else float("-inf")
    return Score(
        metric="elbo_at_mean",
        value=value,
        chance=chance,
        n_rows=len(elbo),
        n_not_finite=int((~finite).sum()),
        values={"elbo_at_mean": value},
        per_row=elbo,
    )


def chance_metrics(labels: npt.ArrayLike) -> dict[str, float]:
    """Returns the metrics of always naming the most frequent class."""
    truth = np.asarray(labels)
    counts = np.bincount(truth)
    return classifier_metrics(np.full(len(truth), counts.argmax()), truth, len(counts))


def chance_elbo(dataset: Dataset, likelihood: str) -> float:
    """Returns the test rows' mean log likelihood, nats a row, under the mean of the training rows.

    That is the best a decoder can do that ignores its input; a VAE that learned something is above.
    """
    train = scale_rows(dataset.part("train")[0], dataset.input)
    test = scale_rows(dataset.part("test")[0], dataset.input)
    mean = train.mean(axis=0)
    if likelihood == "bernoulli":
        inside = np.clip(mean, 1e-6, 1.0 - 1e-6)
        mean = np.log(inside) - np.log1p(-inside)  # as logits
    output = np.broadcast_to(mean, test.shape)
    return float(-reconstruction_error(test, output, likelihood).mean())


def scale_constants(data: InputSpec) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Returns (offset, scale) over a row's last axis; a network sees `(row - offset) / scale`.

    Images are brought to [0, 1]: by 255 if they are bytes, else by the training rows' range. Tables
    and sequences are standardised: mean 0, variance 1 over the training rows, for each feature.
    """
    if data.kind == "image":
        low, high = (0.0, 255.0) if data.dtype == "uint8" else (data.low, data.high)
        return np.array([low]), np.array([(high - low) or 1.0])
    # A feature that never changed carries nothing: 1 keeps it from being blown up.
    variance = np.array([value if value > 0.0 else 1.0 for value in data.variance])
    return np.array(data.mean), np.sqrt(variance)


def scale_rows(rows: npt.NDArray[Any], data: InputSpec) -> npt.NDArray[np.float64]:
    """Returns rows `(n, *data.shape)` as a network sees them after its first layer."""
    offset, scale = scale_constants(data)
    return (np.asarray(rows, dtype=np.float64) - offset) / scale
