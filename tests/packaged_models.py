"""Tiny packaged models of each kind, and every form in which their rows can be sent."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlops.inputs import InputSpec
from mlops.packaging import ModelSpec, build_model_folder, save_network

KINDS = ("table", "image_float32", "image_uint8", "sequence", "vae")
_SHAPES: dict[str, tuple[int, ...]] = {
    "table": (3,),
    "image_float32": (4, 4, 1),
    "image_uint8": (4, 4, 3),
    "sequence": (5, 2),
    "vae": (4, 4, 1),
}


@dataclass(frozen=True, slots=True)
class Packaged:
    """A model folder, what it is, four rows for it, and the network's own outputs on them."""

    folder: Path
    spec: ModelSpec
    rows: Any
    outputs: list[Any]


def spec_of(kind: str) -> ModelSpec:
    shape = _SHAPES[kind]
    channels = shape[-1]
    is_vae = kind == "vae"
    return ModelSpec(
        task="vae" if is_vae else "classifier",
        architecture="vae" if is_vae else "dnn",
        input=InputSpec(
            kind={1: "table", 2: "sequence", 3: "image"}[len(shape)],
            shape=shape,
            dtype="uint8" if kind == "image_uint8" else "float32",
            columns=("width", "height", "mass") if kind == "table" else None,
            low=0.0,
            high=1.0,
            mean=(0.5,) * channels,
            variance=(0.25,) * channels,
        ),
        class_names=() if is_vae else ("ant", "bee", "cat"),
        dataset_name="tiny",
        dataset_fingerprint="0123456789abcdef",
        likelihood="bernoulli" if is_vae else None,
    )


def network_of(kind: str) -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(7)
    spec = spec_of(kind)
    x = keras.Input(spec.input.shape, dtype=spec.input.dtype)
    if kind == "vae":
        scaled = layers.Rescaling(1.0)(x)
        hidden = layers.Dense(6, activation="relu")(layers.Flatten()(scaled))
        mean, log_var = layers.Dense(2)(hidden), layers.Dense(2)(hidden)
        logits = layers.Reshape(spec.input.shape)(layers.Dense(16)(mean))
        return keras.Model(x, [scaled, logits, mean, log_var])
    if kind == "table":
        y = layers.Dense(8, activation="relu")(layers.Normalization(mean=0.5, variance=0.25)(x))
    elif kind == "sequence":
        y = layers.Bidirectional(layers.GRU(4))(x)
    else:
        y = layers.Rescaling(1 / 255)(x)
        y = layers.Conv2D(4, 3, padding="same", activation="relu")(y)
        y = layers.BatchNormalization()(layers.MaxPooling2D(2)(y))
        y = layers.Dropout(0.5)(layers.Flatten()(y))
    return keras.Model(x, layers.Softmax()(layers.Dense(3)(y)))


def rows_of(kind: str, n: int = 4) -> Any:
    spec = spec_of(kind).input
    random = np.random.default_rng(11)
    if spec.dtype == "uint8":
        return random.integers(0, 256, (n, *spec.shape), dtype=np.uint8)
    return random.random((n, *spec.shape), dtype=np.float32)


def build(root: Path, kind: str) -> Packaged:
    network = network_of(kind)
    save_network(network, root / f"{kind}.keras")
    folder = root / kind
    build_model_folder(root / f"{kind}.keras", spec_of(kind), folder)
    outputs = network(rows_of(kind), training=False)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    return Packaged(folder, spec_of(kind), rows_of(kind), [np.asarray(o) for o in outputs])


def _frame(rows: Any, spec: ModelSpec) -> Any:
    import pandas as pd

    flat = rows.reshape(len(rows), -1)
    return pd.DataFrame(flat, columns=spec.input.columns and list(spec.input.columns))


def _texts(rows: Any) -> list[str]:
    return [base64.b64encode(row.tobytes()).decode() for row in rows]


def _parquet(frame: Any) -> bytes:
    content = io.BytesIO()
    frame.to_parquet(content)
    return content.getvalue()


def _split(frame: Any) -> dict[str, Any]:
    return {"columns": frame.columns.tolist(), "data": frame.to_numpy().tolist()}


def _reversed(frame: Any, spec: ModelSpec) -> Any:
    return frame[frame.columns[::-1]] if spec.input.columns else frame


def _column(values: list[Any]) -> Any:
    import pandas as pd

    return pd.DataFrame({"rows": values})


