"""The status as a program: with and without its stores, and again and again."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from mlops.mlflow_store import ensure_experiment, ensure_registered_model, open_store_client
from mlops.settings import Settings
from registry.events import Actor
from registry.ledger import Ledger, open_ledger
from registry.status import main, with_seconds
from registry.watching import fit
from tests.e2e.serving import free_port
from tests.registry import test_replicas
from tests.registry.test_replica import METRICS, MODEL
from tests.registry.test_replicas import Serve, leave

ROOT = Path(__file__).parents[2]
ADA = Actor("ada", "tracking server")
NAME = "digits-classifier"

serve = test_replicas.serve


@pytest.fixture
def settings(home_with_database: Settings) -> Settings:
    return home_with_database


@pytest.fixture
def client(settings: Settings) -> Any:
    return open_store_client(settings)


def release(client: Any, version: int, name: str = NAME, **tags: str) -> None:
    """Makes the next version of a model, as a promotion does, and moves champion to it."""
    ensure_registered_model(client, name)
    run_id = client.create_run(ensure_experiment(client, f"{name}-releases")).info.run_id
    tags = {"mlops.candidate": f"{name}-candidates/{version}", "mlops.architecture": "cnn", **tags}
    client.create_model_version(name, f"runs:/{run_id}/release", run_id, tags=tags)
    client.set_registered_model_alias(name, "champion", str(version))


def candidate(client: Any, name: str = NAME, **tags: str) -> None:
    ensure_registered_model(client, f"{name}-candidates")
    client.create_model_version(f"{name}-candidates", "runs:/x/model", None, tags=tags)


def record(ledger: Ledger, was: int | None, to: int, name: str = NAME, **more: Any) -> None:
    body = {"alias": "champion", "from": was, "to": to}
    intent = ledger.append("intent", name, to, ADA, {**body, "move": "promote", **more})
    ledger.append("done", name, to, ADA, {**body, "intent": intent.seq})


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    with open_ledger(settings.ledger_url) as opened:
        yield opened


Told = Callable[..., tuple[int, str, str]]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Told:
    """The program, where nobody says how wide the table may be."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def tell(*args: str) -> tuple[int, str, str]:
        code = main(list(args))
        said = capsys.readouterr()
        return code, said.out, said.err

    return tell


def test_an_empty_home_says_how_to_begin_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("MLOPS_HOME", str(home))
    code, out, err = told()
    assert (code, err) == (0, "")
    assert out.startswith("No model was promoted here yet.")
    assert "registry.promote NAME" in out
    code, out, _ = told("--json")
    assert (code, json.loads(out)["models"]) == (0, [])
    code, out, err = told(NAME)
    assert (code, out) == (2, "")
    assert err.startswith(f"python -m registry.status: there is no model '{NAME}'; nothing was")
    assert not home.exists()


def test_a_home_is_read_and_not_written(
    settings: Settings, client: Any, ledger: Ledger, told: Told
) -> None:
    release(client, 1)
    record(ledger, None, 1)
    before = {path: path.stat().st_mtime_ns for path in settings.home.rglob("*")}
    assert told()[0] == told(NAME)[0] == 0
    after = {path: path.stat().st_mtime_ns for path in settings.home.rglob("*")}
    changed = {path.name for path in {*before, *after} if before.get(path) != after.get(path)}
    assert not {name for name in changed if not name.endswith((".db-wal", ".db-shm"))} - {
        settings.home.name
    }


def test_all_models_stand_in_a_table_and_as_json(
    client: Any, ledger: Ledger, serve: Serve, told: Told
) -> None:
    release(client, 1)
    record(ledger, None, 1)
    candidate(client)
    candidate(client, **{"mlops.architecture": "vae"})
    candidate(client, "fresh")
    url = serve(model=MODEL | {"name": NAME, "version": 1}, metrics=METRICS)
    code, out, _ = told("--replica", url)
    assert code == 0
    row = next(line for line in out.splitlines() if line.startswith(NAME))
    assert "ada (MLflow login)" in row
    assert row.split()[-2:] == ["1", "candidate"]
    assert "registry.promote fresh" in out
    assert f"{NAME}@champion: {url} does not reach the registry." in out
    code, out, _ = told("--replica", url, "--json")
    (model,) = json.loads(out)["models"]
    (alias,) = model["aliases"]
    assert (alias["version"], alias["actor"]["name"]) == (1, "ada")
    assert alias["replicas"][0]["faults"] == ["does not reach the registry"]
    assert alias["replicas"][0]["traffic"]["n_requests"] == 100


