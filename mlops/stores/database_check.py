"""Looks into a database that another part keeps, without changing it or waiting for it long."""

from __future__ import annotations

import contextlib
import re
import shlex
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops.errors import first_line
from mlops.program import command_line
from mlops.stores.store import Finding

if TYPE_CHECKING:
    import sqlalchemy

CONNECT_S = 3
LOCKED_S = 5
PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}
DRIVERS = {"postgresql": "psycopg[binary]", "mysql": "pymysql", "mariadb": "pymysql"}
UNREADABLE = "the database of {what} cannot be read"


@dataclass(frozen=True, slots=True)
class Database:
    """A database, and whose tables stand in it.

    Attributes:
        store: The area that findings belong to.
        what: What it holds, in plain words.
        url: SQLAlchemy's; may hold a password.
        setting: The variable that names it.
        revisions: Folder of the migrations (Alembic's) of the version that is installed.
        upgrade: The complete command that brings its tables to that version.
    """

    store: str
    what: str
    url: str
    setting: str
    revisions: Path
    upgrade: str

    @property
    def file(self) -> Path | None:
        """The file of an SQLite database; None of one on a server."""
        import sqlalchemy

        url = sqlalchemy.engine.make_url(self.url)
        return Path(url.database or "") if url.get_backend_name() == "sqlite" else None


def check_database(database: Database) -> list[Finding]:
    """Returns what keeps a database from being used: nothing if it can be read."""
    return [Finding(database.store, *wrong) for wrong in _all_wrong(database)][:1]


def _all_wrong(database: Database) -> Iterator[tuple[str, str]]:
    from sqlalchemy.exc import SQLAlchemyError

    unreadable = UNREADABLE.format(what=database.what)
    if database.file is None:
        yield from _unreachable(database, unreadable)
    try:
        with open_to_read(database.url) as connection:
            damage = _find_damage(connection)
            if damage is None:
                yield from _other_version(database, connection)
                return
    except ImportError as err:
        driver = DRIVERS.get(_backend(database.url), "")
        install = command_line("python", "-m", "pip", "install", driver)
        yield (f"{unreadable}: its driver is not installed ({first_line(err)}).", install)
        return
    except (SQLAlchemyError, ValueError) as err:
        damage = first_line(err)
        if not re.search("not a database|malformed|disk I/O", damage):
            yield (f"{unreadable}: {damage}.", _mend_closed(database, damage))
            return
    yield (f"the database of {database.what} is damaged: {damage}.", _salvage(database))


@contextlib.contextmanager
def open_to_read(url: str) -> Iterator[sqlalchemy.Connection]:
    """Opens a database to read, and makes none.

    Raises:
        ImportError: its driver is missing.
        sqlalchemy.exc.SQLAlchemyError: it cannot be opened.
    """
    import sqlalchemy

    backend = _backend(url)
    where: Any = url
    options: dict[str, Any] = {"connect_timeout": CONNECT_S}
    if backend == "sqlite":
        # Not mode=ro, which leaves the files of a write-ahead log behind.
        file = sqlalchemy.engine.make_url(url).database or ""
        where = f"sqlite:///file:{_as_uri(file)}?mode=rw&uri=true"
        options = {"timeout": LOCKED_S}
    engine = sqlalchemy.create_engine(where, poolclass=sqlalchemy.NullPool, connect_args=options)
    with engine.connect() as connection:
        if backend == "sqlite":
            connection.exec_driver_sql("PRAGMA query_only = ON")
        yield connection


def read_revisions(folder: Path) -> tuple[set[str], str | None]:
    """Returns the revisions that a folder of migrations knows, and the last of them.

    Read from the files' text: Alembic would import them, and with them MLflow, which takes 6 s.
    """
    known: set[str] = set()
    passed: set[str] = set()
    for path in folder.glob("*.py"):
        text = path.read_text("utf-8")
        known.update(re.findall(r'^revision\b[^=\n]*=\s*["\']([^"\']+)', text, re.MULTILINE))
        for line in re.findall(r"^down_revision\b[^=\n]*=(.*)$", text, re.MULTILINE):
            passed.update(re.findall(r'["\']([^"\']+)["\']', line))
    heads = known - passed
    return known, heads.pop() if len(heads) == 1 else None


def find_package(name: str) -> Path:
    """Returns the folder of a package without importing it."""
    spec = find_spec(name)
    places = None if spec is None else spec.submodule_search_locations
    return Path(next(iter(places or ["."])))


def _backend(url: str) -> str:
    return url.partition("://")[0].partition("+")[0]


def _as_uri(file: str) -> str:
    from urllib.parse import quote

    return quote(str(Path(file).absolute()))


def _unreachable(database: Database, unreadable: str) -> Iterator[tuple[str, str]]:
    """Asks for the port first: a driver may wait for minutes, and may not be installed."""
    import sqlalchemy

    url = sqlalchemy.engine.make_url(database.url)
    port = url.port or PORTS.get(url.get_backend_name())
    if not url.host or port is None:
        return
    try:
        socket.create_connection((url.host, port), timeout=CONNECT_S).close()
    except OSError as err:
        yield (
            f"{unreadable}: nothing answers at {url.host} port {port} within {CONNECT_S} s "
            f"({err.strerror or type(err).__name__}).",
            _mend_closed(database, ""),
        )


def _find_damage(connection: sqlalchemy.Connection) -> str | None:
    if connection.dialect.name != "sqlite":
        return None
    said = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
    return None if said == "ok" else " ".join(str(said).split())


def _other_version(
    database: Database, connection: sqlalchemy.Connection
) -> Iterator[tuple[str, str]]:
    import sqlalchemy

    known, head = read_revisions(database.revisions)
    if head is None or not sqlalchemy.inspect(connection).has_table("alembic_version"):
        return  # without tables: they are made on first use
    found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    if found in (None, head):
        return
    wrong = (
        f"the database of {database.what} is of another version; expected schema {head}, got "
        f"{found}."
    )
    if found in known:
        yield wrong, database.upgrade
    else:
        yield (
            wrong,
            "It was written by a newer version: install the version of Podium that wrote it.",
        )


def _mend_closed(database: Database, said: str) -> str:
    if database.file is not None:
        file = shlex.quote(str(database.file))
        if "locked" in said:
            return f"Wait for the process that holds it, or end it; which one says: fuser {file}"
        return f"See whether it may be read: ls -l {file}"
    return f"Start the database's server, or let {database.setting} name another."


def _salvage(database: Database) -> str:
    file = "" if database.file is None else str(database.file)
    old, new = shlex.quote(file), shlex.quote(f"{file}.salvaged")
    return (
        "End what uses it, and put a backup in its place. Without one, this saves what can be "
        f"read: sqlite3 {old} .recover | sqlite3 {new}"
    )
