"""The crash-safe local journal of runs, and its drain into MLflow.

A process that trains appends records to a file of its own and goes on; it never waits for a
network. A drain, in another thread or another process, reads the files and sends them.

A journal is a text file of one line a record: `<crc32> <sequence number> <JSON>`. A line that
`append` returned from is in the operating system's hands (it survives kill -9 of the writer); a
background thread calls fsync at most `COMMIT_WINDOW_S` later (power loss costs no more than that).
A tail without its newline is a write that was cut short and is dropped; a whole line with a wrong
checksum is damage and is named.

Files of one sweep lie in one folder, beside the files they mention:

    <home>/journal/<sweep>/<time>-<role>-<pid>.journal   records
    <home>/journal/<sweep>/<the same>.sent               how many bytes of it are delivered
    <home>/journal/<sweep>/files/<random>/...            artifacts that wait for delivery
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import secrets
import shutil
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from mlops.errors import TrackingError

COMMIT_WINDOW_S = 0.1
CHUNK_RECORDS = 1000


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a journal: what happened (`kind`) to which run; `end` is the offset after it."""

    sequence: int
    kind: str
    run: str
    fields: dict[str, Any]
    end: int


class Journal:
    """The writing end: one process, one file, any number of runs.

    `append` may be called from several threads. Close it: that fsyncs, and lets a drain that has
    delivered everything remove the file.
    """

    def __init__(self, folder: Path, role: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        # Sorted by name, journals are in the order in which they were begun.
        self.path = folder / f"{time.time_ns():020d}-{role}-{os.getpid()}.journal"
        self._file = self.path.open("xb", buffering=0)
        self._lock = threading.Lock()
        self._sequence = 0
        self._dirty = threading.Event()
        self._closed = False
        self.append("open", "", **this_process())
        self._committer = threading.Thread(target=self._commit, name="journal-fsync", daemon=True)
        self._committer.start()

    def append(self, kind: str, run: str, **fields: Any) -> None:
        """Writes one record about the run with the key `run`.

        Raises:
            TrackingError: the disk is full or the file is gone.
        """
        with self._lock:
            body = f"{self._sequence} {json.dumps({'kind': kind, 'run': run, **fields})}".encode()
            try:
                self._file.write(b"%08x %b\n" % (zlib.crc32(body), body))
            except (OSError, ValueError) as err:
                raise TrackingError(
                    f"the journal {self.path.name} cannot be written: {err}. "
                    "Free some disk space and type the same command again; it resumes."
                ) from err
            self._sequence += 1
        self._dirty.set()

    def spool(self, source: Path) -> str:
        """Copies a file or a folder beside the journal, so that it lives until it is delivered.

        Returns the copy's path relative to the journal's folder.
        """
        place = self.folder / "files" / secrets.token_hex(8)
        place.mkdir(parents=True)
        if source.is_dir():
            shutil.copytree(source, place / source.name)
        else:
            shutil.copy2(source, place / source.name)
        return (place / source.name).relative_to(self.folder).as_posix()

    def close(self) -> None:
        """Writes the last record and fsyncs. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self.append("close", "")
        self._committer.join()
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _commit(self) -> None:
        while not self._closed:
            if self._dirty.wait(COMMIT_WINDOW_S):
                self._dirty.clear()
                os.fsync(self._file.fileno())
                # Group commit: what is appended in this pause shares the next fsync.
                threading.Event().wait(COMMIT_WINDOW_S / 2)


def this_process() -> dict[str, Any]:
    """Returns what tells this process from any other: host, pid and start time (a pid returns)."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
    }


def is_alive(process: dict[str, Any]) -> bool:
    """Tells whether the process that `this_process` described still runs; True on another host."""
    if process["host"] != socket.gethostname():
        return True
    try:
        started = psutil.Process(process["pid"]).create_time()
    except psutil.Error:
        return False
    return bool(abs(started - process["started"]) < 1.0)


def read_records(path: Path, offset: int = 0) -> Iterator[Record]:
    """Yields the whole records of a journal from a byte offset on.

    Raises:
        TrackingError: a record is damaged; names the file and the byte where it starts.
    """
    with path.open("rb") as file:
        file.seek(offset)
        while True:
            line = file.readline()
            if not line.endswith(b"\n"):
                return
            record = _parse(line, offset + len(line))
            if record is None:
                raise TrackingError(
                    f"{path.name} is damaged at byte {offset}: the record's checksum does not "
                    "match. What stands before it is delivered; the file is kept."
                )
            yield record
            offset += len(line)


def _parse(line: bytes, end: int) -> Record | None:
    checksum, _, body = line.rstrip(b"\n").partition(b" ")
    sequence, _, text = body.partition(b" ")
    try:
        if int(checksum, 16) != zlib.crc32(body):
            return None
        fields = json.loads(text)
        return Record(int(sequence), fields.pop("kind"), fields.pop("run"), fields, end)
    except ValueError:
        return None


