"""The worker's side of drawing: a network's file in, files of figures out.

What was drawn goes back to the driver as bytes, so that a worker with a home of its own needs to
deliver nothing.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.built_in import Task
from experiments.figures.drawing import draw, make_subject
from mlops.errors import first_line


@dataclass(frozen=True, slots=True)
class DrawTask:
    """A network whose figures are wanted.

    Attributes:
        network: Where its file is, for a worker that shares the sweep's home.
        content: That file; None where all workers share the home.
        task: What it answers; `likelihood` as in a `Subject`.
        home: The folder of the sweep's files, or of the worker's own.
        log_rows: Whether figures may show rows.
    """

    network: Path
    content: bytes | None = field(repr=False)
    task: Task
    likelihood: str | None
    dataset_fingerprint: str
    datasets_url: str = field(repr=False)
    home: Path
    log_rows: bool

    @property
    def datasets_folder(self) -> Path:
        return self.home / "datasets"

    def moved(self, home: Path, server: str) -> DrawTask:
        return replace(self, home=home)


@dataclass(frozen=True, slots=True)
class Drawn:
    """What was drawn.

    Attributes:
        files: Bytes by name.
        problems: A sentence for each figure that could not be drawn.
    """

    files: dict[str, bytes] = field(repr=False)
    problems: list[str]


def run_drawing(task: DrawTask) -> Drawn:
    """Draws a network's figures, in a worker; raises nothing but what ends its process."""
    try:
        with tempfile.TemporaryDirectory(prefix="podium-") as scratch:
            return _draw(task, Path(scratch))
    except Exception as err:
        return Drawn({}, [f"{type(err).__name__}: {first_line(err)}"[:300]])


def _draw(task: DrawTask, scratch: Path) -> Drawn:
    from experiments.trial import open_dataset
    from mlops.network import check_network

    network = task.network
    if task.content is not None:
        network = scratch / network.name
        network.write_bytes(task.content)
    check_network(network, network.name)  # it may come from the artifact store
    folder = scratch / "drawn"
    folder.mkdir()
    dataset = open_dataset(task)
    loaded = _load(network)
    subject = make_subject(loaded, dataset, task.task, task.likelihood, task.log_rows)
    problems = draw(subject, folder)
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    return Drawn(files, problems)


def _load(network: Path) -> Any:
    import keras

    return keras.saving.load_model(network, compile=False, safe_mode=True)
