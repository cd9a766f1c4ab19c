from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops.drain import Delivery, Drain, Part, ServerFaultError, hold_folder
from mlops.errors import TrackingError
from mlops.journal import (
    COMMIT_WINDOW_S,
    Journal,
    Record,
    find_journals,
    find_writer,
    is_same_machine,
    read_lines,
    read_records,
    read_undelivered,
)

WRITER = """
import sys
from pathlib import Path
from mlops.journal import Journal

journal = Journal(Path(sys.argv[1]), "victim")
for number in range(10**9):
    journal.append("metrics", "run", number=number)
    print(number, flush=True)
"""

FULL_DISK = """
import resource, sys
from pathlib import Path
from mlops.errors import TrackingError
from mlops.journal import Journal

journal = Journal(Path(sys.argv[1]), "full")
journal.append("metrics", "run", number=0)
size = journal.path.stat().st_size
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
try:
    journal.append("metrics", "run", number=1, text="x" * 500)
except TrackingError as err:
    print(err)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
journal.append("metrics", "run", number=2)
journal.close()
"""


FORKED = """
import os, sys
from pathlib import Path
from mlops.errors import TrackingError
from mlops.journal import Journal

journal = Journal(Path(sys.argv[1]), "victim")
if os.fork() == 0:
    try:
        journal.append("metrics", "run", number=0)
    except TrackingError:
        print("the journal of this process is closed", flush=True)
sys.stdin.read()
"""


class FakeServer:
    """A sink that applies each record once, by its run and number, as the real one does.

    `faults` are taken one a record: "" applies it; "before" and "after" raise ConnectionError
    before or after applying; "fault" is a server's own error; "bug" is an unforeseen exception;
    "stop" takes no more records of this call.
    """

    def __init__(self, faults: Iterable[str] = ()) -> None:
        self.faults = iter(faults)
        self.applied: Counter[tuple[str, str, int]] = Counter()
        self.in_order: list[tuple[str, int]] = []
        self.repeated: list[tuple[str, str, int]] = []
        self.hung = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def deliver(self, folder: Path, part: Part) -> None:
        for place, record in enumerate(part.records):
            part.n_taken = place
            if not self.go_on.is_set():
                self.hung.set()
                self.go_on.wait()
            if record.kind in ("open", "close"):
                continue
            fault = next(self.faults, "")
            if fault == "before":
                raise ConnectionError("no answer")
            if fault == "fault":
                raise ServerFaultError("its disk is full")
            if fault == "bug":
                raise KeyError("surprise")
            if fault == "stop":
                return
            self.apply(folder, record, part.doubtful)
            if fault == "after":
                raise ConnectionError("the answer was lost")
        part.n_taken = len(part.records)

    def flush(self) -> None:
        pass

    def apply(self, folder: Path, record: Record, doubtful: bool) -> None:
        if record.fields.get("poison"):
            raise ServerFaultError(f"poison {record.run}")
        key = (record.run, record.kind, record.fields["number"])
        if self.applied[key]:
            self.repeated.append(key)
            # What the real sink relies on: nothing comes twice without being called doubtful.
            assert doubtful, key
            return
        if "spooled" in record.fields:
            assert (folder / record.fields["spooled"]).read_text() == str(record.fields["number"])
        self.applied[key] += 1
        self.in_order.append((record.run, record.fields["number"]))


def numbers(path: Path) -> list[int]:
    return [r.fields["number"] for r in read_records(path) if r.kind not in ("open", "close")]


def write_journal(folder: Path, run: str, count: int, role: str = "w") -> Journal:
    journal = Journal(folder, role)
    for number in range(count):
        journal.append("metrics", run, number=number)
    return journal


def kill_a_writer(folder: Path, count: int) -> Path:
    """Returns what a process left that wrote some records and was killed."""
    write_journal(folder, "run", count).close()
    (path,) = find_journals(folder)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    return path


def run_passes(delivery: Delivery, at_most: int = 200) -> None:
    for _ in range(at_most):
        delivery.run_pass()
        if not find_journals(delivery.folder):
            return


