"""Learning curves and the figures of a study, on studies that trained nothing."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from experiments.architectures import Description
from experiments.config import SweepConfig
from experiments.figures import study as study_figures
from experiments.figures.curves import (
    draw_curves,
    find_baseline_curves,
    find_curves,
    keep_curves,
    name_network,
)
from experiments.figures.study import _log_ticks, write_study_figures
from experiments.finals import Final, Finals
from experiments.study import Search, open_search
from experiments.tasks import TrialResult
from tests.experiments.figures.made_subjects import check_pictures, names_in

SPACE: dict[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
    "units": IntDistribution(32, 512, log=True),
    "n_layers": IntDistribution(1, 3),
    "cell": CategoricalDistribution(["gru", "lstm"]),
    "batch_norm": CategoricalDistribution([False, True]),
}
BASELINE = {
    "learning_rate": 1e-3,
    "units": 64,
    "n_layers": 1,
    "cell": "gru",
    "batch_norm": False,
}
FILES = {"importances.json", "importances.png", "parallel_coordinates.png", "slice.png"}
UNTOLD = {"parallel_coordinates.png", "slice.png"}
HISTORY = [
    {"train_loss": 2.0, "val_loss": 1.5, "val_accuracy": 0.5, "learning_rate": 0.1},
    {"train_loss": 1.0, "val_loss": math.inf, "val_accuracy": 0.7, "learning_rate": 0.1},
]


def open_study(n_trials: int = 4, **options: Any) -> Search:
    description = Description(
        path="module:Thing",
        name="thing",
        task="classifier",
        objective="val_accuracy",
        left_out=None,
        space={name: distribution_to_json(one) for name, one in SPACE.items()},
        baseline=BASELINE,
        likelihood=None,
    )
    config = SweepConfig(**{"trials": n_trials, "sampler": "random"} | options)
    storage: Any = optuna.storages.InMemoryStorage()
    attrs = {"run_key": "k", "config_fingerprint": "f"}
    return open_search(storage, "sweep-thing", description, config, attrs)


def play(search: Search, quality: Callable[[dict[str, Any]], float], **fields: Any) -> Search:
    """Plays all trials of a study; a trial's fields are of one that was kept."""
    while (ask := search.ask()) is not None:
        search.tell(ask.number, TrialResult("complete", quality(ask.params), 0, "0", **fields))
    return search


def by_learning_rate(params: dict[str, Any]) -> float:
    return -abs(math.log10(params["learning_rate"]) + 2.5)


def test_the_param_that_decides_is_named_first_and_shares_add_up(tmp_path: Path) -> None:
    write_study_figures(play(open_study(40), by_learning_rate), tmp_path)
    assert names_in(tmp_path) == FILES
    check_pictures(tmp_path)
    shares = json.loads((tmp_path / "importances.json").read_text())
    assert set(shares) == set(SPACE) and next(iter(shares)) == "learning_rate"
    assert sum(shares.values()) == pytest.approx(1.0) and min(shares.values()) >= 0.0


def test_with_few_trials_or_one_quality_there_is_nothing_to_say(tmp_path: Path) -> None:
    write_study_figures(play(open_study(3), by_learning_rate), tmp_path)
    write_study_figures(play(open_study(6), lambda _: 0.5), tmp_path)
    assert names_in(tmp_path) == set()


def test_params_that_never_changed_are_left_out(tmp_path: Path) -> None:
    search = open_study(5)
    for units in (64, 128, 256, 300):
        search.study.enqueue_trial({**BASELINE, "units": units})
    while (ask := search.ask()) is not None:
        value = float(ask.params["units"])
        search.tell(ask.number, TrialResult("complete", value, 0, "0"))
    write_study_figures(search, tmp_path)
    assert names_in(tmp_path) == UNTOLD  # one param is no choice
    check_pictures(tmp_path)


def test_with_fewer_than_ten_trials_no_param_is_said_to_matter(tmp_path: Path) -> None:
    write_study_figures(play(open_study(9), by_learning_rate), tmp_path)
    assert names_in(tmp_path) == UNTOLD


def test_several_objectives_are_drawn_by_quality(tmp_path: Path) -> None:
    search = open_study(12, objectives=("val_accuracy", "n_weights"))
    play(search, by_learning_rate, metrics={"n_weights": 5.0})
    write_study_figures(search, tmp_path)
    assert names_in(tmp_path) == FILES


def test_of_thousands_of_trials_some_are_looked_at_in_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = optuna.trial.create_trial(params=BASELINE, distributions=SPACE, value=0.5)
    assert len(study_figures._choose([trial] * 5000)) == study_figures.MOST_TRIALS
    not_finite = optuna.trial.create_trial(params=BASELINE, distributions=SPACE, value=math.inf)
    assert study_figures._choose([not_finite, trial]) == [trial]
    search = play(open_study(300), by_learning_rate)
    monkeypatch.setattr(study_figures, "MOST_TRIALS", 200)
    began = time.process_time()
    write_study_figures(search, tmp_path)
    assert time.process_time() - began < 20
    check_pictures(tmp_path)


