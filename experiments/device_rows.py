"""Training rows that stay in a device's memory from one pass to the next."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

DEVICE_SHARE = 0.1
"""Of a GPU's free memory, what training rows may take. Small, since other processes may train on
the same GPU, each of which finds the same memory free."""


class KeptRows:
    """Keeps rows on the device from one pass to the next, where they have room there.

    Args:
        to_device: Brings an array there.
        room_bytes: What rows may take of its memory.
    """

    def __init__(self, to_device: Callable[[np.ndarray], Any], room_bytes: float) -> None:
        self._to_device = to_device
        self._room_bytes = room_bytes
        self._kept: tuple[tuple[np.ndarray, ...], tuple[Any, ...]] | None = None

    def find(self, rows: tuple[np.ndarray, ...]) -> tuple[Any, ...] | None:
        """Returns what stands for rows on the device; None where they have no room."""
        if sum(part.nbytes for part in rows) > self._room_bytes:
            return None
        if self._kept is None or not all(map(operator.is_, self._kept[0], rows)):
            self._kept = None  # before others come
            self._kept = rows, tuple(map(self._to_device, rows))
        return self._kept[1]