def flip_byte(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


def wait_until(what: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_every_record_whose_append_returned_is_there_after_kill_9(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(500)]
        (path,) = find_journals(tmp_path)
        assert find_writer(path) == "alive"
        process.kill()
        lines += process.stdout.readlines()
    said = [int(line) for line in lines if line.endswith("\n")]
    assert len(said) >= 500
    assert numbers(path)[: len(said)] == said
    assert find_writer(path) == "gone"


def test_what_a_killed_writer_left_is_delivered_and_its_folder_removed(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    command = [sys.executable, "-c", WRITER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        process.stdout.read()
    (path,) = find_journals(folder)
    written = numbers(path)
    server = FakeServer()
    assert Drain(folder, lambda: server).flush(10.0) == 0
    assert [number for _, number in server.in_order] == written
    assert not folder.exists()


def test_a_full_disk_in_the_middle_of_a_line_spoils_neither_neighbour(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "cannot be written" in done.stdout
    (path,) = find_journals(tmp_path)
    assert numbers(path) == [0, 2]
    assert [record.sequence for record in read_records(path)] == [0, 1, 2, 3]


def test_a_tail_cut_anywhere_is_not_read(tmp_path: Path) -> None:
    write_journal(tmp_path, "run", 3).close()
    (path,) = find_journals(tmp_path)
    whole = path.read_bytes()
    body = whole.splitlines(keepends=True)
    for cut in range(1, len(body[-2])):
        path.write_bytes(b"".join(body[:-2]) + body[-2][:cut])
        assert numbers(path) == [0, 1] or body[-2][:cut].endswith(b"\n")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_flipped_byte_is_named_and_all_before_it_is_read(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_journal(folder, "run", 5).close()
        (path,) = find_journals(folder)
        lines = path.read_bytes().splitlines(keepends=True)
        place = data.draw(st.integers(0, path.stat().st_size - 2))  # the last newline: torn tail
        start, n_before = 0, 0
        while start + len(lines[n_before]) <= place:
            start += len(lines[n_before])
            n_before += 1
        flip_byte(path, place)
        read = []
        with pytest.raises(TrackingError, match=f"{path.name} is damaged at byte {start}:"):
            for record in read_records(path):
                read.append(record.sequence)
        assert read == list(range(n_before))


def test_behind_a_damaged_record_nothing_is_lost_and_the_other_journals_go_on(
    tmp_path: Path,
) -> None:
    write_journal(tmp_path, "a", 4).close()
    write_journal(tmp_path, "b", 4).close()
    first, _ = find_journals(tmp_path)
    lines = first.read_bytes().splitlines(keepends=True)
    flip_byte(first, sum(map(len, lines[:3])) + 20)  # a's record number 2
    server = FakeServer()
    drain = Drain(tmp_path, lambda: server)
    assert drain.flush(10.0) == 2  # the damaged one, and the one behind it
    assert server.in_order == [("a", 0), ("a", 1), *(("b", n) for n in range(4))]
    assert find_journals(tmp_path) == [first]
    assert drain.problem is not None and f"{first.name} is damaged at byte" in drain.problem

    command = drain.problem.split("type: ")[1]
    subprocess.run(command, shell=True, check=True)
    assert Drain(tmp_path, lambda: server).flush(10.0) == 0
    assert server.in_order[-1] == ("a", 3)
    assert not tmp_path.exists()


def test_a_damaged_header_is_named_and_the_journal_kept(tmp_path: Path) -> None:
    write_journal(tmp_path, "a", 2).close()
    (path,) = find_journals(tmp_path)
    flip_byte(path, 12)
    drain = Drain(tmp_path, FakeServer)
    assert drain.flush(10.0) == 3
    assert drain.problem is not None and "damaged at byte 0" in drain.problem
    assert find_journals(tmp_path) == [path]


@pytest.mark.parametrize("n_delivered", [0, 1, 2])
def test_a_damaged_header_of_a_dead_writer_is_named_and_its_command_mends_it(
    tmp_path: Path, n_delivered: int
) -> None:
    folder, server = tmp_path / "it's one", FakeServer()
    path = kill_a_writer(folder, 2)
    if n_delivered:
        lines = path.read_bytes().splitlines(keepends=True)[: n_delivered + 1]
        path.with_suffix(".sent").write_text(f"{sum(map(len, lines))}\n")
    flip_byte(path, 12)
    assert find_writer(path) == "unknown"
    drain = Drain(folder, lambda: server)
    drain.flush(10.0)
    assert drain.problem is not None and f"{path.name} is damaged at byte 0: " in drain.problem
    assert find_journals(folder) == [path]
    subprocess.run(drain.problem.split("type: ")[1], shell=True, check=True)
    assert find_writer(path) == "gone"
    assert Drain(folder, lambda: server).flush(10.0) == 0
    assert sorted(server.in_order) == [("run", 0), ("run", 1)]
    assert not folder.exists()


def test_no_line_is_taken_out_under_a_writer_that_lives(tmp_path: Path) -> None:
    with write_journal(tmp_path, "run", 2) as journal:
        flip_byte(journal.path, journal.path.stat().st_size - 5)
        with pytest.raises(TrackingError, match="Its process may still write it") as told:
            list(read_records(journal.path))
        assert "sed" not in str(told.value) and "type:" not in str(told.value)
    with pytest.raises(TrackingError, match="type: sed -i 3d"):
        list(read_records(journal.path))


@pytest.mark.parametrize("torn", [b"1234", b'12345678 3 {"kind": "met'])
def test_a_torn_tail_is_dropped_and_said(tmp_path: Path, torn: bytes) -> None:
    path = kill_a_writer(tmp_path / "sweep", 2)
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(torn)
    server = FakeServer()
    drain = Drain(tmp_path / "sweep", lambda: server)
    assert drain.flush(10.0) == 0
    assert server.in_order == [("run", 0), ("run", 1)]
    assert drain.dropped == [
        f"{path.name}: the last record was cut short when its process ended; {len(torn)} bytes "
        f"from byte {size} on are dropped."
    ]
    assert not (tmp_path / "sweep").exists()


def test_a_child_that_was_forked_does_not_hold_the_lock_of_a_dead_writer(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FORKED, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "the journal of this process is closed\n"
        (path,) = find_journals(tmp_path)
        assert find_writer(path) == "alive"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert find_writer(path) == "gone"  # though the child still waits for its stdin


HERE = {"host": "sun", "machine": "m1", "boot": "b1"}


@pytest.mark.parametrize(
    ("case", "writer", "here", "same"),
    [
        ("this start of this machine", HERE, HERE, True),
        ("a container of it", {**HERE, "host": "c1", "machine": ""}, HERE, True),
        ("before a reboot", {**HERE, "boot": "b0"}, HERE, True),
        ("another machine", {"host": "moon", "machine": "m2", "boot": "b2"}, HERE, False),
        ("a container of one name elsewhere", {**HERE, "machine": "", "boot": "b2"}, HERE, False),
        (
            "two such containers",
            {**HERE, "machine": "", "boot": "b2"},
            {**HERE, "machine": ""},
            False,
        ),
        ("a copied disk", {**HERE, "host": "moon", "boot": "b2"}, HERE, False),
        ("without ids", {"host": "mac"}, {"host": "mac", "machine": "", "boot": ""}, True),
        ("another without", {"host": "pc"}, {"host": "mac", "machine": "", "boot": ""}, False),
    ],
)
def test_locks_are_believed_on_the_machine_that_a_writer_ran_on(
    case: str, writer: dict[str, str], here: dict[str, str], same: bool
) -> None:
    assert is_same_machine(writer, here) is same, case


class Disk:
    """An fsync that takes no time and notes when it was called, and how long the file was then."""

    def __init__(self) -> None:
        self.synced: list[tuple[float, int]] = []

    def fsync(self, fd: int) -> None:
        self.synced.append((time.monotonic(), os.fstat(fd).st_size))

    def covers(self, end: int) -> bool:
        return self.synced[-1][1] >= end

    def delay_s(self, written: float, end: int) -> float:
        """Returns how long a record that ends at a byte waited."""
        return next(at for at, size in self.synced if size >= end and at >= written) - written


def test_a_record_is_fsynced_within_200_ms_without_a_further_call(tmp_path: Path) -> None:
    assert COMMIT_WINDOW_S <= 0.1
    disk, delays_s = Disk(), []
    with Journal(tmp_path, "w", fsync=disk.fsync) as journal:
        for _ in range(7):
            time.sleep(0.07)
            began = time.monotonic()
            journal.append("metrics", "run", number=0)
            end = journal.path.stat().st_size
            wait_until(lambda end=end: disk.covers(end))  # type: ignore[misc]
            delays_s.append(max(0.0, disk.synced[-1][0] - began))
        idle = len(disk.synced)
        time.sleep(3 * COMMIT_WINDOW_S)
        assert len(disk.synced) == idle
    assert statistics.median(delays_s) < 0.2  # a busy machine may be late now and then


def test_records_share_an_fsync_and_wait_no_longer_where_appends_never_pause(
    tmp_path: Path,
) -> None:
    disk = Disk()
    written: list[tuple[float, int]] = []
    with Journal(tmp_path, "w", fsync=disk.fsync) as journal:
        n_to_begin, began = len(disk.synced), time.monotonic()
        while len(disk.synced) < n_to_begin + 5:
            assert time.monotonic() - began < 20.0
            at = time.monotonic()
            journal.append("metrics", "run", number=0)
            written.append((at, journal.path.stat().st_size))
        took_s = time.monotonic() - began
        wait_until(lambda: disk.covers(written[-1][1]))
        assert len(written) > 100
        assert len(disk.synced) - n_to_begin <= took_s / COMMIT_WINDOW_S + 2
        assert statistics.median(disk.delay_s(*one) for one in written) < 0.2


def test_a_failed_fsync_is_told_to_the_next_append_and_never_forgotten(tmp_path: Path) -> None:
    broken = threading.Event()

    def fsync(fd: int) -> None:
        if broken.is_set():
            broken.clear()  # as the kernel does: it says so once
            raise OSError(errno.EIO, "Input/output error")

    journal = Journal(tmp_path, "w", fsync=fsync)
    broken.set()
    journal.append("metrics", "run", number=0)
    wait_until(lambda: not broken.is_set())
    for number in range(2):
        with pytest.raises(TrackingError, match="Input/output error"):
            journal.append("metrics", "run", number=number)
    with pytest.raises(TrackingError, match="Input/output error"):
        journal.close()
    assert find_writer(journal.path) == "gone"


def test_threads_that_append_at_once_write_whole_lines_in_sequence(tmp_path: Path) -> None:
    with Journal(tmp_path, "w") as journal:

        def write(run: str) -> None:
            for number in range(200):
                journal.append("metrics", run, number=number, text="é" * number)

        threads = [threading.Thread(target=write, args=(f"r{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    records = list(read_records(journal.path))
    assert [record.sequence for record in records] == list(range(802))
    for n in range(4):
        assert [r.fields["number"] for r in records if r.run == f"r{n}"] == list(range(200))


def test_a_closed_journal_takes_nothing_more_and_may_be_closed_again(tmp_path: Path) -> None:
    journal = write_journal(tmp_path, "run", 1)
    journal.close()
    journal.close()
    with pytest.raises(TrackingError, match="is closed"):
        journal.append("metrics", "run", number=1)
    assert numbers(journal.path) == [0]


FAULTS = st.lists(
    st.sampled_from(["", "", "", "before", "after", "fault", "bug", "stop"]), max_size=40
)


@settings(max_examples=60, deadline=None)
@given(
    faults=FAULTS,
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    deaths=st.sets(st.integers(0, 30)),
    lost_notes=st.sets(st.integers(0, 30)),
)
def test_whatever_fails_in_the_end_each_record_is_there_exactly_once(
    faults: list[str], counts: list[int], deaths: set[int], lost_notes: set[int]
) -> None:
    """Deaths: of the drain, before that pass. Lost notes: .sent is rolled back, as after a crash
    between delivery and note or a power loss."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "sweep"
        expected = Counter[tuple[str, str, int]]()
        for n, count in enumerate(counts):
            with Journal(folder, f"w{n}") as journal:
                for number in range(count):
                    source = Path(scratch) / "file.txt"
                    source.write_text(str(number))
                    kind = "artifact" if number % 3 == 2 else "metrics"
                    more = {"spooled": journal.spool(source)} if kind == "artifact" else {}
                    journal.append(kind, f"run{n}", number=number, **more)
                    expected[f"run{n}", kind, number] += 1
        server = FakeServer(faults)
        delivery = Delivery(folder, lambda: server)
        notes: dict[Path, bytes] = {}
        for n_pass in range(100):
            if n_pass in lost_notes:
                for path, note in notes.items():
                    if path.exists():
                        path.write_bytes(note)
            if n_pass in deaths or n_pass in lost_notes:
                delivery = Delivery(folder, lambda: server)
            if n_pass % 3 == 0:
                notes = {path: path.read_bytes() for path in folder.glob("*.sent")}
            delivery.run_pass()
            if not find_journals(folder):
                break
        assert server.applied == expected
        for n in range(len(counts)):
            assert [k for run, k in server.in_order if run == f"run{n}"] == list(range(counts[n]))
        with hold_folder(folder):
            pass
        assert not folder.exists()


def test_a_drain_that_dies_between_delivery_and_note_sends_again_as_doubtful(
    tmp_path: Path,
) -> None:
    journal = write_journal(tmp_path, "run", 3)
    server = FakeServer()
    Delivery(tmp_path, lambda: server).run_pass()
    journal.path.with_suffix(".sent").write_text("")  # what a power loss makes of it
    journal.append("metrics", "run", number=3)
    Delivery(tmp_path, lambda: server).run_pass()
    assert [number for _, number in server.in_order] == [0, 1, 2, 3]
    assert len(server.repeated) == 3
    journal.close()


def test_records_of_a_living_drain_are_not_doubted(tmp_path: Path) -> None:
    doubts = []

    class Watcher(FakeServer):
        def deliver(self, folder: Path, part: Part) -> None:
            doubts.append(part.doubtful)
            super().deliver(folder, part)

    server = Watcher(["", "", "after"])
    delivery = Delivery(tmp_path, lambda: server)
    with Journal(tmp_path, "w") as journal:
        delivery.run_pass()  # the header: nothing was known of this file before
        for number in range(4):
            journal.append("metrics", "run", number=number)
            delivery.run_pass()
    assert doubts == [True, False, False, False, True]


def test_a_poisoned_journal_does_not_keep_the_others_waiting(tmp_path: Path) -> None:
    with Journal(tmp_path, "a") as journal:
        journal.append("metrics", "a", number=0, poison=True)
        journal.append("metrics", "a", number=1)
    write_journal(tmp_path, "b", 2).close()
    server = FakeServer()
    drain = Drain(tmp_path, lambda: server)
    assert drain.flush(1.0) == 2
    assert server.in_order == [("b", 0), ("b", 1)]
    assert drain.problem == "poison a"


def test_an_unreachable_server_for_one_journal_lets_the_next_pass_begin_with_another(
    tmp_path: Path,
) -> None:
    for run in "ab":
        write_journal(tmp_path, run, 1, role=run).close()
    server = FakeServer(["before", ""])
    delivery = Delivery(tmp_path, lambda: server)
    delivery.run_pass()
    assert delivery.unreachable and server.in_order == []
    assert delivery.run_pass()
    assert server.in_order == [("b", 0), ("a", 0)]


def test_flush_returns_in_time_from_a_hung_server_and_counts_what_is_left(tmp_path: Path) -> None:
    write_journal(tmp_path, "run", 5).close()
    server = FakeServer()
    server.go_on.clear()
    drain = Drain(tmp_path, lambda: server).start()
    assert server.hung.wait(5.0)
    began = time.monotonic()
    assert drain.flush(0.5) == 5
    assert 0.4 < time.monotonic() - began < 1.0
    began = time.monotonic()
    drain.stop()
    assert time.monotonic() - began < 0.1
    server.go_on.set()
    wait_until(lambda: drain.undelivered() == 0)


def test_a_flush_ends_when_it_is_given_up(tmp_path: Path) -> None:
    write_journal(tmp_path, "run", 5).close()
    server, give_up = FakeServer(), threading.Event()
    server.go_on.clear()
    drain = Drain(tmp_path, lambda: server).start()
    assert server.hung.wait(10.0)
    threading.Timer(0.2, give_up.set).start()
    began = time.monotonic()
    assert drain.flush(60.0, give_up=give_up.is_set) == 5
    assert time.monotonic() - began < 20.0
    assert drain.flush(60.0, give_up=give_up.is_set) == 5  # waits for its thread
    server.go_on.set()
    wait_until(lambda: drain.undelivered() == 0)


def test_ctrl_c_gets_through_a_flush(tmp_path: Path) -> None:
    write_journal(tmp_path, "run", 5).close()
    server = FakeServer()
    server.go_on.clear()
    drain = Drain(tmp_path, lambda: server).start()
    assert server.hung.wait(10.0)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            drain.flush(60.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert drain.undelivered() == 5
    server.go_on.set()
    wait_until(lambda: drain.undelivered() == 0)


def test_a_drain_keeps_nothing_of_the_journals_that_it_has_delivered(tmp_path: Path) -> None:
    server = FakeServer(["", "fault", "", "stop"] * 20)
    delivery = Delivery(tmp_path, lambda: server)
    for n in range(30):
        write_journal(tmp_path, f"run{n}", 2).close()
        delivery.run_pass()
    run_passes(delivery)
    assert len(server.in_order) == 60
    assert [name for name, kept in vars(delivery).items() if isinstance(kept, dict) and kept] == []


def test_the_journal_of_who_died_unseen_is_kept_until_it_is_looked_at(tmp_path: Path) -> None:
    path = kill_a_writer(tmp_path, 2)
    write_journal(tmp_path, "closed", 2).close()
    looked_at: set[Path] = set()
    server = FakeServer()
    delivery = Delivery(tmp_path, lambda: server, may_remove=looked_at.__contains__)
    run_passes(delivery, at_most=3)
    assert len(server.in_order) == 4 and find_journals(tmp_path) == [path]
    looked_at.add(path)
    run_passes(delivery, at_most=3)
    assert find_journals(tmp_path) == []


def test_who_waits_for_another_journal_is_no_problem_while_that_one_comes_on(
    tmp_path: Path,
) -> None:
    write_journal(tmp_path, "a", 1, role="a").close()
    waits = Journal(tmp_path, "b")
    delivery = Delivery(tmp_path, lambda: server)
    server = FakeServer(["", "stop", "stop"])
    delivery.run_pass()
    waits.append("metrics", "b", number=0)
    write_journal(tmp_path, "c", 1, role="c").close()
    server.faults = iter(["stop", "", "stop"])
    assert delivery.run_pass() and delivery.problems == []
    assert not delivery.run_pass()
    assert [one.split(" waits")[0] for one in delivery.problems] == [waits.path.name]
    waits.close()


def test_flush_waits_for_a_server_that_comes_back(tmp_path: Path) -> None:
    write_journal(tmp_path, "run", 5).close()
    server = FakeServer(["before"] * 3)
    assert Drain(tmp_path, lambda: server).flush(10.0) == 0
    assert len(server.in_order) == 5


def test_a_sink_that_cannot_be_opened_is_opened_again(tmp_path: Path) -> None:
    write_journal(tmp_path, "run", 2).close()
    server = FakeServer()
    problems = iter([ConnectionError("starting"), RuntimeError("odd")])

    def open_sink() -> FakeServer:
        for problem in problems:
            raise problem
        return server

    assert Drain(tmp_path, open_sink).flush(10.0) == 0
    assert len(server.in_order) == 2


def test_a_drain_delivers_while_the_journal_is_written(tmp_path: Path) -> None:
    server = FakeServer()
    with Journal(tmp_path / "sweep", "w") as journal:
        drain = Drain(tmp_path / "sweep", lambda: server).start()
        journal.append("metrics", "run", number=0)
        wait_until(lambda: len(server.in_order) == 1)
        assert journal.path.exists()
    assert drain.flush(5.0) == 0
    assert not (tmp_path / "sweep").exists()
    drain.stop()


def test_one_drain_a_folder_the_second_takes_over(tmp_path: Path) -> None:
    first_server, second_server = FakeServer(), FakeServer()
    with Journal(tmp_path, "w") as journal:
        first = Drain(tmp_path, lambda: first_server).start()
        journal.append("metrics", "run", number=0)
        wait_until(lambda: len(first_server.in_order) == 1)
        second = Drain(tmp_path, lambda: second_server).start()
        wait_until(lambda: second.problem == "another process delivers this journal")
        journal.append("metrics", "run", number=1)
        wait_until(lambda: len(first_server.in_order) == 2)
        first.stop(5.0)
        journal.append("metrics", "run", number=2)
        wait_until(lambda: len(second_server.in_order) == 1)
    assert second.flush(5.0) == 0
    assert second_server.in_order == [("run", 2)] and second_server.repeated == []


def test_a_stopped_drain_can_be_flushed(tmp_path: Path) -> None:
    server = FakeServer()
    drain = Drain(tmp_path, lambda: server).start()
    drain.stop(5.0)
    write_journal(tmp_path, "run", 2).close()
    assert drain.flush(5.0) == 0
    assert len(server.in_order) == 2


def test_what_is_spooled_lives_until_it_is_delivered_and_no_longer(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "sweep"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "file").write_text("0")
    server = FakeServer(["after"])
    with Journal(folder, "w") as journal:
        spooled = journal.spool(source)
        journal.spool(source)  # a copy that a crash kept from being mentioned
        journal.append("artifact", "run", number=0, spooled=f"{spooled}/inner/file")
        shutil.rmtree(source)
        delivery = Delivery(folder, lambda: server)
        delivery.run_pass()
        assert (folder / spooled / "inner" / "file").read_text() == "0"
    run_passes(delivery)
    assert [path.name for path in folder.iterdir()] == []


def test_a_spool_that_finds_no_space_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "big"
    source.write_bytes(b"x" * 100_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(tmp_path / "sweep", "w") as journal:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        try:
            with pytest.raises(TrackingError, match="'big' cannot be kept beside the journal"):
                journal.spool(source)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert list(journal.path.with_suffix(".files").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match="no journal can be made"):
        Journal(tmp_path / "file" / "sweep", "w")


def test_a_journal_of_another_machine_is_kept_until_it_is_closed(tmp_path: Path) -> None:
    """Its lock may not be seen from here, so its writer may live."""
    for name, lines in (("1-open", slice(0, 2)), ("2-closed", slice(0, 3))):
        journal = write_journal(tmp_path / "made", "run", 1)
        journal.close()
        text = journal.path.read_bytes().splitlines(keepends=True)
        text[0] = _line(0, '{"kind": "open", "run": "", "host": "moon", "boot": "x", "pid": 1}')
        (tmp_path / f"{name}.journal").write_bytes(b"".join(text[lines]))
        journal.path.unlink()
    opened, _ = find_journals(tmp_path)
    assert find_writer(opened) == "elsewhere"
    run_passes(Delivery(tmp_path, FakeServer), at_most=5)
    assert find_journals(tmp_path) == [opened]
    assert list(read_undelivered(tmp_path)) == []


def _line(sequence: int, text: str) -> bytes:
    body = f"{sequence} {text}".encode()
    return b"%08x %b\n" % (zlib.crc32(body), body)


def test_a_folder_that_comes_and_goes_has_one_holder_at_a_time(tmp_path: Path) -> None:
    folder, deadline = tmp_path / "sweep", time.monotonic() + 1.0
    inside: list[int] = []
    n_held, crowded = Counter[int](), threading.Event()

    def hold(number: int) -> None:
        while time.monotonic() < deadline:
            with hold_folder(folder) as held:
                if held:
                    n_held[number] += 1
                    inside.append(number)
                    time.sleep(0)
                    if inside != [number]:
                        crowded.set()
                    inside.remove(number)

    threads = [threading.Thread(target=hold, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not crowded.is_set()
    assert n_held.total() > 100
    assert not folder.exists()


def test_folders_that_come_and_go_lose_no_journal(tmp_path: Path) -> None:
    folder, stop = tmp_path / "sweep", threading.Event()
    server = FakeServer()
    delivery = Delivery(folder, lambda: server)

    def tidy() -> None:
        while not stop.is_set():
            with hold_folder(folder) as held:
                if held:
                    delivery.run_pass()

    thread = threading.Thread(target=tidy)
    thread.start()
    for n in range(60):
        with Journal(folder, f"w{n}", fsync=lambda fd: None) as journal:
            journal.append("metrics", f"run{n}", number=n)
    wait_until(lambda: len(server.in_order) == 60)
    stop.set()
    thread.join()
    assert not folder.exists()
    assert sorted(number for _, number in server.in_order) == list(range(60))


def test_read_lines_marks_a_damaged_line_and_goes_on(tmp_path: Path) -> None:
    write_journal(tmp_path, "run", 2).close()
    (path,) = find_journals(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    flip_byte(path, len(lines[0]) + 5)
    kinds = [None if record is None else record.kind for record in read_lines(path)]
    assert kinds == ["open", None, "metrics", "close"]


def test_a_signal_does_not_cost_a_record(tmp_path: Path) -> None:
    n_signals = 0

    def count(*_: object) -> None:
        nonlocal n_signals
        n_signals += 1

    before = signal.signal(signal.SIGALRM, count)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        with Journal(tmp_path, "w") as journal:
            for number in range(2000):
                journal.append("metrics", "run", number=number)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert n_signals > 0
    assert numbers(journal.path) == list(range(2000))
