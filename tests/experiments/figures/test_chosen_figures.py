"""The driver's side: what is asked of workers, and what becomes of what they draw."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.config import SweepConfig
from experiments.figures import chosen as chosen_figures
from experiments.figures.chosen import ChosenFigures
from experiments.figures.task import Drawn, DrawTask, run_drawing
from experiments.networks import Networks
from experiments.runs import SweepRuns
from experiments.study import Search
from experiments.workers.cluster import WorkerDiedError
from mlops.data import load_dataset
from mlops.errors import MlopsError
from mlops.journal import Journal, read_records
from mlops.settings import Settings
from tests.experiments.figures.test_study_figures import HISTORY, by_learning_rate, open_study, play
from tests.faults.zeros import write_network

DRAWN = Drawn({"confusion_matrix.png": b"png", "per_class.csv": b"csv"}, [])
Draw = Callable[[DrawTask], Any]


class Here:
    """Workers that do at once what a test says; what it raises is the end of the call."""

    def __init__(self, draw: Draw, n_alive: int = 1, own_homes: bool = False) -> None:
        self.tasks: list[DrawTask] = []
        self.has_own_homes = own_homes
        self._draw = draw
        self._n_alive = n_alive
        self._done: deque[int] = deque()
        self._found: dict[int, Any] = {}

    def n_alive(self) -> int:
        return self._n_alive

    def end_silent(self) -> None:
        return None

    def submit(self, call: Any, task: DrawTask) -> int:
        assert call is run_drawing and len(self._found) < self._n_alive
        self.tasks.append(task)
        try:
            found: Any = self._draw(task)
        except Exception as err:
            found = err
        ticket = len(self.tasks)
        self._found[ticket] = found
        if found is not None:
            self._done.append(ticket)
        return ticket

    def next_done(self, timeout_s: float) -> int | None:
        return self._done.popleft() if self._done else None

    def result(self, ticket: int) -> Any:
        found = self._found.pop(ticket)
        if isinstance(found, Exception):
            raise found
        return found


class Stage:
    """A sweep whose searches are over."""

    def __init__(self, home: Path, **options: Any) -> None:
        self.config = SweepConfig(**options)
        self.settings = Settings.from_env({"MLOPS_HOME": str(home)})
        self.notes: list[str] = []
        self.dataset = load_dataset("digits")
        self.journal = Journal(home / "journal" / "sweep", "driver")
        runs = SweepRuns(self.journal, self.config, self.dataset, "sweep", {})
        self.networks = Networks(self.settings, "sweep", self.dataset, runs, self.notes.append)

    def search(self, key: str = "key-0") -> Search:
        curves = {"epoch": [0.0], "val_accuracy": [HISTORY[0]["val_accuracy"]]}
        search = play(open_study(1), by_learning_rate, curves=curves)
        search.study.set_user_attr("run_key", key)
        best = search.best()
        assert best is not None
        best.user_attrs["run_key"] = key
        write_network(self.networks.path(search, "00000"))
        return search

    def draw(self, workers: Here, *searches: Search, must_stop: Any = lambda: False) -> bool:
        figures = ChosenFigures(self.config, workers, self.networks)  # type: ignore[arg-type]
        return figures.draw(searches, must_stop)

    def logged(self) -> list[tuple[str, str, set[str]]]:
        """Run, folder and names of the files of each artifact record."""
        found = []
        for record in read_records(self.journal.path):
            if record.kind == "artifact":
                spooled = self.journal.folder / record.fields["spooled"]
                names = {path.name for path in spooled.iterdir()}
                found.append((record.run, record.fields["folder"], names))
        return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


CURVES = {"learning_curves.png", "learning_curves.csv"}


def test_what_workers_drew_is_logged_to_the_runs_of_the_best_trials(home: Path) -> None:
    stage, workers = Stage(home, log_rows=True), Here(lambda _: DRAWN)
    assert not stage.draw(workers, stage.search("a"), stage.search("b"))
    assert stage.notes == []
    assert [(run, folder) for run, folder, _ in stage.logged()] == [
        *[("a", "plots")] * 2,
        *[("b", "plots")] * 2,
    ]
    assert [names for _, _, names in stage.logged()] == [CURVES, set(DRAWN.files)] * 2
    (task, _) = workers.tasks
    assert task.network.is_file() and task.content is None and task.log_rows
    assert task.dataset_fingerprint == stage.dataset.fingerprint


def test_a_worker_with_a_home_of_its_own_gets_the_network_and_looks_in_its_own_folder(
    home: Path,
) -> None:
    stage, workers = Stage(home), Here(lambda _: DRAWN, own_homes=True)
    stage.draw(workers, stage.search())
    (task,) = workers.tasks
    assert task.content == task.network.read_bytes() and not task.log_rows
    assert repr(task.content)[2:20] not in repr(task)
    assert task.moved(Path("/own"), "http://server").datasets_folder == Path("/own/datasets")


def test_nothing_is_drawn_where_nothing_is_wanted(home: Path) -> None:
    stage, workers = Stage(home, plots="none"), Here(lambda _: DRAWN)
    stage.draw(workers, stage.search())
    assert not workers.tasks and not stage.logged() and not stage.notes


def test_a_worker_that_dies_costs_a_sentence_and_the_next_study_is_drawn(home: Path) -> None:
    ends = iter((WorkerDiedError("the worker's process was killed"), ValueError("odd"), DRAWN))

    def end(_: DrawTask) -> Any:
        found = next(ends)
        if isinstance(found, Exception):
            raise found
        return found

    stage = Stage(home)
    stage.draw(Here(end), *(stage.search(key) for key in "abc"))
    assert stage.notes == [
        "sweep-thing: no figures; the worker's process was killed.",
        "sweep-thing: no figures; odd.",
    ]
    logged = [(run, names) for run, _, names in stage.logged() if names != CURVES]
    assert logged == [("c", set(DRAWN.files))]


def test_a_figure_that_failed_is_said_and_the_others_are_logged(home: Path) -> None:
    stage = Stage(home)
    drawn = Drawn(DRAWN.files, ["ranking: ValueError: odd"])
    stage.draw(Here(lambda _: drawn), stage.search())
    assert stage.notes == ["sweep-thing: no figure; ranking: ValueError: odd."]
    assert stage.logged()[-1][2] == set(DRAWN.files)


def test_a_network_that_is_gone_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(home)
    search = stage.search()
    stage.networks.path(search, "00000").unlink()
    monkeypatch.setattr("experiments.networks.fetch_network", lambda *_: False)
    stage.draw(Here(lambda _: DRAWN), search)
    assert stage.notes == ["sweep-thing: no figures; the network 00000 is gone."]


def test_an_interrupt_ends_the_waiting_at_once(home: Path) -> None:
    stage = Stage(home)
    asked = iter((False, False, True))
    began = time.monotonic()
    assert stage.draw(Here(lambda _: None), stage.search(), must_stop=lambda: next(asked))
    assert time.monotonic() - began < 5
    assert [names for _, _, names in stage.logged()] == [CURVES]


def test_workers_that_never_answer_are_not_waited_for_for_ever(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chosen_figures, "PATIENCE_S", 0.05)
    stage = Stage(home)
    stage.draw(Here(lambda _: None, n_alive=0), stage.search())
    assert stage.notes == ["no figure was drawn for 0 s; no more are waited for."]


def test_a_cluster_that_is_gone_costs_the_figures_alone(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = Here(lambda _: DRAWN)

    def gone() -> None:
        raise MlopsError("the scheduler is gone")

    monkeypatch.setattr(workers, "end_silent", gone)
    stage = Stage(home)
    stage.draw(workers, stage.search())
    assert stage.notes == ["no more figures are drawn: the scheduler is gone"]


def test_a_network_that_may_not_be_loaded_is_refused_in_a_sentence(tmp_path: Path) -> None:
    network = tmp_path / "00000.keras"
    network.write_bytes(b"something else")
    task = DrawTask(network, None, "classifier", None, "f" * 64, "", tmp_path, False)
    drawn = run_drawing(task)
    assert drawn.files == {} and len(drawn.problems) == 1
    assert drawn.problems[0].startswith("StructureError: 00000.keras ")
