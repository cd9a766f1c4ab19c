"""What MLflow's runs need, what of them came from a dataset, and the end of deleted ones."""

from __future__ import annotations

from collections.abc import Set
from datetime import datetime

from mlops.errors import MlopsError
from mlops.program import command_line
from mlops.settings import Settings
from mlops.stores.database_removal import compact
from mlops.stores.store import Item
from mlops.stores.tracking_removal import (
    TABLES,
    measure_runs,
    remove_inputs,
    remove_models,
    remove_runs,
)
from mlops.stores.tracking_rows import RunRow, read_lineage, read_registry, read_tracked
from mlops.stores.tracking_upgrade import get_tracking_db_url
from mlops.tracking import RUN_KEY


def find_run_needs(settings: Settings, gone: Set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Returns the datasets that runs used, deleted ones too: MLflow can bring those back."""
    tracked = read_tracked(settings)
    there = {run_id for run_id in tracked.runs if ("run", run_id) not in gone}
    used = {tracked.runs[run_id].dataset for run_id in there}
    used |= {dataset for run_id, dataset in tracked.used if run_id in there}
    return {("dataset", dataset) for dataset in used if dataset is not None}


def clean_deleted(
    settings: Settings, before: datetime, needed: Set[tuple[str, str]], *, dry: bool
) -> list[Item]:
    """Takes out the runs and logged models that were deleted before; as `mlflow gc` does."""
    before_ms = before.timestamp() * 1000
    versions, runs = read_registry(settings)
    held = {one.run_id for one in versions}
    old = [
        run
        for run in runs.values()
        if run.deleted_ms is not None
        and run.deleted_ms < before_ms
        and run.run_id not in held
        and ("run", run.run_id) not in needed
    ]
    models = {
        model_id: place
        for model_id, place, run_id, deleted_ms in read_tracked(settings).models
        if deleted_ms is not None and deleted_ms < before_ms and run_id not in held
    }
    sizes = measure_runs(settings, old)
    if not dry:
        remove_models(settings, models)
        remove_runs(settings, old)
    return [
        *(Item("run", one.run_id, f"{one.name}, deleted", None, sizes[one.run_id]) for one in old),
        *(Item("logged model", one, f"{one}, deleted") for one in models),
    ]


def find_runs_of(settings: Settings, dataset: str) -> list[Item]:
    """Returns the runs, logged models and records that came from a dataset."""
    lineage = read_lineage(settings, dataset)
    sizes = measure_runs(settings, lineage.runs.values())
    return [
        *(
            Item("run", one.run_id, one.name, None, sizes[one.run_id], _find_busy(one))
            for one in lineage.runs.values()
        ),
        *(Item("logged model", one, one) for one in lineage.models),
        *(Item("dataset record", one, f"MLflow's record {one}") for one in lineage.inputs),
    ]


def _find_busy(run: RunRow) -> str | None:
    """A run of a journal's that has not ended: its process lives, or nobody has ended it yet."""
    if run.status != "RUNNING" or RUN_KEY not in run.tags or run.deleted_ms is not None:
        return None
    sync, doctor = (
        command_line("python", "-m", module) for module in ("mlops.sync", "mlops.doctor")
    )
    return (
        f"the run {run.name} ({run.run_id}) is under way; end its sweep. If its process is gone, "
        f"type: {sync}; or see: {doctor}"
    )


def erase_runs(settings: Settings, dataset: str) -> None:
    """Takes out what `find_runs_of` finds, and writes the touched tables anew.

    Raises:
        MlopsError: a run is under way, or a store does not do it.
    """
    lineage = read_lineage(settings, dataset)
    for run in lineage.runs.values():
        busy = _find_busy(run)
        if busy is not None:
            raise MlopsError(busy)
    # Runs last: all else is found by them.
    remove_models(settings, lineage.models)
    remove_inputs(settings, lineage.inputs)
    remove_runs(settings, lineage.runs.values())
    compact(get_tracking_db_url(settings), TABLES, "MLOPS_TRACKING_DB_URL")
