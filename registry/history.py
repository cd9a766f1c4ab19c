"""python -m registry.history NAME: what was decided and moved, when and by whom; from the ledger.

`--at` answers what held an alias at a time. `--check` verifies the ledger's chain, and compares
what it says with what MLflow holds.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mlops.errors import UsageError, choose
from mlops.program import answer, answer_json, run_program
from mlops.settings import Settings
from registry.events import Event
from registry.moves import MOVED, Holding, find_misplaced, holding_at, open_intent

if TYPE_CHECKING:
    from registry.catalog import Catalog
    from registry.ledger import Ledger

Statement = tuple[dict[str, Any], str]
"""A release's statement, and the SHA-256 of its bytes in hex."""


def compare(
    events: Sequence[Event],
    heads: Collection[str],
    aliases: Mapping[str, int],
    statements: Mapping[int, Statement | None],
) -> list[str]:
    """Returns one sentence for each difference between the ledger and MLflow; none is good.

    Args:
        events: The model's, oldest first.
        heads: The hashes of all events of the ledger.
        aliases: The version that each alias of the model holds in MLflow.
        statements: That of each version of the model in MLflow; None where one has none.
    """
    moved = {event.body["to"]: event for event in events if event.kind in MOVED}
    intents = {event.seq: event for event in events if event.kind == "intent"}
    erased = {event.version for event in events if event.kind == "erased"}
    differences = [*_compare_aliases(events, aliases), *_find_gone(events, statements)]
    for version, event in sorted(moved.items()):
        if version in erased or version not in statements:
            continue
        intent = intents.get(event.body["intent"])
        expected = None if intent is None else intent.body.get("statement_sha256")
        wrong = _find_wrong(statements[version], heads, expected)
        differences += [f"version {version} {wrong}."] if wrong else []
    # Of those that no alias was moved to, too: their heads show a tail of the ledger that was cut.
    differences += [
        f"version {version} {wrong}."
        for version in sorted(set(statements) - set(moved))
        if (wrong := statements[version] and _find_wrong(statements[version], heads, None))
    ]
    return [*differences, *_find_unnamed(events, statements)]


def compare_places(
    events: Sequence[Event], aliases: Mapping[str, int], versions: Collection[int]
) -> list[str]:
    """Returns what `compare` finds without any statement: aliases elsewhere, versions too many.

    Args:
        events: The model's, oldest first.
        aliases: The version that each alias of the model holds in MLflow.
        versions: All versions of the model in MLflow.
    """
    return [
        *_compare_aliases(events, aliases),
        *_find_gone(events, versions),
        *_find_unnamed(events, versions),
    ]


def _find_gone(events: Sequence[Event], versions: Collection[int]) -> Iterator[str]:
    moved = {event.body["to"] for event in events if event.kind in MOVED}
    erased = {event.version for event in events if event.kind == "erased"}
    for version in sorted(moved - erased - set(versions)):
        yield f"version {version} was released, and MLflow has it no more."


def _find_unnamed(events: Sequence[Event], versions: Collection[int]) -> Iterator[str]:
    for version in sorted(set(versions) - _find_versions(events)):
        yield (
            f"version {version} is in MLflow, and no event of the ledger names it: a promotion was "
            "killed before it came to move the alias, or somebody made it without one."
        )


def _compare_aliases(events: Sequence[Event], aliases: Mapping[str, int]) -> Iterator[str]:
    for alias in sorted({event.body["alias"] for event in events if event.kind == "intent"}):
        intent = open_intent(events, alias)
        if intent is not None:
            yield (
                f"the move of {alias!r} {_arrow(intent)} (event {intent.seq}) has no end: it is "
                "going on, or was interrupted and the next promotion or rollback settles it."
            )
    for one in find_misplaced(events, aliases):
        yield (
            f"the alias {one.alias!r} holds {_version(one.found)} in MLflow; by the ledger it "
            f"holds {_version(one.expected)}."
        )


