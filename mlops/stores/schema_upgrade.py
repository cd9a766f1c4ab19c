"""Brings a database that another part keeps (MLflow, Optuna) to the schema of what is installed.

On PostgreSQL a part's own migration is one transaction. On SQLite it is many, and it cannot go on
from the middle. So there it is done on a copy, while nobody else may open the database, and the
result is put back by SQLite's own backup, in one transaction. Killed before that, the database is
as it was, beside a copy `*.upgrading` that the next try makes anew; killed in it, whoever opens the
database next takes the half back, by SQLite's journal.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mlops.errors import MlopsError, first_line
from mlops.stores.database_check import open_to_read, read_revisions

LOCK_S = 5.0
"""How long a database may be in use by others before that is said."""
CHATTER = ("alembic", "mlflow.store.db.utils")
COPY = ".upgrading"
SIDE_FILES = ("", "-journal", "-wal", "-shm")


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of one part in one database.

    Attributes:
        what: What they hold, in plain words.
        url: SQLAlchemy's; may hold a password.
        setting: The variable that names it.
        revisions: Folder of the migrations (Alembic's) of the version that is installed.
        version_table: Where Alembic notes the revision.
        make: Makes the tables at a URL; goes on where it was killed.
        migrate: Brings older tables at a URL to the newest revision.
    """

    what: str
    url: str
    setting: str
    revisions: Path
    version_table: str
    make: Callable[[str], None]
    migrate: Callable[[str], None]

    def upgrade(self) -> str:
        """Brings the tables up to date, or makes them; returns what was done.

        Raises:
            MlopsError: others use the database, a newer version wrote it, or it does not answer.
        """
        known, newest = read_revisions(self.revisions)
        with self._translated():
            found = read_revision(self.url, self.version_table)
            if found == newest:
                return "up to date"
            if found is not None and found not in known:
                raise MlopsError(
                    f"the database of {self.what} was written by a newer version; expected schema "
                    f"{newest}, got {found}. Install the version of Podium that wrote it."
                )
            change = self.make if found is None else self.migrate
            file = find_file(self.url)
            with _hushed():
                if file is not None and file.is_file():
                    _change_copy(file, change)
                else:
                    change(self.url)
            reached = read_revision(self.url, self.version_table)
        if reached != newest:
            raise MlopsError(
                f"the database of {self.what} is of schema {reached} after its upgrade; expected "
                f"{newest}. Put the backup back, and ask those who made that part."
            )
        return f"made, schema {newest}" if found is None else f"schema {found} -> {newest}"

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except MlopsError:
            raise
        except (SQLAlchemyError, sqlite3.Error, OSError) as err:
            said = first_line(getattr(err, "orig", None) or err)
            raise MlopsError(
                f"the database of {self.what} was not upgraded: {said}. It is as it was; look at "
                f"{self.setting}, and type the same command again."
            ) from err
        except ImportError as err:
            raise MlopsError(
                f"the database of {self.what} was not upgraded: a package is missing "
                f"({first_line(err)}). Type: python -m pip install 'podium-mlops[team]'"
            ) from err


def find_file(url: str) -> Path | None:
    """Returns the file of an SQLite database; None of one on a server."""
    import sqlalchemy

    parts = sqlalchemy.engine.make_url(url)
    return Path(parts.database or "") if parts.get_backend_name() == "sqlite" else None


def read_revision(url: str, version_table: str) -> str | None:
    """Returns the schema's revision; None where no table says one."""
    import sqlalchemy

    file = find_file(url)
    if file is not None and not file.is_file():
        return None
    with open_to_read(url) as connection:
        if not sqlalchemy.inspect(connection).has_table(version_table):
            return None
        found = connection.exec_driver_sql(f"SELECT version_num FROM {version_table}").scalar()
    return None if found is None else str(found)


def find_sessions(url: str) -> list[str]:
    """Returns who else is connected to a PostgreSQL database, a few words each; [] of SQLite."""
    from sqlalchemy.exc import SQLAlchemyError

    if find_file(url) is not None:
        return []
    # Of other logins' sessions a plain login sees little more than whose they are.
    query = (
        "SELECT usename, application_name, client_addr, pid, datname FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid() AND usesysid IS NOT NULL "
        "AND coalesce(backend_type, 'client backend') = 'client backend' ORDER BY pid"
    )
    try:
        with open_to_read(url) as connection:
            if connection.dialect.name != "postgresql":
                return []
            return [_in_words(*row) for row in connection.exec_driver_sql(query)]
    except (SQLAlchemyError, ImportError) as err:
        raise MlopsError(
            f"who uses a database cannot be asked: {first_line(getattr(err, 'orig', err))}. See "
            "whether its server runs."
        ) from err


def _in_words(user: str, program: str, address: object, pid: int, database: str) -> str:
    named = f" ({program})" if program else ""
    place = f" from {address}" if address else ""
    return f"a session of {user}{named}{place} in the database {database}, pid {pid}"


@contextlib.contextmanager
def held_alone(file: Path) -> Iterator[sqlite3.Connection]:
    """Opens an SQLite database that nobody else can open, to read either, while the block runs.

    Raises:
        MlopsError: others have it open.
    """
    with contextlib.closing(
        sqlite3.connect(file, timeout=LOCK_S, isolation_level=None)
    ) as connection:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # the lock outlives its transaction
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as err:
            raise MlopsError(
                f"{str(file)!r} is in use ({err}). End what uses it; which process that is, says: "
                f"fuser {file}"
            ) from err
        connection.execute("COMMIT")
        yield connection


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keeps what the parts say of each of their steps to itself; errors are raised all the same."""
    root, nowhere = logging.getLogger(), logging.NullHandler()
    levels = {name: logging.getLogger(name).level for name in CHATTER}
    root.addHandler(nowhere)  # Optuna's migrations set up logging where there is no handler
    for name in CHATTER:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeHandler(nowhere)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _change_copy(file: Path, change: Callable[[str], None]) -> None:
    copy = file.with_name(file.name + COPY)
    with held_alone(file) as original:
        _remove(copy)
        try:
            with contextlib.closing(sqlite3.connect(copy)) as beside:
                original.backup(beside)
            change(f"sqlite:///{copy}")
            with contextlib.closing(sqlite3.connect(copy)) as beside:
                beside.backup(original)
        finally:
            _remove(copy)


def _remove(file: Path) -> None:
    for suffix in SIDE_FILES:
        file.with_name(file.name + suffix).unlink(missing_ok=True)
