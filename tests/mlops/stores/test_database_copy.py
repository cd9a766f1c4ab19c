"""Rows that go from SQLite to PostgreSQL and back, types and all."""

from __future__ import annotations

import math
import sqlite3
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from mlops.errors import MlopsError
from mlops.stores.backup_record import RESTORING, Restoring
from mlops.stores.database_copy import ROWS, Restore, copy_file, copy_in, copy_out, find_damage
from mlops.stores.schema_upgrade import Schema
from mlops.stores.store import Steps
from tests.database_server import execute, in_database, make_database, serve_postgresql

METADATA = sa.MetaData()
VERSION = sa.Table("version", METADATA, sa.Column("version_num", sa.String(32)))
OWNERS = sa.Table(
    "owners",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.Enum("person", "team", name="owner_kind")),
)
THINGS = sa.Table(
    "a_things",  # before the owners by name, and after them by what it refers to
    METADATA,
    sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
    sa.Column("owner", sa.ForeignKey("owners.id")),
    sa.Column("real", sa.Float(53)),
    sa.Column("opposite", sa.Float(53), sa.Computed("-real")),
    sa.Column("is_nan", sa.Boolean),
    sa.Column("day", sa.Date),
    sa.Column("at", sa.DateTime),
    sa.Column("bytes", sa.LargeBinary),
    sa.Column("text", sa.Text),
    sa.Column("json", sa.JSON),
)
EVENTS = sa.Table(
    "events",
    METADATA,
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("login", sa.Text),
)
GUARD = (
    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'append only'; END $$",
    "CREATE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE ON events "
    "FOR EACH STATEMENT EXECUTE FUNCTION refuse()",
)
ROWS_OF_THINGS: list[dict[str, Any]] = [
    {"id": 3, "owner": 7, "real": 0.1 + 0.2, "is_nan": False, "text": "plain", "json": {"a": [1]}},
    {"id": 4, "owner": 7, "real": math.inf, "is_nan": True, "text": "ä 漢 \U0001f600\n'\"\\%s :x"},
    {"id": 5, "owner": None, "real": -math.inf, "is_nan": None, "text": "", "json": sa.JSON.NULL},
    {"id": 6, "real": 5e-324, "day": date(2024, 2, 29), "bytes": bytes(range(256))},
    {"id": 2**53 + 1, "real": 1.7976931348623157e308, "at": datetime(2026, 1, 2, 3, 4, 5, 678901)},
    {"id": 9, "real": -0.0, "at": datetime(1999, 12, 31), "bytes": b"", "json": "text: 'x'"},
]
COLUMNS = [column.name for column in THINGS.columns]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serve_postgresql() as url:
        yield url


def schema(url: str, folder: Path, revision: str = "r1") -> Schema:
    """A part with its migrations in a folder; they make the tables above."""
    (folder / "versions").mkdir(exist_ok=True)
    (folder / "versions" / "one.py").write_text('revision = "r1"\ndown_revision = None\n')

    def make(where: str) -> None:
        engine = sa.create_engine(where, poolclass=sa.NullPool)
        METADATA.create_all(engine)
        with engine.begin() as connection:
            if connection.scalar(sa.select(VERSION.c.version_num)) is None:
                connection.execute(VERSION.insert(), {"version_num": revision})
                if connection.dialect.name == "postgresql":
                    for statement in GUARD:
                        connection.exec_driver_sql(statement)

    return Schema("things", url, "MLOPS_THINGS", folder / "versions", "version", make, make)


def run(steps: Steps) -> None:
    for _ in steps:
        pass


def restore_to(home: Path, *, repeated: bool = False) -> Restore:
    return Restore(home, "d1e5", "python -m pip install podium==7", repeated)


