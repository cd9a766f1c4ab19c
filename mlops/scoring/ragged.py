"""Sequences of unequal length, each padded to the length that the network takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import refuse
from .rows import Rows


class RaggedRows(Rows):
    """Sequences of unequal length: padded as `Dataset.part` pads them in training."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__(spec)
        self.time, self.features = self.shape[0], self.shape[1] - 1
        # In the model's dtype, as in training.
        self.padding = np.array([*spec["mean"][:-1], 0.0], self.dtype)

    @property
    def expected(self) -> str:
        steps = f"of 1 to {self.time} steps and {self.features} features"
        return f"{self.dtype.name} sequences {steps}"

    def _row(self, array: npt.NDArray[Any], index: int) -> npt.NDArray[Any]:
        if array.ndim != 2 or array.shape[1] != self.features:
            return super()._row(array, index)
        padded: npt.NDArray[Any] = self._padded(self._checked(array, index)[None], index)[0]
        return padded

    def _are_unequal(self, rows: Sequence[Any]) -> bool:
        return False

    def baseline(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Returns sequences of the same length, each step of which is the mean step."""
        steps = np.array(rows, np.float32)
        steps[steps[..., -1] != 0, :-1] = self.mean[:-1]
        return steps

    def attributed(self, row: npt.NDArray[Any], attributions: npt.NDArray[Any]) -> Any:
        """Returns those of the row's own steps and features: padding has none."""
        return attributions[row[:, -1] != 0, :-1].tolist()

    def _decoded(self, content: bytes, index: int) -> npt.NDArray[Any]:
        n_bytes = self.features * self.dtype.itemsize
        if len(content) % n_bytes:
            wrong = f"decodes to {len(content)} bytes; expected a multiple of {n_bytes}"
            refuse("wrong_shape", wrong, index)
        steps = np.frombuffer(content, self.dtype).reshape(1, -1, self.features)
        padded: npt.NDArray[Any] = self._padded(steps, index)[0]
        return padded

    def _stacked(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if array.ndim != 3 or array.shape[2] != self.features:
            return super()._stacked(array)
        return self._padded(array, 0) if len(array) else self._no_rows()

    def _padded(self, steps: npt.NDArray[Any], index: int) -> npt.NDArray[Any]:
        """Returns (n, time, features + 1) of sequences of one length (n, steps, features)."""
        n, n_steps, _ = steps.shape
        if not 1 <= n_steps <= self.time:
            refuse("wrong_shape", f"has {n_steps} steps; expected 1 to {self.time}", index)
        padded = np.empty((n, *self.shape), np.result_type(steps, self.padding))
        padded[:, :n_steps, :-1] = steps
        padded[:, :n_steps, -1] = 1
        padded[:, n_steps:] = self.padding
        return padded
