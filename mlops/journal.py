"""The crash-safe local journal of runs: its files, their writing and their reading.

A process that trains appends records to a file of its own and goes on; it never waits for a
network. A drain (`mlops.drain`), in another thread or another process, reads the files and sends
them.

A journal is a text file of one line a record: `<crc32> <sequence number> <JSON>`. A line that
`append` returned from is in the operating system's hands (it survives kill -9 of the writer); a
background thread begins an fsync at most `COMMIT_WINDOW_S` later, or once the one under way is
done, without waiting for another call. So a power loss costs what was written in the last 0.2 s on
a disk whose fsync takes less than 50 ms. A tail without its newline is a write that was cut short:
it is dropped, and that is said. A whole line with a wrong checksum is damage and is named.

Files of one sweep lie in one folder, beside the files they mention:

    <home>/journal/<sweep>/<time>-<role>-<pid>.journal   records; locked as long as its writer lives
    <home>/journal/<sweep>/<the same>.sent               how many bytes of it are delivered
    <home>/journal/<sweep>/<the same>.files/<random>/    artifacts that wait for delivery
    <home>/journal/<sweep>/drain.lock                    locked by the one that delivers the folder

Whether a writer lives is asked of the kernel, by the lock, and not of its pid: a pid is used again,
and start times move when a machine's clock is set (docs/adr/0014-who-is-alive.md).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shlex
import shutil
import socket
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlops.errors import TrackingError

COMMIT_WINDOW_S = 0.1
"""How long records wait for an fsync that they share."""

AWAY = "away"
"""How the role begins of who writes of runs that are created on another host."""

Writer = Literal["alive", "gone", "elsewhere", "unknown"]


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

    Args:
        folder: The sweep's journal folder; made if it is not there.
        role: A word for the file's name: who writes.
        fsync: Makes a file descriptor's content survive a power loss; raises OSError.

    Raises:
        TrackingError: the file cannot be made.
    """

    def __init__(self, folder: Path, role: str, *, fsync: Callable[[int], None] = os.fsync) -> None:
        self.folder = folder
        self._fsync = fsync
        self._lock = threading.Lock()
        self._dirty = threading.Event()
        self._closing = threading.Event()
        self._failed: OSError | None = None
        self._sequence = 0
        self._end = 0
        self._torn = False
        # Sorted by name, journals are in the order in which they were begun.
        self.path = folder / f"{time.time_ns():020d}-{role}-{os.getpid()}.journal"
        try:
            self._fd = self._begin()
        except OSError as err:
            raise TrackingError(
                f"no journal can be made in {str(folder)!r}: {err}. Free some disk space there, "
                "or let MLOPS_HOME name a folder that can be written and locked."
            ) from err
        _open_journals.add(self)
        self._committer = threading.Thread(target=self._commit, name="journal-fsync", daemon=True)
        self._committer.start()

    def _begin(self) -> int:
        # A journal has its lock and its header before it has its name, so that nobody takes one
        # that is being made for one whose writer died.
        draft = self.path.with_suffix(".journal-draft")
        fd = _open_draft(draft)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            self._write(fd, json.dumps({"kind": "open", "run": "", **_this_process()}))
            self._fsync(fd)
            draft.rename(self.path)
            _fsync_folder(self.folder, self._fsync)
        except BaseException:
            draft.unlink(missing_ok=True)
            os.close(fd)
            raise
        return fd

    def append(self, kind: str, run: str, **fields: Any) -> None:
        """Writes one record about the run with the key `run`.

        Raises:
            TrackingError: the disk is full or broken, or the journal is closed. The record is not
                written; a later one may be, once there is space.
        """
        text = json.dumps({"kind": kind, "run": run, **fields})
        with self._lock:
            if self._closing.is_set():
                raise TrackingError(f"the journal {self.path.name} is closed; {kind!r} came late.")
            self._write(self._fd, text)
        self._dirty.set()

    def spool(self, source: Path) -> str:
        """Copies a file or a folder beside the journal, so that it lives until it is delivered.

        The copy is on disk for good before the record that names it is written.

        Returns:
            The copy's path relative to the journal's folder.

        Raises:
            TrackingError: there is no space for the copy.
        """
        place = self.path.with_suffix(".files") / secrets.token_hex(8)
        copy = place / source.name
        try:
            place.mkdir(parents=True)
            if source.is_dir():
                shutil.copytree(source, copy)
            else:
                shutil.copy2(source, copy)
            _fsync_tree(place, self._fsync)
            _fsync_folder(place.parent, self._fsync)
        except OSError as err:  # shutil.Error is one too
            shutil.rmtree(place, ignore_errors=True)
            raise TrackingError(
                f"{source.name!r} cannot be kept beside the journal: {err}. "
                "Free some disk space and type the same command again; it resumes."
            ) from err
        return copy.relative_to(self.folder).as_posix()

    def close(self) -> None:
        """Writes the last record and fsyncs. Safe to call twice.

        Raises:
            TrackingError: the last record or the fsync failed; the file is closed all the same.
        """
        with self._lock:
            if self._closing.is_set():
                return
            try:
                self._write(self._fd, json.dumps({"kind": "close", "run": ""}))
            finally:
                # From here on a failure leaves a journal without its last line whose lock is
                # free: to a drain that is a writer that died, and nothing is lost.
                self._closing.set()
                self._dirty.set()
                self._committer.join()
                try:
                    self._sync()
                finally:
                    os.close(self._fd)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _let_go(self) -> None:
        """Closes the file in a child that was forked, which would hold the lock on after us."""
        if self._closing.is_set():
            return
        os.close(self._fd)
        # A thread of the parent may have held the old ones, and is not here to let go of them.
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._closing.set()

    def _write(self, fd: int, text: str) -> None:
        if self._failed is not None:
            raise _unwritable(self._failed)
        body = f"{self._sequence} {text}".encode()
        rest = memoryview(b"%08x %b\n" % (zlib.crc32(body), body))
        size = len(rest)
        try:
            if self._torn:
                # What stands of a line must go before the next one, or both were damaged.
                os.ftruncate(fd, self._end)
                self._torn = False
            while rest:  # a full disk takes a part of a line first, and then says so
                rest = rest[os.write(fd, rest) :]
        except OSError as err:
            self._torn = True
            raise _unwritable(err) from err
        self._end += size
        self._sequence += 1

    def _commit(self) -> None:
        while True:
            self._dirty.wait()
            if self._closing.is_set():
                return
            self._dirty.clear()
            with contextlib.suppress(TrackingError):  # the next append raises it
                self._sync()
            # Group commit: what is appended in this pause shares the next fsync.
            self._closing.wait(COMMIT_WINDOW_S)

    def _sync(self) -> None:
        if self._failed is None:
            try:
                self._fsync(self._fd)
            except OSError as err:
                # The kernel forgets what it could not write, and says so once: a second fsync
                # that succeeds would mean nothing. So this journal has ended.
                self._failed = err
        if self._failed is not None:
            raise _unwritable(self._failed)


