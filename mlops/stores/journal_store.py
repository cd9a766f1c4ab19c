"""The journals of a home as a store: what waits in them, and who wrote it.

Nothing here takes a lock that others wait for, and nothing is written: `mlops.sync` mends.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mlops.drain import STALE_DRAFT_S
from mlops.journal import build_mend, find_journals
from mlops.program import command_line
from mlops.settings import Settings
from mlops.stores.journal_state import (
    QUIET_S,
    JournalState,
    find_folders,
    is_delivered_now,
    read_state,
)
from mlops.stores.store import Finding, Health, Item, Steps, Store

PATIENCE_S = 60.0
"""How long a record may wait for a server that a living process delivers to."""
N_SHOWN = 3
"""Torn journals that a finding names."""


@dataclass(frozen=True, slots=True)
class JournalStore(Store):
    """What `<home>/journal` keeps.

    What a journal mentions is copied with it, as a record: it is gone once it is delivered.

    Attributes:
        now: The time, seconds since 1970.
    """

    settings: Settings
    now: Callable[[], float] = time.time
    name: str = "journal"
    rank: int = 3

    def check(self) -> Health:
        findings: list[Finding] = []
        n_waiting = 0
        for folder in find_folders(self.settings.home):
            # A drain may remove what is looked at, this very moment: it is delivered, then.
            with contextlib.suppress(FileNotFoundError):
                states = [read_state(path) for path in find_journals(folder)]
                wrong = [*self._damaged(states), *self._left(folder, states)]
                findings += [Finding(self.name, *one) for one in wrong]
                n_waiting += sum(one.n_undelivered for one in states)
        return Health(
            f"{n_waiting} record(s) are being delivered" if n_waiting else "nothing waits",
            tuple(findings),
        )

    def backup_records(self, home: Path) -> Steps:
        from mlops.stores.journal_copy import back_up

        back_up(self.settings.home, home)
        yield

    def restore(self, home: Path) -> Steps:
        from mlops.stores.journal_copy import restore

        return restore(self.settings.home, home)

    def writers(self) -> list[str]:
        from mlops.stores.journal_removal import find_live_folders

        found = find_live_folders(self.settings.home)
        return [f"who writes or delivers the journals of {one}" for one in found]

    def needs(self, gone: Set[tuple[str, str]] = frozenset()) -> set[tuple[str, str]]:
        from mlops.stores.journal_removal import find_datasets

        return {("dataset", one) for one in find_datasets(self.settings.home)}

    def clean(
        self, before: datetime, keep_best: int, needed: Set[tuple[str, str]], *, dry: bool
    ) -> list[Item]:
        from mlops.stores.journal_removal import clean_leftovers

        return clean_leftovers(self.settings.home, before, dry=dry)

    def find(self, dataset: str) -> list[Item]:
        from mlops.stores.journal_removal import find_journals_of

        return find_journals_of(self.settings, dataset)

    def erase(self, dataset: str, replace: Mapping[str, int]) -> None:
        from mlops.stores.journal_removal import erase_journals

        erase_journals(self.settings, dataset)

    def _damaged(self, states: Iterable[JournalState]) -> Iterator[tuple[str, str]]:
        for one in states:
            if one.damage is None:
                continue
            again = command_line("python", "-m", "mlops.doctor")
            where = f"on {one.host or 'that machine'} " if one.writer == "elsewhere" else ""
            mend = build_mend(one.path, one.damage.line) or (
                "Its process may still write it. Once that has ended, this tells the command "
                f"{where}that mends it: {again}"
            )
            yield (
                f"the journal {str(one.path)!r} is damaged at byte {one.damage.offset}: the "
                f"checksum of line {one.damage.line} does not match. That record is lost; what "
                "stands behind it waits until its line is taken out.",
                mend,
            )

    def _left(self, folder: Path, states: list[JournalState]) -> Iterator[tuple[str, str]]:
        """What nobody delivers, or what no server takes."""
        sync = command_line("python", "-m", "mlops.sync")
        waits = _in_words(states)
        if is_delivered_now(folder):
            late = [one.waits_since for one in states if one.waits_since is not None]
            if late and self.now() - min(late) > PATIENCE_S:
                yield (
                    f"the sweep {folder.name!r} is under way, and the tracking server does not "
                    f"take what it tells: {waits}",
                    "No command is needed once the server answers: the sweep delivers it then.",
                )
            return
        here = [one for one in states if one.writer != "elsewhere"]
        gone = [one for one in here if one.writer == "gone"]
        if gone or any(self._is_late(one) for one in here):
            who = "the processes that wrote it are gone" if gone else "nobody delivers it"
            yield f"the journal of {folder.name!r} was left behind, {who}: {waits}", sync
        elif not states and self._has_rest(folder):
            yield f"the journal of {folder.name!r} has leftovers of killed processes.", sync
        far = [one for one in states if one.writer == "elsewhere"]
        for host in sorted({one.host for one in far if self._is_quiet(one.path)}):
            yield (
                f"a journal of {folder.name!r} was written on another machine; whether its "
                f"process lives cannot be seen from here: {waits}",
                f"On {host or 'that machine'}, type: {sync}",
            )

    def _is_late(self, state: JournalState) -> bool:
        since = state.waits_since
        return since is not None and self.now() - since > PATIENCE_S

    def _is_quiet(self, path: Path) -> bool:
        return self.now() - path.stat().st_mtime > QUIET_S

    def _has_rest(self, folder: Path) -> bool:
        """Tells of the copies of artifacts, notes and drafts that a kill may leave."""
        return any(
            path.suffix in (".files", ".sent", ".sent-draft")
            or self.now() - path.stat().st_mtime > STALE_DRAFT_S
            for path in folder.iterdir()
            if path.name != "drain.lock"
        )


def _in_words(states: list[JournalState]) -> str:
    n_waiting = sum(one.n_undelivered for one in states)
    words = f"{n_waiting} undelivered record(s) in {len(states)} journal(s)"
    since = min((one.waits_since for one in states if one.waits_since is not None), default=None)
    if since is not None:
        words += f", the oldest of {datetime.fromtimestamp(since, UTC):%Y-%m-%d %H:%M} UTC"
    torn = [one.torn for one in states if one.torn is not None]
    return " ".join([f"{words}.", *torn[:N_SHOWN]])
