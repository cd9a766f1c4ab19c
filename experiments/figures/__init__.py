"""What a trained network is like, drawn: files that its run keeps under `plots/`.

A figure is a function: it takes a `Subject` and an empty folder's path, and writes files there, PNG
for people and CSV or JSON for programs. It draws nothing where the subject is not of its kind. The
workers draw, since they have Keras; a failure to draw costs a sweep nothing but the figure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.built_in import Task
from mlops.inputs import InputSpec

FOLDER = "plots"
"""Where a run has its figures, among its artifacts."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A trained network and the validation rows that it is shown on.

    Attributes:
        network: The packaged Keras network (`Architecture.to_package`), of float32.
        task: What it answers.
        data: What a row is.
        rows: (n, *data.shape) of data.dtype: the validation rows.
        labels: (n,) index of the true class of each; None where there are none.
        class_names: Of the classes, in the order of the labels.
        outputs: What the network answers to the rows: [probabilities (n, classes)] of a classifier;
            of a VAE what its packaged network returns, each (n, ...).
        may_show_rows: Whether figures may show rows (`--log-rows`); else only sums over rows.
        likelihood: Of a VAE: "bernoulli" or "gaussian"; None of a classifier.
    """

    network: Any
    task: Task
    data: InputSpec
    rows: npt.NDArray[Any]
    labels: npt.NDArray[np.int64] | None
    class_names: tuple[str, ...]
    outputs: list[npt.NDArray[np.float32]]
    may_show_rows: bool = False
    likelihood: str | None = None


Figure = Callable[[Subject, Path], None]
