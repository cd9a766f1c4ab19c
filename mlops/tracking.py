"""Runs: what is logged of a training.

`Run` writes records to the local journal (`mlops.journal`) and returns. A drain delivers them
later; `mlops.mlflow_sink` says what MLflow has of them then. Nothing here talks to MLflow.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlops.journal import Journal

RUN_KEY = "mlops.run_key"
"""The tag by which a run is found in MLflow."""

CANDIDATES = "-candidates"
"""How the names of models end that sweeps make."""
RELEASES = "-releases"
"""How the names of experiments end that promotions make."""
MODEL_PATH = "model"
"""Where a run has its packaged model, among its artifacts."""

Status = Literal["RUNNING", "FINISHED", "KILLED", "FAILED"]


@dataclass(frozen=True, slots=True)
class RunDataset:
    """The dataset input of a run, as MLflow shows it."""

    name: str
    fingerprint: str
    source: str
    context: str
    profile: dict[str, Any]


class Run:
    """One MLflow run, by its key. Writes the journal, never the network.

    Example:
        >>> run = Run.create(journal, experiment="digits", name="cnn-0", params={"lr": 0.1})
        >>> run.log_metrics({"val_accuracy": 0.98}, step=3)
        >>> run.end("FINISHED")
    """

    def __init__(self, journal: Journal, key: str) -> None:
        """Continues the run with this key; `Run.create` begins one."""
        self.key = key
        self._journal = journal

    @classmethod
    def create(
        cls,
        journal: Journal,
        *,
        experiment: str,
        name: str,
        key: str | None = None,
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, str] | None = None,
        dataset: RunDataset | None = None,
    ) -> Run:
        """Begins a run. The tag `mlflow.parentRunId` holds a run key, which the drain resolves."""
        run = cls(journal, key or new_run_key())
        journal.append(
            "create",
            run.key,
            at_ms=_now_ms(),
            experiment=experiment,
            name=name,
            params={name: str(value) for name, value in (params or {}).items()},
            tags={name: str(value) for name, value in (tags or {}).items()},
            dataset=None if dataset is None else _fields(dataset),
        )
        return run

    def log_metrics(self, values: Mapping[str, float], step: int, at_ms: int | None = None) -> None:
        """Logs numbers at a step (an epoch, from 0).

        Args:
            at_ms: Milliseconds since 1970; by default the time of this call. A number that is
                logged again with the same step and time is one point in MLflow.
        """
        self._journal.append(
            "metrics",
            self.key,
            at_ms=_now_ms() if at_ms is None else at_ms,
            step=step,
            values={k: float(v) for k, v in values.items()},
        )

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._journal.append("tags", self.key, values={k: str(v) for k, v in tags.items()})

    def log_artifact(self, source: Path, folder: str = "") -> None:
        """Logs a file, or a folder's content, under `folder`. Takes a copy; the source may go."""
        self._journal.append(
            "artifact", self.key, spooled=self._journal.spool(source), folder=folder
        )

    def register_candidate(self, name: str, model: Path, tags: Mapping[str, str]) -> None:
        """Logs a packaged model folder and makes it the newest version of `<name>-candidates`."""
        # One record, so that no damaged one can leave a version without its model.
        self._journal.append(
            "candidate",
            self.key,
            spooled=self._journal.spool(model),
            folder=MODEL_PATH,
            name=f"{name}{CANDIDATES}",
            tags=dict(tags),
        )

    def end(self, status: Status) -> None:
        """Ends the run; with "RUNNING" opens it again (a resumed study)."""
        self._journal.append("end", self.key, at_ms=_now_ms(), status=status)

    def close_orphan(self, last_seen_ms: int) -> None:
        """Ends a run whose process is gone as FAILED; does nothing if it has ended meanwhile.

        Args:
            last_seen_ms: When that process last said something; the run's end.
        """
        self._journal.append("orphan", self.key, at_ms=last_seen_ms)


def new_run_key() -> str:
    return secrets.token_hex(16)


def _fields(dataset: RunDataset) -> dict[str, Any]:
    return {name: getattr(dataset, name) for name in RunDataset.__slots__}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
