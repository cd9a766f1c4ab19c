"""Counters that have room on the disk, and pages over either family of addresses."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from registry.serving.metrics import (
    COUNTERS_BYTES,
    Board,
    open_exposition,
    reserve_counters,
)
from tests.e2e.serving import free_port
from tests.serving.served import ROOT

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
COUNTS = """
import os
from registry.serving.metrics import WorkerMetrics, reserve_counters
print(reserve_counters(os.environ, os.getpid()))
metrics = WorkerMetrics()
metrics.meter(7, "champion").ok()
metrics.queued(1)
print(os.getpid())
"""


def count(folder: Path) -> list[str]:
    env = {**os.environ, FOLDER: str(folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", COUNTS], env=env, capture_output=True, text=True, check=True
    )
    return done.stdout.split("\n")


def test_the_files_of_a_worker_have_their_room_before_it_counts(tmp_path: Path) -> None:
    said, pid, _ = count(tmp_path)
    assert said == "None"
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [f"{sort}_{pid}.db" for sort in ("counter", "gauge_livesum", "histogram")]
    for path in tmp_path.iterdir():
        status = path.stat()
        assert status.st_size == COUNTERS_BYTES
        assert status.st_blocks * 512 >= COUNTERS_BYTES  # no page of it is yet to be found


def test_of_a_dead_worker_what_it_counted_stays_and_the_room_is_given_back(tmp_path: Path) -> None:
    _, pid, _ = count(tmp_path)
    board = Board(tmp_path)
    line = b'podium_requests_total{result="ok",version="7"} 1.0'
    assert line in board.text()
    board.forget(int(pid))
    board.forget(int(pid))
    assert line in board.text()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 20_000


def test_without_room_a_worker_counts_in_its_own_memory(tmp_path: Path) -> None:
    env = {FOLDER: str(tmp_path / "absent")}
    assert reserve_counters(env, 12) == "no such file or directory"
    assert env == {}
    assert reserve_counters(env, 12) is None
    said, *_ = count(tmp_path / "absent")
    assert said == "no such file or directory"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_pages_are_served_over_both_families_of_addresses(host: str) -> None:
    port = free_port()
    server = open_exposition(host, port, {"/metrics": lambda: b"a 1\n"})
    try:
        at = f"[{host}]" if ":" in host else host
        with urllib.request.urlopen(f"http://{at}:{port}/metrics", timeout=10) as reply:
            assert reply.read() == b"a 1\n"
    finally:
        server.shutdown()
        server.server_close()
