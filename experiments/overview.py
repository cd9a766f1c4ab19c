"""How all sweeps stand: read from the study database in a few queries, without disturbing them.

Nothing is written: no folder, no database, no table. The trials of all studies that are wanted come
with one query; Optuna's own summaries load each trial of every study with all that belongs to it,
which takes half a minute where this takes a second.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

import sqlalchemy
from optuna.distributions import json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import TrialState

from experiments.goals import Goals, goals_of_study
from experiments.storage import has_storage
from experiments.studies import home_of, is_locked
from mlops.errors import UsageError
from mlops.settings import Settings

CONSTRAINT = "constraints:"
"""How Optuna's names for what `Trial.set_constraint` keeps begin."""

State = Literal["running", "interrupted", "done", "elsewhere"]
Span = tuple[datetime, datetime]


@dataclass(frozen=True, slots=True)
class BestTrial:
    """The complete trial with the highest objective, the earliest of equals."""

    number: int
    value: float
    params: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StudyStatus:
    """How one architecture's study stands.

    Attributes:
        has_candidate: Whether a network of it was registered.
        time_left_s: Estimate until its trials are finished; see `estimate_time_left`.
    """

    study: str
    architecture: str
    task: str
    objective: str
    target: int
    n_complete: int
    n_pruned: int
    n_failed: int
    n_running: int
    has_candidate: bool
    best: BestTrial | None
    time_left_s: float | None

    @property
    def n_finished(self) -> int:
        return self.n_complete + self.n_pruned


@dataclass(frozen=True, slots=True)
class SweepStatus:
    """How a sweep stands.

    Attributes:
        experiment: MLflow's experiment; None if the studies do not say.
        state: "running": its driver holds it now. "interrupted": unfinished, and nobody holds it.
            "elsewhere": unfinished, and begun in another home, so that nobody here can tell.
        home: Host and folder that began it.
        created_at: When its first trial began; None before that.
    """

    sweep_id: str
    experiment: str | None
    state: State
    home: str
    created_at: datetime | None
    studies: tuple[StudyStatus, ...]


class TrialRow(NamedTuple):
    """A trial as its table has it. `value` is its quality; None where it misses a requirement."""

    trial_id: int
    number: int
    state: TrialState
    began: datetime | None
    ended: datetime | None
    value: float | None


@dataclass(frozen=True, slots=True)
class _Study:
    """A study without its trials."""

    study_id: int
    name: str
    attrs: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Read:
    """What was read of some studies: by study their trials and retries, by best trial its params.

    A retry is a trial that stands for one whose process died.
    """

    trials: dict[int, list[TrialRow]]
    n_retries: dict[int, int]
    params: dict[int, dict[str, Any]]


