"""Works for children in tests: each does what a model might do to the process it is loaded in."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any


def echo(request: Any) -> list[Any]:
    sys.stdout.write("not an answer\n")
    os.write(1, b"nor is this\n")
    return [request, sorted(os.environ)]


def connect(request: Any) -> list[str]:
    """Tries to reach a listener of the parent; then one of its own."""
    try:
        socket.create_connection(("127.0.0.1", request), 5).close()
        outside = "reached"
    except OSError as err:
        outside = type(err).__name__
    with socket.create_server(("127.0.0.1", 0)) as own:
        socket.create_connection(own.getsockname(), 5).close()
    return [outside, "own loopback reached"]


def answer_and_die(request: Any) -> Iterator[str]:
    yield "first"
    sys.stderr.write("what it said last\n")
    os.kill(os.getpid(), request)


def answer_and_exit(request: Any) -> Iterator[str]:
    yield "first"
    os._exit(request)


def answer_and_hang(request: Any) -> Iterator[int]:
    """Leaves a process behind that holds on to the pipes."""
    yield subprocess.Popen(["sleep", "600"]).pid
    time.sleep(request)


def write_raw(request: str) -> Iterator[str]:
    yield "first"
    for number in range(3, 50):  # one of them is the pipe of the answers
        with contextlib.suppress(OSError):
            os.write(number, request.encode())


def never_begin(request: Any) -> list[Any]:
    raise ImportError("no such module, says postgresql://ada:secret@host/db")
