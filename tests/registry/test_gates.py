from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mlops.evaluation import Score, chance_accuracy, score_classifier, score_vae
from mlops.inputs import InputSpec
from mlops.packaging import ModelSpec
from registry.gates import Evidence, decide, refuse_structure

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
    return Score("accuracy", value, chance, 100, n_not_finite, np.zeros(100))


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
    assert chance_accuracy([0, 1, 1, 2]) == 0.5


def test_a_vae_is_scored_by_its_elbo_at_the_mean() -> None:
    found = score_vae([{"anomaly_score": 2.0}, {"anomaly_score": 4.0}], chance=-9.0)
    assert (found.metric, found.value, found.chance) == ("elbo_at_mean", -3.0, -9.0)
