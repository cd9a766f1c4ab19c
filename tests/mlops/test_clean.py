"""What is taken out because it is old, and what stays because something needs it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import optuna
import pytest
from hypothesis import given, settings

from experiments.status import get_sweep
from experiments.storage import open_storage
from experiments.studies import lock_sweep
from experiments.study_retention import Plan, Study, Trial, plan
from experiments.study_rows import read_studies
from mlops.clean import as_text, clean, main, read_age, shown_bytes
from mlops.data import Dataset
from mlops.dataset_store import open_dataset_store
from mlops.doctor import examine
from mlops.errors import UsageError
from mlops.journal import Journal
from mlops.settings import Settings
from mlops.stores.store import Item
from mlops.stores.tracking_rows import RunRow, VersionRow
from registry.catalog import Catalog
from registry.release_retention import find_needs
from tests.forked import FORK
from tests.made_world import LONG_AGO, World, copy_home, make_table

NOW = datetime.now(UTC)
BEFORE = NOW - timedelta(days=90)
VALUES = (0.5, 0.9, 0.7, 0.6)
"""Of each sweep's trials, so from best to worst they are 1, 2, 3, 0."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    folder = tmp_path_factory.mktemp("data")
    names = ("released", "old", "new", "alone")
    return {name: make_table(folder, ("a", "b"), seed) for seed, name in enumerate(names)}


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path, data: dict[str, Dataset]
) -> World:
    """Three old sweeps: one with a release, one without, one that was cut short; and a new one."""
    folder = tmp_path_factory.mktemp("clean")
    settings = Settings.from_env({"MLOPS_HOME": str(folder / "home")})
    settings.home.mkdir()
    shutil.copy(mlflow_database, settings.home / "mlflow.db")
    world = World(settings, folder / "models")
    world.sweep(data["released"], "released", VALUES)
    assert world.promote() == 1
    world.sweep(data["old"], "old", VALUES, model="other")
    world.sweep(data["old"], "cut", VALUES, finish=False)
    world.sweep(data["new"], "new", VALUES, model="other")
    world.date_back("released", "old", "cut")
    world.store(data["alone"])
    return world


@pytest.fixture
def world(made: World, tmp_path: Path) -> World:
    copied = World(copy_home(made.settings.home, tmp_path / "home"), made.models, made.made)
    age_files(copied.settings.home)
    return copied


def age_files(home: Path) -> None:
    for path in home.rglob("*"):
        os.utime(path, (LONG_AGO.timestamp(),) * 2)


def run_clean(world: World, keep_best: int = 1, before: datetime = BEFORE) -> list[Item]:
    """Cleans, and looks whether that is what was announced."""
    announced = clean(world.settings, before, keep_best, dry=True)
    done = clean(world.settings, before, keep_best, dry=False)
    assert done == announced
    assert clean(world.settings, before, keep_best, dry=False) == []
    return done


def kinds(items: list[Item]) -> dict[str, int]:
    return {kind: sum(one.kind == kind for one in items) for kind in {one.kind for one in items}}


def trials_of(world: World, sweep: str) -> list[int]:
    """The numbers of a study's trials; [] where there is no study any more."""
    for row in read_studies(world.settings.study_url):
        if row.sweep == sweep:
            storage = open_storage(world.settings.study_url)
            return [one.number for one in storage.get_all_trials(row.study_id, deepcopy=False)]
    return []


def findings(world: World) -> list[Any]:
    areas = examine({"MLOPS_HOME": str(world.settings.home)})
    here = ("datasets", "journal", "ledger", "releases", "studies", "tracking", "keys")
    return [one for area in here for one in areas[area].findings]


