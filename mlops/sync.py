"""python -m mlops.sync: deliver what dead processes left in the journals; close orphaned runs.

It needs no server of its own: in embedded mode it writes to the store directly. A folder that a
living sweep delivers is left to it.

An orphan is a run that a journal created, or opened again, and that nobody ended, whose process is
gone. It becomes FAILED, with the tag `mlops.orphaned`. A run whose journal was delivered whole and
removed is not known here; the next sweep of its study closes it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlops.drain import Delivery, hold_folder
from mlops.errors import TrackingError
from mlops.journal import (
    Journal,
    Writer,
    find_journals,
    find_writer,
    read_lines,
    read_sent,
    read_undelivered,
)
from mlops.mlflow_sink import MlflowSink
from mlops.mlflow_store import open_store_client
from mlops.program import answer, answer_json, run_program, say
from mlops.settings import Settings
from mlops.tracking import Run


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What a sync did.

    Attributes:
        delivered: Number of records.
        closed: Number of orphaned runs that became FAILED.
        undelivered: Number of records that are left, those of busy folders excluded.
        busy: The sweeps that another process delivers now.
        problems: Why records are left, a sentence each.
        refused: What the server would not take, a sentence each.
        elsewhere: Number of open runs of processes on other machines, which are left alone.
        dropped: What was dropped of records that a killed process cut short, a sentence each.
    """

    delivered: int
    closed: int
    undelivered: int
    busy: tuple[str, ...]
    problems: tuple[str, ...]
    refused: tuple[str, ...]
    elsewhere: int
    dropped: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "delivered": self.delivered,
            "closed": self.closed,
            "undelivered": self.undelivered,
            "busy": list(self.busy),
        }


def sync(settings: Settings) -> SyncResult:
    """Delivers every journal under the home to the tracking URI of this moment.

    A server that does not answer is no error: what is left is counted, and why is said.
    """
    work = _Sync(settings)
    for folder in sorted(path for path in (settings.home / "journal").glob("*") if path.is_dir()):
        with hold_folder(folder) as held:
            if held:
                work.deliver(folder)
            else:
                work.busy.append(folder.name)
    return work.result()


@dataclass(slots=True)
class _Sync:
    """What a sync has done so far; the fields are those of `SyncResult`."""

    settings: Settings
    delivered: int = 0
    undelivered: int = 0
    elsewhere: int = 0
    busy: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    _sink: MlflowSink | None = None
    _unreachable: bool = False
    _can_ask: bool = True

    def deliver(self, folder: Path) -> None:
        gone = _find_gone(folder)
        while True:
            elsewhere, problems = self._deliver_once(folder, gone)
            # Whoever died meanwhile may have left runs open: its journal is kept for this round.
            died = _find_gone(folder) - gone
            if not died or self._unreachable:
                break
            gone |= died
        self.elsewhere += elsewhere
        self.problems += problems
        self.undelivered += sum(1 for _ in read_undelivered(folder))

    def _deliver_once(self, folder: Path, gone: set[Path]) -> tuple[int, list[str]]:
        """Returns the number of runs of processes elsewhere, and why something is left."""
        elsewhere, problems = 0, []
        try:
            elsewhere = close_orphans(folder, self._find_running)
        except TrackingError as err:
            problems.append(str(err))
        if not self._unreachable:  # a server that hangs costs its time-out once
            delivery = Delivery(folder, self._open_sink, may_remove=gone.__contains__)
            while delivery.run_pass():
                pass
            self._unreachable = delivery.unreachable
            self.delivered += delivery.n_delivered
            problems += delivery.problems
            self.dropped += delivery.dropped
        return elsewhere, problems

    def _open_sink(self) -> MlflowSink:
        if self._sink is None:
            self._sink = MlflowSink(open_store_client(self.settings))
        return self._sink

    def _find_running(self) -> set[str] | None:
        found = _find_running(self.settings) if self._can_ask else None
        self._can_ask = found is not None
        return found

    def result(self) -> SyncResult:
        return SyncResult(
            delivered=self.delivered,
            closed=0 if self._sink is None else len(self._sink.orphans),
            undelivered=self.undelivered,
            busy=tuple(self.busy),
            problems=tuple(dict.fromkeys(self.problems)),
            refused=() if self._sink is None else tuple(self._sink.refused),
            elsewhere=self.elsewhere,
            dropped=tuple(self.dropped),
        )


