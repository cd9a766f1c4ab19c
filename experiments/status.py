"""python -m experiments.status: which sweeps there are, how they stand, and how to stop one.

It reads the study database and asks the operating system who holds a sweep. Reading disturbs
nobody: it makes no folder, no database and no table, and writes nothing. The trials are read with
one query for all studies that are shown: Optuna's own summaries load every trial of every study,
with all that belongs to it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from mlops.errors import MlopsError, UsageError, choose
from mlops.program import answer, answer_json, command_line, run_program, say
from mlops.settings import Settings

if TYPE_CHECKING:
    import sqlalchemy

N_OTHERS = 10
"""Sweeps that are shown beside the running ones."""
STOP_WAIT_S = 120.0
POLL_S = 0.2
ASK_EVERY_S = 10.0

State = Literal["running", "interrupted", "done", "elsewhere"]


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
        has_candidate: Whether its best network was registered.
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

    def to_json(self) -> dict[str, Any]:
        found = dataclasses.asdict(self)
        found["created_at"] = None if self.created_at is None else self.created_at.isoformat()
        for study, one in zip(found["studies"], self.studies, strict=True):
            study["n_finished"] = one.n_finished
        return found


@dataclass(frozen=True, slots=True)
class Listing:
    """The sweeps that are shown, oldest first, and how many are not."""

    sweeps: tuple[SweepStatus, ...]
    n_hidden: int = 0


def list_sweeps(settings: Settings, *, everything: bool = False) -> Listing:
    """Returns the running sweeps and the last `N_OTHERS` others, or all of them.

    Raises:
        UsageError: the study database cannot be read.
    """
    with _open_reader(settings) as reader:
        if reader is None:
            return Listing(())
        states = reader.states()
        others = [sweep for sweep, state in states.items() if state != "running"]
        hidden = set() if everything else set(others[:-N_OTHERS])
        shown = {sweep: state for sweep, state in states.items() if sweep not in hidden}
        return Listing(tuple(reader.read(shown)), len(hidden))


def get_sweep(settings: Settings, sweep_id: str) -> SweepStatus:
    """Returns one sweep.

    Raises:
        UsageError: there is none of this name, or the study database cannot be read.
    """
    with _open_reader(settings) as reader:
        states = {} if reader is None else reader.states()
        if reader is not None and sweep_id in states:
            return reader.read({sweep_id: states[sweep_id]})[0]
    if not states:
        raise UsageError(f"there is no sweep {sweep_id!r}; no sweep has run here yet.")
    near = difflib.get_close_matches(sweep_id, states, n=5, cutoff=0.0)
    raise UsageError(f"there is no sweep {sweep_id!r}; {choose(sweep_id, near)}")


def stop_sweep(
    settings: Settings, sweep_id: str, *, wait_s: float = STOP_WAIT_S, note: Callable[[str], None]
) -> SweepStatus:
    """Asks a sweep to stop, waits until its driver is gone, and returns how it stands then.

    Of a sweep that was begun elsewhere nobody here sees the end; it is asked, and not waited for.

    Args:
        wait_s: How long to wait, in seconds.
        note: Takes a line now and then.

    Raises:
        UsageError: there is no such sweep.
        MlopsError: it is not running, or has not ended in time.
    """
    from experiments.storage import open_storage
    from experiments.studies import request_stop

    sweep = get_sweep(settings, sweep_id)
    if sweep.state in ("done", "interrupted"):
        raise MlopsError(f"the sweep {sweep_id!r} is not running, it is {sweep.state}.")
    storage = open_storage(settings.study_url)
    request_stop(storage, sweep_id)
    if sweep.state == "elsewhere":
        return sweep
    note(f"{sweep_id} is asked to stop; waiting until its driver has ended.")
    began = asked = time.monotonic()
    while _is_held(settings.home, sweep_id):
        now = time.monotonic()
        if now - began > wait_s:
            raise MlopsError(
                f"{sweep_id} was asked to stop and has not ended within {wait_s:.0f} s. "
                "It may still; look again with python -m experiments.status."
            )
        if now - asked > ASK_EVERY_S:
            # A driver that was just opening its studies took the request for an old one.
            request_stop(storage, sweep_id)
            note(f"still waiting, {now - began:.0f} s.")
            asked = now
        time.sleep(POLL_S)
    return get_sweep(settings, sweep_id)


def estimate_time_left(
    n_left: int, n_finished: int, spans: Iterable[tuple[datetime, datetime]]
) -> float | None:
    """Returns the seconds until a study has its trials, at its rate so far; None if unknown.

    The rate is its finished trials over the time in which the sweep trained anything. That time is
    the union of the spans of all the sweep's trials, those under way up to now included: so the
    number of workers is in it, and a pause between two drivers is not. All studies of a sweep take
    turns at the workers, which is why the spans of all of them count for each. What comes after
    the trials (`--seeds`, `--refit`, the candidate) is not in it; a time limit may end them sooner.

    Args:
        n_left: Trials that are still wanted.
        n_finished: Trials of the study that are finished.
        spans: Begin and end of the trials of all the sweep's studies.
    """
    if n_left <= 0 or n_finished == 0:
        return None
    busy, reached = timedelta(), datetime.min.replace(tzinfo=UTC)
    for began, ended in sorted(spans):
        busy += max(ended - max(began, reached), timedelta())
        reached = max(reached, ended)
    return n_left * busy.total_seconds() / n_finished


def next_commands(sweep: SweepStatus, settings: Settings) -> list[str]:
    """Returns what to type next; nothing where that is not known."""
    if sweep.state == "running":
        return [command_line("python", "-m", "experiments.status", "--stop", sweep.sweep_id)]
    if sweep.state == "interrupted":
        config = settings.home / "sweeps" / sweep.sweep_id / "sweep.toml"
        go_on = ["--config", str(config), "--study", sweep.sweep_id]
        return (
            [command_line("python", "-m", "experiments.sweep", *go_on)] if config.exists() else []
        )
    if sweep.state == "elsewhere" or sweep.experiment is None:
        return []
    tasks = sorted({one.task for one in sweep.studies if one.has_candidate})
    return [
        command_line("python", "-m", "registry.promote", f"{sweep.experiment}-{task}")
        for task in tasks
    ]


def _is_held(home: Path, sweep_id: str) -> bool:
    from experiments.studies import is_locked

    # The question makes the folder of a sweep that has none here.
    return (home / "sweeps" / sweep_id / "driver.lock").exists() and is_locked(home, sweep_id)


@contextlib.contextmanager
def _open_reader(settings: Settings) -> Iterator[_Reader | None]:
    """Opens the study database to read; None if there is none, or none with studies in it.

    Raises:
        UsageError: it cannot be read.
    """
    import sqlalchemy

    from experiments.storage import has_storage

    if not has_storage(settings.study_url):
        yield None
        return
    sqlite = settings.study_url.startswith("sqlite")
    try:
        engine = sqlalchemy.create_engine(
            settings.study_url,
            poolclass=sqlalchemy.NullPool,
            connect_args={"timeout": 60} if sqlite else {},
        )
        with engine.connect() as connection:
            if sqlite:
                connection.exec_driver_sql("PRAGMA query_only = ON")
            there = sqlalchemy.inspect(connection).has_table("studies")
            yield _Reader(connection, settings) if there else None
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as err:
        raise UsageError(
            f"the study database cannot be read ({type(err).__name__}); "
            "look at MLOPS_STUDY_URL and whether its server runs."
        ) from err


class _Trial(NamedTuple):
    """A row of a trial. Times are UTC without saying so, as Optuna keeps them."""

    trial_id: int
    study_id: int
    number: int
    state: TrialState
    began: datetime | None
    ended: datetime | None
    value: float | None


@dataclass(frozen=True, slots=True)
class _Study:
    """A study's row, with what is known of it without its trials."""

    study_id: int
    name: str
    attrs: dict[str, Any]

    @property
    def finished(self) -> bool:
        return bool(self.attrs.get("finished_target", 0) >= self.attrs["target"])


