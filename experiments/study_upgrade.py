"""Optuna's tables, brought to the schema of the Optuna that is installed."""

from __future__ import annotations

from pathlib import Path

from experiments.studies import is_locked
from mlops.settings import Settings
from mlops.stores.database_check import find_package
from mlops.stores.schema_upgrade import Schema, find_sessions


def upgrade_studies(settings: Settings) -> str:
    """Makes the tables, or brings them up to date; returns what was done.

    Raises:
        MlopsError: others use the database, or a newer Optuna wrote it.
    """
    return study_schema(settings).upgrade()


def study_schema(settings: Settings) -> Schema:
    return Schema(
        what="studies",
        url=settings.study_url,
        setting="MLOPS_STUDY_URL",
        revisions=find_package("optuna") / "storages" / "_rdb" / "alembic" / "versions",
        version_table="alembic_version",
        make=_make,
        migrate=_migrate,
    )


def find_study_writers(settings: Settings) -> list[str]:
    """Returns the drivers of this home that are at work, and who is connected to the database."""
    sweeps = _find_sweeps(settings.home)
    drivers = [
        f"the driver of the sweep {one!r}" for one in sweeps if is_locked(settings.home, one)
    ]
    return [*drivers, *find_sessions(settings.study_url)]


def _find_sweeps(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "sweeps").glob("*/"))


def _make(url: str) -> None:
    from experiments.storage import open_storage

    storage = open_storage(url)
    storage.remove_session()
    storage.engine.dispose()


def _migrate(url: str) -> None:
    import optuna

    # As `optuna storage upgrade` does.
    storage = optuna.storages.RDBStorage(
        url, skip_compatibility_check=True, skip_table_creation=True
    )
    storage.upgrade()
    storage.remove_session()
    storage.engine.dispose()
