"""The ledger on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from mlops.errors import MlopsError, UsageError
from mlops.lease import try_lock
from mlops.settings import Settings
from registry.events import COLUMNS, with_hash
from registry.ledger import (
    Actor,
    LeaseHeldError,
    Ledger,
    NoLedgerError,
    open_ledger,
    os_user,
)
from registry.ledger_store import LedgerStore
from tests.database_server import execute, in_database, serve_postgresql

ADA = Actor("ada", "tracking server")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL server's database."""
    with serve_postgresql() as url:
        yield url


def empty(url: str) -> str:
    """Empties the server's one database: to make another for each test takes far longer."""
    execute(
        url,
        "DROP SCHEMA public CASCADE",
        "CREATE SCHEMA public",
        "GRANT USAGE ON SCHEMA public TO PUBLIC",
    )
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for a ledger that is not there yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'home' / 'ledger.db'}"
    return empty(request.getfixturevalue("postgresql"))


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    with open_ledger(url) as opened:
        yield opened


def open_once(url: str, *, make: bool = True) -> None:
    with open_ledger(url, make=make):
        pass


def take(ledger: Ledger, name: str) -> None:
    with ledger.lease(name, "bob"):
        pass


def is_sqlite(url: str) -> bool:
    return url.startswith("sqlite")


def disarm(url: str) -> None:
    """Takes the triggers away, as who owns the tables can."""
    if is_sqlite(url):
        names = ("ledger_no_update", "ledger_no_delete", "ledger_chain")
        execute(url, *(f"DROP TRIGGER {name}" for name in names))
    else:
        execute(url, "ALTER TABLE ledger_events DISABLE TRIGGER ALL")


def test_an_event_comes_back_as_it_was_written(url: str, ledger: Ledger) -> None:
    assert (ledger.head(), ledger.events(), ledger.check()) == (None, [], [])
    body = {"gates": [{"name": "größe", "value": 0.1, "nan": float("nan")}], "dataset": None}
    first = ledger.append("rejected", "digits", None, ADA, body)
    moving = {"alias": "champion", "from": None, "to": 7, "move": "promote"}
    second = ledger.append("intent", "digits", 7, ADA, moving)
    ledger.append("hook", "other", None, ADA, {})
    assert first.body == {
        "gates": [{"name": "größe", "value": 0.1, "nan": None}],
        "dataset": None,
    }
    assert [first.seq, first.previous, second.seq, second.previous] == [1, "", 2, first.hash]
    with open_ledger(url, make=False) as again:
        assert again.events("digits") == [first, second]
        assert [event.seq for event in again.events()] == [1, 2, 3]
        assert again.head() == again.events()[-1].hash
        assert again.check() == []


def test_the_hash_can_be_computed_by_hand(ledger: Ledger) -> None:
    event = ledger.append("hook", "digits", 7, ADA, {"b": "ü", "a": [1, 2.5]})
    by_hand = (
        '{"actor":{"known_by":"tracking server","name":"ada"},"body":{"a":[1,2.5],"b":"\\u00fc"},'
        f'"created_at":"{event.created_at.isoformat(timespec="microseconds")}","kind":"hook",'
        f'"login":{json.dumps(event.login)},"name":"digits","previous":"","seq":1,"version":7}}'
    )
    assert event.hash == hashlib.sha256(by_hand.encode()).hexdigest()


def test_a_clock_set_back_does_not_turn_the_order_of_time(url: str) -> None:
    start = datetime(2026, 11, 23, 14, 3, tzinfo=UTC)
    times = iter([start, start - timedelta(hours=1), start + timedelta(microseconds=1)])
    with open_ledger(url, clock=lambda: next(times)) as ledger:
        events = [ledger.append("hook", "m", None, ADA, {}) for _ in range(3)]
    assert [event.created_at for event in events] == [
        start,
        start,
        start + timedelta(microseconds=1),
    ]


def test_a_clock_that_was_years_ahead_once_does_not_date_all_that_comes_after(url: str) -> None:
    now = datetime(2026, 11, 23, 14, 3, tzinfo=UTC)
    ahead = datetime(2099, 1, 1, tzinfo=UTC)
    times = iter([now, ahead, now + timedelta(minutes=1)])
    with open_ledger(url, clock=lambda: next(times)) as ledger:
        events = [ledger.append("hook", "m", None, ADA, {}) for _ in range(3)]
        assert [event.created_at for event in events] == [now, ahead, now + timedelta(minutes=1)]
        assert ledger.check() == ["event 3 is dated before event 2."]


