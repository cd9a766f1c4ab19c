"""Studies and runs that are one to one, and every way in which they are not."""

from __future__ import annotations

import contextlib
import gc
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from experiments.config import SweepConfig
from experiments.config_file import write_config
from experiments.pairs import read_trial_keys
from experiments.storage import open_storage
from experiments.studies import CONFIG, home_of, lock_sweep
from experiments.study import Search, open_search
from experiments.study_store import StudyStore
from experiments.tasks import TrialResult
from mlops.doctor import examine, main
from mlops.journal import Journal
from mlops.mlflow_store import open_store_client
from mlops.settings import Settings
from mlops.stores.database_check import find_package, read_revisions
from mlops.stores.store import Finding
from mlops.sync import sync
from mlops.tracked_runs import read_tracked_runs
from mlops.tracking import Run
from tests.conftest import Tracking
from tests.experiments.test_status import ELSEWHERE, describe


@pytest.fixture
def settings(home_with_database: Settings) -> Settings:
    return home_with_database


class Sweep:
    """A sweep of one study with its journal: what a driver does, without training."""

    def __init__(
        self, settings: Settings, name: str = "digits-1", home: str | None = None, trials: int = 3
    ) -> None:
        self.settings, self.name = settings, name
        self.study = f"{name}-dnn"
        self.journal = Journal(settings.home / "journal" / name, "driver")
        description = describe("dnn")
        attrs = {
            "sweep": name,
            "home": home or home_of(settings),
            "experiment": "digits",
            "architecture_path": description.path,
            "config_fingerprint": "f",
            "run_key": f"{name}-parent",
        }
        storage = open_storage(settings.study_url)
        config = SweepConfig(trials=trials)
        self.search: Search = open_search(storage, self.study, description, config, attrs)
        self.folder = settings.home / "sweeps" / name
        (self.folder / "dnn").mkdir(parents=True)
        write_config(config, self.folder / CONFIG)
        self.parent = self.begin_run(f"{name}-parent", None)

    def begin_run(self, key: str, number: int | None) -> Run:
        tags = {"mlops.sweep": self.name, "mlops.study": self.study}
        if number is not None:
            tags |= {"mlops.trial": str(number), "mlflow.parentRunId": f"{self.name}-parent"}
        name = "dnn" if number is None else f"dnn-{number:03d}"
        return Run.create(self.journal, experiment="digits", name=name, key=key, tags=tags)

    def ask(self) -> tuple[int, str, Run]:
        ask = self.search.ask()
        assert ask is not None
        key = f"{self.name}-{ask.number}"
        self.search.set_run_key(ask, key)
        return ask.number, key, self.begin_run(key, ask.number)

    def try_one(self) -> str:
        number, key, run = self.ask()
        run.end("FINISHED")
        self.search.tell(number, TrialResult("complete", 0.5, 0, "00"))
        (self.folder / "dnn" / f"{number:05d}.keras").touch()
        return key

    def close(self) -> None:
        """Ends the parent run, and delivers all."""
        self.parent.end("FINISHED")
        self.journal.close()
        result = sync(self.settings)
        assert (result.undelivered, result.problems, result.refused) == (0, (), ())


def findings(settings: Settings) -> tuple[Finding, ...]:
    return StudyStore(settings).check().findings


def run_id(settings: Settings, key: str) -> str:
    (found,) = [run.run_id for run in read_tracked_runs(settings) if run.key == key]
    return found


def run_in_shell(command: str) -> None:
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_sweep_whose_trials_have_their_runs_is_fine(settings: Settings) -> None:
    sweep = Sweep(settings)
    for _ in range(2):
        sweep.try_one()
    assert findings(settings) == ()  # what is not delivered is told by its journal
    sweep.close()
    health = StudyStore(settings).check()
    assert (health.says, health.findings) == ("1 sweep(s)", ())
    areas = examine({"MLOPS_HOME": str(settings.home)})
    here = {"settings", "datasets", "journal", "studies", "tracking"}  # the machine may have some
    assert not [one for area in here for one in areas[area].findings]
    n_findings = sum(len(health.findings) for health in areas.values())
    assert main(["--json"]) == (1 if n_findings else 0)
    found = read_trial_keys(settings.study_url)["digits-1-dnn"]
    assert [(one.number, one.key) for one in found] == [(0, "digits-1-0"), (1, "digits-1-1")]


