"""The validation rows that a classifier is most sure of and wrong about; only with `--log-rows`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from experiments.figures import Subject
from experiments.figures.canvas import label, new_canvas, save, write_table
from experiments.figures.classifier import read_answers
from mlops.evaluation import named_classes
from mlops.inputs import InputSpec

MOST_PICTURES: Final = 16
MOST_ROWS: Final = 50


def find_mistakes(
    probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Returns the indices of the rows that are named wrongly, the surest first."""
    named = named_classes(probabilities)
    wrong = np.flatnonzero((named >= 0) & (named != labels))
    sure = probabilities[wrong].max(axis=1, initial=0.0)
    return wrong[np.argsort(-sure, kind="stable")]


def draw_mistakes(subject: Subject, folder: Path) -> None:
    """Writes mistakes.png of images, mistakes.csv of tables and sequences.

    Nothing where rows may not be shown, or where no row is named wrongly.
    """
    found = read_answers(subject)
    if found is None or not subject.may_show_rows:
        return
    probabilities, labels = found
    wrong = find_mistakes(probabilities, labels)
    if not len(wrong):
        return
    named = probabilities.argmax(axis=1)
    sure = probabilities.max(axis=1)
    names = subject.class_names
    if subject.data.kind != "image":
        rows = (
            [
                names[labels[one]],
                names[named[one]],
                round(float(sure[one]), 6),
                *subject.rows[one].ravel().tolist(),
            ]
            for one in wrong[:MOST_ROWS].tolist()
        )
        head = ["true class", "named class", "confidence", *_name_features(subject.data)]
        write_table(folder / "mistakes.csv", head, rows)
        return
    titles = [
        f"true {label(names[labels[one]], 16)}\n"
        f"named {label(names[named[one]], 12)}: {sure[one]:.3f}"
        for one in wrong[:MOST_PICTURES].tolist()
    ]
    pictures = [to_picture(subject.rows[one], subject.data) for one in wrong[:MOST_PICTURES]]
    canvas = _draw_pictures(pictures, titles)
    canvas.suptitle(
        f"the surest {len(pictures)} of {len(wrong)} mistakes on {len(labels)} validation rows",
        fontsize=11,
    )
    save(canvas, folder / "mistakes.png")


def _draw_pictures(pictures: list[npt.NDArray[np.float64]], titles: list[str]) -> Any:
    across = min(4, len(pictures))
    down = -(-len(pictures) // across)
    canvas = new_canvas(max(4.6, 1.9 * across), 0.5 + 2.0 * down)
    for axes in (grid := canvas.subplots(down, across, squeeze=False).ravel()):
        axes.axis("off")
    for axes, picture, title in zip(grid, pictures, titles, strict=False):
        axes.imshow(picture, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
        axes.set_title(title, fontsize=8)
    return canvas


def to_picture(row: npt.NDArray[Any], data: InputSpec) -> npt.NDArray[np.float64]:
    """Returns an image as matplotlib shows it: in [0, 1], (height, width) or with 3 channels.

    Of other numbers of channels it is their mean.
    """
    low, high = (0.0, 255.0) if data.dtype == "uint8" else (data.low, data.high)
    scaled = np.clip((row.astype(np.float64) - low) / ((high - low) or 1.0), 0.0, 1.0)
    return scaled if scaled.shape[-1] == 3 else scaled.mean(axis=-1)


def _name_features(data: InputSpec) -> list[str]:
    """Returns a name for each number of a row, as a network takes it."""
    if data.columns is not None:
        return [name for column in data.columns for name in column.features]
    places = np.ndindex(data.shape)
    if len(data.shape) == 1:
        return [f"feature {place[0]}" for place in places]
    return [f"step {place[0]} feature {place[1]}" for place in places]
