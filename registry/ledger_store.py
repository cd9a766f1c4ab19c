"""The ledger as a store: its database, its chain, and moves and erasures that were interrupted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from mlops.program import command_line
from mlops.settings import Settings
from mlops.stores.database_check import Database, check_database
from mlops.stores.store import Finding, Health, Item, Steps, Store

if TYPE_CHECKING:
    from registry.ledger import Ledger


@dataclass(frozen=True, slots=True)
class LedgerStore(Store):
    """The events, where `MLOPS_LEDGER_URL` names them.

    All of it is records, and they are kept for good. Events name a dataset by its fingerprint and
    hold no row of it, so that an erasure leaves them.
    """

    settings: Settings
    name: str = "ledger"
    rank: int = 1
    # What PostgreSQL's other logins may do than who owns the tables (mlops.team.databases).
    grants: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "promoter": {"ledger_events": "SELECT, INSERT", "ledger_version": "SELECT"}
    }

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

    def writers(self) -> list[str]:
        from registry.ledger_witness import find_ledger_writers

        return find_ledger_writers(self.settings)

    def upgrade(self) -> str:
        from registry.ledger_witness import upgrade_ledger

        return upgrade_ledger(self.settings)

    def pending(self) -> list[str]:
        from registry.ledger_witness import find_pending

        return find_pending(self.settings)

    def begin(self, dataset: str, items: Sequence[Item], replace: Mapping[str, int]) -> None:
        from registry.ledger_witness import begin_erasure
        from registry.release_removal import check_replacements

        check_replacements(self.settings, dataset, replace)
        begin_erasure(self.settings, dataset, items)

    def attest(self, dataset: str, notes: Sequence[str]) -> str:
        from registry.ledger_witness import attest_erasure

        return attest_erasure(self.settings, dataset, notes)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        from registry.ledger import NoLedgerError, open_ledger

        with contextlib.ExitStack() as held:
            with contextlib.suppress(NoLedgerError):
                ledger = held.enter_context(open_ledger(self.settings.ledger_url, make=False))
                held.enter_context(ledger.hold())
            yield

    def backup_records(self, home: Path) -> Steps:
        from registry.ledger_copy import back_up

        return back_up(self.settings, home)

    def restore(self, home: Path) -> Steps:
        from registry.ledger_copy import restore

        return restore(self.settings, home)


def _all_wrong(ledger: Ledger) -> Iterator[tuple[str, str]]:
    from registry.moves import open_intent
    from registry.tombstone import find_begun

    breaks = ledger.check()
    if breaks:
        more = f" (and {len(breaks) - 1} more)" if len(breaks) > 1 else ""
        yield (
            f"the ledger is not as it was written: {breaks[0].removesuffix('.')}{more}.",
            "Put a backup in its place, and find out who may write to it.",
        )
        return
    events = ledger.events()
    for dataset in sorted(find_begun(events)):
        yield (
            f"the erasure of dataset {dataset[:12]} was begun and is not completed: it is going "
            "on, or was interrupted.",
            command_line("python", "-m", "mlops.erase", "--dataset", dataset, "--yes"),
        )
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
