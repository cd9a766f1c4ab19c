"""A network that nobody trained, written without Keras."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np


def write_network(path: Path) -> None:
    """Writes a network of zeros for the digits, as Keras would, without Keras."""
    dense = {"units": 10, "activation": "softmax", "use_bias": True}
    layers = [
        _layer("InputLayer", "rows", {"batch_shape": [None, 8, 8, 1], "optional": False}),
        _layer("Flatten", "flat", {"data_format": "channels_last"}, "rows", [None, 8, 8, 1]),
        _layer("Dense", "out", dense, "flat", [None, 64]),
    ]
    network = {
        "module": "keras.src.models.functional",
        "class_name": "Functional",
        "config": {
            "name": "zeros",
            "trainable": True,
            "layers": layers,
            "input_layers": [["rows", 0, 0]],
            "output_layers": [["out", 0, 0]],
        },
        "registered_name": "Functional",
    }
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        file["layers/out/vars/0"] = np.zeros((64, 10), "float32")
        file["layers/out/vars/1"] = np.zeros(10, "float32")
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(network))
        archive.writestr(
            "metadata.json", json.dumps({"keras_version": "3.0.0", "date_saved": "then"})
        )
        archive.writestr("model.weights.h5", weights.getvalue())


def _layer(
    kind: str,
    name: str,
    config: dict[str, Any],
    before: str | None = None,
    shape: list[int | None] | None = None,
) -> dict[str, Any]:
    tensor = {"shape": shape, "dtype": "float32", "keras_history": [before, 0, 0]}
    node = {"args": [{"class_name": "__keras_tensor__", "config": tensor}], "kwargs": {}}
    return {
        "module": "keras.layers",
        "class_name": kind,
        "config": {"name": name, "dtype": "float32", **config},
        "registered_name": None,
        "name": name,
        "build_config": None if before is None else {"input_shape": shape},
        "inbound_nodes": [] if before is None else [node],
    }
