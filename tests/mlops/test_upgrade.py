"""Databases of older versions, brought up to date on SQLite and PostgreSQL; killed, and in use."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from experiments.storage import open_storage
from experiments.studies import lock_sweep
from experiments.study_upgrade import study_schema
from mlops.doctor import examine
from mlops.errors import MlopsError
from mlops.lease import Address, ServerFolder, try_lock
from mlops.mlflow_store import open_store_client
from mlops.settings import Settings
from mlops.stores.schema_upgrade import COPY, Schema, find_sessions, read_revision
from mlops.stores.tracking_upgrade import accounts_schema, tracking_schema
from mlops.upgrade import main, upgrade
from registry.ledger import open_ledger
from tests.database_server import execute, in_database, make_database, serve_postgresql
from tests.forked import FORK
from tests.mlops.old_databases import (
    OLD_ACCOUNTS,
    OLD_MLFLOW,
    OLD_OPTUNA,
    RUN,
    STUDY,
    USER,
    ask,
    make_old_accounts,
    make_old_mlflow,
    make_old_optuna,
)

UP_TO_DATE = {
    "tracking": "up to date; accounts: up to date",
    "studies": "up to date",
    "ledger": "up to date",
}


@dataclass(frozen=True)
class Part:
    """A database of a part, and what an older version left in it."""

    setting: str
    make_old: Callable[[str], None]
    old: str
    query: str
    holds: str
    schema: Callable[[Settings], Schema]


PARTS = {
    "tracking": Part(
        "MLOPS_TRACKING_DB_URL",
        make_old_mlflow,
        OLD_MLFLOW,
        "SELECT run_uuid FROM runs",
        RUN,
        tracking_schema,
    ),
    "studies": Part(
        "MLOPS_STUDY_URL",
        make_old_optuna,
        OLD_OPTUNA,
        "SELECT study_name FROM studies",
        STUDY,
        study_schema,
    ),
    "accounts": Part(
        "MLOPS_ACCOUNTS_DB_URL",
        make_old_accounts,
        OLD_ACCOUNTS,
        "SELECT username FROM users",
        USER,
        lambda settings: accounts_schema(str(settings.accounts_db_url)),
    ),
}


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    with serve_postgresql() as url:
        yield url


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an old SQLite database of each part; to be copied."""
    folder = tmp_path_factory.mktemp("old")
    for name, part in PARTS.items():
        part.make_old(f"sqlite:///{folder / name}.db")
    return folder


@pytest.fixture(params=["sqlite", "postgresql"])
def urls(request: pytest.FixtureRequest, tmp_path: Path, old: Path) -> dict[str, str]:
    """An old database of each part, by its name."""
    if request.param == "sqlite":
        return {name: copy_old(old, tmp_path, name) for name in PARTS}
    server = request.getfixturevalue("postgresql")
    found = {}
    for name, part in PARTS.items():
        template = f"old-{name}"
        if not execute(server, f"SELECT count(*) FROM pg_database WHERE datname = '{template}'"):
            part.make_old(make_database(server, template))
        found[name] = make_database(server, name, f'"{template}"')
    return found


def copy_old(old: Path, folder: Path, name: str) -> str:
    """Copies an old SQLite database; one in use has a write-ahead log, as Podium makes studies."""
    path = folder / f"{name}.db"
    with (
        closing(sqlite3.connect(old / f"{name}.db")) as source,
        closing(sqlite3.connect(path)) as target,
    ):
        source.backup(target)
        if name == "studies":
            target.execute("PRAGMA journal_mode = WAL")
    return f"sqlite:///{path}"


def settings_of(home: Path, **urls: str) -> Settings:
    return Settings.from_env({"MLOPS_HOME": str(home), **named(urls)})


def named(urls: dict[str, str]) -> dict[str, str]:
    """The settings that name databases."""
    return {PARTS[name].setting: url for name, url in urls.items()}


def revision_of(settings: Settings, name: str) -> str | None:
    schema = PARTS[name].schema(settings)
    return read_revision(schema.url, schema.version_table)


def test_one_command_brings_all_up_to_date_with_what_is_in_them(
    tmp_path: Path, urls: dict[str, str]
) -> None:
    settings = settings_of(tmp_path / "home", **urls)
    assert {name: revision_of(settings, name) for name in PARTS} == {
        name: part.old for name, part in PARTS.items()
    }
    done = upgrade(settings)
    newest = {name: revision_of(settings, name) for name in PARTS}
    assert done["tracking"] == (
        f"schema {OLD_MLFLOW} -> {newest['tracking']}; "
        f"accounts: schema {OLD_ACCOUNTS} -> {newest['accounts']}"
    )
    assert done["studies"] == f"schema {OLD_OPTUNA} -> {newest['studies']}"
    assert done["ledger"].startswith("made, schema ")
    for name, part in PARTS.items():
        assert ask(urls[name], part.query) == part.holds
    again = upgrade(settings)
    assert {name: again[name] for name in UP_TO_DATE} == UP_TO_DATE
    # The parts themselves take them.
    storage = open_storage(urls["studies"])
    assert [one.study_name for one in storage.get_all_studies()] == [STUDY]
    storage.remove_session()
    storage.engine.dispose()
    left = [path.name for path in tmp_path.iterdir() if path.name.endswith((COPY, "-journal"))]
    assert left == []