def test_a_figure_that_cannot_be_drawn_costs_the_study_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = play(open_study(10), by_learning_rate)

    def fail(*_: Any) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(study_figures, "_draw_slices", fail)
    write_study_figures(search, tmp_path)
    assert names_in(tmp_path) == FILES - {"slice.png"}
    monkeypatch.setattr(study_figures, "measure_importances", fail)
    write_study_figures(search, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([1e-4, 1e-2], [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]),
        ([35.0, 500.0], [50.0, 100.0, 200.0, 500.0]),
        ([290.0, 310.0], [290.0, 310.0]),
        ([7.0, 7.0], [7.0]),
    ],
)
def test_a_logarithmic_axis_has_few_and_round_numbers(
    values: list[float], ticks: list[float]
) -> None:
    assert _log_ticks(values) == pytest.approx(ticks)


def test_curves_are_the_losses_and_the_objective_and_no_more() -> None:
    assert keep_curves(HISTORY, "val_accuracy") == {
        "epoch": [0.0, 1.0],
        "train_loss": [2.0, 1.0],
        "val_loss": [1.5, None],
        "val_accuracy": [0.5, 0.7],
    }
    long = keep_curves(HISTORY[:1] * 1201, "val_accuracy")
    assert len(long["epoch"]) == 401 and long["epoch"][-1] == 1200


def test_the_baseline_is_found_by_its_params_and_its_reports_do_where_no_curves_are() -> None:
    search = open_study(2)
    for value in (0.5, 0.6):
        ask = search.ask()
        assert ask is not None
        trial = optuna.trial.Trial(search.study, ask.trial_id)
        trial.report(value, 0)
        trial.report(value + 0.1, 1)
        curves = keep_curves(HISTORY, "val_accuracy") if value == 0.6 else None
        search.tell(ask.number, TrialResult("complete", value, 1, "0", curves=curves))
    reported = {"epoch": [0.0, 1.0], "val_accuracy": [0.5, 0.6]}
    assert find_baseline_curves(search.study) == reported
    best = search.best()
    assert best is not None and best.number == 1
    assert find_curves(best, "val_accuracy") == keep_curves(HISTORY, "val_accuracy")
    assert Finals(search).curves() == keep_curves(HISTORY, "val_accuracy")
    assert find_baseline_curves(open_study().study) is None


def test_after_other_seeds_the_curves_are_those_of_the_median_seed() -> None:
    search = play(open_study(1, seeds=3, refit=True), lambda _: 0.5)
    finals = Finals(search)
    for number, value in enumerate((0.7, 0.9, 0.8)):
        final = Final(f"seed-{number:02d}", "seed", BASELINE, number, 2)
        curves = {"epoch": [0.0], "val_accuracy": [value]}
        result = TrialResult("complete", value, 0, "0", saved=True, curves=curves)
        finals.note(final, f"key{number}", result)
    (refit,) = finals.pending()
    finals.note(refit, "key3", TrialResult("complete", None, None, "0", saved=True))
    chosen, judged = finals.chosen(), finals.judged()
    assert chosen is not None and (chosen.name, chosen.value) == ("refit", 0.8)
    assert judged is not None and (judged.name, judged.run_key) == ("seed-02", "key2")
    assert finals.curves() == {"epoch": [0.0], "val_accuracy": [0.8]}


def test_learning_curves_stand_beside_those_of_the_baseline(tmp_path: Path) -> None:
    curves = keep_curves(HISTORY, "val_accuracy")
    baseline = {"epoch": [0.0], "val_accuracy": [0.4]}
    draw_curves(curves, baseline, "val_accuracy", "thing, trial 1", tmp_path)
    assert names_in(tmp_path) == {"learning_curves.png", "learning_curves.csv"}
    check_pictures(tmp_path)
    with (tmp_path / "learning_curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert [row["baseline_val_accuracy"] for row in rows] == ["0.4", ""]
    assert [row["val_loss"] for row in rows] == ["1.5", ""]


def test_curves_of_one_epoch_and_without_a_baseline_are_drawn_too(tmp_path: Path) -> None:
    draw_curves(keep_curves(HISTORY[:1], "val_accuracy"), None, "val_accuracy", "one", tmp_path)
    check_pictures(tmp_path)
    assert "learning_curves.png" in names_in(tmp_path)


def test_networks_are_called_as_their_runs_are() -> None:
    assert name_network("cnn", "00012") == "cnn, trial 12"
    assert name_network("cnn", "seed-02") == "cnn, seed-02"
