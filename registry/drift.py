"""Do live scores come from where the reference's came from? PSI, a KS test, and what is a drift.

Pure numpy. Scores are anomaly scores of a VAE in nats, one a row; a window is so many of them in
the order in which their requests came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

BINS: Final = 10
"""Deciles; fewer where a bin would hold fewer than `BIN_ROWS` rows of the reference."""
BIN_ROWS: Final = 10
MOST_QUANTILES: Final = 1024
DIGITS: Final = 5
"""Significant digits of a score. Its last bits differ with the size of its batch, and what tells
equal rows apart would be taken for a shift."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """The scores of a release's own test rows.

    Attributes:
        n: How many rows were scored.
        edges: Strictly rising, in nats: between two bins. Bin i holds what is above `edges[i - 1]`
            and at most `edges[i]`.
        counts: Rows in each bin, one more than edges; they add up to `n`.
        quantiles: The scores in rising order, or `MOST_QUANTILES` quantiles of more.
    """

    n: int
    edges: Floats
    counts: npt.NDArray[np.int64]
    quantiles: Floats


@dataclass(frozen=True, slots=True)
class Rule:
    """When a window is shifted, and when a stream has drifted.

    A window is shifted where both hold: its `ks_p` is below `alpha`, so chance is no likely cause,
    and its PSI is above `psi`, so it is large enough to matter. A stream begins to be drifted with
    `begins` shifted windows among the last `of`, and ends to be with none among them.
    """

    alpha: float = 0.001
    psi: float = 0.1
    begins: int = 2
    of: int = 3

    def is_drifted(self, was: bool, shifted: Sequence[bool]) -> bool:
        """Tells whether a stream is drifted by its windows so far, oldest first."""
        n = sum(shifted[-self.of :])
        return n >= self.begins or (was and n > 0)


@dataclass(frozen=True, slots=True)
class Window:
    """What was measured of one window.

    Attributes:
        n: Rows.
        psi: From 0, no difference; see `psi`.
        ks: 0 to 1; see `ks_statistic`.
        ks_p: 0 to 1; see `ks_p_value`.
    """

    n: int
    psi: float
    ks: float
    ks_p: float
    shifted: bool


def build_reference(scores: npt.ArrayLike) -> Reference:
    """Returns the reference of scores (n,), n at least 1, all finite.

    Edges lie halfway between two scores, so that a score that is rounded otherwise stays in its
    bin. Many equal scores make fewer bins.
    """
    ordered = np.sort(round_scores(scores))
    n = len(ordered)
    n_bins = max(1, min(BINS, n // BIN_ROWS))
    distinct = np.unique(ordered)
    wanted = ordered[np.arange(1, n_bins) * n // n_bins]
    above = np.unique(np.searchsorted(distinct, wanted))
    above = above[above > 0]
    edges = (distinct[above - 1] + distinct[above]) / 2
    quantiles = ordered
    if n > MOST_QUANTILES:
        shares = (np.arange(MOST_QUANTILES) + 0.5) / MOST_QUANTILES
        quantiles = np.quantile(ordered, shares)
    return Reference(n, edges, count_bins(edges, ordered), quantiles)


def round_scores(scores: npt.ArrayLike) -> Floats:
    """Returns scores as float64 with `DIGITS` significant digits."""
    values = np.asarray(scores, np.float64)
    size = np.floor(np.log10(np.abs(values), where=values != 0, out=np.zeros(values.shape)))
    step = 10.0 ** np.maximum(size - DIGITS + 1, -300.0)  # a smaller one has no float
    rounded: Floats = np.rint(values / step) * step
    return rounded


def count_bins(edges: Floats, scores: Floats) -> npt.NDArray[np.int64]:
    """Returns how many scores are in each bin, (len(edges) + 1,)."""
    places = np.searchsorted(edges, scores, side="left")
    return np.bincount(places, minlength=len(edges) + 1).astype(np.int64)


def psi(expected: npt.NDArray[np.int64], found: npt.NDArray[np.int64]) -> float:
    """Returns the population stability index of two histograms over the same bins, 0 or more.

    `sum over bins of (q - p) * ln(q / p)`, with p and q the shares of the two (Siddiqi 2006,
    "Credit Risk Scorecards", the system stability report): the symmetric divergence of
    Kullback and Leibler, in nats. Half a row is added to each bin, so that an empty one is no
    infinity.

    Without a shift it is not 0: it is `(1/n + 1/m)` times a chi-squared number of B - 1 degrees of
    freedom, for n and m rows and B bins (Yurdakul 2018, "Statistical Properties of Population
    Stability Index", the asymptotic distribution).
    """
    p, q = ((one + 0.5) / (one.sum() + 0.5 * len(one)) for one in (expected, found))
    return float(((q - p) * np.log(q / p)).sum())


def ks_statistic(one: Floats, other: Floats) -> float:
    """Returns the largest distance of two samples' distribution functions, 0 to 1; sorted inputs.

    `max over x of |F(x) - G(x)|` (Massey 1951, "The Distribution of the Maximum Deviation Between
    Two Sample Cumulative Step Functions").
    """
    places = np.concatenate([one, other])
    f = np.searchsorted(one, places, side="right") / len(one)
    g = np.searchsorted(other, places, side="right") / len(other)
    return float(np.abs(f - g).max())


def ks_p_value(d: float, n: int, m: int) -> float:
    """Returns how likely a `ks_statistic` of d or more is without a shift, 0 to 1.

    Kolmogorov's distribution `2 * sum over k of (-1)^(k-1) * exp(-2 k^2 t^2)`, for
    `t = (sqrt(e) + 0.12 + 0.11 / sqrt(e)) * d` and `e = n m / (n + m)` (Stephens 1970, "Use of the
    Kolmogorov-Smirnov, Cramer-Von Mises and Related Statistics Without Extensive Tables"). Where
    many scores are equal it is too large, so fewer windows are flagged.

    Args:
        n: Rows of the one, `m` of the other: the reference is a sample too.
    """
    root = float(np.sqrt(n * m / (n + m)))
    t = (root + 0.12 + 0.11 / root) * d
    if t < 0.2:  # the sum is 1 to the last digit, and takes many terms
        return 1.0
    k = np.arange(1, 101)
    terms = (-1.0) ** (k - 1) * np.exp(-2.0 * k**2 * t**2)
    return float(min(1.0, max(0.0, 2.0 * terms.sum())))


def judge_window(reference: Reference, scores: npt.ArrayLike, rule: Rule) -> Window:
    """Compares the scores of a window, (n,), with the reference; NaN and infinities count as +inf.

    Raises:
        ValueError: there are none.
    """
    values = round_scores(np.nan_to_num(np.asarray(scores, np.float64), nan=1e300, posinf=1e300))
    if not len(values):
        raise ValueError("a window without rows")
    found = psi(reference.counts, count_bins(reference.edges, values))
    d = ks_statistic(reference.quantiles, np.sort(values))
    p = ks_p_value(d, reference.n, len(values))
    return Window(len(values), found, d, p, p < rule.alpha and found > rule.psi)


def reference_to_json(reference: Reference) -> dict[str, Any]:
    """Returns plain values that JSON keeps exactly."""
    return {
        "n": reference.n,
        "edges": reference.edges.tolist(),
        "counts": reference.counts.tolist(),
        "quantiles": reference.quantiles.tolist(),
    }


def reference_from_json(value: Any) -> Reference:
    """Reads what `reference_to_json` gave.

    Raises:
        ValueError, KeyError, TypeError: it is anything else; it may come from a stranger.
    """
    n, counts = value["n"], value["counts"]
    edges, quantiles = (_numbers(value[name]) for name in ("edges", "quantiles"))
    whole = [type(one) is int and 0 <= one <= 2**53 for one in (n, *counts)]
    sound = (
        set(value) == {"n", "edges", "counts", "quantiles"}
        and all(whole)
        and n > 0
        and len(counts) == len(edges) + 1 <= BINS
        and sum(counts) == n
        and len(quantiles) == min(n, MOST_QUANTILES)
        and bool((np.diff(edges) > 0).all() and (np.diff(quantiles) >= 0).all())
    )
    if not sound:
        raise ValueError("the values of a reference do not fit one another")
    return Reference(n, edges, np.array(counts, np.int64), quantiles)


def _numbers(value: Any) -> Floats:
    if not isinstance(value, list) or not all(type(one) in (int, float) for one in value):
        raise ValueError("no list of numbers")
    numbers = np.array(value, np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError("not finite")
    return numbers
