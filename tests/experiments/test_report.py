"""`experiments.report` on studies in real SQLite databases, without any training."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from sqlalchemy import event
from sqlalchemy.engine import Engine

from experiments.config import SweepConfig
from experiments.config_file import read_options
from experiments.finals import summarise_seeds
from experiments.report import main
from experiments.reports.comparing import welch_interval
from experiments.reports.data import have_same_rows
from experiments.reports.delivery import write_report
from experiments.reports.page import more_trials
from experiments.reports.reading import find_sweep, read_sweep
from experiments.studies import lock_sweep
from experiments.study import MAX_ATTEMPTS, Search
from mlops.errors import UsageError
from mlops.journal import find_journals
from mlops.settings import Settings
from tests.experiments.made_sweeps import begin, describe, end, make_dataset, sweep, train_seeds


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path / "home"))
    return Settings.from_env()


def answered(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    assert main([*args, "--no-log", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def test_a_sweep_is_found_by_its_name_by_a_study_and_by_a_beginning(settings: Settings) -> None:
    for name in ("digits-1", "digits-12", "wine-1"):
        begin(settings, name)
    assert find_sweep(settings, "digits-1") == "digits-1"
    assert find_sweep(settings, "digits-12-dnn") == "digits-12"
    assert find_sweep(settings, "w") == "wine-1"
    with pytest.raises(UsageError, match="2 sweeps begin with 'dig'; give one of digits-1"):
        find_sweep(settings, "dig")
    with pytest.raises(UsageError, match=r"no sweep 'wyne-1'; .* did you mean 'wine-1'"):
        find_sweep(settings, "wyne-1")


def test_an_unknown_sweep_is_one_line_exit_code_2_and_nothing_is_created(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["digits-1"]) == 2
    assert "no sweep has run here yet" in capsys.readouterr().err
    assert main([]) == 2 and main(["a", "--compare", "a", "b"]) == 2
    assert not settings.home.exists()
    begin(settings)
    capsys.readouterr()
    assert main(["--compare", "digits-1", "digits-1-dnn"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "two sweeps or more, each once" in line


def test_a_study_is_counted_measured_and_explained(settings: Settings, tmp_path: Path) -> None:
    dataset = make_dataset(settings, tmp_path / "rows.npz")
    search = begin(settings, fingerprint=dataset.fingerprint)
    end(search, 0.7)
    end(search, 0.9, metrics={"train_accuracy": 0.99}, gpu_s=10.0)
    end(search, state="failed", reason="ValueError: a shape", gpu_s=2.0)
    end(search, state="failed", reason="ValueError: a shape")
    died = search.ask()
    assert died is not None and search.retry(died.number, "killed", charge=True)
    pruned = search.ask()
    assert pruned is not None
    reporting = optuna.trial.Trial(search.study, pruned.trial_id)
    for step, value in enumerate((0.3, 0.5, 0.4)):
        reporting.report(value, step)
    search.study.tell(pruned.number, state=TrialState.PRUNED)

    facts = read_sweep(settings, "digits-1")
    (study,) = facts.studies
    assert (study.n_complete, study.n_pruned, study.n_failed) == (2, 1, 2)
    assert study.best is not None
    assert (study.best.number, study.best.value) == (1, 0.9)
    assert study.best.metrics["train_accuracy"] == 0.99
    assert study.n_best_at_last == 2  # of 4 epochs
    assert (study.gpu_s, study.pruned_after) == (12.0, 3)
    assert [(one.number, one.value) for one in study.history] == [(0, 0.7), (1, 0.9), (5, 0.5)]
    (failure,) = study.failures
    assert (failure.reason, failure.n, failure.numbers) == ("ValueError: a shape", 2, (2, 3))
    assert MAX_ATTEMPTS > 1  # so that the attempt that died is part of another trial
    assert facts.dataset.class_names == ("few", "many")
    assert sum(facts.dataset.counts.values()) == 120
    assert facts.config["epochs"] == 4
    assert "10" in (study.importances.why_none or "")


def test_seeds_count_if_they_are_those_of_the_best_trial(settings: Settings) -> None:
    search = begin(settings, config=SweepConfig(trials=6, epochs=4, seeds=3))
    end(search, 0.9)
    train_seeds(search, 0.8, 0.85, 0.9)
    (study,) = read_sweep(settings, "digits-1").studies
    assert study.seeds is not None
    assert (study.seeds.n, round(study.seeds.mean, 4)) == (3, 0.85)
    end(search, 0.95)
    (study,) = read_sweep(settings, "digits-1").studies
    assert study.seeds is None


def test_of_several_objectives_the_set_is_told_and_of_requirements_who_keeps_them(
    settings: Settings,
) -> None:
    config = SweepConfig(
        trials=6, objectives=("val_accuracy", "latency_ms"), require=("n_weights<100",)
    )
    search = begin(settings, config=config)
    for value, latency, weights in (
        (0.9, 5.0, 50),
        (0.8, 1.0, 50),
        (0.7, 2.0, 50),
        (1.0, 1.0, 900),
    ):
        end(search, value, metrics={"latency_ms": latency, "n_weights": weights})
    (study,) = read_sweep(settings, "digits-1").studies
    assert study.pareto is not None
    assert [number for number, _ in study.pareto.members] == [0, 1]
    assert [number for number, _ in study.pareto.beaten] == [2, 3]
    assert [one.name for one in study.pareto.metrics] == ["val_accuracy", "latency_ms", "n_weights"]
    assert [one.number for one in study.top] == [0, 1, 2]


def test_importances_find_the_param_that_decides(settings: Settings) -> None:
    add_trials(begin(settings), 60)
    (study,) = read_sweep(settings, "digits-1").studies
    shares = dict(study.importances.shares)
    assert next(iter(shares)) == "dropout" and shares["dropout"] > 0.5
    assert sum(shares.values()) == pytest.approx(1)
    assert study.importances.n == 40  # of the 60 that were not pruned


def test_a_sweep_that_goes_on_can_be_read_and_the_page_says_so(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    end(begin(settings))
    with lock_sweep(settings.home, "digits-1"):
        found = answered(capsys, "digits-1")
    assert found["state"] == "running"
    html, markdown = (Path(path).read_text() for path in found["files"])
    for text in (html, markdown):
        assert "This sweep is going on" in text and "1 of 6 trials are finished" in text
        assert "experiments.status --stop digits-1" in text


def test_the_files_lie_in_the_sweeps_folder_or_where_out_says(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = begin(settings)
    end(search)
    assert main(["digits-1", "--no-log"]) == 0
    said = capsys.readouterr().out.splitlines()
    folder = settings.home / "sweeps" / "digits-1"
    assert said == [str(folder / "report.html"), str(folder / "report.md")]
    assert main(["digits-1", "--no-log", "--out", str(tmp_path / "there")]) == 0
    assert (tmp_path / "there" / "report.html").is_file()
    (tmp_path / "file").touch()
    capsys.readouterr()
    assert main(["digits-1", "--no-log", "--out", str(tmp_path / "file")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_more_trials_are_asked_of_the_same_study_also_where_auto_means_another_pruner() -> None:
    config = SweepConfig(trials=15).resolved()
    facts = sweep(config={name: it for name, it in config.to_json().items() if it is not None})
    command = more_trials(facts, 80, lambda *words: " ".join(words))
    assert command.endswith("--study digits-1 --trials 80 --pruner auto")
    asked = read_options({**facts.config, "trials": 80, "pruner": "auto"}, "here")
    assert asked.fingerprint("d", "m:C") == config.fingerprint("d", "m:C")
    assert more_trials(facts, 30, lambda *words: " ".join(words)).endswith("--trials 30")


def test_sweeps_on_the_same_rows_are_compared_over_seeds_or_one_value_each(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, values in (("one", (0.8, 0.81, 0.82)), ("two", (0.9, 0.91, 0.92))):
        search = begin(settings, name, config=SweepConfig(trials=6, epochs=4, seeds=3))
        end(search, values[-1])
        train_seeds(search, *values)
    bare = begin(settings, "three", config=SweepConfig(trials=6, epochs=9))
    end(bare, 0.85)
    found = answered(capsys, "--compare", "one", "two", "three")
    assert found["is_comparable"] and found["about_data"].startswith("Comparable")
    seeded, single = found["differences"]
    assert seeded["value"] == pytest.approx(0.1)
    assert seeded["low"] < 0.1 < seeded["high"] and seeded["low"] > 0
    assert (round(single["value"], 4), single["low"]) == (0.03, None)
    assert ["epochs", ["4", "4", "9"]] in found["config"]
    html, markdown = (Path(path).read_text() for path in found["files"])
    assert "one value each" in html and "one value each" in markdown
    assert Path(found["files"][0]).name == "compared-with-two-three.html"


def test_sweeps_on_other_rows_are_said_to_be_not_comparable(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = make_dataset(settings, tmp_path / "a.npz", seed=0)
    other = make_dataset(settings, tmp_path / "b.npz", seed=1)
    for name, dataset in (("one", one), ("two", other)):
        end(begin(settings, name, fingerprint=dataset.fingerprint))
    found = answered(capsys, "--compare", "one", "two")
    assert not found["is_comparable"] and found["differences"] == []
    assert "on other validation or test rows" in found["about_data"]
    assert "None is computed" in Path(found["files"][0]).read_text()
    assert main(["--compare", "one", "two"]) == 0
    assert "not logged: it speaks of several datasets" in capsys.readouterr().err
    assert have_same_rows(settings, [one.fingerprint, one.fingerprint]) is True
    assert have_same_rows(settings, [one.fingerprint, "1" * 64]) is None


def test_welchs_interval_is_the_one_of_scipy() -> None:
    from scipy.stats import ttest_ind

    first, second = (0.90, 0.92, 0.95, 0.91), (0.93, 0.99, 0.94)
    a, b = summarise_seeds(first), summarise_seeds(second)
    assert a is not None and b is not None
    expected = ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    assert welch_interval(a, b) == pytest.approx((expected.low, expected.high))
    same = summarise_seeds((0.5, 0.5))
    assert same is not None and welch_interval(same, same) == (0.0, 0.0)


def test_a_report_that_cannot_be_made_fails_no_sweep(settings: Settings, tmp_path: Path) -> None:
    assert write_report(settings, "absent", tmp_path / "there") == []
    assert not (tmp_path / "there").exists()


def test_the_runs_of_another_home_get_no_report_from_here(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    end(begin(settings, home="far:/other home"))
    shutil.rmtree(settings.home / "sweeps")
    monkeypatch.chdir(tmp_path)
    assert main(["digits-1"]) == 0
    said = capsys.readouterr()
    assert "not logged: its sweep is unfinished and was begun in another home" in said.err
    assert said.out.splitlines()[0] == str(tmp_path / "report-digits-1" / "report.html")
    assert not (settings.home / "sweeps").exists()
    assert not (settings.home / "journal").exists()


def test_with_a_server_that_is_down_the_report_waits_in_the_journal(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    search = begin(settings)
    end(search)
    search.note_finished()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert main(["digits-1"]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2
    (line,) = said.err.splitlines()
    assert "not logged to its runs yet" in line and "python -m mlops.sync" in line
    assert len(find_journals(settings.home / "journal" / "digits-1")) == 1


def test_a_hundred_trials_are_read_in_as_many_queries_as_ten(settings: Settings) -> None:
    counted = []
    for n in (10, 90):
        add_trials(begin(settings), n)
        queries: list[str] = []

        def note(*args: Any, queries: list[str] = queries) -> None:
            queries.append(args[2])

        event.listen(Engine, "before_cursor_execute", note)
        try:
            (study,) = read_sweep(settings, "digits-1").studies
        finally:
            event.remove(Engine, "before_cursor_execute", note)
        counted.append(len(queries))
    assert study.n_complete + study.n_pruned == 100
    assert counted[0] == counted[1]


def add_trials(search: Search, n: int) -> None:
    """Adds finished trials of random params, every third of them pruned after five epochs."""
    rng = random.Random(0)
    space = describe().distributions()
    trials = []
    for number in range(n):
        params = {
            "learning_rate": 10 ** rng.uniform(-4, -2),
            "units": rng.randint(8, 64),
            "dropout": rng.uniform(0, 0.5),
            "filters": rng.choice([16, 32, 64]),
            "cell": rng.choice(["gru", "lstm"]),
        }
        is_pruned = number % 3 == 0
        trials.append(
            create_trial(
                state=TrialState.PRUNED if is_pruned else TrialState.COMPLETE,
                value=None if is_pruned else 1 - params["dropout"] + rng.gauss(0, 0.05),
                params=params,
                distributions=space,
                user_attrs={"best_epoch": 3, "run_key": f"k{number}", "seed": number},
                intermediate_values={step: rng.random() for step in range(5)},
            )
        )
    search.study.add_trials(trials)
