"""Takes runs and model versions out of MLflow for real: artifacts, then rows.

`mlflow gc` does the same to runs that were deleted before, one at a time, and leaves what refers to
them: inputs, logged models, traces. What a kill leaves here are rows whose artifacts are gone; the
same call goes on.

Of a model version the number stays, as MLflow's own deletion leaves it, so that no other version
ever gets that number: servers and the ledger tell releases by it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mlops.errors import MlopsError
from mlops.objects import Object, Objects, open_objects
from mlops.settings import Settings
from mlops.stores.database_removal import open_to_remove
from mlops.stores.tracking_rows import GONE, RunRow, VersionRow, in_parts, read_tracked
from mlops.stores.tracking_upgrade import get_tracking_db_url

if TYPE_CHECKING:
    import sqlalchemy

TABLES = (
    *("runs", "tags", "params", "metrics", "latest_metrics", "datasets", "inputs", "input_tags"),
    *("logged_models", "logged_model_tags", "logged_model_params", "logged_model_metrics"),
    *("trace_info", "trace_tags", "trace_request_metadata", "trace_metrics", "spans"),
    *("span_metrics", "assessments", "model_versions", "model_version_tags"),
    "registered_model_aliases",
)
"""Whose rows are taken out here."""

_OF_RUNS = (
    "DELETE FROM input_tags WHERE input_uuid IN (SELECT input_uuid FROM inputs "
    "WHERE source_id IN :some OR destination_id IN :some)",
    "DELETE FROM inputs WHERE source_id IN :some OR destination_id IN :some",
    "DELETE FROM assessments WHERE run_id IN :some",
    # What hangs on a trace goes with it, by the database's own cascade.
    "DELETE FROM trace_info WHERE request_id IN (SELECT request_id FROM trace_request_metadata "
    "WHERE key = 'mlflow.sourceRun' AND value IN :some)",
    "DELETE FROM logged_model_metrics WHERE run_id IN :some",
    "DELETE FROM metrics WHERE run_uuid IN :some",
    "DELETE FROM latest_metrics WHERE run_uuid IN :some",
    "DELETE FROM params WHERE run_uuid IN :some",
    "DELETE FROM tags WHERE run_uuid IN :some",
    "DELETE FROM runs WHERE run_uuid IN :some",
)
_OF_MODELS = (
    "DELETE FROM input_tags WHERE input_uuid IN (SELECT input_uuid FROM inputs "
    "WHERE source_id IN :some OR destination_id IN :some)",
    "DELETE FROM inputs WHERE source_id IN :some OR destination_id IN :some",
    "DELETE FROM logged_model_metrics WHERE model_id IN :some",
    "DELETE FROM logged_model_params WHERE model_id IN :some",
    "DELETE FROM logged_model_tags WHERE model_id IN :some",
    "DELETE FROM logged_models WHERE model_id IN :some",
)
_OF_INPUTS = (
    "DELETE FROM input_tags WHERE input_uuid IN (SELECT input_uuid FROM inputs "
    "WHERE source_id IN :some)",
    "DELETE FROM inputs WHERE source_id IN :some",
    "DELETE FROM datasets WHERE dataset_uuid IN :some",
)


def remove_runs(settings: Settings, runs: Iterable[RunRow]) -> None:
    """Takes runs out: their artifacts, their logged models, their rows, and what refers to them.

    Raises:
        MlopsError: a store does not do it; says which.
    """
    runs = list(runs)
    if not runs:
        return
    ids = {run.run_id for run in runs}
    models = {one: place for one, place, run, _ in read_tracked(settings).models if run in ids}
    remove_models(settings, models)
    for run in runs:
        _remove_artifacts(settings, run.place, f"{run.run_id}/artifacts")
    _remove_rows(settings, _OF_RUNS, [run.run_id for run in runs])


def remove_models(settings: Settings, models: Mapping[str, str]) -> None:
    """Takes MLflow's logged models out, by their ids and the places of their artifacts."""
    for model_id, place in models.items():
        _remove_artifacts(settings, place, f"{model_id}/artifacts")
    _remove_rows(settings, _OF_MODELS, list(models))


def remove_inputs(settings: Settings, inputs: Iterable[str]) -> None:
    """Takes MLflow's own records of datasets out, by their ids."""
    _remove_rows(settings, _OF_INPUTS, list(inputs))