class Sink(Protocol):
    """What a drain delivers to. `mlops.tracking.MlflowSink` is the real one."""

    def deliver(self, folder: Path, records: list[Record], doubtful: bool) -> int:
        """Sends records in order; returns how many of them are done (the rest must wait).

        May raise ConnectionError: nothing, or an unknown part of it, arrived. The drain then sends
        the same records again with `doubtful` set, so an implementation must bear repetition.
        """
        ...


class Drain:
    """The reading end: delivers a folder's journals, off the training thread.

    One drain a folder at a time (a lock file sees to it). A crash between a delivery and the note
    of it (`.sent`) leaves records that are sent twice; the sink bears that.

    Args:
        folder: The sweep's journal folder.
        sink: A function that opens the sink; called in the drain's own thread, since opening may
            be slow, and called again after a failure.
    """

    def __init__(self, folder: Path, sink: Callable[[], Sink]) -> None:
        self.folder = folder
        self.problem: str | None = None
        self._open_sink = sink
        self._sink: Sink | None = None
        self._trusted: set[Path] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal-drain", daemon=True)
        self._lock = threading.Lock()

    def start(self) -> Drain:
        self._thread.start()
        return self

    def undelivered(self) -> int:
        """Counts the records that no server has confirmed yet."""
        return sum(
            1
            for path in self._journals()
            for record in _readable(path, _sent(path))
            if record.kind not in ("open", "close")
        )

    def stop(self, timeout_s: float = 0.0) -> None:
        """Stops the thread; a delivery under way goes on for `timeout_s` at most."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def flush(self, timeout_s: float) -> int:
        """Delivers until nothing is left or the time is over; returns `undelivered()`."""
        self.stop(timeout_s)
        finish = threading.Thread(target=self._finish, name="journal-flush", daemon=True)
        finish.start()
        finish.join(timeout_s)
        return self.undelivered()

    def _finish(self) -> None:
        while self.pass_once():
            pass

    def _run(self) -> None:
        pause_s = 0.25
        while not self._stop.wait(pause_s):
            self.pass_once()
            pause_s = 0.25 if self.problem is None else min(pause_s * 2, 5.0)

    def pass_once(self) -> bool:
        """Goes once over all journals; returns whether anything was delivered."""
        with self._lock, _only_one(self.folder) as alone:
            if not alone:
                self.problem = "another process delivers this journal"
                return False
            try:
                self._sink = self._sink or self._open_sink()
                progress = [self._deliver(path, self._sink) for path in self._journals()]
                self.problem = None
                return any(progress)
            except (ConnectionError, TrackingError) as err:
                self.problem = str(err)
                return False

    def _deliver(self, path: Path, sink: Sink) -> bool:
        sent = _sent(path)
        records = list(itertools.islice(_readable(path, sent), CHUNK_RECORDS))
        if not records:
            self._bury(path)
            return False
        # The first chunk after a start may have been sent by a process that died before noting it.
        doubtful = path not in self._trusted
        self._trusted.discard(path)
        done = sink.deliver(self.folder, records, doubtful)
        if done == 0:
            return False
        self._trusted.add(path)
        _note_sent(path, records[done - 1].end)
        for record in records[:done]:
            if "spooled" in record.fields:
                place = (self.folder / record.fields["spooled"]).parent
                shutil.rmtree(place, ignore_errors=True)
        if records[done - 1].kind == "close":
            # Everything is delivered and nobody will write again.
            path.unlink(missing_ok=True)
            path.with_suffix(".sent").unlink(missing_ok=True)
        return True

    def _bury(self, path: Path) -> None:
        """Removes a wholly delivered journal whose writer died without closing it."""
        header = next(_readable(path, 0), None)
        if header is not None and not is_alive(header.fields):
            # What may be left is a torn tail: a record whose append never returned.
            path.unlink(missing_ok=True)
            path.with_suffix(".sent").unlink(missing_ok=True)

    def _journals(self) -> list[Path]:
        # Oldest first: the driver's own journal creates the runs that the others speak of.
        return sorted(self.folder.glob("*.journal"))


def _readable(path: Path, offset: int) -> Iterator[Record]:
    """Yields records up to the first damaged one; raises only if that is the very first."""
    first = True
    try:
        for record in read_records(path, offset):
            yield record
            first = False
    except FileNotFoundError:
        return
    except TrackingError:
        if first:
            raise


def _sent(path: Path) -> int:
    try:
        return int(path.with_suffix(".sent").read_text())
    except (FileNotFoundError, ValueError):
        return 0


def _note_sent(path: Path, offset: int) -> None:
    note = path.with_suffix(".sent")
    draft = note.with_suffix(".sent-draft")
    draft.write_text(str(offset))
    draft.replace(note)


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[bool]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "drain.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
