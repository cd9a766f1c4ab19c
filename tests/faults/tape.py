"""What a process logged, written down beside the journal: the side that the checker believes.

A process says what it is *about* to log, logs it, and when the call has returned says that it is
*done*: only then is it acknowledged. What it is about to log may be found in MLflow or not; what
nobody was about to log must not be there.

A line is in the operating system's hands when `about` or `done` returns, so it survives kill -9.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlops.journal import Journal
from mlops.tracking import Run, RunDataset, Status

PARENT = "mlflow.parentRunId"

Item = tuple[Any, ...]
"""One thing that stands in MLflow once: its kind, its run's key, and what tells it from others.

("run", key), ("parent", key, parent's key), ("param", key, name, value),
("tag", key, name, value), ("input", key, name),
("metric", key, name, step, value), ("file", key, path, sha256), ("version", key, name),
("end", key, status).
"""


class Tape:
    """The writing end; one process, one file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def about(self, items: Iterable[Item]) -> None:
        self._write("about", items)

    def done(self, items: Iterable[Item]) -> None:
        self._write("done", items)

    def note(self, word: str, value: int = 0) -> None:
        """Writes down something else that the checker needs to know."""
        self._write("note", [(word, value)])

    def _write(self, what: str, items: Iterable[Item]) -> None:
        line = json.dumps({"what": what, "items": [list(item) for item in items]})
        os.write(self._fd, f"{line}\n".encode())


@dataclass(slots=True)
class Said:
    """What tapes say, together.

    Attributes:
        about: What may be in MLflow.
        done: What must be.
        ends: The statuses of each run: what must be (or None), and what may be instead.
        notes: In order.
    """

    about: set[Item] = field(default_factory=set)
    done: set[Item] = field(default_factory=set)
    ends: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    notes: list[tuple[str, int]] = field(default_factory=list)

    def take(self, what: str, item: Item) -> None:
        if what == "note":
            self.notes.append((item[0], item[1]))
        elif item[0] == "end":
            self.ends.setdefault(item[1], []).append((what, item[2]))
        else:
            {"about": self.about, "done": self.done}[what].add(item)

    def forget(self, items: Iterable[Item]) -> None:
        """No longer expects what a test has destroyed on purpose."""
        for item in items:
            if item[0] == "end":
                self.ends[item[1]] = [("about", status) for _, status in self.ends[item[1]]]
            else:
                self.done.discard(item)

    @property
    def n_done(self) -> int:
        n_ends = sum(what == "done" for ends in self.ends.values() for what, _ in ends)
        return len(self.done) + n_ends


def read_tape(path: Path) -> Iterator[tuple[str, Item]]:
    """Yields what a tape says, in order; a line that was cut short was never said."""
    if not path.exists():
        return
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            one = json.loads(line)
            for item in one["items"]:
                yield one["what"], tuple(item)


def read_tapes(folder: Path) -> Said:
    """Reads all tapes of a folder, those of a later process behind those of an earlier one."""
    said = Said()
    for path in sorted(folder.glob("*.tape")):
        for what, item in read_tape(path):
            said.take(what, item)
    return said


def count_done(path: Path) -> int:
    return sum(what == "done" for what, _ in read_tape(path))


class LoggedRun:
    """A `Run` whose calls are written on a tape. Raises what `Run` raises."""

    def __init__(self, journal: Journal, tape: Tape, key: str) -> None:
        self.key = key
        self._journal = journal
        self._tape = tape
        self._run = Run(journal, key)

    def create(
        self, experiment: str, params: Mapping[str, str], tags: Mapping[str, str]
    ) -> LoggedRun:
        items: list[Item] = [("run", self.key), ("input", self.key, "rows")]
        items += [("param", self.key, name, value) for name, value in params.items()]
        for name, value in tags.items():
            # A parent is named by its key here, and stands in MLflow by its id.
            parts = ("parent", self.key) if name == PARENT else ("tag", self.key, name)
            items.append((*parts, value))
        dataset = RunDataset("rows", "f" * 64, "tests", "training", {"train": 1})
        self._log(
            items,
            lambda: Run.create(
                self._journal,
                experiment=experiment,
                name=f"run-{self.key}",
                key=self.key,
                params=params,
                tags=tags,
                dataset=dataset,
            ),
        )
        return self

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        items = [("metric", self.key, name, step, value) for name, value in values.items()]
        self._log(items, lambda: self._run.log_metrics(values, step))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        items = [("tag", self.key, name, value) for name, value in tags.items()]
        self._log(items, lambda: self._run.set_tags(tags))

    def log_artifact(self, source: Path, folder: str) -> None:
        items = list_files(source, self.key, folder)
        self._log(items, lambda: self._run.log_artifact(source, folder))

    def register_candidate(self, name: str, model: Path) -> None:
        items: list[Item] = [("version", self.key, f"{name}-candidates")]
        items += list_files(model, self.key, "model")
        self._log(items, lambda: self._run.register_candidate(name, model, {"mlops.value": "1"}))

    def end(self, status: Status) -> None:
        self._log([("end", self.key, status)], lambda: self._run.end(status))

    def _log(self, items: list[Item], call: Callable[[], object]) -> None:
        self._tape.about(items)
        call()
        self._tape.done(items)


def list_files(source: Path, key: str, folder: str) -> list[Item]:
    """Returns the items of an artifact: a file, or a folder's content."""
    root = source.parent if source.is_file() else source
    files = [source] if source.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    return [
        ("file", key, f"{folder}/{file.relative_to(root).as_posix()}", digest(file))
        for file in files
    ]


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
