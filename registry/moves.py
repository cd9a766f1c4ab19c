"""What the ledger's moves say: who held an alias when, and what to roll back to; pure.

A move is two events, so that a crash between them leaves a trace: an intent before the alias moves,
and an end after it. The end is `done` (a promotion) or `rolled_back`; or `abandoned`, where the
next command found that the alias had never moved. Their bodies:

    intent             {"alias", "from": int | None, "to": int, "move": "promote" | "rollback"}
    done, rolled_back  {"alias", "from", "to", "intent": seq of the intent}
    abandoned          {"alias", "intent"}

Further keys may stand there. `by_hand` is true where the alias stood at `to` already, though the
ledger knew of no such move: somebody moved it without Podium, and this recorded it; `from` is then
what the ledger held. Earlier versions wrote `from` equal to `to` there. Where the ledger held `to`
itself, such a move changed nothing.

All functions but `count_decisions` take the events of one model, oldest first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from registry.events import Event

LATEST = datetime.max.replace(tzinfo=UTC)
MOVED = ("done", "rolled_back")
ENDS = (*MOVED, "abandoned")


@dataclass(frozen=True, slots=True)
class Holding:
    """Who held an alias at a time.

    Attributes:
        version: The release; None for nobody.
        moving_to: Where the alias was being moved right then, so that which of the two answered
            cannot be told; None where it stood still.
        since: Since when that was so: the time of `event`.
        event: The intent while it was moving, else the end of the move that brought it there.
    """

    version: int | None = None
    moving_to: int | None = None
    since: datetime | None = None
    event: Event | None = None


@dataclass(frozen=True, slots=True)
class Misplaced:
    """An alias that is not where the ledger says.

    Attributes:
        found: The version that it holds; None for none.
        expected: The version that it holds by the ledger; None for none.
    """

    alias: str
    found: int | None
    expected: int | None


def open_intent(events: Sequence[Event], alias: str) -> Event | None:
    """Returns the intent of the move that has not ended: one going on, or one interrupted."""
    moves = [event for event in events if event.body.get("alias") == alias]
    ended = {event.body["intent"] for event in moves if event.kind in ENDS}
    is_open = [event for event in moves if event.kind == "intent" and event.seq not in ended]
    return is_open[-1] if is_open else None


def holding_at(events: Sequence[Event], alias: str, when: datetime) -> Holding:
    """Returns who held the alias at a time.

    A move that was interrupted counts as moving until the command that found it wrote its end; one
    that was abandoned, at no time.

    Args:
        events: All events of the model, those after `when` too: an intent may be abandoned later.
        alias: Its name.
        when: Aware. An event of that very instant has happened.
    """
    abandoned = {event.body["intent"] for event in events if event.kind == "abandoned"}
    found = Holding()
    for event in events:
        # Passed over, not stopped at: one clock may have been ahead once.
        if event.created_at > when or not _is_of(event, alias) or event.seq in abandoned:
            continue
        if _replaced(event, found.version) == event.body["to"]:
            continue  # it held it all the time
        if event.kind == "intent":
            found = Holding(found.version, event.body["to"], event.created_at, event)
        else:
            found = Holding(event.body["to"], None, event.created_at, event)
    return found


def present_holder(events: Sequence[Event], alias: str) -> int | None:
    """Returns the version that holds an alias now, as the ledger knows it."""
    return holding_at(events, alias, LATEST).version


def previous_holder(events: Sequence[Event], alias: str) -> int | None:
    """Returns the version to roll back to; None where the present holder replaced none.

    That is the one that the present holder replaced when it was last promoted. So after promotions
    of 1, 2 and 3 a rollback goes to 2, and another one to 1.
    """
    holder: int | None = None
    replaced: dict[int, int | None] = {}
    for event in events:
        if event.kind not in MOVED or not _is_of(event, alias):
            continue
        was, to = _replaced(event, holder), event.body["to"]
        if event.kind == "done" and was != to:
            replaced[to] = was
        holder = to
    return None if holder is None else replaced.get(holder)


def find_misplaced(events: Sequence[Event], aliases: Mapping[str, int]) -> list[Misplaced]:
    """Returns the aliases that are not where the ledger says, by name.

    One that is being moved may be at either end; one whose release was erased may be gone.

    Args:
        events: The model's.
        aliases: The version that each of its aliases holds in MLflow.
    """
    names = {event.body["alias"] for event in events if event.kind in ("intent", *MOVED)}
    erased = {event.version for event in events if event.kind == "erased"}
    misplaced = []
    for alias in sorted({*names, *aliases}):
        found, expected = aliases.get(alias), present_holder(events, alias)
        intent = open_intent(events, alias)
        ends = () if intent is None else (intent.body["from"], intent.body["to"])
        gone = found is None and expected in erased
        if found != expected and found not in ends and not gone:
            misplaced.append(Misplaced(alias, found, expected))
    return misplaced


def count_decisions(events: Iterable[Event], dataset_fingerprint: str) -> int:
    """Returns how many decisions were made on a dataset's test rows, of whatever models.

    Args:
        events: The whole ledger.
        dataset_fingerprint: What `body["dataset"]` of a decision names.
    """
    return sum(
        event.body.get("dataset") == dataset_fingerprint
        and (
            event.kind in ("rejected", "proposed")
            or (event.kind == "intent" and event.body.get("move") == "promote")
        )
        for event in events
    )


def _is_of(event: Event, alias: str) -> bool:
    """Tells whether the event is part of a move of the alias that may have moved it."""
    return event.kind in ("intent", *MOVED) and event.body.get("alias") == alias


def _replaced(event: Event, holder: int | None) -> int | None:
    """Returns what a move replaced; `holder` is who held the alias by the ledger until then."""
    was: int | None = event.body["from"]
    return holder if was == event.body["to"] else was
