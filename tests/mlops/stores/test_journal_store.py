"""Journals that dead processes left, damaged and torn ones, and those of the living."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from mlops.drain import Drain, Part, hold_folder
from mlops.journal import Journal, find_journals, read_undelivered
from mlops.settings import Settings
from mlops.stores.journal_state import find_speakers, find_undelivered_keys
from mlops.stores.journal_store import JournalStore
from mlops.stores.store import Finding

# Three records of one run; then it waits to be killed.
WRITER = """
import sys
from pathlib import Path
from mlops.journal import Journal
from mlops.tracking import Run

journal = Journal(Path(sys.argv[1]), "driver")
run = Run.create(journal, experiment="e", name="n", key="left")
run.log_metrics({"loss": 1.0}, step=0)
run.set_tags({"a": "b"})
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path / "a home"))
    return Settings.from_env()


@pytest.fixture
def folder(settings: Settings) -> Path:
    return settings.home / "journal" / "digits-1"


def kill_a_writer(folder: Path) -> Path:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
    (path,) = find_journals(folder)
    return path


def findings(settings: Settings, *, later_s: float = 0.0) -> tuple[Finding, ...]:
    return JournalStore(settings, now=lambda: time.time() + later_s).check().findings


def flip_byte(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


def test_what_a_killed_writer_left_is_said_with_the_command_and_nothing_is_changed(
    settings: Settings, folder: Path
) -> None:
    path = kill_a_writer(folder)
    before = sorted((one, one.read_bytes()) for one in folder.iterdir() if one.is_file())
    (one,) = findings(settings)
    assert "the journal of 'digits-1' was left behind" in one.wrong
    assert "the processes that wrote it are gone: 3 undelivered record(s) in 1 journal(s)" in (
        one.wrong
    )
    assert f"the oldest of {time.strftime('%Y-%m-%d', time.gmtime())}" in one.wrong
    assert one.mend.startswith(f"MLOPS_HOME='{settings.home}' ")
    assert one.mend.endswith("python -m mlops.sync")
    assert sorted((one, one.read_bytes()) for one in folder.iterdir() if one.is_file()) == before
    assert find_speakers(settings.home) == {"left": {"gone"}}
    path.with_suffix(".sent").write_text(f"{path.stat().st_size}\n")
    assert find_undelivered_keys(settings.home) == set()
    (one,) = findings(settings)
    assert "0 undelivered record(s)" in one.wrong


def test_a_torn_tail_is_said(settings: Settings, folder: Path) -> None:
    path = kill_a_writer(folder)
    with path.open("ab") as file:
        file.write(b"12345678 4 {")
    (one,) = findings(settings)
    assert "3 undelivered record(s)" in one.wrong
    assert (
        f"{path.name}: the last record was cut short when its process ended; 12 bytes from byte "
        f"{path.stat().st_size - 12} on are dropped."
    ) in one.wrong


def test_a_flipped_byte_is_said_with_its_place_and_the_command_that_takes_the_line_out(
    settings: Settings, folder: Path
) -> None:
    path = kill_a_writer(folder)
    lines = path.read_bytes().splitlines(keepends=True)
    start = len(lines[0]) + len(lines[1])
    flip_byte(path, start + 30)
    damaged, left = findings(settings)
    assert f"damaged at byte {start}: the checksum of line 3 does not match" in damaged.wrong
    assert "3 undelivered record(s)" in left.wrong
    subprocess.run(damaged.mend, shell=True, check=True)
    assert path.read_bytes() == b"".join([*lines[:2], *lines[3:]])
    (left,) = findings(settings)
    assert "2 undelivered record(s)" in left.wrong


def test_a_damaged_header_is_named_and_mended_though_all_is_delivered(
    settings: Settings, folder: Path
) -> None:
    path = kill_a_writer(folder)
    path.with_suffix(".sent").write_text(f"{path.stat().st_size}\n")
    flip_byte(path, 12)
    (damaged,) = findings(settings)
    assert "is damaged at byte 0: the checksum of line 1 does not match" in damaged.wrong
    subprocess.run(damaged.mend, shell=True, check=True)
    (left,) = findings(settings)
    assert "the processes that wrote it are gone" in left.wrong


def test_damage_in_what_is_delivered_does_no_harm(settings: Settings, folder: Path) -> None:
    path = kill_a_writer(folder)
    lines = path.read_bytes().splitlines(keepends=True)
    path.with_suffix(".sent").write_text(f"{len(lines[0]) + len(lines[1])}\n")
    flip_byte(path, len(lines[0]) + 30)
    (left,) = findings(settings)
    assert "2 undelivered record(s)" in left.wrong


def test_a_line_is_not_taken_out_under_a_writer_that_lives(
    settings: Settings, folder: Path
) -> None:
    with Journal(folder, "driver") as journal:
        journal.append("tags", "one", values={})
        journal.append("tags", "two", values={})
        flip_byte(journal.path, journal.path.stat().st_size - 8)
        (one,) = findings(settings)
        assert one.mend.startswith("Its process may still write it. Once that has ended, ")
        assert one.mend.endswith("python -m mlops.doctor") and "sed" not in one.mend


def test_a_sweep_that_delivers_is_fine_until_the_server_takes_nothing_for_a_minute(
    settings: Settings, folder: Path
) -> None:
    class Nowhere:
        def deliver(self, folder: Path, part: Part) -> None:
            raise ConnectionError("no server")

        def flush(self) -> None:
            pass

    with Journal(folder, "driver") as journal:
        journal.append("metrics", "one", at_ms=time.time_ns() // 1_000_000, step=0, values={})
        drain = Drain(folder, Nowhere).start()
        while drain.problem is None:
            time.sleep(0.01)
        health = JournalStore(settings).check()
        assert (health.says, health.findings) == ("1 record(s) are being delivered", ())
        (one,) = findings(settings, later_s=70.0)
        assert "is under way, and the tracking server does not take what it tells" in one.wrong
        drain.stop(5.0)
    (one,) = findings(settings)
    assert one.mend.endswith("python -m mlops.sync")


def test_a_living_writer_whose_records_nobody_delivers_is_said_after_a_minute(
    settings: Settings, folder: Path
) -> None:
    with Journal(folder, "driver") as journal:
        journal.append("tags", "one", values={})
        assert findings(settings) == ()
        (one,) = findings(settings, later_s=70.0)
        assert "nobody delivers it" in one.wrong


def test_a_journal_of_another_machine_is_left_to_that_one(settings: Settings, folder: Path) -> None:
    path = kill_a_writer(folder)
    lines = path.read_bytes().splitlines(keepends=True)
    header = b'0 {"kind": "open", "run": "", "host": "moon", "boot": "x", "pid": 1}'
    lines[0] = b"%08x %b\n" % (zlib.crc32(header), header)
    path.write_bytes(b"".join(lines))
    assert findings(settings) == ()  # it said something a moment ago
    (one,) = findings(settings, later_s=7200.0)
    assert "was written on another machine; whether its process lives cannot be seen" in one.wrong
    assert one.mend.startswith("On moon, type: ")


def test_leftovers_without_a_journal_are_mended_by_sync(settings: Settings, folder: Path) -> None:
    folder.mkdir(parents=True)
    draft = folder / "1-driver-1.journal-draft"
    draft.write_text("")
    assert findings(settings) == ()  # it is being begun
    os.utime(draft, (1.0, 1.0))
    (folder / "0-trial-1.files").mkdir()
    (one,) = findings(settings)
    assert "leftovers of killed processes" in one.wrong
    with hold_folder(folder):  # what a sync does
        pass
    assert not folder.exists()
    assert findings(settings) == ()


def test_a_journal_that_vanishes_meanwhile_is_no_finding(settings: Settings, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "1-a.journal").symlink_to(folder / "gone")
    assert findings(settings) == ()
    assert list(read_undelivered(folder)) == []
