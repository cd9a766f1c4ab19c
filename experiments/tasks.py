"""What travels between a driver and its workers: trainings and how they ended. Nothing but data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from experiments.architectures import Params
from experiments.figures.curves import Curves
from experiments.goals import Goals
from experiments.numerics import DEFAULT, Numerics
from experiments.privacy.accounting import Privacy
from mlops.tracking import Status

STATUS: dict[str, Status] = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
NETWORKS = "network"
"""Where a run has its network, of a worker with a home of its own."""


@dataclass(frozen=True, slots=True)
class Training:
    """What a worker needs to train a network and to tell of it: small, and nothing but data.

    Attributes:
        study: The architecture's short name: that of the study's folder, too.
        number: "00012" of a trial; of what comes after the search its name.
        origin: The number of the first attempt at it.
        home: The folder of all its files: the sweep's, or the worker's own.
        server: In a home of the worker's own: the tracking server that its journal is delivered to
            from there. None where the sweep's driver delivers it.
        gpu_price: Of a GPU hour; None where none was given.
        plots: Whether figures of its network are drawn (`--plots all`).
        log_rows: Whether they may show rows.
        privacy: What it may spend of its rows' privacy; None where it is not private.
    """

    architecture: str
    objective: str
    params: Params
    seed: int
    epochs: int
    dataset_fingerprint: str
    datasets_url: str
    sweep: str
    study: str
    number: str
    origin: str
    run_key: str
    home: Path
    server: str | None = field(default=None, repr=False)
    gpu_price: float | None = None
    numerics: Numerics = DEFAULT
    plots: bool = False
    log_rows: bool = False
    privacy: Privacy | None = None

    @property
    def name(self) -> str:
        """What it is called in the sweep, where no other is called so."""
        return f"{self.study}-{self.number}"

    @property
    def journal_folder(self) -> Path:
        return self.home / "journal" / self.sweep

    @property
    def datasets_folder(self) -> Path:
        """Where copies of datasets lie that are kept on S3."""
        return self.home / "datasets"

    @property
    def network(self) -> Path:
        """Where it is saved."""
        return network_file(self.home, self.sweep, self.study, self.number)

    @property
    def checkpoint(self) -> Path:
        """Where an attempt that was cut short left how far it came."""
        return self.network.with_name(f"{self.origin}.checkpoint")

    def moved(self, home: Path, server: str) -> Training:
        """Returns the same for a worker with a home of its own, which delivers to a server."""
        return replace(self, home=home, server=server)


def network_file(home: Path, sweep: str, study: str, number: str) -> Path:
    """Returns where a home has the network of a trial, or of what came after the search."""
    return home / "sweeps" / sweep / study / f"{number}.keras"


@runtime_checkable
class Task(Protocol):
    """What a worker is sent to do."""

    def moved(self, home: Path, server: str) -> Task:
        """Returns the same for a worker with a home of its own, which delivers to a server."""
        ...


@dataclass(frozen=True, slots=True)
class TrialTask:
    """A training that is a trial: reported to its study, and pruned.

    Attributes:
        goals: What the study compares its trials by.
        to_beat: The best quality when the trial began: a worse network need not be kept.
        is_baseline: Whether its params are the architecture's baseline.
    """

    training: Training
    study: str
    study_url: str = field(repr=False)  # Dask logs what it cannot run
    trial_id: int
    pruner: Any
    goals: Goals
    to_beat: float
    is_baseline: bool = False

    def moved(self, home: Path, server: str) -> TrialTask:
        return replace(self, training=self.training.moved(home, server))


@dataclass(frozen=True, slots=True)
class FinalTask:
    """A training after the search, of the best params.

    Attributes:
        refit: Whether it learns from training and validation rows together. There is nothing left
            to choose an epoch by, then: the last one's weights count.
    """

    training: Training
    refit: bool

    def moved(self, home: Path, server: str) -> FinalTask:
        return replace(self, training=self.training.moved(home, server))


@dataclass(frozen=True, slots=True)
class TrialResult:
    """How a trial ended.

    Attributes:
        state: "complete", "pruned", or "failed" with a `reason`.
        value: The objective at the best epoch; None if there is none.
        best_epoch: From 0.
        weights_sha256: Hash of the best epoch's weights.
        saved: Whether the network was kept, being the best so far.
        metrics: What was measured: the metrics of the best epoch, and what the network costs.
        out_of_memory: How many trials shared its memory, if that was not enough; 1 if it was alone.
        gpu_s: Seconds on a GPU, times the part of it that the trial had; None on a CPU.
        gpu_peak_bytes: Most GPU memory in use; None where that is not known.
        curves: Of a network that was kept, or is the baseline's: each metric by epoch
            (`experiments.figures.curves`).
    """

    state: Literal["complete", "pruned", "failed"]
    value: float | None
    best_epoch: int | None
    weights_sha256: str | None
    saved: bool = False
    reason: str | None = None
    metrics: dict[str, float] | None = None
    out_of_memory: int | None = None
    gpu_s: float | None = None
    gpu_peak_bytes: int | None = None
    curves: Curves | None = None
