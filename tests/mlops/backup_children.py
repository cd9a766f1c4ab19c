"""What goes on in a home while it is backed up: trainers, a driver, people who move an alias.

Each puts down what was acknowledged to it, a line each, only after the call returned. Forked, see
tests/forked.py.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import model_signing
import model_signing.signing
import model_signing.verifying  # noqa: F401

import registry.ledger_copy  # noqa: F401
from experiments.config import SweepConfig
from experiments.config_file import write_config
from experiments.storage import open_storage
from experiments.studies import CONFIG, home_of, lock_sweep
from experiments.study import open_search
from experiments.tasks import TrialResult
from mlops.backup import back_up
from mlops.drain import Drain
from mlops.errors import MlopsError
from mlops.journal import Journal
from mlops.mlflow_sink import MlflowSink
from mlops.mlflow_store import open_store_client
from mlops.restore import restore
from mlops.settings import Settings
from mlops.tracking import Run
from registry.alias import open_registry
from registry.rollback import rollback
from tests.experiments.test_status import describe
from tests.forked import FORK
from tests.registry.sides import NAME, probe_sides

N_STEPS = 5
END_S = 60.0


def settings_of(home: Path) -> Settings:
    return Settings.from_env({"MLOPS_HOME": str(home)})


def train(home: Path, said: Path, number: int) -> None:
    """Logs runs, each with metrics and a file; a thread delivers them."""
    folder = home / "journal" / f"training-{number}"
    note = said.with_suffix(".txt")
    with Journal(folder, "worker") as journal, _delivering(home, folder):
        for n in range(10**6):
            run = Run.create(journal, experiment=f"training-{number}", name=str(n))
            _say(said, "run", run.key)
            for step in range(N_STEPS):
                run.log_metrics({"loss": 1.0 / (1 + step)}, step)
                _say(said, "metric", run.key, str(step))
                time.sleep(0.01)
            note.write_text(run.key)
            run.log_artifact(note)
            _say(said, "file", run.key)
            run.end("FINISHED")
            _say(said, "end", run.key)


def drive(home: Path, said: Path, sweep: str) -> None:
    """Asks for trials, makes their runs and networks, tells them; each is better than the last."""
    settings, description = settings_of(home), describe("dnn")
    attrs = {
        "sweep": sweep,
        "home": home_of(settings),
        "experiment": "digits",
        "architecture_path": description.path,
        "config_fingerprint": "f",
        "run_key": f"{sweep}-parent",
    }
    config = SweepConfig(trials=10**6)
    networks = home / "sweeps" / sweep / "dnn"
    networks.mkdir(parents=True)
    write_config(config, home / "sweeps" / sweep / CONFIG)
    folder = home / "journal" / sweep
    with (
        lock_sweep(home, sweep),
        Journal(folder, "driver") as journal,
        _delivering(home, folder),
    ):
        storage = open_storage(settings.study_url)
        search = open_search(storage, f"{sweep}-dnn", description, config, attrs)
        tags = {"mlops.sweep": sweep, "mlops.study": f"{sweep}-dnn"}
        Run.create(journal, experiment="digits", name="dnn", key=f"{sweep}-parent", tags=tags)
        for n in range(10**6):
            ask = search.ask()
            assert ask is not None
            key = f"{sweep}-{ask.number}"
            search.set_run_key(ask, key)
            run = Run.create(
                journal,
                experiment="digits",
                name=f"dnn-{ask.number:05d}",
                key=key,
                tags={**tags, "mlops.trial": str(ask.number)},
            )
            (networks / f"{ask.number:05d}.keras").write_text(key)
            run.end("FINISHED")
            search.tell(ask.number, TrialResult("complete", n / 10**6, 0, "00"))
            _say(said, "trial", key)
            for path in networks.glob("*.keras"):
                if path.name != f"{ask.number:05d}.keras":
                    path.unlink()


def move(home: Path, said: Path, versions: tuple[int, ...]) -> None:
    """Moves the alias from release to release, as a rollback does."""
    with open_registry(settings_of(home), probe=probe_sides) as registry:
        for n in range(10**6):
            with contextlib.suppress(MlopsError):  # the other one holds the lease
                done = rollback(registry, NAME, versions[n % len(versions)])
                if done.moved:
                    _say(said, "move", str(done.version))


def back_up_here(home: Path, target: Path) -> None:
    back_up(settings_of(home), target)


def restore_here(home: Path, backup: Path) -> None:
    restore(settings_of(home), backup)


@contextlib.contextmanager
def _delivering(home: Path, folder: Path) -> Iterator[None]:
    drain = Drain(folder, lambda: MlflowSink(open_store_client(settings_of(home)))).start()
    yield
    drain.stop(END_S)


def _say(said: Path, *words: str) -> None:
    with said.open("a") as file:
        file.write(" ".join(words) + "\n")


def start(work: Callable[..., None], *args: Any) -> Any:
    process = FORK.Process(target=_quietly, args=(work, args))
    process.start()
    return process


def _quietly(work: Callable[..., None], args: tuple[Any, ...]) -> None:
    log = os.open(os.devnull, os.O_WRONLY)
    os.dup2(log, 1)
    work(*args)


def kill_once(happened: Callable[[], bool], work: Callable[..., None], *args: Any) -> bool:
    """Starts a work and kills it once something happened; returns whether that cut it off."""
    process = start(work, *args)
    while process.is_alive() and not happened():
        time.sleep(0.001)
    process.kill()
    process.join()
    return bool(process.exitcode)


def stop(processes: list[Any]) -> None:
    """Ends processes as a power cut would."""
    for process in processes:
        process.kill()
        process.join()