def remove_versions(settings: Settings, versions: Iterable[VersionRow]) -> None:
    """Takes all of model versions out but their numbers; the bytes go with their runs."""
    import sqlalchemy

    statements = (
        "DELETE FROM registered_model_aliases WHERE name = :name AND version = :version",
        "DELETE FROM model_version_tags WHERE name = :name AND version = :version",
        "UPDATE model_versions SET current_stage = :gone, last_updated_time = :now, "
        "description = NULL, user_id = NULL, source = 'REDACTED-SOURCE-PATH', "
        "storage_location = NULL, run_id = 'REDACTED-RUN-ID', run_link = 'REDACTED-RUN-LINK', "
        "status_message = NULL WHERE name = :name AND version = :version",
    )
    now = time.time_ns() // 1_000_000
    versions = list(versions)
    if not versions:
        return
    with _removing(settings) as connection:
        for one in versions:
            for statement in statements:
                values = {"name": one.name, "version": one.version, "gone": GONE, "now": now}
                named = {key: value for key, value in values.items() if f":{key}" in statement}
                connection.execute(sqlalchemy.text(statement), named)


def measure_runs(settings: Settings, runs: Iterable[RunRow]) -> dict[str, int]:
    """Returns how many bytes of artifacts each run has, by its id."""
    return {
        run.run_id: sum(
            one.size_bytes for one in _list(settings, run.place, f"{run.run_id}/artifacts")
        )
        for run in runs
    }


def open_artifacts(settings: Settings, place: str, end: str) -> tuple[Objects, str]:
    """Returns where artifacts lie, and the prefix of their names.

    A place comes from a database that others write to. So it must end as MLflow makes it, with the
    id of what the artifacts are of: nothing but that folder is ever listed or deleted.

    Args:
        place: A path or a URL.
        end: "<id>/artifacts".

    Raises:
        MlopsError: it ends otherwise, or nobody here knows how to read there.
    """
    scheme, found, _ = place.partition("://") if "://" in place else place.partition(":/")
    base, sep, tail = place.rstrip("/").rpartition(f"/{end}")
    if not sep or tail:
        raise MlopsError(
            f"artifacts lie in an unusual place; expected one that ends with /{end}, got "
            f"{place[-80:]!r}. Delete them by hand, and that run or model in MLflow."
        )
    if found and scheme == "mlflow-artifacts":
        if settings.artifacts_url is None:
            raise MlopsError(
                "this program needs the place where the tracking server keeps artifacts: set "
                "MLOPS_ARTIFACTS_URL."
            )
        inside = urlsplit(place).path.strip("/")
        return open_objects(settings.artifacts_url, "MLOPS_ARTIFACTS_URL"), f"{inside}/"
    if found and scheme not in ("file", "s3"):
        raise MlopsError(
            f"artifacts at {scheme}:// cannot be reached from here; expected a folder, s3:// or "
            "mlflow-artifacts:/. Delete them by hand, and that run or model in MLflow."
        )
    return open_objects(base, "the place of artifacts"), f"{end}/"


def _list(settings: Settings, place: str, end: str) -> Iterator[Object]:
    if place:
        objects, prefix = open_artifacts(settings, place, end)
        yield from objects.list(prefix)


def _remove_artifacts(settings: Settings, place: str, end: str) -> None:
    if not place:
        return
    objects, prefix = open_artifacts(settings, place, end)
    objects.delete([one.name for one in objects.list(prefix)])
    objects.delete_unfinished(prefix.rstrip("/"))


def _remove_rows(settings: Settings, statements: Iterable[str], values: Sequence[str]) -> None:
    """Deletes by statements about `:some` values, in one transaction."""
    import sqlalchemy

    if not values:
        return
    texts = [
        sqlalchemy.text(one).bindparams(sqlalchemy.bindparam("some", expanding=True))
        for one in statements
    ]
    with _removing(settings) as connection:
        for part in in_parts(values):
            for text in texts:
                connection.execute(text, {"some": part})


def _removing(settings: Settings) -> AbstractContextManager[sqlalchemy.Connection]:
    return open_to_remove(get_tracking_db_url(settings), "MLOPS_TRACKING_DB_URL")
