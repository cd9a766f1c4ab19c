"""What a model is worth on a dataset. Pure numpy: answers in, scores out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlops.data import Dataset
from mlops.inputs import InputSpec
from mlops.scoring import reconstruction_error

CLASSIFIER_METRICS = ("accuracy", "balanced_accuracy", "macro_f1")

N_RESAMPLES: Final = 2000
"""Resamples of a bootstrap; the ends of a 95 % interval then rest on 50 of them each."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


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
    hits, n_true, n_named = _class_counts(answers, labels, n_classes)
    return {name: float(value) for name, value in _metrics(hits, n_true, n_named).items()}


def _class_counts(
    answers: npt.ArrayLike, labels: npt.ArrayLike, n_classes: int
) -> tuple[Ints, Ints, Ints]:
    """Returns, for each class, the rows named rightly, of that class, and named as it."""
    named, truth = np.asarray(answers), np.asarray(labels)
    return (
        np.bincount(truth[named == truth], minlength=n_classes),
        np.bincount(truth, minlength=n_classes),
        np.bincount(named[named >= 0], minlength=n_classes),
    )


def _metrics(
    hits: npt.NDArray[Any], n_true: npt.NDArray[Any], n_named: npt.NDArray[Any]
) -> dict[str, Any]:
    """The formulas of `classifier_metrics` over the last axis: (..., classes) to (...)."""
    n_there = (n_true > 0).sum(axis=-1)
    # A class without rows has no hits: it adds 0 to the sums, whatever it is divided by.
    recall = hits / np.maximum(n_true, 1)
    f1 = 2.0 * hits / np.maximum(n_true + n_named, 1)
    return {
        "accuracy": hits.sum(axis=-1) / n_true.sum(axis=-1),
        "balanced_accuracy": recall.sum(axis=-1) / n_there,
        "macro_f1": f1.sum(axis=-1) / n_there,
    }


@dataclass(frozen=True, slots=True)
class ClassScore:
    """What a classifier is worth on one class: 0 to 1, 0 where it is 0/0; and the class's rows."""

    precision: float
    recall: float
    f1: float
    n_rows: int


def per_class_table(
    answers: npt.ArrayLike, labels: npt.ArrayLike, n_classes: int
) -> tuple[ClassScore, ...]:
    """Returns the worth on each class, in the order of the classes; arguments as above."""
    counts = _class_counts(answers, labels, n_classes)
    return tuple(
        ClassScore(
            precision=hits / max(named, 1),
            recall=hits / max(true, 1),
            f1=2.0 * hits / max(true + named, 1),
            n_rows=true,
        )
        for hits, true, named in zip(*(one.tolist() for one in counts), strict=True)
    )


def named_classes(probabilities: npt.ArrayLike) -> Ints:
    """Returns the index of the class that each row of `(n, classes)` names; -1 if not finite."""
    answers = np.asarray(probabilities, dtype=np.float64)
    finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(answers).all(axis=1))
    return np.where(finite, np.where(finite[:, None], answers, 0.0).argmax(axis=1), -1)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Confidence and accuracy of rows, binned by their confidence in equal widths of [0, 1].

    Attributes:
        n_rows: (bins,) rows in each bin.
        confidence: (bins,) their mean confidence, 0 to 1; NaN in an empty bin.
        accuracy: (bins,) their share of right answers, 0 to 1; NaN in an empty bin.
    """

    n_rows: Ints
    confidence: Floats
    accuracy: Floats

    @property
    def error(self) -> float:
        """The expected calibration error, 0 to 1; NaN without rows.

        `sum over bins of |B|/n * |accuracy(B) - confidence(B)|` (Guo et al. 2017, section 2,
        equation 3).
        """
        if not self.n_rows.any():
            return float("nan")
        filled = self.n_rows > 0
        gaps = np.abs(self.accuracy[filled] - self.confidence[filled])
        return float((self.n_rows[filled] * gaps).sum() / self.n_rows.sum())


def calibrate(probabilities: npt.ArrayLike, labels: npt.ArrayLike, n_bins: int = 15) -> Calibration:
    """Bins rows by the probability of the class that they name; bins are open at the left.

    As Guo et al. 2017, section 2, before equation 2. Rows that are not finite are left out.

    Args:
        probabilities: (n, classes).
        labels: (n,) index of the true class.
        n_bins: Number of bins.
    """
    named = named_classes(probabilities)
    finite = named >= 0
    answers = np.asarray(probabilities, dtype=np.float64)[finite]
    confidence = answers.max(axis=1, initial=0.0)
    right = named[finite] == np.asarray(labels)[finite]
    index = np.clip(np.ceil(confidence * n_bins).astype(np.int64) - 1, 0, n_bins - 1)
    n_rows = np.bincount(index, minlength=n_bins)
    filled = np.where(n_rows > 0, n_rows, np.nan)
    return Calibration(
        n_rows=n_rows,
        confidence=np.bincount(index, weights=confidence, minlength=n_bins) / filled,
        accuracy=np.bincount(index, weights=right, minlength=n_bins) / filled,
    )


def expected_calibration_error(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, n_bins: int = 15
) -> float:
    """Returns how far confidence is from accuracy, 0 to 1; NaN if no row is finite.

    As `Calibration.error`; arguments as for `calibrate`.
    """
    return calibrate(probabilities, labels, n_bins).error


# What a metric is worth as an estimate. The rows are drawn anew, with the models' answers to them.


def interval(
    answers: npt.ArrayLike, labels: Ints | None, metric: str, confidence: float = 0.95
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of a metric (Efron & Tibshirani 1993, ch. 13).

    Args:
        answers: Probabilities (n, classes) of a classifier, or ELBO (n,) of a VAE.
        labels: (n,) index of the true class; None for a VAE.
        metric: One of `CLASSIFIER_METRICS`; of no account for a VAE.
        confidence: Share of resamples inside, between 0 and 1.
    """
    return percentiles(resample([np.asarray(answers)], labels, metric)[1:, 0], confidence)


