"""The ledger: what was decided and moved, when and by whom, in one append-only chain of events.

In SQLite everything is one user's, who can also take the triggers away: tampering is detected. In
PostgreSQL programs log in as a role that may SELECT and INSERT only, and the database itself
refuses an event that is not written under the session's own login: tampering is prevented.

A crash leaves an event whole or not at all; an append that raised because the connection broke may
have been written. Programs import this module after parsing, since it imports SQLAlchemy.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from mlops.errors import MlopsError, UsageError, first_line
from mlops.lease import try_lock
from mlops.stores.database_check import read_revisions
from registry.events import COLUMNS, Actor, Event, Kind, find_breaks, with_hash

__all__ = [
    "Actor",
    "Event",
    "Kind",
    "LeaseHeldError",
    "Ledger",
    "NoLedgerError",
    "open_ledger",
    "os_user",
]

MIGRATIONS = Path(__file__).with_name("migrations")
VERSION_TABLE = "ledger_version"
"""Its own, since Alembic's usual one may be MLflow's or Optuna's in the same database."""
WAIT_S = 60
"""How long an append waits for the others'. One takes milliseconds."""
CONNECT_S = 10
NAMELESS_S = 5.0
"""How long who finds a lease taken waits for its holder's name, on a machine that is busy."""
LARGEST_STEP = timedelta(hours=2)
"""By so much a clock may be set back, and events still be dated one after another."""
DRIVERS = ("sqlite", "sqlite+pysqlite", "postgresql", "postgresql+psycopg")

EVENTS = sa.table("ledger_events", *map(sa.column, COLUMNS))


class LeaseHeldError(MlopsError):
    """Somebody else is changing the model right now."""


class NoLedgerError(MlopsError):
    """There is no ledger where the setting says."""


def os_user() -> str:
    """Returns the user of this machine whose process this is, whatever the environment says."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user may have no name
        return str(os.getuid())


class Ledger:
    """An open ledger; safe to use from many threads and processes at once."""

    def __init__(self, engine: sa.Engine, clock: Callable[[], datetime]) -> None:
        self._engine = engine
        self._clock = clock

    def append(
        self, kind: Kind, name: str, version: int | None, actor: Actor, body: dict[str, Any]
    ) -> Event:
        """Writes an event behind the newest, and returns it as it is stored.

        Args:
            kind: What happened.
            name: The model.
            version: The release that it is about, if any.
            actor: Who did it.
            body: Plain JSON values; NaN and infinity become null.

        Raises:
            MlopsError: it was not written, or the connection broke before that was certain.
        """
        plain = json.loads(json.dumps(body), parse_constant=lambda _: None)
        with _translated("written"), _writing(self._engine) as connection:
            newest = _find_newest(connection)
            now = self._clock().astimezone(UTC)
            event = with_hash(
                Event(
                    seq=1 if newest is None else newest.seq + 1,
                    kind=kind,
                    name=name,
                    version=version,
                    actor=actor,
                    created_at=_date(now, newest),
                    body=plain,
                    login=_find_login(connection) or os_user(),
                    previous="" if newest is None else newest.hash,
                )
            )
            Event.from_row(event.to_row())  # what could not be read again is not written
            connection.execute(EVENTS.insert().values(event.to_row()))
        return event

    def events(self, name: str | None = None) -> list[Event]:
        """Returns the events of a model, or of all, oldest first; the chain is not checked.

        Raises:
            MlopsError: the database cannot be read, or an event in it was changed so.
        """
        with _translated("read"):
            return [Event.from_row(row) for row in self._rows(name)]

    def head(self) -> str | None:
        """Returns the hash of the newest event; None where nothing happened yet."""
        with _translated("read"), self._engine.connect() as connection:
            newest = _find_newest(connection)
        return None if newest is None else newest.hash

    def check(self) -> list[str]:
        """Returns one sentence for each break of the chain; none is good."""
        with _translated("read"):
            return find_breaks(self._rows())

    def login(self) -> str | None:
        """Returns the login that PostgreSQL authenticated; None for SQLite, which knows none."""
        with _translated("read"), self._engine.connect() as connection:
            return _find_login(connection)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keeps others from appending while the block runs; they wait a minute at most.

        Raises:
            MlopsError: others kept this from it for that long.
        """
        with ExitStack() as held:
            with _translated("held"):
                held.enter_context(_writing(self._engine))
            yield

    @contextmanager
    def lease(self, name: str, holder: str) -> Iterator[None]:
        """Keeps a model from being changed by others as long as the block runs.

        The kernel or the database drops the lease with its holder, a killed one's too.

        Args:
            name: The model.
            holder: What the others are told, as in "ada (promote, pid 4711 on host x)";
                PostgreSQL keeps 63 bytes of it.

        Raises:
            LeaseHeldError: at once, where somebody else has it; names the holder.
        """
        take = _lock_file if self._engine.dialect.name == "sqlite" else _lock_in_database
        with _translated("locked"):
            release = take(self._engine, name, holder)
        try:
            yield
        finally:
            release()

    def _rows(self, name: str | None = None) -> list[dict[str, Any]]:
        query = sa.select(EVENTS).order_by(EVENTS.c.seq)
        if name is not None:
            query = query.where(EVENTS.c.name == name)
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]


