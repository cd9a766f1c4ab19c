"""Which trials of finished sweeps are old and not among the best, and their removal.

A trial goes as a whole, or stays as a whole: its candidates, its run with the artifacts, its rows.
Of a study the best trials stay, whatever their age, and with them what was trained after the search
and what became the candidate. Where nothing of a study stays, it goes itself, with its own run.

The order is what a kill leaves behind: a study first says that it was cleaned, so that no driver
asks it for more trials, whose numbers would repeat; candidates, then runs, then rows. As long as
its rows are there, a trial is found again.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import optuna

from experiments.goals import Goals, goals_of_study
from experiments.storage import open_storage, to_utc
from experiments.studies import home_of, is_locked, is_sweep, lock_sweep, sweep_folder
from experiments.study_rows import StudyRow, read_studies, remove_studies, remove_trials
from mlops.errors import MlopsError
from mlops.journal import find_journals
from mlops.settings import Settings
from mlops.stores.store import Item
from mlops.stores.tracking_removal import measure_runs, remove_runs
from mlops.stores.tracking_rows import FINAL, RunRow, VersionRow, read_registry
from mlops.stores.trash import size_of
from mlops.tracked_runs import STUDY, TRIAL
from mlops.tracking import RUN_KEY
from registry.release_retention import remove_candidates

CLEANED = "cleaned"
"""The user attribute of a study of which trials were taken out."""

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Trial:
    """What is looked at of a trial; `ended_at` is None of one that was never begun."""

    trial_id: int
    number: int
    ended_at: datetime | None
    run_key: str | None


@dataclass(frozen=True, slots=True)
class Study:
    """A finished study, and what MLflow has of it.

    Attributes:
        trials: All of them.
        ranked: The numbers of those that count, best first.
        after: Run keys of what was trained after the search, and of its candidates.
        runs: All runs of the study, by id; its own run is the one that is of no trial.
        versions: The candidates of those runs.
    """

    name: str
    trials: Sequence[Trial]
    ranked: Sequence[int]
    after: Set[str]
    runs: Mapping[str, RunRow]
    versions: Sequence[VersionRow] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes of a study.

    Attributes:
        whole: Whether nothing of it stays.
    """

    trials: tuple[Trial, ...]
    runs: tuple[RunRow, ...]
    versions: tuple[VersionRow, ...]
    whole: bool


def plan(study: Study, before: datetime, keep_best: int, needed: Set[Key]) -> Plan:
    """Returns what of a study is old, is not among the best, and is needed by nobody; pure."""
    needed_runs = {one.run_id for one in study.runs.values() if ("run", one.run_id) in needed}
    needed_runs |= {one.run_id for one in study.versions if ("model version", one.key) in needed}
    n_best = max(keep_best, 1) if ("study", study.name) in needed else keep_best
    best = set(study.ranked[:n_best])
    keys = {study.runs[one].tags.get(RUN_KEY) for one in needed_runs & study.runs.keys()}
    stays = [
        one
        for one in study.trials
        if one.number in best
        or (one.run_key is not None and one.run_key in keys)
        or (one.ended_at is not None and one.ended_at >= before)
    ]
    kept_keys = {one.run_key for one in stays} | keys
    if study.ranked and study.ranked[0] in {one.number for one in stays}:
        kept_keys |= study.after
    old_ms = before.timestamp() * 1000
    runs = [
        one
        for one in study.runs.values()
        if _is_of_trial(one)
        and one.tags.get(RUN_KEY) not in kept_keys
        and one.run_id not in needed_runs
        and one.ended_ms < old_ms
    ]
    gone_runs = {one.run_id for one in runs}
    left = [one for one in study.runs.values() if one.run_id not in gone_runs]
    # A trial whose run stays, say since it ended later, stays with it.
    left_keys = {one.tags.get(RUN_KEY) for one in left}
    numbers = {one.number for one in stays}
    trials = [
        one
        for one in study.trials
        if one.number not in numbers
        and (one.run_key is None or one.run_key not in left_keys)
        and one.ended_at is not None
    ]
    n_begun = sum(one.ended_at is not None for one in study.trials)
    whole = (
        ("study", study.name) not in needed
        and len(trials) == n_begun > 0
        and all(
            not _is_of_trial(one) and one.run_id not in needed_runs and one.ended_ms < old_ms
            for one in left
        )
    )
    if whole:
        runs, gone_runs = [*runs, *left], set(study.runs)
    versions = [one for one in study.versions if one.run_id in gone_runs]
    return Plan(tuple(trials), tuple(runs), tuple(versions), whole)


