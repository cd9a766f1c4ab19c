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


@dataclass(frozen=True, slots=True)
class Score:
    """A model's worth on rows it has not seen.

    Attributes:
        metric: "accuracy" (a share, 0 to 1) or "elbo_at_mean" (nats a row).
        value: The metric over the rows whose answer is finite; higher is better.
        chance: The value that needs no model; see `chance_accuracy` and `chance_elbo`.
        n_rows: Rows that were scored.
        n_not_finite: Rows whose answer holds NaN or infinity.
        per_row: (n_rows,) float64; each row's share in `value`, for paired tests.
    """

    metric: str
    value: float
    chance: float
    n_rows: int
    n_not_finite: int
    per_row: npt.NDArray[np.float64]


def score_classifier(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> Score:
    """Scores class probabilities `(n, classes)` against true class indices `(n,)`.

    A row whose answer is not finite counts as wrong.
    """
    answers = np.asarray(probabilities, dtype=np.float64)
    truth = np.asarray(labels)
    finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(answers).all(axis=1))
    correct = finite & (np.where(finite[:, None], answers, 0.0).argmax(axis=1) == truth)
    return Score(
        metric="accuracy",
        value=float(correct.mean()),
        chance=chance_accuracy(truth),
        n_rows=len(truth),
        n_not_finite=int((~finite).sum()),
        per_row=correct.astype(np.float64),
    )


def score_vae(answers: Sequence[dict[str, float]], chance: float) -> Score:
    """Scores a packaged VAE's answers: the ELBO at the posterior mean, nats a row.

    It is the negative anomaly score. No noise is drawn, so it is above the ELBO of training by the
    noise's share, and two models compare exactly.
    """
    elbo = -np.array([answer["anomaly_score"] for answer in answers], dtype=np.float64)
    finite = np.isfinite(elbo)
    return Score(
        metric="elbo_at_mean",
        value=float(elbo[finite].mean()) if finite.any() else float("-inf"),
        chance=chance,
        n_rows=len(elbo),
        n_not_finite=int((~finite).sum()),
        per_row=elbo,
    )


def chance_accuracy(labels: npt.ArrayLike) -> float:
    """Returns the accuracy of always naming the most frequent class."""
    _, counts = np.unique(np.asarray(labels), return_counts=True)
    return float(counts.max() / counts.sum())


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
