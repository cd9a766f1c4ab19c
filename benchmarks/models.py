"""What benchmarks promote and serve: networks packaged and registered as a sweep does it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mlops.data import Dataset
    from mlops.settings import Settings


def coloured_pictures(folder: Path, n: int = 400) -> Dataset:
    """Returns made-up pictures of CIFAR-10's shape, uint8 (n, 32, 32, 3), in ten classes.

    A class is a mean colour under noise, which a network learns in seconds: what is measured here
    is how fast pictures of this size are answered, not how well.
    """
    from mlops.data import load_dataset

    random = np.random.default_rng(0)
    y = np.arange(n) % 10
    colours = random.integers(40, 216, (10, 1, 1, 3))
    x = np.clip(colours[y] + random.normal(0, 25, (n, 32, 32, 3)), 0, 255).astype(np.uint8)
    np.savez(folder / "coloured.npz", x=x, y=y)
    return load_dataset(str(folder / "coloured.npz"))


def baseline_cnn(dataset: Dataset, epochs: int = 4) -> Any:
    """Returns the baseline CNN of Podium, trained, as it is packaged."""
    from experiments.architectures import open_architecture
    from experiments.built_in import BUILT_IN

    cnn = open_architecture(BUILT_IN["cnn"])
    model = cnn.build(cnn.baseline(dataset.input), dataset.input, len(dataset.class_names))
    x, y = dataset.part("train")
    model.fit(x, y, epochs=epochs, verbose=0)
    return cnn.to_package(model)


def package(network: Any, dataset: Dataset, architecture: str, folder: Path) -> None:
    """Packages a classifier as a sweep packages its candidates."""
    from mlops.packaging import ModelSpec, build_model_folder, save_network

    spec = ModelSpec.of(dataset, "classifier", architecture)
    with tempfile.TemporaryDirectory() as scratch:
        save_network(network, Path(scratch) / "n.keras")
        build_model_folder(Path(scratch) / "n.keras", spec, folder)


def register(settings: Settings, name: str, dataset: Dataset, folders: Sequence[Path]) -> None:
    """Registers packaged models as candidates 1, 2, ... of `name`, and stores their dataset."""
    from mlops.dataset_store import open_dataset_store
    from mlops.mlflow_store import (
        ensure_experiment,
        ensure_registered_model,
        open_store_client,
        upload,
    )

    open_dataset_store(settings).put(dataset)
    client = open_store_client(settings)
    experiment = ensure_experiment(client, dataset.name)
    ensure_registered_model(client, f"{name}-candidates")
    for number, folder in enumerate(folders):
        run_id = client.create_run(experiment).info.run_id
        upload(client, run_id, folder, "model")
        tags = {
            "mlops.architecture": "of a benchmark",
            "mlops.dataset_fingerprint": dataset.fingerprint,
            "mlops.objective": "val_accuracy",
            "mlops.value": repr(0.9 + number / 1000),
        }
        source = f"runs:/{run_id}/model"
        client.create_model_version(f"{name}-candidates", source, run_id, tags=tags)
