"""Signs of life: of a driver, for other homes, and of a worker, for its driver."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import dask
import optuna
import pytest

from experiments.beat import beating, is_beating
from experiments.storage import open_storage
from experiments.workers.cluster import Cluster, WorkerDiedError, open_cluster


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    storage = open_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    study = optuna.create_study(study_name="s-dnn", storage=storage)
    needed = {"sweep": "s", "home": "there:/home", "architecture_path": "m:T", "target": 3}
    for key, value in {**needed, "config_fingerprint": "f", "run_key": "k"}.items():
        study.set_user_attr(key, value)
    return study


def test_a_driver_is_seen_while_it_drives_and_not_after(study: optuna.Study) -> None:
    storage = study._storage._backend
    assert not is_beating(storage, "s")
    with beating([study], every_s=0.1):
        while study.user_attrs.get("beat") is None:
            time.sleep(0.02)
        assert is_beating(storage, "s", silent_s=10)
    assert not is_beating(storage, "s")


def test_a_driver_that_was_killed_is_waited_for_and_then_not_seen(study: optuna.Study) -> None:
    study.set_user_attr("beat", 7)
    began = time.monotonic()
    assert not is_beating(study._storage._backend, "s", silent_s=0.5)
    assert time.monotonic() - began >= 0.5


def take(cluster: Cluster, ticket: object) -> object:
    while cluster.next_done(0.1) is not ticket:
        cluster.end_silent(silent_s=4.0)
    return cluster.result(ticket)


def test_a_worker_that_stands_still_is_ended_and_another_takes_its_place(tmp_path: Path) -> None:
    with open_cluster(1, 1, tmp_path / "workers.log", preload="tests.idle_worker") as cluster:
        stopped = take(cluster, cluster.submit(os.getpid))
        assert isinstance(stopped, int)
        ticket = cluster.submit(time.sleep, 600)
        while not any(worker.processing for _, worker in cluster._workers()):
            time.sleep(0.05)
        os.kill(stopped, signal.SIGSTOP)
        with pytest.raises(WorkerDiedError, match="gave no sign of life for 4 s"):
            take(cluster, ticket)
        assert take(cluster, cluster.submit(os.getpid)) != stopped


def return_pid(calls: Path) -> int:
    with calls.open("a") as file:
        file.write("called\n")
    return os.getpid()


def test_a_worker_that_dies_with_its_result_does_not_run_the_call_again(tmp_path: Path) -> None:
    with open_cluster(1, 1, tmp_path / "workers.log", preload="tests.idle_worker") as cluster:
        calls = tmp_path / "calls"
        ticket = cluster.submit(return_pid, calls)
        assert cluster.next_done(30) is ticket
        ((first, _),) = cluster._workers()
        os.kill(first, signal.SIGKILL)
        # Dask hears of the death, and runs the call anew in the worker that takes the place.
        while first in (pids := [pid for pid, _ in cluster._workers()]) or not pids:
            time.sleep(0.05)
        take(cluster, cluster.submit(os.getpid))
        assert cluster.result(ticket) == first
    assert calls.read_text() == "called\n"


def test_a_worker_has_long_to_come_back(tmp_path: Path) -> None:
    with open_cluster(1, 1, tmp_path / "workers.log", preload="tests.idle_worker"):
        wait_s = dask.utils.parse_timedelta(
            dask.config.get("distributed.deploy.lost-worker-timeout")
        )
        assert wait_s >= 600
