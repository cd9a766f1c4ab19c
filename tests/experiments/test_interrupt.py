from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from experiments.interrupt import interruptible

STORM = """
import os, signal, threading
from experiments.interrupt import interruptible

def storm():
    for n in range(20_000):
        os.kill(os.getpid(), signal.SIGINT if n % 2 else signal.SIGTERM)

with interruptible() as stop:
    sender = threading.Thread(target=storm)
    sender.start()
    while sender.is_alive():
        stop.clear()
    stop.clear()
    os.kill(os.getpid(), signal.SIGINT)
    print(stop.is_set())
"""


def test_signals_that_come_while_others_are_noted_hang_nothing() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", STORM],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.stdout == "True\n", ended.stderr
    assert ended.returncode == 0


def test_handlers_are_as_before_when_the_block_is_left() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interruptible() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set()
        stop.clear()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_in_another_thread_the_flag_is_the_callers_own() -> None:
    seen = []

    def run() -> None:
        with interruptible() as stop:
            seen.append(signal.getsignal(signal.SIGINT))
            stop.set()
            seen.append(stop.is_set())

    thread = threading.Thread(target=run)
    before = signal.getsignal(signal.SIGINT)
    thread.start()
    thread.join()
    assert seen == [before, True]
