"""Backups of homes that are used meanwhile, and what is restored of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow.entities import TraceInfo, TraceLocation, TraceState

from experiments.overview import open_overview
from experiments.storage import open_storage
from experiments.study_store import StudyStore
from mlops import backup as backup_program
from mlops import restore as restore_program
from mlops.backup import back_up
from mlops.data import Dataset
from mlops.doctor import examine
from mlops.errors import MlopsError, UsageError
from mlops.journal import Journal
from mlops.mlflow_store import LAST_FILES, ensure_experiment, open_store_client
from mlops.objects import FolderObjects, Object
from mlops.restore import restore
from mlops.settings import Settings
from mlops.stores.backup_record import RECORD, RESTORING, find_restoring, read_record
from mlops.stores.file_copy import find_whole, list_files
from mlops.stores.store import Finding
from mlops.stores.tracking_copy import PLACES
from mlops.sync import sync
from mlops.tracking import RUN_KEY, Run
from mlops.upgrade import upgrade
from registry import history
from registry.alias import changing, open_registry
from registry.catalog import Catalog
from registry.ledger import Actor, open_ledger
from registry.ledger_store import LedgerStore
from registry.promote import promote
from registry.verify import verify_release
from tests.database_server import make_database, serve_postgresql
from tests.mlops.backup_children import (
    N_STEPS,
    back_up_here,
    drive,
    kill_once,
    move,
    restore_here,
    settings_of,
    start,
    stop,
    train,
)
from tests.object_store import ObjectStore, open_object_store, use
from tests.registry.sides import NAME, Sides, make_dataset, probe_sides, settings_for

STORES = ("datasets", "journal", "keys", "ledger", "releases", "studies", "tracking")
HERE = (*STORES, "settings")
"""What the doctor looks at here; the machine may have findings of its own."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def promoted(
    tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path, dataset: Dataset
) -> Path:
    """A home with two releases, a rest in a journal, and a finished sweep's files; to be copied."""
    folder = tmp_path_factory.mktemp("promoted")
    home = folder / "home"
    home.mkdir()
    shutil.copy(mlflow_database, home / "mlflow.db")
    settings = settings_for(home, dataset)
    client = open_store_client(settings)
    sides = Sides(client, dataset, folder, folder / "models", {})
    (folder / "models").mkdir()
    with open_registry(settings, probe=probe_sides) as registry:
        for value in (0.9, 0.95):
            sides.register(right=9.0, value=value)
            assert promote(registry, NAME).decision == "promoted"
    (home / "policy.toml").write_text("")
    (home / "sweeps" / "done").mkdir(parents=True)
    (home / "sweeps" / "done" / "sweep.toml").write_text("trials = 3\n")
    (home / "sweeps" / "done" / "driver.lock").touch()
    with Journal(home / "journal" / "left", "worker") as journal:
        run = Run.create(journal, experiment="left", name="left", key="left")
        run.log_metrics({"loss": float("nan")}, 0)
        run.log_metrics({"loss": float("inf")}, 1)
        run.log_artifact(home / "policy.toml")
    return home


@pytest.fixture
def home(promoted: Path, tmp_path: Path) -> Path:
    """A home of the test's own; what names its place names this one."""
    back_up(settings_of(promoted), tmp_path / "first")
    restore(settings_of(tmp_path / "home"), tmp_path / "first")
    shutil.rmtree(tmp_path / "first")
    return tmp_path / "home"


def findings(home: Path) -> list[Finding]:
    areas = examine({"MLOPS_HOME": str(home)})
    assert set(STORES) <= set(areas)
    return [one for area in HERE for one in areas[area].findings]


def settle(settings: Settings) -> None:
    with (
        open_registry(settings, probe=probe_sides) as registry,
        changing(registry, NAME, "rollback"),
    ):
        pass


def check_releases(settings: Settings, *, n_releases: int = 2) -> None:
    """Verifies each release, and compares the ledger with MLflow."""
    catalog = Catalog(open_store_client(settings))
    releases = catalog.find_releases(NAME)
    assert len(releases) == n_releases
    for release in releases:
        verify_release(catalog, release, settings, ask=False)
    with open_registry(settings, probe=probe_sides) as registry:
        assert registry.ledger.check() == []
        assert history._compare_with(catalog, registry.ledger, NAME)[1] == []


