"""Journals that are written and delivered while they are copied."""

from __future__ import annotations

import shutil
import threading
import time
import zlib
from pathlib import Path

import pytest

from mlops.drain import Delivery, Drain, Part
from mlops.errors import MlopsError
from mlops.journal import Journal, find_journals, find_writer, read_lines, read_sent
from mlops.stores.journal_copy import back_up, restore
from mlops.stores.journal_state import read_state


class Taker:
    """A sink that takes whatever comes, and remembers it."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, str | None]] = []

    def deliver(self, folder: Path, part: Part) -> None:
        for record in part.records:
            spooled = record.fields.get("spooled")
            content = (folder / spooled).read_text() if spooled else None
            self.taken.append((record.run, content))
            part.n_taken += 1

    def flush(self) -> None: ...


def write_until(stop: threading.Event, folder: Path, note: Path) -> None:
    while not stop.is_set():
        with Journal(folder, "worker") as journal:
            for n in range(20):
                note.write_text(str(n))
                journal.append("artifact", str(n), spooled=journal.spool(note), folder="")


def test_what_a_copy_does_not_call_delivered_is_in_it_whole(tmp_path: Path) -> None:
    home, sink = tmp_path / "home", Taker()
    folder = home / "journal" / "sweep"
    folder.mkdir(parents=True)
    drain = Drain(folder, lambda: sink).start()
    stop = threading.Event()
    writer = threading.Thread(target=write_until, args=(stop, folder, tmp_path / "note"))
    writer.start()
    n_undelivered = 0
    deadline = time.monotonic() + 60
    try:
        while n_undelivered < 600:
            assert time.monotonic() < deadline
            back_up(home, tmp_path / "copy")
            n_undelivered += check_whole(tmp_path / "copy" / "journal" / "sweep")
            shutil.rmtree(tmp_path / "copy", ignore_errors=True)
    finally:
        stop.set()
        writer.join()
        drain.stop(60)


def check_whole(copy: Path) -> int:
    """Returns how many artifacts a copy says are undelivered, all of which it has."""
    n_undelivered = 0
    for path in find_journals(copy):
        for record in read_lines(path, read_sent(path)):
            assert record is not None
            if "spooled" in record.fields:
                assert (copy / record.fields["spooled"]).read_text() == record.run
                n_undelivered += 1
    return n_undelivered


def test_a_restored_journal_is_of_this_machine_and_goes_on_where_it_was_delivered(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "home" / "journal" / "sweep"
    note = tmp_path / "note"
    note.write_text("left")
    with Journal(folder, "worker") as journal:
        journal.append("metrics", "first")
        first = Delivery(folder, Taker)
        first.run_pass()
        sent = read_sent(journal.path)
        assert sent == journal.path.stat().st_size
        journal.append("artifact", "second", spooled=journal.spool(note), folder="")
        back_up(tmp_path / "home", tmp_path / "backup")
    (copy,) = (tmp_path / "backup").rglob("*.journal")
    assert read_sent(copy) == sent
    header, rest = copy.read_bytes().split(b"\n", 1)
    other = header.replace(b'"boot": "', b'"boot": "other').replace(b'"host": "', b'"host": "far-')
    assert other != header
    body = other.split(b" ", 1)[1]
    copy.write_bytes(b"%08x %b\n" % (zlib.crc32(body), body) + rest)
    copy.with_suffix(".sent").write_text(f"{sent + len(other) - len(header)}\n")
    assert find_writer(copy) == "elsewhere"
    for _ in restore(tmp_path / "new", tmp_path / "backup"):
        pass
    (path,) = find_journals(tmp_path / "new" / "journal" / "sweep")
    state = read_state(path)
    assert (state.writer, state.n_undelivered, state.damage) == ("gone", 1, None)
    sink = Taker()
    Delivery(path.parent, lambda: sink).run_pass()
    assert ("second", "left") in sink.taken
    assert "first" not in [run for run, _ in sink.taken]
    with pytest.raises(MlopsError, match=r"there are journals at .* already"):
        next(restore(tmp_path / "new", tmp_path / "backup"))
