"""The MLflow side: clients that give up soon, and what is made in a store but once.

Everything here takes an `MlflowClient` or returns one. MLflow is imported where it is called, so
that importing this module is quick.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlops.errors import TrackingError, first_line
from mlops.server import is_loopback
from mlops.settings import Settings
from mlops.supervisor import create_database

LAST_FILES = ("MLmodel", "golden.json", "reference.json", "release.json", "model.sig")
"""Files that are uploaded after all others, in this order: with them a folder counts as whole."""

REFUSALS = frozenset(
    (
        "BAD_REQUEST",
        "INVALID_PARAMETER_VALUE",
        "INVALID_STATE",
        "RESOURCE_ALREADY_EXISTS",
        "RESOURCE_DOES_NOT_EXIST",
    )
)
"""MLflow's error codes that say the same however often one asks. A wrong address is none of them,
nor is a missing permission: what a person can mend waits for that."""


def open_client(tracking_uri: str) -> Any:
    """Returns an `MlflowClient` that gives up soon: the journal holds what could not be sent.

    A POST is never repeated by the HTTP layer: a lost answer to "create run" would make two runs.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_PRINT_MODEL_URLS_ON_CREATION", "false")
    _reach_directly(tracking_uri)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


def _reach_directly(tracking_uri: str) -> None:
    """Exempts a server on this machine from the proxy that the environment may name."""
    if not tracking_uri.startswith(("http://", "https://")):
        return
    host = urlsplit(tracking_uri).hostname or ""
    if not is_loopback(host):
        return
    from requests.utils import get_environ_proxies, select_proxy

    if select_proxy(tracking_uri, get_environ_proxies(tracking_uri)):
        # Both, since programs differ in which one they read; each keeps what it has.
        lower, upper = os.environ.get("no_proxy"), os.environ.get("NO_PROXY")
        os.environ["no_proxy"] = ",".join(filter(None, (lower or upper, host)))
        os.environ["NO_PROXY"] = ",".join(filter(None, (upper or lower, host)))


def open_store_client(settings: Settings) -> Any:
    """Returns a client that needs no server started: in embedded mode it opens the store itself.

    A store that is not there yet is made as the embedded server makes it.
    """
    if settings.embedded:
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        create_database(settings.home / "mlflow.db", str(settings.artifact_root))
    return open_client(settings.direct_uri)


def upload(
    client: Any,
    run_id: str,
    source: Path,
    folder: str,
    after_each: Callable[[], None] = lambda: None,
) -> None:
    """Uploads a file, or a folder's files one by one, those that make it valid last.

    MLflow moves one file into place at once, but not a folder: killed in between, this leaves a
    folder without its last files, which nobody takes for a model.

    Args:
        after_each: Called after each file of a folder.
    """
    if source.is_file():
        client.log_artifact(run_id, str(source), folder or None)
        return
    files = [path for path in source.rglob("*") if path.is_file()]
    rank = {name: place for place, name in enumerate(LAST_FILES)}
    for path in sorted(files, key=lambda path: (rank.get(path.name, -1), path.as_posix())):
        inside = path.parent.relative_to(source).as_posix()
        target = "/".join(part for part in (folder, inside) if part not in ("", "."))
        client.log_artifact(run_id, str(path), target or None)
        after_each()


def ensure_experiment(client: Any, name: str) -> str:
    """Returns the id of an experiment; creates it unless it is there. Two at once are no error.

    Raises:
        TrackingError: the experiment is deleted, or its name is not taken.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            client.create_experiment(name, artifact_location=_artifact_location(client))
        except MlflowException as err:
            if err.error_code not in REFUSALS:
                raise
            if err.error_code != "RESOURCE_ALREADY_EXISTS":
                raise TrackingError(
                    f"the MLflow experiment {name!r} cannot be made: {first_line(err)} "
                    "Sweep into another with --experiment."
                ) from err
        found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        raise TrackingError(
            f"the MLflow experiment {name!r} is deleted. Restore it (mlflow experiments restore) "
            "or sweep into another with --experiment."
        )
    return str(found.experiment_id)


def _artifact_location(client: Any) -> str | None:
    """Returns where a new experiment keeps its artifacts; None where a server knows that itself.

    A store that is opened directly would lay them in ./mlruns of whoever opens it. They belong
    beside the database, as `Settings.artifact_root` has it.
    """
    if not client.tracking_uri.startswith("sqlite:///"):
        return None
    database = Path(client.tracking_uri.removeprefix("sqlite:///"))
    return str(database.parent / "artifacts" / secrets.token_hex(8))


def ensure_registered_model(client: Any, name: str) -> None:
    """Creates a registered model unless it is there; two at once are no error."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as err:
        if err.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