@contextmanager
def open_ledger(
    url: str, *, make: bool = True, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> Iterator[Ledger]:
    """Opens the ledger; where it is there, with SELECT alone.

    Args:
        url: SQLAlchemy's, of SQLite or PostgreSQL.
        make: Whether a ledger that is not there is made, and an older one brought up to date. Only
            these two need the rights of who owns the tables.
        clock: Gives the time of an event, aware.

    Raises:
        NoLedgerError: there is none, and none is to be made.
        UsageError: the URL names no ledger that is kept.
        MlopsError: the database does not answer, or a newer Podium wrote it.
    """
    engine = _create_engine(url)
    file = Path(engine.url.database or "") if engine.dialect.name == "sqlite" else None
    if file is not None and not file.is_file():
        if not make:
            raise _no_ledger(f"at {str(file)!r}")
        with _translated("made"):
            file.absolute().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _translated("opened"):
        _bring_up_to_date(engine, make)
    yield Ledger(engine, clock)


def _create_engine(url: str) -> sa.Engine:
    """Returns an engine that connects anew for each use: no connection grows old unseen."""
    try:
        where = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError) as err:
        raise UsageError(
            "MLOPS_LEDGER_URL is no URL of a database; expected sqlite:///FILE or "
            "postgresql+psycopg://USER@HOST/DATABASE."
        ) from err
    file = where.database or ""
    sqlite = where.get_backend_name() == "sqlite"
    in_memory = sqlite and (not file or file.startswith((":", "file:")))
    if where.drivername not in DRIVERS or in_memory:
        raise UsageError(
            "MLOPS_LEDGER_URL names no ledger that is kept; expected sqlite:///FILE or "
            f"postgresql+psycopg://USER@HOST/DATABASE, got {where.drivername}:// {file!r}."
        )
    with _translated("opened"):
        if sqlite:
            engine = sa.create_engine(
                where, poolclass=sa.NullPool, connect_args={"timeout": WAIT_S}
            )
            _begin_ourselves(engine)
            return engine
        return sa.create_engine(
            where,
            poolclass=sa.NullPool,
            # Any higher, and who waited for the lock would read the chain as it was before.
            isolation_level="READ COMMITTED",
            connect_args={"connect_timeout": CONNECT_S},
        )


def _begin_ourselves(engine: sa.Engine) -> None:
    """Takes BEGIN over from Python's driver, which begins too late to keep others out."""

    @sa.event.listens_for(engine, "connect")
    def _leave_it(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _bring_up_to_date(engine: sa.Engine, make: bool) -> None:
    known, newest = read_revisions(MIGRATIONS / "versions")
    with engine.connect() as connection:
        found = _find_revision(connection)
    if found == newest:
        return
    if found is not None and found not in known:
        raise MlopsError(
            f"the ledger was written by a newer Podium; expected schema {newest}, got {found!r}. "
            "Install the version of Podium that wrote it."
        )
    if not make:
        if found is None:
            raise _no_ledger("in this database")
        raise MlopsError(
            f"the ledger is of an older Podium; expected schema {newest}, got {found!r}. The next "
            "promotion brings it up to date."
        )
    with _writing(engine) as connection:
        if _find_revision(connection) != newest:  # others may have waited for the same
            _migrate(connection)


def _no_ledger(where: str) -> NoLedgerError:
    return NoLedgerError(
        f"there is no ledger {where}. Nothing was decided yet, or MLOPS_LEDGER_URL must name "
        "another place."
    )


def _find_revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    found = connection.scalar(sa.text(f"SELECT version_num FROM {VERSION_TABLE}"))
    return None if found is None else str(found)


def _migrate(connection: sa.Connection) -> None:
    """Both databases make tables in a transaction: killed here, nothing was made."""
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection, "version_table": VERSION_TABLE})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    command.upgrade(config, "head")


