"""`python -m registry.serve` in a process of its own, and clients that keep asking it."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from registry.serving.state import StateFolder
from tests.e2e.serving import Scorer, free_port
from tests.registry.sides import NAME

ROOT = Path(__file__).parents[2]
ROW = base64.b64encode(np.array([1.0, 0.5], "<f4").tobytes()).decode()


@dataclass(frozen=True, slots=True)
class Served(Scorer):
    """A running server."""

    process: subprocess.Popen[str]
    home: Path
    port: int
    metrics_port: int
    said: list[str]
    log: Path

    @property
    def folder(self) -> StateFolder:
        return StateFolder.of(self.home, NAME, "champion", self.port)

    def metric(self, line: str) -> float:
        """The value of a metric, by its name and labels as they stand in the text."""
        text = self.get("/metrics")
        (found,) = [one for one in text.splitlines() if one.startswith(f"{line} ")]
        return float(found.rsplit(" ", 1)[1])

    def get(self, path: str) -> str:
        url = f"http://127.0.0.1:{self.metrics_port}{path}"
        with urllib.request.urlopen(url, timeout=10) as reply:
            return str(reply.read().decode())

    def await_that(self, holds: Callable[[], bool], timeout_s: float = 40) -> None:
        deadline = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.05)

    def all_answer(self, version: int, n: int = 2) -> bool:
        reports = [one for one in self.folder.read_reports().values() if one.serving]
        return len(reports) == n and all(one.champion == version for one in reports)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextlib.contextmanager
def start(
    home: Path, log: Path, *options: str, port: int | None = None, env: Mapping[str, str] = {}
) -> Iterator[Served]:
    """Runs the program until all workers answer, and ends it afterwards."""
    port, metrics_port = port or free_port(), free_port()
    command = [sys.executable, "-m", "registry.serve", NAME]
    command += ["--port", str(port), "--metrics-port", str(metrics_port), *options]
    with log.open("w") as err:
        process = subprocess.Popen(
            command,
            env={**os.environ, "MLOPS_HOME": str(home), "PYTHONPATH": str(ROOT), **env},
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
        )
    assert process.stdout is not None
    try:
        said = [process.stdout.readline()]
        assert said[0], log.read_text()[-3000:]
        if "--json" not in options:
            while not said[-1].startswith("Ctrl-C") and (line := process.stdout.readline()):
                said.append(line)
        yield Served(f"http://127.0.0.1:{port}", process, home, port, metrics_port, said, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)
        process.stdout.close()


@dataclass
class Clients:
    """Threads that ask one after another, each over one connection.

    Attributes:
        answers: When each request was sent, and the version that answered it.
        wrong: What was no answer with status 200.
    """

    port: int
    n: int = 3
    pause_s: float = 0.005
    answers: list[tuple[float, int]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    _done: threading.Event = field(default_factory=threading.Event)
    _threads: Sequence[threading.Thread] = ()

    def __enter__(self) -> Clients:
        self._threads = [threading.Thread(target=self._ask) for _ in range(self.n)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        body = json.dumps({"inputs": [ROW]})
        while not self._done.is_set():
            sent = time.monotonic()
            try:
                headers = {"content-type": "application/json"}
                connection.request("POST", "/invocations", body, headers)
                reply = connection.getresponse()
                content = reply.read()
                if reply.status == 200:
                    self.answers.append((sent, json.loads(content)["model_version"]))
                else:
                    self.wrong.append(f"{reply.status} {content[:200]!r}")
            except (OSError, http.client.HTTPException) as err:
                self.wrong.append(repr(err))
                connection.close()
            time.sleep(self.pause_s)
        connection.close()

    def versions_since(self, when: float) -> set[int]:
        return {version for sent, version in self.answers if sent > when}


def group_is_gone(group: int) -> bool:
    """Whether no process of a group is alive; zombies of a container's first process count not."""
    import psutil

    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            is_zombie = process.info["status"] == psutil.STATUS_ZOMBIE
            if os.getpgid(process.pid) == group and not is_zombie:
                return False
    return True


__all__ = ["ROW", "Clients", "Served", "free_port", "group_is_gone", "start"]
