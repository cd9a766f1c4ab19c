"""A home with the dataset of tests/registry/sides.py, and what is promoted in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlops.data import Dataset
from mlops.mlflow_store import open_store_client
from mlops.settings import Settings
from registry.alias import Registry, open_registry
from tests.registry.sides import Sides, make_dataset, probe_sides, settings_for


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def made_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[float, Path]]:
    """Where models are packaged, and those that were: by the weight of the first feature."""
    return tmp_path_factory.mktemp("models"), {}


@pytest.fixture
def settings(home_with_database: Settings, dataset: Dataset) -> Settings:
    return settings_for(home_with_database.home, dataset)


@pytest.fixture
def client(settings: Settings) -> Any:
    return open_store_client(settings)


@pytest.fixture
def registry(settings: Settings) -> Iterator[Registry]:
    with open_registry(settings, probe=probe_sides) as found:
        yield found


@pytest.fixture
def sides(
    client: Any, dataset: Dataset, tmp_path: Path, made_models: tuple[Path, dict[float, Path]]
) -> Sides:
    place, made = made_models
    return Sides(client, dataset, tmp_path, place, made)


@pytest.fixture
def register(sides: Sides) -> Callable[..., int]:
    """Makes a candidate as a sweep does; `right` is the weight of the first feature."""
    return sides.register
