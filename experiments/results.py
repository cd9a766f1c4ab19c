"""What a sweep found: for programs (`to_json`) and for people (`leaderboard`, `next_steps`)."""

from __future__ import annotations

import contextlib
import dataclasses
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from experiments.privacy.budget import Spent
from mlops.errors import without_passwords
from mlops.program import command_line
from mlops.server import FIRST_PORT

if TYPE_CHECKING:
    from experiments.finals import SeedSummary
    from experiments.study import Search
    from mlops.mlflow_sink import MlflowSink
    from mlops.settings import Settings


@dataclass(frozen=True, slots=True)
class Best:
    """A study's best trial. `run_id` is None while no server has confirmed the run."""

    run_key: str
    run_id: str | None
    number: int
    value: float
    params: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version of `<experiment>-...-candidates`; `version` is None while it is not delivered."""

    name: str
    version: int | None


@dataclass(frozen=True, slots=True)
class Member:
    """A trial of the Pareto set, with its values by objective.

    Attributes:
        candidate: None where another network of the study competes in its place.
    """

    number: int
    run_key: str
    values: dict[str, float]
    candidate: Candidate | None


@dataclass(frozen=True, slots=True)
class StudyResult:
    """How one architecture's study stands at the end.

    Attributes:
        pareto: The trials that no other beats, best quality first; empty with one objective.
    """

    architecture: str
    study: str
    objective: str
    n_complete: int
    n_pruned: int
    n_failed: int
    best: Best | None
    candidate: Candidate | None
    seeds: SeedSummary | None = None
    pareto: tuple[Member, ...] = ()


@dataclass(frozen=True, slots=True)
class SweepResult:
    """What a sweep found.

    Attributes:
        undelivered: Records that no server has confirmed; `python -m mlops.sync` sends them.
        interrupted: True after Ctrl-C; the same command goes on.
        spent: Of the training rows' privacy; None where no training was private.
    """

    sweep_id: str
    experiment: str
    wall_s: float
    studies: tuple[StudyResult, ...]
    undelivered: int = 0
    interrupted: bool = False
    ui_url: str | None = field(default=None, compare=False)
    spent: Spent | None = None

    def to_json(self) -> dict[str, Any]:
        def study(one: StudyResult) -> dict[str, Any]:
            best, candidate = one.best, one.candidate
            return {
                "architecture": one.architecture,
                "n_complete": one.n_complete,
                "n_pruned": one.n_pruned,
                "n_failed": one.n_failed,
                "best": None
                if best is None
                else {
                    "run_id": best.run_id,
                    "run_key": best.run_key,
                    "value": best.value,
                    "params": best.params,
                },
                "candidate": None if candidate is None else dataclasses.asdict(candidate),
                "pareto": [dataclasses.asdict(member) for member in one.pareto],
                "seeds": None
                if one.seeds is None
                else {
                    "n": one.seeds.n,
                    "mean": one.seeds.mean,
                    "low": one.seeds.low,
                    "high": one.seeds.high,
                },
            }

        return {
            "sweep_id": self.sweep_id,
            "experiment": self.experiment,
            "wall_s": round(self.wall_s, 3),
            "studies": [study(one) for one in self.studies],
            "undelivered": self.undelivered,
            **({} if self.spent is None else {"privacy": dataclasses.asdict(self.spent)}),
        }


def study_result(search: Search, experiment: str) -> StudyResult:
    """Returns how a study stands, from its storage."""
    from experiments.finals import Finals

    tally, best = search.tally(), search.best()
    return StudyResult(
        architecture=search.description.name,
        study=search.name,
        objective=search.description.objective,
        n_complete=tally.n_complete,
        n_pruned=tally.n_pruned,
        n_failed=tally.n_failed,
        best=None
        if best is None
        else Best(
            run_key=best.user_attrs["run_key"],
            run_id=search.best_run_id,
            number=best.number,
            value=search.goals.quality_of(best),
            params=best.params,
        ),
        candidate=_find_candidate(search, experiment, search.candidate_run_key),
        seeds=Finals(search).summary(),
        pareto=tuple(_find_members(search, experiment)) if search.goals.is_multi else (),
    )


def _find_members(search: Search, experiment: str) -> Iterator[Member]:
    names = [one.name for one in search.goals.objectives]
    for trial in search.members():
        key = trial.user_attrs["run_key"]
        values = dict(zip(names, trial.values, strict=True))
        yield Member(trial.number, key, values, _find_candidate(search, experiment, key))


def _find_candidate(search: Search, experiment: str, run_key: str | None) -> Candidate | None:
    """Returns the candidate that a run's network is registered as; None if it is not."""
    versions = search.other_candidates
    if search.candidate_run_key is not None:
        versions = versions | {search.candidate_run_key: search.candidate_version}
    if run_key is None or run_key not in versions:
        return None
    return Candidate(f"{model_name(experiment, search)}-candidates", versions[run_key])