def _is_of_trial(run: RunRow) -> bool:
    return TRIAL in run.tags or FINAL in run.tags


def clean_studies(
    settings: Settings, before: datetime, keep_best: int, needed: Set[Key], *, dry: bool
) -> list[Item]:
    """Takes out what `plan` says of each finished study, and old files of finished sweeps."""
    versions, runs = read_registry(settings)
    work = _Cleaning(settings, before, keep_best, needed, versions, runs)
    found: list[Item] = []
    for sweep, rows in _group(read_studies(settings.study_url)).items():
        if not all(row.is_done for row in rows) or is_locked(settings.home, sweep):
            continue
        if find_journals(settings.home / "journal" / sweep):
            continue  # MLflow is yet to be told of some of its runs
        found += work.rehearse(sweep, rows) if dry else work.clean(sweep)
    return [*found, *_clean_logs(settings.home, before, dry=dry)]


def _group(rows: Sequence[StudyRow]) -> dict[str, list[StudyRow]]:
    """Returns the studies of each sweep.

    One that its maker did not complete is of none, nor is one whose sweep no folder can be of.
    """
    found: dict[str, list[StudyRow]] = {}
    for row in rows:
        if row.sweep is not None and is_sweep(row.sweep):
            found.setdefault(row.sweep, []).append(row)
    return found


@dataclass(frozen=True, slots=True)
class _Cleaning:
    """What is asked for, and what MLflow had when it was."""

    settings: Settings
    before: datetime
    keep_best: int
    needed: Set[Key]
    versions: Sequence[VersionRow]
    runs: Mapping[str, RunRow]

    def rehearse(self, sweep: str, rows: Sequence[StudyRow]) -> list[Item]:
        found = self._clean_folder(sweep, rows, dry=True)
        for row in rows:
            planned = self._plan(row)
            found += _items(row, planned, measure_runs(self.settings, planned.runs))
        return found

    def clean(self, sweep: str) -> list[Item]:
        found: list[Item] = []
        try:
            with lock_sweep(self.settings.home, sweep):
                # Read again: until now a driver may have gone on with it, and come to its end.
                rows = _group(read_studies(self.settings.study_url)).get(sweep, [])
                if all(row.is_done for row in rows):
                    found += self._clean_folder(sweep, rows, dry=False)
                    for row in rows:
                        planned = self._plan(row)
                        sizes = measure_runs(self.settings, planned.runs)
                        found += _items(row, _take_out(self.settings, row, planned), sizes)
        except MlopsError:
            if not is_locked(self.settings.home, sweep):
                raise  # else a driver came first: it is going on
        return found

    def _plan(self, row: StudyRow) -> Plan:
        study = self._read(row)
        if study is None:
            return Plan((), (), (), whole=False)
        return plan(study, self.before, self.keep_best, self.needed)

    def _read(self, row: StudyRow) -> Study | None:
        """Returns a study; None of one whose runs another MLflow has, or no MLflow yet."""
        runs = {one.run_id: one for one in self.runs.values() if one.tags.get(STUDY) == row.name}
        keys = {one.tags.get(RUN_KEY) for one in runs.values()}
        if row.attrs["run_key"] not in keys and CLEANED not in row.attrs:
            return None
        trials = _read_trials(self.settings.study_url, row.study_id)
        return Study(
            name=row.name,
            trials=[
                Trial(
                    trial_id=one._trial_id,
                    number=one.number,
                    ended_at=to_utc(one.datetime_complete),
                    run_key=one.user_attrs.get("run_key"),
                )
                for one in trials
            ],
            ranked=_rank(goals_of_study(row.attrs), trials),
            after=_find_after(row),
            runs=runs,
            versions=[one for one in self.versions if one.run_id in runs and one.is_candidate],
        )

    def _clean_folder(self, sweep: str, rows: Sequence[StudyRow], *, dry: bool) -> list[Item]:
        """Takes out the files of a sweep that ended before; what is served is not among them."""
        home, found = self.settings.home, list[Item]()
        folder = sweep_folder(home, sweep)
        ends = [
            to_utc(one.datetime_complete)
            for row in rows
            for one in _read_trials(self.settings.study_url, row.study_id)
        ]
        is_old = all(one is None or one < self.before for one in ends)
        is_here = all(row.attrs.get("home") == home_of(self.settings) for row in rows)
        size = size_of(folder)
        if size and is_old and is_here and all(map(_is_registered, rows)):
            found.append(Item("sweep folder", sweep, f"sweeps/{sweep}", None, size))
        if not dry and (found or not size):  # without a byte it holds the lock and no more
            shutil.rmtree(folder)
        return found