def test_a_deleted_run_is_brought_back_by_the_command(settings: Settings) -> None:
    sweep = Sweep(settings)
    key = sweep.try_one()
    sweep.close()
    open_store_client(settings).delete_run(run_id(settings, key))
    (one,) = findings(settings)
    assert (
        one.wrong == "1 finished trial(s) of 'digits-1-dnn' have runs that were deleted: dnn-000."
    )
    assert f"mlflow runs restore --run-id {run_id(settings, key)}" not in one.mend  # it loops
    run_in_shell(one.mend)
    assert findings(settings) == ()


def test_a_deleted_twin_of_a_run_is_not_taken_for_it(settings: Settings) -> None:
    sweep = Sweep(settings)
    key = sweep.try_one()
    sweep.close()
    client = open_store_client(settings)
    experiment = client.get_experiment_by_name("digits")
    twin = client.create_run(experiment.experiment_id, tags={"mlops.run_key": key})
    client.delete_run(twin.info.run_id)
    assert findings(settings) == ()


def test_a_run_that_no_server_and_no_journal_has_is_said(settings: Settings) -> None:
    sweep = Sweep(settings)
    sweep.try_one()
    sweep.try_one()
    sweep.journal.close()
    shutil.rmtree(sweep.journal.folder)
    (one,) = findings(settings)
    assert "2 finished trial(s) of 'digits-1-dnn' have no run in MLflow" in one.wrong
    assert one.wrong.endswith("no journal speaks of one: 0, 1.")
    assert "No command brings them back" in one.mend


def test_runs_whose_study_was_deleted_are_deleted_by_the_command(settings: Settings) -> None:
    gone, kept = Sweep(settings), Sweep(settings, "digits-2")
    gone.try_one()
    gone.close()
    kept.try_one()
    kept.close()
    optuna.delete_study(study_name=gone.study, storage=settings.study_url)
    (one,) = findings(settings)
    assert "the study 'digits-1-dnn' is not in the study database: dnn-000" in one.wrong
    assert "If another database has it, let MLOPS_STUDY_URL name that one." in one.wrong
    run_in_shell(one.mend)
    assert findings(settings) == ()


def test_a_study_database_that_is_lost_is_missed(settings: Settings) -> None:
    sweep = Sweep(settings)
    sweep.try_one()
    sweep.close()
    (settings.home / "studies.db").unlink()
    (one,) = findings(settings)
    assert "the study 'digits-1-dnn' is not in the study database: dnn-000." in one.wrong
    assert not (settings.home / "studies.db").exists()


def test_a_run_whose_trial_is_gone_is_said(settings: Settings) -> None:
    sweep = Sweep(settings)
    for _ in range(2):
        sweep.try_one()
    sweep.close()
    with contextlib.closing(sqlite3.connect(settings.home / "studies.db")) as studies:
        studies.execute("DELETE FROM trials WHERE number = 1")
        studies.commit()
    (one,) = findings(settings)
    assert "the study 'digits-1-dnn' does not have them: dnn-001" in one.wrong


def test_nothing_is_said_of_a_sweep_that_is_under_way(settings: Settings) -> None:
    with lock_sweep(settings.home, "digits-1"):
        sweep = Sweep(settings)
        sweep.try_one()
        sweep.ask()
        # It is in MLflow already; the study of it is read a moment before.
        sweep.begin_run("later", 2)
        sync(settings)
        assert findings(settings) == ()


def test_trials_that_a_killed_driver_left_running_are_said_with_what_resumes(
    settings: Settings,
) -> None:
    sweep = Sweep(settings)
    sweep.ask()
    sweep.close()
    (one,) = findings(settings)
    assert one.wrong == "the driver of 'digits-1' is gone and left 1 trial(s) RUNNING."
    config = sweep.folder / CONFIG
    assert one.mend.endswith(f"-m experiments.sweep --config {config} --study digits-1")
    assert f"MLOPS_HOME={settings.home}" in one.mend
    config.unlink()
    (one,) = findings(settings)
    assert one.mend == "Type the command that began the sweep once more."


def test_a_run_that_nothing_will_end_is_ended_by_the_command(settings: Settings) -> None:
    sweep = Sweep(settings)
    key = sweep.try_one()
    sweep.close()
    open_store_client(settings).update_run(run_id(settings, key), "RUNNING")
    (one,) = findings(settings)
    assert "1 run(s) are RUNNING in MLflow, nobody holds their sweep" in one.wrong
    run_in_shell(one.mend)
    assert findings(settings) == ()
    (run,) = [run for run in read_tracked_runs(settings) if run.trial == "0"]
    assert run.status == "FAILED"


