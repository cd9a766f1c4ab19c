"""Made-up subjects of figures, and what is asked of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.figures import Subject
from mlops.inputs import Column, InputSpec

IMAGE = InputSpec("image", (4, 4, 1), "float32", None, 0.0, 16.0, (8.0,), (4.0,))
SEQUENCE = InputSpec("sequence", (2, 2), "float32", None, 0.0, 1.0, (0.0,) * 2, (1.0,) * 2)
TABLE = InputSpec(
    "table",
    (3,),
    "float32",
    (Column("width"), Column("colour", ("blue", "red"))),
    0.0,
    1.0,
    (0.0,) * 3,
    (1.0,) * 3,
)


def make_subject(
    probabilities: Any, labels: Any, data: InputSpec = IMAGE, names: Any = None, **changed: Any
) -> Subject:
    """A classifier that has answered so; its rows are numbered in each of their values."""
    answers = np.array(probabilities, np.float32)
    numbers = np.arange(len(answers), dtype=np.float32)
    rows = np.broadcast_to(numbers.reshape(-1, *[1] * len(data.shape)), (len(answers), *data.shape))
    fields: dict[str, Any] = {
        "network": None,
        "task": "classifier",
        "data": data,
        "rows": rows,
        "labels": np.array(labels),
        "class_names": tuple(names or map(str, range(answers.shape[1]))),
        "outputs": [answers],
    }
    return Subject(**fields | changed)


def make_answers(n: int, n_classes: int, seed: int = 0) -> tuple[Any, Any]:
    """Probabilities and labels of a classifier that is often right."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(n) % n_classes)
    logits = random.normal(size=(n, n_classes))
    logits[np.arange(n), labels] += 1.5
    odds = np.exp(logits)
    return odds / odds.sum(axis=1, keepdims=True), labels


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def check_pictures(folder: Path) -> None:
    """Each PNG there can be read, is neither tiny nor huge, and shows something."""
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L"))
        assert 200 < pixels.shape[1] < 2000 and 150 < pixels.shape[0] < 2000, path.name
        assert 0.01 < (pixels < 250).mean() < 0.95, path.name
