"""SweepConfig: what a sweep does. Frozen, typed, logged whole, fingerprinted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from dataclasses import dataclass
from typing import Any, Literal

from mlops.errors import UsageError, choose

BUILT_IN = {
    "dnn": "experiments.architectures.dnn:DNN",
    "cnn": "experiments.architectures.cnn:CNN",
    "rnn": "experiments.architectures.rnn:RNN",
    "vae": "experiments.architectures.vae:VAE",
}
"""The architectures that come with Podium, by name. A user's own is `module:Class`."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\- ]*")


@dataclass(frozen=True, slots=True)
class SweepConfig:
    """Search the hyperparameters of each architecture on one dataset."""

    dataset: str = "digits"
    """digits, mnist, fashion_mnist, cifar10, or a file: data.npz, data.csv."""
    kind: Literal["table", "sequence", "image"] | None = None
    """What a row is, where the rank of the array does not say it."""
    label: str | None = None
    """The column of a CSV that holds the classes."""
    split_seed: int = 0
    """Which rows are for training, validation and test; part of the dataset."""
    architectures: tuple[str, ...] = tuple(BUILT_IN)
    """dnn, cnn, rnn, vae, or your own as module:Class."""
    trials: int = 15
    """Finished trials (complete or pruned) of each architecture."""
    epochs: int = 20
    """Epochs of a trial that is not pruned."""
    timeout_s: float | None = None
    """Start no trial after this many seconds."""
    experiment: str | None = None
    """The MLflow experiment; by default the dataset's name."""
    study: str | None = None
    """Name of the sweep, to begin, go on with or print. By default a new one is made."""
    seed: int = 0
    """Decides initial weights, the order of rows, and what the sampler proposes."""
    workers: int | None = None
    """Processes that train at the same time; by default one a core, at most 8."""
    threads: int = 1
    """Threads a trial computes with. Part of what decides its weights."""

    def check(self) -> None:
        """Refuses what cannot be, all of it at once.

        Raises:
            UsageError: names every field that is wrong.
        """
        wrong = [
            f"--{name.replace('_', '-')} must be at least {least}, got {value!r}"
            for name, value, least in (
                ("trials", self.trials, 1),
                ("epochs", self.epochs, 1),
                ("workers", self.workers, 1),
                ("threads", self.threads, 1),
                ("seed", self.seed, 0),
                ("split_seed", self.split_seed, 0),
            )
            if value is not None and value < least
        ]
        if self.seed >= 2**32:
            wrong.append(f"--seed must be below 2**32, got {self.seed}")
        if self.timeout_s is not None and not self.timeout_s > 0:
            wrong.append(f"--timeout-s must be above 0, got {self.timeout_s!r}")
        for option, name in (("experiment", self.experiment), ("study", self.study)):
            if name is not None and not _NAME.fullmatch(name):
                wrong.append(
                    f"--{option} may hold letters, digits, '.', '_', '-' and spaces and begins "
                    f"with a letter or digit, got {name!r}"
                )
        if not self.architectures:
            wrong.append("--architectures is empty; " + choose("", BUILT_IN))
        for name in self.architectures:
            if name not in BUILT_IN and ":" not in name:
                wrong.append(f"unknown architecture {name!r}; {choose(name, BUILT_IN)}")
        if len(set(self.architectures)) < len(self.architectures):
            wrong.append("--architectures names one twice")
        if wrong:
            raise UsageError("; ".join(wrong).rstrip(".") + ".")

    @property
    def n_workers(self) -> int:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return self.workers or max(1, min(8, (cores or 1) // self.threads))

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def fingerprint(self, dataset_fingerprint: str, architecture: str) -> str:
        """Returns 16 hex digits of what decides a study's trials.

        How long it goes on and on how many workers (`trials`, `timeout_s`, `workers`) may change
        between two tries of one study; names do not matter.
        """
        decides = {
            "dataset": dataset_fingerprint,
            "architecture": architecture,
            "epochs": self.epochs,
            "seed": self.seed,
            "threads": self.threads,
            "experiment": self.experiment,
        }
        text = json.dumps(decides, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def fingerprints(self, dataset_fingerprint: str) -> dict[str, str]:
        """Returns the fingerprint of each architecture's study, by `module:Class`."""
        paths = map(architecture_path, self.architectures)
        return {path: self.fingerprint(dataset_fingerprint, path) for path in paths}


def architecture_path(name: str) -> str:
    """Returns `module:Class` of an architecture's name."""
    return BUILT_IN.get(name, name)
