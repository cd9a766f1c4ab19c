"""The facts of a sweep, read from where they stand: studies, dataset store, the sweep's folder."""

from __future__ import annotations

import dataclasses
import difflib
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    json_to_distribution,
)
from optuna.trial import TrialState

from experiments.config import SweepConfig
from experiments.config_file import load_config, read_options
from experiments.finals import SeedSummary, summarise_seeds
from experiments.goals import METRICS, Goals, goals_of_study
from experiments.importances import measure_importances
from experiments.objectives import OBJECTIVES
from experiments.overview import State, StudyStatus
from experiments.pareto import Point, find_members
from experiments.reports.data import read_dataset
from experiments.reports.facts import (
    Failure,
    HistoryPoint,
    ParamRange,
    ParetoFacts,
    StudyFacts,
    SweepFacts,
    TrialFacts,
)
from experiments.reports.rows import BEST_EPOCH, REASON, RETRY_OF, TrialRow, read_rows
from experiments.standing import GPU_S
from experiments.status import get_sweep, next_commands
from experiments.studies import CONFIG, ENVIRONMENT, sweep_folder
from experiments.study_rows import StudyRow, read_studies
from mlops.errors import MlopsError, UsageError, choose
from mlops.settings import Settings

N_TOP: Final = 10
"""Complete trials of each study that are kept with all their params."""
MOST_POINTS: Final = 1000
"""Trials of each study that are kept for its pictures."""
N_EXAMPLES: Final = 5


def find_sweep(settings: Settings, wanted: str) -> str:
    """Returns the id of a sweep, by its own name, that of a study, or a beginning only it has.

    Raises:
        UsageError: there is none, or several begin so.
    """
    studies = [one for one in read_studies(settings.study_url) if "run_key" in one.attrs]
    sweeps = dict.fromkeys(str(one.sweep) for one in studies)
    if wanted in sweeps:
        return wanted
    by_study = {one.name: str(one.sweep) for one in studies}
    if wanted in by_study:
        return by_study[wanted]
    begun = [one for one in sweeps if wanted and one.startswith(wanted)]
    if len(begun) == 1:
        return begun[0]
    if begun:
        raise UsageError(
            f"{len(begun)} sweeps begin with {wanted!r}; give one of {', '.join(begun[-5:])}."
        )
    if not sweeps:
        raise UsageError(f"there is no sweep {wanted!r}; no sweep has run here yet.")
    near = difflib.get_close_matches(wanted, [*sweeps, *by_study], n=5, cutoff=0.0)
    raise UsageError(f"there is no sweep {wanted!r}; {choose(wanted, near)}")


def read_sweep(settings: Settings, sweep_id: str, state: State | None = None) -> SweepFacts:
    """Returns all that a report says of a sweep; writes nothing.

    Args:
        sweep_id: As `find_sweep` gives it.
        state: What to say of it instead of what its lock tells: its own driver, which holds that,
            knows better.

    Raises:
        UsageError: there is no such sweep, or the study database cannot be read.
    """
    status = get_sweep(settings, sweep_id)
    if state is not None:
        status = dataclasses.replace(status, state=state)
    studies = {one.name: one for one in read_studies(settings.study_url) if one.sweep == sweep_id}
    known = [(studies[one.study], one) for one in status.studies if one.study in studies]
    goals = {row.study_id: goals_of_study(row.attrs) for row, _ in known}

    def find_top(rows: Mapping[int, list[TrialRow]]) -> list[int]:
        ranked = (_rank(rows[study_id], goals[study_id]) for study_id in goals)
        return [one.trial_id for study in ranked for one in study[:N_TOP]]

    rows, kept = read_rows(settings.study_url, [*goals], find_top)
    config = _read_config(settings, sweep_id)
    trials = [trial for row, _ in known for trial in rows.get(row.study_id, [])]
    return SweepFacts(
        sweep_id=sweep_id,
        experiment=status.experiment,
        state=status.state,
        home=status.home,
        began=_iso(min((one.began for one in trials if one.began), default=None)),
        ended=_iso(max((one.ended for one in trials if one.ended), default=None)),
        busy_s=measure_busy(trials, datetime.now(UTC) if status.state == "running" else None),
        gpu_price=None if config is None else config.gpu_price,
        dataset=read_dataset(settings, known[0][0].attrs, config),
        config={} if config is None else config.to_json(),
        config_file=None if config is None else str(sweep_folder(settings.home, sweep_id) / CONFIG),
        environment=known[0][0].attrs.get(ENVIRONMENT, {}),
        studies=tuple(
            _read_study(row, one, goals[row.study_id], rows.get(row.study_id, []), kept, config)
            for row, one in known
        ),
        commands=tuple(next_commands(status, settings)),
    )


