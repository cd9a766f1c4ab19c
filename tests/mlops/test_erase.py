"""Erasures in real homes: what is shown, refused, gone and witnessed, killed on the way or not."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from experiments.studies import lock_sweep
from mlops.data import Dataset
from mlops.dataset_store import open_dataset_store
from mlops.doctor import examine
from mlops.erase import HeldError, erase, find, main, read_replacements, resolve, resolve_run
from mlops.errors import MlopsError, UsageError
from mlops.journal import Journal
from mlops.key_files import make_signing_key, write_whole
from mlops.lease import try_lock
from mlops.objects import open_objects
from mlops.settings import Settings
from mlops.tracking import Run
from mlops.upgrade import upgrade
from registry import history
from registry.catalog import Catalog
from registry.events import Event
from registry.ledger import open_ledger
from registry.serving.copies import Copies
from registry.serving.state import Desired, StateFolder, Wanted
from registry.signing import public_half
from registry.tombstone import find_unsigned, verify
from tests.database_server import execute, make_database, serve_postgresql
from tests.made_world import MARKER, MODEL, World, copy_home, find_bytes, make_table
from tests.mlops.erase_children import erase_and_die
from tests.object_store import open_object_store, use

CHAMPION = f"{MODEL}@champion"
KINDS = (
    *("alias", "model version", "serving copy", "study", "sweep folder", "journal"),
    *("run", "logged model", "dataset record", "dataset"),
)


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """What is to be erased."""
    return make_table(tmp_path_factory.mktemp("marked"), (MARKER, "elsewhere"), 1)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_table(tmp_path_factory.mktemp("other"), ("bergen", "oslo"), 2)


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
    mlflow_database: Path,
    marked: Dataset,
    other: Dataset,
) -> World:
    """A home that tests copy."""
    folder = tmp_path_factory.mktemp("erase")
    settings = Settings.from_env({"MLOPS_HOME": str(folder / "home")})
    settings.home.mkdir()
    shutil.copy(mlflow_database, settings.home / "mlflow.db")
    world = World(settings, folder / "models")
    fill(world, marked, other)
    return world


def fill(world: World, marked: Dataset, other: Dataset) -> None:
    """Version 1 is of the other dataset; version 2, the champion, of the one to be erased."""
    home, client = world.settings.home, world.client
    world.sweep(other, "kept")
    assert world.promote() == 1
    world.sweep(marked, "gone", (0.5, 0.9), dataset_fingerprint=None)
    assert world.promote() == 2
    # A sweep that was cut short, and of which MLflow does not know yet.
    world.sweep(marked, "late", (0.4,), finish=False, deliver=False)
    checkpoint = home / "sweeps" / "late" / "dnn" / "00003.checkpoint"
    checkpoint.write_bytes(MARKER.encode())
    run_ids = world.run_ids()
    client.delete_run(run_ids["gone-0"])
    model = client.create_logged_model(
        client.get_experiment_by_name("gone").experiment_id, source_run_id=run_ids["gone-1"]
    )
    lies = Path(model.artifact_location)
    lies.mkdir(parents=True)
    (lies / "note").write_text(MARKER)
    served(world).create()
    copies = Copies(Catalog(client), MODEL, served(world).releases, world.settings.public_keys)
    for version in (1, 2):
        copies.fetch(Catalog(client).get_release(MODEL, version))


def served(world: World) -> StateFolder:
    return StateFolder.of(world.settings.home, MODEL, "champion", 5001)


@pytest.fixture
def world(made: World, tmp_path: Path) -> World:
    return World(copy_home(made.settings.home, tmp_path / "home"), made.models, made.made)


def events_of(settings: Settings, name: str) -> list[Event]:
    with open_ledger(settings.ledger_url, make=False) as ledger:
        assert ledger.check() == []
        return ledger.events(name)


def assert_erased(world: World, marked: Dataset, other: Dataset, *, champion: int = 1) -> None:
    """Nothing of the one is anywhere; the other, its release and the ledger are whole."""
    settings = world.settings
    assert find(settings, marked.fingerprint) == []
    assert find_bytes(settings.home, MARKER.encode()) == []
    assert find_bytes(settings.home, marked.fingerprint.encode()) == ["ledger.db"]
    row = marked.x[7:15].tobytes()
    assert find_bytes(settings.home, row) == []
    assert open_dataset_store(settings).list() == (other.fingerprint,)
    assert world.verifies(1)
    assert Catalog(world.client).find_aliases(MODEL).get("champion", 0) == champion
    erasure = events_of(settings, marked.fingerprint)
    assert [event.body["phase"] for event in erasure][-1] == "done"
    assert verify(erasure[-1], settings.public_keys)
    statement = erasure[-1].body["statement"]
    assert statement["releases"] == [f"{MODEL}/2"]
    assert set(KINDS) <= set(statement["erased"])
    of_release = [event for event in events_of(settings, MODEL) if event.kind == "erased"]
    assert [event.version for event in of_release] == [2]
    areas = examine({"MLOPS_HOME": str(settings.home)})
    here = ("datasets", "journal", "ledger", "releases", "studies", "tracking", "keys")
    assert [one for area in here for one in areas[area].findings] == []


def test_all_of_it_is_gone_and_the_rest_is_as_it_was(
    world: World, marked: Dataset, other: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    before = find_bytes(world.settings.home, other.fingerprint.encode())
    done = erase(world.settings, marked.fingerprint, {CHAMPION: 1})
    assert {item.kind for item in done.items} == {*KINDS}
    assert_erased(world, marked, other)
    # The copy of version 1 that is served stays, and all else of the other dataset.
    assert find_bytes(world.settings.home, other.fingerprint.encode()) == before
    assert done.tombstone is not None and "signed with key" in done.tombstone
    again = erase(world.settings, marked.fingerprint, {CHAMPION: 1})
    assert (again.items, again.tombstone) == ((), None)
    assert len(events_of(world.settings, marked.fingerprint)) == 2


@pytest.mark.parametrize("name", ["../../victim", "{victim}", "..", "linked"])
def test_no_sweep_that_others_name_leads_out_of_the_home(
    world: World, marked: Dataset, tmp_path: Path, name: str
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("kept")
    (world.settings.home / "sweeps").mkdir(exist_ok=True)
    (world.settings.home / "sweeps" / "linked").symlink_to(victim)
    tags = {
        "mlops.dataset_fingerprint": marked.fingerprint,
        "mlops.sweep": name.format(victim=victim),
    }
    run = world.client.create_run("0", tags=tags)
    world.client.set_terminated(run.info.run_id)
    if name == "linked":
        with pytest.raises(MlopsError, match="its folder would lie outside"):
            erase(world.settings, marked.fingerprint, {CHAMPION: 1})
    else:
        erase(world.settings, marked.fingerprint, {CHAMPION: 1})
        assert find(world.settings, marked.fingerprint) == []
    assert (victim / "file").read_text() == "kept"


def test_versions_that_were_erased_are_never_given_again(world: World, marked: Dataset) -> None:
    erase(world.settings, marked.fingerprint, {CHAMPION: 1})
    world.sweep(make_table(world.models, ("rome", "bari"), 3), "next")
    assert world.promote() == 3
    assert [one.version for one in Catalog(world.client).find_releases(MODEL)] == [3, 1]


def test_what_is_shown_changes_nothing(
    world: World, marked: Dataset, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("MLOPS_HOME", str(world.settings.home))
    assert main(["--dataset", marked.fingerprint[:12]]) == 0
    said = capsys.readouterr()
    for kind in KINDS:
        assert f"\n{kind}: " in said.out
    assert f"{CHAMPION}, which holds version 2" in said.out
    command = f"--dataset {marked.fingerprint} --replace {CHAMPION}=VERSION --yes"
    assert said.err.rstrip().endswith(command)
    assert main(["--dataset", marked.fingerprint, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["erased"], found["held_by"]) == (False, [CHAMPION])
    assert {one["kind"] for one in found["items"]} == {*KINDS}
    assert events_of(world.settings, marked.fingerprint) == []


def test_it_refuses_while_an_alias_depends_on_it(
    world: World, marked: Dataset, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("MLOPS_HOME", str(world.settings.home))
    assert main(["--dataset", marked.fingerprint, "--yes"]) == 3
    assert f"--replace {CHAMPION}=VERSION" in capsys.readouterr().err
    assert events_of(world.settings, marked.fingerprint) == []
    assert world.verifies(2)


@pytest.mark.parametrize(
    ("replace", "said"),
    [
        ({CHAMPION: 2}, "came from this dataset, too"),
        ({CHAMPION: 9}, "has no version 9"),
        ({CHAMPION: 1, f"{MODEL}@other": 1}, "does not depend on this dataset"),
    ],
)
def test_a_replacement_that_does_not_fit_is_refused_before_anything_is_gone(
    world: World, marked: Dataset, replace: dict[str, int], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        erase(world.settings, marked.fingerprint, replace)
    assert events_of(world.settings, marked.fingerprint) == []
    assert world.verifies(2)


def test_an_alias_may_be_taken_away(
    world: World, marked: Dataset, other: Dataset, monkeypatch: Any
) -> None:
    erase(world.settings, marked.fingerprint, {CHAMPION: 0})
    assert_erased(world, marked, other, champion=0)
    monkeypatch.setenv("MLOPS_HOME", str(world.settings.home))
    assert history.main([MODEL, "--check"]) == 0


def test_history_checks_out_and_shows_the_tombstone(
    world: World, marked: Dataset, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    erase(world.settings, marked.fingerprint, {CHAMPION: 1})
    monkeypatch.setenv("MLOPS_HOME", str(world.settings.home))
    assert history.main([MODEL, "--check"]) == 0
    assert history.main([marked.fingerprint, "--check"]) == 0
    assert history.main([marked.fingerprint]) == 0
    assert f"dataset {marked.fingerprint[:12]} was erased: 1 alias, " in capsys.readouterr().out


def test_a_tombstone_that_was_changed_does_not_verify(world: World, marked: Dataset) -> None:
    erase(world.settings, marked.fingerprint, {CHAMPION: 1})
    (*_, event) = events_of(world.settings, marked.fingerprint)
    keys = world.settings.public_keys
    assert find_unsigned([event], keys) == []
    event.body["statement"]["erased"]["run"] = 1
    (said,) = find_unsigned([event], keys)
    assert said == f"the tombstone of dataset {event.name} (event {event.seq}) does not verify."


@pytest.mark.parametrize(
    "place_of_death",
    [
        *("releases ...", "failpoint:intent", "failpoint:alias", "failpoint:done"),
        *("ledger ...", "studies ...", "journal ...", "tracking ...", "datasets ..."),
        *("keys ...", "looking for what is left ..."),
    ],
)
def test_killed_anywhere_the_same_command_completes_it(
    world: World, marked: Dataset, other: Dataset, place_of_death: str
) -> None:
    replace = {CHAMPION: 1}
    home = world.settings.home
    assert erase_and_die(home, marked.fingerprint, replace, place_of_death) == -signal.SIGKILL
    assert world.verifies(1)
    findings = examine({"MLOPS_HOME": str(home)})["ledger"].findings
    assert any("was begun and is not completed" in one.wrong for one in findings)
    erase(world.settings, marked.fingerprint, replace)
    assert_erased(world, marked, other)


@pytest.mark.parametrize("seed", range(int(os.environ.get("PODIUM_TEST_SEEDS", "2"))))
def test_killed_at_some_moment_the_same_command_completes_it(
    world: World, marked: Dataset, other: Dataset, seed: int
) -> None:
    wait_s = 0.4 + (0.37 * seed) % 1.3
    erase_and_die(world.settings.home, marked.fingerprint, {CHAMPION: 1}, f"after:{wait_s}")
    erase(world.settings, marked.fingerprint, {CHAMPION: 1})
    assert_erased(world, marked, other)


def test_what_is_in_use_is_refused_with_who_uses_it(world: World, marked: Dataset) -> None:
    settings = world.settings
    with (
        lock_sweep(settings.home, "gone"),
        pytest.raises(MlopsError, match=r"the sweep 'gone' is under way; end it: .* --stop gone"),
    ):
        erase(settings, marked.fingerprint, {CHAMPION: 1})
    with (
        Journal(settings.home / "journal" / "late", "worker"),
        pytest.raises(MlopsError, match="the journals of 'late' are being written or delivered"),
    ):
        erase(settings, marked.fingerprint, {CHAMPION: 1})
    with Journal(settings.home / "journal" / "late", "worker") as journal:
        Run.create(journal, experiment="own", name="own").end("FINISHED")
    (settings.home / "journal" / "late").rename(settings.home / "journal" / "mixed")
    with pytest.raises(MlopsError, match=r"'mixed' speak of other data, too; .*mlops\.sync"):
        erase(settings, marked.fingerprint, {CHAMPION: 1})
    assert events_of(settings, marked.fingerprint) == []


def test_bytes_that_stand_elsewhere_are_named_and_the_tombstone_waits(
    world: World, marked: Dataset, other: Dataset
) -> None:
    note = world.settings.home / "note.txt"
    note.write_bytes(b"it was " + marked.fingerprint.encode())
    rows = world.settings.home / "rows.bin"
    rows.write_bytes(marked.x.tobytes())
    with pytest.raises(MlopsError, match=r"note.txt' holds its fingerprint.*rows.bin' holds rows"):
        erase(world.settings, marked.fingerprint, {CHAMPION: 1})
    note.unlink()
    rows.unlink()
    assert erase(world.settings, marked.fingerprint).items == ()  # the rest is done already
    assert_erased(world, marked, other)


def test_a_word_that_stands_elsewhere_is_told(world: World, marked: Dataset) -> None:
    note = world.settings.home / "note.txt"
    note.write_text(f"rows of {MARKER}")
    done = erase(world.settings, marked.fingerprint, {CHAMPION: 1})
    assert done.notes[-1] == f"{str(note)!r} holds names of its classes or categories"


def test_a_server_that_answers_with_it_is_waited_for(
    world: World, marked: Dataset, other: Dataset
) -> None:
    folder = served(world)
    (copy,) = [path for path in folder.releases.iterdir() if path.name.startswith("2-")]
    lock = try_lock(folder.lock)
    assert lock is not None
    folder.write_desired(Desired({"a": Wanted(2, str(copy), "0")}, champion="a"))
    followed_at: list[float] = []

    def follow() -> None:
        while Catalog(world.client).find_aliases(MODEL)["champion"] != 1:
            time.sleep(0.05)
        time.sleep(0.5)
        assert copy.is_dir()
        followed_at.append(time.monotonic())
        folder.write_desired(Desired())

    server = threading.Thread(target=follow)
    server.start()
    erase(world.settings, marked.fingerprint, {CHAMPION: 1})
    server.join()
    os.close(lock)
    assert followed_at
    assert_erased(world, marked, other)


def test_a_dataset_is_named_by_its_first_digits_or_by_a_run(world: World, marked: Dataset) -> None:
    settings, whole = world.settings, marked.fingerprint
    assert resolve(settings, whole[:12]) == whole
    assert resolve(settings, "0" * 64) == "0" * 64
    assert resolve_run(settings, world.run_ids()["gone-1"]) == whole
    for text in (whole[:11], "../" + whole[:12], whole.upper()):
        with pytest.raises(UsageError, match="first 12 to 64 hex digits"):
            resolve(settings, text)
    with pytest.raises(UsageError, match="none that is known here"):
        resolve(settings, "0" * 12)
    with pytest.raises(UsageError, match="there is no run"):
        resolve_run(settings, "0" * 32)
    assert erase(settings, "0" * 64).tombstone is None


def test_replacements_are_read_as_they_are_typed() -> None:
    assert read_replacements(["a@b=3", "c d@e=none"]) == {"a@b": 3, "c d@e": 0}
    for text in ("a@b", "a=3", "a@b=0", "a@b=x", "@b=1", "a@=1"):
        with pytest.raises(UsageError, match="NAME@ALIAS=VERSION"):
            read_replacements([text])


def test_held_is_told_by_exit_code_3() -> None:
    assert HeldError.exit_code == 3


# A team's places.


@pytest.fixture
def team(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Settings]:
    """Settings of PostgreSQL and S3, with nothing in either."""
    with (
        serve_postgresql() as url,
        open_object_store(tmp_path_factory.mktemp("s3"), "artifacts", "datasets") as objects,
    ):
        use(monkeypatch, objects.env())
        databases = {name: make_database(url, name) for name in ("mlflow", "studies", "ledger")}
        write_whole(tmp_path / "signing.pem", make_signing_key(), 0o600)
        write_whole(tmp_path / "public.pem", public_half(tmp_path / "signing.pem"), 0o644)
        env = {
            "MLOPS_HOME": str(tmp_path / "home"),
            "MLFLOW_TRACKING_URI": databases["mlflow"],
            "MLOPS_STUDY_URL": databases["studies"],
            "MLOPS_LEDGER_URL": databases["ledger"],
            "MLOPS_ARTIFACTS_URL": "s3://artifacts/mlflow",
            "MLOPS_DATASETS_URL": "s3://datasets",
            "MLOPS_SIGNING_KEY": str(tmp_path / "signing.pem"),
            "MLOPS_PUBLIC_KEYS": str(tmp_path / "public.pem"),
        }
        upgrade(Settings.from_env(env))
        yield Settings.from_env(env)


def test_on_postgresql_and_s3_the_bytes_are_gone_too(
    team: Settings, made: World, marked: Dataset, other: Dataset
) -> None:
    world = World(team, made.models, made.made)
    for name in ("kept", "gone", f"{MODEL}-releases"):  # a server would choose these places
        world.client.create_experiment(name, f"s3://artifacts/mlflow/{name}")
    world.sweep(other, "kept")
    assert world.promote() == 1
    world.sweep(marked, "gone", (0.5, 0.9))
    assert world.promote() == 2
    bytes_of = functools.partial(find_in_s3, MARKER.encode())
    assert len(bytes_of()) >= 3
    (data,) = sa.make_url(team.ledger_url).query["host"].split(",")  # type: ignore[union-attr]
    world.client.set_tag(world.run_ids()["gone-0"], "note", MARKER)
    for marker in (MARKER, marked.fingerprint):
        assert find_in_postgresql(team, Path(data), marker.encode())
    done = erase(team, marked.fingerprint, {CHAMPION: 1})
    assert find(team, marked.fingerprint) == []
    assert bytes_of() == []
    assert find_in_s3(marked.fingerprint.encode()) == []
    for marker in (MARKER, marked.fingerprint):
        assert find_in_postgresql(team, Path(data), marker.encode()) == []
    assert find_bytes(team.home, MARKER.encode()) == []
    assert open_dataset_store(team).list() == (other.fingerprint,)
    assert world.verifies(1)
    assert Catalog(world.client).find_aliases(MODEL) == {"champion": 1}
    (*_, event) = events_of(team, marked.fingerprint)
    assert verify(event, team.public_keys)
    assert any("tables of database servers" in note for note in done.notes)


def find_in_s3(marker: bytes) -> list[str]:
    """The objects of all buckets that hold a marker, or are named by it."""
    found = []
    for bucket in ("artifacts", "datasets"):
        objects = open_objects(f"s3://{bucket}")
        for one in objects.list():
            if marker in one.name.encode() or marker in objects.read(one.name):
                found.append(f"{bucket}/{one.name}")
    return found


def find_in_postgresql(settings: Settings, data: Path, marker: bytes) -> list[str]:
    """The files of the server's databases that hold a marker; its log and the ledger's are out."""
    execute(settings.ledger_url, "CHECKPOINT")
    oid = execute(settings.ledger_url, "SELECT oid FROM pg_database WHERE datname = 'ledger'")
    found = find_bytes(data / "base", marker)
    return [path for path in found if not path.startswith(f"{oid}/")]