def _find_wrong(
    statement: Statement | None, heads: Collection[str], sha256: str | None
) -> str | None:
    """Returns what is wrong with a release's statement, to go on from the release's name."""
    if statement is None:
        return "has no statement in MLflow"
    said, found = statement
    if sha256 not in (None, found):
        return f"has another statement than it was released with; expected {sha256}, got {found}"
    # The first of all has nothing to name.
    head = said.get("ledger_head")
    if head and head not in heads:
        return f"was released when the ledger ended with {head}, which is not in it any more"
    return None


def _find_versions(events: Iterable[Event]) -> set[int | None]:
    return {version for event in events for version in (event.version, event.body.get("to"))}


def describe(event: Event) -> str:
    """Returns in a few words what an event says beyond its kind and its version."""
    body = event.body
    if event.kind in ("intent", *MOVED):
        notes = (
            ", moved to it by hand before" if body.get("by_hand") else "",
            ", which it held in MLflow already" if body["from"] == body["to"] else "",
            ", found done by the next command" if body.get("late") else "",
        )
        return f"{body['alias']} {_arrow(event)}{''.join(notes)}"
    if event.kind == "abandoned":
        return f"{body['alias']} was not moved (event {body['intent']})"
    if event.kind == "approved":
        return f"as {body.get('alias')} (proposed in event {body.get('proposal')})"
    if event.kind == "hook":
        ended = "succeeded" if body["succeeded"] else f"failed, {body['reason']}"
        return f"{ended} (after event {body['move']})"
    failed = [gate["name"] for gate in body.get("gates", ()) if not gate["passed"]]
    says = [
        _candidate(event),
        f"as {body.get('alias')}" if event.kind == "proposed" else "",
        f"failed: {', '.join(failed)}" if failed else str(body.get("reason") or ""),
    ]
    return ", ".join(filter(None, says))


def _candidate(event: Event) -> str:
    """Returns which candidate was decided on; "" where the event does not say."""
    number = str(event.body.get("candidate") or "").rpartition("/")[2]
    return f"candidate {number}" if number else ""