def measure_busy(trials: Iterable[TrialRow], now: datetime | None) -> float:
    """Returns the seconds in which any trial was under way: a pause between two drivers is not.

    Args:
        now: Until when those count that run; None where the driver is gone.
    """
    spans = sorted((one.began, one.ended or now or one.began) for one in trials if one.began)
    busy, reached = 0.0, None
    for began, ended in spans:
        begin = began if reached is None else max(began, reached)
        busy += max((ended - begin).total_seconds(), 0.0)
        reached = ended if reached is None else max(reached, ended)
    return busy


def _read_config(settings: Settings, sweep_id: str) -> SweepConfig | None:
    path = sweep_folder(settings.home, sweep_id) / CONFIG
    try:
        return read_options(load_config(path), str(path)) if path.is_file() else None
    except MlopsError:  # of another version
        return None


def _read_study(
    row: StudyRow,
    status: StudyStatus,
    goals: Goals,
    trials: Sequence[TrialRow],
    kept: Mapping[int, Mapping[str, Any]],
    config: SweepConfig | None,
) -> StudyFacts:
    attrs = row.attrs
    space = describe_space(attrs["description"]["space"])
    ranked = _rank(trials, goals)
    top = tuple(_describe_trial(one, goals, kept) for one in ranked[:N_TOP])
    best = top[0] if top else None
    complete = [one for one in trials if _quality(one, goals) is not None]
    searched = [one.name for one in space if not one.is_fixed]
    gpu = [one.attrs[GPU_S] for one in trials if one.attrs.get(GPU_S) is not None]
    pruned = [one.n_epochs for one in trials if one.state is TrialState.PRUNED]
    history = _read_history(trials, goals)
    epochs = None if config is None else config.epochs
    finals = attrs.get("finals", {})
    finals = finals.get("done", {}) if best and finals.get("trial") == best.number else {}
    return StudyFacts(
        study=row.name,
        architecture=status.architecture,
        task=status.task,
        objective=goals.quality.name,
        objectives=tuple(one.name for one in goals.objectives),
        requirements=tuple(str(one) for one in goals.requirements),
        space=space,
        target=status.target,
        n_complete=status.n_complete,
        n_pruned=status.n_pruned,
        n_failed=status.n_failed,
        n_running=status.n_running,
        best=best,
        top=top,
        seeds=_read_seeds(finals),
        has_refit=finals.get("refit", {}).get("state") == "complete",
        n_best_at_last=sum(one.attrs.get(BEST_EPOCH, -2) + 1 == epochs for one in complete),
        pruned_after=statistics.median(pruned) if pruned else None,
        trial_s=sum(one.seconds for one in trials),
        gpu_s=sum(gpu) if gpu else None,
        history=thin(history, MOST_POINTS),
        n_history=len(history),
        importances=measure_importances(
            complete, [_quality(one, goals) or 0.0 for one in complete], searched
        ),
        pareto=None if goals.are_plain else _read_pareto(trials, goals),
        failures=_read_failures(trials),
        has_candidate=status.has_candidate,
        candidate=attrs.get("candidate_version"),
        config_fingerprint=str(attrs.get("config_fingerprint", "")),
    )


def describe_space(space: Mapping[str, str]) -> tuple[ParamRange, ...]:
    """Returns what was searched of each param, from Optuna's JSON of its distribution."""
    return tuple(_describe(name, json_to_distribution(text)) for name, text in space.items())


def _describe(name: str, distribution: BaseDistribution) -> ParamRange:
    if isinstance(distribution, CategoricalDistribution):
        return ParamRange(name, choices=tuple(distribution.choices))
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    whole = isinstance(distribution, IntDistribution)
    return ParamRange(
        name=name,
        low=distribution.low,
        high=distribution.high,
        log=distribution.log,
        step=None if whole and distribution.step == 1 else distribution.step,
        whole=whole,
    )


def _quality(trial: TrialRow, goals: Goals) -> float | None:
    """Returns the quality of a complete trial; None of any other."""
    is_complete = trial.state is TrialState.COMPLETE
    return trial.values.get(goals.quality_index) if is_complete else None


