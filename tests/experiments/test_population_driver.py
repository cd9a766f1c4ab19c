"""The driver's side of populations: which trials go together, and what a worker's death costs.

Trials train nothing and run in this process; studies, journals and the tracking server are real.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from experiments.config import SweepConfig
from experiments.population_trial import PopulationTask, run_population
from experiments.progress import Lines
from experiments.storage import open_storage
from experiments.sweep import main, run_sweep
from experiments.tasks import Training, TrialResult
from experiments.training import OnEpoch, Trained
from experiments.trial import Fitted, run_trial
from experiments.workers.cluster import WorkerDiedError
from mlops.mlflow_store import open_client
from mlops.settings import Settings
from tests.conftest import Tracking
from tests.experiments.bare_trials import describe_flat
from tests.faults.zeros import write_network

SPACE = {
    "units": optuna.distributions.CategoricalDistribution([16, 32, 64]),
    "learning_rate": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
}
Run = Callable[[PopulationTask], list[TrialResult | None]]


def fit(training: Training, on_epoch: OnEpoch, refit: bool) -> Fitted:
    """Trains nothing: the better the learning rate fits, the better the network."""
    value = 1 - abs(training.params["learning_rate"] - 3e-3)
    history = [{"train_loss": 1.0, "val_accuracy": value} for _ in range(training.epochs)]
    for epoch, metrics in enumerate(history):
        on_epoch(epoch, metrics)
    return Fitted(Trained(None, tuple(history), 0, value, False, "0" * 64), write_network)


def run_all(task: PopulationTask) -> list[TrialResult | None]:
    return [run_trial(one, fit) for one in task.trials]


class Here:
    """Two workers that are this process; `runs` are what becomes of one population after another.

    Attributes:
        tasks: All that were submitted.
    """

    def __init__(self, *runs: Run) -> None:
        self.tasks: list[PopulationTask] = []
        self._runs = deque(runs)
        self._done: deque[int] = deque()
        self._results: dict[int, Any] = {}

    def n_alive(self) -> int:
        return 2

    def n_joining(self) -> int:
        return 0

    @property
    def has_own_homes(self) -> bool:
        return False

    def submit(self, call: Callable[..., Any], task: Any) -> int:
        assert call is run_population
        self.tasks.append(task)
        run = self._runs.popleft() if self._runs else run_all
        try:
            found: Any = run(task)
        except WorkerDiedError as err:
            found = err
        ticket = len(self.tasks)
        self._results[ticket] = found
        self._done.append(ticket)
        return ticket

    def next_done(self, timeout_s: float) -> int | None:
        return self._done.popleft() if self._done else None

    def result(self, ticket: int) -> Any:
        found = self._results.pop(ticket)
        if isinstance(found, Exception):
            raise found
        return found

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return describe_flat(SPACE, {"units": 32, "learning_rate": 1e-3}, "learning_rate")

    def end_silent(self, silent_s: float = 60.0) -> None:
        pass

    def kill(self) -> None:
        pass


@pytest.fixture(autouse=True)
def on_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")


def sweep(settings: Settings, workers: Here, experiment: str, **changed: Any) -> Any:
    config = SweepConfig(
        architectures=("nobody:Flat",),
        **{"trials": 12, "epochs": 2, "population": 3, "sampler": "random"} | changed,
        experiment=experiment,
        plots="none",
    )
    with Lines() as progress:
        return run_sweep(config, settings=settings, cluster=workers, progress=progress)


def states(settings: Settings, result: Any) -> Counter[str]:
    name = result.studies[0].study
    study = optuna.load_study(study_name=name, storage=open_storage(settings.study_url))
    return Counter(trial.state.name for trial in study.trials)


def shapes_of(task: PopulationTask) -> set[int]:
    return {one.training.params["units"] for one in task.trials}


def test_trials_of_one_shape_go_together_and_none_is_asked_for_too_many(
    tracking: Tracking,
) -> None:
    workers = Here()
    result = sweep(tracking.settings, workers, "together")
    assert states(tracking.settings, result) == {"COMPLETE": 12}
    assert all(len(shapes_of(task)) == 1 for task in workers.tasks)
    assert all(task.size == 3 for task in workers.tasks)
    sizes = [len(task.trials) for task in workers.tasks]
    assert max(sizes) == 3 and sum(sizes) == 12  # two epochs: nothing is pruned
    rates = [one.training.params["learning_rate"] for t in workers.tasks for one in t.trials]
    assert len(set(rates)) == 12
    client = open_client(tracking.url)
    (experiment,) = client.search_experiments(filter_string="name = 'together'")
    runs = client.search_runs([experiment.experiment_id], "tags.`mlops.population` = '3'")
    assert len(runs) == 12 and {run.info.status for run in runs} == {"FINISHED"}


def test_where_trials_are_pruned_more_are_sent_than_fit_in(tracking: Tracking) -> None:
    workers = Here()
    sweep(tracking.settings, workers, "pruned", pruner="median", epochs=5, trials=20)
    assert max(len(task.trials) for task in workers.tasks) == 6


def test_a_worker_that_dies_takes_no_trial_along_that_had_ended(tracking: Tracking) -> None:
    def die_after_two(task: PopulationTask) -> list[TrialResult | None]:
        for one in task.trials[:2]:
            run_trial(one, fit)
        raise WorkerDiedError("the worker's process was killed")

    workers = Here(die_after_two)
    result = sweep(tracking.settings, workers, "died", trials=9)
    died = workers.tasks[0].trials
    assert len(died) == 3
    assert states(tracking.settings, result) == {"COMPLETE": 9, "FAIL": 1}
    again = [
        one.training.params
        for task in workers.tasks[1:]
        for one in task.trials
        if one.training.params in [each.training.params for each in died]
    ]
    assert again == [died[2].training.params]


def test_trials_that_never_began_are_asked_for_again(tracking: Tracking) -> None:
    def begin_one(task: PopulationTask) -> list[TrialResult | None]:
        failed = TrialResult("failed", None, None, None, reason="out of memory")
        return [failed, *(None for _ in task.trials[1:])]

    workers = Here(begin_one)
    result = sweep(tracking.settings, workers, "failed", trials=6)
    assert states(tracking.settings, result) == {"COMPLETE": 6, "FAIL": 3}


@pytest.mark.parametrize(
    ("args", "env", "said"),
    [
        (["--population", "1"], {}, "--population must be at least 2"),
        (["--population", "4", "--sampler", "grid"], {}, "use tpe or random"),
        (["--population", "4"], {"KERAS_BACKEND": "tensorflow"}, "Put KERAS_BACKEND=jax before"),
    ],
)
def test_a_population_that_cannot_be_is_refused_before_anything_is_made(
    args: list[str],
    env: dict[str, str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path / "home"))
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert main(args) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "home").exists()
