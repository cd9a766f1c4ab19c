from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from mlops.stores.byte_search import BLOCK_BYTES, find_in_files

TRY_LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(7)
"""


def is_locked(path: Path) -> bool:
    return subprocess.run([sys.executable, "-c", TRY_LOCK, str(path)], check=False).returncode == 7


def test_what_stands_across_two_blocks_is_found(tmp_path: Path) -> None:
    path = tmp_path / "large"
    content = bytearray(BLOCK_BYTES + 100)
    content[BLOCK_BYTES - 3 : BLOCK_BYTES + 3] = b"marker"
    path.write_bytes(content)
    assert find_in_files([path], [b"marker", b"other"]) == {
        path: (BLOCK_BYTES + 100, frozenset([b"marker"]))
    }


def test_a_file_that_is_gone_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "é\udcff").write_bytes(b"one")  # a name that is no UTF-8
    found = find_in_files([tmp_path / "gone", tmp_path / "é\udcff"], [b"one"])
    assert found == {tmp_path / "é\udcff": (3, frozenset([b"one"]))}


def test_what_cannot_be_read_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError) as told:
        find_in_files([tmp_path], [b"one"])
    assert told.value.filename == str(tmp_path)


def test_locks_that_this_process_holds_on_what_is_searched_stay(tmp_path: Path) -> None:
    path = tmp_path / "database"
    path.write_bytes(b"SQLite format 3\0")
    with path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        assert is_locked(path)
        find_in_files([path], [b"marker"])
        assert is_locked(path)
        path.read_bytes()  # what the child is there for
        assert not is_locked(path)
