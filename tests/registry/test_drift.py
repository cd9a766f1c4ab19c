"""Scores from where the reference's came from are not flagged, others are; figures as scipy's."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from registry.drift import (
    BINS,
    MOST_QUANTILES,
    Rule,
    build_reference,
    count_bins,
    judge_window,
    ks_p_value,
    ks_statistic,
    psi,
    reference_from_json,
    reference_to_json,
    round_scores,
)

RULE = Rule()
SCORE = st.floats(-1e6, 1e6).map(lambda x: round(x, 3))
SCORES = st.lists(SCORE, min_size=1, max_size=300)
SAMPLE = st.lists(SCORE, min_size=4, max_size=99)


def test_psi_of_known_histograms_is_what_the_formula_gives() -> None:
    one, other = np.array([500_000, 500_000]), np.array([700_000, 300_000])
    wanted = 0.2 * np.log(0.7 / 0.5) - 0.2 * np.log(0.3 / 0.5)
    assert psi(one, other) == pytest.approx(wanted, rel=1e-4)
    assert psi(one, one) == 0
    assert psi(one, other) == pytest.approx(psi(other, one))
    assert psi(np.array([5, 0]), np.array([0, 5])) < 10  # an empty bin is no infinity


def test_psi_without_a_shift_has_the_mean_that_yurdakul_gives() -> None:
    random = np.random.default_rng(0)
    n, m = 400, 500
    found = [
        psi(random.multinomial(n, [0.1] * BINS), random.multinomial(m, [0.1] * BINS))
        for _ in range(2000)
    ]
    assert np.mean(found) == pytest.approx((1 / n + 1 / m) * (BINS - 1), rel=0.05)


@given(SAMPLE, SAMPLE)
def test_the_ks_statistic_is_scipys(one: list[float], other: list[float]) -> None:
    a, b = np.sort(one), np.sort(other)
    assert ks_statistic(a, b) == pytest.approx(stats.ks_2samp(a, b, method="asymp").statistic)


@pytest.mark.parametrize(("n", "m"), [(40, 60), (270, 500), (1000, 500)])
def test_the_ks_p_is_near_the_exact_one(n: int, m: int) -> None:
    random = np.random.default_rng(0)
    for shift in (0.0, 0.1, 0.2, 0.3):
        a, b = np.sort(random.normal(size=n)), np.sort(random.normal(shift, size=m))
        exact = stats.ks_2samp(a, b, method="exact")
        assert ks_p_value(exact.statistic, n, m) == pytest.approx(exact.pvalue, rel=0.15, abs=0.02)


def test_the_ks_p_is_a_probability_for_any_distance() -> None:
    found = [ks_p_value(d, 270, 500) for d in np.linspace(0, 1, 101)]
    assert found[0] == 1
    assert all(0 <= one <= 1 for one in found)
    assert all(later <= one for one, later in itertools.pairwise(found))


def test_without_a_shift_p_is_uniform_and_few_windows_are_flagged() -> None:
    random = np.random.default_rng(1)
    windows = []
    for _ in range(1500):
        reference = build_reference(random.gamma(3, 9, 270))
        windows.append(judge_window(reference, random.gamma(3, 9, 500), RULE))
    p = np.array([one.ks_p for one in windows])
    assert stats.kstest(p, "uniform").pvalue > 0.001
    for alpha in (0.01, 0.1, 0.5):
        wide = 4 * np.sqrt(alpha * (1 - alpha) / len(p))
        assert np.mean(p < alpha) == pytest.approx(alpha, abs=wide)
    assert sum(one.shifted for one in windows) <= 8  # 1.5 are expected of p alone


def test_a_shifted_and_a_wider_window_are_flagged() -> None:
    random = np.random.default_rng(2)
    reference = build_reference(random.normal(30, 5, 270))
    assert judge_window(reference, random.normal(33, 5, 500), RULE).shifted
    assert judge_window(reference, random.normal(27, 5, 500), RULE).shifted
    assert judge_window(reference, random.normal(30, 12, 500), RULE).shifted
    assert not judge_window(reference, random.normal(30, 5, 500), RULE).shifted


def test_what_is_no_finite_score_counts_as_very_large() -> None:
    reference = build_reference(np.arange(300.0))
    window = judge_window(reference, [np.nan, np.inf] * 100, RULE)
    assert (window.shifted, window.ks) == (True, 1.0)
    with pytest.raises(ValueError, match="without rows"):
        judge_window(reference, [], RULE)


@given(SCORES)
def test_a_reference_holds_each_score_once_and_reads_as_it_was_written(
    scores: list[float],
) -> None:
    made = build_reference(scores)
    assert made.n == len(scores) == made.counts.sum()
    assert (np.diff(made.edges) > 0).all()
    assert len(made.counts) == len(made.edges) + 1 <= BINS
    read = reference_from_json(json.loads(json.dumps(reference_to_json(made))))
    assert (read.n, read.counts.tolist()) == (made.n, made.counts.tolist())
    assert read.edges.tolist() == made.edges.tolist()
    same = judge_window(read, scores, RULE)
    assert (same.psi, same.shifted) == (0, False)


def test_deciles_hold_a_tenth_each_and_a_small_reference_has_fewer_bins() -> None:
    made = build_reference(np.random.default_rng(0).normal(size=1000))
    assert made.counts.tolist() == [100] * BINS
    assert len(build_reference(np.arange(30.0)).counts) == 3
    assert len(build_reference([5.0]).counts) == 1


def test_scores_of_few_values_are_compared_without_a_false_alarm() -> None:
    random = np.random.default_rng(3)
    values = np.array([3.1, 4.7, 9.2], np.float32)
    made = build_reference(random.choice(values, 300))
    nearly = random.choice(values, 500) * (1 + 1e-7)
    assert not judge_window(made, nearly, RULE).shifted
    assert judge_window(made, random.choice(values, 500, p=[0.7, 0.2, 0.1]), RULE).shifted


def test_many_scores_are_kept_as_quantiles_that_say_the_same() -> None:
    random = np.random.default_rng(4)
    scores = random.normal(size=20_000)
    made = build_reference(scores)
    assert (made.n, len(made.quantiles)) == (20_000, MOST_QUANTILES)
    other = np.sort(round_scores(random.normal(0.1, size=500)))
    whole = ks_statistic(np.sort(round_scores(scores)), other)
    assert ks_statistic(made.quantiles, other) == pytest.approx(whole, abs=1 / MOST_QUANTILES)


@given(st.floats(-1e30, 1e30))
def test_scores_are_rounded_to_five_digits(score: float) -> None:
    (rounded,) = round_scores([score])
    assert rounded == pytest.approx(score, rel=5.1e-5, abs=1e-300)


def test_counting_puts_each_score_into_its_bin() -> None:
    assert count_bins(np.array([1.0, 2.0]), np.array([0.5, 1.0, 1.5, 2.5, 9.0])).tolist() == [
        2,
        1,
        2,
    ]


def test_drift_begins_with_two_of_three_windows_and_ends_with_none_of_three() -> None:
    states, was = [], False
    seen: list[bool] = []
    for shifted in (1, 0, 0, 1, 0, 1, 0, 0, 0, 0):
        seen.append(bool(shifted))
        was = RULE.is_drifted(was, seen)
        states.append(int(was))
    assert states == [0, 0, 0, 0, 0, 1, 1, 1, 0, 0]


@pytest.mark.parametrize(
    "change",
    [
        {"n": 0},
        {"n": 101},
        {"n": 100.0},
        {"n": True},
        {"edges": []},
        {"edges": [1e999] * 9},
        {"edges": ["1"] * 9},
        {"counts": [-1, 21, *[10] * 8]},
        {"counts": [10.0] * 10},
        {"quantiles": [1.0]},
        {"quantiles": list(range(100, 0, -1))},
        {"quantiles": [float("nan")] * 100},
        {"quantiles": None},
        {"more": 1},
    ],
)
def test_what_is_no_reference_is_refused(change: dict[str, object]) -> None:
    value = reference_to_json(build_reference(np.arange(1.0, 101.0))) | change
    with pytest.raises((ValueError, TypeError, KeyError)):
        reference_from_json(value)
