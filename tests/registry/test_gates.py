from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mlops.evaluation import Score, chance_metrics, classifier_metrics, score_classifier, score_vae
from mlops.inputs import Column, InputSpec
from mlops.packaging import ModelSpec
from registry.gates import Evidence, decide, refuse_structure, same_interface

SPEC = ModelSpec(
    task="classifier",
    architecture="cnn",
    input=InputSpec("image", (8, 8, 1), "float32", None, 0.0, 16.0, (4.9,), (36.0,)),
    class_names=("cat", "dog"),
    dataset_name="pets",
    dataset_fingerprint="f" * 64,
    likelihood=None,
)


def score(value: float, n_not_finite: int = 0, chance: float = 0.5) -> Score:
    return Score("accuracy", value, chance, 100, n_not_finite, {"accuracy": value}, np.zeros(100))


def test_a_first_honest_model_passes() -> None:
    decision = decide(Evidence((SPEC, score(0.9)), None))
    assert decision.outcome == "promoted"
    assert [gate.name for gate in decision.gates] == [
        "structure",
        "finite_outputs",
        "better_than_chance",
    ]
    assert decision.reason == ""


@pytest.mark.parametrize(
    ("candidate", "gate", "fragment"),
    [
        (score(0.5), "better_than_chance", "accuracy 0.5000 is not above chance, 0.5000"),
        (score(float("nan")), "better_than_chance", "not above chance"),
        (score(0.9, n_not_finite=3), "finite_outputs", "3 of 100 answers are not finite"),
        (score(0.79), "not_worse_than_champion", "worse than the champion's 0.8000"),
    ],
)
def test_each_gate_refuses_with_its_value_and_its_limit(
    candidate: Score, gate: str, fragment: str
) -> None:
    decision = decide(Evidence((SPEC, candidate), (SPEC, score(0.8))))
    assert decision.outcome == "rejected"
    assert fragment in decision.reason
    assert "\n" not in decision.reason
    failed = next(one for one in decision.gates if one.name == gate)
    assert not failed.passed and failed.limit is not None


def test_as_good_as_the_champion_is_good_enough() -> None:
    assert decide(Evidence((SPEC, score(0.8)), (SPEC, score(0.8)))).outcome == "promoted"


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": ("dog", "cat")},
        {"class_names": tuple(f"kind {i}" for i in range(40))},
        {"input": dataclasses.replace(SPEC.input, shape=(9, 8, 1))},
        {"input": dataclasses.replace(SPEC.input, dtype="uint8")},
    ],
)
def test_a_model_whose_clients_would_have_to_change_is_refused(change: dict[str, object]) -> None:
    other = dataclasses.replace(SPEC, **change)  # type: ignore[arg-type]
    decision = decide(Evidence((other, score(0.9)), (SPEC, None)))
    assert decision.outcome == "rejected"
    assert "its clients send and expect something else" in decision.reason


def test_a_folder_that_is_not_loaded_is_rejected_with_the_reason() -> None:
    decision = refuse_structure("config.json holds Lambda")
    assert decision.outcome == "rejected"
    assert decision.reason == "config.json holds Lambda"


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


def table(*columns: Column) -> ModelSpec:
    width = sum(len(column.features) for column in columns)
    zeros = (0.0,) * width
    data = InputSpec("table", (width,), "float32", columns, 0.0, 1.0, zeros, zeros)
    return dataclasses.replace(SPEC, input=data)


def test_a_table_with_more_categories_or_fewer_demands_keeps_its_clients() -> None:
    champion = table(Column("age"), Column("island", ("a", "b")))
    assert same_interface(table(Column("island", ("a", "b", "c")), Column("age")), champion)
    assert same_interface(
        table(Column("age", None, "filled", 1.0), *champion.input.columns[1:]), champion
    )
    assert not same_interface(
        champion, table(Column("age", None, "filled", 1.0), *champion.input.columns[1:])
    )
    assert not same_interface(table(Column("age"), Column("island")), champion)
    assert not same_interface(table(Column("age"), Column("isle", ("a", "b"))), champion)
    assert not same_interface(table(Column("age")), champion)
