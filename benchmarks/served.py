"""A home with a promoted network of pictures, and servers of it, for benchmarks."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.models import baseline_cnn, coloured_pictures, package, register
from mlops.settings import Settings

NAME = "coloured-classifier"
LISTS, BASE64 = "JSON lists", "base64"


@dataclass(slots=True)
class Server:
    """A server that runs in a process group of its own."""

    port: int
    command: list[str]
    env: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None


def promote_pictures(place: Path) -> Settings:
    """Trains the baseline CNN, leaves it in `network.keras`, and promotes it in a new home."""
    from mlops.packaging import save_network
    from registry.alias import open_registry
    from registry.promote import promote

    dataset = coloured_pictures(place)
    network = baseline_cnn(dataset)
    save_network(network, place / "network.keras")
    package(network, dataset, "cnn", place / "candidate")
    settings = Settings.from_env({"MLOPS_HOME": str(place / "home")})
    settings.home.mkdir()
    register(settings, NAME, dataset, [place / "candidate"])
    with open_registry(settings) as registry:
        done = promote(registry, NAME)
    if done.decision != "promoted":
        raise SystemExit(f"{NAME} was not promoted: {done.reason}")
    return settings


def live_server(
    settings: Settings, port: int, metrics_port: int, workers: int, *more: str
) -> Server:
    """Returns `python -m registry.serve` of the promoted network; `more` are options."""
    words = ["-m", "registry.serve", NAME, "--port", str(port), "--workers", str(workers)]
    command = [sys.executable, *words, "--metrics-port", str(metrics_port), *more]
    return Server(port, command, {"MLOPS_HOME": str(settings.home)})


@contextmanager
def running(name: str, server: Server, place: Path) -> Iterator[None]:
    """Runs a server until it answers a request; ends its process group afterwards."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, **server.env}
    log = place / f"{server.port}.log"
    with log.open("wb") as out:
        server.process = subprocess.Popen(
            server.command, env=env, cwd=place, stdout=out, stderr=out, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 180
        while not _answers(server.port):
            if server.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{name} does not answer: {log.read_text()[-2000:]}")
            time.sleep(0.5)
        yield
    finally:
        os.killpg(server.process.pid, signal.SIGTERM)
        try:
            server.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.process.pid, signal.SIGKILL)


def _answers(port: int) -> bool:
    head = {"content-type": "application/json"}
    url = f"http://127.0.0.1:{port}/invocations"
    try:
        request = urllib.request.Request(url, body_of(LISTS, 1), head)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def body_of(form: str, n_rows: int) -> bytes:
    rows = np.random.default_rng(0).integers(0, 256, (n_rows, 32, 32, 3), np.uint8)
    if form == LISTS:
        return json.dumps({"inputs": rows.tolist()}).encode()
    return json.dumps({"inputs": [base64.b64encode(row).decode() for row in rows]}).encode()


def memory_mb(server: Server) -> float:
    """Returns the resident memory of the process that holds the model, in MB."""
    import psutil

    assert server.process is not None
    family = psutil.Process(server.process.pid).children(recursive=True)
    return max(one.memory_info().rss for one in family) / 1e6 if family else 0.0