def test_a_move_that_lacks_what_it_needs_is_not_written(ledger: Ledger) -> None:
    with pytest.raises(MlopsError, match="lacks what its kind has"):
        ledger.append("intent", "digits", 7, ADA, {"to": 7})
    assert ledger.events() == []


def test_who_wrote_it_is_the_database_login_or_the_user_of_the_machine(
    url: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "mallory")
    written = ledger.append("hook", "m", None, ADA, {}).login
    if is_sqlite(url):
        assert (ledger.login(), written) == (None, os_user())
        assert written != "mallory"
    else:
        assert ledger.login() == written == "postgres"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger_events SET body = '{}'",
        "DELETE FROM ledger_events",
        "INSERT INTO ledger_events SELECT seq, kind, name, version, actor, known_by, created_at, "
        "body, login, previous, hash FROM ledger_events",
        "INSERT INTO ledger_events SELECT 3, kind, name, version, actor, known_by, created_at, "
        "body, login, hash, hash FROM ledger_events",
        "INSERT INTO ledger_events SELECT 2, kind, name, version, actor, known_by, created_at, "
        "body, login, '', hash FROM ledger_events",
    ],
)
def test_the_database_refuses_to_change_what_was_written_or_to_fork_it(
    url: str, ledger: Ledger, statement: str
) -> None:
    ledger.append("hook", "m", None, ADA, {})
    with pytest.raises(sa.exc.DBAPIError, match=r"append-only|does not follow the newest"):
        execute(url, statement)
    assert len(ledger.events()) == 1
    assert ledger.check() == []


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("UPDATE ledger_events SET body = '{\"n\":9}' WHERE seq = 2", "event 2 was changed"),
        ("UPDATE ledger_events SET body = '[1' WHERE seq = 2", "cannot be read any more"),
        ("UPDATE ledger_events SET body = '{\"n\":1e999}' WHERE seq = 2", "cannot be read"),
        ("UPDATE ledger_events SET actor = 'eve' WHERE seq = 3", "event 3 was changed"),
        ("UPDATE ledger_events SET login = 'eve' WHERE seq = 3", "event 3 was changed"),
        ("UPDATE ledger_events SET version = 8 WHERE seq = 1", "event 1 was changed"),
        ("UPDATE ledger_events SET created_at = '2020' WHERE seq = 4", "dated before event 3"),
        ("UPDATE ledger_events SET kind = 'done' WHERE seq = 4", "event 4 was changed"),
        ("DELETE FROM ledger_events WHERE seq = 1", "event 2 is not the first that was written"),
        ("DELETE FROM ledger_events WHERE seq = 3", "event 4 does not follow event 2"),
    ],
)
def test_what_who_owns_the_tables_changes_is_found(
    url: str, ledger: Ledger, statement: str, found: str
) -> None:
    for n in range(4):
        ledger.append("hook", "m", None, ADA, {"n": n})
    disarm(url)
    execute(url, statement)
    assert any(found in one for one in ledger.check()), ledger.check()


def test_events_in_another_order_are_found(url: str, ledger: Ledger) -> None:
    for n in range(4):
        ledger.append("hook", "m", None, ADA, {"n": n})
    disarm(url)
    moves = [(2, 99), (3, 2), (99, 3)]
    execute(url, *(f"UPDATE ledger_events SET seq = {b} WHERE seq = {a}" for a, b in moves))
    said = ledger.check()
    assert "event 2 was changed: its content is not what its hash was made of." in said
    assert any(one.startswith("event 3 does not follow event 2:") for one in said)


def test_an_event_that_cannot_be_read_is_an_error_of_ours(url: str, ledger: Ledger) -> None:
    ledger.append("hook", "m", None, ADA, {})
    disarm(url)
    execute(url, "UPDATE ledger_events SET body = '[]'")
    with pytest.raises(MlopsError, match="event 1 cannot be read"):
        ledger.events()
    with pytest.raises(MlopsError, match="not written: event 1 cannot be read"):
        ledger.append("hook", "m", None, ADA, {})


