"""Files as a user brings them, made from real data that ships in installed packages."""

from __future__ import annotations

import io
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

PICTURES = ("china", "flower")
DIGITS = (1, 7)
SHORTEST, LONGEST = 40, 96
"""Pixels of a crop's side."""


def write_penguins(path: Path) -> None:
    """Copies the table of the package palmerpenguins.

    344 penguins: text and numbers; cells of five columns are missing, written as NA or empty.
    """
    path.write_bytes((files("palmerpenguins") / "data" / "penguins.csv").read_bytes())


def write_pictures(folder: Path, n: int, seed: int = 0) -> None:
    """Writes n crops, PNG and JPEG by turns, of each of scikit-learn's two photographs.

    Their heights and widths differ.
    """
    rng = np.random.default_rng(seed)
    for name in PICTURES:
        (folder / name).mkdir(parents=True)
        source = files("sklearn.datasets") / "images" / f"{name}.jpg"
        photograph = Image.open(io.BytesIO(source.read_bytes()))
        for i in range(n):
            height, width = rng.integers(SHORTEST, LONGEST, endpoint=True, size=2).tolist()
            left = int(rng.integers(photograph.width - width))
            top = int(rng.integers(photograph.height - height))
            crop = photograph.crop((left, top, left + width, top + height))
            crop.save(folder / name / f"{i:03}.{'jpg' if i % 2 else 'png'}")


def write_strokes(path: Path, classes: tuple[int, ...]) -> None:
    """Writes scikit-learn's digits of some classes, read column by column.

    A sequence goes from the first column with ink to the last, so that lengths differ; a step is
    the 8 pixels of a column.
    """
    images, labels = load_digits(return_X_y=True)
    chosen = np.isin(labels, classes)
    sequences = [_inked_columns(row.reshape(8, 8)) for row in images[chosen]]
    np.savez(
        path,
        x=np.concatenate(sequences).astype(np.float32),
        lengths=[len(steps) for steps in sequences],
        y=labels[chosen],
    )


def _inked_columns(image: np.ndarray) -> np.ndarray:
    inked = np.flatnonzero(image.any(axis=0))
    return image.T[inked[0] : inked[-1] + 1]