def read_acknowledged(said: Path) -> dict[str, list[list[str]]]:
    found: dict[str, list[list[str]]] = defaultdict(list)
    for path in said.glob("*.said"):
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                kind, *words = line.split()
                found[kind].append(words)
    return found


def hash_tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def read_all(file: Path) -> dict[str, list[Any]]:
    """All rows of an SQLite file, the places of artifacts by what stands behind the folder."""
    with closing(sqlite3.connect(file)) as connection:
        names = [
            name
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            if not name.startswith("sqlite_")
        ]
        return {
            name: sorted(
                (
                    tuple(
                        value.partition("/artifacts/")[2] or value
                        if isinstance(value, str)
                        else value
                        for value in row
                    )
                    for row in connection.execute(f'SELECT * FROM "{name}"')
                ),
                key=repr,
            )
            for name in names
        }


@pytest.mark.long
def test_a_home_that_is_used_is_backed_up_and_nothing_that_was_acknowledged_is_missing(
    home: Path, tmp_path: Path
) -> None:
    said = tmp_path / "said"
    said.mkdir()
    # A writer that was killed left these: to copy them takes longer than a move of the alias.
    (left,) = (home / "journal" / "left").glob("*.files")
    for n in range(1500):
        (left / "unspoken" / str(n)).mkdir(parents=True)
        (left / "unspoken" / str(n) / "x").touch()
    children = [
        start(train, home, said / "train0.said", 0),
        start(train, home, said / "train1.said", 1),
        start(drive, home, said / "drive.said", "busy"),
        start(move, home, said / "move0.said", (1, 2)),
        start(move, home, said / "move1.said", (2, 1)),
    ]
    try:
        deadline = time.monotonic() + 120
        known = read_acknowledged(said)
        while not all(len(known[kind]) >= 3 for kind in ("end", "trial", "move")):
            assert time.monotonic() < deadline and all(one.is_alive() for one in children)
            time.sleep(0.1)
            known = read_acknowledged(said)
        backups = []
        for n in range(2):
            acknowledged = read_acknowledged(said)
            made = back_up(settings_of(home), tmp_path / f"backup{n}")
            assert made.held_s < 30
            backups.append((tmp_path / f"backup{n}", acknowledged))
        last = read_acknowledged(said)
        assert all(len(last[kind]) > len(known[kind]) for kind in ("metric", "trial", "move"))
        assert all(one.is_alive() for one in children)
    finally:
        stop(children)
    for n, (folder, acknowledged) in enumerate(backups):
        settings = settings_of(tmp_path / f"new{n}")
        done = restore(settings, folder)
        assert done.aliases == (f"{NAME}@champion",)
        check_restored(settings, acknowledged)


def check_restored(settings: Settings, acknowledged: dict[str, list[list[str]]]) -> None:
    # What killed processes leave is all that is wrong, and each has its command.
    for one in findings(settings.home):
        left = ("python -m mlops.sync", "python -m registry.history", "python -m experiments.sweep")
        assert any(command in one.mend for command in left), one
    synced = sync(settings)
    assert (synced.undelivered, synced.problems, synced.refused) == (0, (), ())
    settle(settings)
    check_releases(settings)
    wrong = [one.wrong for one in findings(settings.home)]
    assert [one for one in wrong if "the driver of 'busy' is gone" not in one] == []
    client = open_store_client(settings)
    runs: dict[str, Any] = {}
    experiments = [one.experiment_id for one in client.search_experiments()]
    token = None
    while token is None or token:
        page = client.search_runs(experiments, max_results=1000, page_token=token)
        runs |= {run.data.tags[RUN_KEY]: run for run in page if RUN_KEY in run.data.tags}
        token = page.token or ""
    assert {key for (key,) in acknowledged["run"]} <= set(runs)
    assert {key for (key,) in acknowledged["trial"]} <= set(runs)
    assert {runs[key].info.status for (key,) in acknowledged["end"]} == {"FINISHED"}
    steps: dict[str, set[int]] = defaultdict(set)
    for key, step in acknowledged["metric"]:
        steps[key].add(int(step))
    for key in [*steps][-20:]:
        there = client.get_metric_history(runs[key].info.run_id, "loss")
        assert steps[key] <= {point.step for point in there} <= set(range(N_STEPS))
    for (key,) in acknowledged["file"][-20:]:
        (file,) = client.list_artifacts(runs[key].info.run_id)
        path = client.download_artifacts(runs[key].info.run_id, file.path)
        assert Path(path).read_text() == key
        assert Path(runs[key].info.artifact_uri).is_relative_to(settings.artifact_root)


