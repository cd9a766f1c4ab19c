"""Subjects of figures: tiny networks without training, and made-up rows of every kind."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from experiments.architectures import open_architecture
from experiments.built_in import BUILT_IN
from experiments.figures import Subject
from mlops.evaluation import scale_constants
from mlops.inputs import Column, InputSpec

COLUMNS = (Column("width"), Column("colour", ("blue", "green"), "flagged"), Column("height"))
SPECS = {
    "image": InputSpec("image", (8, 8, 1), "float32", None, 0.0, 16.0, (4.9,), (36.0,)),
    "colour": InputSpec("image", (6, 9, 3), "uint8", None, 0.0, 255.0, (99.0,) * 3, (9.0,) * 3),
    "table": InputSpec(
        *("table", (5,), "float32", COLUMNS, -1.0, 9.0),
        *((2.0, 0.0, 0.0, 0.0, 3.0), (1.0, 1.0, 1.0, 1.0, 4.0)),
    ),
    "unnamed": InputSpec("table", (4,), "float32", None, -1.0, 9.0, (2.0,) * 4, (1.0,) * 4),
    "sequence": InputSpec("sequence", (6, 2), "float32", None, 0.0, 9.0, (2.0,) * 2, (1.0,) * 2),
    "ragged": InputSpec(
        *("sequence", (6, 3), "float32", None, 0.0, 9.0, (2.0, 2.0, 0.0), (1.0,) * 3, True)
    ),
}
NAMES = ("ant", "bee", "cat")


def rows_of(data: InputSpec, n: int) -> np.ndarray:
    random = np.random.default_rng(n)
    if data.dtype == "uint8":
        return random.integers(0, 256, (n, *data.shape), dtype=np.uint8)
    rows = random.uniform(0, 8, (n, *data.shape)).astype(np.float32)
    if data.ragged:
        own = np.arange(data.shape[0]) < random.integers(1, data.shape[0] + 1, (n, 1))
        padding = np.float32([*data.mean[:-1], 0.0])
        rows[..., -1] = 1.0
        rows = np.where(own[..., None], rows, padding)
    return rows


def subject_of(
    kind: str,
    architecture: str,
    n: int = 18,
    *,
    labels: Any = True,
    may_show_rows: bool = False,
    **params: Any,
) -> Subject:
    """Returns a subject of n rows, a third of each class; its network has its initial weights."""
    data = SPECS[kind]
    one = open_architecture(BUILT_IN[architecture])
    keras.utils.set_random_seed(5)
    model = one.build({**one.baseline(data), **params}, data, len(NAMES))
    network = one.to_package(model)
    rows = rows_of(data, n)
    answers = network(rows, training=False)
    answers = answers if isinstance(answers, (list, tuple)) else [answers]
    own = np.arange(n) % len(NAMES) if labels is True else labels
    return Subject(
        network=network,
        task=one.task,
        data=data,
        rows=rows,
        labels=own,
        class_names=NAMES,
        outputs=[np.asarray(answer) for answer in answers],
        may_show_rows=may_show_rows,
        likelihood=one.likelihood(data),
    )


def standardised(data: InputSpec, rows: np.ndarray) -> np.ndarray:
    offset, scale = scale_constants(data)
    return (rows - offset) / scale
