"""A worker does what the parent wants, and goes on where it cannot."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from mlops.errors import MlopsError
from registry.serving.invocations import Answering
from registry.serving.metrics import Meter
from registry.serving.shadow import Offer
from registry.serving.state import Desired, Report, Role, StateFolder, Wanted
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
def worker(folder: StateFolder) -> Worker:
    folder.write_desired(Desired({"7": Wanted(7, "seven", "")}, champion="7"))
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
    assert report.loaded["7"] >= 0


def test_it_loads_beside_what_answers_and_swaps_only_when_told(
    folder: StateFolder, worker: Worker
) -> None:
    both = {"7": Wanted(7, "seven", ""), "8": Wanted(8, "eight", "")}
    folder.write_desired(Desired(both, champion="7"))
    worker.look()
    assert says(worker.answering) == "seven"
    assert set(folder.read_reports()[PID].loaded) == {"7", "8"}
    folder.write_desired(Desired({"8": both["8"]}, champion="8"))
    worker.look()
    assert says(worker.answering) == "eight"
    report = folder.read_reports()[PID]
    assert (report.champion, set(report.loaded)) == (8, {"8"})


def test_a_model_that_cannot_be_loaded_is_reported_and_the_old_one_answers(
    folder: StateFolder, worker: Worker
) -> None:
    wanted = {"7": Wanted(7, "seven", ""), "8": Wanted(8, "bad", "")}
    folder.write_desired(Desired(wanted, champion="7"))
    worker.look()
    assert says(worker.answering) == "seven"
    assert folder.read_reports()[PID].refused == {"8": "it answers otherwise"}
    # Taken back and wanted again, it is tried again.
    folder.write_desired(Desired({"7": wanted["7"]}, champion="7"))
    worker.look()
    assert folder.read_reports()[PID].refused == {}


def test_a_model_that_is_dropped_is_freed_when_its_last_request_ended(
    folder: StateFolder, worker: Worker
) -> None:
    request = worker.answering
    model = weakref.ref(request.champion.predict.__self__)  # type: ignore[attr-defined]
    folder.write_desired(Desired({"8": Wanted(8, "eight", "")}, champion="8"))
    worker.look()
    assert says(request) == "seven"
    del request
    gc.collect()
    assert model() is None


def test_a_watcher_is_given_what_was_answered_until_it_is_withdrawn(folder: StateFolder) -> None:
    offers: list[tuple[Any, ...]] = []
    both = {"7": Wanted(7, "seven", ""), "2": Wanted(2, "/r/2-aa", "")}
    folder.write_desired(Desired({"7": both["7"]}, champion="7"))
    worker = Worker(folder, load, meter, pid=PID, watch=lambda *one: offers.append(one))
    worker.start()
    assert worker.answering.watch is None
    folder.write_desired(Desired(both, champion="7"))
    worker.look()
    assert worker.answering.watch is None
    folder.write_desired(Desired(both, champion="7", watcher="2"))
    worker.look()
    assert worker.answering.watch is not None
    worker.answering.watch([[1.0]], 1)
    ((rows, n, under, predict),) = offers
    assert (rows, n, under, predict(rows)) == ([[1.0]], 1, "2-aa", "/r/2-aa")
    folder.write_desired(Desired({"7": both["7"]}, champion="7"))
    worker.look()
    assert worker.answering.watch is None
    assert set(folder.read_reports()[PID].loaded) == {"7"}


def test_a_challenger_answers_its_share_and_goes_when_it_is_withdrawn(
    folder: StateFolder, worker: Worker
) -> None:
    both = {"7": Wanted(7, "seven", ""), "8": Wanted(8, "eight", "")}
    desired = Desired(both, champion="7", challenger="8", challenger_share=0.25, shadow=True)
    folder.write_desired(desired)
    worker.look()
    assert worker.answering.pick(0.24).version == 8
    assert worker.answering.pick(0.25).version == 7
    assert worker.answering.shadow is not None
    folder.write_desired(replace(desired, wanted={"7": both["7"]}, challenger=None))
    worker.look()
    assert worker.answering.pick(0.0).version == 7


def test_it_answers_before_it_loads_what_is_only_tried(folder: StateFolder) -> None:
    both = {"8": Wanted(8, "eight", ""), "7": Wanted(7, "seven", "")}
    folder.write_desired(Desired(both, champion="7"))
    worker = Worker(folder, load, meter, pid=PID)
    worker.start()
    report = folder.read_reports()[PID]
    assert (report.serving, set(report.loaded)) == (True, {"7"})
    worker.look()
    assert set(folder.read_reports()[PID].loaded) == {"7", "8"}


def test_a_first_champion_that_cannot_be_loaded_ends_the_worker(folder: StateFolder) -> None:
    folder.write_desired(Desired({"7": Wanted(7, "bad", "")}, champion="7"))
    with pytest.raises(MlopsError, match="version 7 cannot be served: it answers otherwise"):
        Worker(folder, load, meter, pid=PID).start()
    assert folder.read_reports()[PID].refused == {"7": "it answers otherwise"}


def test_a_champion_that_changed_while_it_started_is_loaded_before_it_answers(
    folder: StateFolder,
) -> None:
    both = {"7": Wanted(7, "seven", ""), "8": Wanted(8, "eight", "")}

    class Late(StateFolder):
        def write_report(self, report: Report) -> None:
            super().write_report(report)
            if report.serving and report.champion == 7:  # the others are told at this moment
                folder.write_desired(Desired({"8": both["8"]}, champion="8"))

    folder.write_desired(Desired({"7": both["7"]}, champion="7"))
    worker = Worker(Late(folder.path), load, meter, pid=PID)
    worker.start()
    assert says(worker.answering) == "eight"
    assert folder.read_reports()[PID].champion == 8


def test_a_new_try_is_loaded_though_the_last_one_was_refused(
    folder: StateFolder, worker: Worker
) -> None:
    seven = Wanted(7, "seven", "")
    for key, place, loaded in (("8.1", "bad", {"7"}), ("8.2", "eight", {"7", "8.2"})):
        folder.write_desired(Desired({"7": seven, key: Wanted(8, place, "")}, champion="7"))
        worker.look()
        assert set(folder.read_reports()[PID].loaded) == loaded
    assert folder.read_reports()[PID].refused == {}


def test_a_report_that_could_not_be_written_is_written_later(
    folder: StateFolder, worker: Worker
) -> None:
    reports = folder.path / "workers"
    reports.rename(folder.path / "away")
    folder.write_desired(Desired({"8": Wanted(8, "eight", "")}, champion="8"))
    worker.look()
    assert says(worker.answering) == "eight"
    (folder.path / "away").rename(reports)
    assert folder.read_reports()[PID].champion == 7
    worker.beat()
    assert folder.read_reports()[PID].champion == 8


def test_the_shadow_is_told_where_the_challenger_has_the_champions_classes(
    folder: StateFolder,
) -> None:
    class Classes(Model):
        def __init__(self, folder: str) -> None:
            super().__init__(folder)
            self.class_names = folder.split("-")

    both = {"7": Wanted(7, "a-b-c", ""), "8": Wanted(8, "c-a-b", "")}
    folder.write_desired(Desired(both, champion="7", challenger="8", shadow=True))
    offers: list[Offer] = []
    worker = Worker(folder, lambda one: Classes(one.folder), meter, offers.append, PID)
    worker.start()
    worker.look()
    assert worker.answering.shadow is not None
    worker.answering.shadow(Offer([], None, [], 7, 8, lambda rows, params: None))
    assert offers[0].columns == (1, 2, 0)


def test_a_parent_that_is_gone_changes_nothing_of_what_answers(
    folder: StateFolder, worker: Worker
) -> None:
    folder.desired.write_text("{")
    worker.look()
    folder.desired.unlink()
    worker.look()
    assert says(worker.answering) == "seven"
