"""A tiny world to promote in: points left and right of zero, and linear networks that tell them.

The networks are real, packaged and checked as any other. What asks them here does so in numpy, in
milliseconds; that it answers as the real child process does is a test of its own.
"""

from __future__ import annotations

import base64
import io
import itertools
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mlops.data import Dataset, load_dataset
from mlops.dataset_store import DatasetStore, open_dataset_store
from mlops.evaluation import scale_constants
from mlops.mlflow_store import ensure_experiment, ensure_registered_model, upload
from mlops.packaging import ModelSpec, build_model_folder, check_model_folder, save_network
from mlops.settings import Settings
from registry.golden import Golden, golden_requests
from registry.probe import Answered, ModelFailedError, Probed

NAME = "sides-classifier"
CLEAN = {"mlflow.source.git.commit": "0" * 40, "mlops.git_dirty": "false"}


def make_dataset(folder: Path) -> Dataset:
    random = np.random.default_rng(0)
    rows = random.normal(size=(300, 2)).astype(np.float32)
    path = folder / "sides.npz"
    np.savez(path, x=rows, y=np.where(rows[:, 0] > 0, "right", "left"))
    return load_dataset(str(path))


def make_model(dataset: Dataset, right: float, place: Path) -> Path:
    """Packages a linear network; `right` is the weight of the first feature."""
    import keras

    place.mkdir()
    mean, scale = scale_constants(dataset.input)
    x = keras.Input((2,), name="rows")
    y = keras.layers.Normalization(mean=mean.tolist(), variance=(scale**2).tolist())(x)
    dense = keras.layers.Dense(2, use_bias=False)
    model = keras.Model(x, keras.layers.Softmax()(dense(y)))
    dense.set_weights([np.array([[-right, right], [0.0, 0.001]], np.float32)])
    return package(model, dataset, place)


def package(model: Any, dataset: Dataset, place: Path) -> Path:
    """Makes the model folder of a classifier in a folder that is there."""
    save_network(model, place / "n.keras")
    spec = ModelSpec.of(dataset, "classifier", "dnn")
    build_model_folder(place / "n.keras", spec, place / "model")
    return place / "model"


@dataclass
class Sides:
    """Registers candidates in a store, as a sweep does; each weight is packaged once."""

    client: Any
    dataset: Dataset
    place: Path
    models: Path
    made: dict[float, Path]
    numbers: Any = field(default_factory=itertools.count)

    def model(self, right: float) -> Path:
        if right not in self.made:
            self.made[right] = make_model(self.dataset, right, self.models / f"made{right}")
        return self.made[right]

    def register(
        self,
        right: float,
        value: float,
        break_it: Callable[[Path], None] | None = None,
        tags: dict[str, str] | None = None,
    ) -> int:
        folder = self.place / f"copy{next(self.numbers)}"
        shutil.copytree(self.model(right), folder)
        if break_it is not None:
            break_it(folder)
        experiment = ensure_experiment(self.client, "sides")
        run_id = self.client.create_run(experiment, tags=CLEAN if tags is None else tags)
        run_id = run_id.info.run_id
        upload(self.client, run_id, folder, "model")
        ensure_registered_model(self.client, f"{NAME}-candidates")
        version = self.client.create_model_version(
            f"{NAME}-candidates",
            f"runs:/{run_id}/model",
            run_id,
            tags={
                "mlops.architecture": "dnn",
                "mlops.dataset_fingerprint": self.dataset.fingerprint,
                "mlops.objective": "val_accuracy",
                "mlops.value": repr(value),
            },
        )
        return int(version.version)


def settings_for(home: Path, dataset: Dataset) -> Settings:
    settings = Settings.from_env({"MLOPS_HOME": str(home)})
    open_dataset_store(settings).put(dataset)
    return settings


def probe_sides(
    folders: Sequence[Path],
    *,
    store: DatasetStore,
    fingerprint: str,
    vouched_scoring: Sequence[str | None] = (),
) -> Probed:
    """Does what `registry.probe.probe` does, for these networks."""
    dataset = store.get(fingerprint)
    vouched = vouched_scoring or [None] * len(folders)
    answers = [
        _answer(folder, dataset, digest) for folder, digest in zip(folders, vouched, strict=True)
    ]
    return Probed(tuple(answers), "no network")


def _answer(folder: Path, dataset: Dataset, vouched: str | None) -> Answered | ModelFailedError:
    spec = check_model_folder(folder, vouched)
    weights = read_weights(folder)
    if not np.isfinite(weights).all():
        return ModelFailedError("The input cannot be scored: row 0 gives no finite answer")
    mean, scale = scale_constants(spec.input)

    def ask(rows: Any) -> Any:
        logits = (np.asarray(rows, np.float64) - mean) / scale @ weights
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    test = dataset.requests("test")
    requests = golden_requests(spec.input)
    rows = [np.frombuffer(base64.b64decode(one), "<f4") for one in requests]
    noise = np.random.default_rng(0).normal(scale=0.1, size=test.shape) * scale
    return Answered(ask(test), {"noise": ask(test + noise)}, Golden(requests, ask(rows)))


def read_weights(folder: Path) -> Any:
    with zipfile.ZipFile(folder / "data" / "model.keras") as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(content) as file:
        return np.asarray(file["layers/dense/vars/0"])
