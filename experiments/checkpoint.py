"""A trial's checkpoint: all that its training would need to go on in another process.

That is the weights, the optimizer's variables, the state of every random number generator of the
network (dropout, noise, augmentation), and what was told so far with the best weights of it. The
order of the rows needs none: it follows from seed and epoch.
"""

from __future__ import annotations

import json
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SHARE_OF_TIME = 0.05
"""At most this share of a training goes into its checkpoints."""


@dataclass(slots=True)
class Progress:
    """How far a training has come, and the best of it."""

    history: list[dict[str, float]] = field(default_factory=list)
    best_value: float | None = None
    best_epoch: int | None = None
    best_weights: list[np.ndarray] | None = None


class Checkpoint:
    """A file that a training is saved in now and then, and goes on from.

    A crash leaves the last whole file: a new one takes its place at once. One that cannot be read,
    or was made by another training, counts as none.

    Args:
        path: The file.
        key: What tells this training from any other; all that decides its weights.
        every_s: Seconds from one save to the next, at least.
    """

    def __init__(self, path: Path, key: str, every_s: float) -> None:
        self.path = path
        self._key = key
        self._every_s = every_s
        self._next = time.monotonic() + every_s

    def save(self, model: Any, progress: Progress) -> bool:
        """Saves a training at the end of an epoch, if it is time; returns whether it did.

        Raises:
            OSError: the disk is full.
        """
        began = time.monotonic()
        if began < self._next:
            return False
        about = {
            "key": self._key,
            "history": progress.history,
            "best_value": progress.best_value,
            "best_epoch": progress.best_epoch,
        }
        arrays = {f"variable-{i}": np.asarray(v) for i, v in enumerate(_variables(model))}
        arrays |= {f"best-{i}": value for i, value in enumerate(progress.best_weights or ())}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_name(f"{self.path.name}-draft")
        with draft.open("wb") as file:
            np.savez(file, about=np.array(json.dumps(about)), allow_pickle=False, **arrays)
        draft.replace(self.path)
        ended = time.monotonic()
        self._next = ended + max(self._every_s, (ended - began) / SHARE_OF_TIME)
        return True

    def load(self, model: Any) -> Progress | None:
        """Puts what was saved into a model that was built the same way; None if there is nothing.

        Args:
            model: With all its variables, and its optimizer's.
        """
        try:
            # Opened here: numpy leaves a file open that it cannot read.
            with self.path.open("rb") as whole, np.load(whole, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                found = {name: file[name] for name in file.files if name != "about"}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        variables = _variables(model)
        saved = [found[name] for name in sorted(found, key=_index) if name.startswith("variable-")]
        best = [found[name] for name in sorted(found, key=_index) if name.startswith("best-")]
        if about["key"] != self._key or [v.shape for v in saved] != [
            tuple(variable.shape) for variable in variables
        ]:
            return None
        for variable, value in zip(variables, saved, strict=True):
            variable.assign(value)
        return Progress(about["history"], about["best_value"], about["best_epoch"], best or None)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _variables(model: Any) -> list[Any]:
    """Returns weights, generators, metrics and the optimizer's state, in the model's order."""
    return [*model.variables, *model.optimizer.variables]


def _index(name: str) -> int:
    return int(name.rpartition("-")[2])