def test_replicas_of_the_settings_and_of_the_home_are_asked(
    settings: Settings,
    client: Any,
    ledger: Ledger,
    serve: Serve,
    told: Told,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release(client, 1)
    record(ledger, None, 1)
    leave(settings.home, serve(model=MODEL | {"name": NAME, "version": 1}), NAME)
    stale = serve(model=MODEL | {"name": NAME, "version": 7})
    closed = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLOPS_REPLICAS", f"{stale}, {closed},")
    code, out, _ = told(NAME)
    assert code == 0
    assert f"{stale} answers with version 7, and champion is 1" in out
    assert f"{closed} does not answer (connection refused)." in out
    assert json.loads(told("--json")[1])["models"][0]["aliases"][0]["n_healthy"] == 1


def test_where_registry_and_ledger_disagree_that_is_said_and_the_exit_code_is_1(
    client: Any, ledger: Ledger, told: Told
) -> None:
    release(client, 1)
    record(ledger, None, 1)
    release(client, 2)
    code, out, _ = told()
    assert code == 1
    said = f"{NAME}: the alias 'champion' holds version 2 in MLflow; by the ledger it holds"
    assert said in out
    code, out, _ = told(NAME)
    assert code == 1
    assert "Registry and ledger disagree:" in out
    assert json.loads(told("--json")[1])["sound"] is False


def test_a_ledger_that_was_altered_is_not_believed(
    settings: Settings, client: Any, ledger: Ledger, told: Told
) -> None:
    release(client, 1)
    record(ledger, None, 1)
    engine = sa.create_engine(settings.ledger_url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER ledger_no_update")
        connection.exec_driver_sql("UPDATE ledger_events SET actor = 'eve' WHERE seq = 1")
    code, out, _ = told()
    assert code == 1
    assert "The ledger is not as it was written, and is not shown: event 1 was changed" in out
    assert "ada" not in out


def test_without_a_ledger_the_rest_is_shown(settings: Settings, client: Any, told: Told) -> None:
    release(client, 1, **{"mlops.gate.better_than_chance": "pass: accuracy 0.98 [0.97, 0.99]"})
    code, out, _ = told()
    assert code == 0
    assert "There is no ledger where MLOPS_LEDGER_URL or the home says" in out
    assert "accuracy 0.9800" in out
    assert not (settings.home / "ledger.db").exists()


def test_a_ledger_that_does_not_answer_is_said_and_the_rest_is_shown(
    client: Any, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(client, 1)
    where = f"postgresql+psycopg://ada:swordfish@127.0.0.1:{free_port()}/ledger"
    monkeypatch.setenv("MLOPS_LEDGER_URL", where)
    code, out, _ = told()
    assert code == 1
    assert "Without the ledger: the ledger was not opened:" in out
    assert NAME in out
    assert "swordfish" not in out


def test_a_registry_that_does_not_answer_is_said_and_the_rest_is_shown(
    ledger: Ledger, serve: Serve, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(ledger, None, 1)
    url = serve(model=MODEL | {"name": NAME, "version": 1})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    for args in ((), (NAME,)):
        code, out, _ = told(*args, "--replica", url)
        assert code == 1
        assert "Without the registry, aliases as the ledger has them:" in out
        assert "ada (" in out
    assert "is healthy" in out


def test_a_database_that_is_damaged_is_said_and_the_rest_is_shown(
    settings: Settings, ledger: Ledger, told: Told
) -> None:
    record(ledger, None, 1)
    (settings.home / "mlflow.db").write_text("no database")
    code, out, _ = told()
    assert code == 1
    assert "Without the registry" in out and "not a database" in out
    assert "ada (MLflow login)" in out


def test_an_unknown_name_is_answered_with_the_nearest_in_one_line(
    client: Any, ledger: Ledger, told: Told
) -> None:
    release(client, 1)
    record(ledger, None, 1)
    code, out, err = told("digits-clasifier")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert f"did you mean '{NAME}'?" in err
    assert told(f"{NAME}-candidates")[0] == 2
    code, _, err = told("x' or name != '")
    assert (code, "is no name of a model" in err) == (2, True)


def test_a_model_that_has_candidates_alone_is_known_by_its_name(client: Any, told: Told) -> None:
    candidate(client)
    code, out, _ = told(NAME)
    assert code == 0
    assert "1 is newer than the champion's and undecided" in out


def test_a_model_that_somebody_registered_without_podium_is_shown_when_asked_for(
    client: Any, told: Told
) -> None:
    ensure_registered_model(client, "foreign")
    client.create_model_version("foreign", "runs:/x/model", None)
    assert told("foreign")[0] == 0
    assert "foreign" not in told()[1]


def test_names_and_actors_of_strangers_steer_no_terminal(
    client: Any, ledger: Ledger, told: Told
) -> None:
    name = "x\x1b[2Jy"
    ledger.append("rejected", name, None, Actor("e\u202eve", "tracking server"), {"reason": "\x07"})
    ensure_registered_model(client, "z\x1b]0;t")
    client.create_model_version("z\x1b]0;t", "s", None, tags={"mlops.candidate": "c"})
    _, out, _ = told()
    assert "x?[2Jy" in out
    assert all(char.isprintable() for char in out if char != "\n")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--watch", "0"], "--watch must be from 0.5 to 86400 seconds, got 0."),
        (["--replica", "ftp://h"], "'ftp://h' is no address of a replica"),
    ],
)
def test_a_wrong_option_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Told, args: list[str], said: str
) -> None:
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path / "home"))
    code, out, err = told(*args)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert said in err


