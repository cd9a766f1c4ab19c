from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from registry.paired import compare, mcnemar


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_two_sided_test_of_the_binomial(n_won: int, n_lost: int) -> None:
    n = n_won + n_lost
    expected = binomtest(n_won, n, 0.5).pvalue if n else 1.0
    assert mcnemar(n_won, n_lost) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_has_the_values_of_the_textbooks() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 6) == 0.03125
    assert mcnemar(1, 9) == pytest.approx(0.021484375)
    assert mcnemar(4, 9) == pytest.approx(0.26684570)
    assert mcnemar(10_000, 10_400) == pytest.approx(0.0052, abs=2e-4)  # beyond what floats hold


def answers(right: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.eye(2)[np.where(right, labels, 1 - labels)]


LABELS = np.arange(1000) % 2


def right_but_for(*rows: int) -> np.ndarray:
    return answers(~np.isin(np.arange(1000), rows), LABELS)


def test_a_candidate_that_loses_six_rows_and_wins_none_is_worse() -> None:
    pair = compare(right_but_for(*range(6)), right_but_for(), LABELS, "accuracy")
    assert (pair.difference, pair.p, pair.is_worse) == (-0.006, 0.03125, True)
    assert pair.low < pair.difference < pair.high <= 0.0
    assert not compare(right_but_for(*range(5)), right_but_for(), LABELS, "accuracy").is_worse
    assert not compare(
        right_but_for(*range(6)), right_but_for(), LABELS, "accuracy", confidence=0.99
    ).is_worse


def test_a_better_candidate_and_an_equal_one_are_not_worse() -> None:
    better = compare(right_but_for(), right_but_for(*range(50)), LABELS, "accuracy")
    assert (better.difference, better.is_worse) == (0.05, False)
    equal = compare(right_but_for(1), right_but_for(1), LABELS, "accuracy")
    assert (equal.difference, equal.low, equal.high, equal.p) == (0.0, 0.0, 0.0, 1.0)


def test_pairs_show_what_two_separate_intervals_do_not() -> None:
    random = np.random.default_rng(0)
    elbo = random.normal(-100.0, 30.0, 500)  # rows differ far more than the models do
    worse = compare(elbo - 0.5 + random.normal(0, 1, 500), elbo, None, "elbo_at_mean")
    assert worse.is_worse and worse.p is None
    assert -0.7 < worse.low < worse.difference < worse.high < -0.3


def test_other_metrics_are_judged_by_the_bootstrap() -> None:
    labels = (np.arange(1000) % 10 == 0).astype(np.int64)  # a tenth is of class 1
    blind = np.eye(2)[np.zeros(1000, np.int64)]  # never names it
    pair = compare(blind, np.eye(2)[labels], labels, "balanced_accuracy")
    assert (pair.difference, pair.is_worse, pair.p) == (-0.5, True, None)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_equally_good_models_are_seldom_called_worse(metric: str) -> None:
    random = np.random.default_rng(4)
    called = 0
    for _ in range(150):
        one, other = (answers(random.random(300) < 0.8, LABELS[:300]) for _ in range(2))
        called += compare(one, other, LABELS[:300], metric).is_worse
    assert called <= 10  # 2.5 % of 150 are 3.75


def test_rows_that_one_of_two_vaes_does_not_answer_are_left_out() -> None:
    pair = compare(np.array([np.nan, -2.0]), np.array([-1.0, -1.0]), None, "elbo_at_mean")
    assert pair.difference == -1.0
    nothing = compare(np.array([np.nan]), np.array([-1.0]), None, "elbo_at_mean")
    assert np.isnan(nothing.difference) and not nothing.is_worse