class _Reader:
    """Reads sweeps in a few queries, however many studies and trials there are."""

    def __init__(self, connection: sqlalchemy.Connection, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings
        self._sweeps = self._read_studies()

    def states(self) -> dict[str, State]:
        """Returns the state of every sweep, by id, oldest first."""
        from experiments.studies import home_of

        here = home_of(self._settings)
        found: dict[str, State] = {}
        for sweep_id, studies in self._sweeps.items():
            is_here = any(one.attrs["home"] == here for one in studies)
            if is_here and _is_held(self._settings.home, sweep_id):
                found[sweep_id] = "running"
            elif all(one.finished for one in studies):
                found[sweep_id] = "done"
            else:
                found[sweep_id] = "interrupted" if is_here else "elsewhere"
        return found

    def read(self, states: dict[str, State]) -> list[SweepStatus]:
        """Returns the sweeps named, in their order."""
        ids = [one.study_id for sweep_id in states for one in self._sweeps[sweep_id]]
        trials = self._read_trials(ids)
        n_retries = self._count_retries(ids)
        bests = {study_id: _find_best(trials[study_id]) for study_id in ids}
        params = self._read_params([one.trial_id for one in bests.values() if one is not None])
        found = []
        for sweep_id, state in states.items():
            studies = self._sweeps[sweep_id]
            of_sweep = [trial for one in studies for trial in trials[one.study_id]]
            spans = _find_spans(of_sweep) if state == "running" else []
            parts = []
            for one in studies:
                best = bests[one.study_id]
                part = _summarise(one, trials[one.study_id], n_retries.get(one.study_id, 0), spans)
                if best is not None and best.value is not None:
                    known = BestTrial(best.number, best.value, params.get(best.trial_id, {}))
                    part = dataclasses.replace(part, best=known)
                parts.append(part)
            began = min((one.began for one in of_sweep if one.began is not None), default=None)
            attrs = studies[0].attrs
            found.append(
                SweepStatus(
                    sweep_id=sweep_id,
                    experiment=attrs.get("experiment"),
                    state=state,
                    home=attrs["home"],
                    created_at=None if began is None else began.replace(tzinfo=UTC),
                    studies=tuple(parts),
                )
            )
        return found
