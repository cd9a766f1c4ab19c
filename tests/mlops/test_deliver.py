"""The delivery of a host that only trains: journals of runs that another host creates."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlops import deliver as program
from mlops.deliver import deliver, find_unreachable, main, start_delivery
from mlops.drain import Delivery, hold_folder
from mlops.journal import AWAY, Journal, find_journals
from mlops.mlflow_sink import MlflowSink
from mlops.mlflow_store import open_client
from mlops.stores.journal_state import is_delivered_now
from mlops.tracking import RUN_KEY, Run, new_run_key
from tests.conftest import Tracking


@pytest.fixture
def client(tracking: Tracking) -> Any:
    return open_client(tracking.url)


def write_away(folder: Path, key: str, value: float = 1.0) -> None:
    with Journal(folder, f"{AWAY}-cnn-00000") as journal:
        run = Run(journal, key)
        run.log_metrics({"loss": value}, step=0)
        run.end("FINISHED")


def create(folder: Path, client: Any, key: str) -> None:
    """The other host: creates the run, and delivers that."""
    with Journal(folder, "driver") as journal:
        Run.create(journal, experiment="away", name="cnn-00000", key=key)
    delivery = Delivery(folder, lambda: MlflowSink(client))
    while delivery.run_pass():
        pass
    assert not find_journals(folder)


def find(client: Any, key: str) -> list[Any]:
    ids = [one.experiment_id for one in client.search_experiments()]
    found: list[Any] = client.search_runs(ids, f"tags.`{RUN_KEY}` = '{key}'")
    return found


def test_what_speaks_of_a_run_that_nobody_knows_yet_waits_until_it_is_created(
    tmp_path: Path, client: Any
) -> None:
    key = new_run_key()
    write_away(tmp_path / "here", key)
    delivery = Delivery(tmp_path / "here", lambda: MlflowSink(client))
    while delivery.run_pass():  # of the journal's first line, which speaks of no run
        pass
    assert "waits for another journal" in delivery.problems[0]
    create(tmp_path / "there", client, key)
    while delivery.run_pass():
        pass
    (run,) = find(client, key)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"loss": 1.0})
    assert not find_journals(tmp_path / "here")


def test_one_process_a_folder_delivers_and_ends_when_nothing_comes_any_more(
    tmp_path: Path, client: Any
) -> None:
    folder, key = tmp_path / "sweep", new_run_key()
    create(tmp_path / "there", client, key)
    write_away(folder, key)
    done: list[int] = []
    first = threading.Thread(
        target=lambda: done.append(deliver(folder, lambda: MlflowSink(client), idle_s=1.5))
    )
    first.start()
    while not is_delivered_now(folder):
        time.sleep(0.01)
    assert deliver(folder, lambda: MlflowSink(client), idle_s=1.5) == 0  # at once
    assert first.is_alive()
    while find_journals(folder):
        time.sleep(0.05)
    write_away(folder, key, 2.0)  # of the next trial
    first.join(30)
    assert done == [4] and not folder.exists()
    assert find(client, key)[0].data.metrics == {"loss": 2.0}


def test_it_ends_where_nothing_can_be_delivered_for_long_and_keeps_what_is_left(
    tmp_path: Path,
) -> None:
    def refuse() -> Any:
        raise ConnectionError("nobody answers")

    write_away(tmp_path, new_run_key())
    assert deliver(tmp_path, refuse, stuck_s=0.5) == 0
    assert len(find_journals(tmp_path)) == 1


def test_a_process_is_started_once_and_outlives_who_started_it(
    tmp_path: Path, tracking: Tracking, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def note(*args: Any, **kwargs: Any) -> Any:
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(program.subprocess, "Popen", note)
    folder, key = tmp_path / "journal" / "sweep", new_run_key()
    create(tmp_path / "there", client, key)
    write_away(folder, key)
    start_delivery(folder, tmp_path, tracking.url)
    try:
        while find_journals(folder):
            assert started[0].poll() is None, (tmp_path / "logs" / "delivery.log").read_text()
            time.sleep(0.05)
        start_delivery(folder, tmp_path, tracking.url)
        assert len(started) == 1
        assert find(client, key)[0].info.status == "FINISHED"
        assert os.getsid(started[0].pid) == started[0].pid
        assert psutil.Process(started[0].pid).environ()["MLFLOW_TRACKING_URI"] == tracking.url
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_a_server_that_does_not_answer_is_said_without_the_password(
    tmp_path: Path, tracking: Tracking
) -> None:
    assert find_unreachable(tmp_path, tracking.url) is None
    said = str(find_unreachable(tmp_path, "http://ada:secret@127.0.0.1:9"))
    assert "the tracking server cannot be used" in said and "secret" not in said


def test_without_a_folder_it_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "there is no folder to deliver" in capsys.readouterr().err


def test_a_folder_that_another_delivers_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path / "home"))
    write_away(tmp_path / "sweep", new_run_key())
    with hold_folder(tmp_path / "sweep") as held:
        assert held and main([str(tmp_path / "sweep")]) == 0
    assert "0 records delivered" in capsys.readouterr().out