@contextmanager
def _writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Gives a transaction that no other writer runs beside; it is whole or it never was."""
    with (
        engine.connect().execution_options(writes=True) as connection,
        connection.begin(),
    ):
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.set_config("lock_timeout", f"{WAIT_S}s", True)))
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_lock_key("append"))))
        yield connection


def _find_newest(connection: sa.Connection) -> Event | None:
    query = sa.select(EVENTS).order_by(EVENTS.c.seq.desc()).limit(1)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else Event.from_row(dict(row))


def _date(now: datetime, newest: Event | None) -> datetime:
    """Returns when an event happened: not before the newest, unless that one's clock was ahead.

    A clock that was years ahead once must not date all that comes after it.
    """
    if newest is None or newest.created_at - now > LARGEST_STEP:
        return now
    return max(now, newest.created_at)


def _find_login(connection: sa.Connection) -> str | None:
    if connection.dialect.name == "sqlite":
        return None
    return str(connection.scalar(sa.text("SELECT session_user")))


def _lock_file(engine: sa.Engine, name: str, holder: str) -> Callable[[], None]:
    """Locks a file beside the database; it stays there, since to delete it would race."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    database = Path(engine.url.database or "").resolve()  # under one name, whatever links there are
    path = Path(f"{database}.{digest}.lease")
    deadline = time.monotonic() + NAMELESS_S
    while (fd := try_lock(path)) is None:
        # Nameless for a moment: it has just taken the lock, or is just giving it back.
        said = path.read_text("utf-8", errors="replace")
        if said or time.monotonic() > deadline:
            raise _held(name, said or "another process")
        time.sleep(0.01)
    os.ftruncate(fd, 0)
    os.write(fd, holder.encode())

    def release() -> None:
        os.ftruncate(fd, 0)
        os.close(fd)

    return release


def _lock_in_database(engine: sa.Engine, name: str, holder: str) -> Callable[[], None]:
    """Takes an advisory lock on a connection of its own, named so that the others see whose."""
    key = _lock_key(f"lease {name}")
    connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    try:
        connection.execute(sa.select(sa.func.set_config("application_name", holder, False)))
        if not connection.scalar(sa.select(sa.func.pg_try_advisory_lock(key))):
            raise _held(name, connection.scalar(HOLDER, {"key": key}) or "another session")
    except BaseException:
        connection.close()
        raise
    return connection.close


HOLDER = sa.text(
    "SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid) "
    "WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND datname = current_database() "
    "AND ((CAST(classid AS bigint) << 32) | CAST(objid AS bigint)) = :key"
)


def _held(name: str, holder: str) -> LeaseHeldError:
    return LeaseHeldError(f"{name} is being changed by {holder}. Try again when that is done.")


def _lock_key(what: str) -> int:
    """Returns the 64 bits, signed, that name an advisory lock in the whole database."""
    digest = hashlib.sha256(f"podium ledger {what}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


@contextmanager
def _translated(done: str) -> Iterator[None]:
    """Turns the database's errors into one of ours. `done` is what was not done to the ledger."""
    try:
        yield
    except sa.exc.SQLAlchemyError as err:
        said = first_line(getattr(err, "orig", None) or err)
        raise MlopsError(
            f"the ledger was not {done}: {said}. Look at MLOPS_LEDGER_URL, whether its database "
            "answers, and what its login may do."
        ) from err
    except (OSError, ValueError) as err:  # a ValueError: an event that was changed
        raise MlopsError(f"the ledger was not {done}: {err}.") from err
    except ImportError as err:
        raise MlopsError(
            f"the ledger was not {done}: its driver is missing ({first_line(err)}). "
            "Type: python -m pip install 'psycopg[binary]'"
        ) from err
