"""Two models on the same rows: how far they are apart, and whether one is shown to be worse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from mlops.evaluation import Ints, named_classes, percentiles, resample


@dataclass(frozen=True, slots=True)
class Paired:
    """A candidate against a champion.

    Attributes:
        difference: The candidate's metric less the champion's: 0 to 1, or nats a row.
        low: Where the bootstrap interval of the difference begins.
        high: Where it ends.
        p: Two-sided, of McNemar's exact test; None for another metric than accuracy.
        is_worse: Whether the candidate is shown to be worse.
    """

    difference: float
    low: float
    high: float
    p: float | None
    is_worse: bool


def compare(
    candidate: npt.NDArray[Any],
    champion: npt.NDArray[Any],
    labels: Ints | None,
    metric: str,
    confidence: float = 0.95,
) -> Paired:
    """Compares two models by their answers to the same rows.

    Accuracy is judged by McNemar's exact test, any other metric by whether the whole percentile
    interval of the paired bootstrap lies below 0: rows are drawn with both models' answers (Efron &
    Tibshirani 1993, chapters 8 and 13). Both are two-sided: of two models that are equally good,
    at most `(1 - confidence) / 2` are called worse, about so many by the bootstrap.

    Args:
        candidate: Probabilities (n, classes), or ELBO (n,) of a VAE.
        champion: Likewise.
        labels: (n,) index of the true class; None for a VAE.
        metric: One of `CLASSIFIER_METRICS`; of no account for a VAE.
        confidence: Between 0 and 1.
    """
    values = resample([candidate, champion], labels, metric)
    differences = values[:, 0] - values[:, 1]
    # 0.98 - 1.00 is a little less than -0.02, which a limit of 0.02 is to let through.
    difference = round(float(differences[0]), 12)
    low, high = percentiles(differences[1:], confidence)
    if labels is None or metric != "accuracy":
        return Paired(difference, low, high, None, is_worse=high < 0.0)
    right, rival = named_classes(candidate) == labels, named_classes(champion) == labels
    p = mcnemar(int((right & ~rival).sum()), int((~right & rival).sum()))
    return Paired(difference, low, high, p, is_worse=difference < 0.0 and p < 1.0 - confidence)


def mcnemar(n_won: int, n_lost: int) -> float:
    """Returns how likely rows divide at least as unevenly if both models are equally good.

    The exact, two-sided form of McNemar 1947: of the n rows that only one of the two names rightly,
    those of either are binomial with 1/2, so `p = min(1, 2 sum over i <= min(won, lost) of
    C(n, i) / 2^n)`.

    Args:
        n_won: Rows that only the first names rightly.
        n_lost: Rows that only the second names rightly.

    Example:
        >>> mcnemar(0, 6)
        0.03125
    """
    n = n_won + n_lost
    term = tail = 1
    for i in range(min(n_won, n_lost)):
        term = term * (n - i) // (i + 1)
        tail += term
    return min(
        1.0, 2 * tail / (1 << n)
    )  # whole numbers: C(n, i) is beyond a float from n = 1,030 on