def _metrics(trial: TrialRow, goals: Goals) -> dict[str, float]:
    named = {one.name: trial.values.get(at) for at, one in enumerate(goals.objectives)}
    known = {name: value for name, value in named.items() if value is not None}
    return {**(trial.attrs.get(METRICS) or {}), **known}


def _rank(trials: Sequence[TrialRow], goals: Goals) -> list[TrialRow]:
    """Returns the complete trials that keep what is required, best first, earlier before later."""
    feasible = [
        (quality, one)
        for one in trials
        if (quality := _quality(one, goals)) is not None and _is_feasible(one, goals)
    ]
    feasible.sort(key=lambda pair: (-pair[0], pair[1].number))
    return [one for _, one in feasible]


def _is_feasible(trial: TrialRow, goals: Goals) -> bool:
    return not goals.requirements or goals.are_met(_metrics(trial, goals))


def _describe_trial(
    trial: TrialRow, goals: Goals, kept: Mapping[int, Mapping[str, Any]]
) -> TrialFacts:
    told = kept.get(trial.trial_id, {})
    return TrialFacts(
        number=trial.number,
        value=trial.values[goals.quality_index],
        params=trial.params,
        best_epoch=trial.attrs.get(BEST_EPOCH),
        metrics={**(told.get("metrics") or {}), **_metrics(trial, goals)},
    )


def _read_history(trials: Sequence[TrialRow], goals: Goals) -> list[HistoryPoint]:
    points = []
    for one in trials:
        quality = _quality(one, goals)
        value = one.reported if one.state is TrialState.PRUNED else quality
        if value is not None:
            counts = quality is not None and _is_feasible(one, goals)
            points.append(HistoryPoint(one.number, counts, value))
    return points


def thin(points: Sequence[HistoryPoint], most: int) -> tuple[HistoryPoint, ...]:
    """Returns every second, third ... point, and all that were the best so far."""
    every = -(-len(points) // most) if points else 1
    best, chosen = float("-inf"), []
    for index, one in enumerate(points):
        is_better = one.counts and one.value > best
        if is_better:
            best = one.value
        if is_better or index % every == 0:
            chosen.append(one)
    return tuple(chosen)


def _read_seeds(finals: Mapping[str, Any]) -> SeedSummary | None:
    done = [
        entry["value"]
        for name, entry in finals.items()
        if name != "refit" and entry["state"] == "complete"
    ]
    return summarise_seeds(done)


def _read_pareto(trials: Sequence[TrialRow], goals: Goals) -> ParetoFacts:
    complete = [one for one in trials if one.state is TrialState.COMPLETE]
    points = [Point(one.number, _metrics(one, goals), one.params) for one in complete]
    members = find_members(points, goals.objectives, goals.requirements)
    names = [one.name for one in goals.objectives] + [one.metric for one in goals.requirements]
    chosen = {one.number for one in members}
    beaten = [(one.number, one.values) for one in points if one.number not in chosen]
    return ParetoFacts(
        metrics=tuple(OBJECTIVES[name] for name in dict.fromkeys(names)),
        members=tuple((one.number, one.values) for one in members),
        beaten=tuple(beaten[:: -(-len(beaten) // MOST_POINTS) or 1]),
        params={one.number: one.params for one in members},
        bounds=tuple((one.metric, one.bound) for one in goals.requirements),
    )


def _read_failures(trials: Sequence[TrialRow]) -> tuple[Failure, ...]:
    """Returns why trials failed, the most common reason first.

    An attempt that was made again is part of the trial that replaced it.
    """
    replaced = {one.attrs[RETRY_OF] for one in trials if RETRY_OF in one.attrs}
    by_reason: dict[str, list[TrialRow]] = defaultdict(list)
    for one in trials:
        if one.state is TrialState.FAIL and one.number not in replaced:
            by_reason[str(one.attrs.get(REASON, "no reason was kept"))].append(one)
    found = [
        Failure(
            reason=reason,
            n=len(failed),
            numbers=tuple(one.number for one in failed[:N_EXAMPLES]),
            params=tuple(one.params for one in failed[:N_TOP]),
        )
        for reason, failed in by_reason.items()
    ]
    return tuple(sorted(found, key=lambda one: -one.n))


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat(timespec="seconds")


def run_keys(settings: Settings, sweep_id: str) -> list[str]:
    """Returns the keys of a sweep's parent runs."""
    studies = read_studies(settings.study_url)
    return [one.attrs["run_key"] for one in studies if one.sweep == sweep_id]
