"""A private sweep, end to end: trained on JAX, promoted and served by TensorFlow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlops.mlflow_store import open_store_client
from mlops.settings import Settings

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
PATHS = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
ASK = """
import json
import mlflow
from mlops.data import load_dataset
x, y = load_dataset("digits").part("test")
model = mlflow.pyfunc.load_model("models:/digits-classifier@champion")
answers = model.predict(x)
import keras
accuracy = float((answers.argmax(axis=1) == y).mean())
print(json.dumps({"backend": keras.backend.backend(), "accuracy": accuracy}))
"""


def run(home: Path, backend: str, *command: str) -> str:
    env = {"MLOPS_HOME": str(home), "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **env, "PYTHONPATH": PATHS},
        cwd=home.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def test_a_private_champion_is_served_by_the_ordinary_backend(tmp_path: Path) -> None:
    home = tmp_path / "home"
    small = ("--fix", "units=64", "--fix", "learning_rate=0.01", "--fix", "batch_size=128")
    options = ("--architectures", "dnn", "--trials", "2", "--epochs", "8", "--workers", "1")
    told = run(
        home, "jax", "-m", "experiments.sweep", *options, *small, "--dp-epsilon", "8", "--json"
    )
    result = json.loads(told.splitlines()[-1])
    assert result["privacy"]["n_trainings"] == 2
    assert 8.0 < result["privacy"]["total"] < 16.0

    client = open_store_client(Settings.from_env({"MLOPS_HOME": str(home)}))
    run_id = result["studies"][0]["best"]["run_id"]
    best = client.get_run(run_id)
    assert best.data.params["dp_epsilon"] == "8.0"
    assert float(best.data.params["dp_noise_multiplier"]) > 0.5
    spent = [one.value for one in client.get_metric_history(run_id, "dp_epsilon")]
    assert spent == sorted(spent)
    assert 7.5 < spent[-1] <= 8.0
    parent = client.get_run(best.data.tags["mlflow.parentRunId"])
    assert parent.data.metrics["dp_epsilon_total"] == result["privacy"]["total"]

    run(home, "tensorflow", "-m", "registry.promote", "digits-classifier")
    uri = {"MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db"}
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env={**os.environ, **uri, "KERAS_BACKEND": "tensorflow", "PYTHONPATH": PATHS},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    assert answers["backend"] == "tensorflow"
    assert answers["accuracy"] > 0.5  # of ten classes, by chance 0.1
