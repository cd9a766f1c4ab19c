"""Copies databases between SQLite and PostgreSQL: whole, as of one moment, in bounded memory.

A backup holds SQLite files, whatever it is a backup of. SQLite is copied page by page by SQLite
itself. Between SQLite and PostgreSQL rows are copied: the tables on the other side are made by the
migrations of the part that owns them, at the same revision, and each value is converted by the
types that both databases report of their own columns.

What SQLite cannot hold: NaN, which becomes NULL. MLflow and Optuna never write one; they keep a
flag or a type beside the number.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa

from mlops.errors import MlopsError, UsageError, first_line
from mlops.stores.backup_record import (
    WRITING,
    find_restoring,
    hash_record,
    is_restored,
    put_in_place,
    read_record,
)
from mlops.stores.database_check import open_to_read, read_revisions
from mlops.stores.schema_upgrade import Schema, find_file
from mlops.stores.store import Steps

ROWS = 2000
"""Rows that are in memory at a time."""
WAIT_S = 60.0
"""How long a database is waited for that somebody else has locked."""
CONNECT_S = 10

NONE_GIVEN: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Restore:
    """A restore that brings databases.

    Attributes:
        home: The home that is restored.
        backup: The digest of the backup.
        install: The command that installs what wrote the backup.
        repeated: Whether an earlier try was interrupted.
    """

    home: Path
    backup: str
    install: str
    repeated: bool

    @classmethod
    def of(cls, home: Path, backup: Path) -> Restore:
        repeated = find_restoring(home) is not None
        return cls(home, hash_record(backup), read_record(backup).install, repeated)

    @property
    def mark(self) -> str:
        """What a table of PostgreSQL says once all came."""
        return f"restored from backup {self.backup}"


Change = Callable[[sa.Connection], None]
"""What is changed in a copy before anybody sees it."""


def copy_out(schema: Schema, file: Path, change: Change = lambda _: None) -> Steps:
    """Copies the database of a schema to an SQLite file. One that is not there leaves no file.

    The first step fixes the moment: it copies SQLite, which takes seconds, and opens a snapshot of
    PostgreSQL, which the second step copies.

    Raises:
        MlopsError: it cannot be read, is of another version, or was made between the steps.
    """
    source = find_file(schema.url)
    if source is None:
        yield from _copy_server(schema, file, change)
    elif source.is_file():
        with _translated(schema):
            copy_file(source, file)
            with _writing(file) as connection:
                change(connection)
        yield
    else:
        yield
        if source.is_file():
            raise _made_meanwhile(schema)


def _copy_server(schema: Schema, file: Path, change: Change) -> Steps:
    _, newest = read_revisions(schema.revisions)
    with _translated(schema), _snapshot(schema.url) as source:
        revision = read_revision(source, schema.version_table)
        if revision not in (None, newest):
            raise MlopsError(
                f"the database of {schema.what} is of another version; expected schema {newest}, "
                f"got {revision}. Type: python -m mlops.upgrade"
            )
        yield
        if revision is None:
            with _snapshot(schema.url) as later:
                if read_revision(later, schema.version_table) is not None:
                    raise _made_meanwhile(schema)
            return
        file.touch()  # one that is there is filled as it is
        schema.make(f"sqlite:///{file}")
        with _writing(file) as target:
            copy_rows(source, target, schema)
            change(target)


def copy_in(
    file: Path,
    schema: Schema,
    restore: Restore,
    given: Mapping[str, str] = NONE_GIVEN,
    change: Change = lambda _: None,
) -> Steps:
    """Copies an SQLite file to where the database of a schema is to be; no file, no database.

    Killed on the way, it leaves no file, or a PostgreSQL database without a row: all rows come in
    one transaction. What it brought it knows again, by its inode or by a comment on a table.

    Args:
        given: Tables that have rows when they are new, each with the SQL condition that is true of
            rows that came later.

    Raises:
        MlopsError: the file is of another version, or there is something already.
    """
    if not file.is_file():
        return
    _, newest = read_revisions(schema.revisions)
    target = find_file(schema.url)
    with _translated(schema):
        with open_to_read(f"sqlite:///{file}") as connection:
            revision = read_revision(connection, schema.version_table)
        if revision != newest:
            raise MlopsError(
                f"the backup's {file.name} is of another version; expected schema {newest}, got "
                f"{revision}. Restore it with what wrote it, and upgrade then: {restore.install}"
            )
        if target is not None:
            is_there = is_restored(restore.home, target, schema.what)
        else:
            is_there = _holds_copy(schema, restore, given)
    if is_there:
        return
    yield
    with _translated(schema):
        if target is not None:
            _put_file(file, target, restore.home, change)
        else:
            _put_rows(file, schema, restore.mark, change)


def _put_file(file: Path, target: Path, home: Path, change: Change) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = target.with_name(f"{target.name}{WRITING}")
    for left in (beside, beside.with_name(f"{beside.name}-journal")):  # by one that was killed
        left.unlink(missing_ok=True)
    copy_file(file, beside)
    with _writing(beside) as connection:
        change(connection)
    with beside.open("rb") as written:
        os.fsync(written.fileno())
    put_in_place(home, beside, target)


def _put_rows(file: Path, schema: Schema, mark: str, change: Change) -> None:
    schema.make(schema.url)
    engine = open_engine(schema.url)
    with open_to_read(f"sqlite:///{file}") as source, engine.begin() as target:
        copy_rows(source, target, schema)
        change(target)
        noted = sa.Table(schema.version_table, sa.MetaData(), comment=mark)
        target.execute(sa.schema.SetTableComment(noted))


def _holds_copy(schema: Schema, restore: Restore, given: Mapping[str, str]) -> bool:
    """Tells whether a PostgreSQL database holds what this restore brought; refuses others' rows."""
    with _snapshot(schema.url) as connection:
        tables = _reflect(connection)
        noted = tables.tables.get(schema.version_table)
        if restore.repeated and noted is not None and noted.comment == restore.mark:
            return True
        for table in tables.sorted_tables:
            if table.name == schema.version_table:
                continue
            query = sa.select(sa.literal(1)).select_from(table).limit(1)
            if table.name in given:
                query = query.where(sa.text(given[table.name]))
            if connection.scalar(query) is not None:
                raise MlopsError(
                    f"the database of {schema.what} holds something already: rows in "
                    f"{table.name!r}. A restore goes only where nothing is: let {schema.setting} "
                    "name an empty database."
                )
    return False


