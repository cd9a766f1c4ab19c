"""The ledger as a store: its database, its chain, interrupted moves, and moves made without it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlops.database_check import Database, check_database, open_to_read
from mlops.program import command_line
from mlops.settings import Settings
from mlops.stores import Finding, Health
from mlops.tracked_runs import is_server

if TYPE_CHECKING:
    from registry.events import Event
    from registry.ledger import Ledger
    from registry.moves import Misplaced


@dataclass(frozen=True, slots=True)
class LedgerStore:
    """The events, where `MLOPS_LEDGER_URL` names them."""

    settings: Settings
    name: str = "ledger"

    def check(self) -> Health:
        from registry.ledger import NoLedgerError, open_ledger

        database = _database(self.settings.ledger_url)
        if database.file is not None and not database.file.is_file():
            return Health("none yet")
        unreadable = check_database(database)
        if unreadable:
            return Health("", tuple(unreadable))
        try:
            with open_ledger(self.settings.ledger_url, make=False) as ledger:
                wrong = (*_all_wrong(ledger), *_all_moved(ledger, self.settings))
                findings = tuple(Finding(self.name, *one) for one in wrong)
                return Health(f"{len(ledger.events())} event(s)", findings)
        except NoLedgerError:
            return Health("none yet")


def _all_wrong(ledger: Ledger) -> Iterator[tuple[str, str]]:
    from registry.moves import open_intent

    breaks = ledger.check()
    if breaks:
        more = f" (and {len(breaks) - 1} more)" if len(breaks) > 1 else ""
        yield (
            f"the ledger is not as it was written: {breaks[0].removesuffix('.')}{more}.",
            "Put a backup in its place, and find out who may write to it.",
        )
        return
    events = ledger.events()
    for name, alias in sorted(
        {(event.name, event.body["alias"]) for event in events if event.kind == "intent"}
    ):
        intent = open_intent([event for event in events if event.name == name], alias)
        if intent is not None:
            yield (
                f"a move of {name}@{alias} to version {intent.body['to']} has no end (event "
                f"{intent.seq}): it is going on, or was interrupted and the next promotion or "
                "rollback settles it.",
                command_line("python", "-m", "registry.history", name, "--check"),
            )


def _all_moved(ledger: Ledger, settings: Settings) -> Iterator[tuple[str, str]]:
    """Yields what is wrong with the aliases of the ledger's models, by MLflow's own tables.

    A server is not asked: that takes MLflow's client, and `registry.history --check` has it.
    """
    from registry.moves import find_misplaced

    events = ledger.events()
    if is_server(settings) or not events or ledger.check():
        return
    aliases = _read_aliases(settings)
    # A move that goes on writes before and after it: with nothing written, nothing was moving.
    if aliases is None or len(ledger.events()) != len(events):
        return
    for name in sorted({event.name for event in events}):
        for one in find_misplaced(_of(events, name), aliases.get(name, {})):
            yield _say_misplaced(name, one)


def _of(events: Sequence[Event], name: str) -> list[Event]:
    return [event for event in events if event.name == name]


def _read_aliases(settings: Settings) -> dict[str, dict[str, int]] | None:
    """Returns the version that each alias of each model holds; None where that cannot be read."""
    from sqlalchemy.exc import SQLAlchemyError

    found: dict[str, dict[str, int]] = {}
    try:
        with open_to_read(settings.direct_uri) as connection:
            rows = connection.exec_driver_sql(
                "SELECT name, alias, version FROM registered_model_aliases"
            )
            for name, alias, version in rows:
                found.setdefault(name, {})[alias] = int(version)
    except (ImportError, SQLAlchemyError, ValueError):
        return None  # what keeps it from being read is told of the area tracking
    return found


def _say_misplaced(name: str, one: Misplaced) -> tuple[str, str]:
    found, expected = (
        "no version" if version is None else f"version {version}"
        for version in (one.found, one.expected)
    )
    wrong = (
        f"the alias {one.alias} of {name} holds {found} in MLflow, and by the ledger {expected}: "
        "somebody moved it without Podium."
    )
    to = one.found if one.expected is None else one.expected
    if one.found is not None and one.expected is not None:
        wrong += f" This puts it back; --to {one.found} records it where it is."
    rollback = ["python", "-m", "registry.rollback", name, "--to", str(to)]
    other = [] if one.alias == "champion" else ["--alias", one.alias]
    return wrong, command_line(*rollback, *other)


def _database(url: str) -> Database:
    return Database(
        store="ledger",
        what="decisions and moves",
        url=url,
        setting="MLOPS_LEDGER_URL",
        # None: the version of its tables stands in a table of its own, and opening it compares.
        revisions=Path(os.devnull),
        upgrade="",
    )
