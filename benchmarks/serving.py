"""Requests a second of servers of one network, side by side: `python -m benchmarks.serving`.

The baseline CNN for pictures of 32x32x3 behind stock MLflow, BentoML, LitServe, a release in stock
`mlflow models serve`, and `python -m registry.serve`. All run at the same time and are asked in
turns; wrk asks, from one thread, over connections that are kept. The last row is the compiled
forward pass alone in a process, which no server can beat. BentoML and LitServe are installed into
an environment of their own, `.venv-peers`, beside this one's packages.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.load import Load, closed_loop
from benchmarks.served import (
    BASE64,
    LISTS,
    Server,
    body_of,
    live_server,
    memory_mb,
    promote_pictures,
    running,
)
from benchmarks.tables import print_aim, print_heading, print_rows
from mlops.settings import Settings, quiet
from tests.e2e.serving import free_port

COMMAND = "python -m benchmarks.serving"
LOADS = {"1 client": (1, 1), "8 clients": (1, 8), "32 clients": (1, 32), "32 images": (32, 2)}
"""Images a request, and clients; where that is more than one image, the unit is images a second."""
PEERS = Path(__file__).parent / "peers"
STOCK, BENTO, LIT = "mlflow.keras, stock server", "BentoML", "LitServe"
RELEASE, LIVE, LIVE_2 = "release, stock server", "registry.serve", "registry.serve, 2 workers"
ROWS = (
    (STOCK, LISTS),
    (BENTO, LISTS),
    (LIT, LISTS),
    (RELEASE, LISTS),
    (RELEASE, BASE64),
    (LIVE, LISTS),
    (LIVE, BASE64),
    (LIVE_2, LISTS),
    (LIVE_2, BASE64),
)
LIMIT = "the compiled forward pass alone, no server"


def main() -> None:
    parser = argparse.ArgumentParser(COMMAND, description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load in each round")
    parser.add_argument("--limit", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    quiet()
    if asked.limit:
        print(json.dumps(_measure_limit(Path(asked.limit), asked.seconds)))
        return
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        place = Path(scratch)
        settings = promote_pictures(place)
        _save_stock(place)
        servers = _servers(place, settings)
        for name, server in servers.items():
            stack.enter_context(running(name, server, place))
        seen: dict[tuple[str, str, str], list[Load]] = defaultdict(list)
        limits: dict[str, list[float]] = defaultdict(list)
        for number in range(asked.rounds):
            for load, (n_rows, clients) in LOADS.items():
                for name, form in ROWS:
                    body = body_of(form, n_rows)
                    found = closed_loop(servers[name].port, body, clients, asked.seconds)
                    seen[name, form, load].append(found)
            for load, rate in _limit_alone(place, asked.seconds).items():
                limits[load].append(rate)
            print(f"round {number + 1} of {asked.rounds}", file=sys.stderr)
        memory = {name: memory_mb(server) for name, server in servers.items()}
    _print(seen, limits, memory, asked.rounds, asked.seconds)


def _save_stock(place: Path) -> None:
    """Saves the network as MLflow's own flavor does, as its documentation shows it."""
    import keras
    import mlflow.keras

    network = keras.saving.load_model(place / "network.keras", compile=False)
    row = np.zeros((1, 32, 32, 3), np.uint8)
    answer = network.predict(row, verbose=0)
    signature = mlflow.models.infer_signature(row, answer)
    pins = ["keras", "tensorflow"]
    mlflow.keras.save_model(
        network, str(place / "stock"), signature=signature, pip_requirements=pins
    )


def _servers(place: Path, settings: Settings) -> dict[str, Server]:
    python, peers = sys.executable, _peers_environment()
    ports = [free_port() for _ in range(8)]
    network = {"PEER_NETWORK": str(place / "network.keras"), "PYTHONPATH": str(PEERS)}
    network["PATH"] = os.pathsep.join([str(peers.parent), os.environ["PATH"]])
    release = next(settings.artifact_root.glob("*/*/artifacts/release"))

    def stock(folder: Path, port: int) -> Server:
        words = ["-m", "mlflow", "models", "serve", "--env-manager", "local"]
        return Server(port, [python, *words, "-m", str(folder), "--port", str(port)])

    bento = [str(peers.with_name("bentoml")), "serve", "bento:Peer", "--host", "127.0.0.1"]
    return {
        STOCK: stock(place / "stock", ports[0]),
        BENTO: Server(ports[1], [*bento, "--port", str(ports[1])], network),
        LIT: Server(ports[2], [str(peers), str(PEERS / "lit.py"), str(ports[2])], network),
        RELEASE: stock(release, ports[3]),
        LIVE: live_server(settings, ports[4], ports[5], 1),
        LIVE_2: live_server(settings, ports[6], ports[7], 2),
    }