def test_a_backup_is_a_home(home: Path, tmp_path: Path) -> None:
    made = back_up(settings_of(home), tmp_path / "backup")
    copy = settings_of(tmp_path / "backup")
    assert {path.name for path in copy.home.iterdir()} == {
        *("mlflow.db", "ledger.db", "artifacts", "datasets", "journal", "sweeps", "keys"),
        *("policy.toml", RECORD),
    }
    assert copy.home.stat().st_mode & 0o777 == 0o700
    assert copy.signing_key.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (copy.home / "sweeps" / "done").iterdir()] == ["sweep.toml"]
    before = hash_tree(copy.home)
    assert {name: one.sha256 for name, one in made.record.files.items()} == {
        name: digest for name, digest in before.items() if name != RECORD
    }
    assert made.record == read_record(copy.home)
    assert set(made.record.schemas) == {"mlflow.db", "ledger.db"}
    assert made.record.stores["ledger"] == "4 event(s)"
    (one,) = findings(copy.home)
    assert "the journal of 'left' was left behind" in one.wrong
    check_releases(copy)
    assert hash_tree(copy.home) == before  # to look at it changes nothing
    shutil.rmtree(home)
    settings = settings_of(tmp_path / "new")
    restore(settings, copy.home)  # nothing of the old home is needed
    synced = sync(settings)
    assert (synced.delivered, synced.closed) == (5, 1)  # the fifth is the end of its run
    check_releases(settings)
    assert findings(settings.home) == []


def test_a_restored_home_promotes_and_goes_on_with_its_numbers(home: Path, tmp_path: Path) -> None:
    back_up(settings_of(home), tmp_path / "backup")
    settings = settings_of(tmp_path / "new")
    restore(settings, tmp_path / "backup")
    with open_registry(settings, probe=probe_sides) as registry:
        done = promote(registry, NAME, version=1)
        assert (done.decision, done.version) == ("promoted", 1)
    check_releases(settings)


