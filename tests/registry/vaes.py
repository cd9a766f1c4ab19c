"""A VAE for the points of tests/registry/sides.py, with weights set by hand, and what asks it."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlops.data import Dataset
from mlops.dataset_store import DatasetStore
from mlops.evaluation import scale_constants
from mlops.inputs import InputSpec
from mlops.mlflow_store import ensure_experiment, ensure_registered_model, upload
from mlops.packaging import ModelSpec, build_model_folder, check_model_folder, save_network
from registry.golden import Golden, golden_requests
from registry.probe import Answered, Probed
from tests.registry.sides import CLEAN

VAE_NAME = "sides-vae"


def make_vae(dataset: Dataset, place: Path) -> Path:
    """Packages it: z is half of the first feature, and what is rebuilt of z is that feature."""
    import keras

    place.mkdir()
    mean, scale = scale_constants(dataset.input)
    x = keras.Input((2,), name="rows")
    scaled = keras.layers.Normalization(mean=mean.tolist(), variance=(scale**2).tolist())(x)
    z_mean, z_log_var = keras.layers.Dense(1, use_bias=False), keras.layers.Dense(1, use_bias=False)
    rebuilt = keras.layers.Dense(2, use_bias=False)
    z = z_mean(scaled)
    network = keras.Model(x, [scaled, rebuilt(z), z, z_log_var(scaled)])
    z_mean.set_weights([np.array([[0.5], [0.0]], np.float32)])
    z_log_var.set_weights([np.zeros((2, 1), np.float32)])
    rebuilt.set_weights([np.array([[2.0, 0.0]], np.float32)])
    save_network(network, place / "n.keras")
    spec = ModelSpec(
        task="vae",
        architecture="vae",
        input=dataset.input,
        class_names=(),
        dataset_name=dataset.name,
        dataset_fingerprint=dataset.fingerprint,
        likelihood="gaussian",
    )
    build_model_folder(place / "n.keras", spec, place / "model")
    return place / "model"


def score_rows(spec: InputSpec, rows: Any) -> npt.NDArray[np.float64]:
    """Its anomaly scores: minus the ELBO at the mean of the code, for variance 1."""
    mean, scale = scale_constants(spec)
    first, second = ((np.asarray(rows, np.float64) - mean) / scale).T
    return np.asarray(0.5 * second**2 + math.log(2 * math.pi) + 0.125 * first**2)


def scores_of_test_rows(dataset: Dataset) -> npt.NDArray[np.float64]:
    return score_rows(dataset.input, dataset.requests("test"))


def register_vae(
    client: Any,
    dataset: Dataset,
    place: Path,
    change: Callable[[Path], Any] = lambda folder: None,
) -> int:
    """Registers it as a candidate, as a sweep does; returns the candidate's version."""
    folder = make_vae(dataset, place)
    change(folder)
    run_id = client.create_run(ensure_experiment(client, "sides"), tags=CLEAN).info.run_id
    upload(client, run_id, folder, "model")
    ensure_registered_model(client, f"{VAE_NAME}-candidates")
    version = client.create_model_version(
        f"{VAE_NAME}-candidates",
        f"runs:/{run_id}/model",
        run_id,
        tags={
            "mlops.architecture": "vae",
            "mlops.dataset_fingerprint": dataset.fingerprint,
            "mlops.objective": "val_elbo",
            "mlops.value": "-2.5",
        },
    )
    return int(version.version)


def probe_vaes(
    folders: Sequence[Path],
    *,
    store: DatasetStore,
    fingerprint: str,
    vouched_scoring: Sequence[str | None] = (),
) -> Probed:
    """Does what `registry.probe.probe` does, for this network."""
    dataset = store.get(fingerprint)
    vouched = vouched_scoring or [None] * len(folders)
    return Probed(
        tuple(_answer(folder, dataset, one) for folder, one in zip(folders, vouched, strict=True)),
        "no network",
    )


def _answer(folder: Path, dataset: Dataset, vouched: str | None) -> Answered:
    spec = check_model_folder(folder, vouched).input
    requests = golden_requests(spec)
    rows = [np.frombuffer(base64.b64decode(one), "<f4") for one in requests]
    test = dataset.requests("test")
    return Answered(
        score_rows(spec, test),
        {"noise": score_rows(spec, test)},
        Golden(requests, score_rows(spec, rows)),
    )