def _peers_environment() -> Path:
    """Returns the Python of `.venv-peers`, made where it is missing."""
    folder = Path(".venv-peers").absolute()
    python = folder / "bin" / "python"
    ready = folder / ".ready"
    if not ready.exists():
        print("installing BentoML and LitServe into .venv-peers ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", str(PEERS / "requirements.txt")], check=True)
        # Behind its own packages stand this environment's: TensorFlow is not installed twice.
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        own = folder / "lib" / version / "site-packages" / "podium.pth"
        own.write_text(sysconfig.get_path("purelib") + "\n")
        ready.touch()
    return python


def _limit_alone(place: Path, seconds: float) -> dict[str, float]:
    words = ["--limit", str(place / "network.keras"), "--seconds", str(seconds)]
    command = [sys.executable, "-m", "benchmarks.serving", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _measure_limit(network: Path, seconds: float) -> dict[str, float]:
    """Returns calls a second with one row, and images a second with 32."""
    import keras
    import tensorflow as tf

    model = keras.saving.load_model(network, compile=False)
    spec = [tf.TensorSpec([None, 32, 32, 3], "uint8")]
    forward = tf.function(lambda rows: model(rows, training=False), spec)
    found = {}
    for load, n_rows in (("1 client", 1), ("32 images", 32)):
        rows = np.random.default_rng(0).integers(0, 256, (n_rows, 32, 32, 3), np.uint8)
        for _ in range(20):
            forward(rows).numpy()
        began, n = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            forward(rows).numpy()
            n += 1
        found[load] = n * n_rows / (time.perf_counter() - began)
    return found


def _print(
    seen: Mapping[tuple[str, str, str], list[Load]],
    limits: Mapping[str, list[float]],
    memory: Mapping[str, float],
    rounds: int,
    seconds: float,
) -> None:
    data = (
        "baseline CNN (122,570 weights) on uint8 32x32x3, made-up pictures; "
        f"n = {rounds} rounds of {seconds:g} s by wrk, all servers up and asked in turns; "
        "median (least to most)"
    )
    print_heading("Serving", data, COMMAND)

    def rates(name: str, form: str, load: str) -> list[float]:
        return [one.rate * LOADS[load][0] for one in seen[name, form, load]]

    def cell(values: list[float]) -> str:
        return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"

    columns = ("server", "form", *(f"{load}, images/s" for load in LOADS))
    more = ("p50 at 8, ms", "p99 at 8, ms", "failed", "MB a worker")
    rows: list[list[object]] = []
    for name, form in ROWS:
        at_8 = seen[name, form, "8 clients"]
        failed = sum(one.failed for load in LOADS for one in seen[name, form, load])
        rows.append(
            [name, form]
            + [cell(rates(name, form, load)) for load in LOADS]
            + [
                statistics.median(one.p50_ms for one in at_8),
                statistics.median(one.p99_ms for one in at_8),
                failed,
                f"{memory[name]:.0f}",
            ]
        )
    alone = [cell(limits[load]) if load in limits else None for load in LOADS]
    rows.append([LIMIT, "", *alone, None, None, None, None])
    print_rows((*columns, *more), rows)

    def middle(name: str, form: str, load: str) -> float:
        return statistics.median(rates(name, form, load))

    for name in (LIVE, LIVE_2):
        ours = middle(name, BASE64, "8 clients")
        at_8 = seen[name, BASE64, "8 clients"]
        print_aim(
            f"{name}, base64 at 8 clients, times stock",
            ours / middle(STOCK, LISTS, "8 clients"),
            least=40,
        )
        print_aim(
            f"{name}, base64 at 8 clients, times BentoML's JSON",
            ours / middle(BENTO, LISTS, "8 clients"),
            least=3,
        )
        print_aim(
            f"{name}, batches of 32, share of the limit",
            middle(name, BASE64, "32 images") / statistics.median(limits["32 images"]),
            least=0.5,
        )
        print_aim(
            f"{name}, JSON lists at 8 clients, times stock",
            middle(name, LISTS, "8 clients") / middle(STOCK, LISTS, "8 clients"),
            least=6,
        )
        tails = [one.p99_ms / one.p50_ms for one in at_8]
        print_aim(f"{name}, base64 at 8 clients, p99 over p50", statistics.median(tails), 4)


if __name__ == "__main__":
    main()