def as_table(events: Iterable[Event]) -> str:
    """Returns a line an event, oldest first, under a heading."""
    rows = [("time (UTC)", "event", "version", "actor", "what")]
    rows += [
        (
            _utc(event.created_at),
            event.kind.replace("_", " "),
            "" if event.version is None else str(event.version),
            f"{event.actor.name} ({event.actor.known_by})",
            describe(event),
        )
        for event in events
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join(_harmless(line) for line in lines)


def in_words(name: str, alias: str, when: datetime, holding: Holding) -> str:
    """Returns in one line who held an alias at a time."""
    where = f"{name}@{alias} at {_utc(when)} UTC:"
    event = holding.event
    if event is None or holding.since is None:
        return f"{where} no version."
    actor = f"by {_harmless(event.actor.name)}, known by the {event.actor.known_by}"
    since = _utc(holding.since)
    if holding.moving_to is not None:
        return (
            f"{where} {_version(holding.version)} or version {holding.moving_to}; it was being "
            f"moved from the one to the other since {since} ({actor})."
        )
    return f"{where} {_version(holding.version)}, since {since} ({actor})."


def read_time(text: str) -> datetime:
    """Reads a time as people type it.

    Raises:
        UsageError: it is no time, or names no time zone.
    """
    expected = "expected ISO 8601 with a time zone, as in 2026-11-23T14:03Z"
    try:
        when = datetime.fromisoformat(text)
    except ValueError as err:
        raise UsageError(f"--at is no time; {expected}, got {text!r}.") from err
    if when.tzinfo is None:
        raise UsageError(f"--at names no time zone; {expected}, got {text!r}.")
    return when.astimezone(UTC)


def _arrow(event: Event) -> str:
    was = event.body["from"]
    return f"{'nothing' if was is None else was} -> {event.body['to']}"


def _version(version: int | None) -> str:
    return "no version" if version is None else f"version {version}"


def _utc(when: datetime) -> str:
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _harmless(text: str) -> str:
    """Returns text that steers no terminal: some of it is from refused models."""
    return "".join(char if char.isprintable() else "?" for char in text)


@dataclass(frozen=True)
class Options:
    name: Annotated[str, tyro.conf.Positional]
    """The model, as in digits-classifier."""
    at: str | None = None
    """Say what held the alias then, as in 2026-11-23T14:03Z."""
    alias: str = "champion"
    """The alias that --at asks about."""
    check: bool = False
    """Verify the ledger and compare it with MLflow; exit code 1 where they differ."""
    json: bool = False
    """Print the result as one JSON line."""
    debug: bool = False
    """Show the traceback of an error."""


def _main(options: Options) -> int:
    from registry.ledger import open_ledger

    when = None if options.at is None else read_time(options.at)
    if when is not None and options.check:
        raise UsageError("--at and --check ask for two answers; expected one of them.")
    if when is not None and when > datetime.now(UTC):
        raise UsageError(f"--at is yet to come; expected a time gone by, got {options.at!r}.")
    settings = Settings.from_env()
    with open_ledger(settings.ledger_url, make=False) as ledger:
        options = replace(options, name=_in_full(ledger, options.name))
        if options.check:
            return _check(ledger, settings, options)
        events = _get_events(ledger, options.name)
    if when is not None:
        _answer_at(events, when, options)
    elif options.json:
        answer_json({"name": options.name, "events": [event.to_json() for event in events]})
    else:
        answer(as_table(events))
    return 0


def _in_full(ledger: Ledger, name: str) -> str:
    """Returns the fingerprint that its first digits name, as in mlops.erase; else the name."""
    if re.fullmatch(r"[0-9a-f]{12,63}", name) and not ledger.events(name):
        names = {event.name for event in ledger.events()}
        found = [one for one in names if len(one) == 64 and one.startswith(name)]
        return found[0] if len(found) == 1 else name
    return name


def _get_events(ledger: Ledger, name: str) -> list[Event]:
    events = ledger.events(name)
    if not events:
        names = sorted({event.name for event in ledger.events()})
        known = choose(name, names) if names else "nothing was decided yet."
        raise UsageError(f"the ledger knows no model {name!r}; {known}")
    return events


def _answer_at(events: Sequence[Event], when: datetime, options: Options) -> None:
    holding = holding_at(events, options.alias, when)
    if not options.json:
        answer(in_words(options.name, options.alias, when, holding))
        return
    answer_json(
        {
            "name": options.name,
            "alias": options.alias,
            "at": when.isoformat(),
            "version": holding.version,
            "moving_to": holding.moving_to,
            "since": None if holding.since is None else holding.since.isoformat(),
            "event": None if holding.event is None else holding.event.seq,
        }
    )


def _check(ledger: Ledger, settings: Settings, options: Options) -> int:
    from mlops.mlflow_store import open_store_client
    from registry.catalog import Catalog
    from registry.tombstone import find_unsigned

    differences = ledger.check()
    n_events = 0
    if not differences:  # of a broken chain nothing is to be believed
        catalog = Catalog(open_store_client(settings))
        n_events, differences = _compare_with(catalog, ledger, options.name)
        differences += find_unsigned(ledger.events(options.name), settings.public_keys)
    if options.json:
        answer_json({"name": options.name, "n_events": n_events, "differences": differences})
    elif differences:
        answer("\n".join(_harmless(one) for one in differences))
    else:
        answer(
            f"{options.name}: the ledger's chain is whole, and MLflow holds what its {n_events} "
            "events say."
        )
    return 1 if differences else 0


def _compare_with(catalog: Catalog, ledger: Ledger, name: str) -> tuple[int, list[str]]:
    releases = catalog.find_releases(name)
    events = ledger.events(name) if releases else _get_events(ledger, name)
    heads = {event.hash for event in ledger.events()}
    statements = {one.version: catalog.read_statement(one) for one in releases}
    aliases = catalog.find_aliases(name) if releases else {}
    return len(events), compare(events, heads, aliases, statements)


def main(args: list[str] | None = None) -> int:
    return run_program(
        Options,
        _main,
        prog="python -m registry.history",
        description="List what was decided about a model, and say what held an alias when.",
        args=args,
    )


if __name__ == "__main__":
    sys.exit(main())