def _find_gone(folder: Path) -> set[Path]:
    return {path for path in find_journals(folder) if find_writer(path) == "gone"}


def _find_running(settings: Settings) -> set[str] | None:
    """Returns the keys of the runs that are RUNNING; None where that cannot be asked now."""
    from mlops.tracked_runs import read_tracked_runs

    try:
        found = read_tracked_runs(settings, running=True)
    except Exception:  # whatever it is, the delivery says it, or the sink asks again
        return None
    return {run.key for run in found if not run.is_deleted}


def close_orphans(folder: Path, find_running: Callable[[], set[str] | None] = lambda: None) -> int:
    """Appends the ends of orphaned runs, in a journal of their own, for the delivery that follows.

    The journals alone do not tell: a worker's, with the run's end, may be delivered and gone. So of
    the runs whose creation is delivered only those are ended that are still RUNNING; where that
    cannot be asked, all of them, since the sink asks again for each.

    Args:
        folder: The sweep's journal folder.
        find_running: Returns the keys of the runs that are RUNNING, or None; is not called where no
            run is in doubt.

    Returns:
        The number of open runs whose process ran on another machine, and may live.

    Raises:
        TrackingError: the disk is full.
    """
    opened, last_seen_ms = _find_opened(folder)
    orphans = [key for key, run in opened.items() if run.writer == "gone"]
    if any(opened[key].delivered for key in orphans):
        running = find_running()
        if running is not None:
            orphans = [key for key in orphans if key in running or not opened[key].delivered]
    if orphans:
        with Journal(folder, "sync") as journal:
            for key in orphans:
                Run(journal, key).close_orphan(last_seen_ms[key])
    return sum(run.writer == "elsewhere" for run in opened.values())


@dataclass(frozen=True, slots=True)
class _Opened:
    """A run that was opened and not ended: whether its opener lives; whether that is delivered."""

    writer: Writer
    delivered: bool


def _find_opened(folder: Path) -> tuple[dict[str, _Opened], dict[str, int]]:
    """Returns the open runs that no living process speaks of, and when any was last spoken of.

    Where no journal has a run's creation, and none its end, whoever speaks of it counts: a worker
    may outlive the driver whose journal had that.
    """
    opened: dict[str, _Opened] = {}
    spoken: dict[str, _Opened] = {}
    ended: set[str] = set()
    last_seen_ms: dict[str, int] = {}
    alive: set[str] = set()
    for path in find_journals(folder):
        writer, sent = find_writer(path), read_sent(path)
        for record in read_lines(path):
            if record is None or not record.run:
                continue
            if writer == "alive":
                alive.add(record.run)
            if record.kind == "create" or record.fields.get("status") == "RUNNING":
                opened[record.run] = _Opened(writer, record.end <= sent)
            elif record.kind in ("end", "orphan"):
                opened.pop(record.run, None)
                ended.add(record.run)
            else:
                spoken[record.run] = _Opened(writer, delivered=True)
            last_seen_ms[record.run] = max(
                last_seen_ms.get(record.run, 0), record.fields.get("at_ms", 0)
            )
    opened |= {key: run for key, run in spoken.items() if key not in ended | opened.keys()}
    return {key: run for key, run in opened.items() if key not in alive}, last_seen_ms


@dataclass(frozen=True)
class Options:
    json: bool = False
    """Print the result as one JSON line."""
    debug: bool = False
    """Show the traceback of an error."""


def _main(options: Options) -> int:
    result = sync(Settings.from_env())
    for sweep in result.busy:
        say(f"{sweep}: left alone, another process delivers it.")
    if result.elsewhere:
        say(
            f"{result.elsewhere} open run(s) of processes on other machines are left alone. "
            "Run this program there."
        )
    for sentence in result.dropped:
        say(sentence)
    for sentence in result.refused:
        say(f"The tracking server refused a record: {sentence}")
    for sentence in result.problems:
        say(sentence)
    if options.json:
        answer_json(result.to_json())
    else:
        answer(
            f"{result.delivered} records delivered, {result.closed} orphaned runs closed, "
            f"{result.undelivered} records left."
        )
    return 1 if result.undelivered or result.problems else 0


def main(args: list[str] | None = None) -> int:
    return run_program(
        Options,
        _main,
        prog="python -m mlops.sync",
        description="Deliver what dead processes left in the journals; close orphaned runs.",
        args=args,
    )


if __name__ == "__main__":
    sys.exit(main())
