"""What the ledger keeps of an erasure: a begin, an event a release, and a signed tombstone.

All are events of the kind "erased". Of a release that was erased `name` and `version` are its own;
of the erasure as a whole `name` is the dataset's fingerprint:

    {"dataset", "phase": "begun", "found": {kind: n}, "releases": ["NAME/VERSION", ...]}
    {"dataset", "phase": "done", "statement": {...}, "signature": {"key", "signature"}}

The begin comes before anything is gone. So an erasure that was killed is known to be open, and the
tombstone tells all of it, whatever is left for the try that completes it. Events from before an
erasure stay as they are: they name the dataset by its fingerprint, and hold no row of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from registry.events import Actor, Event

STATEMENT_FORMAT: Final = 1


def find_begun(events: Iterable[Event]) -> dict[str, list[Event]]:
    """Returns the begins of erasures that are not done, by dataset; one or more each."""
    begun: dict[str, list[Event]] = {}
    for event in events:
        if event.kind == "erased" and event.body.get("dataset") == event.name:
            if event.body.get("phase") == "begun":
                begun.setdefault(event.name, []).append(event)
            else:
                begun.pop(event.name, None)
    return begun


def build_statement(
    begun: Sequence[Event], actor: Actor, when: datetime, head: str | None, notes: Sequence[str]
) -> dict[str, Any]:
    """Returns what is said of an erasure that is done.

    Args:
        begun: Its begins; a try that went on after a kill found less than the first.
        actor: Who completed it.
        when: Aware.
        head: Hash of the newest event of the ledger.
        notes: What was looked at afterwards.
    """
    found: dict[str, int] = {}
    releases: set[str] = set()
    for event in begun:
        for kind, n in event.body["found"].items():
            found[kind] = max(n, found.get(kind, 0))
        releases |= set(event.body["releases"])
    return {
        "format": STATEMENT_FORMAT,
        "dataset": begun[0].name,
        "begun_at": begun[0].created_at.isoformat(),
        "erased_at": when.isoformat(),
        "erased": dict(sorted(found.items())),
        "releases": sorted(releases),
        "looked_at": list(notes),
        "actor": asdict(actor),
        "ledger_head": head,
    }


def to_bytes(statement: dict[str, Any]) -> bytes:
    """Returns canonical JSON: sorted keys, no spaces, ASCII. These bytes are signed."""
    return json.dumps(statement, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def find_unsigned(events: Iterable[Event], keys: Sequence[Path]) -> list[str]:
    """Returns one sentence for each tombstone whose signature does not verify.

    Raises:
        UsageError: a public key is missing.
    """
    return [
        f"the tombstone of dataset {event.name} (event {event.seq}) does not verify."
        for event in events
        if event.kind == "erased" and event.body.get("phase") == "done" and not verify(event, keys)
    ]


def verify(event: Event, keys: Sequence[Path]) -> bool:
    """Tells whether any of the public keys signed an event's tombstone, for that dataset.

    Raises:
        UsageError: a public key is missing.
    """
    from registry.signing import verify_bytes

    statement, signature = event.body.get("statement"), event.body.get("signature")
    if not isinstance(statement, dict) or statement.get("dataset") != event.name:
        return False
    return verify_bytes(to_bytes(statement), json.dumps(signature).encode(), keys)


def count_words(found: dict[str, int]) -> str:
    """Returns counts as in "3 runs, 1 study"."""
    plural = {"study": "studies", "alias": "aliases", "serving copy": "serving copies"}
    words = [
        f"{n} {kind if n == 1 else plural.get(kind, f'{kind}s')}"
        for kind, n in sorted(found.items())
        if n
    ]
    return ", ".join(words) or "nothing"
