"""Golden requests: what a release answered when it was made, and must still answer.

They are made up from what the model says of its rows, never taken from data, so that they may lie
in a release's folder for everybody to see. Whoever loads a release asks them before it serves.
"""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlops.errors import refuse_model
from mlops.inputs import Column, InputSpec

GOLDEN: Final = "golden.json"
FORMAT: Final = 1
RTOL: Final = 1e-3
ATOL: Final = 1e-4
"""Another processor rounds otherwise. That weights are the same is what the signature says."""

_MAX_BYTES: Final = 1 << 20
_MISSING: Final = 1 / 8
"""Share of the cells left empty where they may be."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """Requests and the answers they got.

    Attributes:
        requests: n rows, for the key "inputs" of a request in JSON.
        answers: float64: probabilities (n, classes) of a classifier, anomaly scores (n,) of a VAE,
            in nats.
    """

    requests: list[Any]
    answers: Floats


def golden_requests(spec: InputSpec, seed: int = 0, n: int = 8) -> list[Any]:
    """Returns made-up rows that are like those a model was trained on, as JSON has them.

    Each value is drawn from a normal distribution of its feature's mean and variance, and kept
    between the lowest and the highest value of the training rows. Tables with columns are lists of
    cells; every other row is base64 of its raw little-endian bytes.

    Args:
        spec: What one row is.
        seed: The same seed gives the same rows.
        n: How many; fewer, but one, where that many take more than 1 MiB.
    """
    random = np.random.default_rng(seed)
    if spec.columns is not None:
        return [_cells(spec, random) for _ in range(n)]
    n_bytes = math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
    n = max(1, min(n, _MAX_BYTES // n_bytes))
    return [base64.b64encode(_row(spec, random)).decode("ascii") for _ in range(n)]


def cell_moments(spec: InputSpec) -> tuple[Floats, Floats]:
    """Returns mean and standard deviation of a row's last axis, as clients send rows.

    One a column of a table, where that of categories has a deviation of 0; else one a feature. What
    is padding or says that something is missing is not sent, and has none.
    """
    mean, deviation = np.array(spec.mean), np.sqrt(spec.variance)
    if spec.ragged:
        return mean[:-1], deviation[:-1]
    if spec.columns is None:
        return mean, deviation
    widths = [len(column.features) for column in spec.columns]
    first = np.cumsum([0, *widths[:-1]])
    is_number = np.array([column.categories is None for column in spec.columns])
    return mean[first], np.where(is_number, deviation[first], 0.0)


def write_golden(folder: Path, golden: Golden) -> Path:
    """Writes golden.json into a model folder and returns its path."""
    path = folder / GOLDEN
    value = {"format": FORMAT, "inputs": golden.requests, "answers": golden.answers.tolist()}
    path.write_text(json.dumps(value) + "\n", encoding="ascii")
    return path


def read_golden(folder: Path) -> Golden:
    """Reads what `write_golden` wrote.

    Raises:
        StructureError: It is not there, or it is anything else.
    """
    try:
        value = json.loads((folder / GOLDEN).read_text(encoding="utf-8"))
        answers = np.array(value["answers"], dtype=np.float64)
        if value["format"] != FORMAT or answers.ndim not in (1, 2):
            raise ValueError("another format")
        if len(value["inputs"]) != len(answers) or not len(answers):
            raise ValueError("not one answer a request")
    except FileNotFoundError as err:
        refuse_model(GOLDEN, "is missing", err)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as err:
        refuse_model(GOLDEN, f"holds no golden requests ({type(err).__name__})", err)
    return Golden(value["inputs"], answers)


def compare(golden: Golden, answers: Floats) -> str | None:
    """Returns how far answers are from the golden ones; None where they are as good as the same.

    The same is `|answer - golden| <= ATOL + RTOL * |golden|`, for each number.
    """
    wanted = golden.answers
    if answers.shape != wanted.shape:
        return f"answers of shape {answers.shape}; expected {wanted.shape}"
    with np.errstate(invalid="ignore"):
        off = np.abs(answers - wanted)
    good = off <= ATOL + RTOL * np.abs(wanted)  # False where one is NaN
    if good.all():
        return None
    worst = np.unravel_index(np.argmax(np.where(good, -1.0, off)), off.shape)
    rows = int((~good).reshape(len(good), -1).any(axis=1).sum())
    return (
        f"{rows} of {len(good)} golden rows are answered otherwise, row {worst[0]} most: expected "
        f"{wanted[worst]:.6g}, got {answers[worst]:.6g}"
    )


def _row(spec: InputSpec, random: np.random.Generator) -> bytes:
    mean, deviation = cell_moments(spec)
    shape = (*spec.shape[:-1], len(mean))
    if spec.ragged:
        shape = (int(random.integers(1, spec.shape[0], endpoint=True)), len(mean))
    values = np.clip(random.normal(mean, deviation, shape), spec.low, spec.high)
    if spec.dtype == "uint8":
        values = np.rint(values)
    return values.astype(np.dtype(spec.dtype).newbyteorder("<")).tobytes()


def _cells(spec: InputSpec, random: np.random.Generator) -> list[Any]:
    assert spec.columns is not None
    values = np.clip(random.normal(*cell_moments(spec)), spec.low, spec.high).astype(np.float32)
    return [
        _cell(column, float(value), random)
        for column, value in zip(spec.columns, values, strict=True)
    ]


def _cell(column: Column, value: float, random: np.random.Generator) -> str | float | None:
    if column.missing != "refused" and random.random() < _MISSING:
        return None
    if column.categories is None:
        return value
    return column.categories[random.integers(len(column.categories))]
