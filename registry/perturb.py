"""Test rows changed a little, to see what a model's answers are worth on rows like them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np

from mlops.data import PARTS, Dataset
from mlops.inputs import InputSpec
from registry.golden import cell_moments

NOISE: Final = 0.1
"""Standard deviation of the noise, as a share of that of the feature over the training rows."""


def changed_requests(dataset: Dataset, seed: int = 0) -> dict[str, Any]:
    """Returns the test rows, each way of changing them a little, as a client sends them.

    The same dataset and seed give the same rows, so that two models are asked the same.

    Returns:
        "noise": with `add_noise`. "shift": with `shift`, for images only.
    """
    index = np.flatnonzero(dataset.split == PARTS.index("test"))
    x = dataset.x[index]
    changed = {"noise": add_noise(x, dataset.input, np.random.default_rng(seed))}
    if dataset.input.kind == "image":
        changed["shift"] = shift(x)
    test = replace(dataset, x=x, y=dataset.y[index], split=dataset.split[index])
    return {name: replace(test, x=rows).requests("test") for name, rows in changed.items()}


def add_noise(x: np.ndarray, spec: InputSpec, random: np.random.Generator) -> np.ndarray:
    """Returns rows with normal noise on each number, of `NOISE` standard deviations of its feature.

    Categories, what is missing and the lengths of sequences stay. Bytes stay whole numbers from 0
    to 255, pixels of other images between the lowest and the highest of the training rows.

    Args:
        x: (n, ...) as `Dataset.x` has them; the result is of the same shape and dtype.
    """
    _, deviation = cell_moments(spec)
    if spec.ragged:
        deviation = np.append(deviation, 0.0)  # what says which steps are padding
    noise = random.standard_normal(x.shape, np.float32) * (NOISE * deviation).astype(np.float32)
    noisy = x + noise
    if spec.dtype == "uint8":
        return np.rint(np.clip(noisy, 0, 255)).astype(np.uint8)
    return np.clip(noisy, spec.low, spec.high) if spec.kind == "image" else noisy


def shift(images: np.ndarray) -> np.ndarray:
    """Returns images (n, height, width, channels) moved to the right and down by one pixel.

    The pixels that come in from the edge are those that stood there.
    """
    return np.pad(images, ((0, 0), (1, 0), (1, 0), (0, 0)), mode="edge")[:, :-1, :-1]
