"""Where Optuna keeps studies: an RDB storage, the record of truth about trials."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna

from mlops.errors import UsageError

MAX_MEETINGS = 10
"""Times that others may be met making the same tables before it is taken for an error."""


def to_utc(time: datetime | None) -> datetime | None:
    """Returns a time that Optuna gives as an aware one: it is local, without saying so."""
    return None if time is None else time.astimezone(UTC)


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
        storage = _make_tables(url, {"connect_args": {"timeout": 60}} if sqlite else {})
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


def _make_tables(url: str, engine_kwargs: dict[str, Any]) -> optuna.storages.RDBStorage:
    """Opens a storage whose tables others may be making at this moment.

    Optuna looks for a table and then makes it; of two that do so at once one fails. Each time
    round finds more of them made, so that it ends.
    """
    import sqlalchemy

    for _ in range(MAX_MEETINGS):
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=engine_kwargs)
        except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError):
            pass
        except sqlalchemy.exc.OperationalError as err:
            if "already exists" not in str(err):
                raise
    return optuna.storages.RDBStorage(url, engine_kwargs=engine_kwargs)


def has_storage(url: str) -> bool:
    """Tells whether there is a database to open; of a server's that is taken for granted."""
    import sqlalchemy

    if not url.startswith("sqlite"):
        return True
    return Path(sqlalchemy.engine.make_url(url).database or "").is_file()
