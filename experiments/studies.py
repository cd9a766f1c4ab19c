"""Which studies and sweeps there are, where they were begun, and who holds them now."""

from __future__ import annotations

import contextlib
import fcntl
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna

from mlops.errors import MlopsError
from mlops.settings import Settings

LOCK = "driver.lock"
CONFIG = "sweep.toml"
"""In the folder of a sweep: the resolved config that it was last begun with."""
ENVIRONMENT = "environment"
"""User attribute of a study: the versions and the commit that it was begun with, by name."""


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """What the storage knows of a study without opening it.

    Attributes:
        home: Host and folder that began it.
        finished_target: The number of trials it was finished with; 0 if it never was.
        unfinished: Whether it was begun, or asked for more trials, and not finished since.
    """

    name: str
    sweep: str
    home: str
    architecture_path: str
    config_fingerprint: str
    finished_target: int
    unfinished: bool


def find_studies(storage: optuna.storages.RDBStorage) -> list[StudyRecord]:
    """Returns the studies of all sweeps, oldest first."""
    found = []
    # Not optuna.get_all_study_summaries, which reads every trial of every study.
    for study in storage.get_all_studies():
        attrs = study.user_attrs
        if "run_key" not in attrs:
            continue
        finished_target = attrs.get("finished_target", 0)
        found.append(
            StudyRecord(
                name=study.study_name,
                sweep=attrs["sweep"],
                home=attrs["home"],
                architecture_path=attrs["architecture_path"],
                config_fingerprint=attrs["config_fingerprint"],
                finished_target=finished_target,
                unfinished=finished_target < attrs["target"],
            )
        )
    return found


def sweep_folder(home: Path, sweep: str) -> Path:
    """Returns the folder of a sweep, there or not.

    Raises:
        MlopsError: the name leads out of the home, or a link stands in its place. Studies and runs
            say the names of sweeps, and others than this home's owner may write those.
    """
    folder = home / "sweeps" / sweep
    if not is_sweep(sweep) or folder.resolve() != home.resolve() / "sweeps" / sweep:
        raise MlopsError(
            f"there can be no sweep {sweep!r} in {str(home)!r}: its folder would lie outside. "
            "Find out who made a study or a run of that name; nothing was done."
        )
    return folder


def is_sweep(name: str) -> bool:
    """Tells whether a name can be a sweep's: one that a folder can have, in its place."""
    return name not in ("", ".", "..") and not {"/", "\\", "\0"} & {*name}


def home_of(settings: Settings) -> str:
    """Returns host and folder: what tells one home from another that shares its study database."""
    return f"{socket.gethostname()}:{settings.home}"


@contextlib.contextmanager
def lock_sweep(home: Path, sweep: str) -> Iterator[None]:
    """Holds a sweep for this driver; the operating system lets go of it when the process dies.

    Raises:
        MlopsError: another driver holds it.
    """
    folder = sweep_folder(home, sweep)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            raise MlopsError(
                f"the sweep {sweep!r} is under way in another process. "
                "Wait for it, or give another --study."
            ) from err
        yield


def is_locked(home: Path, sweep: str) -> bool:
    """Tells whether a driver holds the sweep now; creates nothing, and two may ask at once."""
    if not is_sweep(sweep):
        return False
    try:
        with (home / "sweeps" / sweep / LOCK).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def remove_unborn(storage: optuna.storages.RDBStorage, home: Path) -> None:
    """Removes what is left where a driver of this home died while it made its first study.

    Such a study has no run key, so no driver would go on with it: the same command begins a new
    sweep. One whose sweep has a whole study, is under way, or was begun in another home is left.
    """
    whole = {record.sweep for record in find_studies(storage)}
    begun_here = [folder.name for folder in (home / "sweeps").glob("*/")]
    for study in storage.get_all_studies():
        if "run_key" in study.user_attrs:
            continue
        ours = [sweep for sweep in begun_here if study.study_name.startswith(f"{sweep}-")]
        sweep = max(ours, key=len, default=None)
        if sweep is None or sweep in whole:
            continue
        with contextlib.suppress(MlopsError), lock_sweep(home, sweep):
            storage.delete_study(study._study_id)


def request_stop(storage: optuna.storages.RDBStorage, sweep: str) -> None:
    """Asks the driver of a sweep, wherever it is, to end in good order. It hears of it soon."""
    for record in find_studies(storage):
        if record.sweep == sweep:
            optuna.load_study(study_name=record.name, storage=storage).set_user_attr("stop", True)
