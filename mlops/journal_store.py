"""The journals of a home as a store: what waits in them, and who wrote it.

Nothing here takes a lock that others wait for, and nothing is written: `mlops.sync` mends.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mlops.drain import STALE_DRAFT_S
from mlops.journal import (
    Record,
    Writer,
    build_mend,
    describe_torn_tail,
    find_journals,
    find_writer,
    is_closed,
    read_lines,
    read_sent,
    read_undelivered,
)
from mlops.program import command_line
from mlops.settings import Settings
from mlops.stores import Finding, Health, Item, Steps

PATIENCE_S = 60.0
"""How long a record may wait for a server that a living process delivers to."""
N_SHOWN = 3
"""Torn journals that a finding names."""
QUIET_S = 3600.0
"""How long a process on another machine may say nothing before it is asked about."""


@dataclass(frozen=True, slots=True)
class Damage:
    """The first damaged record of a journal; `line` counts from 1."""

    offset: int
    line: int


@dataclass(frozen=True, slots=True)
class JournalState:
    """How a journal stands.

    Attributes:
        writer: As `find_writer` has it; "gone" if it closed it.
        host: The machine that wrote it; empty where that cannot be read.
        n_undelivered: Number of records that no server has confirmed, damaged ones included.
        waits_since: When the oldest of them was written, seconds since 1970; None without any.
        torn: What is dropped of a last record that was cut short, a sentence.
    """

    path: Path
    writer: Writer
    host: str
    n_undelivered: int
    waits_since: float | None
    damage: Damage | None
    torn: str | None


@dataclass(frozen=True, slots=True)
class JournalStore:
    """What `<home>/journal` keeps.

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

    def hold(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def backup_records(self, home: Path) -> Steps:
        from mlops.journal_copy import back_up

        back_up(self.settings.home, home)
        yield

    def backup_files(self, home: Path) -> None:
        """What a journal mentions is copied with it: it is gone once it is delivered."""

    def restore(self, home: Path) -> Steps:
        from mlops.journal_copy import restore

        return restore(self.settings.home, home)

    def writers(self) -> list[str]:
        from mlops.journal_removal import find_live_folders

        found = find_live_folders(self.settings.home)
        return [f"who writes or delivers the journals of {one}" for one in found]

    def upgrade(self) -> str:
        return "up to date"

    def needs(self, gone: Set[tuple[str, str]] = frozenset()) -> set[tuple[str, str]]:
        from mlops.journal_removal import find_datasets

        return {("dataset", one) for one in find_datasets(self.settings.home)}

    def clean(
        self, before: datetime, keep_best: int, needed: Set[tuple[str, str]], *, dry: bool
    ) -> list[Item]:
        from mlops.journal_removal import clean_leftovers

        return clean_leftovers(self.settings.home, before, dry=dry)

    def find(self, dataset: str) -> list[Item]:
        from mlops.journal_removal import find_journals_of

        return find_journals_of(self.settings, dataset)

    def erase(self, dataset: str, replace: Mapping[str, int]) -> None:
        from mlops.journal_removal import erase_journals

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


def find_folders(home: Path) -> list[Path]:
    """Returns the journal folders, one a sweep."""
    return sorted(path for path in (home / "journal").glob("*") if path.is_dir())


def read_state(path: Path) -> JournalState:
    """Reads a journal once, from its begin to its end."""
    # Asked first: it may write on.
    writer: Writer = "gone" if is_closed(path) else find_writer(path)
    sent, end, line, n_undelivered = read_sent(path), 0, 0, 0
    damage: Damage | None = None
    since: float | None = None
    host = ""
    for record in read_lines(path):
        line += 1
        if record is None:
            # What is delivered is not read again, so damage there does no harm; but without its
            # first line a journal is never over.
            n_undelivered += end >= sent
            if end >= sent or (line == 1 and writer == "unknown"):
                damage = damage or Damage(end, line)
            continue
        end = record.end
        if record.kind == "open":
            host = str(record.fields.get("host", ""))
        if end > sent and record.kind not in ("open", "close"):
            n_undelivered += 1
            since = since or _written_at(record)
    if n_undelivered and since is None:
        since = path.stat().st_mtime
    torn = describe_torn_tail(path) if writer in ("gone", "unknown") else None
    return JournalState(path, writer, host, n_undelivered, since, damage, torn)


def is_delivered_now(folder: Path) -> bool:
    """Tells whether a living process delivers a journal folder."""
    try:
        with (folder / "drain.lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def find_undelivered_keys(home: Path) -> set[str]:
    """Returns the keys of the runs that undelivered records speak of."""
    return {
        record.run
        for folder in find_folders(home)
        for record in read_undelivered(folder)
        if record is not None
    }


def find_speakers(home: Path) -> dict[str, set[str]]:
    """Returns who speaks of each run key: "alive", "gone" and "elsewhere", of all journals."""
    found: dict[str, set[str]] = {}
    for folder in find_folders(home):
        for path in find_journals(folder):
            writer = find_writer(path)
            for record in read_lines(path):
                if record is not None and record.run:
                    found.setdefault(record.run, set()).add(writer)
    return found


def _written_at(record: Record) -> float | None:
    at_ms = record.fields.get("at_ms")
    return None if at_ms is None else float(at_ms) / 1000


def _in_words(states: list[JournalState]) -> str:
    n_waiting = sum(one.n_undelivered for one in states)
    words = f"{n_waiting} undelivered record(s) in {len(states)} journal(s)"
    since = min((one.waits_since for one in states if one.waits_since is not None), default=None)
    if since is not None:
        words += f", the oldest of {datetime.fromtimestamp(since, UTC):%Y-%m-%d %H:%M} UTC"
    torn = [one.torn for one in states if one.torn is not None]
    return " ".join([f"{words}.", *torn[:N_SHOWN]])
