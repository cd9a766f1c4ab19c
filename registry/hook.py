"""The command that a policy wants run after an alias has moved."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import Any

from mlops.program import say
from registry.alias import Registry
from registry.ledger import Event
from registry.policy import Hook

_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class HookResult:
    """How the command ended.

    Attributes:
        attempts: How often it was run.
        reason: Why the last attempt failed; empty where it did not.
    """

    attempts: int
    reason: str

    @property
    def succeeded(self) -> bool:
        return not self.reason


def run_hook(hook: Hook, event: dict[str, Any], wait_s: float = _WAIT_S) -> HookResult:
    """Runs the command until it exits with 0, `hook.attempts` times at most.

    It gets the move as one JSON object on its standard input. What it prints goes nowhere.

    Args:
        wait_s: Seconds before the second attempt; doubled before each further one.
    """
    reason = ""
    for attempt in range(1, hook.attempts + 1):
        reason = _run_once(hook, json.dumps(event).encode())
        if not reason:
            return HookResult(attempt, "")
        if attempt < hook.attempts:
            time.sleep(wait_s * 2 ** (attempt - 1))
    return HookResult(hook.attempts, reason)


def _run_once(hook: Hook, told: bytes) -> str:
    """Returns why it failed; "" where it did not. What it started ends with it, if it is late."""
    try:
        process = subprocess.Popen(
            hook.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except (OSError, ValueError) as err:
        return f"it could not be started: {getattr(err, 'strerror', None) or err}"
    with process:
        try:
            process.communicate(told, hook.timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return f"it took longer than {hook.timeout_s:g} s"
    return "" if process.returncode == 0 else f"it exited with {process.returncode}"


def run_after_move(registry: Registry, moved: Event, wait_s: float = _WAIT_S) -> None:
    """Runs the policy's hook after a move, and records how it ended. The move stands all the same.

    Not while the lease is held: a slow command must not keep others from rolling back.

    Args:
        wait_s: As in `run_hook`.
    """
    hook = registry.policy.hook
    if hook is None:
        return
    told = {
        "event": moved.kind,
        "seq": moved.seq,
        "name": moved.name,
        "actor": moved.actor.name,
        "at": moved.created_at.isoformat(),
        **{key: moved.body[key] for key in ("alias", "from", "to")},
    }
    result = run_hook(hook, told, wait_s)
    if not result.succeeded:
        say(f"The hook failed {result.attempts} time(s): {result.reason}. The alias has moved.")
    body = {
        "move": moved.seq,
        "command": list(hook.command),
        "attempts": result.attempts,
        "succeeded": result.succeeded,
        "reason": result.reason,
    }
    registry.ledger.append("hook", moved.name, moved.version, registry.actor, body)
