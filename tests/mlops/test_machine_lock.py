from __future__ import annotations

import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

from mlops.machine_lock import machine_lock


@pytest.fixture
def what() -> str:
    return f"a test's {uuid.uuid4().hex}"


def test_one_at_a_time_holds_it(what: str) -> None:
    held = 0
    most = 0

    def hold() -> None:
        nonlocal held, most
        with machine_lock(what, wait_s=30.0) as got:
            assert got
            held += 1
            most = max(most, held)
            time.sleep(0.01)
            held -= 1

    threads = [threading.Thread(target=hold) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_who_waited_long_enough_goes_on_without(what: str) -> None:
    with machine_lock(what, wait_s=0.0) as got:
        assert got
        began = time.monotonic()
        with machine_lock(what, wait_s=0.2) as second:
            assert not second
        assert time.monotonic() - began < 5.0
    with machine_lock(what, wait_s=0.0) as again:
        assert again


def test_a_killed_holder_holds_it_no_longer(what: str) -> None:
    program = (
        "import sys, time; from mlops.machine_lock import machine_lock\n"
        f"with machine_lock({what!r}, wait_s=0.0) as got: print(got, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"True\n"
        with machine_lock(what, wait_s=0.0) as got:
            assert not got
        process.kill()
        process.wait()
    with machine_lock(what, wait_s=0.0) as got:
        assert got


def test_where_no_file_can_be_made_it_goes_on_without(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with machine_lock(what, wait_s=0.0) as got:
        assert not got
