"""SweepConfig: what a sweep does. Frozen, typed, logged whole, fingerprinted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

import tyro

from experiments.built_in import BUILT_IN, architecture_path
from experiments.entries import Fix, parse_fix
from experiments.numerics import Numerics, Precision, Xla

HYPERBAND_FROM: Final = 60
"""Trials from which Hyperband prunes better than the median rule (Optuna's own advice)."""

NO_PRUNER_BELOW: Final = 4
"""Epochs below which ending a trial early saves next to nothing."""


@dataclass(frozen=True, slots=True)
class SweepConfig:
    """Search the hyperparameters of each architecture on one dataset."""

    dataset: str = "digits"
    """digits, mnist, fashion_mnist, cifar10, a .csv, .parquet or .npz, or a folder of pictures."""
    kind: Literal["table", "sequence", "image"] | None = None
    """What a row is, where the rank of the array does not say it."""
    label: str | None = None
    """The column of a table that holds the classes."""
    categorical: tuple[str, ...] = ()
    """Columns of a table to take as categories although they hold numbers."""
    sequence_id: str | None = None
    """The column of a table that says which sequence a line belongs to."""
    image_size: tuple[int, int] | None = None
    """Height and width in pixels to bring the pictures of a folder to."""
    data_dir: str | None = None
    """Folder that holds the archives of a named dataset; nothing is downloaded then."""
    split_seed: int = 0
    """Which rows are for training, validation and test; part of the dataset."""
    architectures: tuple[str, ...] = tuple(BUILT_IN)
    """dnn, cnn, rnn, vae, or your own as module:Class."""
    objective: Literal["accuracy", "balanced_accuracy", "macro_f1"] = "accuracy"
    """What classifiers are compared by."""
    objectives: tuple[str, ...] = ()
    """Several to compare by at once: val_accuracy latency_ms, or size_bytes, n_weights."""
    require: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """What a network must keep to count, in quotes: "latency_ms<5"."""
    trials: int = 15
    """Finished trials (complete or pruned) of each architecture."""
    epochs: int = 20
    """Epochs of a trial that is not pruned."""
    sampler: Literal["auto", "tpe", "random", "grid", "cmaes"] = "auto"
    """How the next params are proposed; auto is tpe."""
    pruner: Literal["auto", "median", "halving", "hyperband", "none"] = "auto"
    """Which trials are ended early; auto goes by trials and epochs, and by several objectives."""
    fix: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A param not to search: learning_rate=0.001, or for one architecture cnn.learning_rate=..."""
    space: tyro.conf.Suppress[Mapping[str, Mapping[str, Any]]] = field(
        default_factory=dict, hash=False
    )
    """Ranges and choices to search instead of an architecture's own, by architecture and param."""
    warm_start: str | None = None
    """A finished sweep or study whose best trials are tried first."""
    seeds: int | None = None
    """Retrain the best params with this many seeds; the candidate is the median one."""
    refit: bool = False
    """Train the final model on training and validation rows together."""
    timeout_s: float | None = None
    """Start no trial after this many seconds."""
    experiment: str | None = None
    """The MLflow experiment; by default the dataset's name."""
    study: str | None = None
    """Name of the sweep, to begin, go on with or print. By default a new one is made."""
    seed: int = 0
    """Decides initial weights, the order of rows, and what the sampler proposes."""
    workers: int | None = None
    """Processes that train at once; by default one a GPU or core, at most 8; of a cluster all."""
    cluster: str | None = None
    """A Dask cluster to train on: tcp://HOST:8786 or a scheduler file."""
    threads: int = 1
    """Threads a trial computes with. Part of what decides its weights."""
    population: int | None = None
    """Train so many trials of one shape in one program; needs KERAS_BACKEND=jax."""
    trials_per_gpu: int | Literal["auto"] | None = None
    """Trials that share a GPU of this machine; auto packs by the memory of the first trials."""
    budget_gpu_hours: float | None = None
    """Start no trial once the trials of all its studies have used so many GPU hours."""
    gpu_price: float | None = None
    """Price of a GPU hour, in any currency: what a trial cost is then logged as `cost`."""
    precision: Precision = "float32"
    """What training computes in. What validates, and is packaged, is float32 all the same."""
    xla: Xla = "auto"
    """Whether XLA compiles TensorFlow's training step; auto: on a GPU, not on a CPU."""
    plots: Literal["best", "all", "none"] = "best"
    """Whose figures are drawn: of each study's best network, or of each complete trial too."""
    log_rows: bool = False
    """Let figures show rows of the data: the worst mistakes, what was explained."""

    dp_epsilon: float | None = None
    """Train each network privately, by DP-SGD, at most at this epsilon; needs KERAS_BACKEND=jax."""
    dp_delta: float | None = None
    """Of the promise; by default 1e-5, or 1 / (10 n) of more than 10,000 training rows."""
    dp_clip: float | None = None
    """L2 norm that each row's gradient is clipped to; by default 1."""

    def check(self) -> None:
        """Refuses what cannot be, all of it at once.

        Raises:
            UsageError: names every field that is wrong.
        """
        from experiments.config_check import find_wrong, refuse

        refuse(find_wrong(self))

    @property
    def n_cores(self) -> int:
        """Cores that this process may use."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return cores or 1

    @property
    def n_workers(self) -> int:
        """Processes on a machine without a GPU."""
        return self.workers or max(1, min(8, self.n_cores // self.threads))

    @property
    def numerics(self) -> Numerics:
        return Numerics(self.precision, self.xla)

    @property
    def default_sampler(self) -> Literal["tpe"]:
        """What `sampler` "auto" stands for."""
        return "tpe"

    @property
    def default_pruner(self) -> Literal["median", "hyperband", "none"]:
        """What `pruner` "auto" stands for, by trials and epochs.

        With several objectives that is none: Optuna prunes by one.
        """
        if self.epochs < NO_PRUNER_BELOW or self.is_multi_objective:
            return "none"
        return "hyperband" if self.trials >= HYPERBAND_FROM else "median"

    @property
    def is_multi_objective(self) -> bool:
        """Tells whether networks of one task are compared by more than one number."""
        from experiments.objectives import are_several, parse_objectives

        return are_several(parse_objectives(self.objectives)[0])

    @property
    def metric(self) -> str:
        """What a classifier's best epoch is chosen by: the first of its kind in `objectives`."""
        from experiments.objectives import parse_objectives

        named, _ = parse_objectives(self.objectives)
        found = [one.name.removeprefix("val_") for one in named if one.task == "classifier"]
        return found[0] if found else self.objective

    def resolved(self) -> SweepConfig:
        """Returns the config with what "auto" stands for in its place."""
        return dataclasses.replace(
            self,
            sampler=self.default_sampler if self.sampler == "auto" else self.sampler,
            pruner=self.default_pruner if self.pruner == "auto" else self.pruner,
        )

    def to_json(self) -> dict[str, Any]:
        """Returns plain values: lists, no tuples."""
        value: dict[str, Any] = _plain(dataclasses.asdict(self))
        return value

    def fingerprint(self, dataset_fingerprint: str, architecture: str) -> str:
        """Returns 16 hex digits of what decides a study's trials and its candidate.

        How long it goes on, on which workers, and what is drawn (`trials`, `timeout_s`,
        `budget_gpu_hours`, `workers`, `cluster`, `trials_per_gpu`, `plots`, `log_rows`) may change
        between two tries of one study; names and `gpu_price` do not matter. A sampler or pruner
        that is what "auto" stands for counts as "auto", so that more trials may be asked for
        although they make it stand for another.

        Args:
            dataset_fingerprint: Of the dataset, with the options it was read with.
            architecture: `module:Class`.
        """
        decides = {
            "dataset": dataset_fingerprint,
            "architecture": architecture,
            "objective": self.objective,
            "objectives": self.objectives,
            "require": self.require,
            "epochs": self.epochs,
            "sampler": "auto" if self.sampler == self.default_sampler else self.sampler,
            "pruner": "auto" if self.pruner == self.default_pruner else self.pruner,
            "space": self.space_of(architecture),
            "warm_start": self.warm_start,
            "seeds": self.seeds,
            "refit": self.refit,
            "seed": self.seed,
            "threads": self.threads,
            "experiment": self.experiment,
            # Left out where there is none: studies from before it was there go on.
            **({} if self.population is None else {"population": self.population}),
            **({} if self.precision == "float32" else {"precision": self.precision}),
            **({} if self.xla == "auto" else {"xla": self.xla}),
            **{
                name: getattr(self, name)
                for name in ("dp_epsilon", "dp_delta", "dp_clip")
                if getattr(self, name) is not None
            },
        }
        text = json.dumps(_plain(decides), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def fingerprints(self, dataset_fingerprint: str) -> dict[str, str]:
        """Returns the fingerprint of each architecture's study, by `module:Class`."""
        paths = map(architecture_path, self.architectures)
        return {path: self.fingerprint(dataset_fingerprint, path) for path in paths}

    def space_of(self, architecture: str) -> dict[str, Any]:
        """Returns what is said about `module:Class`, by param.

        `fix` goes before `space`.
        """
        told: dict[str, Any] = {}
        for name, table in self.space.items():
            if architecture_path(name) == architecture:
                told |= table
        return told | {fix.param: fix.value for fix in fixes_of(self.fix, architecture)}


def fixes_of(entries: Sequence[str], architecture: str) -> list[Fix]:
    """Returns the `fix` entries that are for `module:Class`, one a param, the one that counts.

    That is one for this architecture before one for all, and of two alike the later.
    """
    fixes, _ = parse_fix(entries)
    for_all = {fix.param: fix for fix in fixes if fix.architecture is None}
    for_one = {
        fix.param: fix
        for fix in fixes
        if fix.architecture and architecture_path(fix.architecture) == architecture
    }
    return [*(for_all | for_one).values()]


def _plain(value: Any) -> Any:
    """Tuples as lists, all the way down."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