def test_old_trials_go_but_for_the_best_and_what_a_release_needs(
    world: World, data: dict[str, Dataset]
) -> None:
    left_before = findings(world)
    done = run_clean(world, keep_best=2)
    assert kinds(done) == {"run": 4, "trial": 4, "sweep folder": 2, "dataset": 1}
    assert trials_of(world, "released") == [1, 2]
    assert trials_of(world, "old") == [1, 2]
    assert trials_of(world, "cut") == [0, 1, 2, 3]  # the same command goes on with it
    assert trials_of(world, "new") == [0, 1, 2, 3]
    keys = world.run_ids()
    assert {"released-parent", "released-1", "old-parent", "old-1", "old-2"} <= keys.keys()
    assert not {"released-0", "released-3", "old-0", "old-3"} & keys.keys()
    assert world.verifies(1)
    stored = {
        name
        for name, one in data.items()
        if open_dataset_store(world.settings).has(one.fingerprint)
    }
    assert stored == {"released", "old", "new"}
    assert [path.name for path in sorted((world.settings.home / "sweeps").iterdir())] == [
        "cut",
        "new",
    ]
    assert findings(world) == left_before  # that one sweep was cut short


def test_without_any_best_a_sweep_goes_whole_unless_a_release_came_from_it(
    world: World, data: dict[str, Dataset]
) -> None:
    done = run_clean(world, keep_best=0)
    assert trials_of(world, "released") == [1]
    assert trials_of(world, "old") == []
    keys = world.run_ids()
    assert {key for key in keys if key.startswith("released")} == {"released-parent", "released-1"}
    assert not any(key.startswith("old") for key in keys)
    assert world.verifies(1)
    candidates = [one.version for one in Catalog(world.client).find_candidates("other")]
    assert candidates == [2]  # that of the new sweep
    assert kinds(done)["study"] == 1
    # The dataset of the sweep that went is that of the one that was cut short, too.
    assert open_dataset_store(world.settings).has(data["old"].fingerprint)
    gone = [item.key for item in done if item.kind == "run"]
    assert not [path for key in gone for path in world.settings.artifact_root.rglob(key)]


def test_a_dataset_goes_with_the_last_that_refers_to_it(
    world: World, data: dict[str, Dataset]
) -> None:
    shutil.rmtree(world.settings.home / "sweeps" / "cut")
    optuna.delete_study(study_name="cut-dnn", storage=world.settings.study_url)
    for key, run_id in world.run_ids().items():
        if key.startswith("cut"):
            world.client.delete_run(run_id)
    done = run_clean(world, keep_best=0, before=datetime.now(UTC) + timedelta(seconds=1))
    assert sum(one.kind == "dataset" for one in done) == 3
    store = open_dataset_store(world.settings)
    assert store.list() == (data["released"].fingerprint,)
    assert world.verifies(1)


@pytest.mark.parametrize("seed", range(int(os.environ.get("PODIUM_TEST_SEEDS", "2"))))
def test_killed_at_some_moment_the_same_command_goes_on(world: World, seed: int) -> None:
    process = FORK.Process(target=clean_home, args=(str(world.settings.home),))
    process.start()
    process.join(0.3 + (0.31 * seed) % 1.1)
    process.kill()
    process.join()
    assert world.verifies(1)
    run_clean(world, keep_best=0)
    assert (trials_of(world, "released"), trials_of(world, "old")) == ([1], [])
    keys = world.run_ids()
    assert {key for key in keys if key.startswith("released")} == {"released-parent", "released-1"}
    assert not any(key.startswith("old") for key in keys)
    assert [one.version for one in Catalog(world.client).find_candidates("other")] == [2]
    assert world.verifies(1)


def clean_home(home: str) -> None:
    clean(Settings.from_env({"MLOPS_HOME": home}), BEFORE, 0, dry=False)


def test_what_an_alias_of_candidates_holds_stays(world: World) -> None:
    world.client.set_registered_model_alias("other-candidates", "best", "1")
    run_clean(world, keep_best=0)
    assert trials_of(world, "old") == [1]
    assert {"old-parent", "old-1"} <= world.run_ids().keys()
    assert Catalog(world.client).find_aliases("other-candidates") == {"best": 1}