PYTHON_FORMS: dict[str, Callable[[Any, ModelSpec], Any]] = {
    "array": lambda rows, spec: rows,
    "flat array": lambda rows, spec: rows.reshape(len(rows), -1),
    "float64 array": lambda rows, spec: rows.astype(np.float64),
    "object array": lambda rows, spec: rows.astype(object),
    "lists": lambda rows, spec: rows.tolist(),
    "flat lists": lambda rows, spec: rows.reshape(len(rows), -1).tolist(),
    "list of arrays": lambda rows, spec: list(rows),
    "base64": lambda rows, spec: _texts(rows),
    "base64 array": lambda rows, spec: np.array(_texts(rows)),
    "raw bytes": lambda rows, spec: [row.tobytes() for row in rows],
    "frame": _frame,
    "frame in another order": lambda rows, spec: _reversed(_frame(rows, spec), spec),
    "frame of base64": lambda rows, spec: _column(_texts(rows)),
    "frame of lists": lambda rows, spec: _column(rows.tolist()),
    "frame of bytes": lambda rows, spec: _column([row.tobytes() for row in rows]),
}

JSON = "application/json"
HTTP_FORMS: dict[str, Callable[[Any, ModelSpec], tuple[str, Any]]] = {
    "inputs": lambda rows, spec: (JSON, {"inputs": rows.tolist()}),
    "instances": lambda rows, spec: (JSON, {"instances": rows.tolist()}),
    "flat inputs": lambda r, spec: (JSON, {"inputs": r.reshape(len(r), -1).tolist()}),
    "base64 inputs": lambda rows, spec: (JSON, {"inputs": _texts(rows)}),
    "base64 instances": lambda rows, spec: (JSON, {"instances": _texts(rows)}),
    "dataframe_split": lambda r, spec: (JSON, {"dataframe_split": _split(_frame(r, spec))}),
    "dataframe_split without names": lambda r, spec: (
        JSON,
        {"dataframe_split": {"data": r.reshape(len(r), -1).tolist()}},
    ),
    "dataframe_split in another order": lambda r, spec: (
        JSON,
        {"dataframe_split": _split(_reversed(_frame(r, spec), spec))},
    ),
    "dataframe_records": lambda r, spec: (
        JSON,
        {"dataframe_records": _frame(r, spec).astype(float).to_dict("records")},
    ),
    "dataframe_split of base64": lambda r, spec: (
        JSON,
        {"dataframe_split": _split(_column(_texts(r)))},
    ),
    "dataframe_split of lists": lambda r, spec: (
        JSON,
        {"dataframe_split": {"columns": ["rows"], "data": [[row] for row in r.tolist()]}},
    ),
    "csv": lambda r, spec: ("text/csv", _frame(r, spec).to_csv(index=False).encode()),
    "parquet of bytes": lambda r, spec: (
        "application/vnd.apache.parquet",
        _parquet(_column([row.tobytes() for row in r])),
    ),
}

MARK = 71234567.25  # appears in no answer unless the input is echoed


def bad_bodies(kind: str) -> dict[str, tuple[dict[str, Any], str]]:
    """Bodies that must be answered with 400, and a piece of the sentence."""
    spec = spec_of(kind).input
    n = math.prod(spec.shape)
    good = rows_of(kind, 2).reshape(2, -1).astype(float).tolist()
    null = [[*good[0][:-1], None], good[1]]
    null_at_1 = [good[0], [*good[1][:-1], None]]
    words = [[*good[0][:-1], str(MARK)], good[1]]
    nan = json.loads(json.dumps([good[0], [*good[1][:-1], math.nan]]))
    bodies = {
        "one number too many": ({"inputs": [[*row, MARK] for row in good]}, "has shape"),
        "no batch axis": ({"inputs": rows_of(kind, 1)[0].tolist()}, "shape"),
        "a number": ({"inputs": MARK}, "shape"),
        "null": ({"inputs": None}, ""),
        "null in a row": ({"inputs": null_at_1}, "row 1 holds null"),
        "null in the first row": ({"instances": null}, "row 0 holds null"),
        "text among numbers": ({"inputs": words}, "text"),
        "NaN": ({"inputs": nan}, "row 1 holds"),
        "not base64": ({"inputs": [f"!{MARK}", "AAAA"]}, "row 0 is text but not base64"),
        "base64 too short": ({"inputs": ["AAAA"]}, "row 0 decodes to 3 bytes"),
        "a dictionary": ({"inputs": {"unknown": [MARK]}}, ""),
        "too few columns": ({"dataframe_split": {"data": [[MARK] * (n + 1)]}}, "columns"),
    }
    if spec.dtype == "uint8":
        bodies["too large"] = ({"inputs": [good[0], [256.0] * n]}, "row 1 holds a value that is")
        bodies["a fraction"] = ({"inputs": [[0.5] * n]}, "row 0 holds a value that is")
    if spec.columns is not None:
        records = [{"width": 1.0, "height": MARK}]
        bodies["a missing column"] = ({"dataframe_records": records}, "column mass is missing")
        records = [{"width": 1.0, "height": 2.0, "mass": MARK, "colour": 3.0}]
        bodies["an extra column"] = ({"dataframe_records": records}, "'colour'")
    return bodies