WRITERS = """
import multiprocessing, sys
import sqlalchemy
from registry.ledger import Actor, LeaseHeldError, open_ledger

def write(number, url, n_events, together, won):
    together.wait()
    with open_ledger(url) as ledger:  # all of them make it at once
        for n in range(n_events):
            actor = Actor(f"writer {number}", "operating system")
            ledger.append("hook", f"model {number % 3}", None, actor, {"n": n})
        try:
            with ledger.lease("m", f"writer {number}"):
                won.release()
                together.wait()
        except LeaseHeldError as err:
            assert "m is being changed by writer " in str(err), str(err)
            together.wait()

def write_or_end_all(together, *args):
    try:
        write(*args)
    except BaseException:
        together.abort()  # else the others would wait for this one
        raise

if __name__ == "__main__":
    url, n_writers, n_events = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    sqlalchemy.create_engine(url)  # imports the driver once for all of them
    context = multiprocessing.get_context("fork")
    together, won = context.Barrier(n_writers), context.Semaphore(0)
    writers = [
        context.Process(
            target=write_or_end_all, args=(together, number, url, n_events, together, won)
        )
        for number in range(n_writers)
    ]
    [writer.start() for writer in writers]
    [writer.join() for writer in writers]
    n_won = 0
    while won.acquire(block=False):
        n_won += 1
    print([writer.exitcode for writer in writers if writer.exitcode], n_won)
"""


