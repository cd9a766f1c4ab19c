"""Trials and runs are one to one: where they are not, and what mends it.

The trials come with one query, the runs with one, or with one a thousand from a server; 10,000
trials take a second.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.storage import has_storage
from experiments.studies import home_of, is_locked, is_sweep
from mlops.program import command_line
from mlops.settings import Settings
from mlops.stores.database_check import open_to_read
from mlops.stores.journal_state import find_speakers, find_undelivered_keys
from mlops.stores.tracking_store import shorten
from mlops.tracked_runs import TrackedRun, read_tracked_runs

if TYPE_CHECKING:
    from experiments.overview import SweepStatus

N_COMMANDED = 20
"""Runs that one command names."""

Wrong = tuple[str, str]
"""What is wrong, and what mends it."""


@dataclass(frozen=True, slots=True)
class TrialKey:
    """A trial, and the key of its run; None if it never got one."""

    number: int
    state: str
    key: str | None

    @property
    def is_finished(self) -> bool:
        return self.state in ("COMPLETE", "PRUNED")


def find_unpaired(settings: Settings, sweeps: list[SweepStatus]) -> list[Wrong]:
    """Returns what the study database and MLflow do not agree on; both can be read.

    Args:
        settings: Where they are.
        sweeps: All that the study database has, as they stood before this.
    """
    # In this order, for a sweep may be under way: a trial is told after its run has ended in a
    # journal, and its records leave the journal once MLflow has them.
    trials = read_trial_keys(settings.study_url) if has_storage(settings.study_url) else {}
    undelivered = find_undelivered_keys(settings.home)
    pairs = Pairs(settings, sweeps, trials, read_tracked_runs(settings))
    return [
        *pairs.trials_without_runs(undelivered),
        *pairs.runs_without_trials(),
        *pairs.open_runs(),
    ]


def read_trial_keys(url: str) -> dict[str, list[TrialKey]]:
    """Returns the trials of each study, by its name, in the order of their numbers."""
    import sqlalchemy

    query = sqlalchemy.text(
        "SELECT s.study_name, t.number, t.state, a.value_json FROM trials t "
        "JOIN studies s ON s.study_id = t.study_id LEFT JOIN trial_user_attributes a "
        "ON a.trial_id = t.trial_id AND a.key = 'run_key' ORDER BY t.trial_id"
    )
    found: dict[str, list[TrialKey]] = defaultdict(list)
    with open_to_read(url) as connection:
        if sqlalchemy.inspect(connection).has_table("trials"):
            for study, number, state, key in connection.execute(query):
                found[study].append(TrialKey(number, state, json.loads(key) if key else None))
    return found


class Pairs:
    """The trials of a study database, and the runs that MLflow has."""

    def __init__(
        self,
        settings: Settings,
        sweeps: list[SweepStatus],
        trials: dict[str, list[TrialKey]],
        runs: list[TrackedRun],
    ) -> None:
        self.settings = settings
        self.trials = trials
        self.runs = runs
        self._mine = {one.sweep_id: one for one in sweeps if one.home == home_of(settings)}
        self._known = {study.study for sweep in sweeps for study in sweep.studies}

    def trials_without_runs(self, undelivered: set[str]) -> Iterator[Wrong]:
        """Finished trials whose runs were deleted or are nowhere.

        Args:
            undelivered: Keys of the runs that MLflow is yet to be told of.
        """
        # A lost answer may have left a twin of a run, deleted by the sink: the living one counts.
        runs = {run.key: run for run in sorted(self.runs, key=lambda run: not run.is_deleted)}
        for study in (one.study for sweep in self._mine.values() for one in sweep.studies):
            deleted: list[TrackedRun] = []
            lost: list[str] = []
            for trial in self.trials.get(study, ()):
                run = runs.get(str(trial.key))
                if not trial.is_finished or trial.key in undelivered:
                    continue
                if run is None:
                    lost.append(str(trial.number))
                elif run.is_deleted:
                    deleted.append(run)
            if deleted:
                yield (
                    f"{len(deleted)} finished trial(s) of {study!r} have runs that were deleted: "
                    f"{_names(deleted)}",
                    self._for_each(deleted, "restore"),
                )
            if lost:
                yield (
                    f"{len(lost)} finished trial(s) of {study!r} have no run in MLflow, and no "
                    f"journal speaks of one: {shorten(lost)}.",
                    "No command brings them back: the trials still count, and their params and "
                    "values stand in the study.",
                )

    def runs_without_trials(self) -> Iterator[Wrong]:
        """Runs of trials that the study database does not have."""
        keys = {study: {one.key for one in found} for study, found in self.trials.items()}
        alone: dict[str, list[TrackedRun]] = defaultdict(list)
        for run in self.runs:
            if run.study is None or run.trial is None or run.is_deleted:
                continue
            if run.key not in keys.get(run.study, ()) and self._was_begun_here(run):
                alone[run.study].append(run)
        for study, found in alone.items():
            if self._is_under_way(found[0]):
                continue
            where = "does not have them" if study in self._known else "is not in the study database"
            yield (
                f"{len(found)} run(s) in MLflow are of trials that are not there; the study "
                f"{study!r} {where}: {_names(found)} If another database has it, let "
                "MLOPS_STUDY_URL name that one.",
                self._for_each(found, "delete"),
            )

    def open_runs(self) -> Iterator[Wrong]:
        """Runs that nobody ends: no journal speaks of them, and no resumed sweep ends them."""
        left = [run for run in self.runs if run.status == "RUNNING" and not run.is_deleted]
        left = [run for run in left if run.sweep in self._mine and not self._is_resumed(run)]
        speakers = find_speakers(self.settings.home) if left else {}
        left = [run for run in left if run.key not in speakers and not self._is_under_way(run)]
        if left:
            yield (
                f"{len(left)} run(s) are RUNNING in MLflow, nobody holds their sweep, and no "
                f"journal speaks of them: {_names(left)}",
                self._end(left),
            )

    def _is_resumed(self, run: TrackedRun) -> bool:
        """Tells whether a resumed sweep would end the run."""
        if run.trial is None:  # a study's parent, or a final
            return self._mine[str(run.sweep)].state == "interrupted"
        found = self.trials.get(str(run.study), ())
        return any(one.key == run.key and one.state == "RUNNING" for one in found)

    def _was_begun_here(self, run: TrackedRun) -> bool:
        """Tells whether a run is of this home; several may share one tracking server."""
        if run.study in self._known:
            return run.sweep in self._mine
        # The folder stays when a study is deleted, or its database lost.
        folder = self.settings.home / "sweeps" / str(run.sweep)
        return self.settings.embedded or (is_sweep(str(run.sweep)) and folder.is_dir())

    def _is_under_way(self, run: TrackedRun) -> bool:
        """Tells whether a driver held the run's sweep when all this began, or does now."""
        sweep = self._mine.get(str(run.sweep))
        held = sweep is not None and sweep.state == "running"
        return held or is_locked(self.settings.home, str(run.sweep))

    def _for_each(self, runs: list[TrackedRun], verb: str) -> str:
        one = command_line("mlflow", "runs", verb, "--run-id", env=self._where())
        return f'for run in {_ids(runs)}; do {one} "$run"; done'

    def _end(self, runs: list[TrackedRun]) -> str:
        code = (
            "import sys, mlflow; client = mlflow.MlflowClient(); "
            "[client.set_terminated(run, 'FAILED') for run in sys.argv[1:]]"
        )
        return f"{command_line('python', '-c', code, env=self._where())} {_ids(runs)}"

    def _where(self) -> dict[str, str]:
        return {"MLFLOW_TRACKING_URI": self.settings.direct_uri}


def _names(runs: list[TrackedRun]) -> str:
    """Returns the names of some runs as the end of a sentence."""
    names = f"{shorten([run.name for run in runs])}."
    return names + f" The command is for the first {N_COMMANDED}." * (len(runs) > N_COMMANDED)


def _ids(runs: list[TrackedRun]) -> str:
    return " ".join(run.run_id for run in runs[:N_COMMANDED])
