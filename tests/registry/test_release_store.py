"""The registry as a store: what it says of aliases, what it needs, and how aliases are replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mlops.errors import MlopsError
from mlops.settings import Settings
from mlops.stores.store import find_entries
from mlops.stores.tracking_rows import RunRow, VersionRow, read_registry
from registry.alias import Registry, open_registry
from registry.approve import RefusedError
from registry.ledger import LeaseHeldError
from registry.promote import promote
from registry.release_retention import find_needs, remove_candidates
from registry.release_store import ReleaseStore
from registry.rollback import rollback
from tests.registry.sides import NAME, Sides, probe_sides

Register = Callable[..., int]


@pytest.fixture
def two(registry: Registry, register: Register) -> Registry:
    """Two releases, of which the second is champion."""
    for _ in range(2):
        number = register(right=9.0, value=0.9)
        assert promote(registry, NAME, version=number).decision == "promoted"
    return registry


def wrong(settings: Settings) -> list[tuple[str, str]]:
    return [(one.wrong, one.mend) for one in ReleaseStore(settings).check().findings]


def test_it_is_found_as_a_store(settings: Settings) -> None:
    (entry,) = [one for one in find_entries() if one.name == "releases"]
    store = entry.load()(settings)
    assert (store.name, store.rank, store.check().says) == ("releases", 0, "none yet")
    assert (store.writers(), store.upgrade()) == ([], "up to date, with the runs")


def test_releases_and_aliases_that_agree_with_the_ledger_are_fine(
    two: Registry, settings: Settings
) -> None:
    health = ReleaseStore(settings).check()
    assert (health.says, health.findings) == ("2 of 1 model(s)", ())


def test_an_alias_that_was_moved_by_hand_is_said(
    two: Registry, settings: Settings, client: Any
) -> None:
    client.set_registered_model_alias(NAME, "champion", "1")
    ((said, mend),) = wrong(settings)
    assert said == (
        f"{NAME}@champion was moved without Podium: it holds version 1 in MLflow, and by the "
        "ledger version 2."
    )
    assert mend.endswith(f"-m registry.rollback {NAME} --to 2 --alias champion")
    rollback(two, NAME, 2)
    assert wrong(settings) == []
    client.set_registered_model_alias(NAME, "own", "1")
    ((said, mend),) = wrong(settings)
    assert "it holds version 1 in MLflow, and by the ledger nothing" in said
    assert "delete the alias own" in mend


def test_a_release_whose_run_is_deleted_is_said_with_what_restores_it(
    two: Registry, settings: Settings, client: Any
) -> None:
    release = two.catalog.get_release(NAME, 2)
    client.delete_run(release.run_id)
    ((said, mend),) = wrong(settings)
    assert said.startswith(f"the run of {NAME}/2, which {NAME}@champion holds, is deleted")
    assert mend.endswith(f"mlflow runs restore --run-id {release.run_id}")
    client.restore_run(release.run_id)
    assert wrong(settings) == []


def test_a_server_elsewhere_is_not_asked_for_it(settings: Settings) -> None:
    there = Settings.from_env(
        {"MLOPS_HOME": str(settings.home), "MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}
    )
    assert ReleaseStore(there).check().says.startswith("kept by the tracking server")
    with pytest.raises(MlopsError, match="set MLOPS_TRACKING_DB_URL"):
        ReleaseStore(there).needs()


def test_a_release_needs_its_candidate_both_runs_and_the_dataset(
    two: Registry, settings: Settings, sides: Sides, client: Any
) -> None:
    needed = ReleaseStore(settings).needs()
    for version in ("1", "2"):
        candidate = client.get_model_version(f"{NAME}-candidates", version)
        release = client.get_model_version(NAME, version)
        assert {
            ("model version", f"{NAME}/{version}"),
            ("model version", f"{NAME}-candidates/{version}"),
            ("run", candidate.run_id),
            ("run", release.run_id),
            ("dataset", sides.dataset.fingerprint),
        } <= needed


def test_what_an_alias_of_candidates_holds_is_needed_with_all_above_it() -> None:
    runs = {
        "root": RunRow("root", "", "", "FINISHED", 0, None, {"mlops.study": "s"}),
        "parent": RunRow("parent", "", "", "FINISHED", 0, None, {"mlflow.parentRunId": "root"}),
        "child": RunRow("child", "", "", "FINISHED", 0, None, {"mlflow.parentRunId": "parent"}),
    }
    held = VersionRow("m-candidates", 1, "child", "", 0, {"mlops.dataset_fingerprint": "d"}, ("x",))
    free = VersionRow("m-candidates", 2, "child", "", 0, {}, ())
    assert find_needs([held, free], runs) == {
        ("model version", "m-candidates/1"),
        ("run", "child"),
        ("run", "parent"),
        ("run", "root"),
        ("study", "s"),
        ("dataset", "d"),
    }
    assert find_needs([held, free], runs, {("model version", "m-candidates/1")}) == set()


def test_candidates_stay_while_their_model_is_being_changed_or_if_one_was_promoted(
    two: Registry, settings: Settings, register: Register
) -> None:
    register(right=8.0, value=0.5)
    versions, _ = read_registry(settings)
    candidates = [one for one in versions if one.is_candidate]
    with two.ledger.lease(NAME, "ada (promote, pid 1 on host x)"):
        assert remove_candidates(settings, candidates) == set()
    assert remove_candidates(settings, candidates) == {f"{NAME}-candidates/3"}


def test_of_a_dataset_it_finds_all_and_erases_once_the_alias_goes_elsewhere(
    two: Registry, settings: Settings, sides: Sides, client: Any
) -> None:
    store, dataset = ReleaseStore(settings), sides.dataset.fingerprint
    found = {(one.kind, one.key, one.held_by) for one in store.find(dataset)}
    champion = f"{NAME}@champion"
    assert found == {
        ("alias", champion, champion),
        ("model version", f"{NAME}/1", None),
        ("model version", f"{NAME}/2", champion),
        ("model version", f"{NAME}-candidates/1", None),
        ("model version", f"{NAME}-candidates/2", None),
    }
    assert store.find("0" * 64) == []
    with pytest.raises(RefusedError, match=f"{champion} depends on {NAME}/2; say which release"):
        store.erase(dataset, {})
    with (
        two.ledger.lease(NAME, "ada (promote, pid 1 on host x)"),
        pytest.raises(LeaseHeldError, match="is being changed by ada"),
    ):
        store.erase(dataset, {champion: 0})
    assert len(store.find(dataset)) == 5
    store.erase(dataset, {champion: 0})
    assert store.find(dataset) == []
    erased = [one.version for one in two.ledger.events(NAME) if one.kind == "erased"]
    assert erased == [1, 2]
    store.erase(dataset, {champion: 0})
    assert [one.version for one in two.ledger.events(NAME) if one.kind == "erased"] == [1, 2]
    assert wrong(settings) == []
    # MLflow keeps the numbers and nothing else.
    assert two.catalog.find_releases(NAME) == []
    with open_registry(settings, probe=probe_sides) as registry:
        number = sides.register(9.0, 0.9)
        assert number == 3
        assert promote(registry, NAME, version=number).version == 3


def test_an_alias_of_candidates_is_replaced_too(
    two: Registry, settings: Settings, sides: Sides, client: Any
) -> None:
    names = f"{NAME}-candidates"
    client.set_registered_model_alias(names, "best", "2")
    own = client.create_model_version(names, "runs:/x/model", tags={})
    store, dataset = ReleaseStore(settings), sides.dataset.fingerprint
    store.erase(dataset, {f"{NAME}@champion": 0, f"{names}@best": int(own.version)})
    assert two.catalog.find_aliases(names) == {"best": 3}
    assert store.find(dataset) == []
