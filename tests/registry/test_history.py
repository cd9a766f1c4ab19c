"""The history as a program, and its comparison of the ledger with MLflow."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from mlops.mlflow_store import ensure_experiment, ensure_registered_model, open_store_client
from mlops.settings import Settings
from registry.events import Event
from registry.history import Statement, as_table, compare, describe, main, read_time
from registry.ledger import Actor, Ledger, open_ledger

ADA = Actor("ada", "tracking server")
ROOT = Path(__file__).parents[2]
START = datetime(2026, 11, 23, 14, 0, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path / "home"))
    return Settings.from_env()


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    """A ledger whose events are a minute apart, the first at 14:00."""
    minutes = iter(range(1000))
    clock = lambda: START + timedelta(minutes=next(minutes))  # noqa: E731
    with open_ledger(settings.ledger_url, clock=clock) as opened:
        yield opened


def move(ledger: Ledger, was: int | None, to: int, *, ended: bool = True, **more: Any) -> Event:
    body = {"alias": "champion", "from": was, "to": to}
    intent = ledger.append("intent", "digits", to, ADA, {**body, "move": "promote", **more})
    if ended:
        ledger.append("done", "digits", to, ADA, {**body, "intent": intent.seq})
    return intent


def compared(
    ledger: Ledger,
    aliases: Mapping[str, int],
    statements: Mapping[int, Statement | None],
    name: str = "digits",
) -> list[str]:
    heads = {event.hash for event in ledger.events()}
    return compare(ledger.events(name), heads, aliases, statements)


def statement(head: str | None, sha256: str = "s") -> Statement:
    return {"ledger_head": head}, sha256


def test_where_both_say_the_same_there_is_no_difference(ledger: Ledger) -> None:
    first = statement(ledger.head())
    move(ledger, None, 1, statement_sha256="s")
    second = statement(ledger.head())
    move(ledger, 1, 2)
    assert compared(ledger, {"champion": 2}, {1: first, 2: second}) == []


def test_an_alias_that_somebody_moved_past_the_ledger_is_found(ledger: Ledger) -> None:
    move(ledger, None, 1)
    move(ledger, 1, 2)
    kept = {1: statement(None), 2: statement(None)}
    said = ["the alias 'champion' holds version 1 in MLflow; by the ledger it holds version 2."]
    assert compared(ledger, {"champion": 1}, kept) == said
    said = ["the alias 'champion' holds no version in MLflow; by the ledger it holds version 2."]
    assert compared(ledger, {}, kept) == said
    said = ["the alias 'staging' holds version 1 in MLflow; by the ledger it holds no version."]
    assert compared(ledger, {"champion": 2, "staging": 1}, kept) == said


@pytest.mark.parametrize("now", [1, 2])
def test_an_interrupted_move_is_one_difference_wherever_the_alias_is(
    ledger: Ledger, now: int
) -> None:
    move(ledger, None, 1)
    move(ledger, 1, 2, ended=False)
    (said,) = compared(ledger, {"champion": now}, {1: statement(None), 2: statement(None)})
    assert said.startswith("the move of 'champion' 1 -> 2 (event 3) has no end")
    assert len(compared(ledger, {"champion": 7}, {1: statement(None), 2: statement(None)})) == 2


def test_a_release_that_is_gone_is_found_unless_it_was_erased(ledger: Ledger) -> None:
    move(ledger, None, 1)
    move(ledger, 1, 2)
    kept = {2: statement(None)}
    (said,) = compared(ledger, {"champion": 2}, kept)
    assert said == "version 1 was released, and MLflow has it no more."
    ledger.append("erased", "digits", 1, ADA, {})
    assert compared(ledger, {"champion": 2}, kept) == []


def test_a_version_that_no_event_names_is_found(ledger: Ledger) -> None:
    move(ledger, None, 1)
    (said,) = compared(ledger, {"champion": 1}, {1: statement(None), 2: None})
    assert said.startswith("version 2 is in MLflow, and no event of the ledger names it")
    (said,) = compared(ledger, {}, {3: None}, name="other")
    assert said.startswith("version 3 is in MLflow")


def test_a_statement_that_is_gone_or_changed_is_found(ledger: Ledger) -> None:
    move(ledger, None, 1, statement_sha256="s")
    (said,) = compared(ledger, {"champion": 1}, {1: None})
    assert said == "version 1 has no statement in MLflow."
    (said,) = compared(ledger, {"champion": 1}, {1: statement(None, "other")})
    assert "expected s, got other" in said


def test_a_tail_that_was_cut_off_is_found_by_the_statements(
    settings: Settings, ledger: Ledger
) -> None:
    move(ledger, None, 1)
    refused = ledger.append("rejected", "digits", None, ADA, {})
    kept = {1: statement(None), 2: statement(refused.hash)}
    move(ledger, 1, 2)
    engine = sa.create_engine(settings.ledger_url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER ledger_no_delete")
        connection.exec_driver_sql("DELETE FROM ledger_events WHERE seq >= 3")
    assert ledger.check() == []
    alias, head, unnamed = compared(ledger, {"champion": 2}, kept)
    assert "holds version 2 in MLflow; by the ledger it holds version 1" in alias
    assert "which is not in it any more" in head and "no event of the ledger names" in unnamed
    # Moves made anew after the cut explain the alias, but not the head that was signed.
    move(ledger, 1, 2)
    (said,) = compared(ledger, {"champion": 2}, kept)
    assert said == (
        f"version 2 was released when the ledger ended with {refused.hash}, which is not in it any "
        "more."
    )


def test_the_table_says_what_happened_and_who_knew_the_actor(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    gates = [{"name": "structure", "passed": True}, {"name": "quality", "passed": False}]
    ledger.append("rejected", "digits", None, Actor("bob", "operating system"), {"gates": gates})
    ledger.append("rejected", "other", None, ADA, {})
    intent = move(ledger, None, 1, ended=False)
    ledger.append("abandoned", "digits", 1, ADA, {"alias": "champion", "intent": intent.seq})
    move(ledger, None, 2)
    ledger.append("refused", "digits", 2, ADA, {"reason": "a \x1b[31mred\x1b[0m herring\nof two"})
    assert main(["digits"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "time (UTC)           event      version  actor                   what",
        "2026-11-23 14:00:00  rejected            bob (operating system)  failed: quality",
        "2026-11-23 14:02:00  intent     1        ada (tracking server)   champion nothing -> 1",
        "2026-11-23 14:03:00  abandoned  1        ada (tracking server)   champion was not moved "
        "(event 3)",
        "2026-11-23 14:04:00  intent     2        ada (tracking server)   champion nothing -> 2",
        "2026-11-23 14:05:00  done       2        ada (tracking server)   champion nothing -> 2",
        "2026-11-23 14:06:00  refused    2        ada (tracking server)   "
        "a ?[31mred?[0m herring?of two",
    ]
    assert main(["digits", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert [one["seq"] for one in json.loads(line)["events"]] == [1, 3, 4, 5, 6, 7]
    assert "late" not in as_table(ledger.events())


def test_the_first_digits_of_a_fingerprint_name_what_became_of_a_dataset(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    fingerprint = "0123456789ab" + "c" * 52
    ledger.append("erased", fingerprint, None, ADA, {"phase": "begun", "dataset": fingerprint})
    assert main([fingerprint[:12]]) == 0
    assert "erased" in capsys.readouterr().out
    assert main([fingerprint[:11]]) == 2


def test_a_hook_says_how_it_ended_and_of_which_move_it_told(ledger: Ledger) -> None:
    body = {"move": 2, "command": ["notify"], "attempts": 1}
    ledger.append("hook", "digits", 1, ADA, {**body, "succeeded": True, "reason": ""})
    late = {"succeeded": False, "reason": "it took longer than 5 s"}
    ledger.append("hook", "digits", 1, ADA, {**body, **late})
    assert [describe(event) for event in ledger.events()] == [
        "succeeded (after event 2)",
        "failed, it took longer than 5 s (after event 2)",
    ]


def test_a_decision_says_which_candidate_it_is_about(ledger: Ledger) -> None:
    gates = [{"name": "quality", "passed": False}]
    body = {"alias": "champion", "candidate": "digits-candidates/7"}
    ledger.append("rejected", "digits", None, ADA, {"gates": gates, **body})
    proposed = ledger.append("proposed", "digits", 2, ADA, body)
    ledger.append("approved", "digits", 2, ADA, {"alias": "champion", "proposal": proposed.seq})
    assert [describe(event) for event in ledger.events()] == [
        "candidate 7, failed: quality",
        "candidate 7, as champion",
        "as champion (proposed in event 2)",
    ]


@pytest.mark.parametrize(
    ("at", "said", "version", "moving_to"),
    [
        ("2026-11-23T13:59Z", "no version.", None, None),
        ("2026-11-23T14:00:30Z", "no version or version 1; it was being moved", None, 1),
        ("2026-11-23T15:01+01:00", "version 1, since 2026-11-23 14:01:00 (by ada, known", 1, None),
        ("2026-11-23T14:02:30Z", "version 1 or version 2; it was being moved", 1, 2),
        ("2026-11-24T00:00Z", "version 2, since 2026-11-23 14:03:00 (by ada, known", 2, None),
    ],
)
def test_what_held_the_alias_then_is_said_in_one_line(
    ledger: Ledger,
    capsys: pytest.CaptureFixture[str],
    at: str,
    said: str,
    version: int | None,
    moving_to: int | None,
) -> None:
    move(ledger, None, 1)
    move(ledger, 1, 2)
    assert main(["digits", "--at", at]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("digits@champion at 2026-11-2")
    assert said in line
    assert main(["digits", "--at", at, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["version"], found["moving_to"]) == (version, moving_to)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["digits", "--at", "2026-11-23T14:03"], 2, "--at names no time zone"),
        (["digits", "--at", "yesterday"], 2, "--at is no time; expected ISO 8601"),
        (["digits", "--at", "2999-01-01T00:00Z"], 2, "--at is yet to come"),
        (["digits", "--at", "2026-11-23T14:03Z", "--check"], 2, "ask for two answers"),
        (["digit"], 2, "knows no model 'digit'; expected one of digits; did you mean 'digits'?"),
    ],
)
def test_a_wrong_question_is_answered_in_one_line(
    ledger: Ledger,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    move(ledger, None, 1)
    assert main(arguments) == code
    found = capsys.readouterr()
    assert said in found.err
    assert len(found.err.strip().splitlines()) == 1
    assert found.out == ""


def test_without_a_ledger_that_is_said_and_none_is_made(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["digits"]) == 1
    assert "there is no ledger at" in capsys.readouterr().err
    assert not settings.home.exists()


def test_the_check_asks_mlflow(
    home_with_database: Settings, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = home_with_database
    client = open_store_client(settings)
    ensure_registered_model(client, "digits")
    run_id = client.create_run(ensure_experiment(client, "digits-releases")).info.run_id
    client.create_model_version("digits", f"runs:/{run_id}/release", run_id)
    client.set_registered_model_alias("digits", "champion", "1")
    assert main(["digits", "--check"]) == 1
    alias, version = capsys.readouterr().out.splitlines()
    assert alias.startswith("the alias 'champion' holds version 1 in MLflow; by the ledger it hold")
    assert version.startswith("version 1 is in MLflow, and no event of the ledger names it")
    move(ledger, None, 1)
    assert main(["digits", "--check", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["differences"] == ["version 1 has no statement in MLflow."]
    file = settings.home / "release.json"
    file.write_text(json.dumps({"ledger_head": None}))
    client.log_artifact(run_id, str(file), "release")
    assert main(["digits", "--check"]) == 0
    assert "MLflow holds what its 2 events say" in capsys.readouterr().out
    assert main(["digit", "--check"]) == 2
    assert "did you mean 'digits'?" in capsys.readouterr().err


def test_a_broken_chain_is_said_before_anything_is_compared(
    settings: Settings, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    move(ledger, None, 1)
    engine = sa.create_engine(settings.ledger_url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER ledger_no_update")
        connection.exec_driver_sql("UPDATE ledger_events SET actor = 'eve' WHERE seq = 1")
    assert main(["digits", "--check"]) == 1
    assert capsys.readouterr().out.startswith("event 1 was changed")
    assert not (settings.home / "mlflow.db").exists()


def test_a_time_is_read_in_any_zone() -> None:
    assert read_time("2026-11-23T14:03Z") == read_time("2026-11-23T15:03:00+01:00")


def test_the_history_needs_neither_tensorflow_nor_mlflow(ledger: Ledger) -> None:
    move(ledger, None, 1)
    code = (
        "import sys; from registry.history import main; main(['digits']); "
        "print([name for name in ('tensorflow', 'keras', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"
