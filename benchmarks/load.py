"""Load on a scoring server: closed-loop by wrk, open-loop by a process of our own.

Closed-loop clients wait for an answer before they ask again, so they measure what a server can do
at most. Open-loop clients ask at a fixed rate whether or not answers come, as the world does; their
latencies count from the moment a request was due, so that a stall is not hidden by the requests
that it delayed (Tene's "coordinated omission").
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_LUA = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local file = io.open(os.getenv("PODIUM_BODY"), "rb")
wrk.body = file:read("*a")
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\\nRESULT {"requests": %d, "duration_s": %f, "p50_ms": %f, "p99_ms": %f, "failed": %d}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What clients saw.

    Attributes:
        rate: Answered requests a second.
        failed: Requests with another status than 200, or with none.
    """

    rate: float
    p50_ms: float
    p99_ms: float
    failed: int


def closed_loop(port: int, body: bytes, clients: int, seconds: float) -> Load:
    """Lets `clients` ask one after another over a connection each, for some seconds.

    Raises:
        SystemExit: wrk is not installed; says how to install it.
    """
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is needed for this benchmark: apt-get install wrk")
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "body").write_bytes(body)
        (Path(scratch) / "post.lua").write_text(_LUA)
        done = subprocess.run(
            [
                *("wrk", "-t1", f"-c{clients}", f"-d{seconds:g}s", "--timeout", "30s"),
                *("-s", f"{scratch}/post.lua", f"http://127.0.0.1:{port}/invocations"),
            ],
            env={**os.environ, "PODIUM_BODY": f"{scratch}/body"},
            capture_output=True,
            text=True,
            check=True,
        )
    said = json.loads(done.stdout.split("RESULT", 1)[1])
    rate = said["requests"] / said["duration_s"]
    return Load(rate, said["p50_ms"], said["p99_ms"], said["failed"])


@dataclass(slots=True)
class Second:
    """What was seen of the requests that were due in one second of an open-loop load.

    Attributes:
        answers: Requests by status; 0 where no answer came.
        latencies_ms: Of those answered with 200, from when they were due.
    """

    answers: Counter[int] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)


@contextmanager
def open_loop(port: int, body: bytes, rate: float, seconds: float) -> Iterator[list[Second]]:
    """Asks at a fixed rate from a process of its own while the block runs, and until it ends.

    Yields:
        A list that is filled when the block is left: what was seen of each second, in order.
    """
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        words = [str(port), file.name, str(rate), str(seconds)]
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.load", *words], stdout=subprocess.PIPE
        )
        seen: list[Second] = []
        try:
            yield seen
        finally:
            said, _ = process.communicate()
        for one in json.loads(said):
            answers = Counter({int(status): n for status, n in one["answers"].items()})
            seen.append(Second(answers, one["latencies_ms"]))


def ask_open_loop(port: int, body: bytes, rate: float, seconds: float) -> list[Second]:
    """Asks at a fixed rate for some seconds; returns what was seen of each of them."""
    with open_loop(port, body, rate, seconds) as seen:
        pass
    return seen


class _Clients:
    """Connections that are kept for the next request; as many as are asked for at once."""

    def __init__(self, port: int, body: bytes) -> None:
        self.port = port
        head = (
            "POST /invocations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self.request = head.encode() + body
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self) -> int:
        try:
            return await asyncio.wait_for(self._ask(), 30)
        except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError):
            return 0

    def _find_idle(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Returns a connection that is open still: a server closes what is idle for long."""
        while self.idle:
            reader, writer = self.idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None

    async def _ask(self) -> int:
        reader, writer = self._find_idle() or await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(self.request)
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            lower = head.lower()
            if b"content-length: " not in lower:
                raise ValueError("an answer without a length")
            length = int(lower.split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
            await reader.readexactly(length)
        except BaseException:
            writer.close()
            raise
        if b"connection: close" in lower:
            writer.close()
        else:
            self.idle.append((reader, writer))
        return status


async def _ask_at(port: int, body: bytes, rate: float, seconds: float) -> list[Second]:
    clients = _Clients(port, body)
    seen = [Second() for _ in range(int(seconds))]
    tasks: set[asyncio.Task[None]] = set()
    began = time.perf_counter()

    async def one(due: float) -> None:
        status = await clients.ask()
        second = seen[min(int(due), len(seen) - 1)]
        second.answers[status] += 1
        if status == 200:
            second.latencies_ms.append(1e3 * (time.perf_counter() - began - due))

    for number in range(int(rate * seconds)):
        due = number / rate
        ahead = due - (time.perf_counter() - began)
        if ahead > 0:
            await asyncio.sleep(ahead)
        task = asyncio.create_task(one(due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return seen


def main(words: list[str]) -> None:
    """Asks as `open_loop` told it to, and prints what it saw as JSON."""
    import uvloop

    port, body, rate, seconds = words
    loop: Any = uvloop.new_event_loop()
    content = Path(body).read_bytes()
    seen = loop.run_until_complete(_ask_at(int(port), content, float(rate), float(seconds)))
    told = [{"answers": one.answers, "latencies_ms": one.latencies_ms} for one in seen]
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1:])
