from __future__ import annotations

import subprocess
from pathlib import Path

from mlops.creations import Creations
from mlops.journal import Journal, build_mend, find_journals, read_lines
from mlops.tracking import Run


def note_sent(path: Path, n_records: int) -> None:
    """Notes that the header and some records behind it are delivered."""
    records = [record for record in read_lines(path) if record is not None]
    path.with_suffix(".sent").write_text(f"{records[n_records].end}\n")


def test_a_creation_waits_until_it_is_noted_as_delivered(tmp_path: Path) -> None:
    creations = Creations(tmp_path)
    assert not creations.is_waiting("a")
    with Journal(tmp_path, "driver") as driver:
        for key in "ab":
            Run.create(driver, experiment="e", name=key, key=key)
        assert creations.is_waiting("a") and creations.is_waiting("b")
        note_sent(driver.path, 1)
        assert not creations.is_waiting("a") and creations.is_waiting("b")
        Run.create(driver, experiment="e", name="c", key="c")
        assert creations.is_waiting("c")  # written after the first look
        note_sent(driver.path, 3)
        assert not any(creations.is_waiting(key) for key in "abc")
    driver.path.unlink()
    assert not creations.is_waiting("c")


def test_what_is_delivered_is_forgotten(tmp_path: Path) -> None:
    creations = Creations(tmp_path)
    with Journal(tmp_path, "driver") as driver:
        for number in range(5):
            Run.create(driver, experiment="e", name="n", key=str(number))
        assert creations.is_waiting("4") and len(creations._waiting) == 5
        note_sent(driver.path, 5)
        assert not creations.is_waiting("other") and creations._waiting == {}


def test_nobody_waits_for_a_creation_that_was_damaged_and_taken_out(tmp_path: Path) -> None:
    creations = Creations(tmp_path)
    with Journal(tmp_path, "driver") as driver:
        for key in "ab":
            Run.create(driver, experiment="e", name=key, key=key)
    assert creations.is_waiting("b")
    (path,) = find_journals(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"name": "b"', b'"name": "x"'))
    assert [record is None for record in read_lines(path)] == [False, False, True, False]
    subprocess.run(build_mend(path, 3) or "false", shell=True, check=True)
    assert not creations.is_waiting("b") and creations.is_waiting("a")