def test_without_keys_the_private_one_is_left_out(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOPS_HOME", str(home))
    assert backup_program.main([str(tmp_path / "with")]) == 0
    said = capsys.readouterr()
    assert "WARNING" in said.err and "--no-keys" in said.err
    assert f"python -m mlops.restore {tmp_path / 'with'}" in said.out
    assert backup_program.main([str(tmp_path / "without"), "--no-keys", "--json"]) == 0
    said = capsys.readouterr()
    assert "WARNING" not in said.err
    assert json.loads(said.out)["folder"] == str(tmp_path / "without")
    assert [path.name for path in (tmp_path / "without" / "keys").iterdir()] == ["public.pem"]
    secret = settings_of(home).signing_key.read_bytes()
    for path in (tmp_path / "without").rglob("*"):
        assert not path.is_file() or secret not in path.read_bytes()
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path / "new"))
    assert restore_program.main([str(tmp_path / "without")]) == 0
    said = capsys.readouterr()
    assert f"python -m registry.verify {NAME}@champion" in said.out
    assert "python -m mlops.doctor" in said.out
    check_releases(settings_of(tmp_path / "new"))


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda folder: flip(next(folder.rglob("model.keras"))), id="flipped"),
        pytest.param(lambda folder: (folder / "ledger.db").unlink(), id="gone"),
        pytest.param(lambda folder: (folder / "mlflow.db-wal").touch(), id="opened"),
        pytest.param(lambda folder: cut(folder / RECORD), id="cut"),
        pytest.param(lambda folder: link(folder / "policy.toml"), id="linked"),
    ],
)
def test_a_damaged_backup_is_refused_and_nothing_is_written(
    home: Path, tmp_path: Path, harm: Callable[[Path], object]
) -> None:
    back_up(settings_of(home), tmp_path / "backup")
    harm(tmp_path / "backup")
    with pytest.raises(MlopsError, match=r"is not as it was written|is damaged"):
        restore(settings_of(tmp_path / "new"), tmp_path / "backup")
    assert not (tmp_path / "new").exists()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def test_a_backup_of_another_format_or_schema_says_which_version_to_install(
    home: Path, tmp_path: Path
) -> None:
    back_up(settings_of(home), tmp_path / "backup")
    record = json.loads((tmp_path / "backup" / RECORD).read_text())
    (tmp_path / "backup" / RECORD).write_text(json.dumps(record | {"format": 2}))
    with pytest.raises(MlopsError, match="of another format; expected 1, got '2'"):
        restore(settings_of(tmp_path / "new"), tmp_path / "backup")
    with closing(sqlite3.connect(home / "mlflow.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '0584bdc529eb'")
    back_up(settings_of(home), tmp_path / "old")
    with pytest.raises(MlopsError, match=r"got 0584bdc529eb\. Restore it with.*mlflow==3\."):
        restore(settings_of(tmp_path / "new"), tmp_path / "old")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "there",
    [
        *("mlflow.db", "ledger.db", "artifacts/x/y", "journal/s/1.journal", "sweeps/s/sweep.toml"),
        *("policy.toml", "keys/signing.pem", f"datasets/{'0' * 64}/dataset.json"),
    ],
)
def test_a_target_that_holds_anything_is_refused_before_anything_is_made(
    home: Path, tmp_path: Path, there: str
) -> None:
    back_up(settings_of(home), tmp_path / "backup")
    path = tmp_path / "new" / there
    path.parent.mkdir(parents=True)
    path.write_text("something")
    with pytest.raises(MlopsError, match="already"):
        restore(settings_of(tmp_path / "new"), tmp_path / "backup")
    assert [one for one in (tmp_path / "new").rglob("*") if one.is_file()] == [path]


def test_a_target_of_a_backup_is_new_or_empty_and_lies_elsewhere(
    home: Path, tmp_path: Path
) -> None:
    settings = settings_of(home)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for target, said in (
        (tmp_path / "full", "is there already"),
        (tmp_path / "full" / "x", "is there already"),
        (home / "artifacts" / "backup", "which is copied"),
    ):
        with pytest.raises(UsageError, match=said):
            back_up(settings, target)
    (tmp_path / "full" / "x").unlink()
    back_up(settings, tmp_path / "full")
    with pytest.raises(UsageError, match="is no backup"):
        restore(settings_of(tmp_path / "new"), tmp_path / "absent")


def test_a_backup_that_is_killed_leaves_none_and_the_same_command_makes_it(
    home: Path, tmp_path: Path
) -> None:
    back_up(settings_of(home), tmp_path / "whole")
    writing = tmp_path / "backup.writing"
    n_killed = 0
    for n in (1, 2, 5, 10, 20, 30, 40):
        # By then so many files of it were there.
        if kill_once(
            lambda n=n: len(list_files(writing)) >= n, back_up_here, home, tmp_path / "backup"
        ):
            n_killed += 1
            assert not (tmp_path / "backup").exists()
        else:
            shutil.rmtree(tmp_path / "backup")
    assert n_killed > 0
    back_up(settings_of(home), tmp_path / "backup")
    assert not list(tmp_path.glob("*.writing"))
    whole, made = read_record(tmp_path / "whole"), read_record(tmp_path / "backup")
    assert set(whole.files) == set(made.files)


def test_a_restore_that_is_killed_is_completed_by_the_same_command(
    home: Path, tmp_path: Path
) -> None:
    back_up(settings_of(home), tmp_path / "backup")
    restore(settings_of(tmp_path / "whole"), tmp_path / "backup")
    settings = settings_of(tmp_path / "new")
    killed_at = []
    for n_done in range(len(STORES)):
        if not kill_once(
            lambda n=n_done: has_restored(settings.home, n),
            restore_here,
            *(settings.home, tmp_path / "backup"),
        ):
            break
        begun = find_restoring(settings.home)
        if begun is not None:
            killed_at.append(len(begun.done))
            assert any("was interrupted" in one.wrong for one in findings(settings.home))
    assert killed_at and killed_at == sorted(killed_at)
    if find_restoring(settings.home) is not None:
        back_up(settings_of(home), tmp_path / "other")
        with pytest.raises(MlopsError, match=r"was interrupted\. Type python -m mlops\.restore"):
            restore(settings, tmp_path / "other")
        restore(settings, tmp_path / "backup")
    assert not list(settings.home.rglob("*.writing")) and not (settings.home / RESTORING).exists()
    there = {name for name in hash_tree(settings.home) if not name.startswith("server")}
    assert there == set(hash_tree(tmp_path / "whole"))
    sync(settings)
    check_releases(settings)
    assert findings(settings.home) == []


