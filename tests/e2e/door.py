"""HAProxy with deploy/haproxy.cfg, and what its clients see."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops.team.secrets import make_secrets
from tests.e2e.serving import free_port
from tests.system_programs import PROGRAMS, find_program

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "deploy" / "haproxy.cfg"
GOOD = '{"inputs": [[1.0, 0.5]]}'
JSON = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Door:
    """A running door.

    Attributes:
        ports: By name: ui, scoring, grafana, watch.
        secrets: The folder that `mlops.team.secrets` made.
    """

    ports: Mapping[str, int]
    secrets: Path
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.secrets / "public" / "ca.pem"))

    @property
    def token(self) -> str:
        return (self.secrets / "clients" / "token").read_text()

    @property
    def bearer(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}

    def connect(self, port: str = "scoring") -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(
            "localhost", self.ports[port], timeout=60, context=self.context
        )

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | str | None = None,
        headers: Mapping[str, str] = {},
        port: str = "scoring",
    ) -> Reply:
        with contextlib.closing(self.connect(port)) as connection:
            connection.request(method, path, body, dict(headers))
            return read_reply(connection)

    def score(self, body: bytes | str, headers: Mapping[str, str] = {}) -> Reply:
        """Asks with the token and as JSON, unless `headers` say otherwise."""
        return self.ask("POST", "/invocations", body, {**self.bearer, **JSON, **headers})

    def open_socket(self, port: str = "scoring") -> ssl.SSLSocket:
        plain = socket.create_connection(("localhost", self.ports[port]), timeout=60)
        return self.context.wrap_socket(plain, server_hostname="localhost")

    def answer_to(self, content: bytes, port: str = "scoring") -> Reply:
        """What the door says to bytes that are perhaps no whole request."""
        with self.open_socket(port) as connection:
            connection.sendall(content)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            return Reply(answer.status, dict(answer.getheaders()), answer.read())

    def metric(self, line: str) -> float:
        """The value of one of the door's metrics, by its name and labels as they stand there."""
        url = f"http://127.0.0.1:{self.ports['watch']}/metrics"
        with urllib.request.urlopen(url, timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        (found,) = [one for one in lines if one.startswith(f"{line} ")]
        return float(found.rpartition(" ")[2])

    def await_up(self, *replicas: str) -> None:
        """Waits until the door's own checks say that replicas answer."""
        deadline = time.monotonic() + 30
        for name in replicas:
            line = f'haproxy_server_status{{proxy="replicas",server="{name}",state="UP"}}'
            while self.metric(line) != 1:
                assert time.monotonic() < deadline, self.log.read_text()[-3000:]
                time.sleep(0.1)

    def await_that(self, status: int, path: str = "/ping", port: str = "scoring") -> None:
        """Waits until GET of a path is answered so."""
        deadline = time.monotonic() + 30
        while self.ask("GET", path, port=port).status != status:
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.05)


def read_reply(connection: http.client.HTTPConnection) -> Reply:
    answer = connection.getresponse()
    headers = {name.lower(): value for name, value in answer.getheaders()}
    return Reply(answer.status, headers, answer.read())


def door_env(secrets: Path, ports: Mapping[str, int], env: Mapping[str, str]) -> dict[str, str]:
    nobody = f"127.0.0.1:{free_port()}"
    return {
        "PATH": os.environ["PATH"],
        "SECRETS": str(secrets / "door"),
        "DOOR_PORT": str(ports["ui"]),
        "SCORING_PORT": str(ports["scoring"]),
        "GRAFANA_PORT": str(ports["grafana"]),
        "DOOR_STATS_PORT": str(ports["watch"]),
        "MLFLOW_ADDRESS": nobody,
        "SERVING_1_ADDRESS": nobody,
        "SERVING_2_ADDRESS": nobody,
        "GRAFANA_ADDRESS": nobody,
        **env,
    }


@contextlib.contextmanager
def open_door(folder: Path, **env: str) -> Iterator[Door]:
    """Runs the door on free ports until the block is left.

    Args:
        folder: Of its secrets and its log.
        env: Addresses of what stands behind it, and limits, as the configuration calls them.
    """
    program = find_program("haproxy")
    assert program is not None, PROGRAMS["haproxy"]
    secrets = folder / "secrets"
    make_secrets(secrets, ("localhost",))
    ports = {name: free_port() for name in ("ui", "scoring", "grafana", "watch")}
    log = folder / "door.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [program, "-W", "-db", "-f", str(CONFIG)],  # as docker-compose.yml has it
            env=door_env(secrets, ports, env),
            cwd=folder,
            stdout=out,
            stderr=out,
        )
    try:
        deadline = time.monotonic() + 30
        while not _is_up(ports["watch"]):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.05)
        yield Door(ports, secrets, log, process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def _is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


@contextlib.contextmanager
def open_replica(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Runs tests/e2e/replica.py in a process that may be killed."""
    process = subprocess.Popen([sys.executable, str(ROOT / "tests/e2e/replica.py"), str(port)])
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
                break
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()
