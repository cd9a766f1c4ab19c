"""The command after a move: real programs, and what the ledger says of them."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from registry.alias import Registry
from registry.hook import HookResult, run_after_move, run_hook
from registry.ledger import Event
from registry.policy import Hook, Policy
from registry.promote import main, promote
from tests.registry.sides import NAME

Register = Callable[..., int]


def shell(script: str, *args: Path | str) -> tuple[str, ...]:
    """A hook is run without a shell; one that needs it says so."""
    return ("sh", "-c", script, "hook", *map(str, args))


def with_hook(registry: Registry, command: Sequence[str], attempts: int = 1) -> Registry:
    return dataclasses.replace(registry, policy=Policy(hook=Hook(tuple(command), attempts)))


def hook_events(registry: Registry) -> list[Event]:
    return [event for event in registry.ledger.events(NAME) if event.kind == "hook"]


def a_move(registry: Registry) -> Event:
    body = {"alias": "champion", "from": 2, "to": 1, "intent": 6}
    return registry.ledger.append("rolled_back", NAME, 1, registry.actor, body)


COUNT = 'echo >> "$1"; test "$(wc -l < "$1")" -ge "$2"'
"""Fails until it was run as often as the second word says."""


TAKE_LEASE = """
import sys
from registry.ledger import open_ledger
url, name = sys.argv[1:]
with open_ledger(url) as ledger, ledger.lease(name, "the hook"):
    pass