def read_revision(connection: sa.Connection, version_table: str) -> str | None:
    """Returns the revision of a database's tables; None where there are none."""
    if not sa.inspect(connection).has_table(version_table):
        return None
    table = sa.table(version_table, sa.column("version_num"))
    found = connection.scalar(sa.select(table.c.version_num))
    return None if found is None else str(found)


def copy_file(source: Path, target: Path) -> None:
    """Copies an SQLite database as of one moment; its writers wait for that long.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    deadline = time.monotonic() + WAIT_S

    def watch(_: int, remaining: int, total: int) -> None:
        if remaining == total and time.monotonic() > deadline:
            raise sqlite3.OperationalError(f"database is locked for more than {WAIT_S:.0f} s")

    # Not mode=ro, which leaves the files of a write-ahead log behind.
    where = f"file:{quote(str(source))}?mode=rw"
    with (
        contextlib.closing(sqlite3.connect(where, uri=True, timeout=WAIT_S)) as reading,
        contextlib.closing(sqlite3.connect(target)) as writing,
    ):
        reading.backup(writing, progress=watch, sleep=0.1)
        # Else who only reads the copy would make files beside it.
        writing.execute("PRAGMA journal_mode = DELETE")


def find_damage(file: Path) -> str | None:
    """Returns what SQLite finds wrong in the pages of a file; None is good."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        try:
            said = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.Error as err:
            said = str(err)
    return None if said == "ok" else " ".join(str(said).split())


def copy_rows(source: sa.Connection, target: sa.Connection, schema: Schema) -> None:
    """Puts the rows of one database in the place of those of another, in the target's transaction.

    Raises:
        MlopsError: the tables are not the same.
    """
    origin, made = _reflect(source), _reflect(target)
    tables = [one for one in made.sorted_tables if one.name != schema.version_table]
    with _without_triggers(target, tables):
        for table in reversed(tables):
            target.execute(table.delete())
        for table in tables:  # what others refer to comes first
            _copy_table(source, target, origin, table)
    if target.dialect.name == "postgresql":
        for table in tables:
            _set_sequences(target, table)


def _copy_table(
    source: sa.Connection, target: sa.Connection, origin: sa.MetaData, table: sa.Table
) -> None:
    columns = [column for column in table.columns if column.computed is None]
    found = origin.tables.get(table.name)
    if found is None or any(column.name not in found.columns for column in columns):
        raise MlopsError(
            f"the table {table.name!r} is not the same on both sides, under the same revision. "
            "Compare the two databases: somebody changed one of them by hand."
        )
    names = [f"value_{place}" for place in range(len(columns))]
    insert = table.insert().values(
        {
            column.name: _as_written(column, name, target.dialect.name)
            for column, name in zip(columns, names, strict=True)
        }
    )
    query = sa.select(*[_as_read(found.columns[column.name]) for column in columns])
    key = list(found.primary_key.columns)
    if len(key) == 1:  # a chain is written in its order
        query = query.order_by(key[0])
    rows = source.execute(query.execution_options(yield_per=ROWS))
    for part in rows.partitions():
        target.execute(insert, [dict(zip(names, row, strict=True)) for row in part])


