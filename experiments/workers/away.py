"""The driver's side of workers that keep their files in homes of their own.

What they tell goes to the tracking server by themselves, so it may come after their trials are
told; the networks that count lie in the artifact store.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Container
from pathlib import Path

from experiments.tasks import NETWORKS
from mlops.errors import TrackingError, first_line
from mlops.settings import Settings
from mlops.tracked_runs import read_tracked_runs

LOOK_S = 0.5


class NotFetchedError(TrackingError):
    """A network cannot be fetched from the artifact store now."""


def wait_for_runs(
    settings: Settings,
    sweep: str,
    but: Container[str],
    is_delivered: Callable[[], bool],
    timeout_s: float,
    give_up: Callable[[], bool],
) -> set[str]:
    """Waits until the server has the end of every run of a sweep.

    Args:
        but: The keys of runs that go on.
        is_delivered: Whether what this process wrote of them is there.
        timeout_s: How long, at most.
        give_up: Asked again and again; the wait ends as soon as it returns True.

    Returns:
        The keys of the runs whose end is not there.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        has_all = is_delivered()  # asked first: what comes meanwhile may begin another run
        try:
            open_keys = {
                run.key
                for run in read_tracked_runs(settings, running=True)
                if run.sweep == sweep and run.key not in but and not run.is_deleted
            }
        except Exception:  # whatever keeps the server from answering, the drain says it
            open_keys = None
        if has_all and open_keys is not None and not open_keys:
            return set()
        if time.monotonic() > deadline or give_up():
            return open_keys or set()
        time.sleep(LOOK_S)


def fetch_network(settings: Settings, run_key: str, network: Path) -> bool:
    """Copies a network from the artifact store, where a worker sent it; False if it is not there.

    Args:
        network: Where it is to be.

    Raises:
        NotFetchedError: nothing can be fetched now.
    """
    from mlops.mlflow_sink import MlflowSink
    from mlops.mlflow_store import open_store_client

    path = f"{NETWORKS}/{network.name}"
    try:
        client = open_store_client(settings)
        run_id = MlflowSink(client).find_run_id(run_key)
        if run_id is None:
            return False
        if path not in {one.path for one in client.list_artifacts(run_id, NETWORKS)}:
            return False
        network.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=network.parent) as scratch:
            shutil.move(client.download_artifacts(run_id, path, scratch), network)
    except Exception as err:
        raise NotFetchedError(
            f"the network {network.name} cannot be fetched from the artifact store: "
            f"{first_line(err)}"
        ) from err
    return True