def percentiles(draws: Floats, confidence: float) -> tuple[float, float]:
    """Returns the two values between which a share `confidence` of the draws lies."""
    low, high = np.quantile(draws, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return float(low), float(high)


def resample(answers: Sequence[npt.NDArray[Any]], labels: Ints | None, metric: str) -> Floats:
    """Returns a metric of several models on the same resampled rows, for paired comparison.

    Args:
        answers: Of each model, on the same rows, as in `interval`. Rows for which one of several
            VAEs has no finite answer are left out; NaN if none is left.
        labels: As in `interval`.
        metric: As in `interval`.

    Returns:
        (1 + N_RESAMPLES, models): first the metric on the rows themselves, then on each resample.
        The same arguments give the same values.
    """
    if labels is None:
        elbo = np.stack(answers)
        elbo = elbo[:, np.isfinite(elbo).all(axis=0)]
        n_rows = elbo.shape[1]
        if n_rows == 0:
            return np.full((1 + N_RESAMPLES, len(answers)), np.nan)
        # A row is a kind of its own.
        return np.concatenate([c @ elbo.T / n_rows for c in _draws(np.ones(n_rows, np.int64))])
    named = np.stack([labels, *map(named_classes, answers)])
    kinds, sizes = np.unique(named, axis=1, return_counts=True)
    n_classes = max(one.shape[1] for one in answers)
    return np.concatenate([_weighted(c, kinds, n_classes, metric) for c in _draws(sizes)])


def _weighted(counts: Floats, kinds: Ints, n_classes: int, metric: str) -> Floats:
    """The metric of each model where `counts[r, k]` rows are of kind k; (resamples, models).

    A kind is a true class and the class that each model names: `kinds` is (1 + models, kinds).
    """
    classes = np.arange(n_classes)
    is_true = kinds[0][:, None] == classes
    n_true = counts @ is_true
    values = []
    for named in kinds[1:]:
        is_named = named[:, None] == classes
        found = _metrics(counts @ (is_true & is_named), n_true, counts @ is_named)
        values.append(found[metric])
    return np.stack(values, axis=1)


def _draws(sizes: Ints) -> Iterator[Floats]:
    """Yields how many rows of each kind there are: first `sizes`, then those of each resample.

    Rows of one kind are alike, so a resample is known by its counts. In slices (resamples, kinds),
    so that memory stays bounded.
    """
    yield sizes[None].astype(np.float64)
    random = np.random.default_rng(0)
    n_rows, n_kinds = int(sizes.sum()), len(sizes)
    kind_of = np.repeat(np.arange(n_kinds), sizes)
    step = max(1, 2**22 // n_rows)
    for start in range(0, N_RESAMPLES, step):
        n = min(step, N_RESAMPLES - start)
        if 6 * n_kinds < n_rows:  # one draw of a count costs as much as six of a row
            counts = random.multinomial(n_rows, sizes / n_rows, size=n)
        else:
            drawn = kind_of[random.integers(n_rows, size=(n, n_rows))]
            drawn += n_kinds * np.arange(n)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=n * n_kinds).reshape(n, n_kinds)
        yield counts.astype(np.float64)


def score_classifier(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, metric: str = "accuracy"
) -> Score:
    """Scores class probabilities `(n, classes)` against true class indices `(n,)`.

    A row whose answer is not finite counts as wrong.
    """
    answers = np.asarray(probabilities, dtype=np.float64)
    truth = np.asarray(labels)
    named = named_classes(answers)
    values = classifier_metrics(named, truth, answers.shape[1])
    return Score(
        metric=metric,
        value=values[metric],
        chance=chance_metrics(truth)[metric],
        n_rows=len(truth),
        n_not_finite=int((named < 0).sum()),
        values=values,
        per_row=(named == truth).astype(np.float64),
    )


def score_vae(answers: Sequence[dict[str, float]], chance: float) -> Score:
    """Scores a packaged VAE's answers; the ELBO is the negative of their anomaly score."""
    scores = [answer["anomaly_score"] for answer in answers]
    return score_elbo(-np.array(scores, dtype=np.float64), chance)


def score_elbo(elbo: npt.NDArray[np.float64], chance: float) -> Score:
    """Scores a VAE by its ELBO at the posterior mean, (n,), nats a row.

    No noise is drawn, so it is above the ELBO of training by the noise's share, and two models
    compare exactly.

    Args:
        chance: As `chance_elbo` gives it.
    """
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
