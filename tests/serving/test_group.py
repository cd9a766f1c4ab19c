"""A server whose parent is gone is ended, and nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops.lease import try_lock
from registry.serving.group import (
    MARK,
    end_left_behind,
    is_orphaned,
    record_group,
    start_of,
    this_process,
)
from registry.serving.state import StateFolder
from tests.serving.served import ROOT, group_is_gone

SLEEPS = "import time; time.sleep(60)"


@pytest.fixture
def lock(folder: StateFolder) -> Iterator[int]:
    """This process is the parent."""
    fd = try_lock(folder.lock)
    assert fd is not None
    yield fd
    os.close(fd)


def start(code: str, folder: StateFolder) -> subprocess.Popen[bytes]:
    env = {**os.environ, MARK: str(folder.metrics), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code], env=env, process_group=0)


def test_a_process_is_told_from_a_later_one_of_its_number(folder: StateFolder) -> None:
    one = start(SLEEPS, folder)
    began = start_of(one.pid)
    assert began is not None
    assert began == start_of(one.pid)
    assert began >= (start_of(os.getpid()) or 0)
    one.kill()
    deadline = time.monotonic() + 10
    while start_of(one.pid) is not None:  # dead, though nobody has waited for it yet
        assert time.monotonic() < deadline
        time.sleep(0.01)
    one.wait()


def test_a_server_has_a_parent_while_that_lives_and_holds_the_lock(
    folder: StateFolder, lock: int
) -> None:
    pid, began = this_process()
    assert not is_orphaned(folder, [pid, began])
    assert not is_orphaned(folder)
    # Another parent holds the lock by now.
    assert is_orphaned(folder, [pid, (began or 0) - 1])


def test_without_lock_or_folder_there_is_no_parent(folder: StateFolder) -> None:
    assert is_orphaned(folder, this_process())  # no lock
    fd = try_lock(folder.lock)
    assert fd is not None
    assert not is_orphaned(folder, this_process())
    os.close(fd)
    assert is_orphaned(folder, this_process())  # not held


def test_a_group_ends_with_its_parent_though_a_model_hangs(folder: StateFolder, lock: int) -> None:
    parent = start(SLEEPS, folder)
    code = f"""
import pathlib, time
from registry.serving.group import end_with_parent
from registry.serving.state import StateFolder
folder = StateFolder(pathlib.Path({str(folder.path)!r}))
end_with_parent(folder, [{parent.pid}, {start_of(parent.pid)}], 0.0)
(folder.path / "began").touch()
time.sleep(60)
"""
    worker = start(code, folder)
    deadline = time.monotonic() + 20
    while not (folder.path / "began").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert worker.poll() is None
    parent.kill()
    parent.wait()
    assert worker.wait(10) != 0


def test_what_a_killed_parent_left_is_ended(folder: StateFolder, lock: int) -> None:
    left = start("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEPS, folder)
    time.sleep(0.5)  # until it is deaf
    record_group(folder, left.pid)
    assert end_left_behind(folder, within_s=0.5)
    assert group_is_gone(left.pid)
    left.wait()
    assert not end_left_behind(folder)


def test_a_group_of_that_number_that_is_another_one_is_left_alone(
    folder: StateFolder, tmp_path: Path, lock: int
) -> None:
    other = start(SLEEPS, StateFolder(tmp_path / "other"))
    record_group(folder, other.pid)
    assert not end_left_behind(folder)
    assert other.poll() is None
    other.kill()
    other.wait()
