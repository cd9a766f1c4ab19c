"""The ledger as a store: its database, its chain, and moves that were interrupted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlops.database_check import Database, check_database
from mlops.program import command_line
from mlops.settings import Settings
from mlops.stores import Finding, Health

if TYPE_CHECKING:
    from registry.ledger import Ledger


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
                findings = tuple(Finding(self.name, *one) for one in _all_wrong(ledger))
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
