"""Requests a second through stock `mlflow models serve`: `python -m benchmarks.serving`.

One image a request, one client on one connection. The first row is the stock MLflow flavor of the
same network; both servers run at the same time and are asked in turns.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from benchmarks.tables import print_table
from experiments.architectures import open_architecture
from experiments.built_in import BUILT_IN
from experiments.trial import set_up_process
from mlops.data import load_dataset
from mlops.packaging import ModelSpec, build_model_folder, save_network
from mlops.settings import quiet
from tests.e2e.serving import free_port, serve

ROUNDS = 5
REQUESTS = 100


def main() -> None:
    quiet()
    set_up_process(threads=1)
    import mlflow.keras

    dataset = load_dataset("digits")
    cnn = open_architecture(BUILT_IN["cnn"])
    model = cnn.build(cnn.baseline(dataset.input), dataset.input, len(dataset.class_names))
    network = cnn.to_package(model)
    row = dataset.x[0]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_network(network, folder / "n.keras")
        spec = ModelSpec(
            task="classifier",
            architecture="cnn",
            input=dataset.input,
            class_names=dataset.class_names,
            dataset_name=dataset.name,
            dataset_fingerprint=dataset.fingerprint,
            likelihood=None,
        )
        build_model_folder(folder / "n.keras", spec, folder / "podium")
        signature = mlflow.models.infer_signature(row[None], network.predict(row[None], verbose=0))
        mlflow.keras.save_model(
            network,
            str(folder / "stock"),
            signature=signature,
            pip_requirements=["keras", "tensorflow"],
        )
        lists = json.dumps({"inputs": row[None].tolist()})
        text = json.dumps({"inputs": [base64.b64encode(row.tobytes()).decode()]})
        ports = {"stock": free_port(), "podium": free_port()}

        def command(name: str) -> list[str]:
            words = ["mlflow", "models", "serve", "--env-manager", "local", "--host", "127.0.0.1"]
            return [*words, "-m", str(folder / name), "--port", str(ports[name])]

        env = dict(os.environ)
        asks = {
            "stock mlflow.keras, JSON lists": (ports["stock"], lists),
            "Podium, JSON lists": (ports["podium"], lists),
            "Podium, base64": (ports["podium"], text),
        }
        rates: dict[str, list[float]] = defaultdict(list)
        with (
            serve(command("stock"), ports["stock"], env, folder, folder / "stock.log"),
            serve(command("podium"), ports["podium"], env, folder, folder / "podium.log"),
        ):
            for _ in range(ROUNDS):
                for name, (port, body) in asks.items():
                    rates[name].append(_rate(port, body))
    print_table(
        "Serving one image a request",
        f"digits (8x8x1), CNN baseline, {REQUESTS} requests a round, 1 client, keep-alive",
        "python -m benchmarks.serving",
        "requests/s",
        rates,
    )


def _rate(port: int, body: str) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    began = time.perf_counter()
    for _ in range(REQUESTS):
        connection.request("POST", "/invocations", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
    took = time.perf_counter() - began
    connection.close()
    return REQUESTS / took


if __name__ == "__main__":
    main()
