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

from mlops.inputs import Column, InputSpec
from mlops.packaging import ModelSpec, build_model_folder, save_network
from mlops.scoring_code import hash_code, loader_of

KINDS = ("table", "mixed", "image_float32", "image_uint8", "sequence", "ragged", "vae")
_SHAPES: dict[str, tuple[int, ...]] = {
    "table": (3,),
    "mixed": (9,),
    "image_float32": (4, 4, 1),
    "image_uint8": (4, 4, 3),
    "sequence": (5, 2),
    "ragged": (5, 3),
    "vae": (4, 4, 1),
}
_COLUMNS: dict[str, tuple[Column, ...]] = {
    "table": (Column("width"), Column("height"), Column("mass")),
    "mixed": (
        Column("weight"),
        Column("age", None, "flagged", 40.0),
        Column("colour", ("blue", "green", "red"), "flagged"),
        Column("island", ("3", "Dream")),
    ),
}
# What a client sends of a mixed table, and what its network sees: weight, age, age is missing,
# colour=blue, =green, =red, colour is missing, island=3, =Dream.
_CELLS = (
    [1.5, 30.0, "red", "Dream"],
    [0.25, None, "green", 3],
    [-2.0, 51.5, None, "Dream"],
    [0.0, 20.0, "violet", 3],  # no training row is violet
)
_FEATURES = (
    [1.5, 30.0, 0, 0, 0, 1, 0, 0, 1],
    [0.25, 40.0, 1, 0, 1, 0, 0, 1, 0],
    [-2.0, 51.5, 0, 0, 0, 0, 1, 0, 1],
    [0.0, 20.0, 0, 0, 0, 0, 0, 1, 0],
)
_STEPS = (5, 2, 1, 3)


@dataclass(frozen=True, slots=True)
class Packaged:
    """A model folder, what it is, four rows for it, and the network's own outputs on them.

    `rows` are as a client sends them, `features` as the network takes them.
    """

    folder: Path
    spec: ModelSpec
    rows: Any
    features: Any
    outputs: list[Any]


