"""Promotion where the datasets lie on S3: a real SeaweedFS, which may be away."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlops.data import Dataset
from mlops.dataset_store import DatasetStore
from mlops.errors import MlopsError
from mlops.objects import open_objects
from mlops.settings import Settings
from registry.alias import Registry, open_registry
from registry.catalog import Catalog
from registry.promote import main, promote
from tests.object_store import SECRET, ObjectStore, open_object_store, use
from tests.registry.sides import NAME

Register = Callable[..., int]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with open_object_store(tmp_path_factory.mktemp("seaweed"), "datasets") as server:
        yield server


@pytest.fixture
def settings(
    home_with_database: Settings,
    dataset: Dataset,
    server: ObjectStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Settings:
    """A promoter's: the dataset was stored by another machine, and the promoter may only read."""
    url = f"s3://datasets/{tmp_path.name}"
    use(monkeypatch, server.env())
    DatasetStore(tmp_path / "trainer", open_objects(url)).put(dataset)
    use(monkeypatch, server.env("reader") | {"MLOPS_DATASETS_URL": url})
    settings = Settings.from_env()
    assert settings.home == home_with_database.home and not settings.datasets_folder.exists()
    return settings


def champion_of(client: Any) -> int | None:
    release = Catalog(client).find_alias(NAME, "champion")
    return None if release is None else release.version


def test_the_test_rows_are_read_from_s3_for_the_child_and_are_not_kept(
    settings: Settings, client: Any, register: Register
) -> None:
    register(right=9.0, value=0.99)
    with open_registry(settings) as registry:  # with the real child
        done = promote(registry, NAME)
    assert (done.decision, champion_of(client)) == ("promoted", 1)
    assert not settings.datasets_folder.exists()


def everything(registry: Registry, client: Any) -> tuple[Any, ...]:
    """What a promotion may move: aliases, releases, runs, events."""
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    return (
        champion_of(client),
        [release.version for release in registry.catalog.find_releases(NAME)],
        sorted(run.info.run_id for run in runs),
        [event.hash for event in registry.ledger.events(NAME)],
    )


@pytest.mark.parametrize("n_promoted", [0, 1])
def test_while_the_store_is_away_nothing_moves_and_the_same_command_works_later(
    registry: Registry,
    client: Any,
    register: Register,
    server: ObjectStore,
    n_promoted: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for right in (5.0, 9.0)[: n_promoted + 1]:
        register(right=right, value=0.9 + right / 100)
        if n_promoted and right == 5.0:
            promote(registry, NAME)
    shutil.rmtree(registry.settings.datasets_folder, ignore_errors=True)
    before = everything(registry, client)
    server.stop()
    try:
        with pytest.raises(MlopsError, match=f"no object store answers at {server.url}"):
            promote(registry, NAME)
        assert main([NAME]) == 1
    finally:
        server.start()
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("python -m registry.promote: no object store answers at ")
    assert SECRET not in "".join(said)
    assert everything(registry, client) == before
    done = promote(registry, NAME)
    assert (done.decision, champion_of(client)) == ("promoted", n_promoted + 1)


def test_with_a_copy_of_the_dataset_here_a_promotion_needs_no_s3(
    registry: Registry, client: Any, register: Register, server: ObjectStore, dataset: Dataset
) -> None:
    register(right=9.0, value=0.99)
    DatasetStore(registry.settings.datasets_folder).put(dataset)
    server.stop()
    try:
        assert promote(registry, NAME).decision == "promoted"
    finally:
        server.start()
    assert champion_of(client) == 1


def test_a_login_that_s3_refuses_is_said_and_nothing_moves(
    registry: Registry,
    client: Any,
    register: Register,
    server: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register(right=9.0, value=0.99)
    before = everything(registry, client)
    use(monkeypatch, server.env("stranger"))
    with pytest.raises(MlopsError, match="refuses the login for s3://datasets/"):
        promote(registry, NAME)
    assert everything(registry, client) == before
