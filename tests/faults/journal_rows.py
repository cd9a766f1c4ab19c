"""Rows in which a journal's own disk or bytes fail, under a process that logs alone."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from mlops.journal import Record, find_journals, read_lines
from tests.faults import children
from tests.faults.check import Outcome
from tests.faults.stage import Stage
from tests.faults.tape import PARENT, Item, Said, list_files

N_ITEMS = 80


def journal_disk_full(stage: Stage) -> Outcome:
    """The journal cannot grow: the call fails, and nothing of it is half there; later it can.

    A limit on the size of files stands for the full disk: a write takes what fits, then it fails.
    """
    pipe = stage.place / "pipe"
    os.mkfifo(pipe)
    stage.start(children.log_on_limited_disk, pipe, stage.rng.randrange(1000, 6000))
    stage.script.tapes.mkdir()
    children.copy_pipe(pipe, stage.tape())
    return stage.end() + _must(stage, told=True)


def fsync_error(stage: Stage) -> Outcome:
    """An fsync fails, and would not a second time: the journal has ended, and each call says so."""
    stage.start(children.log_with_failing_fsync, stage.rng.randrange(2, 14))
    stage.join()
    told = ("failed", 0) in stage.said().notes
    return stage.end() + _must(stage, told=told)


def torn(stage: Stage) -> Outcome:
    """Power fails: the last bytes of the journal never reached the disk, mid-line."""
    path = _log_and_kill(stage)
    before = list(_items(path))
    cut = stage.rng.randrange(1, 400)
    with path.open("r+b") as file:
        header = len(file.readline())
        file.truncate(max(header, path.stat().st_size - cut))
    whole = path.read_bytes().endswith(b"\n")
    left = _forget(stage, before, list(_items(path)))
    result = stage.sync()
    said = any("cut short" in line for line in result.dropped)
    outcome = stage.end(left)
    return (
        outcome if said or whole else outcome + Outcome(0, lost=1, said=("the tail is not said",))
    )


def flipped(stage: Stage) -> Outcome:
    """A byte in the middle changes: it is named, what stands before is sent, the command mends.

    The record of the flipped byte is lost by the fault; no other is.
    """
    path = _log_and_kill(stage)
    before = list(_items(path))
    content = bytearray(path.read_bytes())
    lines = content.splitlines(keepends=True)
    starts = [sum(map(len, lines[:n])) for n in range(len(lines))]
    line = stage.rng.randrange(1, len(lines))
    # Not the newline: without it two lines are one, which costs both of them.
    place = starts[line] + stage.rng.randrange(len(lines[line]) - 1)
    content[place] ^= 1 << stage.rng.randrange(7)
    if content[place] == ord("\n"):
        content[place] ^= 1
    path.write_bytes(content)
    (problem,) = [one for one in stage.sync().problems if "damaged" in one] or [""]
    named = f"{path.name} is damaged at byte {starts[line]}:" in problem
    mend = re.search(r"type: (.*)$", problem)
    if mend is not None:
        subprocess.run(mend.group(1), shell=True, check=True)
    left = _forget(stage, before, list(_items(path)))
    outcome = stage.end(left)
    return outcome if named else outcome + Outcome(0, lost=1, said=(f"not named: {problem}",))


def _log_and_kill(stage: Stage) -> Path:
    """Lets a process log all by itself, undelivered; kills it. Returns its journal."""
    process = stage.start(children.log_alone)
    stage.wait_for_done(stage.rng.randrange(30, N_ITEMS))
    process.kill()
    process.join()
    (path,) = find_journals(stage.script.folder)
    return path


def _forget(stage: Stage, before: list[Item], after: list[Item]) -> Said:
    left = set(after)
    gone = {item for item in before if item not in left}
    # Without the record that creates a run, whatever else is said of it has nowhere to go; nor has
    # a child its parent.
    keys = {item[1] for item in gone if item[0] == "run"}
    stage.spoiled = frozenset(keys)
    orphans = {item for item in before if item[0] == "parent" and item[2] in keys}
    said = stage.said()
    said.forget(gone | orphans | {item for item in before if item[1] in keys})
    return said


def _items(path: Path) -> Iterator[Item]:
    """Yields what a journal's whole records tell, as tapes say it; files by their path alone."""
    for record in read_lines(path):
        if record is not None and record.run:
            yield from _items_of(record, path.parent)


def _items_of(record: Record, folder: Path) -> Iterator[Item]:
    key, fields = record.run, record.fields
    if record.kind == "create":
        yield ("run", key)
        yield ("input", key, "rows")
        yield from (("param", key, name, value) for name, value in fields["params"].items())
        for name, value in fields["tags"].items():
            yield ("parent", key, value) if name == PARENT else ("tag", key, name, value)
    elif record.kind == "metrics":
        for name, value in fields["values"].items():
            yield ("metric", key, name, fields["step"], value)
    elif record.kind == "tags":
        yield from (("tag", key, name, value) for name, value in fields["values"].items())
    elif record.kind in ("artifact", "candidate"):
        yield from list_files(folder / fields["spooled"], key, fields["folder"])
        if record.kind == "candidate":
            yield ("version", key, fields["name"])
    elif record.kind == "end":
        yield ("end", key, fields["status"])


def _must(stage: Stage, *, told: bool) -> Outcome:
    """Returns what is wrong with what the process was told of a failure."""
    notes = [word for word, _ in stage.said().notes]
    wrong = ["a call after the failure said nothing"] * notes.count("silent")
    if told and "told" not in notes:
        wrong.append("nobody was told of the failure")
    return Outcome(0, lost=len(wrong), said=tuple(wrong))