def spec_of(kind: str) -> ModelSpec:
    shape = _SHAPES[kind]
    channels = shape[-1]
    is_vae = kind == "vae"
    mean, variance = (0.5,) * channels, (0.25,) * channels
    if kind == "ragged":
        mean, variance = (0.5, 0.25, 0.0), (0.25, 0.25, 1.0)
    return ModelSpec(
        task="vae" if is_vae else "classifier",
        architecture="vae" if is_vae else "dnn",
        input=InputSpec(
            kind={1: "table", 2: "sequence", 3: "image"}[len(shape)],  # type: ignore[arg-type]
            shape=shape,
            dtype="uint8" if kind == "image_uint8" else "float32",
            columns=_COLUMNS.get(kind),
            low=0.0,
            high=1.0,
            mean=mean,
            variance=variance,
            ragged=kind == "ragged",
            flips=("horizontal",) if kind == "image_uint8" else (),
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
    if kind in ("table", "mixed"):
        y = layers.Dense(8, activation="relu")(layers.Normalization(mean=0.5, variance=0.25)(x))
    elif kind == "ragged":
        scale = layers.Normalization(mean=spec.input.mean, variance=spec.input.variance)
        y = layers.GRU(4)(layers.Masking(0.0)(scale(x)))
    elif kind == "sequence":
        y = layers.Bidirectional(layers.GRU(4))(x)
    else:
        y = layers.Rescaling(1 / 255)(x)
        y = layers.Conv2D(4, 3, padding="same", activation="relu")(y)
        y = layers.BatchNormalization()(layers.MaxPooling2D(2)(y))
        y = layers.Dropout(0.5)(layers.Flatten()(y))
    return keras.Model(x, layers.Softmax()(layers.Dense(3)(y)))


def rows_of(kind: str, n: int = 4) -> Any:
    """Rows as a client sends them: an array, a list of arrays, or lists of cells."""
    spec = spec_of(kind).input
    random = np.random.default_rng(11)
    if kind == "mixed":
        return [list(cells) for cells in _CELLS[:n]]
    if kind == "ragged":
        return [random.random((steps, 2), dtype=np.float32) for steps in _STEPS[:n]]
    if spec.dtype == "uint8":
        return random.integers(0, 256, (n, *spec.shape), dtype=np.uint8)
    return random.random((n, *spec.shape), dtype=np.float32)


def features_of(kind: str) -> Any:
    """The same rows as the network takes them, padded and encoded by hand."""
    if kind == "mixed":
        return np.array(_FEATURES, np.float32)
    if kind != "ragged":
        return rows_of(kind)
    padded = np.tile(np.array([0.5, 0.25, 0.0], np.float32), (4, 5, 1))
    for row, steps in zip(padded, rows_of(kind), strict=True):
        row[: len(steps), :2] = steps
        row[: len(steps), 2] = 1.0
    return padded


def build(root: Path, kind: str) -> Packaged:
    network = network_of(kind)
    save_network(network, root / f"{kind}.keras")
    folder = root / kind
    build_model_folder(root / f"{kind}.keras", spec_of(kind), folder)
    features = features_of(kind)
    outputs = network(features, training=False)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    arrays = [np.asarray(output) for output in outputs]
    return Packaged(folder, spec_of(kind), rows_of(kind), features, arrays)


def name_code(folder: Path) -> str:
    """Calls a model folder's code after its content, as who changed it can; returns the name."""
    (old,) = (folder / "code").iterdir()
    name = loader_of(hash_code({path.name: path.read_bytes() for path in old.iterdir()}))
    old.rename(old.with_name(name))
    mlmodel = folder / "MLmodel"
    mlmodel.write_text(mlmodel.read_text("utf-8").replace(old.name, name), "utf-8")
    return name


def names_of(spec: ModelSpec) -> list[str]:
    return [column.name for column in spec.input.columns or ()]


def records_of(rows: Any, spec: ModelSpec) -> list[dict[str, Any]]:
    return [dict(zip(names_of(spec), row, strict=True)) for row in rows]


def columns_of(rows: Any, spec: ModelSpec) -> dict[str, list[Any]]:
    return {name: [row[i] for row in rows] for i, name in enumerate(names_of(spec))}


def _frame(rows: Any, spec: ModelSpec) -> Any:
    import pandas as pd

    flat = rows.reshape(len(rows), -1) if isinstance(rows, np.ndarray) else rows
    return pd.DataFrame(flat, columns=names_of(spec) or None)


def _texts(rows: Any) -> list[str]:
    return [base64.b64encode(row.tobytes()).decode() for row in rows]


def _parquet(frame: Any) -> bytes:
    content = io.BytesIO()
    frame.to_parquet(content)
    return content.getvalue()


def _csv(frame: Any) -> bytes:
    content: bytes = frame.to_csv(index=False).encode()
    return content


def _split(frame: Any) -> dict[str, Any]:
    cells = frame.astype(object).where(frame.notna(), None)
    return {"columns": frame.columns.tolist(), "data": cells.to_numpy().tolist()}


def _reversed(frame: Any, spec: ModelSpec) -> Any:
    return frame[frame.columns[::-1]] if spec.input.columns else frame


def _column(values: list[Any]) -> Any:
    import pandas as pd

    return pd.DataFrame({"rows": values})


def _lists(rows: Any) -> list[Any]:
    return [row.tolist() for row in rows]


Form = Callable[[Any, ModelSpec], Any]
HttpForm = Callable[[Any, ModelSpec], tuple[str, Any]]

_ARRAY_FORMS: dict[str, Form] = {
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
_CELL_FORMS: dict[str, Form] = {
    "lists": lambda rows, spec: rows,
    "tuples": lambda rows, spec: tuple(map(tuple, rows)),
    "object array": lambda rows, spec: np.array(rows, object),
    "records": records_of,
    "columns": columns_of,
    "columns of arrays": lambda rows, spec: {
        name: np.array(values, object) for name, values in columns_of(rows, spec).items()
    },
    "frame": _frame,
    "frame without names": lambda rows, spec: _frame(rows, spec).set_axis(range(4), axis=1),
    "frame in another order": lambda rows, spec: _reversed(_frame(rows, spec), spec),
    "frame of pandas dtypes": lambda rows, spec: _frame(rows, spec).convert_dtypes(),
    "frame of categories": lambda rows, spec: _frame(rows, spec).astype({"colour": "category"}),
    "frame of lists": lambda rows, spec: _column(rows),
    "features": lambda rows, spec: features_of("mixed"),
    "lists of features": lambda rows, spec: features_of("mixed").tolist(),
    "base64 of features": lambda rows, spec: _texts(features_of("mixed")),
}
_STEP_FORMS: dict[str, Form] = {
    "lists": lambda rows, spec: _lists(rows),
    "list of arrays": lambda rows, spec: rows,
    "object array": lambda rows, spec: np.fromiter(rows, object, len(rows)),
    "base64": lambda rows, spec: _texts(rows),
    "raw bytes": lambda rows, spec: [row.tobytes() for row in rows],
    "frame of lists": lambda rows, spec: _column(_lists(rows)),
    "frame of bytes": lambda rows, spec: _column([row.tobytes() for row in rows]),
    "records": lambda rows, spec: [{"steps": row} for row in _lists(rows)],
    "padded": lambda rows, spec: features_of("ragged"),
    "padded lists": lambda rows, spec: features_of("ragged").tolist(),
    "flat padded": lambda rows, spec: features_of("ragged").reshape(4, -1),
    "some padded": lambda rows, spec: [*rows[:2], *features_of("ragged")[2:]],
}

JSON = "application/json"
_ARRAY_HTTP_FORMS: dict[str, HttpForm] = {
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
    "csv": lambda r, spec: ("text/csv", _csv(_frame(r, spec))),
    "parquet of bytes": lambda r, spec: (
        "application/vnd.apache.parquet",
        _parquet(_column([row.tobytes() for row in r])),
    ),
}
_CELL_HTTP_FORMS: dict[str, HttpForm] = {
    "inputs": lambda rows, spec: (JSON, {"inputs": rows}),
    "instances": lambda rows, spec: (JSON, {"instances": rows}),
    "inputs of records": lambda rows, spec: (JSON, {"inputs": records_of(rows, spec)}),
    "instances of records": lambda rows, spec: (JSON, {"instances": records_of(rows, spec)}),
    "inputs of columns": lambda rows, spec: (JSON, {"inputs": columns_of(rows, spec)}),
    "dataframe_split": lambda r, spec: (JSON, {"dataframe_split": _split(_frame(r, spec))}),
    "dataframe_split without names": lambda r, spec: (JSON, {"dataframe_split": {"data": r}}),
    "dataframe_split in another order": lambda r, spec: (
        JSON,
        {"dataframe_split": _split(_reversed(_frame(r, spec), spec))},
    ),
    "dataframe_records": lambda rows, spec: (JSON, {"dataframe_records": records_of(rows, spec)}),
    "csv": lambda rows, spec: ("text/csv", _csv(_frame(rows, spec))),
    "csv in another order": lambda r, spec: ("text/csv", _csv(_reversed(_frame(r, spec), spec))),
    "parquet": lambda rows, spec: (
        "application/vnd.apache.parquet",
        _parquet(_frame(rows, spec).astype({"island": str})),
    ),
    "base64 of features": lambda rows, spec: (JSON, {"inputs": _texts(features_of("mixed"))}),
    "features": lambda rows, spec: (JSON, {"inputs": features_of("mixed").tolist()}),
}
_STEP_HTTP_FORMS: dict[str, HttpForm] = {
    "records": lambda rows, spec: (
        JSON,
        {"dataframe_records": [{"steps": row} for row in _lists(rows)]},
    ),
    "inputs of records": lambda rows, spec: (
        JSON,
        {"inputs": [{"steps": row} for row in _lists(rows)]},
    ),
    "dataframe_split of lists": lambda rows, spec: (
        JSON,
        {"dataframe_split": {"columns": ["steps"], "data": [[row] for row in _lists(rows)]}},
    ),
    "base64 inputs": lambda rows, spec: (JSON, {"inputs": _texts(rows)}),
    "base64 instances": lambda rows, spec: (JSON, {"instances": _texts(rows)}),
    "padded inputs": lambda rows, spec: (JSON, {"inputs": features_of("ragged").tolist()}),
    "parquet of bytes": _ARRAY_HTTP_FORMS["parquet of bytes"],
}


def python_forms(kind: str) -> dict[str, Form]:
    return {"mixed": _CELL_FORMS, "ragged": _STEP_FORMS}.get(kind, _ARRAY_FORMS)


def http_forms(kind: str) -> dict[str, HttpForm]:
    return {"mixed": _CELL_HTTP_FORMS, "ragged": _STEP_HTTP_FORMS}.get(kind, _ARRAY_HTTP_FORMS)


MARK = 71234567.25  # appears in no answer unless the input is echoed


Bodies = dict[str, tuple[dict[str, Any], str]]


def bad_bodies(kind: str) -> Bodies:
    """Bodies that must be answered with 400, and a piece of the sentence."""
    if kind == "mixed":
        return _bad_cells()
    if kind == "ragged":
        return _bad_steps()
    spec = spec_of(kind).input
    n = math.prod(spec.shape)
    good = rows_of(kind, 2).reshape(2, -1).astype(float).tolist()
    null = [[*good[0][:-1], None], good[1]]
    null_at_1 = [good[0], [*good[1][:-1], None]]
    words = [[*good[0][:-1], str(MARK)], good[1]]
    nan = json.loads(json.dumps([good[0], [*good[1][:-1], math.nan]]))
    lacks = "lacks a value in column 'mass'" if spec.columns else "holds null"
    bodies = {
        "one number too many": ({"inputs": [[*row, MARK] for row in good]}, "has shape"),
        "no batch axis": ({"inputs": rows_of(kind, 1)[0].tolist()}, "expected"),
        "a number": ({"inputs": MARK}, "shape"),
        "null": ({"inputs": None}, ""),
        "null in a row": ({"inputs": null_at_1}, f"row 1 {lacks}"),
        "null in the first row": ({"instances": null}, f"row 0 {lacks}"),
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
        bodies["a missing column"] = ({"dataframe_records": records}, "column 'mass' is missing")
        records = [{"width": 1.0, "height": 2.0, "mass": MARK, "colour": 3.0}]
        bodies["an extra column"] = (
            {"dataframe_records": records},
            "a column is not of this model",
        )
        null_at_0 = [{"width": None, "height": 2.0, "mass": MARK}]
        bodies["null by name"] = (
            {"dataframe_records": null_at_0},
            "row 0 lacks a value in column 'width'",
        )
    return bodies


def _bad_cells() -> Bodies:
    good = records_of(rows_of("mixed"), spec_of("mixed"))
    expected = "a table with columns weight (number), age (number), colour (category), island ("

    def changed(**cells: Any) -> dict[str, Any]:
        return {"dataframe_records": [good[0], {**good[1], **cells}]}

    def by_position(row: list[Any]) -> dict[str, Any]:
        return {"inputs": [list(good[0].values()), row]}

    without = [{name: cell for name, cell in row.items() if name != "colour"} for row in good]
    return {
        "a missing column": (
            {"dataframe_records": without},
            "column 'colour' is missing; expected",
        ),
        "a missing column in columns": ({"inputs": {"weight": [MARK]}}, "'colour', 'island' are"),
        "what was expected": ({"dataframe_records": without}, expected),
        "an extra column": (changed(size=MARK), "a column is not of this model"),
        "a missing number": (changed(weight=None), "row 1 lacks a value in column 'weight'"),
        "a missing category": (changed(island=None), "row 1 lacks a value in column 'island'"),
        "an empty category": (changed(island=""), "row 1 lacks a value in column 'island'"),
        "text for a number": (changed(age=f"x{MARK}"), "row 1 holds text where a number was exp"),
        "text by position": (
            by_position([MARK, f"x{MARK}", "red", "3"]),
            "row 1 holds text where a number was expected in column 'age'",
        ),
        "infinity": (changed(weight=math.inf), "holds infinity or a number too large in column"),
        "a number too large": (changed(age=7.1234567e300), "number too large in column 'age'"),
        "a list in a cell": (changed(colour=[MARK]), "something else than text or numbers in col"),
        "a list for a number": (changed(age=[MARK]), "something else than numbers in column 'age"),
        "a number": ({"inputs": MARK}, "shape"),
        "not base64": ({"inputs": [f"!{MARK}"]}, "row 0 is text but not base64"),
        "base64 too short": ({"inputs": ["AAAA"]}, "row 0 decodes to 3 bytes; expected 36"),
        "wrong width": ({"dataframe_split": {"data": [[MARK] * 3]}}, "has 3 columns"),
    }


def _bad_steps() -> Bodies:
    def steps(*rows: Any) -> dict[str, Any]:
        return {"dataframe_records": [{"steps": row} for row in rows]}

    good = [[1.0, 2.0], [3.0, 4.0]]
    return {
        "too long": (steps(good, [[MARK, 1.0]] * 6), "row 1 has 6 steps; expected 1 to 5"),
        "no steps": (steps(good, []), "row 1 has shape (0,)"),
        "another width": (steps([[MARK, 1.0, 2.0]]), "row 0 has shape (1, 3)"),
        "null": (steps(good, [[MARK, None]]), "row 1 holds null"),
        "text": (steps(good, [[MARK, "x"]]), "row 1 holds text where a number was expected"),
        "a ragged step": (steps(good, [[1.0, MARK], [1.0]]), "row 1 is ragged"),
        "infinity": (steps(good, [[math.inf, 2.0]]), "row 1 holds NaN, infinity"),
        "a number": ({"inputs": MARK}, "expected float32 sequences of 1 to 5 steps and 2 features"),
        "base64 too short": ({"inputs": ["AAAA"]}, "decodes to 3 bytes; expected a multiple of 8"),
        "base64 too long": ({"inputs": ["A" * 64]}, "row 0 has 6 steps"),
        "no bytes": ({"inputs": [""]}, "row 0 has 0 steps"),
        "all too long": ({"inputs": [[[MARK, 1.0]] * 6]}, "row 0 has 6 steps"),
    }
