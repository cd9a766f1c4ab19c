"""What to try next: each rule speaks where its figures say so, and is silent where not."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from experiments.finals import summarise_seeds
from experiments.importances import Importances
from experiments.reports.advice import Advice, advise
from experiments.reports.edges import find_edges
from experiments.reports.facts import DatasetFacts, Failure, ParamRange
from experiments.space import narrow
from tests.experiments.made_sweeps import SPACE, study, sweep, trial


def seeded(architecture: str, *values: float) -> Any:
    seeds = summarise_seeds(values)
    return study(architecture, (trial(max(values), 0),), seeds=seeds)


def the_only(found: list[Advice]) -> Advice:
    (one,) = [advice for advice in found if "--seeds" not in advice.options]
    return one


def test_of_a_study_that_looks_fine_only_the_seeds_are_missing() -> None:
    (one,) = advise(sweep(study()))
    assert one.options == ("--seeds", "5")
    assert "0.9000 is one value, the best of 60" in one.evidence
    assert advise(sweep(seeded("dnn", 0.9, 0.91, 0.92))) == []


def test_without_a_complete_trial_there_is_nothing_but_why_they_failed() -> None:
    reason = Failure("ValueError: no", 3, (0, 1, 2))
    empty = study(best=None, top=(), n_complete=0, n_failed=3, failures=(reason,))
    (one,) = advise(sweep(empty))
    assert one.evidence == "3 of 3 trials failed; 3 of them with: ValueError: no."


def test_a_best_epoch_that_is_the_last_wants_more_epochs() -> None:
    one = the_only(advise(sweep(study(top=(trial(best_epoch=19),), n_best_at_last=31))))
    assert one.options == ("--epochs", "40")
    assert "at its last epoch, 20; so were 31 of 60 complete trials" in one.evidence
    assert len(advise(sweep(study(top=(trial(best_epoch=18),))))) == 1


def test_what_holds_for_two_architectures_is_said_once() -> None:
    both = [study(name, (trial(best_epoch=19),)) for name in ("cnn", "dnn")]
    one = the_only(advise(sweep(*both)))
    assert one.about == "cnn, dnn"
    assert one.evidence.startswith("cnn: The best trial") and " dnn: The best" in one.evidence


def test_few_trials_for_the_params_want_more_of_the_same_study() -> None:
    few = study(target=8, n_complete=6, n_pruned=2)
    one = the_only(advise(sweep(few)))
    assert one.more == 50
    assert "8 finished trials for 5 searched params. TPE draws the first 10" in one.evidence
    assert "TPE" not in the_only(advise(sweep(study(n_complete=11)))).evidence
    config = {**sweep().config, "sampler": "grid"}
    assert len(advise(sweep(few, config=config))) == 1


def test_a_gap_between_training_and_validation_wants_regularisation() -> None:
    metrics = {"train_accuracy": 0.99, "val_accuracy": 0.9}
    one = the_only(advise(sweep(study(top=(trial(metrics=metrics, dropout=0.1),)))))
    assert one.space == ("dropout = {low = 0.1}",)
    assert "0.9900 on training rows and 0.9000 on validation rows, 9.0 points" in one.evidence
    close = {"train_accuracy": 0.94, "val_accuracy": 0.9}
    assert len(advise(sweep(study(top=(trial(metrics=close),))))) == 1


def test_unbalanced_classes_want_another_objective_unless_it_has_been_chosen() -> None:
    data = DatasetFacts("d", "f", class_names=("a", "b"), class_counts=(300, 100))
    one = the_only(advise(sweep(study(), dataset=data)))
    assert one.options == ("--objective", "balanced_accuracy")
    assert "'a' has 300 training rows, 'b' has 100" in one.evidence
    chosen = study(objective="val_balanced_accuracy")
    assert len(advise(sweep(chosen, dataset=data))) == 1


def test_two_bests_that_one_training_each_cannot_tell_apart_want_seeds() -> None:
    one, *_ = advise(sweep(study("cnn", (trial(0.91),)), study("dnn", (trial(0.9),))))
    assert one.options == ("--seeds", "5")
    assert "differ by 0.0100, 2 of 200 validation rows, one value each" in one.evidence


def test_overlapping_intervals_want_more_seeds_and_apart_ones_do_not() -> None:
    (one,) = advise(sweep(seeded("cnn", 0.9, 0.92, 0.91), seeded("dnn", 0.9, 0.91, 0.92)))
    assert one.options == ("--seeds", "6") and "the intervals overlap" in one.evidence
    assert advise(sweep(seeded("cnn", 0.95, 0.951), seeded("dnn", 0.8, 0.801))) == []


def test_params_that_hardly_matter_are_fixed_at_the_best_values() -> None:
    shares = (("learning_rate", 0.97), ("dropout", 0.02), ("cell", 0.01))
    one = the_only(advise(sweep(study(importances=Importances(shares, 6, 60)))))
    assert one.options == ("--fix", "dnn.dropout=0.25", "--fix", "dnn.cell=gru")
    both = ("val_accuracy", "latency_ms")
    several = study(importances=Importances(shares, 6, 60), objectives=both)
    assert len(advise(sweep(several))) == 1
    few = study(importances=Importances(shares, 5, 20))
    assert len(advise(sweep(few))) == 1


def test_many_pruned_and_few_complete_is_said_with_when_they_were_pruned() -> None:
    one = the_only(advise(sweep(study(n_complete=6, n_pruned=54, pruned_after=3))))
    assert one.options == ("--pruner", "none")
    assert "54 of 60 finished trials were pruned by hyperband, half of them after 3" in one.evidence


def test_losses_that_are_not_finite_want_lower_learning_rates() -> None:
    params = ({"learning_rate": 0.009}, {"learning_rate": 0.006})
    failure = Failure("the loss is not finite", 8, (1, 2), params)
    one = the_only(advise(sweep(study(n_failed=8, failures=(failure,)))))
    assert one.space == ("learning_rate = {high = 0.003}",)


def test_a_best_trial_without_a_wrong_row_ends_the_search_for_accuracy() -> None:
    one = the_only(advise(sweep(study(top=(trial(1.0),)))))
    assert "0 of 200 validation rows wrong" in one.evidence


@pytest.mark.parametrize(
    ("param", "value", "entry"),
    [
        ("learning_rate", 9.9e-3, "learning_rate = {high = 0.1}"),
        ("learning_rate", 1.01e-4, "learning_rate = {low = 1e-05}"),
        ("units", 64, "units = {high = 92}"),
        ("units", 8, "units = {low = 4}"),
        ("dropout", 0.5, "dropout = {high = 0.75}"),
        ("filters", 64, "filters = [16, 32, 64, 128]"),
        ("filters", 16, "filters = [8, 16, 32, 64]"),
    ],
)
def test_a_best_value_at_an_end_gives_an_entry_that_the_space_takes(
    param: str, value: Any, entry: str
) -> None:
    top = tuple(trial(0.9 - number / 100, number, **{param: value}) for number in range(3))
    (edge,) = find_edges(study(top=top))
    assert (edge.param, edge.entry) == (param, entry)
    assert "3 of the best 3 trials lie there or close by" in edge.evidence
    wider, wrong = narrow(SPACE, tomllib.loads(entry), "[space.dnn]")
    assert wrong == [] and wider[param] != SPACE[param]


def test_where_nothing_is_beyond_the_end_or_only_one_trial_lies_there_nothing_is_said() -> None:
    none = tuple(trial(0.9, number, dropout=0.0) for number in range(3))
    assert list(find_edges(study(top=none))) == []
    alone = (trial(0.9, 0, units=64), trial(0.8, 1), trial(0.7, 2))
    assert list(find_edges(study(top=alone))) == []
    layers = ParamRange("n", low=1, high=4, whole=True)
    shallow = tuple(trial(0.9, number, n=1) for number in range(3))
    assert list(find_edges(study(top=shallow, space=(layers,)))) == []
