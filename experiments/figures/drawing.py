"""Which figures there are, and the drawing of all of them, in a process that has Keras."""

from __future__ import annotations

import importlib
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from experiments.built_in import Task
from experiments.figures import Figure, Subject
from mlops.data import Dataset
from mlops.errors import first_line

FIGURES: Final = (
    "experiments.figures.classifier:draw_confusion",
    "experiments.figures.classifier:draw_per_class",
    "experiments.figures.classifier:draw_calibration",
    "experiments.figures.ranking:draw_ranking",
    "experiments.figures.mistakes:draw_mistakes",
    "experiments.figures.attribution:draw_attributions",
    "experiments.figures.vae:draw_reconstructions",
    "experiments.figures.vae:draw_scores",
    "experiments.figures.latent:draw_latent_map",
    "experiments.figures.latent:draw_latent_use",
    "experiments.figures.latent:draw_samples",
)
"""`module:function` of each `Figure`; imported where something is drawn."""

BATCH: Final = 512
MOST_ROWS: Final = 20_000
MOST_BYTES: Final = 2**28
"""Of validation rows that figures are drawn from; of more, as many are drawn by lot."""

_log = logging.getLogger(__name__)


def draw(subject: Subject, folder: Path, figures: Sequence[str] = FIGURES) -> list[str]:
    """Draws all figures of a network into a folder that is there.

    Each gets an empty folder of its own first, so that one that fails leaves nothing behind.

    Returns:
        A sentence for each figure that could not be drawn.
    """
    problems = []
    for path in figures:
        with tempfile.TemporaryDirectory(prefix="podium-") as scratch:
            try:
                _find(path)(subject, Path(scratch))
                for file in Path(scratch).iterdir():
                    shutil.move(file, folder / file.name)
            except Exception as err:
                _log.warning("%s failed", path, exc_info=True)
                name = path.partition(":")[2].removeprefix("draw_")
                problems.append(f"{name}: {type(err).__name__}: {first_line(err)}"[:300])
    return problems


def _find(path: str) -> Figure:
    module, _, name = path.partition(":")
    figure: Figure = getattr(importlib.import_module(module), name)
    return figure


def make_subject(
    network: Any, dataset: Dataset, task: Task, likelihood: str | None, may_show_rows: bool
) -> Subject:
    """Asks a packaged network the validation rows of its dataset."""
    from mlops.scoring import compile_forward

    rows, labels = dataset.part("val")
    chosen = _choose(len(rows), rows[:1].nbytes)
    rows, labels = rows[chosen], labels[chosen]
    forward = compile_forward(network, dataset.input.shape, dataset.input.dtype)
    answers = [forward(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)]
    return Subject(
        network=network,
        task=task,
        data=dataset.input,
        rows=rows,
        labels=labels,
        class_names=dataset.class_names,
        outputs=[np.concatenate(parts) for parts in zip(*answers, strict=True)],
        may_show_rows=may_show_rows,
        likelihood=likelihood,
    )


def _choose(n_rows: int, row_bytes: int) -> np.ndarray:
    """Returns the indices, ascending, of the rows that are drawn from."""
    n_wanted = max(1, min(n_rows, MOST_ROWS, MOST_BYTES // max(1, row_bytes)))
    if n_wanted == n_rows:
        return np.arange(n_rows)
    return np.sort(np.random.default_rng(0).choice(n_rows, n_wanted, replace=False))
