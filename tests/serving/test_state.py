"""The folder through which parent and workers speak: whole files, and nothing of strangers."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from registry.serving.state import Desired, Report, StateFolder, Wanted, read_json, write_json

DESIRED = Desired(
    {"7.1": Wanted(7, "/a", "00"), "8.2": Wanted(8, "/b", "11")}, "7.1", "8.2", 0.1, True
)
REPORT = Report(12, True, {"7.1": 0.5}, {"8.2": "it answers otherwise"}, 7, None)


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    made = StateFolder.of(tmp_path, "digits classifier", "champion", 5001)
    made.create()
    made.clean()
    return made


def test_what_the_parent_wants_is_read_as_it_was_written(folder: StateFolder) -> None:
    folder.write_desired(DESIRED)
    assert folder.read_desired() == DESIRED


def test_what_a_worker_says_is_read_as_it_was_written(folder: StateFolder) -> None:
    folder.write_report(REPORT)
    assert folder.read_reports() == {12: REPORT}


def test_a_report_that_cannot_be_read_is_none(folder: StateFolder) -> None:
    folder.write_report(REPORT)
    (folder.path / "workers" / "13.json").write_text('{"pid": 13}')
    (folder.path / "workers" / "14.json").write_text('{"pid": 1')
    assert list(folder.read_reports()) == [12]


def test_a_reader_always_finds_a_whole_file(folder: StateFolder) -> None:
    path = folder.path / "x.json"
    write_json(path, {"n": 0})
    done = threading.Event()

    def write() -> None:
        for n in range(500):
            write_json(path, {"n": n, "filler": "x" * (n * 37 % 5000)})
        done.set()

    threading.Thread(target=write).start()
    while not done.is_set():
        assert read_json(path) is not None


def test_the_folder_is_private_and_named_after_what_is_served(folder: StateFolder) -> None:
    assert folder.path.name == "digits%20classifier@champion-5001"
    assert folder.path.stat().st_mode & 0o777 == 0o700


def test_a_clean_folder_forgets_the_workers_and_keeps_what_was_accepted(
    folder: StateFolder,
) -> None:
    folder.write_report(REPORT)
    folder.write_desired(DESIRED)
    write_json(folder.path / "seen.json", {"champion": {"version": 8, "number": 3}})
    (folder.releases / "8").mkdir()
    folder.clean()
    assert folder.read_reports() == {}
    assert not folder.desired.exists()
    assert (folder.path / "seen.json").exists()
    assert (folder.releases / "8").is_dir()


def test_of_the_private_copies_those_that_answer_and_the_last_few_stay(
    folder: StateFolder,
) -> None:
    for version in range(1, 8):
        (folder.releases / str(version)).mkdir()
        os.utime((folder.releases / str(version)), (version, version))
    (folder.releases / ".9.new").mkdir()
    for name in ("1-0123456789ab", "1-ba9876543210"):
        (folder.releases / name).mkdir()
        os.utime(folder.releases / name, (0, 0))
    folder.keep_releases([folder.releases / "1-0123456789ab"], spare=2)
    left = sorted(path.name for path in folder.releases.iterdir())
    assert left == [".9.new", "1-0123456789ab", "6", "7"]
