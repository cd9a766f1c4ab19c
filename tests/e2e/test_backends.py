"""Sweeps on TensorFlow and on JAX; what was trained on one is promoted and served on the other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops.client import predict
from tests.e2e.serving import free_port

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
OTHER = {"tensorflow": "jax", "jax": "tensorflow"}
TOLERANCE = 1e-5
"""Between probabilities of one network under two backends: rounding."""
ASK = """
import json, sys
import mlflow, numpy as np
rows = np.load(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/digits-classifier@champion")
answers = model.predict(rows)
import keras
print(json.dumps({"backend": keras.backend.backend(), "answers": np.asarray(answers).tolist()}))
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.npy"
    np.save(path, np.random.default_rng(0).uniform(0, 16, (20, 8, 8, 1)).astype(np.float32))
    return path


def env_for(home: Path, backend: str) -> dict[str, str]:
    return {
        **os.environ,
        "MLOPS_HOME": str(home),
        "KERAS_BACKEND": backend,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }


def run(home: Path, backend: str, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        env=env_for(home, backend),
        capture_output=True,
        text=True,
        cwd=home.parent,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def answers_of(home: Path, backend: str, rows: Path) -> Any:
    env = env_for(home, backend) | {"MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db"}
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(rows)], env=env, capture_output=True, text=True, check=True
    )
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["backend"] == backend
    return np.array(said["answers"])


@contextmanager
def served(home: Path, backend: str) -> Iterator[str]:
    port = free_port()
    command = ["-m", "registry.serve", "digits-classifier", "--port", str(port)]
    with (home.parent / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *command, "--metrics-port", str(free_port())],
            env=env_for(home, backend),
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 180
        while True:
            assert process.poll() is None and time.monotonic() < deadline, (
                home.parent / "serve.log"
            ).read_text()[-3000:]
            try:
                with urllib.request.urlopen(f"{url}/ping", timeout=2):
                    break
            except OSError:
                time.sleep(0.2)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@pytest.mark.parametrize(
    ("trained_on", "more"),
    [
        ("tensorflow", ()),
        ("tensorflow", ("--precision", "bfloat16", "--xla", "on")),
        ("jax", ("--precision", "bfloat16")),
        ("jax", ("--population", "2")),
    ],
)
def test_what_one_backend_trained_the_other_promotes_and_serves(
    trained_on: str, more: tuple[str, ...], rows: Path, tmp_path: Path
) -> None:
    home, other = tmp_path / "home", OTHER[trained_on]
    options = ("--architectures", "dnn", "--trials", "2", "--epochs", "5", "--workers", "1")
    run(home, trained_on, "-m", "experiments.sweep", *options, *more)
    run(home, other, "-m", "registry.promote", "digits-classifier")
    here, there = answers_of(home, trained_on, rows), answers_of(home, other, rows)
    assert here.shape == (20, 10)
    np.testing.assert_allclose(there, here, atol=TOLERANCE)
    with served(home, other) as url:
        np.testing.assert_allclose(predict(url, np.load(rows)), here, atol=TOLERANCE)
