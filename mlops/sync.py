"""python -m mlops.sync: deliver what dead processes left in the journals; close orphaned runs.

It needs no server of its own: in embedded mode it writes to the store directly. A folder that a
living sweep delivers is left to it.

An orphan is a run that a journal created, or opened again, and that nobody ended, whose process is
gone. It becomes FAILED, with the tag `mlops.orphaned`. A run whose journal was delivered whole and
removed is not known here; the next sweep of its study closes it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops.drain import Delivery, hold_folder
from mlops.errors import TrackingError
from mlops.journal import Journal, find_journals, find_writer, read_lines, read_undelivered
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
    """

    delivered: int
    closed: int
    undelivered: int
    busy: tuple[str, ...]
    problems: tuple[str, ...]
    refused: tuple[str, ...]
    elsewhere: int

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
    sinks: list[MlflowSink] = []

    def open_sink() -> MlflowSink:
        if not sinks:
            sinks.append(MlflowSink(open_store_client(settings)))
        return sinks[0]

    delivered = undelivered = elsewhere = 0
    unreachable = False
    busy: list[str] = []
    problems: list[str] = []
    for folder in sorted(path for path in (settings.home / "journal").glob("*") if path.is_dir()):
        with hold_folder(folder) as held:
            if not held:
                busy.append(folder.name)
                continue
            try:
                elsewhere += close_orphans(folder)
            except TrackingError as err:
                problems.append(str(err))
            if not unreachable:  # a server that hangs costs its time-out once
                delivery = Delivery(folder, open_sink)
                while delivery.run_pass():
                    pass
                unreachable = delivery.unreachable
                delivered += delivery.n_delivered
                problems += delivery.problems
            undelivered += sum(1 for _ in read_undelivered(folder))
    return SyncResult(
        delivered=delivered,
        closed=len(sinks[0].orphans) if sinks else 0,
        undelivered=undelivered,
        busy=tuple(busy),
        problems=tuple(dict.fromkeys(problems)),
        refused=tuple(sinks[0].refused) if sinks else (),
        elsewhere=elsewhere,
    )


def close_orphans(folder: Path) -> int:
    """Appends the ends of orphaned runs, in a journal of their own, for the delivery that follows.

    The journals alone do not tell: a worker's, with the run's end, may be delivered and gone. So
    the sink asks the server, and ends only what is still RUNNING.

    Returns:
        The number of open runs whose process ran on another machine, and may live.

    Raises:
        TrackingError: the disk is full.
    """
    opened: dict[str, Path] = {}
    last_seen_ms: dict[str, int] = {}
    alive: set[str] = set()
    writers = {path: find_writer(path) for path in find_journals(folder)}
    for path, writer in writers.items():
        for record in read_lines(path):
            if record is None or not record.run:
                continue
            if writer == "alive":
                alive.add(record.run)
            if record.kind == "create" or record.fields.get("status") == "RUNNING":
                opened[record.run] = path
            elif record.kind in ("end", "orphan"):
                opened.pop(record.run, None)
            last_seen_ms[record.run] = max(
                last_seen_ms.get(record.run, 0), record.fields.get("at_ms", 0)
            )
    orphans = [key for key, path in opened.items() if writers[path] == "gone" and key not in alive]
    if orphans:
        with Journal(folder, "sync") as journal:
            for key in orphans:
                Run(journal, key).close_orphan(last_seen_ms[key])
    return sum(writers[path] == "elsewhere" for path in opened.values())


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
