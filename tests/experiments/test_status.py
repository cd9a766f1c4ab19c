"""`experiments.status` against real SQLite storages, real locks and, once, a real sweep."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import TrialState
from sqlalchemy.engine import Engine

from experiments import run_sweep
from experiments.architectures import Description
from experiments.config import SweepConfig
from experiments.overview import TrialRow, estimate_time_left, find_best, find_spans
from experiments.status import get_sweep, list_sweeps, main, next_commands, stop_sweep
from experiments.storage import open_storage
from experiments.studies import home_of, is_locked, lock_sweep
from experiments.study import Search, open_search
from experiments.tasks import TrialResult
from experiments.workers.cluster import Cluster, open_cluster
from mlops.errors import MlopsError
from mlops.settings import Settings
from tests.conftest import Tracking

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
ELSEWHERE = "far:/other home"


def describe(name: str, task: Any = "classifier") -> Description:
    return Description(
        path=f"module:{name.title()}",
        name=name,
        task=task,
        objective="val_accuracy" if task == "classifier" else "val_elbo",
        left_out=None,
        space={
            "rate": distribution_to_json(FloatDistribution(1e-4, 1e-1, log=True)),
            "units": distribution_to_json(IntDistribution(8, 64)),
            "cell": distribution_to_json(CategoricalDistribution(["gru", "lstm"])),
        },
        baseline={"rate": 0.01, "units": 16, "cell": "lstm"},
        likelihood=None,
    )


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path / "home"))
    return Settings.from_env()


def begin(
    settings: Settings,
    sweep: str = "digits-1",
    *,
    trials: int = 3,
    home: str | None = None,
    description: Description | None = None,
) -> Search:
    description = description or describe("dnn")
    attrs = {
        "sweep": sweep,
        "home": home or home_of(settings),
        "experiment": "digits",
        "architecture_path": description.path,
        "config_fingerprint": "f",
        "run_key": "k",
    }
    storage = open_storage(settings.study_url)
    name = f"{sweep}-{description.name}"
    return open_search(storage, name, description, SweepConfig(trials=trials), attrs)


def end(search: Search, value: float = 0.5, state: Any = "complete") -> int:
    ask = search.ask()
    assert ask is not None
    search.tell(ask.number, TrialResult(state, value, 0, "00"))
    return ask.number


def finish(settings: Settings, sweep: str, **options: Any) -> None:
    search = begin(settings, sweep, trials=1, **options)
    end(search)
    search.note_finished()


def answered(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    assert main([*args, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def state_of(settings: Settings, sweep: str) -> str:
    return get_sweep(settings, sweep).state


def test_with_nothing_there_it_says_so_and_creates_nothing(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([]) == 0
    assert "No sweep has run here yet" in capsys.readouterr().out
    assert answered(capsys) == {"sweeps": [], "n_hidden": 0}
    assert main(["digits-1"]) == 2
    assert "no sweep has run here yet" in capsys.readouterr().err
    assert main(["--stop", "digits-1"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_database_without_studies_is_nothing_and_gets_no_table(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.home.mkdir()
    database = settings.home / "studies.db"
    database.touch()
    assert main([]) == 0
    assert "No sweep has run here yet" in capsys.readouterr().out
    assert database.read_bytes() == b""


def test_a_file_that_is_no_database_is_an_error_in_a_sentence(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.home.mkdir()
    (settings.home / "studies.db").write_text("this is text and no database " * 50)
    assert main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the study database cannot be read" in line


def test_a_sweep_is_running_while_its_lock_is_held_and_interrupted_when_not(
    settings: Settings,
) -> None:
    begin(settings)
    assert state_of(settings, "digits-1") == "interrupted"
    with lock_sweep(settings.home, "digits-1"):
        assert state_of(settings, "digits-1") == "running"
    assert state_of(settings, "digits-1") == "interrupted"


def test_a_sweep_is_done_when_every_study_was_noted_as_finished(settings: Settings) -> None:
    finish(settings, "digits-1")
    assert state_of(settings, "digits-1") == "done"
    begin(settings, description=describe("cnn"))
    assert state_of(settings, "digits-1") == "interrupted"


def test_an_unfinished_sweep_of_another_home_is_elsewhere_and_a_finished_one_done(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(settings, "away", home=ELSEWHERE)
    finish(settings, "away done", home=ELSEWHERE)
    assert state_of(settings, "away") == "elsewhere"
    assert state_of(settings, "away done") == "done"
    assert main(["away"]) == 0
    assert "elsewhere, on far in /other home" in capsys.readouterr().out
    with lock_sweep(settings.home, "away"):  # it goes on here, with --study
        assert state_of(settings, "away") == "running"


def test_a_study_is_counted_as_the_driver_counts_it(settings: Settings) -> None:
    search = begin(settings, trials=9)
    end(search, 0.7)
    end(search, 0.9, "pruned")
    end(search, 0.8)
    end(search, 0.8)
    end(search, state="failed")
    died = search.ask()
    assert died is not None and search.retry(died.number, "killed", charge=True)
    assert search.ask() is not None  # under way
    tally, best = search.tally(), search.best()
    (study,) = get_sweep(settings, "digits-1").studies
    assert (study.n_complete, study.n_pruned, study.n_failed, study.n_running) == (3, 1, 1, 1)
    assert (tally.n_complete, tally.n_pruned, tally.n_failed) == (3, 1, 1)
    assert (study.n_finished, study.target) == (4, 9)
    assert best is not None and study.best is not None
    assert study.best.number == best.number == 2
    assert study.best.value == tally.value == 0.8
    assert study.best.params == best.params
    assert isinstance(study.best.params["units"], int)


def test_of_values_below_zero_the_highest_is_the_best(settings: Settings) -> None:
    search = begin(settings, description=describe("vae", "vae"))
    for value in (-120.0, -80.5, -90.0):
        end(search, value)
    (study,) = get_sweep(settings, "digits-1").studies
    assert study.best is not None and study.best.value == -80.5
    assert study.objective == "val_elbo"


@pytest.fixture(params=["UTC", "JST-9", "EST5"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The time zone of this machine."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("zone")
def test_times_are_aware_utc_and_begin_with_the_first_trial(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    search = begin(settings)
    assert get_sweep(settings, "digits-1").created_at is None
    before = datetime.now(UTC)
    end(search)
    written = answered(capsys)["sweeps"][0]["created_at"]
    assert before <= datetime.fromisoformat(written) <= datetime.now(UTC)
    assert written.endswith("+00:00")


def test_running_ones_and_the_last_ten_others_are_listed_newest_last(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(13):
        finish(settings, f"s{number:02d}")
    with lock_sweep(settings.home, "s00"):
        found = answered(capsys)
        states = {one["sweep_id"]: one["state"] for one in found["sweeps"]}
        assert list(states) == ["s00", *(f"s{number:02d}" for number in range(3, 13))]
        assert states["s00"] == "running"
        assert found["n_hidden"] == 2
        assert main([]) == 0
        assert "2 older ones are not shown; --all shows them" in capsys.readouterr().out
        everything = answered(capsys, "--all")
    assert [one["sweep_id"] for one in everything["sweeps"]] == [f"s{n:02d}" for n in range(13)]
    assert everything["n_hidden"] == 0


def test_the_table_has_a_line_a_study(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    end(begin(settings, trials=4), 0.75)
    begin(settings, description=describe("cnn"))
    assert main([]) == 0
    header, sweep, dnn, cnn = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["finished", "pruned", "failed", "best"]
    assert sweep.startswith("digits-1: interrupted, since ")
    assert sweep.endswith(" UTC, experiment digits")
    assert dnn.split() == ["dnn", "1/4", "0", "0", "0.7500", "val_accuracy", "-"]
    assert cnn.split() == ["cnn", "0/3", "0", "0", "-", "val_accuracy", "-"]


def test_one_sweep_shows_its_best_params_and_the_command_to_go_on(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    end(begin(settings))
    assert next_commands(get_sweep(settings, "digits-1"), settings) == []
    config = settings.home / "sweeps" / "digits-1" / "sweep.toml"
    config.parent.mkdir(parents=True)
    config.touch()
    assert main(["digits-1"]) == 0
    shown = capsys.readouterr().out
    assert "best of dnn, trial 0: rate=0.01, units=16, cell=lstm" in shown
    assert f"experiments.sweep --config {config} --study digits-1" in shown


def test_a_sweep_that_is_done_says_how_to_promote_each_model_once(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    for description in (describe("dnn"), describe("cnn"), describe("vae", "vae")):
        search = begin(settings, trials=1, description=description)
        end(search)
        search.set_candidate("k")
        search.note_finished()
    finish(settings, "without")
    (one,) = answered(capsys, "digits-1")["sweeps"]
    assert [command.split("-m ")[1] for command in one["commands"]] == [
        "registry.promote digits-classifier",
        "registry.promote digits-vae",
    ]
    assert answered(capsys, "without")["sweeps"][0]["commands"] == []


def test_an_unknown_sweep_is_answered_with_the_nearest(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(settings, "digits-20261123-101500")
    for args in (["digits-20261123-10150"], ["--stop", "digits-20261123-10150"]):
        assert main(args) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "did you mean 'digits-20261123-101500'?" in line


def test_reading_writes_nothing(settings: Settings) -> None:
    finish(settings, "s0")
    begin(settings, "s1", home=ELSEWHERE)

    def content() -> list[str]:
        with contextlib.closing(sqlite3.connect(settings.home / "studies.db")) as database:
            return list(database.iterdump())

    before = content()
    assert main([]) == 0
    assert content() == before
    assert not (settings.home / "sweeps").exists()


def test_reading_does_not_wait_for_a_driver_that_writes(settings: Settings) -> None:
    search = begin(settings, trials=9)
    end(search)
    with open_storage(settings.study_url).engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO studies (study_name) VALUES ('half')")
        began = time.monotonic()
        assert len(list_sweeps(settings).sweeps) == 1
        assert time.monotonic() - began < 5


def test_the_time_left_leaves_pauses_out_and_counts_workers_in() -> None:
    def span(began_s: float, ended_s: float) -> tuple[datetime, datetime]:
        return EPOCH + timedelta(seconds=began_s), EPOCH + timedelta(seconds=ended_s)

    one_worker = [span(0, 10), span(10, 20)]
    assert estimate_time_left(4, 2, one_worker) == 40.0
    two_workers = [span(0, 10), span(0, 10)]
    assert estimate_time_left(4, 2, two_workers) == 20.0
    paused = [span(0, 10), span(1000, 1010)]
    assert estimate_time_left(4, 2, paused) == 40.0
    assert estimate_time_left(4, 0, [span(0, 10)]) is None
    assert estimate_time_left(0, 4, one_worker) is None
    assert estimate_time_left(4, 2, []) is None


def row(number: int, state: TrialState, began_s: float, ended_s: float | None) -> TrialRow:
    ended = None if ended_s is None else EPOCH + timedelta(seconds=ended_s)
    return TrialRow(number, number, state, EPOCH + timedelta(seconds=began_s), ended, None)


def test_a_trial_under_way_lasts_until_now_and_a_failed_one_does_not_count() -> None:
    now = EPOCH + timedelta(seconds=50)
    trials = [
        row(0, TrialState.COMPLETE, 0, 10),
        row(1, TrialState.FAIL, 0, 40),
        row(2, TrialState.RUNNING, 30, None),
        TrialRow(3, 3, TrialState.WAITING, None, None, None),
    ]
    seconds = [
        ((began - EPOCH).total_seconds(), (ended - EPOCH).total_seconds())
        for began, ended in find_spans(trials, now)
    ]
    assert seconds == [(0, 10), (30, 50)]
    assert find_best(trials) is None


def test_time_left_is_told_of_a_running_sweep_only(settings: Settings) -> None:
    end(begin(settings, trials=4))
    assert get_sweep(settings, "digits-1").studies[0].time_left_s is None
    with lock_sweep(settings.home, "digits-1"):
        left = get_sweep(settings, "digits-1").studies[0].time_left_s
    assert left is not None and left > 0


DRIVER = """
import sys, time
from pathlib import Path
import optuna
from experiments.storage import open_storage
from experiments.studies import lock_sweep

