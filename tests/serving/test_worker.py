"""A worker does what the parent wants, and goes on where it cannot."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlops.errors import MlopsError
from registry.serving.invocations import Answering
from registry.serving.metrics import Meter
from registry.serving.state import Desired, Role, StateFolder, Wanted
from registry.serving.worker import Worker

NOTHING = Meter(lambda: None, lambda: None, lambda: None, lambda seconds: None)
PID = 4321


class Model:
    def __init__(self, folder: str) -> None:
        self.folder = folder

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Any:
        return self.folder


def load(wanted: Wanted) -> Model:
    if wanted.folder == "bad":
        raise MlopsError("it answers otherwise")
    return Model(wanted.folder)


def meter(version: int, role: Role) -> Meter:
    return NOTHING


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    made = StateFolder(tmp_path / "state")
    made.create()
    made.clean()
    return made


@pytest.fixture
def worker(folder: StateFolder) -> Worker:
    folder.write_desired(Desired({7: Wanted("seven", "")}, champion=7))
    made = Worker(folder, load, meter, shadow=lambda offer: None, pid=PID)
    made.start()
    return made


def says(answering: Answering) -> Any:
    return answering.champion.predict(None, None)


def test_it_answers_with_the_first_champion_and_says_so(
    folder: StateFolder, worker: Worker
) -> None:
    assert says(worker.answering) == "seven"
    report = folder.read_reports()[PID]
    assert report.serving
    assert report.champion == 7
    assert report.loaded[7] >= 0


def test_it_loads_beside_what_answers_and_swaps_only_when_told(
    folder: StateFolder, worker: Worker
) -> None:
    both = {7: Wanted("seven", ""), 8: Wanted("eight", "")}
    folder.write_desired(Desired(both, champion=7))
    worker.look()
    assert says(worker.answering) == "seven"
    assert set(folder.read_reports()[PID].loaded) == {7, 8}
    folder.write_desired(Desired({8: both[8]}, champion=8))
    worker.look()
    assert says(worker.answering) == "eight"
    report = folder.read_reports()[PID]
    assert (report.champion, set(report.loaded)) == (8, {8})


def test_a_model_that_cannot_be_loaded_is_reported_and_the_old_one_answers(
    folder: StateFolder, worker: Worker
) -> None:
    wanted = {7: Wanted("seven", ""), 8: Wanted("bad", "")}
    folder.write_desired(Desired(wanted, champion=7))
    worker.look()
    assert says(worker.answering) == "seven"
    assert folder.read_reports()[PID].refused == {8: "it answers otherwise"}
    # Taken back and wanted again, it is tried again.
    folder.write_desired(Desired({7: wanted[7]}, champion=7))
    worker.look()
    assert folder.read_reports()[PID].refused == {}


def test_a_model_that_is_dropped_is_freed_when_its_last_request_ended(
    folder: StateFolder, worker: Worker
) -> None:
    request = worker.answering
    model = weakref.ref(request.champion.predict.__self__)  # type: ignore[attr-defined]
    folder.write_desired(Desired({8: Wanted("eight", "")}, champion=8))
    worker.look()
    assert says(request) == "seven"
    del request
    gc.collect()
    assert model() is None


def test_a_challenger_answers_its_share_and_goes_when_it_is_withdrawn(
    folder: StateFolder, worker: Worker
) -> None:
    both = {7: Wanted("seven", ""), 8: Wanted("eight", "")}
    desired = Desired(both, champion=7, challenger=8, challenger_share=0.25, shadow=True)
    folder.write_desired(desired)
    worker.look()
    assert worker.answering.pick(0.24).version == 8
    assert worker.answering.pick(0.25).version == 7
    assert worker.answering.shadow is not None
    folder.write_desired(replace(desired, wanted={7: both[7]}, challenger=None))
    worker.look()
    assert worker.answering.pick(0.0).version == 7


def test_it_answers_before_it_loads_what_is_only_tried(folder: StateFolder) -> None:
    both = {8: Wanted("eight", ""), 7: Wanted("seven", "")}
    folder.write_desired(Desired(both, champion=7))
    worker = Worker(folder, load, meter, pid=PID)
    worker.start()
    report = folder.read_reports()[PID]
    assert (report.serving, set(report.loaded)) == (True, {7})
    worker.look()
    assert set(folder.read_reports()[PID].loaded) == {7, 8}


def test_a_first_champion_that_cannot_be_loaded_ends_the_worker(folder: StateFolder) -> None:
    folder.write_desired(Desired({7: Wanted("bad", "")}, champion=7))
    with pytest.raises(MlopsError, match="version 7 cannot be served: it answers otherwise"):
        Worker(folder, load, meter, pid=PID).start()
    assert folder.read_reports()[PID].refused == {7: "it answers otherwise"}


def test_a_parent_that_is_gone_changes_nothing_of_what_answers(
    folder: StateFolder, worker: Worker
) -> None:
    folder.desired.write_text("{")
    worker.look()
    folder.desired.unlink()
    worker.look()
    assert says(worker.answering) == "seven"
