"""Events of the ledger, and the chain that their hashes make; pure.

An event holds the hash of the one before it, so that nothing in the middle can be changed, taken
out or put in without a break that `find_breaks` tells. A tail that was cut is no break: it shows in
the signed releases, each of whose statements holds the hash that was the newest when it was made
(`registry.history`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from typing import Any, Literal

Kind = Literal[
    "proposed",
    "approved",
    "intent",
    "done",
    "rolled_back",
    "abandoned",
    "rejected",
    "refused",
    "erased",
    "hook",
]

COLUMNS = (
    *("seq", "kind", "name", "version", "actor", "known_by", "created_at", "body", "login"),
    *("previous", "hash"),
)


@dataclass(frozen=True, slots=True)
class Actor:
    """Who did it, and who authenticated that name."""

    name: str
    known_by: Literal["tracking server", "database", "operating system"]


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the ledger.

    Attributes:
        seq: 1, 2, 3, ...: one chain for the whole ledger.
        name: The model; of an erasure as a whole the dataset's fingerprint (`registry.tombstone`).
        version: The release that it is about.
        created_at: Aware UTC, never before that of the event before it.
        body: Plain JSON values; what is in it depends on the kind (`registry.moves`).
        login: Who wrote it: the session's user of PostgreSQL, or the user of the machine.
        previous: `hash` of the event before; "" for the first.
        hash: SHA-256, in hex, of the canonical JSON (sorted keys, no spaces, ASCII) of all the
            other fields.
    """

    seq: int
    kind: Kind
    name: str
    version: int | None
    actor: Actor
    created_at: datetime
    body: dict[str, Any]
    login: str
    previous: str
    hash: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns all fields as plain JSON values, the time in ISO 8601 with microseconds."""
        # Not by asdict: it copies all of the body, which takes most of the time of a check.
        values: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}
        created_at = self.created_at.isoformat(timespec="microseconds")
        return values | {"actor": asdict(self.actor), "created_at": created_at}

    def to_row(self) -> dict[str, Any]:
        """Returns the values of `COLUMNS`, as a database of any make keeps them unchanged."""
        row = self.to_json() | {"body": _canonical(self.body)}
        return row | {"actor": self.actor.name, "known_by": self.actor.known_by}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Event:
        """Reads what `to_row` gave.

        Raises:
            ValueError: it was changed so that it cannot be read.
        """
        values = dict(row)
        try:
            values["actor"] = Actor(values["actor"], values.pop("known_by"))
            values["created_at"] = datetime.fromisoformat(values["created_at"])
            values["body"] = dict(json.loads(values["body"]).items())
            event = cls(**values)
            if event.created_at.tzinfo is None or not _has_move(event):
                raise TypeError("it lacks what its kind has")
            return event
        except (TypeError, AttributeError, RecursionError) as err:
            raise ValueError(f"event {row['seq']} cannot be read: {err}") from err


def _has_move(event: Event) -> bool:
    """Tells whether an event that is part of a move says which."""
    needed = {
        "intent": {"alias", "from", "to", "move"},
        "done": {"alias", "from", "to", "intent"},
        "rolled_back": {"alias", "from", "to", "intent"},
        "abandoned": {"alias", "intent"},
        "proposed": {"alias"},
    }.get(event.kind, set())
    return needed <= event.body.keys()


def hash_event(event: Event) -> str:
    """Returns what `event.hash` must be."""
    values = event.to_json()
    del values["hash"]
    return hashlib.sha256(_canonical(values).encode()).hexdigest()


def with_hash(event: Event) -> Event:
    return replace(event, hash=hash_event(event))


def find_breaks(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns one sentence for each break of a chain; none is good.

    Args:
        rows: The values of `COLUMNS` of every event, by rising `seq`.
    """
    breaks = []
    before: Mapping[str, Any] = {"seq": 0, "hash": "", "created_at": ""}
    for row in rows:
        where, last = f"event {row['seq']}", f"event {before['seq']}"
        breaks += [f"{where} {wrong}." for wrong in _find_changes(row)]
        if row["previous"] != before["hash"]:
            breaks.append(
                f"{where} does not follow {last}: something was changed, put in or taken out there."
                if before["seq"]
                else f"{where} is not the first that was written."
            )
        if str(row["created_at"]) < str(before["created_at"]):
            breaks.append(f"{where} is dated before {last}.")
        before = row
    return breaks


def _find_changes(row: Mapping[str, Any]) -> Iterator[str]:
    try:
        event = Event.from_row(row)
        changed = hash_event(event) != event.hash
    except ValueError:
        yield "was changed: it cannot be read any more"
        return
    if changed:
        yield "was changed: its content is not what its hash was made of"
    if event.actor.known_by == "database" and event.actor.name != event.login:
        yield f"was written by {event.login!r} in another's name"


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
