"""A home with three signed releases of the linear networks of tests/registry/sides.py."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops.mlflow_store import open_store_client
from registry.alias import Registry, open_registry
from registry.promote import promote
from registry.serving.state import StateFolder
from tests.registry.sides import NAME, Sides, make_dataset, probe_sides, settings_for


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    """An empty state folder, as the parent makes it before it starts workers."""
    made = StateFolder(tmp_path / "state")
    made.create()
    made.clean()
    return made


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Sides:
    folder = tmp_path_factory.mktemp("serving")
    (folder / "home").mkdir()
    (folder / "models").mkdir()
    shutil.copy(mlflow_database, folder / "home" / "mlflow.db")
    dataset = make_dataset(folder)
    client = open_store_client(settings_for(folder / "home", dataset))
    return Sides(client, dataset, folder, folder / "models", {})


@pytest.fixture(scope="module")
def registry(sides: Sides) -> Iterator[Registry]:
    """Versions 1, 2 and 3 were promoted one after another; 3 is the champion."""
    with open_registry(
        settings_for(sides.place / "home", sides.dataset), probe=probe_sides
    ) as made:
        for right in (9.0, 9.5, 10.0):
            promote_next(made, sides, right)
        yield made


def promote_next(registry: Registry, sides: Sides, right: float, alias: str = "champion") -> int:
    """Makes a candidate and promotes it; returns its release's version."""
    number = sides.register(right, 0.9)
    done = promote(registry, NAME, version=number, alias=alias)
    assert done.decision == "promoted", done
    return max(release.version for release in registry.catalog.find_releases(NAME))
