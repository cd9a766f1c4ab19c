"""Sweeps whose workers keep their files in homes of their own, as those of other hosts do.

Two homes stand for two hosts; they meet in a real PostgreSQL, a real tracking server and a real
S3 store only. A host that dies for good is one whose processes are killed and whose home is gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from experiments.config import SweepConfig
from experiments.study import Tally
from experiments.sweep import main, run_sweep
from experiments.tasks import NETWORKS
from experiments.workers.cluster import Cluster
from experiments.workers.joining import CALLS, Place, Terms, join
from mlops.errors import MlopsError
from mlops.journal import find_journals
from mlops.settings import Settings
from mlops.stores.journal_state import find_folders, is_delivered_now
from mlops.sync import sync
from tests.conftest import Tracking
from tests.experiments.bare_trials import bare_config, read
from tests.experiments.test_cluster import (  # noqa: F401  # noqa: F401
    Processes,
    client,
    states_of,
    statuses_of,
    sweep,
    sweep_of,
    terms,
    wait_for,
)
from tests.experiments.test_sweep import Notes, runs_of
from tests.mlops.table_files import DIGITS
from tests.object_store import ObjectStore, open_object_store, use
from tests.registry.test_ledger import postgresql  # noqa: F401

pytestmark = pytest.mark.usefixtures("tracking")  # in one process: the server is made once
BEST_IS_EARLY, FALLING = 2, 0
"""Seeds of bare sweeps: with one of them the third trial is the best, with the other each is worse
than the one before."""


class Hosts:
    """A Dask cluster of hosts, each a home; `tracking_uri` is the server that all reach."""

    def __init__(self, folder: Path, tracking_uri: str) -> None:
        self.processes = Processes(folder)
        self._folder = folder
        self._tracking_uri = tracking_uri
        self._dask: dict[str, Any] = {}
        self.processes.start_scheduler()

    @property
    def address(self) -> str:
        return self.processes.address

    def home(self, name: str) -> Path:
        return self._folder / name

    def start(self, name: str) -> None:
        env = {"MLOPS_HOME": str(self.home(name)), "MLFLOW_TRACKING_URI": self._tracking_uri}
        args = ("--nthreads", "1", "--preload", "experiments.trial")
        self._dask[name] = self.processes.start_workers(*args, env=env)

    def end(self, name: str) -> None:
        """Kills all that runs on a host."""
        self.processes.end(self._dask.pop(name))
        left = self.deliveries(name)
        for process in left:
            process.kill()
        psutil.wait_procs(left, 20)
        # One that was killed with its worker has no command line any more, but for a moment a lock.
        wait_for(lambda: not any(map(is_delivered_now, find_folders(self.home(name)))))

    def lose(self, name: str) -> None:
        """A host that dies for good."""
        self.end(name)
        shutil.rmtree(self.home(name))

    def deliveries(self, name: str) -> list[psutil.Process]:
        """The processes that deliver a host's journals."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if "mlops.deliver" in words and str(self.home(name)) in words[-1]:
                    found.append(process)
        return found

    def close(self) -> None:
        for name in list(self._dask):
            self.end(name)
        self.processes.end()


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with open_object_store(tmp_path_factory.mktemp("seaweed"), "datasets") as server:
        yield server