def has_restored(home: Path, n_stores: int) -> bool:
    begun = find_restoring(home)
    return begun is not None and len(begun.done) >= n_stores


def test_experiments_with_places_of_their_own_are_said(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = open_store_client(settings_of(home))
    client.create_experiment("elsewhere", artifact_location="s3://others/things")
    monkeypatch.setenv("MLOPS_HOME", str(home))
    assert backup_program.main([str(tmp_path / "backup")]) == 0
    # The other one is MLflow's own of the fixture, which was made elsewhere.
    assert "2 experiment(s) keep their artifacts in places of their own" in capsys.readouterr().err


def test_a_folder_that_is_being_uploaded_does_not_look_whole_in_the_copy(tmp_path: Path) -> None:
    class Uploading(FolderObjects):
        """Each list sees one more file of a release, whose last files come in their order."""

        def __init__(self, n_seen: int) -> None:
            super().__init__(tmp_path)
            self.n_seen, self.is_first = n_seen, True

        def list(self, prefix: str = "") -> Iterator[Object]:
            seen = ["code/x.py", "data/y", *LAST_FILES][: self.n_seen]
            # The first one has passed the folders in it before there was anything.
            names = [name for name in seen if not self.is_first or "/" not in name]
            self.n_seen, self.is_first = self.n_seen + 1, False
            now = datetime.now(UTC)
            return iter([Object(f"run/release/{name}", 1, now) for name in names])

    n_files = 2 + len(LAST_FILES)
    for n_seen in range(n_files + 1):
        found = find_whole(Uploading(n_seen), LAST_FILES)
        names = {name.removeprefix("run/release/") for name in found}
        if "model.sig" in names:
            assert names == {"code/x.py", "data/y", *LAST_FILES}
        if "MLmodel" in names:
            assert {"code/x.py", "data/y"} <= names
        assert ("model.sig" in names) == (n_seen == n_files)


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    with serve_postgresql() as url:
        yield url


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    folder = tmp_path_factory.mktemp("weed")
    with open_object_store(folder, "artifacts", "datasets") as store:
        yield store


def test_a_laptop_moves_to_a_team_and_back(
    home: Path,
    tmp_path: Path,
    postgresql: str,
    objects: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(monkeypatch, objects.env())
    databases = {name: make_database(postgresql, name) for name in ("mlflow", "studies", "ledger")}
    team = Settings.from_env(
        {
            "MLOPS_HOME": str(tmp_path / "admin"),
            "MLFLOW_TRACKING_URI": databases["mlflow"],
            "MLOPS_STUDY_URL": databases["studies"],
            "MLOPS_LEDGER_URL": databases["ledger"],
            "MLOPS_ARTIFACTS_URL": "s3://artifacts/team",
            "MLOPS_DATASETS_URL": "s3://datasets/team",
        }
    )
    said = tmp_path / "drive.said"
    child = start(drive, home, said, "swept")
    while not said.exists():
        time.sleep(0.05)
    stop([child])
    back_up(settings_of(home), tmp_path / "laptop")
    restore(team, tmp_path / "laptop")
    with pytest.raises(MlopsError, match="already"):
        restore(team, tmp_path / "laptop")
    check_releases(team)
    run = open_store_client(team).search_runs(["1"])[0]
    assert run.info.artifact_uri.startswith("s3://artifacts/team/")
    back_up(team, tmp_path / "team")
    settings = settings_of(tmp_path / "back")
    restore(settings, tmp_path / "team")
    for name in ("mlflow.db", "studies.db", "ledger.db"):
        before, after = read_all(tmp_path / "laptop" / name), read_all(tmp_path / "team" / name)
        if name == "studies.db":  # which says which home began it: first the laptop, then the team
            assert len(before.pop("study_user_attributes")) == len(
                after.pop("study_user_attributes")
            )
        assert before == after
    for name in ("artifacts", "datasets"):
        assert hash_tree(tmp_path / "laptop" / name) == hash_tree(settings.home / name)
    sync(settings)
    check_releases(settings)
    assert [one for one in findings(settings.home) if "of 'swept' is gone" not in one.wrong] == []
    with open_overview(settings) as overview:
        assert overview is not None
        assert overview.states() == {"swept": "interrupted"}  # this home goes on with it


def test_a_team_with_a_server_has_places_that_the_server_hands_on(
    home: Path,
    tmp_path: Path,
    postgresql: str,
    objects: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(monkeypatch, objects.env())
    env = {
        "MLOPS_HOME": str(tmp_path / "admin"),
        "MLFLOW_TRACKING_URI": "https://mlflow.example",
        "MLOPS_LEDGER_URL": make_database(postgresql, "served-ledger"),
        "MLOPS_ARTIFACTS_URL": "s3://artifacts/served",
    }
    back_up(settings_of(home), tmp_path / "laptop")
    with pytest.raises(MlopsError, match="set MLOPS_TRACKING_DB_URL"):
        restore(Settings.from_env(env), tmp_path / "laptop")
    env["MLOPS_TRACKING_DB_URL"] = make_database(postgresql, "served-mlflow")
    team = Settings.from_env(env)
    restore(team, tmp_path / "laptop")
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(env["MLOPS_TRACKING_DB_URL"], "mlflow-artifacts:/")
    places = [one.artifact_location for one in store.search_experiments()]
    store.engine.dispose()
    served = [place for place in places if place.startswith("mlflow-artifacts:/")]
    assert len(served) == len(places) - 1  # that of MLflow's own experiment was made elsewhere
    back_up(team, tmp_path / "team")
    settings = settings_of(tmp_path / "back")
    restore(settings, tmp_path / "team")
    check_releases(settings)


def test_a_backup_of_databases_says_how_to_restore_it_and_nothing_of_its_parts_steps(
    postgresql: str, tmp_path: Path
) -> None:
    places = {
        "MLOPS_HOME": str(tmp_path / "admin"),
        "MLFLOW_TRACKING_URI": "https://mlflow.example",
        "MLOPS_STUDY_URL": make_database(postgresql, "said-studies"),
        "MLOPS_TRACKING_DB_URL": make_database(postgresql, "said-mlflow"),
        "MLOPS_ACCOUNTS_DB_URL": make_database(postgresql, "said-accounts"),
        "MLOPS_ARTIFACTS_URL": str(tmp_path / "artifacts"),
    }
    (tmp_path / "artifacts").mkdir()
    upgrade(Settings.from_env(places))
    folder = tmp_path / "backup"
    done = subprocess.run(
        [sys.executable, "-m", "mlops.backup", str(folder)],
        env={**os.environ, **places},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    restoring = [line for line in lines if "mlops.restore" in line]
    assert restoring[0] == f"  MLOPS_HOME=NEW-HOME python -m mlops.restore {folder}"
    assert "MLFLOW_TRACKING_URI=https://mlflow.example" in restoring[1]


def test_accounts_come_with_mlflow(home: Path, tmp_path: Path) -> None:
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore as Accounts

    def at(folder: Path) -> Settings:
        url = f"sqlite:///{folder / 'basic_auth.db'}"
        return Settings.from_env({"MLOPS_HOME": str(folder), "MLOPS_ACCOUNTS_DB_URL": url})

    accounts = Accounts()
    accounts.init_db(f"sqlite:///{home / 'basic_auth.db'}")
    accounts.create_user("ada", "a-long-password", is_admin=True)
    accounts.engine.dispose()
    made = back_up(at(home), tmp_path / "backup")
    assert "accounts.db" in made.record.schemas
    assert restore(at(tmp_path / "new"), tmp_path / "backup").left_out == ()
    accounts = Accounts()
    accounts.init_db(f"sqlite:///{tmp_path / 'new' / 'basic_auth.db'}")
    assert accounts.authenticate_user("ada", "a-long-password")
    accounts.engine.dispose()
    (said,) = restore(settings_of(tmp_path / "without"), tmp_path / "backup").left_out
    assert "MLOPS_ACCOUNTS_DB_URL" in said


def test_no_row_of_mlflow_names_the_old_place(home: Path, tmp_path: Path) -> None:
    settings = settings_of(home)
    client = open_store_client(settings)
    experiment = ensure_experiment(client, "places")
    run = client.create_run(experiment)
    model = client.create_logged_model(experiment, name="logged", source_run_id=run.info.run_id)
    client.create_registered_model("placed")
    for source in (model.artifact_location, run.info.artifact_uri):
        client.create_model_version("placed", source)
    as_url = client.create_experiment("as-url", f"{(home / 'artifacts' / 'a b').as_uri()}")
    client.create_run(as_url)
    trace = TraceInfo("tr-1", TraceLocation.from_experiment_id(experiment), 0, TraceState.OK)
    client._tracking_client.store.start_trace(trace)
    back_up(settings, tmp_path / "backup")
    restore(settings_of(tmp_path / "new"), tmp_path / "backup")
    files = (home / "mlflow.db", tmp_path / "backup" / "mlflow.db", tmp_path / "new" / "mlflow.db")
    before, copied, after = (find_places(file) for file in files)
    # The rest of each, and where it stands: equal, but for the folder.
    assert set(before) == set(copied) == set(after)
    for file, places in zip(files, (before, copied, after), strict=True):
        assert set(places.values()) == {str(file.parent / "artifacts")}
    assert {(table, column) for table, column, _ in before} == set(PLACES)


def find_places(file: Path) -> dict[tuple[str, str, str], str]:
    """Where a text names a folder of artifacts: table, column and the rest of it, by the folder."""
    found = {}
    with closing(sqlite3.connect(file)) as connection:
        connection.row_factory = sqlite3.Row
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (name,) in names:
            for row in connection.execute(f'SELECT * FROM "{name}"'):
                for column in row.keys():  # noqa: SIM118
                    begin, sep, rest = str(row[column]).partition("/artifacts/")
                    # That of MLflow's own experiment was made elsewhere.
                    if sep and begin.startswith(("/", "file:")) and rest != "0":
                        place = begin.removeprefix("file://") + "/artifacts"
                        found[name, column, rest] = place
    return found


def test_while_moves_are_held_none_ends_and_afterwards_it_does(
    home: Path, tmp_path: Path, postgresql: str
) -> None:
    url = make_database(postgresql, "held-ledger")
    there = Settings.from_env({"MLOPS_HOME": str(home), "MLOPS_LEDGER_URL": url})
    for settings in (settings_of(home), there):
        with open_ledger(settings.ledger_url) as ledger:
            before = len(ledger.events())
            actor = Actor("ada", "operating system")
            append = threading.Thread(
                target=ledger.append, args=("rejected", "m", None, actor, {"reason": ""})
            )
            with LedgerStore(settings).hold():
                append.start()
                append.join(0.5)
                assert append.is_alive() and len(ledger.events()) == before
            append.join()
            assert len(ledger.events()) == before + 1


def test_while_studies_are_held_no_trial_is_asked_for_or_told(
    tmp_path: Path, postgresql: str
) -> None:
    for url in (f"sqlite:///{tmp_path / 'studies.db'}", make_database(postgresql, "held-studies")):
        env = {"MLOPS_HOME": str(tmp_path), "MLOPS_STUDY_URL": url}
        store = StudyStore(Settings.from_env(env))
        with store.hold():  # of none
            pass
        study = optuna.create_study(study_name="held", storage=open_storage(url))
        trial = study.ask()
        for work, args in (
            (study.ask, ()),
            (trial.set_user_attr, ("key", 1)),
            (study.tell, (trial, 1.0)),
        ):
            thread = threading.Thread(target=work, args=args)
            with store.hold():
                thread.start()
                thread.join(0.3)
                assert thread.is_alive()
            thread.join()
        assert [one.state.name for one in study.trials] == ["COMPLETE", "RUNNING"]