def test_the_network_of_the_best_trial_is_missed_until_it_is_a_candidate(
    settings: Settings,
) -> None:
    sweep = Sweep(settings)
    sweep.try_one()
    sweep.close()
    network = sweep.folder / "dnn" / "00000.keras"
    network.unlink()
    (one,) = findings(settings)
    assert "the network of the best trial of 'digits-1-dnn' is gone" in one.wrong
    assert f"expected {str(network)!r}" in one.wrong
    assert one.mend.endswith("--study digits-1-again --warm-start digits-1")
    sweep.search.set_candidate("digits-1-0")
    assert findings(settings) == ()


def test_the_sweeps_of_other_homes_are_theirs(settings: Settings, tmp_path: Path) -> None:
    sweep = Sweep(settings, home=ELSEWHERE)
    sweep.try_one()
    sweep.ask()
    sweep.journal.close()
    shutil.rmtree(sweep.journal.folder)
    assert findings(settings) == ()


def test_of_a_shared_server_only_the_runs_of_this_home_are_compared(
    tracking: Tracking, settings: Settings, tmp_path: Path
) -> None:
    shared = Settings.from_env(
        {"MLOPS_HOME": str(settings.home), "MLFLOW_TRACKING_URI": tracking.url}
    )
    ours, theirs = Sweep(shared, "ours"), Sweep(shared, "theirs")
    for sweep in (ours, theirs):
        sweep.try_one()
        sweep.close()
        optuna.delete_study(study_name=sweep.study, storage=shared.study_url)
    shutil.rmtree(shared.home / "sweeps" / "theirs")
    (one,) = findings(shared)
    assert "'ours-dnn' is not in the study database" in one.wrong
    assert one.mend.startswith(f"for run in {run_id(shared, 'ours-0')}; do ")
    assert f"MLFLOW_TRACKING_URI={tracking.url}" in one.mend


def test_many_runs_are_mended_some_at_a_time(settings: Settings) -> None:
    sweep = Sweep(settings, trials=25)
    for _ in range(22):
        sweep.try_one()
    sweep.close()
    optuna.delete_study(study_name=sweep.study, storage=settings.study_url)
    (one,) = findings(settings)
    assert "dnn-002 and 19 more" in one.wrong
    assert "The command is for the first 20." in one.wrong
    assert len(one.mend.split("; do")[0].split()) == 3 + 20


def test_the_number_of_queries_does_not_grow_with_the_trials(settings: Settings) -> None:
    asked: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        asked.append(statement)

    def count() -> int:
        asked.clear()
        event.listen(Engine, "before_cursor_execute", note)
        try:
            assert findings(settings) == ()
        finally:
            event.remove(Engine, "before_cursor_execute", note)
        return len(asked)

    sweep = Sweep(settings, trials=25)
    sweep.try_one()
    few = count()
    for _ in range(20):
        sweep.try_one()
    sweep.close()
    assert count() == few > 0


def test_without_an_answer_of_mlflow_the_study_database_is_checked_alone(
    settings: Settings,
) -> None:
    sweep = Sweep(settings)
    sweep.ask()
    sweep.journal.close()
    unreachable = Settings.from_env(
        {"MLOPS_HOME": str(settings.home), "MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}
    )
    health = StudyStore(unreachable).check()
    assert "not compared with MLflow, which has no answer" in health.says
    assert ["trial(s) RUNNING" in one.wrong for one in health.findings] == [True]


def test_a_study_database_that_is_damaged_or_of_another_version_is_said(
    settings: Settings,
) -> None:
    head = open_storage(settings.study_url).get_head_version()
    Sweep(settings).close()
    gc.collect()  # what has the database open would keep the command waiting, and then out
    file = settings.home / "studies.db"
    versions = find_package("optuna") / "storages" / "_rdb" / "alembic" / "versions"
    assert read_revisions(versions)[1] == head
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute("UPDATE alembic_version SET version_num = 'v3.0.0.d'")
        other.commit()
    (one,) = findings(settings)
    assert "the database of studies is of another version" in one.wrong
    run_in_shell(one.mend)
    assert findings(settings) == ()
    file.write_bytes(b"no database" * 1000)
    (one,) = findings(settings)
    assert "the database of studies is damaged: " in one.wrong


def test_without_a_study_database_there_is_none_yet(settings: Settings) -> None:
    assert StudyStore(settings).check().says == "none yet"
    assert [path.name for path in settings.home.iterdir()] == ["mlflow.db"]


def test_looking_changes_no_file(settings: Settings) -> None:
    sweep = Sweep(settings)
    sweep.try_one()
    sweep.close()
    sweep.search.study._storage.remove_session()
    del sweep

    def files() -> dict[str, Any]:
        return {str(path): path.read_bytes() for path in settings.home.rglob("*") if path.is_file()}

    before = files()
    assert findings(settings) == ()
    assert files() == before