def test_what_is_not_there_is_made(tmp_path: Path, postgresql: str) -> None:
    for urls in (
        {"accounts": f"sqlite:///{tmp_path / 'deep' / 'accounts.db'}"},
        {name: make_database(postgresql, f"new-{name}") for name in PARTS},
    ):
        settings = settings_of(tmp_path / f"home{len(urls)}", **urls)
        done = upgrade(settings)
        assert all("made, schema" in done[name] for name in ("tracking", "studies", "ledger"))
        assert "accounts: made, schema" in done["tracking"]
        again = upgrade(settings)
        assert {name: again[name] for name in UP_TO_DATE} == UP_TO_DATE
    embedded = Settings.from_env({"MLOPS_HOME": str(tmp_path / "home1")})
    experiment = open_store_client(embedded).get_experiment("0")
    assert experiment.artifact_location == str(embedded.artifact_root / "0")
    areas = examine({"MLOPS_HOME": str(embedded.home)})
    here = ("settings", "datasets", "journal", "ledger", "releases", "studies", "tracking")
    assert [one for area in here for one in areas[area].findings] == []


def test_the_doctor_says_what_is_old_and_the_program_mends_it(
    tmp_path: Path,
    old: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    copy_old(old, home, "studies")
    copy_old(old, home, "tracking")
    (home / "tracking.db").rename(home / "mlflow.db")
    areas = examine({"MLOPS_HOME": str(home)})
    for name in ("tracking", "studies"):
        assert any("is of another version" in one.wrong for one in areas[name].findings)
    monkeypatch.setenv("MLOPS_HOME", str(home))
    assert main(["--json"]) == 0
    said = capsys.readouterr()
    assert "Make a backup first: " in said.err and "-m mlops.backup TARGET" in said.err
    assert json.loads(said.out)["stores"]["studies"].startswith(f"schema {OLD_OPTUNA} -> ")
    areas = examine({"MLOPS_HOME": str(home)})
    assert [one for name in ("tracking", "studies") for one in areas[name].findings] == []


# Who is at work.


def test_it_refuses_while_somebody_writes_and_names_who(
    tmp_path: Path, old: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    url = copy_old(old, home, "studies")
    settings = Settings.from_env({"MLOPS_HOME": str(home)})
    monkeypatch.setenv("MLOPS_HOME", str(home))
    folder = ServerFolder(home / "server")
    folder.create()
    folder.write_address(Address("http://127.0.0.1:5000", "127.0.0.1", 5000, 1, 1, "now"))
    server = try_lock(folder.server_lock)
    assert server is not None
    with (
        lock_sweep(home, "digits-1"),
        open_ledger(settings.ledger_url) as ledger,
        ledger.lease("digits", "ada (promote, pid 4711 on host x)"),
    ):
        assert main([]) == 1
    os.close(server)
    said = capsys.readouterr().err
    assert "nothing was upgraded, since there are writers: " in said
    for who in (
        "the embedded tracking server at http://127.0.0.1:5000",
        "the driver of the sweep 'digits-1'",
        "ada (promote, pid 4711 on host x)",
    ):
        assert who in said
    assert read_revision(url, "alembic_version") == OLD_OPTUNA
    assert not (home / "mlflow.db").exists()
    assert main([]) == 0


def test_sessions_of_others_are_named(tmp_path: Path, postgresql: str, old: Path) -> None:
    url = make_database(postgresql, "busy")
    make_old_optuna(url)
    execute(
        url,
        "DROP ROLE IF EXISTS ada",
        "CREATE ROLE ada LOGIN PASSWORD 'secret7731'",
    )
    login = in_database(url, username="ada", password="secret7731")
    settings = settings_of(tmp_path / "home", studies=url)
    engine = sa.create_engine(
        login, poolclass=sa.NullPool, connect_args={"application_name": "trainer 7"}
    )
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
        with pytest.raises(
            MlopsError, match=r"a session of ada \(trainer 7\).* database busy, pid"
        ):
            upgrade(settings)
        # One of the plain logins sees of the others at least who they are.
        with sa.create_engine(url, poolclass=sa.NullPool).connect() as owner:
            owner.exec_driver_sql("SELECT 1")
            (said,) = [one for one in find_sessions(login) if "ada" not in one]
            assert said.startswith("a session of postgres")
            assert "secret7731" not in said
    wait_for_sessions(url)
    assert upgrade(settings)["studies"].startswith(f"schema {OLD_OPTUNA}")


def test_sessions_of_one_login_are_counted(tmp_path: Path, postgresql: str) -> None:
    url = make_database(postgresql, "pooled")
    make_old_optuna(url)
    settings = settings_of(tmp_path / "home", studies=url)
    engine = sa.create_engine(url, pool_size=3)
    with contextlib.ExitStack() as held:
        for _ in range(3):
            held.enter_context(engine.connect()).exec_driver_sql("SELECT 1")
        with pytest.raises(
            MlopsError, match=r"writers: 3 sessions of postgres in the database pooled\. End them"
        ):
            upgrade(settings)
    engine.dispose()
    wait_for_sessions(url)
    assert upgrade(settings)["studies"].startswith(f"schema {OLD_OPTUNA}")


def wait_for_sessions(url: str) -> None:
    deadline = time.monotonic() + 30
    while find_sessions(url):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_database_that_somebody_reads_is_not_touched(tmp_path: Path, old: Path) -> None:
    url = copy_old(old, tmp_path, "tracking")
    settings = settings_of(tmp_path / "home", tracking=url)
    with closing(sqlite3.connect(tmp_path / "tracking.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM runs").fetchone()
        with pytest.raises(MlopsError, match=r"tracking.db' is in use .* fuser"):
            upgrade(settings)
    assert revision_of(settings, "tracking") == OLD_MLFLOW
    upgrade(settings)


def test_a_database_of_a_newer_version_is_left_alone(tmp_path: Path, urls: dict[str, str]) -> None:
    execute_any(urls["studies"], "UPDATE alembic_version SET version_num = 'v9.0.0.a'")
    settings = settings_of(tmp_path / "home", **urls)
    with pytest.raises(
        MlopsError, match=r"was written by a newer version; expected schema v3\.2\.0"
    ):
        upgrade(settings)
    assert revision_of(settings, "studies") == "v9.0.0.a"


def execute_any(url: str, statement: str) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql(statement)


def test_an_upgrade_that_fails_leaves_the_database_as_it_was(tmp_path: Path, old: Path) -> None:
    url = copy_old(old, tmp_path, "tracking")
    settings = settings_of(tmp_path / "home", tracking=url)
    # A table of somebody else's stands where a migration makes its own.
    execute_any(url, "CREATE TABLE webhooks (id INTEGER)")
    with pytest.raises(
        MlopsError, match=r"was not upgraded: table webhooks already exists\. It is as"
    ):
        upgrade(settings)
    assert revision_of(settings, "tracking") == OLD_MLFLOW
    assert ask(url, "SELECT run_uuid FROM runs") == RUN
    execute_any(url, "DROP TABLE webhooks")
    upgrade(settings)


# Killed in the middle.


def upgrade_in_child(home: str, env: dict[str, str]) -> None:
    upgrade(Settings.from_env({"MLOPS_HOME": home, **env}))


def start_child(home: Path, urls: dict[str, str]) -> Any:
    process = FORK.Process(target=upgrade_in_child, args=(str(home), named(urls)))
    process.start()
    return process


def is_under_way(urls: dict[str, str]) -> bool:
    """Tells whether a database is being changed right now."""
    if urls["tracking"].startswith("sqlite"):
        files = [Path(url.removeprefix("sqlite:///") + COPY) for url in urls.values()]
        return any(path.exists() for path in files)
    # Asked from another database: who asks in these would pass for a writer.
    names = ", ".join(f"'{name}'" for name in PARTS)
    query = (
        f"SELECT count(*) FROM pg_stat_activity WHERE datname IN ({names}) "
        "AND backend_xid IS NOT NULL"
    )
    return bool(ask(in_database(urls["tracking"], database="postgres"), query))


@pytest.mark.parametrize("later_s", [0.0, 0.15, 0.4])
def test_killed_in_the_middle_the_same_command_goes_on(
    tmp_path: Path, urls: dict[str, str], later_s: float
) -> None:
    settings = settings_of(tmp_path / "home", **urls)
    process = start_child(settings.home, urls)
    deadline = time.monotonic() + 120
    while not is_under_way(urls) and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(later_s)
    process.kill()
    process.join()
    for name, part in PARTS.items():
        # Whole as it was, or whole as it is to be; SQLite takes half of a change back by itself.
        assert ask(urls[name], part.query) == part.holds
        assert revision_of(settings, name) in (part.old, newest(part.schema(settings)))
        wait_for_sessions(urls[name])
    assert process.exitcode in (-signal.SIGKILL, 0)
    done = upgrade(settings)
    if process.exitcode != 0:
        assert any("->" in what for what in done.values())
    for name, part in PARTS.items():
        assert ask(urls[name], part.query) == part.holds
        assert revision_of(settings, name) == newest(part.schema(settings))


def newest(schema: Schema) -> str | None:
    from mlops.stores.database_check import read_revisions

    return read_revisions(schema.revisions)[1]
