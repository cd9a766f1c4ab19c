"""Stock `mlflow models serve` in a process group of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Scorer:
    """A running scoring server."""

    url: str

    def post(self, body: Any, content_type: str = JSON) -> tuple[int, str]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.url}/invocations", content, {"content-type": content_type}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as err:
            return err.code, err.read().decode()


@dataclass(frozen=True, slots=True)
class Indoors:
    """What the scoring server answers a model's requests with, in this process, in no time.

    Attributes:
        model: As `mlflow.pyfunc.load_model` gives it.
    """

    model: Any

    def post(self, body: Any, content_type: str = JSON) -> tuple[int, str]:
        from mlflow.exceptions import MlflowException
        from mlflow.pyfunc.scoring_server import invocations

        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            answer = invocations(content, content_type, self.model, None)
        except MlflowException as err:
            return err.get_http_status_code(), err.serialize_as_json()
        return answer.status, answer.response


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def serve(
    command: Sequence[str] | str, port: int, env: dict[str, str], cwd: Path, log: Path
) -> Iterator[Scorer]:
    """Runs a serving command until it answers; ends its whole process group afterwards."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            shell=isinstance(command, str),
            env=env,
            cwd=cwd,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 240
        while True:
            assert process.poll() is None, log.read_text()[-3000:]
            if time.monotonic() > deadline:
                pytest.fail(f"no answer in 240 s: {log.read_text()[-3000:]}")
            try:
                with urllib.request.urlopen(f"{url}/ping", timeout=5):
                    break
            except OSError:
                time.sleep(0.2)
        yield Scorer(url)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
