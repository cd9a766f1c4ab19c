"""How the journals of a home stand: who writes them, what waits in them, of which runs they speak.

Nothing here takes a lock that others wait for, and nothing is written.
"""

from __future__ import annotations

import fcntl
from dataclasses import dataclass
from pathlib import Path

from mlops.journal import (
    Record,
    Writer,
    describe_torn_tail,
    find_journals,
    find_writer,
    is_closed,
    read_lines,
    read_sent,
    read_undelivered,
)

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
