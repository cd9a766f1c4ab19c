"""Whole sweeps, but for the training, that are harmed while they draw."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from optuna.distributions import IntDistribution

from experiments import run_sweep
from experiments.config import SweepConfig
from experiments.figures.task import Drawn, DrawTask, run_drawing
from experiments.tasks import Training
from experiments.training import OnEpoch, Trained
from experiments.trial import Fitted
from mlops.mlflow_store import open_client
from tests.conftest import Tracking
from tests.experiments.bare_trials import describe_flat
from tests.experiments.test_sweep import Notes, plots_of, runs_of
from tests.faults.zeros import write_network

SPACE = {"units": IntDistribution(1, 100)}


class Here:
    """Two workers that train nothing, in this process."""

    has_own_homes = False

    def __init__(self, draw: Callable[[DrawTask], Any]) -> None:
        self._draw = draw
        self._done: deque[int] = deque()
        self._found: list[Any] = []
        self.killed = False

    def n_alive(self) -> int:
        return 2

    def n_joining(self) -> int:
        return 0

    def submit(self, call: Any, task: Any) -> int:
        self._found.append(self._draw(task) if call is run_drawing else call(task, fit))
        self._done.append(len(self._found) - 1)
        return self._done[-1]

    def next_done(self, timeout_s: float) -> int | None:
        return self._done.popleft() if self._done else None

    def result(self, ticket: int) -> Any:
        return self._found[ticket]

    def call(self, function: Any, *args: Any) -> Any:
        return describe_flat(SPACE, {"units": 32})

    def end_silent(self) -> None:
        return None

    def kill(self) -> None:
        self.killed = True


def fit(training: Training, on_epoch: OnEpoch, *_: Any) -> Fitted:
    metrics = {"train_loss": 1.0, "val_accuracy": training.params["units"] / 100}
    on_epoch(0, metrics)
    trained = Trained(None, (metrics,), 0, metrics["val_accuracy"], False, "0" * 64)
    return Fitted(trained, write_network)


@pytest.fixture
def config(request: pytest.FixtureRequest) -> SweepConfig:
    return SweepConfig(
        architectures=("nobody:Flat",),
        trials=5,
        epochs=1,
        sampler="random",
        experiment=request.node.name,
    )


def test_a_sweep_that_is_interrupted_while_it_draws_draws_again_with_the_same_command(
    tracking: Tracking, config: SweepConfig
) -> None:
    def interrupt(_: DrawTask) -> Drawn:
        signal.raise_signal(signal.SIGINT)
        return Drawn({"half.png": b""}, [])

    workers = Here(interrupt)
    settings, quiet = tracking.settings, Notes()
    first = run_sweep(config, settings=settings, cluster=workers, progress=quiet)  # type: ignore[arg-type]
    assert first.interrupted and workers.killed and first.studies[0].candidate is None

    workers = Here(lambda _: Drawn({"whole.png": b""}, []))
    last = run_sweep(config, settings=settings, cluster=workers, progress=quiet)  # type: ignore[arg-type]
    assert last.sweep_id == first.sweep_id and not last.interrupted and last.undelivered == 0
    (study,) = last.studies
    assert study.n_complete == 5 and study.best is not None and study.candidate is not None
    client = open_client(tracking.url)
    plots = plots_of(client, study.best.run_id)
    assert plots == {"whole.png", "learning_curves.png", "learning_curves.csv"}
    (parent,), children = runs_of(client, last.sweep_id)
    assert parent.info.status == "FINISHED" and len(children) == 5
    files = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert files >= {"parallel_coordinates.png", "slice.png", "report.html"}


def test_a_figure_that_cannot_be_drawn_ends_no_sweep(
    tracking: Tracking, config: SweepConfig
) -> None:
    workers, notes = Here(lambda _: Drawn({}, ["confusion: ValueError: odd"])), Notes()
    result = run_sweep(config, settings=tracking.settings, cluster=workers, progress=notes)  # type: ignore[arg-type]
    assert not result.interrupted and result.studies[0].candidate is not None
    assert [line for line in notes.lines if "figure" in line] == [
        f"{result.studies[0].study}: no figure; confusion: ValueError: odd."
    ]