_open_journals: weakref.WeakSet[Journal] = weakref.WeakSet()


def _let_go_in_child() -> None:
    for journal in list(_open_journals):
        journal._let_go()


os.register_at_fork(after_in_child=_let_go_in_child)


def _unwritable(err: OSError) -> TrackingError:
    problem = TrackingError(
        f"the journal of this process cannot be written: {err}. "
        "Free some disk space and type the same command again; it resumes."
    )
    problem.__cause__ = err
    return problem


def _open_draft(draft: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
    for _ in range(9):
        make_folder(draft.parent)
        # Another process may remove the folder, empty as it is, this very moment.
        with contextlib.suppress(FileNotFoundError):
            return os.open(draft, flags, 0o666)
    return os.open(draft, flags, 0o666)


def make_folder(folder: Path) -> None:
    """Makes a journal folder unless it is there; a drain may remove an empty one meanwhile."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        # pathlib says so, too, of a folder that was there and was removed before it looked again.
        if folder.is_file():
            raise


def _fsync_tree(folder: Path, fsync: Callable[[int], None]) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                fsync(file.fileno())
        else:
            _fsync_folder(path, fsync)
    _fsync_folder(folder, fsync)


def _fsync_folder(folder: Path, fsync: Callable[[int], None]) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        fsync(fd)
    finally:
        os.close(fd)


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "machine": _read_id(Path("/etc/machine-id")),
        "boot": _read_id(Path("/proc/sys/kernel/random/boot_id")),
        "pid": os.getpid(),
    }


def _read_id(path: Path) -> str:
    """Returns what tells a machine, or a start of its kernel, from any other; empty without it."""
    try:
        return path.read_text("ascii").strip()
    except (OSError, ValueError):
        return ""


def find_writer(path: Path) -> Writer:
    """Tells whether the process that wrote a journal still runs.

    "elsewhere": it ran on another machine, whose locks may not be seen from here. "unknown": its
    lock is free, but the line that names it is damaged.
    """
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            header = _parse(file.readline(), 0)
    except OSError:
        return "alive"  # or so to be treated: a lock that cannot be asked for says nothing
    if header is None:
        return "unknown"
    return "gone" if is_same_machine(header.fields, _this_process()) else "elsewhere"


def is_same_machine(writer: dict[str, Any], here: dict[str, Any]) -> bool:
    """Tells whether the locks of a writer are those that this process sees.

    Under one start of one kernel they are, in containers too. After a reboot the machine's id and
    name must both be the same: alone, each is shared by containers and copied disks.
    """
    if writer.get("boot", "") == here["boot"] != "":
        return True
    machine = writer.get("machine", "")
    # A kernel that has neither (macOS) tells itself by its name.
    known = machine != "" or not (here["machine"] or here["boot"])
    return known and all(writer.get(name, "") == here[name] for name in ("host", "machine"))


def read_records(path: Path, offset: int = 0) -> Iterator[Record]:
    """Yields the whole records of a journal from a byte offset on.

    Raises:
        TrackingError: a record is damaged; names the file, the byte where it starts, and the
            command that goes on without it.
    """
    for record, start in _read_lines(path, offset):
        if record is None:
            raise _damage(path, start)
        yield record


def read_before_damage(path: Path, offset: int) -> Iterator[Record]:
    """Yields the records from a byte offset on up to the first damaged one.

    Raises:
        TrackingError: that is the very first.
    """
    for n, (record, start) in enumerate(_read_lines(path, offset)):
        if record is None:
            if n == 0:
                raise _damage(path, start)
            return
        yield record


def find_spooled(folder: Path, spooled: object) -> Path | None:
    """Returns the copy that a record names, there or not; None if it names no place of copies.

    Who delivers a journal may read more than who wrote it: a copy lies beside the journals and
    holds no link, and nothing else is sent to a server or removed.

    Args:
        folder: Of the journals.
        spooled: As `Journal.spool` gave it.
    """
    parts = str(spooled).split("/")
    is_copy = len(parts) == 3 and parts[0].endswith(".files") and not {"", ".", ".."} & {*parts}
    place = folder.joinpath(*parts) if is_copy else folder
    if place == folder or place.resolve() != folder.resolve().joinpath(*parts):
        return None
    return None if any(path.is_symlink() for path in place.rglob("*")) else place


def is_away(path: Path) -> bool:
    """Tells whether a journal speaks of runs that another host's journal creates."""
    return path.name.split("-")[1:2] == [AWAY]


def find_journals(folder: Path) -> list[Path]:
    """Returns a folder's journals, oldest first: the driver's creates the runs of the others."""
    return sorted(folder.glob("*.journal"))


def read_undelivered(folder: Path) -> Iterator[Record | None]:
    """Yields what no server has confirmed yet, in all journals; None stands for a damaged record.

    Records behind a damaged one are yielded too.
    """
    for path in find_journals(folder):
        for record, _ in _read_lines(path, read_sent(path)):
            if record is None or record.kind not in ("open", "close"):
                yield record


def read_lines(path: Path, offset: int = 0) -> Iterator[Record | None]:
    """Yields every whole line of a journal from a byte on; None stands for a damaged one."""
    return (record for record, _ in _read_lines(path, offset))


def read_sent(path: Path) -> int:
    """Returns how many bytes of a journal are delivered, by the note that a drain left of it."""
    # Without a good note all is sent again. Its newline tells a whole note from a torn one.
    with contextlib.suppress(FileNotFoundError, ValueError):
        note = path.with_suffix(".sent").read_bytes()
        if note.endswith(b"\n"):
            return int(note)
    return 0


def is_closed(path: Path) -> bool:
    """Tells whether a journal's last whole line is the one that `Journal.close` writes."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 200))
        lines = file.read().splitlines(keepends=True)
        record = _parse(lines[-1], 0) if lines else None
        return record is not None and record.kind == "close"
    return False


def find_torn_tail(path: Path) -> tuple[int, int]:
    """Returns the byte behind the last whole line of a journal, and how many more there are."""
    size = path.stat().st_size
    step = 1 << 16
    with path.open("rb") as file:
        for start in range(max(0, size - step), -step, -step):
            file.seek(max(0, start))
            found = file.read(step).rfind(b"\n")
            if found >= 0:
                end = max(0, start) + found + 1
                return end, size - end
    return 0, size


def describe_torn_tail(path: Path) -> str | None:
    """Says what is dropped of a journal whose writer is gone; None where nothing is."""
    start, n_bytes = find_torn_tail(path)
    if n_bytes == 0:
        return None
    return (
        f"{path.name}: the last record was cut short when its process ended; {n_bytes} bytes from "
        f"byte {start} on are dropped."
    )


def build_mend(path: Path, line: int) -> str | None:
    """Returns the command that goes on without a damaged line, counted from 1.

    None while the writer may live: it would go on in the file that the command replaces.
    """
    writer: Writer = "gone" if is_closed(path) else find_writer(path)
    if writer in ("alive", "elsewhere"):
        return None
    if line > 1:
        return f"sed -i {line}d {shlex.quote(str(path))}"
    # The line that names the writer. A new one says that it ran on this machine; where it is not
    # as long, the note of what is delivered is wrong, so all is sent again, which does no harm.
    header = build_header().decode().replace("\\", r"\\")
    note, change = path.with_suffix(".sent"), f"1c {header}"
    return (
        shlex.join(["rm", "-f", str(note)]) + " && " + shlex.join(["sed", "-i", change, str(path)])
    )


def build_header() -> bytes:
    """Returns a journal's first line, which names this machine as its writer's; no newline."""
    body = f"0 {json.dumps({'kind': 'open', 'run': '', **_this_process()})}".encode()
    return b"%08x %b" % (zlib.crc32(body), body)


def _read_lines(path: Path, offset: int) -> Iterator[tuple[Record | None, int]]:
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(offset)
        while (line := file.readline()).endswith(b"\n"):
            yield _parse(line, offset + len(line)), offset
            offset += len(line)


def _parse(line: bytes, end: int) -> Record | None:
    checksum, _, body = line.removesuffix(b"\n").partition(b" ")
    sequence, _, text = body.partition(b" ")
    try:
        if checksum != b"%08x" % zlib.crc32(body):
            return None
        fields = json.loads(text)
        return Record(int(sequence), fields.pop("kind"), fields.pop("run"), fields, end)
    except (ValueError, KeyError, AttributeError):
        return None


def _damage(path: Path, offset: int) -> TrackingError:
    with path.open("rb") as file:
        line = file.read(offset).count(b"\n") + 1
    mend = build_mend(path, line)
    how = (
        f"To go on without that record, type: {mend}"
        if mend is not None
        else "Its process may still write it: once that has ended, `python -m mlops.doctor` on its "
        "machine tells the command that goes on without that record."
    )
    return TrackingError(
        f"{path.name} is damaged at byte {offset}: the checksum of line {line} does not match. "
        f"What stands before it is delivered; the file is kept. {how}"
    )


def check_header(path: Path) -> None:
    """Looks whether anybody can tell if more will come of a journal that is not closed.

    Raises:
        TrackingError: the line that names its writer is damaged.
    """
    if find_writer(path) == "unknown" and not is_closed(path):
        raise _damage(path, 0)
