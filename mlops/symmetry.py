"""Which ways of mirroring an image leave its class what it was."""

from __future__ import annotations

import numpy as np


def find_flips(x: np.ndarray, y: np.ndarray, train: np.ndarray, val: np.ndarray) -> tuple[str, ...]:
    """Returns those of "horizontal" and "vertical" that the training rows show to be harmless.

    Args:
        x: (n, height, width, channels); may be a memory map.
        y: (n,) class indices.
        train: Indices of the training rows.
        val: Indices of the validation rows.
    """
    return ()