def _read_trials(url: str, study_id: int) -> list[optuna.trial.FrozenTrial]:
    storage = open_storage(url)
    try:
        return list(storage.get_all_trials(study_id, deepcopy=False))
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _is_registered(row: StudyRow) -> bool:
    """Tells whether nobody will ask for a study's networks: its candidate was made, or none."""
    return "candidate_run_key" in row.attrs or CLEANED in row.attrs


def _rank(goals: Goals, trials: Sequence[optuna.trial.FrozenTrial]) -> list[int]:
    """Returns the numbers of the complete trials that keep all requirements, best first."""
    complete = [one for one in trials if one.state is optuna.trial.TrialState.COMPLETE]
    counted = [one for one in complete if goals.are_met(goals.metrics_of(one))]
    best = [one.number for one in goals.find_best(complete)]
    counted.sort(key=lambda one: (-goals.quality_of(one), one.number))
    return [*best, *(one.number for one in counted if one.number not in best)]


def _find_after(row: StudyRow) -> set[str]:
    """Returns the run keys of what was trained after the search, and of the candidate."""
    finals = row.attrs.get("finals", {})
    keys = {*finals.get("begun", {}).values()}
    keys |= {one["run_key"] for one in finals.get("done", {}).values()}
    keys.add(row.attrs.get("candidate_run_key"))
    return {one for one in keys if one is not None}


def _take_out(settings: Settings, row: StudyRow, planned: Plan) -> Plan:
    """Does what was planned; returns what of it was done."""
    if not planned.trials and not planned.runs and not planned.whole:
        return planned
    study = optuna.load_study(study_name=row.name, storage=settings.study_url)
    study.set_user_attr(CLEANED, True)
    row.attrs[CLEANED] = True
    gone = remove_candidates(settings, planned.versions)
    stays = {one.run_id for one in planned.versions if one.key not in gone}
    if stays:  # a promotion came first: all that it may ask for stays until the next time
        keys = {one.tags.get(RUN_KEY) for one in planned.runs if one.run_id in stays}
        planned = Plan(
            trials=tuple(one for one in planned.trials if one.run_key not in keys),
            runs=tuple(
                one for one in planned.runs if _is_of_trial(one) and one.run_id not in stays
            ),
            versions=tuple(one for one in planned.versions if one.key in gone),
            whole=False,
        )
    remove_runs(settings, planned.runs)
    if planned.whole:
        remove_studies(settings.study_url, [row.study_id])
    else:
        remove_trials(settings.study_url, [one.trial_id for one in planned.trials])
    return planned


def _items(row: StudyRow, planned: Plan, sizes: Mapping[str, int]) -> list[Item]:
    found = [Item("model version", one.key, f"candidate {one.key}") for one in planned.versions]
    found += [Item("run", one.run_id, one.name, None, sizes[one.run_id]) for one in planned.runs]
    found += [
        Item("trial", f"{row.name}/{one.number}", f"trial {one.number} of {row.name}")
        for one in planned.trials
    ]
    return [*found, Item("study", row.name, f"study {row.name}")] if planned.whole else found


def _clean_logs(home: Path, before: datetime, *, dry: bool) -> list[Item]:
    """Takes out what workers of sweeps said that ended before."""
    found = []
    for path in sorted((home / "logs").glob("workers-*.log")):
        if path.stat().st_mtime < before.timestamp():
            found.append(Item("log", path.name, f"logs/{path.name}", None, size_of(path)))
            if not dry:
                path.unlink(missing_ok=True)
    return found
