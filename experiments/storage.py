"""Where Optuna keeps studies: an RDB storage, the record of truth about trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna

from mlops.errors import UsageError


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """Opens the study database; SQLite with a write-ahead log, so that processes do not block.

    Raises:
        UsageError: the URL cannot be opened.
    """
    import sqlalchemy

    sqlite = url.startswith("sqlite")
    if sqlite:
        Path(sqlalchemy.engine.make_url(url).database or "").parent.mkdir(
            parents=True, exist_ok=True
        )
    try:
        storage = optuna.storages.RDBStorage(
            url, engine_kwargs={"connect_args": {"timeout": 60}} if sqlite else {}
        )
    except Exception as err:
        raise UsageError(
            f"the study database cannot be opened ({type(err).__name__}); "
            "look at MLOPS_STUDY_URL and whether its server runs."
        ) from err
    if sqlite:

        @sqlalchemy.event.listens_for(storage.engine, "connect")
        def _speed_up(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")

        storage.engine.dispose()  # so that the next connection is made with the listener
    return storage


def has_storage(url: str) -> bool:
    """Tells whether there is a database to open; of a server's that is taken for granted."""
    import sqlalchemy

    if not url.startswith("sqlite"):
        return True
    return Path(sqlalchemy.engine.make_url(url).database or "").is_file()
