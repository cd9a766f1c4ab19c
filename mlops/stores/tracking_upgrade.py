"""MLflow's two databases, brought to the schema of the MLflow that is installed.

Runs and model registry are one database, accounts another. MLflow is imported where a migration
runs, and not where there is nothing to do.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from mlops.errors import MlopsError
from mlops.lease import ServerFolder, try_lock
from mlops.settings import Settings
from mlops.stores.database_check import find_package
from mlops.stores.schema_upgrade import Schema, find_file, find_sessions


def upgrade_tracking(settings: Settings) -> str:
    """Brings both databases up to date; returns what was done.

    Raises:
        MlopsError: somebody uses them, or a newer MLflow wrote them.
    """
    with _no_server(settings):
        done = [tracking_schema(settings).upgrade()]
        if settings.accounts_db_url is not None:
            done.append(f"accounts: {accounts_schema(settings.accounts_db_url).upgrade()}")
    return "; ".join(done)


def find_tracking_writers(settings: Settings) -> list[str]:
    """Returns who uses MLflow's databases now, a few words each."""
    found = []
    if settings.embedded:
        folder = ServerFolder(settings.home / "server")
        if folder.path.is_dir() and folder.is_running():
            address = folder.find_address()
            where = "" if address is None else f" at {address.url}"
            found.append(
                f"the embedded tracking server{where} (a sweep, or python -m mlops.server)"
            )
    for url in (settings.tracking_db_url, settings.accounts_db_url):
        found += [] if url is None else find_sessions(url)
    return found


def get_tracking_db_url(settings: Settings) -> str:
    """Returns the URL of the database behind the tracking server.

    Raises:
        MlopsError: only the server is known.
    """
    if settings.tracking_db_url is None:
        raise MlopsError(
            "this program needs the database behind the tracking server: set MLOPS_TRACKING_DB_URL."
        )
    return settings.tracking_db_url


@contextlib.contextmanager
def _no_server(settings: Settings) -> Iterator[None]:
    """Keeps the embedded server from being started, and whoever looks for it waiting."""
    if not settings.embedded:
        yield
        return
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = ServerFolder(settings.home / "server")
    folder.create()
    with folder.starting(timeout_s=0.0):
        lock = try_lock(folder.server_lock)
        if lock is None:
            raise MlopsError("the embedded tracking server runs; end what uses it, and try again.")
        os.close(lock)
        yield


def tracking_schema(settings: Settings) -> Schema:
    return Schema(
        what="MLflow's runs",
        url=get_tracking_db_url(settings),
        setting="MLOPS_TRACKING_DB_URL",
        revisions=find_package("mlflow") / "store" / "db_migrations" / "versions",
        version_table="alembic_version",
        make=lambda url: _make_tracking(url, settings),
        migrate=_migrate_tracking,
    )


def _make_tracking(url: str, settings: Settings) -> None:
    file = find_file(url)
    if file is not None and not file.exists():
        from mlops.supervisor import create_database

        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        create_database(file, settings.artifacts_url or str(file.parent / "artifacts"))
        return
    # The experiment Default is left to the server, which knows where it keeps artifacts.
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    engine = create_sqlalchemy_engine(url)
    try:
        _initialize_tables(engine)
    finally:
        engine.dispose()


def _migrate_tracking(url: str) -> None:
    from mlflow.store.db.utils import _upgrade_db, create_sqlalchemy_engine

    engine = create_sqlalchemy_engine(url)
    try:
        _upgrade_db(engine)
    finally:
        engine.dispose()


def accounts_schema(url: str) -> Schema:
    return Schema(
        what="MLflow's accounts",
        url=url,
        setting="MLOPS_ACCOUNTS_DB_URL",
        revisions=find_package("mlflow") / "server" / "auth" / "db" / "migrations" / "versions",
        version_table="alembic_version_auth",
        make=_make_accounts,
        migrate=_migrate_accounts,
    )


def _make_accounts(url: str) -> None:
    file = find_file(url)
    if file is None or file.exists():
        _migrate_accounts(url)
        return
    # Made beside its place: MLflow cannot go on from the middle of its migrations.
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = file.with_name(f"{file.name}.new")
    new.unlink(missing_ok=True)
    _migrate_accounts(f"sqlite:///{new}")
    Path(new).rename(file)


def _migrate_accounts(url: str) -> None:
    import sqlalchemy
    from mlflow.server.auth.db import utils

    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    utils.migrate(engine, "head")