def test_a_bare_watch_has_its_seconds_and_takes_no_name_for_them() -> None:
    assert with_seconds(["--watch"]) == ["--watch", "5"]
    assert with_seconds(["--watch", NAME]) == ["--watch", "5", NAME]
    assert with_seconds(["--watch", "--json"]) == ["--watch", "5", "--json"]
    assert with_seconds([NAME, "--watch", "0.5"]) == [NAME, "--watch", "0.5"]


PROGRAM = """
import sys
from registry.status import main
code = main(sys.argv[1:])
print([name for name in ("tensorflow", "keras", "jax") if name in sys.modules])
sys.exit(code)
"""


def start(home: Path, *args: str, **how: Any) -> subprocess.Popen[bytes]:
    env = {**os.environ, "MLOPS_HOME": str(home), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *args], env=env, **how)


def test_a_watch_appends_where_there_is_no_terminal_and_ends_with_ctrl_c(
    settings: Settings, client: Any, ledger: Ledger
) -> None:
    release(client, 1)
    record(ledger, None, 1)
    pipe = subprocess.PIPE
    with start(settings.home, "--watch", "0.5", stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None and process.stderr is not None
        lines: list[str] = []
        while sum(line.startswith(NAME) for line in lines) < 2:
            lines.append(process.stdout.readline().decode())
            assert lines[-1], process.stderr.read().decode()
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, b"")
    assert rest.decode().splitlines()[-1] == "[]"  # no TensorFlow
    assert "\x1b" not in "".join(lines)


def test_a_watch_redraws_in_its_place_on_a_terminal_and_gives_it_back(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    home = tmp_path / "home"
    env = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "start_new_session": True}
    with contextlib.closing(os.fdopen(ours, "rb", buffering=0)) as terminal:
        process = start(home, "--watch", "0.5", **env)
        os.close(theirs)
        shown = _read_until(terminal.fileno(), lambda seen: seen.count(b"No model was") >= 2)
        process.send_signal(signal.SIGINT)
        shown += _read_until(terminal.fileno(), lambda seen: b"[]" in seen)
        assert process.wait(20) == 0
    assert shown.startswith(b"\x1b[?1049h") or b"\x1b[?1049h" in shown
    assert shown.rindex(b"\x1b[?1049l") < shown.rindex(b"No model was promoted here yet.")
    assert b"Ctrl-C ends" in shown


def _read_until(fd: int, holds: Callable[[bytes], bool], timeout_s: float = 60) -> bytes:
    seen, deadline = b"", time.monotonic() + timeout_s
    while not holds(seen):
        assert time.monotonic() < deadline, seen
        if select.select([fd], [], [], 0.2)[0]:
            seen += os.read(fd, 1 << 16)
    return seen


def test_a_watch_goes_on_where_a_look_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlops.errors import MlopsError
    from registry import watching

    said: list[str] = []
    answers = iter(["first", MlopsError("it is away"), "third", KeyboardInterrupt()])

    def look() -> str:
        one = next(answers)
        if isinstance(one, BaseException):
            raise one
        return one

    monkeypatch.setattr(watching, "answer", said.append)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert watching.watch(look, 0.01, in_place=False) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert said == ["first", "It cannot be seen how things stand\n\nit is away", "third"]


def test_a_text_is_cut_to_the_screen_and_says_how_much_is_missing() -> None:
    assert fit("a\nb", 80, 24) == "a\nb"
    assert fit("\n".join("abcdef"), 80, 3) == "a\nb\n... 4 more lines; a taller window shows them"
    wrapped = fit("  " + "word " * 10, 30, 24).splitlines()
    assert max(map(len, wrapped)) <= 30
    assert wrapped[1].startswith("      ")
