"""What the whole suite shares: a quiet environment, and one embedded tracking server."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from experiments.cluster import Cluster, open_cluster
from mlops.server import open_server
from mlops.settings import Settings, quiet

quiet()
for _name in [name for name in os.environ if name.startswith(("MLOPS_", "MLFLOW_TRACKING_"))]:
    del os.environ[_name]  # the suite keeps out of the stores of who runs it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts a suite in the background deaf to Ctrl-C, and its children would be so too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