def fill(file: Path, folder: Path) -> Schema:
    part = schema(f"sqlite:///{file}", folder)
    part.make(part.url)
    engine = sa.create_engine(part.url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(
            OWNERS.insert(), [{"id": 7, "kind": "team"}, {"id": 2, "kind": "person"}]
        )
        for row in ROWS_OF_THINGS:
            connection.execute(THINGS.insert(), row)
        connection.execute(EVENTS.insert(), [{"seq": 2, "login": "b"}, {"seq": 1, "login": "a"}])
    return part


def read(url: str) -> dict[str, list[Any]]:
    """All rows, with JSON as the text that stands there."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    found = {}
    with engine.connect() as connection:
        for table in METADATA.sorted_tables:
            columns = [
                sa.cast(one, sa.Text) if isinstance(one.type, sa.JSON) else one
                for one in table.columns
            ]
            rows = connection.execute(sa.select(*columns).order_by(table.columns[0]))
            found[table.name] = [tuple(row) for row in rows]
    return found


def test_rows_are_equal_after_sqlite_to_postgresql_to_sqlite(server: str, tmp_path: Path) -> None:
    source = fill(tmp_path / "source.db", tmp_path)
    before = read(source.url)
    there = schema(make_database(server, "round"), tmp_path)
    run(copy_in(tmp_path / "source.db", there, restore_to(tmp_path)))
    assert read(there.url) == before
    run(copy_out(there, tmp_path / "back.db"))
    assert read(f"sqlite:///{tmp_path / 'back.db'}") == before
    (nulls,) = [row for row in before["a_things"] if row[0] == 5]
    (absent,) = [row for row in before["a_things"] if row[0] == 6]
    assert (nulls[-1], absent[-1]) == ("null", None)  # JSON's null is not the same as no value
    assert find_damage(tmp_path / "back.db") is None
    assert not list(tmp_path.glob("*.db-*"))


def test_numbers_go_on_behind_those_that_came_and_triggers_guard_again(
    server: str, tmp_path: Path
) -> None:
    fill(tmp_path / "source.db", tmp_path)
    there = schema(make_database(server, "numbers"), tmp_path)
    run(copy_in(tmp_path / "source.db", there, restore_to(tmp_path)))
    assert execute(there.url, "INSERT INTO owners (kind) VALUES ('team') RETURNING id") == 8
    query = "INSERT INTO a_things (text) VALUES ('x') RETURNING id"
    assert execute(there.url, query) == 2**53 + 2
    with pytest.raises(sa.exc.DBAPIError, match="append only"):
        execute(there.url, "INSERT INTO events VALUES (3, 'mallory')")


def test_nan_of_postgresql_is_no_value_in_sqlite(server: str, tmp_path: Path) -> None:
    there = schema(make_database(server, "nan"), tmp_path)
    there.make(there.url)
    execute(there.url, "INSERT INTO a_things (id, \"real\") VALUES (1, 'NaN'), (2, '-Infinity')")
    run(copy_out(there, tmp_path / "out.db"))
    rows = read(f"sqlite:///{tmp_path / 'out.db'}")["a_things"]
    assert [row[COLUMNS.index("real")] for row in rows] == [None, -math.inf]


def test_a_copy_of_postgresql_is_of_the_moment_of_its_first_step(
    server: str, tmp_path: Path
) -> None:
    there = schema(make_database(server, "moment"), tmp_path)
    there.make(there.url)
    execute(there.url, "INSERT INTO owners VALUES (1, 'team')")
    steps = copy_out(there, tmp_path / "out.db")
    next(steps)
    execute(there.url, "INSERT INTO owners VALUES (2, 'team')", "DELETE FROM owners WHERE id = 1")
    run(steps)
    assert read(f"sqlite:///{tmp_path / 'out.db'}")["owners"] == [(1, "team")]


def test_a_copy_of_sqlite_is_whole_while_others_write(tmp_path: Path) -> None:
    """Each transaction writes a pair; a copy with half of one would be of two moments."""
    file = tmp_path / "busy.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE pairs (n INTEGER, filling BLOB)")
    stop = threading.Event()

    def write() -> None:
        with closing(sqlite3.connect(file, timeout=60)) as connection:
            n = 0
            while not stop.is_set():
                with connection:
                    for _ in range(2):
                        connection.execute("INSERT INTO pairs VALUES (?, zeroblob(5000))", (n,))
                n += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for n in range(20):
            copy_file(file, tmp_path / f"copy{n}.db")
    finally:
        stop.set()
        writer.join()
    for n in range(20):
        with closing(sqlite3.connect(tmp_path / f"copy{n}.db")) as connection:
            counts = "SELECT count(*), count(DISTINCT n) FROM pairs"
            rows, pairs = connection.execute(counts).fetchone()
            assert rows == 2 * pairs
    assert not list(tmp_path.glob("copy*.db-*"))


def test_memory_does_not_grow_with_the_number_of_rows(server: str, tmp_path: Path) -> None:
    there = schema(make_database(server, "large"), tmp_path)
    there.make(there.url)
    n_rows = 25 * ROWS
    execute(
        there.url,
        f"INSERT INTO a_things (text) SELECT repeat('x', 1000) FROM generate_series(1, {n_rows})",
    )
    tracemalloc.start()
    try:
        run(copy_out(there, tmp_path / "out.db"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 25e6  # the rows are 50 MB
    assert len(read(f"sqlite:///{tmp_path / 'out.db'}")["a_things"]) == n_rows


def test_a_database_that_holds_rows_or_is_there_is_refused(server: str, tmp_path: Path) -> None:
    source = fill(tmp_path / "source.db", tmp_path)
    there = schema(make_database(server, "full"), tmp_path)
    there.make(there.url)
    with pytest.raises(StopIteration):  # nothing to copy, and nothing is asked
        next(copy_in(tmp_path / "absent.db", there, restore_to(tmp_path)))
    execute(there.url, "INSERT INTO owners VALUES (1, 'team')")
    with pytest.raises(MlopsError, match="holds something already: rows in 'owners'"):
        next(copy_in(tmp_path / "source.db", there, restore_to(tmp_path)))
    next(copy_in(tmp_path / "source.db", there, restore_to(tmp_path), {"owners": "id <> 1"}))
    with pytest.raises(MlopsError, match=r"there are things at '.*source\.db' already"):
        next(copy_in(tmp_path / "source.db", source, restore_to(tmp_path)))


def test_what_a_killed_restore_brought_is_known_again(server: str, tmp_path: Path) -> None:
    fill(tmp_path / "source.db", tmp_path)
    home = tmp_path / "home"
    Restoring("d1e5", "backup").write(home)
    for part in (
        schema(make_database(server, "again"), tmp_path),
        schema(f"sqlite:///{home / 'things.db'}", tmp_path),
    ):
        run(copy_in(tmp_path / "source.db", part, restore_to(home)))
        execute(part.url, "INSERT INTO owners VALUES (8, 'team')")  # since then, by somebody
        run(copy_in(tmp_path / "source.db", part, restore_to(home, repeated=True)))
        assert (8, "team") in read(part.url)["owners"]
    (home / RESTORING).unlink()
    for part in (
        schema(in_database(server, database="again"), tmp_path),
        schema(f"sqlite:///{home / 'things.db'}", tmp_path),
    ):
        with pytest.raises(MlopsError, match="already"):
            run(copy_in(tmp_path / "source.db", part, restore_to(home)))


def test_another_revision_is_refused_with_what_to_install(server: str, tmp_path: Path) -> None:
    fill(tmp_path / "source.db", tmp_path)
    with closing(sqlite3.connect(tmp_path / "source.db")) as connection, connection:
        connection.execute("UPDATE version SET version_num = 'r0'")
    new = schema(f"sqlite:///{tmp_path / 'new.db'}", tmp_path)
    with pytest.raises(MlopsError, match=r"schema r1, got r0.*pip install podium==7"):
        next(copy_in(tmp_path / "source.db", new, restore_to(tmp_path)))
    there = schema(make_database(server, "old"), tmp_path, "r0")
    there.make(there.url)
    with pytest.raises(MlopsError, match=r"schema r1, got r0\. Type: python -m mlops\.upgrade"):
        next(copy_out(there, tmp_path / "out.db"))


def test_a_database_that_is_made_between_the_steps_fails_the_copy(
    server: str, tmp_path: Path
) -> None:
    for part in (
        schema(make_database(server, "late"), tmp_path),
        schema(f"sqlite:///{tmp_path / 'late.db'}", tmp_path),
    ):
        run(copy_out(part, tmp_path / "out.db"))
        assert not (tmp_path / "out.db").exists()
        steps = copy_out(part, tmp_path / "out.db")
        next(steps)
        part.make(part.url)
        with pytest.raises(MlopsError, match="was made while the backup began"):
            run(steps)


def test_a_server_that_is_not_there_is_said_without_a_password(tmp_path: Path) -> None:
    part = schema("postgresql+psycopg://ada:secret@127.0.0.1:1/things", tmp_path)
    with pytest.raises(MlopsError, match="could not be copied") as said:
        next(copy_out(part, tmp_path / "out.db"))
    assert "secret" not in str(said.value)
    other = schema("mysql+pymysql://ada:secret@127.0.0.1:1/things", tmp_path)
    with pytest.raises(MlopsError, match="expected sqlite:///FILE or postgresql") as said:
        next(copy_out(other, tmp_path / "out.db"))
    assert "secret" not in str(said.value)