def test_32_processes_that_write_at_once_make_one_chain_and_one_of_them_gets_the_lease(
    url: str, tmp_path: Path
) -> None:
    program = tmp_path / "writers.py"
    program.write_text(WRITERS)
    done = subprocess.run(
        [sys.executable, str(program), url, "32", "3"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("[] 1\n", "")
    with open_ledger(url, make=False) as ledger:
        assert ledger.check() == []
        events = ledger.events()
    assert [event.seq for event in events] == list(range(1, 97))
    written = {(event.actor.name, event.body["n"]) for event in events}
    assert written == {(f"writer {number}", n) for number in range(32) for n in range(3)}


def test_threads_share_one_ledger(ledger: Ledger) -> None:
    def write() -> None:
        for _ in range(5):
            ledger.append("hook", "m", None, ADA, {})

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.events()) == 20
    assert ledger.check() == []


def test_a_lease_is_one_model_s_and_says_who_holds_it(url: str, ledger: Ledger) -> None:
    held = r"digits is being changed by ada \(promote, pid 4711 on host x\)"
    with ledger.lease("digits", "ada (promote, pid 4711 on host x)"), open_ledger(url) as other:
        with pytest.raises(LeaseHeldError, match=held):
            take(other, "digits")
        take(other, "other")
        ledger.append("hook", "digits", None, ADA, {})
    take(ledger, "digits")
    with pytest.raises(ZeroDivisionError), ledger.lease("digits", "carl"):
        raise ZeroDivisionError
    take(ledger, "digits")


HOLD = """
import sys, time
from registry.ledger import open_ledger
with open_ledger(sys.argv[1]) as ledger, ledger.lease("digits", "ada"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_holder_without_a_name_yet_is_waited_for(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    with open_ledger(url) as ledger:
        with ledger.lease("m", "ada"):
            pass
        (path,) = tmp_path.glob("*.lease")
        assert path.read_text() == ""
        taken = try_lock(path)
        assert taken is not None
        named = threading.Timer(0.3, lambda: os.write(taken, b"bob (promote, pid 7 on x)"))
        named.start()
        with (
            pytest.raises(LeaseHeldError, match=r"by bob \(promote, pid 7"),
            ledger.lease("m", "c"),
        ):
            pass
        named.join()
        os.ftruncate(taken, 0)  # as who gives it back does first
        gone = threading.Timer(0.3, lambda: os.close(taken))
        gone.start()
        with ledger.lease("m", "carl"):
            assert path.read_text() == "carl"
        gone.join()


def test_the_lease_of_a_killed_holder_is_free(url: str, ledger: Ledger) -> None:
    command = [sys.executable, "-c", HOLD, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(LeaseHeldError, match="changed by ada"):
            take(ledger, "digits")
        process.kill()
    deadline = datetime.now(UTC) + timedelta(seconds=10)
    while True:  # a server takes a moment to see that its client is gone
        try:
            take(ledger, "digits")
            return
        except LeaseHeldError:
            assert datetime.now(UTC) < deadline


def test_looking_makes_no_ledger(url: str, tmp_path: Path) -> None:
    with pytest.raises(NoLedgerError, match="there is no ledger"):
        open_once(url, make=False)
    settings = dataclasses.replace(
        Settings.from_env({"MLOPS_HOME": str(tmp_path / "home")}), ledger_url=url
    )
    health = LedgerStore(settings).check()
    assert (health.says, health.findings) == ("none yet", ())
    assert list(tmp_path.iterdir()) == []
    if not is_sqlite(url):
        assert execute(url, "SELECT count(*) FROM pg_tables WHERE tablename LIKE 'ledger%%'") == 0


def test_the_ledger_of_a_newer_podium_is_refused(url: str, ledger: Ledger) -> None:
    execute(url, "UPDATE ledger_version SET version_num = 'of tomorrow'")
    with pytest.raises(MlopsError, match="newer Podium; expected schema 0002, got 'of tomorrow'"):
        open_once(url)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:x?mode=memory&uri=true",
        "mysql://ada:secret@host/ledger",
        "postgresql+psycopg2://ada:secret@host/ledger",
        "no url",
        "",
    ],
)
def test_a_url_that_keeps_no_ledger_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match=r"expected sqlite:///FILE or postgresql") as refused:
        open_once(url)
    assert "secret" not in str(refused.value)


def test_a_database_that_does_not_answer_is_one_sentence_without_its_password() -> None:
    with pytest.raises(MlopsError, match="the ledger was not opened: ") as refused:
        open_once("postgresql+psycopg://ada:secret@127.0.0.1:1/ledger")
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_no_database_is_said_and_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    file.write_text("a letter, and a long one" * 100)
    with pytest.raises(MlopsError, match="file is not a database"):
        open_once(f"sqlite:///{file}")
    assert file.read_text().startswith("a letter")


Role = Callable[[str], str]


@pytest.fixture
def team(postgresql: str) -> Iterator[tuple[str, Role]]:
    """A ledger whose tables are the administrator's, and roles that may read and write it."""
    url = empty(postgresql)
    with open_ledger(url):
        pass

    def make_role(name: str) -> str:
        name = f"{name}_{os.urandom(4).hex()}"
        execute(
            url,
            f"CREATE ROLE {name} LOGIN",
            f"GRANT SELECT, INSERT ON ledger_events TO {name}",
            f"GRANT SELECT ON ledger_version TO {name}",
        )
        return in_database(url, username=name)

    yield url, make_role


def test_in_a_team_select_and_insert_are_enough(team: tuple[str, Role]) -> None:
    _, make_role = team
    ada, bob = make_role("ada"), make_role("bob")
    login = sa.make_url(ada).username
    assert login is not None
    with open_ledger(ada) as mine, open_ledger(bob) as other:
        assert mine.login() == login
        event = mine.append("hook", "m", None, Actor(login, "database"), {})
        assert event.login == login
        held = pytest.raises(LeaseHeldError, match=r"by ada \(promote\)")
        with mine.lease("m", "ada (promote)"), held:
            take(other, "m")
        with pytest.raises(MlopsError, match="the database does not know the actor"):
            other.append("hook", "m", None, Actor(login, "database"), {})
        assert other.append("hook", "m", None, ADA, {}).seq == 2
        assert other.check() == []
    for statement in (
        "UPDATE ledger_events SET actor = 'eve'",
        "DELETE FROM ledger_events",
        "TRUNCATE ledger_events",
        "DROP TABLE ledger_events",
        "ALTER TABLE ledger_events DISABLE TRIGGER ALL",
    ):
        with pytest.raises(sa.exc.DBAPIError, match=r"permission denied|must be owner"):
            execute(bob, statement)


def test_in_a_team_nobody_writes_under_another_login(team: tuple[str, Role]) -> None:
    url, make_role = team
    bob = make_role("bob")
    insert = (
        "INSERT INTO ledger_events VALUES (1, 'hook', 'm', NULL, 'ada', 'tracking server', "
        "'2026-11-23T14:03:00.000000+00:00', '{}', '%s', '', 'x')"
    )
    with pytest.raises(sa.exc.DBAPIError, match="the event names the login ada"):
        execute(bob, insert % "ada")
    # A table of the session's own does not stand in for the ledger's.
    stand_in = "CREATE TEMP TABLE ledger_events (seq bigint, hash text)"
    in_public = insert.replace("INTO ", "INTO public.").replace("(1,", "(9,")
    with pytest.raises(sa.exc.DBAPIError, match="does not follow the newest"):
        execute(
            bob,
            stand_in,
            "INSERT INTO ledger_events VALUES (8, '')",
            in_public % sa.make_url(bob).username,
        )
    assert execute(url, "SELECT count(*) FROM ledger_events") == 0


def test_even_the_administrator_cannot_empty_it_by_mistake(team: tuple[str, Role]) -> None:
    with pytest.raises(sa.exc.DBAPIError, match="append-only"):
        execute(team[0], "TRUNCATE ledger_events")


def test_a_role_that_may_make_no_tables_is_told_so(postgresql: str) -> None:
    url = empty(postgresql)
    name = f"guest_{os.urandom(4).hex()}"
    execute(url, f"CREATE ROLE {name} LOGIN")
    with pytest.raises(MlopsError, match="not opened: permission denied for schema public"):
        open_once(in_database(url, username=name))


def test_the_doctor_finds_a_broken_chain_and_a_move_without_end(url: str, tmp_path: Path) -> None:
    settings = dataclasses.replace(
        Settings.from_env({"MLOPS_HOME": str(tmp_path / "home")}), ledger_url=url
    )
    with open_ledger(url) as ledger:
        move = {"alias": "champion", "from": None, "to": 1, "move": "promote"}
        intent = ledger.append("intent", "digits", 1, ADA, move)
        (finding,) = LedgerStore(settings).check().findings
        assert "a move of digits@champion to version 1 has no end (event 1)" in finding.wrong
        assert finding.mend.endswith("python -m registry.history digits --check")
        ledger.append("done", "digits", 1, ADA, {**move, "intent": intent.seq})
        health = LedgerStore(settings).check()
        assert (health.says, health.findings) == ("2 event(s)", ())
    disarm(url)
    execute(url, "UPDATE ledger_events SET actor = 'eve' WHERE seq = 1")
    (finding,) = LedgerStore(settings).check().findings
    assert "the ledger is not as it was written: event 1 was changed" in finding.wrong


def test_the_doctor_says_that_a_database_is_damaged(tmp_path: Path) -> None:
    settings = Settings.from_env({"MLOPS_HOME": str(tmp_path)})
    (tmp_path / "ledger.db").write_text("a letter, and a long one" * 100)
    (finding,) = LedgerStore(settings).check().findings
    assert "the database of decisions and moves is damaged" in finding.wrong


def test_a_ledger_in_mlflow_s_database_is_not_taken_for_mlflow_s(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('of MLflow')")
        connection.commit()
    with open_ledger(f"sqlite:///{file}") as ledger:
        ledger.append("hook", "m", None, ADA, {})
    assert LedgerStore(Settings.from_env({"MLOPS_HOME": str(tmp_path)})).check().findings == ()


WRONG = {
    "a body that is no JSON": ({"body": "this is not JSON"}, "cannot be read"),
    "a body that is a list": ({"body": "[]"}, "cannot be read"),
    "a move that says nothing": ({"kind": "intent"}, "cannot be read"),
    "a kind that there is not": ({"kind": "note"}, "cannot be read"),
    "an authority that there is not": ({"known_by": "hearsay"}, "cannot be read"),
    "no time": ({"created_at": "yesterday"}, "cannot be read"),
    "no day": ({"created_at": "2026-13-45T00:00:00.000000+00:00"}, "cannot be read"),
    "another's content": ({"name": "other"}, "hash of the event is not of its content"),
    "no hash": ({"hash": "f" * 64}, "hash of the event is not of its content"),
}


@pytest.mark.parametrize(("changed", "said"), WRONG.values(), ids=WRONG)
def test_no_login_of_postgresql_can_write_what_stops_the_ledger_for_others(
    postgresql: str, changed: dict[str, str], said: str
) -> None:
    with open_ledger(empty(postgresql)) as ledger:
        newest = ledger.append("hook", "m", None, ADA, {})
        follows = with_hash(dataclasses.replace(newest, seq=2, previous=newest.hash))
        table = sa.table("ledger_events", *map(sa.column, COLUMNS))
        with pytest.raises(sa.exc.DBAPIError, match=said), ledger._engine.begin() as connection:
            connection.execute(table.insert().values(follows.to_row() | changed))
        assert ledger.check() == [] and ledger.events() == [newest]


@pytest.mark.parametrize("name", ["plain", 'a "b" \\ /', "ä漢\u2028\x7f\x01\n", "\U0001f600 x"])
def test_postgresql_hashes_any_name_as_python_does(postgresql: str, name: str) -> None:
    with open_ledger(empty(postgresql)) as ledger:
        actor = Actor(name, "tracking server")
        event = ledger.append("hook", name, 7, actor, {"said": name, "float": 1e-7, "none": None})
        assert ledger.events(name) == [event]
        assert ledger.check() == []
