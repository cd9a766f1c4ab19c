"""Deletes rows so that their bytes go, too.

SQLite keeps deleted rows in pages that it may use again, and PostgreSQL keeps their versions.
`open_to_remove` has SQLite overwrite what it deletes; `compact` writes the database, or the tables
that were touched, anew. What stays beyond that is not the databases' to remove: blocks that a disk
gave to other files, PostgreSQL's write-ahead log until it is recycled, backups.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mlops.errors import MlopsError, first_line
from mlops.stores.schema_upgrade import find_file

if TYPE_CHECKING:
    import sqlalchemy

BUSY_S = 60
"""How long others may keep what is to be deleted."""
CONNECT_S = 10


@contextlib.contextmanager
def open_to_remove(url: str, setting: str) -> Iterator[sqlalchemy.Connection]:
    """Opens a database in one transaction, which overwrites what it deletes where it can.

    Raises:
        MlopsError: the database does not do it; nothing was changed.
    """
    import sqlalchemy

    file = find_file(url)
    if file is not None and not file.is_file():
        raise MlopsError(f"there is no database at {str(file)!r}; look at {setting}.")
    options = {"connect_timeout": CONNECT_S} if file is None else {"timeout": BUSY_S}
    with _translated(setting):
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=options)
        if file is not None:
            _set_pragmas(engine)
        with engine.begin() as connection:
            if file is None:
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{BUSY_S}s'")
            yield connection


def _set_pragmas(engine: sqlalchemy.Engine) -> None:
    import sqlalchemy

    @sqlalchemy.event.listens_for(engine, "connect")
    def _prepare(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("PRAGMA foreign_keys = ON")


def compact(url: str, tables: Iterable[str], setting: str) -> None:
    """Writes a database anew without what was deleted: SQLite's file, or tables of PostgreSQL.

    Raises:
        MlopsError: others keep it open, or the login does not own the tables.
    """
    file = find_file(url)
    with _translated(setting):
        if file is None:
            _compact_tables(url, tables)
        elif file.is_file():
            _compact_file(file)


def _compact_file(file: Path) -> None:
    with contextlib.closing(
        sqlite3.connect(file, timeout=BUSY_S, isolation_level=None)
    ) as connection:
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("VACUUM")
        # Of a write-ahead log the old pages stay until it is cut.
        busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise MlopsError(
            f"{str(file)!r} is in use, and its log holds what was deleted. End what uses it (which "
            f"process that is, says: fuser {file}), and type the same command again."
        )


def _compact_tables(url: str, tables: Iterable[str]) -> None:
    import sqlalchemy

    engine = sqlalchemy.create_engine(
        url,
        poolclass=sqlalchemy.NullPool,
        isolation_level="AUTOCOMMIT",  # VACUUM runs in no transaction
        connect_args={"connect_timeout": CONNECT_S},
    )
    with engine.connect() as connection:
        connection.exec_driver_sql(f"SET lock_timeout = '{BUSY_S}s'")
        there = set(sqlalchemy.inspect(connection).get_table_names())
        for table in sorted(there & set(tables)):
            # With ANALYZE, since statistics hold values of rows; the old ones go with their table.
            connection.exec_driver_sql(f'VACUUM (FULL, ANALYZE) "{table}"')
        with contextlib.suppress(sqlalchemy.exc.ProgrammingError):  # not the database's owner
            connection.exec_driver_sql("VACUUM (FULL) pg_catalog.pg_statistic")


@contextlib.contextmanager
def _translated(setting: str) -> Iterator[None]:
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, ImportError) as err:
        said = first_line(getattr(err, "orig", None) or err)
        raise MlopsError(
            f"a database did not delete what it was to: {said}. Look at {setting}, whether its "
            "database answers, and what its login may do; then type the same command again."
        ) from err
