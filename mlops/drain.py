"""The drain: delivers a folder's journals to a sink, in a thread or in a pass of its own.

A drain holds its folder by a lock, reads what the journals of `mlops.journal` have that no server
has confirmed yet, and notes how far it came. Nothing here knows of MLflow: a `Sink` takes the
records.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from mlops.errors import TrackingError
from mlops.journal import (
    Record,
    check_header,
    describe_torn_tail,
    find_journals,
    find_spooled,
    find_writer,
    is_away,
    is_closed,
    make_folder,
    read_before_damage,
    read_sent,
    read_undelivered,
)

CHUNK_RECORDS = 1000
LOOK_EVERY_S = 0.25
LOOK_AT_LEAST_EVERY_S = 5.0
HEAR_EVERY_S = 0.1
"""How often a flush looks whether it shall end."""
STALE_DRAFT_S = 3600.0


class ServerFaultError(ConnectionError):
    """A server answered, but that something is wrong with it: it may take another journal."""


class _WaitsError(TrackingError):
    """A journal speaks of a run that another one has yet to create."""


@dataclass(slots=True, eq=False)
class Part:
    """Records of one journal on their way, and how far they came.

    Attributes:
        records: In order.
        doubtful: Whether some of them may have been sent before.
        is_away: Whether a run that nobody knows of may be created yet, by another host's journal.
        n_taken: How many of them the sink has seen to; it sets that.
        held: The places of those among them that it keeps back for a while.
        n_noted: How many of them are noted as delivered.
    """

    records: list[Record]
    doubtful: bool
    is_away: bool = False
    n_taken: int = 0
    held: set[int] = field(default_factory=set)
    n_noted: int = 0

    @property
    def n_done(self) -> int:
        return min(self.held, default=self.n_taken)


class Sink(Protocol):
    """What a drain delivers to. `mlops.mlflow_sink.MlflowSink` is the real one."""

    def deliver(self, folder: Path, part: Part) -> None:
        """Sends records in order, and counts them in `part`; those that must wait it leaves.

        May keep some back, to send them with what other journals say: `part.held`.

        May raise ConnectionError: nothing, or an unknown part of it, arrived. The drain then sends
        the same records again as doubtful, so an implementation must bear repetition. What a
        server will never take counts as done: it must not block the rest.
        """
        ...

    def flush(self) -> None:
        """Sends what is kept back; after that nothing is, whatever happened.

        May raise what `deliver` may: places that are still held were not sent.
        """
        ...


class Delivery:
    """Delivers a folder's journals, a pass at a time. The caller holds it: `hold_folder`.

    What a crash leaves: between a delivery and the note of it (`.sent`), records that are sent
    twice, as *doubtful*; between the note and the end of a journal, a journal that is removed on
    the next pass.

    Args:
        folder: The sweep's journal folder.
        open_sink: Opens the sink; called again if it raised.
        may_remove: Whether the journal of a writer that was killed may go once it is delivered.

    Attributes:
        problems: What kept the last pass from delivering something, a sentence each.
        unreachable: Whether no server answered; the pass ended there.
        may_pass: Whether one of the problems may pass by itself.
        n_delivered: Number of records that were delivered.
        dropped: What was dropped of records that were cut short, a sentence each.
    """

    def __init__(
        self,
        folder: Path,
        open_sink: Callable[[], Sink],
        may_remove: Callable[[Path], bool] = lambda path: True,
    ) -> None:
        self.folder = folder
        self._may_remove = may_remove
        self.problems: list[str] = []
        self.unreachable = False
        self.may_pass = False
        self.n_delivered = 0
        self.dropped: list[str] = []
        self._open_sink = open_sink
        self._sink: Sink | None = None
        self._doubtful_until: dict[Path, int] = {}
        self._failures: dict[Path, int] = {}
        self._n_passes = 0
        self._n_noted = 0
        self._found: list[str] = []

    def run_pass(self) -> bool:
        """Goes once over all journals; returns whether anything was delivered. Raises nothing."""
        self._n_passes += 1
        self.unreachable = self.may_pass = False
        self._found = []
        n_before, waiting = self._n_noted, list[str]()
        held: list[tuple[Path, Part]] = []
        for path in self._find_journals():
            n_noted = self._n_noted
            try:
                self._deliver(path, held)
                self._failures.pop(path, None)
            except _WaitsError as err:
                self._failures[path] = self._n_passes
                waiting.append(str(err))
            except Exception as err:  # whatever it is, the other journals and the trainer go on
                self._note_failure([path], err, said=self._n_noted == n_noted)
                if self.unreachable:
                    break
        self._flush(held)
        progress = self._n_noted > n_before
        # Where there is some, what the others wait for is on its way.
        self.problems = self._found if progress else self._found + waiting
        return progress

    def _find_journals(self) -> list[Path]:
        """Returns the journals to go over, in order; none while no sink can be opened."""
        if self._sink is None and find_journals(self.folder):
            try:
                self._sink = self._open_sink()
            except Exception as err:
                self._note_failure([], err)
                return []
        # Looked for after that, which may take long: what the first says and the last does not
        # know of yet would be sent apart. Who failed comes last, the longest ago first, so that no
        # journal keeps another waiting.
        return sorted(find_journals(self.folder), key=lambda path: self._failures.get(path, 0))

    def _note_failure(self, paths: list[Path], err: Exception, *, said: bool = True) -> None:
        self._failures.update(dict.fromkeys(paths, self._n_passes))
        if said:  # a journal that comes on, with a failing server too, is no problem
            self._found.append(_sentence(err))
        self.may_pass = self.may_pass or isinstance(err, ConnectionError) or self._sink is None
        self.unreachable = self._sink is None or (
            isinstance(err, ConnectionError) and not isinstance(err, ServerFaultError)
        )

    def _deliver(self, path: Path, held: list[tuple[Path, Part]]) -> None:
        assert self._sink is not None
        sent = read_sent(path)
        # Asked for first: what a writer appended before it died is then read below.
        is_over = is_closed(path) or (find_writer(path) == "gone" and self._may_remove(path))
        records = list(itertools.islice(read_before_damage(path, sent), CHUNK_RECORDS))
        if not records:
            if is_over:
                self._finish(path)
            else:
                check_header(path)
            return
        # What stood here before this drain began, others may have sent, and died before the note
        # of it, or lost the note with the power.
        doubtful_until = self._doubtful_until.setdefault(path, _size(path))
        part = Part(records, doubtful=sent < doubtful_until, is_away=is_away(path))
        self._doubtful_until[path] = max(doubtful_until, records[-1].end)
        try:
            self._sink.deliver(self.folder, part)
        finally:
            self._note(path, part)
            if part.held:
                held.append((path, part))
        if part.n_taken == 0:
            raise _WaitsError(
                f"{path.name} waits for another journal, which creates the run {records[0].run}."
            )

    def _flush(self, held: list[tuple[Path, Part]]) -> None:
        """Has the sink send what it kept back, and notes what of it arrived."""
        if not held or self._sink is None:
            return
        try:
            self._sink.flush()
        except Exception as err:
            self._note_failure([path for path, part in held if part.held], err)
        for path, part in held:
            try:
                self._note(path, part)
            except OSError as err:
                self._note_failure([path], err)

    def _note(self, path: Path, part: Part) -> None:
        """Notes what of a part is delivered, and removes what has served."""
        done = part.records[part.n_noted : part.n_done]
        if not done:
            return
        _note_sent(path, done[-1].end)
        part.n_noted = part.n_done
        self._n_noted += len(done)
        for record in done:
            self.n_delivered += record.kind not in ("open", "close")
            if "spooled" in record.fields:
                copy = find_spooled(self.folder, record.fields["spooled"])
                if copy is not None:
                    shutil.rmtree(copy.parent, ignore_errors=True)
        if done[-1].kind == "close":
            self._finish(path)

    def _finish(self, path: Path) -> None:
        """Removes a journal of which all is delivered, and forgets it."""
        with contextlib.suppress(FileNotFoundError):
            torn = describe_torn_tail(path)
            if torn is not None:
                self.dropped.append(torn)
        _remove(path)
        self._doubtful_until.pop(path, None)


class Drain:
    """The reading end: delivers a folder's journals in a thread of its own.

    One drain a folder at a time: the first to start holds it until it is stopped; another one
    waits for it. When the last journal is gone the folder goes too.

    Args:
        folder: The sweep's journal folder.
        open_sink: Opens the sink; called in the drain's own thread, since opening may be slow, and
            called again if it raised.
    """

    def __init__(self, folder: Path, open_sink: Callable[[], Sink]) -> None:
        self.folder = folder
        self._delivery = Delivery(folder, open_sink)
        self._stop = threading.Event()
        self._finish = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_held_elsewhere = False

    @property
    def problem(self) -> str | None:
        """What keeps the drain from delivering now, or None."""
        if self._is_held_elsewhere:
            return "another process delivers this journal"
        return next(iter(self._delivery.problems), None)

    @property
    def dropped(self) -> list[str]:
        """What was dropped of records that were cut short by the end of a process, so far."""
        return list(self._delivery.dropped)

    def start(self) -> Drain:
        if self._thread is None or not self._thread.is_alive():
            self._stop.clear()
            self._finish.clear()
            self._thread = threading.Thread(target=self._run, name="journal-drain", daemon=True)
            self._thread.start()
        return self

    def undelivered(self) -> int:
        """Counts the records that no server has confirmed yet, damaged ones included."""
        return sum(1 for _ in read_undelivered(self.folder))

    def stop(self, timeout_s: float = 0.0) -> None:
        """Stops the thread; waits `timeout_s` at most for a delivery under way, which goes on."""
        self._stop.set()
        self._finish.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def flush(self, timeout_s: float, *, give_up: Callable[[], bool] | None = None) -> int:
        """Delivers until nothing is left or the time is over; returns `undelivered()`.

        Tries again while no server answers; ends at once where waiting is of no use.

        Args:
            timeout_s: How long to wait, at most.
            give_up: Asked again and again; the wait ends as soon as it returns True. A
                KeyboardInterrupt ends it, too. The journals keep what is left.
        """
        deadline = time.monotonic() + timeout_s
        try:
            if self._stop.is_set():
                self._wait_for_thread(deadline, give_up)
            self.start()
            self._finish.set()
            self._wait_for_thread(deadline, give_up)
        finally:
            self._stop.set()
        return self.undelivered()

    def _wait_for_thread(self, deadline: float, give_up: Callable[[], bool] | None) -> None:
        # In short waits: a handler that does not raise would not end a long one.
        while self._thread is not None and self._thread.is_alive():
            left_s = deadline - time.monotonic()
            if left_s <= 0 or (give_up is not None and give_up()):
                return
            self._thread.join(min(left_s, HEAR_EVERY_S))

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with hold_folder(self.folder) as held:
                    self._is_held_elsewhere = not held
                    if held:
                        self._deliver()
                        return
            except OSError as err:  # the folder cannot be made, or not be locked
                self._delivery.problems = [_sentence(err)]
            self._stop.wait(LOOK_EVERY_S)

    def _deliver(self) -> None:
        pause_s = LOOK_EVERY_S
        while not self._stop.is_set():
            progress = self._delivery.run_pass()
            failed = self._delivery.may_pass and not progress
            if self._finish.is_set():
                if not progress and not failed:
                    return
                if failed:
                    self._stop.wait(LOOK_EVERY_S)
            else:
                pause_s = min(pause_s * 2, LOOK_AT_LEAST_EVERY_S) if failed else LOOK_EVERY_S
                self._finish.wait(pause_s)


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[bool]:
    """Yields whether this process is now the one that delivers a folder; removes an empty one.

    The kernel lets go of it when the process dies.
    """
    with contextlib.ExitStack() as stack:
        lock: BinaryIO | None = None
        while lock is None:
            make_folder(folder)
            # Whoever held it before may have removed the lock, or the folder, this very moment.
            with contextlib.suppress(FileNotFoundError):
                file = stack.enter_context((folder / "drain.lock").open("ab"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    yield False
                    return
                if os.path.samestat(os.fstat(file.fileno()), (folder / "drain.lock").stat()):
                    lock = file
        try:
            yield True
        finally:
            _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    """Removes a folder without journals, with what a killed drain may have left in it."""
    if find_journals(folder):
        return
    for path in folder.glob("*"):
        if path.suffix == ".files":
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix in (".sent", ".sent-draft") or _is_stale_draft(path):
            path.unlink(missing_ok=True)
    (folder / "drain.lock").unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # somebody begins a journal: it stays
        folder.rmdir()


def _is_stale_draft(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return (
            path.suffix == ".journal-draft" and time.time() - path.stat().st_mtime > STALE_DRAFT_S
        )
    return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _remove(path: Path) -> None:
    # The journal goes first: without it the other two are known to be of no use.
    path.unlink(missing_ok=True)
    path.with_suffix(".sent").unlink(missing_ok=True)
    shutil.rmtree(path.with_suffix(".files"), ignore_errors=True)


def _note_sent(path: Path, offset: int) -> None:
    note = path.with_suffix(".sent")
    draft = note.with_suffix(".sent-draft")
    draft.write_text(f"{offset}\n")
    draft.replace(note)


def _sentence(err: Exception) -> str:
    return str(err) if isinstance(err, (TrackingError, ConnectionError)) else f"{err!r}"