def test_a_sweep_that_is_going_on_is_left_alone(world: World) -> None:
    with lock_sweep(world.settings.home, "old"):
        clean(world.settings, BEFORE, 0, dry=False)
        assert trials_of(world, "old") == [0, 1, 2, 3]
        assert "old-0" in world.run_ids()


def test_no_sweep_that_a_study_names_leads_out_of_the_home(world: World, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("kept")
    for row in read_studies(world.settings.study_url):
        if row.sweep == "old":
            study = optuna.load_study(study_name=row.name, storage=world.settings.study_url)
            study.set_user_attr("sweep", "../../victim")
    age_files(tmp_path)
    done = run_clean(world, keep_best=0)
    assert (victim / "file").read_text() == "kept"
    assert "old" not in {one.key for one in done}


def test_a_study_of_which_trials_were_taken_out_is_asked_for_no_more(world: World) -> None:
    run_clean(world, keep_best=1)
    dataset = make_table(world.models, ("a", "b"), 1)
    with pytest.raises(UsageError, match=r"were taken out .*--warm-start old-dnn"):
        world.begin(dataset, "old", 9)
    sweep = get_sweep(world.settings, "old")
    assert sweep.state == "done"
    assert sweep.studies[0].best is not None and sweep.studies[0].best.number == 1


def test_candidates_that_no_sweep_here_made_go_if_nothing_came_of_them(world: World) -> None:
    client = world.client
    experiment = client.create_experiment("own", str(world.settings.artifact_root / "own"))
    ids = [client.create_run(experiment).info.run_id for _ in range(2)]
    client.create_registered_model("own-candidates")
    for run_id in ids:
        client.log_text(run_id, "bytes", "model/MLmodel")
        client.create_model_version("own-candidates", f"runs:/{run_id}/model", run_id)
    client.set_registered_model_alias("own-candidates", "kept", "2")
    done = clean(world.settings, datetime.now(UTC) + timedelta(seconds=1), 9, dry=False)
    assert [one.key for one in done if one.kind == "model version"] == ["own-candidates/1"]
    assert [one.key for one in done if one.kind == "run"] == [ids[0]]
    assert not (world.settings.artifact_root / "own" / ids[0]).exists()
    assert (world.settings.artifact_root / "own" / ids[1] / "artifacts/model/MLmodel").exists()


def test_runs_that_were_deleted_in_mlflow_go_for_good(world: World) -> None:
    ids = world.run_ids()
    for key in ("new-0", "new-3"):
        world.client.delete_run(ids[key])
    done = clean(world.settings, datetime.now(UTC) + timedelta(seconds=1), 9, dry=False)
    gone = {one.key for one in done if one.kind == "run"}
    assert gone == {ids["new-0"], ids["new-3"]}
    assert not gone & set(world.run_ids().values())


def test_leftovers_of_delivered_journals_go(world: World) -> None:
    folder = world.settings.home / "journal" / "killed"
    (folder / "1-worker-7.files" / "x").mkdir(parents=True)
    (folder / "1-worker-7.files" / "x" / "big").write_bytes(bytes(5000))
    age_files(world.settings.home)
    done = run_clean(world)
    (item,) = [one for one in done if one.kind == "journal leftover"]
    assert (item.key, item.size_bytes) == ("killed", 5000)
    assert not folder.exists()


def test_the_program_shows_and_then_does_it(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOPS_HOME", str(world.settings.home))
    asked = ["--older-than", "90d", "--keep-best", "1"]
    assert main([*asked, "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "\ntrial: 6, 0 bytes\n  trial 0 of released-dnn\n" in said.out
    assert "would be taken out." in said.out and "only a backup brings it back" in said.err
    assert trials_of(world, "old") == [0, 1, 2, 3]
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["dry_run"] is False and found["size_bytes"] > 10_000
    assert trials_of(world, "old") == [1]
    assert main(asked) == 0
    assert "Nothing is old enough" in capsys.readouterr().out
    assert main(["--older-than", "90"]) == main([*asked[:3], "-1"]) == 2


def test_an_empty_home_has_nothing_to_clean(tmp_path: Path) -> None:
    settings = Settings.from_env({"MLOPS_HOME": str(tmp_path / "home")})
    assert clean(settings, NOW, 0, dry=False) == []
    assert not (tmp_path / "home").exists()


def test_ages_and_bytes_are_read_and_shown() -> None:
    assert [read_age(text) for text in ("90d", "12h", "5m")] == [
        timedelta(days=90),
        timedelta(hours=12),
        timedelta(minutes=5),
    ]
    for text in ("", "90", "d", "-1d", "1w", "1.5d"):
        with pytest.raises(UsageError, match="--older-than is no age"):
            read_age(text)
    assert [shown_bytes(n) for n in (0, 2048, 3 << 20, 5 << 30)] == [
        "0 bytes",
        "2.0 KiB",
        "3.0 MiB",
        "5.0 GiB",
    ]
    assert "  and 2 more" in as_text([Item("run", str(n), str(n)) for n in range(12)], dry=True)


def test_what_was_trained_after_the_search_stays_with_the_best() -> None:
    runs = {"parent": run_row("parent", LONG_AGO, mlops_run_key="parent")}
    for key in ("s-0", "s-1"):
        runs[key] = run_row(key, LONG_AGO, mlops_run_key=key, mlops_trial=key[-1])
    for key in ("seed-of-now", "seed-of-before"):
        runs[key] = run_row(key, LONG_AGO, mlops_run_key=key, mlops_final="seed")
    versions = [version_row("m-candidates", 1, "seed-of-now")]
    trials = [Trial(number, number, LONG_AGO, f"s-{number}") for number in (0, 1)]
    study = Study("s", trials, [1, 0], {"seed-of-now"}, runs, versions)

    def gone(keep_best: int, *needed: tuple[str, str]) -> set[str]:
        return {one.run_id for one in plan(study, BEFORE, keep_best, {*needed}).runs}

    assert gone(2) == {"seed-of-before"}
    assert gone(1) == gone(0, ("study", "s")) == {"seed-of-before", "s-0"}
    assert gone(0) == set(runs)
    # A candidate of a final, which was promoted.
    assert gone(0, ("run", "seed-of-now"), ("run", "parent"), ("study", "s")) == {
        "seed-of-before",
        "s-0",
    }


def test_a_sweep_of_which_something_is_not_delivered_waits(world: World) -> None:
    with Journal(world.settings.home / "journal" / "old", "worker"):
        clean(world.settings, BEFORE, 0, dry=False)
        assert trials_of(world, "old") == [0, 1, 2, 3]


# A small model of the lineage: whatever was made, what is needed stays.


@dataclass
class Made:
    """Studies with trials, runs, candidates and releases, as they may stand to each other."""

    studies: dict[str, Study] = field(default_factory=dict)
    runs: dict[str, RunRow] = field(default_factory=dict)
    versions: list[VersionRow] = field(default_factory=list)


def run_row(run_id: str, ended_at: datetime, **tags: str) -> RunRow:
    named = {name.replace("_", ".", 1): value for name, value in tags.items()}
    return RunRow(run_id, run_id, "", "FINISHED", int(ended_at.timestamp() * 1000), None, named)


def version_row(name: str, version: int, run_id: str, *aliases: str, **tags: str) -> VersionRow:
    named = {name.replace("_", ".", 1): value for name, value in tags.items()}
    return VersionRow(name, version, run_id, "", 0, named, aliases)


@st.composite
def lineages(draw: st.DrawFn) -> Made:
    made = Made()
    for study in range(draw(st.integers(1, 3))):
        name, parent = f"s{study}", f"parent{study}"
        runs = {parent: run_row(parent, LONG_AGO, mlops_run_key=parent, mlops_study=name)}
        trials, values, versions = [], {}, list[VersionRow]()
        for number in range(draw(st.integers(1, 5))):
            key = f"{name}-{number}"
            ended_at = draw(st.sampled_from((LONG_AGO, NOW)))
            trials.append(Trial(number, number, ended_at, key))
            values[number] = draw(st.integers(0, 3))
            tags = {"mlops_run_key": key, "mlops_study": name, "mlops_trial": str(number)}
            tags |= {"mlops_dataset_fingerprint": f"d{study}"}
            runs[key] = run_row(key, ended_at, **tags)
            runs[key].tags["mlflow.parentRunId"] = parent  # type: ignore[index]
            if draw(st.booleans()):
                version = len(made.versions) + len(versions) + 1
                held = ("best",) if draw(st.integers(0, 4)) == 0 else ()
                versions.append(version_row("m-candidates", version, key, *held))
        made.runs |= runs
        made.versions += versions
        ranked = sorted(values, key=lambda number: (-values[number], number))
        made.studies[name] = Study(name, trials, ranked, set(), runs, versions)
    for number, candidate in enumerate(draw(st.permutations(made.versions))):
        if draw(st.integers(0, 2)) == 0:
            run_id = f"release{number}"
            made.runs[run_id] = run_row(run_id, LONG_AGO, mlops_source_run=candidate.run_id)
            tags = {"mlops_candidate": candidate.key}
            made.versions.append(version_row("m", number + 1, run_id, **tags))
    return made


def trace(made: Made) -> set[str]:
    """The runs that a release or an alias leads to, found in the simplest way there is."""
    by_key = {one.key: one for one in made.versions}
    found = set()
    for one in made.versions:
        if one.name == "m" or one.aliases:
            chain: Mapping[str, str] = one.tags
            run_ids = [one.run_id]
            if "mlops.candidate" in chain:
                run_ids.append(by_key[chain["mlops.candidate"]].run_id)
            for run_id in run_ids:
                found.add(run_id)
                parent = made.runs[run_id].tags.get("mlflow.parentRunId")
                found |= {parent} if parent else set()
    return found


@settings(max_examples=300, deadline=None)
@given(made=lineages(), keep_best=st.integers(0, 3))
def test_whatever_was_made_exactly_what_is_needed_new_or_among_the_best_stays(
    made: Made, keep_best: int
) -> None:
    needed = find_needs(made.versions, made.runs)
    plans: dict[str, Plan] = {
        name: plan(study, BEFORE, keep_best, needed) for name, study in made.studies.items()
    }
    gone_runs = {one.run_id for one in (run for each in plans.values() for run in each.runs)}
    gone_versions = {one.key for each in plans.values() for one in each.versions}
    led_to = trace(made)
    assert not gone_runs & led_to
    # No version is left whose run is gone, and none went that is a release's or an alias's.
    for version in made.versions:
        assert (version.key in gone_versions) == (version.run_id in gone_runs)
    for name, study in made.studies.items():
        gone = {one.number for one in plans[name].trials}
        is_needed = any(run_id in led_to for run_id in study.runs)
        best = set(study.ranked[: max(keep_best, 1 if is_needed else 0)])
        kept = {
            one.number
            for one in study.trials
            if one.number in best or one.run_key in led_to or one.ended_at == NOW
        }
        assert gone == {one.number for one in study.trials} - kept
        assert gone_runs & study.runs.keys() == (
            {f"{name}-{number}" for number in gone} | ({f"parent{name[1:]}"} if not kept else set())
        )
        assert plans[name].whole == (not kept)
    # Asked again, with what is gone away, nothing more goes.
    rest = [one for one in made.versions if one.key not in gone_versions]
    assert find_needs(rest, made.runs) == needed