"""
"""Fails while anybody changes the model."""


def test_a_command_that_succeeds_is_run_once(tmp_path: Path) -> None:
    hook = Hook(shell(COUNT, tmp_path / "runs", "1"), attempts=5)
    assert run_hook(hook, {}, wait_s=0) == HookResult(1, "")
    assert len((tmp_path / "runs").read_text()) == 1


def test_a_command_that_fails_twice_is_run_a_third_time(tmp_path: Path) -> None:
    hook = Hook(shell(COUNT, tmp_path / "runs", "3"), attempts=5)
    result = run_hook(hook, {}, wait_s=0)
    assert (result, result.succeeded) == (HookResult(3, ""), True)
    assert len((tmp_path / "runs").read_text()) == 3


def test_the_wait_doubles_and_is_not_made_after_the_last_attempt() -> None:
    began = time.monotonic()
    run_hook(Hook(("false",), attempts=3), {}, wait_s=0.3)
    assert 0.3 + 0.6 <= time.monotonic() - began < 0.3 + 0.6 + 1.2


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (shell("exit 7"), "it exited with 7"),
        (("no-such-program-anywhere",), "it could not be started: No such file or directory"),
        (("/",), "it could not be started: Permission denied"),
    ],
)
def test_a_command_that_always_fails_says_why(command: tuple[str, ...], reason: str) -> None:
    result = run_hook(Hook(command, attempts=3), {}, wait_s=0)
    assert (result, result.succeeded) == (HookResult(3, reason), False)


def test_a_command_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    late = tmp_path / "late"
    hook = Hook(shell('read -r line; sleep 1; echo > "$1"', late), attempts=2, timeout_s=0.2)
    assert run_hook(hook, {}, wait_s=0) == HookResult(2, "it took longer than 0.2 s")
    time.sleep(1.2)
    assert not late.exists()


def test_each_attempt_is_told_the_same(tmp_path: Path) -> None:
    hook = Hook(shell('cat >> "$1"; echo >> "$1"; exit 1', tmp_path / "told"), attempts=2)
    run_hook(hook, {"alias": "champion", "to": 3}, wait_s=0)
    first, second = (tmp_path / "told").read_text().splitlines()
    assert first == second
    assert json.loads(first) == {"alias": "champion", "to": 3}


def test_a_command_that_reads_nothing_and_prints_much_is_not_stopped_by_that(
    capfd: pytest.CaptureFixture[str],
) -> None:
    hook = Hook(shell("head -c 1000000 /dev/zero; echo noise >&2"), attempts=1)
    assert run_hook(hook, {"long": "x" * 1_000_000}, wait_s=0) == HookResult(1, "")
    assert capfd.readouterr() == ("", "")


def test_without_a_hook_nothing_is_recorded(registry: Registry) -> None:
    run_after_move(registry, a_move(registry), wait_s=0)
    assert hook_events(registry) == []


def test_the_command_gets_the_move_as_one_json_object(registry: Registry, tmp_path: Path) -> None:
    moved = a_move(registry)
    registry = with_hook(registry, shell('cat > "$1"', tmp_path / "told"))
    run_after_move(registry, moved, wait_s=0)
    told = json.loads((tmp_path / "told").read_text())
    assert datetime.fromisoformat(told.pop("at")) == moved.created_at
    assert told == {
        "event": "rolled_back",
        "seq": moved.seq,
        "name": NAME,
        "actor": registry.actor.name,
        "alias": "champion",
        "from": 2,
        "to": 1,
    }


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("exit 0", {"attempts": 1, "succeeded": True, "reason": ""}),
        ("exit 7", {"attempts": 2, "succeeded": False, "reason": "it exited with 7"}),
    ],
)
def test_how_it_ended_stands_in_the_ledger(
    registry: Registry, script: str, expected: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    moved = a_move(registry)
    run_after_move(with_hook(registry, shell(script), attempts=2), moved, wait_s=0)
    (event,) = hook_events(registry)
    assert event.body == {"move": moved.seq, "command": list(shell(script)), **expected}
    assert (event.name, event.version, event.actor) == (NAME, 1, registry.actor)
    assert registry.ledger.check() == []
    said = capsys.readouterr().err
    failed = "The hook failed 2 time(s): it exited with 7. The alias has moved.\n"
    assert said == ("" if expected["succeeded"] else failed)


def test_a_promotion_runs_it_after_the_move_and_without_the_lease(
    registry: Registry, register: Register
) -> None:
    register(right=9.0, value=0.99)
    command = (sys.executable, "-c", TAKE_LEASE, registry.settings.ledger_url, NAME)
    done = promote(with_hook(registry, command), NAME)
    events = registry.ledger.events(NAME)
    assert done.decision == "promoted"
    assert [event.kind for event in events] == ["intent", "done", "hook"]
    assert events[2].body["move"] == events[1].seq
    assert events[2].body["reason"] == ""


def test_a_promotion_that_moves_nothing_runs_nothing(
    registry: Registry, register: Register
) -> None:
    register(right=-9.0, value=0.99)
    hooked = with_hook(registry, ("true",))
    assert promote(hooked, NAME).decision == "rejected"
    register(right=9.0, value=0.999)
    assert promote(hooked, NAME, propose=True).decision == "proposed"
    assert hook_events(registry) == []


def test_the_program_ends_with_0_although_the_hook_always_fails(
    registry: Registry, register: Register, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register(right=9.0, value=0.99)
    policy = tmp_path / "policy.toml"
    policy.write_text(Policy(hook=Hook(("false",), attempts=1)).to_toml())
    assert main([NAME, "--json", "--policy", str(policy)]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["decision"] == "promoted"
    assert "The hook failed 1 time(s): it exited with 1. The alias has moved." in said.err
    assert registry.catalog.find_aliases(NAME) == {"champion": 1}
    (event,) = hook_events(registry)
    assert (event.body["succeeded"], event.body["reason"]) == (False, "it exited with 1")


def test_what_a_late_command_started_ends_with_it(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    script = f"(sleep 1.5; touch {mark}) & wait"
    result = run_hook(Hook(("sh", "-c", script), attempts=1, timeout_s=0.3), {}, wait_s=0.0)
    assert "longer than 0.3 s" in result.reason
    time.sleep(2.0)
    assert not mark.exists()