def note_delivered(search: Search, sink: MlflowSink, *, ask: bool) -> None:
    """Keeps in the study what MLflow called its best run and its candidate, once that is known.

    Args:
        ask: Whether to ask the server for what another process may have delivered; not worth the
            wait where it did not answer a moment ago.
    """
    best, key = search.best(), search.candidate_run_key
    find_run_id = sink.find_run_id if ask else sink.run_ids.get
    find_version = sink.find_version if ask else sink.versions.get
    with contextlib.suppress(ConnectionError):
        if best is not None and search.best_run_id is None:
            run_id = find_run_id(best.user_attrs["run_key"])
            if run_id is not None:
                search.note_best_run(best, run_id)
        if key is not None and search.candidate_version is None:
            version = find_version(key)
            if version is not None:
                search.note_candidate_version(version)
        for other, known in search.other_candidates.items():
            if known is None and (version := find_version(other)) is not None:
                search.note_other_candidate(other, version)


def runs_url(server_url: str, experiment_id: str, objective: str) -> str:
    """Returns the page of MLflow's UI that compares all runs, best first.

    Sorted by a metric, the page shows trials beside their parents and not folded under them.
    """
    query = {
        "workflowType": "machine_learning",
        "orderByKey": f"metrics.`best_{objective}`",
        "orderByAsc": "false",
        "compareRunsMode": "CHART",
    }
    place = f"#/experiments/{experiment_id}/runs?{urllib.parse.urlencode(query)}"
    return f"{without_passwords(server_url).rstrip('/')}/{place}"


def model_name(experiment: str, search: Search) -> str:
    """Returns the name of the registered model that a study's best trial competes for."""
    return f"{experiment}-{search.description.task}"


def leaderboard(result: SweepResult) -> str:
    """Returns the leaderboard: best first, classifiers apart from VAEs."""
    rows = sorted(result.studies, key=lambda one: (one.objective, -_value(one)))
    lines = [
        f"Sweep {result.sweep_id}: {result.wall_s:.0f} s.",
        "",
        f"{'architecture':<14}{'best':>10}  {'objective':<14}"
        f"{'complete':>9}{'pruned':>8}{'failed':>8}  candidate",
    ]
    for one in rows:
        best = "-" if one.best is None else f"{one.best.value:.4f}"
        lines.append(
            f"{one.architecture:<14}{best:>10}  {one.objective:<14}{one.n_complete:>9}"
            f"{one.n_pruned:>8}{one.n_failed:>8}  {_name_candidate(one.candidate)}"
        )
    for one in rows:
        lines += _pareto_lines(one)
        if one.seeds is not None:
            lines.append(
                f"{one.architecture}: {one.objective} over {one.seeds.n} seeds "
                f"{one.seeds.mean:.4f}, 95 % interval {one.seeds.low:.4f} to {one.seeds.high:.4f}"
            )
    if result.spent is not None:
        lines.append(
            f"Privacy of the training rows: {result.spent}. The validation rows, which chose the "
            "best, are others and are not protected."
        )
    return "\n".join(lines)


def next_steps(result: SweepResult, settings: Settings) -> str:
    """Returns where to look and the commands to type next, complete."""
    lines = ["", "Compare the runs in the MLflow UI:"]
    if settings.embedded:
        # The same port as during the sweep, so that the address below holds.
        port = None if result.ui_url is None else urllib.parse.urlsplit(result.ui_url).port
        wanted = [] if port in (None, FIRST_PORT) else ["--port", str(port)]
        lines.append(f"  {command_line('python', '-m', 'mlops.server', *wanted)}")
    if result.ui_url is not None:
        lines.append(f"  {result.ui_url}")
    if result.undelivered:
        lines += [
            f"{result.undelivered} records are not delivered to the tracking server yet:",
            f"  {command_line('python', '-m', 'mlops.sync')}",
        ]
    names = sorted(
        {
            one.candidate.name.removesuffix("-candidates")
            for one in result.studies
            if one.candidate is not None
        }
    )
    if names:
        lines.append("Promote the best, then serve it:")
        for name in names:
            lines.append(f"  {command_line('python', '-m', 'registry.promote', name)}")
    return "\n".join(lines)


def _pareto_lines(one: StudyResult) -> Iterator[str]:
    """Yields the table of a Pareto set."""
    if not one.pareto:
        return
    yield f"{one.architecture}: {len(one.pareto)} trials that no other beats in every objective"
    yield f"{'trial':>7}" + "".join(f"{name:>16}" for name in one.pareto[0].values) + "  candidate"
    for member in one.pareto:
        values = "".join(f"{value:>16.6g}" for value in member.values.values())
        yield f"{member.number:>7}{values}  {_name_candidate(member.candidate)}"


def _value(one: StudyResult) -> float:
    return float("-inf") if one.best is None else one.best.value


def _name_candidate(candidate: Candidate | None) -> str:
    if candidate is None:
        return "-"
    version = "not delivered" if candidate.version is None else candidate.version
    return f"{candidate.name} {version}"
