"""Runs and model versions as MLflow's database has them, and which of them came from a dataset.

Read by SQL from the tables, deleted runs included: 10,000 runs come in a second or two, without
importing MLflow, which takes 6 s and would load every param and metric.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlops.errors import MlopsError, first_line
from mlops.settings import Settings
from mlops.stores.database_check import open_to_read
from mlops.stores.schema_upgrade import find_file
from mlops.stores.tracking_upgrade import get_tracking_db_url
from mlops.tracked_runs import STUDY, SWEEP, TRIAL
from mlops.tracking import CANDIDATES, RUN_KEY

if TYPE_CHECKING:
    import sqlalchemy

FINGERPRINT = "mlops.dataset_fingerprint"
FINAL = "mlops.final"
PARENT = "mlflow.parentRunId"
SOURCE_RUN = "mlops.source_run"
TAGS = (RUN_KEY, SWEEP, STUDY, TRIAL, FINAL, FINGERPRINT, PARENT, SOURCE_RUN)
GONE = "Deleted_Internal"
"""The stage of a model version of which MLflow keeps the number, so that no other gets it."""
N_AT_ONCE = 500
"""Values that one statement names."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run; `tags` holds those of `TAGS` that it has.

    Attributes:
        place: Where its artifacts lie: a path, or a URL.
        ended_ms: Milliseconds since 1970; its begin where it has not ended.
        deleted_ms: When it was deleted, which MLflow can undo; None of one that was not.
    """

    run_id: str
    name: str
    place: str
    status: str
    ended_ms: int
    deleted_ms: int | None
    tags: Mapping[str, str]

    @property
    def dataset(self) -> str | None:
        return self.tags.get(FINGERPRINT)


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version of a registered model."""

    name: str
    version: int
    run_id: str
    source: str
    created_ms: int
    tags: Mapping[str, str]
    aliases: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"{self.name}/{self.version}"

    @property
    def is_candidate(self) -> bool:
        return self.name.endswith(CANDIDATES)