def _as_read(column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    """JSON is copied as the text that was written: null in it is not the same as no value."""
    return sa.cast(column, sa.Text()) if isinstance(column.type, sa.JSON) else column


def _as_written(column: sa.Column[Any], name: str, dialect: str) -> sa.ColumnElement[Any]:
    if not isinstance(column.type, sa.JSON):
        return sa.bindparam(name, type_=column.type)
    text = sa.bindparam(name, type_=sa.Text())
    return sa.cast(text, column.type) if dialect == "postgresql" else text


@contextlib.contextmanager
def _without_triggers(connection: sa.Connection, tables: list[sa.Table]) -> Iterator[None]:
    """Has PostgreSQL take rows as they were once written, which triggers refuse to anybody else.

    It ends with the transaction, whatever happens, and nobody else sees it.
    """
    names: list[str] = []
    if connection.dialect.name == "postgresql":
        query = sa.text(
            "SELECT DISTINCT c.relname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid "
            "JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE NOT t.tgisinternal AND n.nspname = current_schema()"
        )
        guarded = set(connection.scalars(query))
        quoted = connection.dialect.identifier_preparer.format_table
        names = [quoted(table) for table in tables if table.name in guarded]
    for name in names:
        connection.exec_driver_sql(f"ALTER TABLE {name} DISABLE TRIGGER USER")
    yield
    for name in names:
        connection.exec_driver_sql(f"ALTER TABLE {name} ENABLE TRIGGER USER")


def _set_sequences(connection: sa.Connection, table: sa.Table) -> None:
    """Lets the numbers that PostgreSQL gives go on behind those that were copied."""
    name = connection.dialect.identifier_preparer.format_table(table)
    for column in table.columns:
        if not isinstance(column.type, sa.Integer):
            continue
        sequence = connection.scalar(sa.select(sa.func.pg_get_serial_sequence(name, column.name)))
        highest = None if sequence is None else connection.scalar(sa.select(sa.func.max(column)))
        if highest is not None:
            connection.execute(sa.select(sa.func.setval(sequence, highest)))


def _reflect(connection: sa.Connection) -> sa.MetaData:
    metadata = sa.MetaData()
    metadata.reflect(connection)
    return metadata


def open_engine(url: str) -> sa.Engine:
    """Returns an engine that connects anew for each use, and waits for nobody for ever.

    Raises:
        UsageError: the URL is neither SQLite's nor PostgreSQL's.
    """
    where = sa.make_url(url)
    if where.get_backend_name() not in ("sqlite", "postgresql"):
        raise UsageError(
            "this program copies SQLite and PostgreSQL; expected sqlite:///FILE or "
            f"postgresql+psycopg://USER@HOST/DATABASE, got {where.drivername}."
        )
    limit = {"connect_timeout": CONNECT_S} if find_file(url) is None else {"timeout": WAIT_S}
    return sa.create_engine(url, poolclass=sa.NullPool, connect_args=limit)


@contextlib.contextmanager
def _snapshot(url: str) -> Iterator[sa.Connection]:
    """Gives what PostgreSQL holds at the first query, whatever is written meanwhile."""
    with open_engine(url).connect() as connection:
        yield connection.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )


@contextlib.contextmanager
def _writing(file: Path) -> Iterator[sa.Connection]:
    """Gives a transaction on a file that nobody else knows yet, and that is synced later."""
    with open_engine(f"sqlite:///{file}").connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode = DELETE")
        connection.exec_driver_sql("PRAGMA synchronous = OFF")
        connection.commit()
        with connection.begin():
            yield connection


def _made_meanwhile(schema: Schema) -> MlopsError:
    return MlopsError(
        f"the database of {schema.what} was made while the backup began, so the parts of it would "
        "not fit together. Type the same command again."
    )


@contextlib.contextmanager
def _translated(schema: Schema) -> Iterator[None]:
    try:
        yield
    except (sa.exc.SQLAlchemyError, sqlite3.Error) as err:
        said = first_line(getattr(err, "orig", None) or err).rstrip(".")
        raise MlopsError(
            f"the database of {schema.what} could not be copied: {said}. Look at "
            f"{schema.setting}, whether its database answers, and what its login may do."
        ) from err
    except ImportError as err:
        raise MlopsError(
            f"the database of {schema.what} could not be copied: its driver is missing "
            f"({first_line(err)}). Type: python -m pip install 'podium-mlops[postgresql]'"
        ) from err
