"""MLflow's part of a backup: its rows, its accounts and its artifacts, and where they are now.

MLflow's rows name the places of artifacts in full. In a backup they name the folder that the
backup was written to, so that it can be opened where it lies; a restore names the new place.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from mlops.errors import MlopsError
from mlops.mlflow_store import LAST_FILES
from mlops.objects import open_objects
from mlops.stores.backup_record import place_of, read_record
from mlops.stores.database_check import open_to_read
from mlops.stores.database_copy import Restore, copy_in, copy_out
from mlops.stores.file_copy import copy_objects, refuse_others, restore_objects
from mlops.stores.store import Steps, in_step
from mlops.stores.tracking_upgrade import accounts_schema, tracking_schema

if TYPE_CHECKING:
    from mlops.objects import Objects
    from mlops.settings import Settings

ROWS = "mlflow.db"
ACCOUNTS = "accounts.db"
ARTIFACTS = "artifacts"
SERVED = "mlflow-artifacts:"
"""How places begin that a server hands on itself."""
GIVEN = {"experiments": "experiment_id <> 0", "workspaces": "name <> 'default'"}
"""What MLflow's tables hold when they are new."""
TRACE_PLACES = ("mlflow.artifactLocation", "mlflow.trace.archiveLocation")
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("trace_tags", "value"),
)
"""Where MLflow's tables hold a place in full; of the tags of traces, those of `TRACE_PLACES`."""


def back_up_records(settings: Settings, home: Path) -> Steps:
    """Copies the rows of MLflow and of its accounts.

    Raises:
        MlopsError: they cannot be read, or the settings do not say where they are.
    """
    old = find_places(settings)
    new = str(place_of(home) / ARTIFACTS)
    steps = [
        copy_out(tracking_schema(settings), home / ROWS, lambda made: move_places(made, old, new))
    ]
    if settings.accounts_db_url is not None:
        steps.append(copy_out(accounts_schema(settings.accounts_db_url), home / ACCOUNTS))
    yield from in_step(steps)


def back_up_files(settings: Settings, home: Path) -> None:
    """Copies the artifacts.

    Raises:
        MlopsError: they cannot be read.
    """
    copy_objects(open_artifacts(settings), home / ARTIFACTS, LAST_FILES)


def restore(settings: Settings, backup: Path) -> Steps:
    """Brings the artifacts first, and the rows that speak of them after that.

    Raises:
        MlopsError: there is something already, or the backup is of another version.
    """
    record = read_record(backup)
    old, new = [str(Path(record.place) / ARTIFACTS)], find_root(settings)
    sizes, into = record.sizes(ARTIFACTS), Restore.of(settings.home, backup)
    steps = [
        copy_in(
            backup / ROWS,
            tracking_schema(settings),
            into,
            GIVEN,
            lambda made: move_places(made, old, new),
        )
    ]
    if settings.accounts_db_url is not None:
        schema = accounts_schema(settings.accounts_db_url)
        steps.append(copy_in(backup / ACCOUNTS, schema, into))
    rows = in_step(steps)
    next(rows)
    artifacts = open_artifacts(settings)
    refuse_others(
        artifacts,
        sizes,
        repeated=into.repeated,
        what="artifacts",
        setting="MLOPS_ARTIFACTS_URL",
    )
    yield
    restore_objects(backup / ARTIFACTS, sizes, artifacts, LAST_FILES)
    yield from rows


def open_artifacts(settings: Settings) -> Objects:
    """Returns what MLflow keeps as files.

    Raises:
        MlopsError: the settings do not say where that is.
    """
    if settings.artifacts_url is None:
        raise MlopsError(
            "this program needs the place in which the tracking server keeps artifacts: set "
            "MLOPS_ARTIFACTS_URL."
        )
    return open_objects(settings.artifacts_url, "MLOPS_ARTIFACTS_URL")


def find_places(settings: Settings) -> list[str]:
    """Returns how the places of artifacts may begin in MLflow's rows."""
    objects = open_artifacts(settings)
    begins = [objects.url]
    if "://" not in objects.url:
        folders = {Path(objects.url), Path(objects.url).resolve()}  # a home may be reached by links
        begins = [form for one in folders for form in (str(one), one.as_uri(), f"file:{one}")]
    return [*begins, SERVED]


def find_root(settings: Settings) -> str:
    """Returns how the places of artifacts are to begin in MLflow's rows.

    A server that is spoken to over HTTP is taken to hand its artifacts on, as MLflow's does unless
    it is told otherwise.
    """
    if (settings.tracking_uri or "").startswith("http"):
        return SERVED
    return open_artifacts(settings).url


def move_places(connection: sa.Connection, old: list[str], new: str) -> None:
    """Has all places that lie in an old folder lie in the new one."""
    for name, column in PLACES:
        table = sa.table(name, sa.column(column, sa.String), sa.column("key", sa.String))
        place = table.columns[column]
        for begin in (f"{one}/" for one in old if one != new):
            size = len(begin)
            change = (
                sa.update(table)
                # Not mlflow-artifacts://host/...: that names a server, and no folder of ours.
                .where(sa.func.substr(place, 1, size) == begin)
                .where(sa.func.substr(place, size + 1, 1) != "/")
                .values({column: sa.literal(f"{new}/") + sa.func.substr(place, size + 1)})
            )
            if name == "trace_tags":
                change = change.where(table.c.key.in_(TRACE_PLACES))
            connection.execute(change)


def count_elsewhere(backup: Path) -> int:
    """Returns how many experiments of a backup keep their artifacts somewhere else."""
    begin = f"{backup / ARTIFACTS}/"
    if not (backup / ROWS).is_file():
        return 0
    place = sa.column("artifact_location", sa.String)
    query = (
        sa.select(sa.func.count())
        .select_from(sa.table("experiments", place))
        .where(sa.func.substr(place, 1, len(begin)) != begin)
    )
    with open_to_read(f"sqlite:///{backup / ROWS}") as connection:
        return int(connection.scalar(query) or 0)


def read_aliases(backup: Path) -> list[str]:
    """Returns the aliases of releases in a backup, as NAME@ALIAS."""
    if not (backup / ROWS).is_file():
        return []
    query = sa.text("SELECT name, alias FROM registered_model_aliases ORDER BY name, alias")
    with open_to_read(f"sqlite:///{backup / ROWS}") as connection:
        return [f"{name}@{alias}" for name, alias in connection.execute(query)]