@pytest.fixture
def settings(
    tracking: Tracking,
    postgresql: str,  # noqa: F811
    objects: ObjectStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Settings:
    """The driver's: of a third host."""
    use(monkeypatch, objects.env())
    env = {
        "MLOPS_HOME": str(tmp_path / "driver"),
        "MLFLOW_TRACKING_URI": tracking.url,
        "MLOPS_STUDY_URL": postgresql,
        "MLOPS_DATASETS_URL": "s3://datasets/swept",
    }
    return Settings.from_env(env)


@pytest.fixture
def hosts(tmp_path: Path, settings: Settings) -> Iterator[Hosts]:
    one = Hosts(tmp_path, str(settings.tracking_uri))
    try:
        yield one
    finally:
        one.close()


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    return tmp_path / "tape"


def journals(home: Path) -> list[Path]:
    return [path for folder in (home / "journal").glob("*/") for path in find_journals(folder)]


def points_of(client: Any, run: Any) -> list[int]:  # noqa: F811
    history = client.get_metric_history(run.info.run_id, "val_accuracy")
    return sorted(point.step for point in history)


def networks_of(client: Any, run: Any) -> list[str]:  # noqa: F811
    return [one.path for one in client.list_artifacts(run.info.run_id, NETWORKS)]


def test_each_host_delivers_its_own_journal_and_the_best_network_comes_from_the_store(
    hosts: Hosts,
    settings: Settings,
    client: Any,  # noqa: F811
    tape: Path,
) -> None:
    for name in ("a", "b"):
        hosts.start(name)
    notes = Notes()
    config = bare_config(hosts.address, "homes", trials=8)
    result = sweep(config, settings, tape, notes)
    assert any("with a home of its own" in line for line in notes.lines)
    assert result.undelivered == 0 and result.studies[0].candidate.version
    assert states_of(settings, result.sweep_id) == {"COMPLETE": 8}
    assert statuses_of(client, result.sweep_id) == {"FINISHED": 8}
    assert len({pid for pid, _ in read(tape)["complete"]}) == 2
    _, children = runs_of(client, result.sweep_id)
    assert [points_of(client, run) for run in children] == [[0, 1, 2]] * 8
    best = result.studies[0].best
    sent = [run for run in children if networks_of(client, run)]
    assert best.run_id in {run.info.run_id for run in sent} and len(sent) < 8
    for name in ("a", "b"):
        assert len(hosts.deliveries(name)) == 1 and not journals(hosts.home(name))
        assert not list((hosts.home(name) / "sweeps").rglob("*.keras"))
        assert (hosts.home(name) / CALLS).is_dir()
    assert not (settings.home / CALLS).exists()
    assert not [path for path in journals(settings.home) if "away" in path.name]


@pytest.mark.long
def test_a_host_that_dies_for_good_loses_nothing_that_counts(
    hosts: Hosts,
    settings: Settings,
    client: Any,  # noqa: F811
    tape: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("experiments.driver.FLUSH_S", 10.0)  # the last records are gone for good
    hold = tape.with_suffix(".hold")

    def lose_a() -> None:
        wait_for(lambda: len(read(tape)["begin"]) == 5)
        hosts.lose("a")
        hosts.start("b")  # which joins late
        hold.unlink()

    loser = threading.Thread(target=lose_a)

    def begin_to_lose(study: str, tally: Tally) -> None:
        if tally.n_finished == 4 and not loser.ident:
            hold.touch()
            loser.start()

    hosts.start("a")
    # The best of the eight is among the first four.
    config = dataclasses.replace(
        bare_config(hosts.address, "lost-host", trials=8), seed=BEST_IS_EARLY
    )
    notes = Notes(begin_to_lose)
    result = sweep(config, settings, tape, notes)
    loser.join()
    assert result.undelivered == 0
    assert states_of(settings, result.sweep_id) == {"COMPLETE": 8, "FAIL": 1}
    assert statuses_of(client, result.sweep_id) == {"FINISHED": 8, "FAILED": 1}
    (study,) = result.studies
    assert study.best.number < 4 and study.candidate.version
    assert any("tried again" in line for line in notes.lines)


@pytest.mark.long
def test_a_scheduler_that_dies_ends_the_sweep_and_the_same_command_goes_on_with_other_hosts(
    hosts: Hosts,
    settings: Settings,
    client: Any,  # noqa: F811
    tape: Path,
) -> None:
    def kill_scheduler(study: str, tally: Tally) -> None:
        if tally.n_finished == 3 and hosts.processes.scheduler.is_running():
            hosts.processes.scheduler.kill()

    hosts.start("a")
    config = bare_config(hosts.address, "lost-scheduler", trials=6)
    with pytest.raises(MlopsError, match="the same command goes on"):
        sweep(config, settings, tape, Notes(kill_scheduler), pace_s=0.2)
    hosts.lose("a")
    hosts.processes.start_scheduler()
    hosts.start("b")
    result = sweep(config, settings, tape, Notes())
    assert result.sweep_id == sweep_of(settings, "lost-scheduler") and result.undelivered == 0
    assert states_of(settings, result.sweep_id)["COMPLETE"] == 6
    statuses = statuses_of(client, result.sweep_id)
    assert statuses["FINISHED"] == 6 and set(statuses) <= {"FINISHED", "KILLED"}
    assert result.studies[0].candidate.version


@pytest.mark.long
def test_what_a_host_cannot_deliver_is_said_and_kept_there(
    hosts: Hosts,
    settings: Settings,
    client: Any,  # noqa: F811
    tape: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A host whose delivery is stopped: its trials are told, their runs' last records are not."""
    monkeypatch.setattr("experiments.driver.FLUSH_S", 2.0)

    def stop_delivery(study: str, tally: Tally) -> None:
        if tally.n_finished == 1:
            for process in hosts.deliveries("a"):
                process.send_signal(signal.SIGSTOP)

    hosts.start("a")
    notes = Notes(stop_delivery)
    # Of falling quality: no network is sent after the first, so nothing waits for the store.
    config = dataclasses.replace(bare_config(hosts.address, "stopped", trials=3), seed=FALLING)
    result = sweep(config, settings, tape, notes)
    assert states_of(settings, result.sweep_id) == {"COMPLETE": 3}
    assert statuses_of(client, result.sweep_id) == {"FINISHED": 3}
    assert any("which lie on hosts that do not deliver now" in line for line in notes.lines)
    assert result.studies[0].candidate.version
    hosts.end("a")
    there = Settings.from_env(
        {"MLOPS_HOME": str(hosts.home("a")), "MLFLOW_TRACKING_URI": str(settings.tracking_uri)}
    )
    assert journals(hosts.home("a"))
    done = sync(there)
    assert done.undelivered == 0 and not journals(hosts.home("a"))
    _, children = runs_of(client, result.sweep_id)
    assert [points_of(client, run) for run in children] == [[0, 1, 2]] * 3
    assert Counter(run.info.status for run in children) == {"FINISHED": 3}


def test_a_worker_that_cannot_use_the_stores_says_which(
    terms: Terms,  # noqa: F811
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = tmp_path / "own"
    monkeypatch.setenv("MLOPS_HOME", str(own))

    def says(**changes: Any) -> str | Place:
        both = {"tracking_uri": settings.tracking_uri, "datasets_url": settings.datasets_url}
        return join(dataclasses.replace(terms, **{**both, **changes}))

    for changes in ({"tracking_uri": None}, {"datasets_url": "/data"}):
        assert "or else a tracking server and a dataset store for both" in str(says(**changes))
    assert not own.exists()
    said = says(tracking_uri="http://ada:secret@127.0.0.1:9")
    assert "cannot deliver to the tracking server (" in str(said) and "secret" not in str(said)
    assert "cannot use the dataset store (" in str(says(datasets_url="s3://absent"))
    place = says()
    assert isinstance(place, Place)
    assert (place.home, place.server) == (own, settings.tracking_uri)
    monkeypatch.delenv("MLOPS_HOME")
    assert join(terms).home == terms.home  # type: ignore[union-attr]


@pytest.mark.long
def test_a_sweep_as_a_user_types_it_trains_the_same_networks_on_two_hosts(
    hosts: Hosts,
    settings: Settings,
    workers: Cluster,
    client: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("a", "b"):
        hosts.start(name)
    monkeypatch.setenv("MLOPS_HOME", str(settings.home))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(settings.tracking_uri))
    monkeypatch.setenv("MLOPS_STUDY_URL", settings.study_url)
    monkeypatch.setenv("MLOPS_DATASETS_URL", settings.datasets_url)
    args = ["--architectures", "dnn", "--trials", "4", "--epochs", "2", "--sampler", "random"]
    args += ["--refit", "--experiment", "two-hosts", "--cluster", hosts.address, "--json"]
    assert main(args) == 0
    said = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    study = said["studies"][0]
    assert study["n_complete"] + study["n_pruned"] == 4 and study["candidate"]["version"]
    for name in ("a", "b"):
        (stored,) = (hosts.home(name) / "datasets").iterdir()
        assert stored.name == DIGITS
    # Drawn by a host, logged by the driver.
    plots = {one.path for one in client.list_artifacts(study["best"]["run_id"], "plots")}
    assert plots >= {"plots/confusion_matrix.png", "plots/learning_curves.png"}
    here = SweepConfig(
        architectures=("dnn",), trials=4, epochs=2, sampler="random", experiment="one-host"
    )
    result = run_sweep(here, settings=settings, cluster=workers, progress=Notes())

    def weights(sweep_id: str) -> set[str]:
        _, children = runs_of(client, sweep_id)
        return {
            run.data.tags["mlops.weights_sha256"]
            for run in children
            if run.data.tags.get("mlops.final") is None and "mlops.trial" in run.data.tags
        }

    assert weights(said["sweep_id"]) == weights(result.sweep_id)
