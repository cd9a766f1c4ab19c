"""What the whole suite shares: a quiet environment, and one embedded tracking server."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from experiments.workers.cluster import Cluster, open_cluster
from mlops.server import open_server
from mlops.settings import Settings, quiet
from mlops.supervisor import create_database

quiet()
for _name in [
    name for name in os.environ if name.startswith(("MLOPS_", "MLFLOW_TRACKING_", "AWS_"))
]:
    del os.environ[_name]  # the suite keeps out of the stores of who runs it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts a suite in the background deaf to Ctrl-C, and its children would be so too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


SHARED = ("workers", "swept", "tracking")
"""Fixtures that take long to make: the tests that have one run in one process, where two run."""


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Iterator[None]:
    for item in items:
        used = [name for name in SHARED if name in getattr(item, "fixturenames", ())]
        # A file's fixtures are made once, too.
        group = used[0] if used else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))
    yield
    is_grouped = getattr(config.option, "loadgroup", False)
    if is_grouped and not all("@" in item.nodeid for item in items):
        # It happened, and only made everything twice.
        raise pytest.UsageError("pytest-xdist passes over the groups with this version of pytest")


@dataclass(frozen=True, slots=True)
class Tracking:
    """A running embedded server; `settings` are those of its home, with no tracking URI set."""

    settings: Settings
    url: str


@pytest.fixture(scope="session")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracking]:
    home = tmp_path_factory.mktemp("tracking") / "home"
    settings = Settings.from_env({"MLOPS_HOME": str(home)})
    with open_server(settings) as server:
        server.wait()
        yield Tracking(settings, server.url)


@pytest.fixture(scope="session")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two worker processes with TensorFlow in them, for all tests that train in workers."""
    with open_cluster(2, 1, tmp_path_factory.mktemp("workers") / "workers.log") as cluster:
        yield cluster


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database as MLflow makes it; to be copied."""
    folder = tmp_path_factory.mktemp("made")
    create_database(folder / "mlflow.db", str(folder / "artifacts"))
    return folder / "mlflow.db"


@pytest.fixture
def home_with_database(
    tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path / "home"))
    settings = Settings.from_env()
    settings.home.mkdir()
    shutil.copy(mlflow_database, settings.home / "mlflow.db")
    return settings
