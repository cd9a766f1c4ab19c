"""Rows known by name: scikit-learn's digits, and the datasets of `keras.datasets`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import numpy as np

from mlops.errors import DataError
from mlops.rows import Place, Rows, stored_rows
from mlops.settings import QUIET
from mlops.sources.arrays import checked_arrays, read_arrays
from mlops.sources.files import one_line

CLASS_NAMES: Final = {
    "cifar10": [
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ],
    "fashion_mnist": [
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ],
}
"""What the labels 0 to 9 stand for; those of MNIST stand for themselves."""
DOWNLOAD_TIMEOUT_S = 1800.0

# A child, because `import keras.datasets` imports TensorFlow.
KERAS_CHILD = """
import importlib, sys
import numpy as np
train, test = importlib.import_module("keras.datasets." + sys.argv[1]).load_data()
np.savez(sys.argv[2], x_train=train[0], y_train=train[1], x_test=test[0], y_test=test[1])
"""


def read_digits() -> Rows:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = stored_rows(digits.images[..., np.newaxis], Place("digits", "x"))
    return Rows("digits", "digits (scikit-learn)", "digits", x, digits.target.astype(np.int64))


def read_keras(name: str) -> Rows:
    with tempfile.TemporaryDirectory(prefix="podium-") as folder:
        path = Path(folder, "rows.npz")
        _fetch_keras(name, path)
        with path.open("rb") as file:
            return named_rows(name, f"keras.datasets.{name}", name, read_arrays(file, name))


def named_rows(name: str, source: str, where: str, arrays: dict[str, np.ndarray]) -> Rows:
    """Returns the rows of a named dataset: the same from Keras as from an archive.

    Args:
        name: cifar10, mnist or fashion_mnist.
        source: For the record.
        where: What messages call it.
        arrays: x_train, y_train, x_test and y_test; labels are integers.
    """
    x, labels, is_test = checked_arrays(arrays, where)
    if x.ndim == 3:
        x = x[..., np.newaxis]
    if name in CLASS_NAMES:
        names = np.array(CLASS_NAMES[name])
        Place(where, "y").refuse(
            labels >= len(names), f"labels beyond its {len(names)} classes", ". Fetch it anew."
        )
        labels = names[labels]
    return Rows(name, source, where, x, labels, is_test)


def _fetch_keras(name: str, path: Path) -> None:
    """Has a child process fetch a dataset of Keras and write it to `path`, as .npz."""
    # -P: the working folder is the user's, and a numpy.py in it is not numpy.
    command = [sys.executable, "-P", "-c", KERAS_CHILD, name, str(path)]
    env = {**QUIET, **os.environ}
    try:
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S
        )
        failed, lines = done.returncode != 0, done.stderr.split("\n")
        cause = next((line for line in reversed(lines) if line.strip()), f"exit {done.returncode}")
    except subprocess.TimeoutExpired:
        failed, cause = True, f"no end after {DOWNLOAD_TIMEOUT_S:.0f} s"
    if failed:
        raise DataError(
            f"keras.datasets.{name} could not be fetched: {one_line(cause)}. Without a network, "
            "name the folder of a local copy by --data-dir, or save it elsewhere as .npz with "
            "x_train, y_train, x_test and y_test, and pass the path."
        )