home, url, sweep, study, deaf = sys.argv[1:]
study = optuna.load_study(study_name=study, storage=open_storage(url))
with lock_sweep(Path(home), sweep):
    if deaf == "at first":
        while not study.user_attrs.get("stop"):
            time.sleep(0.1)
        study.set_user_attr("stop", False)
    print("holds", flush=True)
    while deaf == "always" or not study.user_attrs.get("stop"):
        time.sleep(0.1)
"""


@contextlib.contextmanager
def driver(settings: Settings, search: Search, deaf: str = "no") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a sweep until it is asked to stop."""
    sweep = search.study.user_attrs["sweep"]
    words = [str(settings.home), settings.study_url, sweep, search.name, deaf]
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, *words], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            if deaf == "at first":
                while not is_locked(settings.home, sweep):
                    time.sleep(0.02)
            else:
                assert process.stdout is not None and process.stdout.readline() == "holds\n"
            yield process
        finally:
            process.kill()


def test_a_running_sweep_is_stopped_and_what_it_finished_is_kept(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    search = begin(settings)
    end(search)
    with driver(settings, search) as process:
        assert main(["--stop", "digits-1"]) == 0
        assert process.wait(10) == 0
    shown = capsys.readouterr()
    assert "waiting until its driver has ended" in shown.err
    assert "digits-1 has stopped" in shown.out
    assert "finished trials are kept: dnn 1 of 3" in shown.out
    assert "The command that began it goes on" in shown.out
    assert main(["--stop", "digits-1"]) == 1
    assert "is not running; it is interrupted" in capsys.readouterr().err


def test_the_answer_to_a_stop_is_json_when_asked_for(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    with driver(settings, begin(settings)):
        (found,) = answered(capsys, "--stop", "digits-1")["sweeps"]
    assert found["state"] == "interrupted"


def test_a_driver_that_was_just_opening_its_studies_is_asked_again(settings: Settings) -> None:
    notes: list[str] = []
    search = begin(settings)
    with driver(settings, search, deaf="at first") as process:
        stop_sweep(settings, "digits-1", note=notes.append, wait_s=20, ask_every_s=1.5)
        assert process.wait(10) == 0
    assert any("still waiting" in note for note in notes)


def test_a_driver_that_does_not_end_in_time_is_said_to_be_asked(settings: Settings) -> None:
    with (
        driver(settings, begin(settings), deaf="always"),
        pytest.raises(MlopsError, match=r"asked to stop and has not ended within 1 s\."),
    ):
        stop_sweep(settings, "digits-1", note=lambda _: None, wait_s=1.0)


def test_a_sweep_that_is_done_cannot_be_stopped(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(settings, "digits-1")
    assert main(["--stop", "digits-1"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "'digits-1' is not running; it is done." in line


def test_a_sweep_elsewhere_is_asked_and_not_waited_for(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    search = begin(settings, home=ELSEWHERE)
    assert main(["--stop", "digits-1"]) == 0
    assert search.study.user_attrs["stop"] is True
    assert "begun on far in /other home" in (said := capsys.readouterr().out)
    assert "cannot be watched from here" in said


def test_two_sweeps_are_not_stopped_at_once(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["one", "--stop", "two"]) == 2
    assert "Stop one at a time" in capsys.readouterr().err


def test_more_sweeps_take_no_more_queries(settings: Settings) -> None:
    def count_queries() -> int:
        said: list[str] = []

        def hear(_: Any, __: Any, statement: str, *___: Any) -> None:
            said.append(statement)

        sqlalchemy.event.listen(Engine, "before_cursor_execute", hear)
        try:
            list_sweeps(settings, everything=True)
        finally:
            sqlalchemy.event.remove(Engine, "before_cursor_execute", hear)
        return sum(one.startswith("SELECT") for one in said)

    finish(settings, "s0")
    few = count_queries()
    for number in range(1, 6):
        finish(settings, f"s{number}")
    assert count_queries() == few == 4


class Quiet:
    """A Progress that keeps its notes."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.seen = threading.Event()

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, study: str, tally: Any) -> None:
        if tally.n_finished >= 1:
            self.seen.set()

    def note(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def own_workers(tmp_path: Path) -> Iterator[Cluster]:
    """Workers of this test alone: a sweep that is stopped kills them."""
    with open_cluster(1, 1, tmp_path / "workers.log") as cluster:
        yield cluster


def test_a_real_sweep_stops_in_good_order_and_the_same_config_goes_on(
    tracking: Tracking, own_workers: Cluster, workers: Cluster, tmp_path: Path
) -> None:
    settings, progress = tracking.settings, Quiet()
    config = SweepConfig(
        architectures=("dnn",), trials=4, epochs=25, workers=1, experiment="stopped"
    )
    results: list[Any] = []

    def search(cluster: Cluster) -> None:
        results.append(run_sweep(config, settings=settings, cluster=cluster, progress=progress))

    thread = threading.Thread(target=search, args=(own_workers,))
    thread.start()
    assert progress.seen.wait(120)
    (running,) = [one for one in list_sweeps(settings).sweeps if one.state == "running"]
    assert running.studies[0].target == 4
    stopped = stop_sweep(settings, running.sweep_id, note=lambda _: None)
    thread.join(60)
    assert results[0].interrupted and results[0].sweep_id == running.sweep_id
    assert stopped.state == "interrupted"
    assert 1 <= stopped.studies[0].n_finished < 4

    search(workers)
    assert results[1].sweep_id == running.sweep_id and not results[1].interrupted
    after = get_sweep(settings, running.sweep_id)
    assert after.state == "done"
    assert after.studies[0].n_finished == 4
