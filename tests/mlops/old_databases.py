"""Databases as older versions left them, made by the parts' own migrations, with a row in each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from mlops.stores.database_check import find_package

OLD_MLFLOW = "5b0e9adcef9c"
"""Of MLflow 2.14: 42 migrations before the newest."""
OLD_OPTUNA = "v3.0.0.d"
OLD_ACCOUNTS = "8606fa83a998"
RUN, STUDY, USER = "0" * 32, "a study", "ada"


def make_old_mlflow(url: str, revision: str = OLD_MLFLOW) -> None:
    from mlflow.store.db.utils import InitialBase, _get_alembic_config

    engine = sa.create_engine(url, poolclass=sa.NullPool)
    InitialBase.metadata.create_all(engine)
    config = _get_alembic_config(url)
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    _insert(
        engine,
        "experiments",
        {"experiment_id": 7, "name": "old", "artifact_location": "/x", "lifecycle_stage": "active"},
    )
    _insert(
        engine,
        "runs",
        {"run_uuid": RUN, "name": "r", "experiment_id": 7, "lifecycle_stage": "active"},
    )
    _insert(engine, "tags", {"run_uuid": RUN, "key": "k", "value": "v" * 4000})


def make_old_optuna(url: str, revision: str = OLD_OPTUNA) -> None:
    folder = find_package("optuna") / "storages" / "_rdb"
    config = Config(str(folder / "alembic.ini"))
    config.set_main_option("script_location", str(folder / "alembic"))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    command.upgrade(config, revision)
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    _insert(engine, "studies", {"study_id": 1, "study_name": STUDY})


def make_old_accounts(url: str, revision: str = OLD_ACCOUNTS) -> None:
    from mlflow.server.auth.db import utils

    engine = sa.create_engine(url, poolclass=sa.NullPool)
    utils.migrate(engine, revision)
    user = {"id": 1, "username": USER, "password_hash": "h", "is_admin": False}
    _insert(engine, "users", user)


def ask(url: str, query: str) -> Any:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return connection.exec_driver_sql(query).scalar()


def sqlite_url(path: Path) -> str:
    return f"sqlite:///{path}"


def _insert(engine: sa.Engine, table: str, row: dict[str, Any]) -> None:
    columns = sa.table(table, *map(sa.column, row))
    with engine.begin() as connection:
        connection.execute(columns.insert().values(row))
