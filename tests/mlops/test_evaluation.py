from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops.evaluation import (
    CLASSIFIER_METRICS,
    N_RESAMPLES,
    chance_metrics,
    classifier_metrics,
    expected_calibration_error,
    interval,
    named_classes,
    per_class_table,
    resample,
    score_classifier,
    score_vae,
)


def test_a_row_without_a_finite_answer_counts_as_wrong() -> None:
    found = score_classifier([[0.9, 0.1], [np.nan, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 0, 1, 1])
    assert (found.value, found.n_not_finite, found.n_rows) == (0.5, 1, 4)
    assert found.per_row.tolist() == [1.0, 0.0, 1.0, 0.0]


def test_chance_is_always_naming_the_most_frequent_class() -> None:
    assert chance_metrics([0, 1, 1, 2])["accuracy"] == 0.5
    assert chance_metrics([0, 1, 1, 2])["balanced_accuracy"] == pytest.approx(1 / 3)


def test_a_vae_is_scored_by_its_elbo_at_the_mean() -> None:
    found = score_vae([{"anomaly_score": 2.0}, {"anomaly_score": 4.0}], chance=-9.0)
    assert (found.metric, found.value, found.chance) == ("elbo_at_mean", -3.0, -9.0)


def test_the_classifier_metrics_are_those_of_scikit_learn() -> None:
    from sklearn import metrics

    rng = np.random.default_rng(0)
    truth = np.concatenate([np.arange(4), rng.choice(4, 300, p=[0.7, 0.2, 0.06, 0.04])])
    for answers in (rng.integers(0, 4, 304), np.where(rng.random(304) < 0.8, truth, 0), truth):
        found = classifier_metrics(answers, truth, 4)
        assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, answers))
        balanced = metrics.balanced_accuracy_score(truth, answers)
        assert found["balanced_accuracy"] == pytest.approx(balanced)
        assert found["macro_f1"] == pytest.approx(metrics.f1_score(truth, answers, average="macro"))


def test_an_answer_that_is_not_finite_is_wrong_in_every_metric() -> None:
    nan = float("nan")
    score = score_classifier([[0.9, 0.1], [nan, nan], [0.2, 0.8], [nan, 1.0]], [0, 0, 1, 1])
    assert score.n_not_finite == 2
    assert score.values["accuracy"] == 0.5
    assert score.values["balanced_accuracy"] == 0.5
    assert score.values["macro_f1"] == pytest.approx(2 / 3)


def test_a_candidate_is_judged_by_the_metric_it_was_searched_for() -> None:
    probabilities = np.eye(2)[[0] * 9 + [0]]
    labels = [0] * 9 + [1]
    assert score_classifier(probabilities, labels).value == 0.9
    balanced = score_classifier(probabilities, labels, "balanced_accuracy")
    assert (balanced.value, balanced.chance) == (0.5, 0.5)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_the_table_of_classes_is_that_of_scikit_learn(n_classes: int, n: int, seed: int) -> None:
    from sklearn.metrics import precision_recall_fscore_support

    random = np.random.default_rng(seed)
    truth, answers = random.integers(0, n_classes, n), random.integers(-1, n_classes, n)
    table = per_class_table(answers, truth, n_classes)
    expected = precision_recall_fscore_support(
        truth, answers, labels=np.arange(n_classes), zero_division=0.0
    )
    found = np.array([[one.precision, one.recall, one.f1, one.n_rows] for one in table]).T
    assert np.allclose(found, np.stack(expected))


def test_the_calibration_error_is_what_a_hand_computes() -> None:
    # Two rows at 0.9 of which one is right, and two at 0.6 that both are.
    answers = [[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]]
    assert expected_calibration_error(answers, [0, 1, 1, 1]) == pytest.approx((0.8 + 0.8) / 4)
    assert expected_calibration_error([[1.0, 0.0], [0.0, 1.0]], [0, 1]) == 0.0
    # A bin holds its upper end: 0.5 and 0.9 are in two.
    edge = [[0.5, 0.5], [0.9, 0.1]]
    assert expected_calibration_error(edge, [0, 1], n_bins=2) == pytest.approx((0.5 + 0.9) / 2)
    assert expected_calibration_error([[1.0, 0.0], [0.0, 1.0]], [1, 0]) == 1.0


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 5), st.integers(1, 80), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_the_calibration_error_is_the_sum_over_the_bins_of_the_paper(
    n_classes: int, n: int, n_bins: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    answers, truth = random.dirichlet(np.ones(n_classes), n), random.integers(0, n_classes, n)
    confidence, right = answers.max(axis=1), answers.argmax(axis=1) == truth
    expected = 0.0
    for m in range(n_bins):
        inside = (confidence > m / n_bins) & (confidence <= (m + 1) / n_bins)
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            expected += inside.sum() / n * gap
    found = expected_calibration_error(answers, truth, n_bins)
    assert found == pytest.approx(expected, abs=1e-9)


def test_rows_without_a_finite_answer_name_no_class_and_have_no_confidence() -> None:
    answers = [[0.9, 0.1], [np.nan, 0.1], [np.inf, 0.0]]
    assert named_classes(answers).tolist() == [0, -1, -1]
    assert expected_calibration_error(answers, [0, 0, 0]) == pytest.approx(0.1)
    assert np.isnan(expected_calibration_error(answers[1:], [0, 0]))


def answers_of(named: np.ndarray, n_classes: int = 3) -> np.ndarray:
    return np.eye(n_classes)[named]


@pytest.mark.parametrize("metric", CLASSIFIER_METRICS)
@pytest.mark.parametrize("n_classes", [3, 90])
def test_a_resample_gives_the_metric_of_the_rows_drawn(metric: str, n_classes: int) -> None:
    random = np.random.default_rng(1)
    truth = random.integers(0, n_classes, 200)
    named = np.where(random.random(200) < 0.8, truth, random.integers(0, n_classes, 200))
    values = resample([answers_of(named, n_classes)], truth, metric)[:, 0]
    assert values.shape == (1 + N_RESAMPLES,)
    assert values[0] == pytest.approx(classifier_metrics(named, truth, n_classes)[metric])
    # The plain form: draw rows, and ask for the metric of those.
    plain = []
    for _ in range(2000):
        rows = random.integers(0, 200, 200)
        plain.append(classifier_metrics(named[rows], truth[rows], n_classes)[metric])
    assert values[1:].mean() == pytest.approx(np.mean(plain), abs=0.004)
    assert values[1:].std() == pytest.approx(np.std(plain), rel=0.1)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        truth = random.integers(0, 3, 150)
        named = np.where(random.random(150) < 0.7, truth, (truth + 1) % 3)
        low, high = interval(answers_of(named), truth, "accuracy")
        covered += low <= 0.7 <= high
    assert 180 <= covered <= 199


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    elbo = np.random.default_rng(3).normal(-20.0, 4.0, 1000)
    low, high = interval(elbo, None, "elbo_at_mean")
    assert (low, high) == interval(elbo, None, "elbo_at_mean")
    half = 1.96 * elbo.std() / np.sqrt(1000)
    assert low == pytest.approx(elbo.mean() - half, abs=0.03)
    assert high == pytest.approx(elbo.mean() + half, abs=0.03)
    narrow = interval(elbo, None, "elbo_at_mean", confidence=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_an_elbo_without_a_finite_row_has_no_interval() -> None:
    assert np.isnan(interval(np.array([np.nan, np.inf]), None, "elbo_at_mean")).all()
    with_one = interval(np.array([np.nan, -3.0]), None, "elbo_at_mean")
    assert with_one == (-3.0, -3.0)