@dataclass(frozen=True, slots=True)
class Lineage:
    """What came from a dataset.

    Attributes:
        runs: Those that used it, and all that stand under them and name no other, by id.
        versions: Model versions that were made of those runs, or that say so.
        models: MLflow's logged models of those runs: where each has its artifacts, by id.
        inputs: MLflow's own records of the dataset, by id.
    """

    runs: dict[str, RunRow] = field(default_factory=dict)
    versions: tuple[VersionRow, ...] = ()
    models: dict[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()

    def tagged(self, tag: str) -> set[str]:
        """Returns the values of a tag on the runs."""
        return {run.tags[tag] for run in self.runs.values() if tag in run.tags}


def has_tables(connection: sqlalchemy.Connection) -> bool:
    """Tells whether MLflow ever made its tables in a database."""
    import sqlalchemy

    return sqlalchemy.inspect(connection).has_table("model_version_tags")


def read_runs(connection: sqlalchemy.Connection) -> dict[str, RunRow]:
    """Returns all runs, by id."""
    tags: dict[str, dict[str, str]] = {}
    for run_id, key, value in _ask(
        connection, "SELECT run_uuid, key, value FROM tags WHERE key IN :some", TAGS
    ):
        tags.setdefault(run_id, {})[key] = value
    return {
        row[0]: RunRow(
            run_id=row[0],
            name=row[1] or row[0],
            place=row[2] or "",
            status=row[3],
            ended_ms=int(row[4] or row[5] or 0),
            deleted_ms=None if row[6] != "deleted" else int(row[7] or 0),
            tags=tags.get(row[0], {}),
        )
        for row in connection.exec_driver_sql(
            "SELECT run_uuid, name, artifact_uri, status, end_time, start_time, lifecycle_stage, "
            "deleted_time FROM runs"
        )
    }


def read_versions(connection: sqlalchemy.Connection) -> list[VersionRow]:
    """Returns all model versions but those that were deleted, by name and number."""
    tags: dict[tuple[str, int], dict[str, str]] = {}
    for name, version, key, value in connection.exec_driver_sql(
        "SELECT name, version, key, value FROM model_version_tags"
    ):
        tags.setdefault((name, version), {})[key] = value or ""
    aliases: dict[tuple[str, int], list[str]] = {}
    for name, version, alias in connection.exec_driver_sql(
        "SELECT name, version, alias FROM registered_model_aliases ORDER BY alias"
    ):
        aliases.setdefault((name, version), []).append(alias)
    return [
        VersionRow(
            name=row[0],
            version=row[1],
            run_id=row[2] or "",
            source=row[3] or "",
            created_ms=int(row[4] or 0),
            tags=tags.get((row[0], row[1]), {}),
            aliases=tuple(aliases.get((row[0], row[1]), ())),
        )
        for row in connection.exec_driver_sql(
            "SELECT name, version, run_id, source, creation_time, current_stage "
            "FROM model_versions ORDER BY name, version"
        )
        if row[5] != GONE
    ]


def read_models(connection: sqlalchemy.Connection) -> list[tuple[str, str, str | None, int | None]]:
    """Returns id, place, run and time of deletion of MLflow's logged models."""
    return [
        (row[0], row[1], row[2], int(row[4] or 0) if row[3] == "deleted" else None)
        for row in connection.exec_driver_sql(
            "SELECT model_id, artifact_location, source_run_id, lifecycle_stage, "
            "last_updated_timestamp_ms FROM logged_models"
        )
    ]


def read_inputs(connection: sqlalchemy.Connection) -> dict[str, str]:
    """Returns the fingerprints that MLflow's records of datasets hold, by the records' ids."""
    found = {}
    for row_id, source in connection.exec_driver_sql(
        "SELECT dataset_uuid, dataset_source FROM datasets WHERE dataset_source_type = 'podium'"
    ):
        try:
            found[row_id] = str(json.loads(source)["fingerprint"])
        except (ValueError, KeyError, TypeError):  # somebody else's
            continue
    return found


def find_lineage(connection: sqlalchemy.Connection, dataset: str) -> Lineage:
    """Returns what came from a dataset, by its fingerprint."""
    if not has_tables(connection):
        return Lineage()
    runs = read_runs(connection)
    inputs = tuple(one for one, found in read_inputs(connection).items() if found == dataset)
    began = {run.run_id for run in runs.values() if run.dataset == dataset}
    began |= {
        row[0]
        for row in _ask(
            connection,
            "SELECT destination_id FROM inputs WHERE destination_type = 'RUN' "
            "AND source_type = 'DATASET' AND source_id IN :some",
            inputs,
        )
    }
    others = {one for one, run in runs.items() if run.dataset not in (None, dataset)}
    mine = {one: runs[one] for one in with_children(runs, began & runs.keys(), others)}
    models = {one: place for one, place, run, _ in read_models(connection) if run in mine}
    named = {*mine, *models}
    versions = tuple(
        one
        for one in read_versions(connection)
        if one.tags.get(FINGERPRINT) == dataset
        or one.run_id in mine
        or named & set(re.findall(r"m-[0-9a-f]{32}|[0-9a-f]{32}", one.source))
    )
    return Lineage(mine, versions, models, inputs)


def with_children(
    runs: Mapping[str, RunRow], began: Iterable[str], others: Set[str] = frozenset()
) -> set[str]:
    """Returns runs and all that stand under them, but `others` and what stands under those."""
    children: dict[str, list[str]] = {}
    for run in runs.values():
        if PARENT in run.tags:
            children.setdefault(run.tags[PARENT], []).append(run.run_id)
    found: set[str] = set()
    left = list(began)
    while left:
        run_id = left.pop()
        if run_id not in found and run_id not in others:
            found.add(run_id)
            left += children.get(run_id, ())
    return found


def _ask(
    connection: sqlalchemy.Connection, query: str, values: Iterable[str]
) -> Iterator[tuple[Any, ...]]:
    """Yields the rows of a query about `:some` values, asked for a part of them at a time."""
    import sqlalchemy

    statement = sqlalchemy.text(query).bindparams(sqlalchemy.bindparam("some", expanding=True))
    for some in in_parts(values):
        for row in connection.execute(statement, {"some": some}):
            yield tuple(row)


def in_parts(values: Iterable[str]) -> Iterator[list[str]]:
    """Yields values in lists that one statement can name."""
    left = list(values)
    for start in range(0, len(left), N_AT_ONCE):
        yield left[start : start + N_AT_ONCE]


def read_lineage(settings: Settings, dataset: str) -> Lineage:
    """Returns what MLflow's database has of a dataset; nothing where there is none yet.

    Raises:
        MlopsError: only the server is known, or its database does not answer.
    """
    with _opened(settings) as connection:
        return Lineage() if connection is None else find_lineage(connection, dataset)


@dataclass(frozen=True, slots=True)
class Tracked:
    """Runs, and what hangs on them.

    Attributes:
        runs: By id.
        models: Id, place, run and time of deletion of MLflow's logged models.
        used: Run and dataset of each of MLflow's records of a dataset that was used.
    """

    runs: dict[str, RunRow] = field(default_factory=dict)
    models: list[tuple[str, str, str | None, int | None]] = field(default_factory=list)
    used: list[tuple[str, str]] = field(default_factory=list)


def read_tracked(settings: Settings) -> Tracked:
    """Returns all runs, and what hangs on them; raises as `read_lineage`."""
    with _opened(settings) as connection:
        if connection is None or not has_tables(connection):
            return Tracked()
        inputs = read_inputs(connection)
        used = [
            (str(run_id), inputs[row_id])
            for row_id, run_id in connection.exec_driver_sql(
                "SELECT source_id, destination_id FROM inputs WHERE source_type = 'DATASET' "
                "AND destination_type = 'RUN'"
            )
            if row_id in inputs
        ]
        return Tracked(read_runs(connection), read_models(connection), used)


def read_registry(settings: Settings) -> tuple[list[VersionRow], dict[str, RunRow]]:
    """Returns all model versions, and all runs by id; raises as `read_lineage`."""
    with _opened(settings) as connection:
        if connection is None or not has_tables(connection):
            return [], {}
        return read_versions(connection), read_runs(connection)


@contextlib.contextmanager
def _opened(settings: Settings) -> Iterator[sqlalchemy.Connection | None]:
    from sqlalchemy.exc import SQLAlchemyError

    url = get_tracking_db_url(settings)
    file = find_file(url)
    if file is not None and not file.is_file():
        yield None
        return
    try:
        with open_to_read(url) as connection:
            yield connection
    except (SQLAlchemyError, ImportError) as err:
        raise MlopsError(
            f"the database of MLflow's runs cannot be read: {first_line(getattr(err, 'orig', err))}"
            ". Look at MLOPS_TRACKING_DB_URL, and type: python -m mlops.doctor"
        ) from err