class Overview:
    """The sweeps of a study database. Open it with `open_overview`."""

    def __init__(self, connection: sqlalchemy.Connection, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings
        self._sweeps = self._read_studies()

    def states(self) -> dict[str, State]:
        """Returns the state of every sweep, by id, oldest first."""
        return {sweep_id: self._find_state(sweep_id) for sweep_id in self._sweeps}

    def _find_state(self, sweep_id: str) -> State:
        studies = self._sweeps[sweep_id]
        if is_locked(self._settings.home, sweep_id):
            return "running"
        if all(one.attrs.get("finished_target", 0) >= one.attrs["target"] for one in studies):
            return "done"
        is_here = studies[0].attrs["home"] == home_of(self._settings)
        return "interrupted" if is_here else "elsewhere"

    def read(self, states: dict[str, State]) -> list[SweepStatus]:
        """Returns how sweeps stand, in the order of `states`."""
        ids = [study.study_id for sweep_id in states for study in self._sweeps[sweep_id]]
        trials = self._read_trials(ids)
        best_ids = [best.trial_id for best in map(find_best, trials.values()) if best is not None]
        read = _Read(trials, self._count_retries(ids), self._read_params(best_ids))
        return [
            _sweep_status(sweep_id, state, self._sweeps[sweep_id], read)
            for sweep_id, state in states.items()
        ]

    def _read_studies(self) -> dict[str, list[_Study]]:
        """Returns the studies of each sweep, oldest first; one without a run key is not whole."""
        study, attr = _columns(models.StudyModel), _columns(models.StudyUserAttributeModel)
        query = (
            sqlalchemy.select(study.study_id, study.study_name, attr.key, attr.value_json)
            .join_from(study.study_id.table, attr.study_id.table)
            .order_by(study.study_id)
        )
        found: dict[int, _Study] = {}
        for study_id, name, key, value in self._connection.execute(query):
            found.setdefault(study_id, _Study(study_id, name, {})).attrs[key] = json.loads(value)
        sweeps: dict[str, list[_Study]] = {}
        for one in found.values():
            if "run_key" in one.attrs:
                sweeps.setdefault(one.attrs["sweep"], []).append(one)
        return sweeps

    def _read_trials(self, study_ids: list[int]) -> dict[int, list[TrialRow]]:
        """Returns the trials of each study, in the order of their numbers."""
        trial, result = _columns(models.TrialModel), _columns(models.TrialValueModel)
        query = (
            sqlalchemy.select(
                trial.study_id,
                trial.trial_id,
                trial.number,
                trial.state,
                trial.datetime_start,
                trial.datetime_complete,
                result.objective,
                result.value,
            )
            .join_from(trial.trial_id.table, result.trial_id.table, isouter=True)
            .where(trial.study_id.in_(study_ids))
            .order_by(trial.trial_id)
        )
        goals = self._read_goals(study_ids)
        infeasible = self._read_infeasible([i for i in study_ids if goals[i].requirements])
        found: dict[int, list[TrialRow]] = defaultdict(list)
        for row in self._connection.execute(query):
            study_id, trial_id, number, state, began, ended, objective, value = row
            if objective is not None and objective != goals[study_id].quality_index:
                continue  # of several values one is looked at
            if trial_id in infeasible:
                value = None
            found[study_id].append(
                TrialRow(trial_id, number, state, _aware(began), _aware(ended), value)
            )
        return found

    def _read_goals(self, study_ids: list[int]) -> dict[int, Goals]:
        studies = [study for sweep in self._sweeps.values() for study in sweep]
        return {
            study.study_id: goals_of_study(study.attrs)
            for study in studies
            if study.study_id in study_ids
        }

    def _read_infeasible(self, study_ids: list[int]) -> set[int]:
        """Returns the ids of trials that miss a requirement."""
        trial, attr = _columns(models.TrialModel), _columns(models.TrialSystemAttributeModel)
        query = (
            sqlalchemy.select(trial.trial_id, attr.value_json)
            .join_from(trial.trial_id.table, attr.trial_id.table)
            .where(trial.study_id.in_(study_ids), attr.key.startswith(CONSTRAINT))
        )
        if not study_ids:
            return set()
        return {row[0] for row in self._connection.execute(query) if json.loads(row[1]) > 0}

    def _count_retries(self, study_ids: list[int]) -> dict[int, int]:
        """Returns how many trials of each study stand for one whose process died."""
        trial, attr = _columns(models.TrialModel), _columns(models.TrialUserAttributeModel)
        query = (
            sqlalchemy.select(trial.study_id, sqlalchemy.func.count())
            .join_from(trial.trial_id.table, attr.trial_id.table)
            .where(trial.study_id.in_(study_ids), attr.key == "retry_of")
            .group_by(trial.study_id)
        )
        return defaultdict(int, {row[0]: row[1] for row in self._connection.execute(query)})

    def _read_params(self, trial_ids: list[int]) -> dict[int, dict[str, Any]]:
        param = _columns(models.TrialParamModel)
        query = (
            sqlalchemy.select(
                param.trial_id, param.param_name, param.param_value, param.distribution_json
            )
            .where(param.trial_id.in_(trial_ids))
            .order_by(param.param_id)
        )
        found: dict[int, dict[str, Any]] = defaultdict(dict)
        for trial_id, name, value, distribution in self._connection.execute(query):
            found[trial_id][name] = json_to_distribution(distribution).to_external_repr(value)
        return found


@contextlib.contextmanager
def open_overview(settings: Settings) -> Iterator[Overview | None]:
    """Opens the study database to read; None if there is none, or none with studies in it.

    Raises:
        UsageError: it cannot be read.
    """
    url = settings.study_url
    if not has_storage(url):
        yield None
        return
    sqlite = url.startswith("sqlite")
    try:
        engine = sqlalchemy.create_engine(
            url, poolclass=sqlalchemy.NullPool, connect_args={"timeout": 60} if sqlite else {}
        )
        with engine.connect() as connection:
            if sqlite:
                connection.exec_driver_sql("PRAGMA query_only = ON")
            has_studies = sqlalchemy.inspect(connection).has_table("studies")
            yield Overview(connection, settings) if has_studies else None
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as err:
        raise UsageError(
            f"the study database cannot be read ({type(err).__name__}); "
            "look at MLOPS_STUDY_URL and whether its server runs."
        ) from err


def estimate_time_left(n_left: int, n_finished: int, spans: Iterable[Span]) -> float | None:
    """Returns the seconds until a study has its trials, at its rate so far; None if unknown.

    The rate is its finished trials over the time in which the sweep trained anything. That time is
    the union of the spans of all the sweep's trials, those under way up to now included: so the
    number of workers is in it, and a pause between two drivers is not. The studies of a sweep take
    turns at the workers, which is why the spans of all of them count for each. What comes after
    the trials (`--seeds`, `--refit`, the candidate) is not in it; a time limit may end it sooner.

    Args:
        n_left: Trials that are still wanted.
        n_finished: Trials of the study that are finished.
        spans: Begin and end of the trials of all the sweep's studies.
    """
    ordered = sorted(spans)
    if n_left <= 0 or n_finished == 0 or not ordered:
        return None
    busy, reached = timedelta(), ordered[0][0]
    for began, ended in ordered:
        busy += max(ended - max(began, reached), timedelta())
        reached = max(reached, ended)
    return n_left * busy.total_seconds() / n_finished


def find_spans(trials: Iterable[TrialRow], now: datetime) -> list[Span]:
    """Returns begin and end of the trials that are finished or under way.

    A failed one is left out: what a dead driver left is ended when the next one begins.
    """
    counted = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
    spans = [
        (one.began, now if one.state is TrialState.RUNNING else one.ended)
        for one in trials
        if one.state in counted
    ]
    return [(began, ended) for began, ended in spans if began is not None and ended is not None]


def find_best(trials: Iterable[TrialRow]) -> TrialRow | None:
    """Returns the complete trial with the highest value, the earliest of equals."""
    complete = [
        (one.value, -one.number, one)
        for one in trials
        if one.state is TrialState.COMPLETE and one.value is not None
    ]
    return max(complete)[-1] if complete else None


def _sweep_status(sweep_id: str, state: State, studies: list[_Study], read: _Read) -> SweepStatus:
    trials = [trial for study in studies for trial in read.trials[study.study_id]]
    spans = find_spans(trials, datetime.now(UTC)) if state == "running" else []
    return SweepStatus(
        sweep_id=sweep_id,
        experiment=studies[0].attrs.get("experiment"),
        state=state,
        home=studies[0].attrs["home"],
        created_at=min((one.began for one in trials if one.began is not None), default=None),
        studies=tuple(_study_status(study, read, spans) for study in studies),
    )


def _study_status(study: _Study, read: _Read, spans: list[Span]) -> StudyStatus:
    trials, description = read.trials[study.study_id], study.attrs["description"]
    best = find_best(trials)
    count = Counter(one.state for one in trials)
    n_finished = count[TrialState.COMPLETE] + count[TrialState.PRUNED]
    return StudyStatus(
        study=study.name,
        architecture=description["name"],
        task=description["task"],
        objective=description["objective"],
        target=study.attrs["target"],
        n_complete=count[TrialState.COMPLETE],
        n_pruned=count[TrialState.PRUNED],
        # An attempt that was made again is part of the trial that replaced it.
        n_failed=count[TrialState.FAIL] - read.n_retries[study.study_id],
        n_running=count[TrialState.RUNNING],
        has_candidate="candidate_run_key" in study.attrs,
        best=None
        if best is None or best.value is None
        else BestTrial(best.number, best.value, read.params[best.trial_id]),
        time_left_s=estimate_time_left(study.attrs["target"] - n_finished, n_finished, spans),
    )


def _columns(model: Any) -> Any:
    return model.__table__.c


def _aware(time: datetime | None) -> datetime | None:
    """Optuna's tables hold UTC, without saying so."""
    return None if time is None else time.replace(tzinfo=UTC)
