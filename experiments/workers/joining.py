"""The side of a running cluster's worker: what it must be to train for a sweep.

A worker joins before it gets a trial. It checks that it runs the sweep's code, reaches its study
database, and can compute with the sweep's threads; then it is made ready for that. What it says is
a sentence for a person.

A worker that sees the sweep's home works in it, and the driver delivers what it writes. One that
does not, or whose MLOPS_HOME names another folder, works in a home of its own: it needs the
tracking server and the dataset store, its host delivers its journal (`mlops.deliver`), and the
networks that count go to the artifact store before a trial is told (`experiments.trial`).
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.tasks import Task
from experiments.trial import THREADS_VARIABLE
from experiments.workers.cluster import run_once
from experiments.workers.same_code import describe_code, find_difference
from experiments.workers.wanted import wanted_while
from mlops.dataset_store import open_datasets
from mlops.deliver import find_unreachable
from mlops.errors import MlopsError, first_line
from mlops.settings import Settings
from mlops.stores.database_check import open_to_read

CALLS = "calls"
"""In a home: a folder a driver, with the results of its calls."""

MARKER = "driver"
"""In the folder of a sweep's calls: its token."""

OLD_S = 30 * 24 * 3600.0
"""Seconds after which a worker's own folder of calls is removed, when another sweep comes."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a sweep asks of a worker.

    Attributes:
        token: Of this driver alone.
        folder: Of its calls' results, in the sweep's home.
        tracking_uri: The tracking server; None where it is one of the driver's own.
        code: As `describe_code` has it in the driver.
        own: Modules of a user's own architectures.
        set_up: Makes a process compute with so many threads; RuntimeError if it is too late.
    """

    token: str
    home: Path
    folder: Path
    threads: int
    tracking_uri: str | None = field(repr=False)  # Dask logs what it cannot run
    study_url: str = field(repr=False)
    datasets_url: str = field(repr=False)
    code: dict[str, str]
    own: tuple[str, ...]
    set_up: Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker that has joined keeps its files.

    Attributes:
        server: Where its host delivers to, if the home is the worker's own; None if it is the
            sweep's.
    """

    home: Path
    calls: Path
    server: str | None = field(default=None, repr=False)

    @property
    def is_own(self) -> bool:
        return self.server is not None


_joined: dict[str, Place] = {}
"""Where this process works for the sweeps that it is ready for, by their tokens."""


class NotJoinedError(Exception):
    """A call came to a process that is not ready for its sweep: it has another's address."""


def join(terms: Terms) -> Place | str:
    """Makes this process ready for a sweep; returns where it works, or why it cannot."""
    wrong = _find_wrong_code(terms) or _find_wrong_database(terms)
    if wrong is not None:
        return wrong
    place = _find_place(terms)
    if isinstance(place, str):
        return place
    wrong = _find_wrong_threads(terms)
    if wrong is not None:
        return wrong
    _joined[terms.token] = place
    return place


def run_joined(token: str, number: int, call: Callable[..., Any], *args: Any) -> Any:
    """Runs a call once (`run_once`), for as long as its driver waits for it.

    Args:
        number: Of the call, among those of its driver.

    Raises:
        NotJoinedError: this process has not joined that sweep.
        NotWantedError: nobody waits for it any more.
    """
    from distributed import get_worker

    place = _joined.get(token)
    if place is None:
        raise NotJoinedError
    if place.server is not None:
        place.calls.mkdir(mode=0o700, parents=True, exist_ok=True)
        args = tuple(
            arg.moved(place.home, place.server) if isinstance(arg, Task) else arg for arg in args
        )
    worker = get_worker()
    key = worker.get_current_task()
    with wanted_while(lambda: _is_wanted(worker, key)):
        return run_once(place.calls / str(number), call, *args)


def _is_wanted(worker: Any, key: Any) -> bool:
    """Tells whether the scheduler still wants a task: no word of it says that it does not."""
    task = worker.state.tasks.get(key)
    is_closing = worker.status.name in ("closing", "closed", "failed")  # the scheduler is gone
    return task is not None and task.state != "cancelled" and not is_closing


def _find_wrong_code(terms: Terms) -> str | None:
    differ = find_difference(terms.code, describe_code(terms.own))
    if differ is None:
        return None
    return f"it does not run what this sweep runs: {differ}. Install the same there, and restart it"


def _find_place(terms: Terms) -> Place | str:
    """Returns where this process works: in the sweep's home if it sees that, else in its own."""
    if _is_shared(terms):
        wrong = _find_unwritable(terms.folder)
        if wrong is not None:
            return f"it cannot write in this sweep's MLOPS_HOME, {terms.home} ({wrong})"
        return Place(terms.home, terms.folder)
    server = os.environ.get("MLFLOW_TRACKING_URI") or terms.tracking_uri
    if server is None or not server.startswith("http") or "://" not in terms.datasets_url:
        return (
            "it does not see this sweep's MLOPS_HOME; expected the same folder at "
            f"{terms.home}, on this host or on a volume that both mount there, or else a "
            "tracking server and a dataset store for both: MLFLOW_TRACKING_URI=https://... and "
            "MLOPS_DATASETS_URL=s3://..."
        )
    return _make_own_place(terms, server)


def _is_shared(terms: Terms) -> bool:
    """Tells whether this process sees the sweep's home, and was not told of another."""
    own = os.environ.get("MLOPS_HOME")
    if own and Path(own).expanduser().resolve() != terms.home.resolve():
        return False
    try:
        return (terms.folder / MARKER).read_text() == terms.token
    except OSError:
        return False


def _make_own_place(terms: Terms, server: str) -> Place | str:
    home = Settings.from_env().home
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        wrong = _find_unwritable(home)
    except OSError as err:
        wrong = err.strerror
    if wrong is not None:
        return f"it cannot write in its own MLOPS_HOME, {home} ({wrong})"
    _remove_old(home / CALLS)
    try:
        open_datasets(terms.datasets_url, home / "datasets").reach()
    except MlopsError as err:
        return f"it cannot use the dataset store ({first_line(err).rstrip('.')})"
    wrong = find_unreachable(home, server)
    if wrong is not None:
        return f"it cannot deliver to the tracking server ({wrong})"
    return Place(home, home / CALLS / terms.token, server)


def _find_unwritable(folder: Path) -> str | None:
    """Returns why nothing can be written in a folder; None if it can."""
    trace = folder / secrets.token_hex(8)
    try:
        trace.touch()
        trace.unlink()
    except OSError as err:
        return err.strerror or str(err)
    return None


def _remove_old(root: Path) -> None:
    """Removes what sweeps of long ago left in this worker's home."""
    for folder in root.glob("*/"):
        try:
            is_old = time.time() - folder.stat().st_mtime > OLD_S
        except FileNotFoundError:  # another worker removes it, too
            continue
        if is_old:
            shutil.rmtree(folder, ignore_errors=True)


def _find_wrong_threads(terms: Terms) -> str | None:
    """TensorFlow takes its threads once a process; whoever comes first says how many."""
    mend = f"Give --threads as many, or restart the worker to let it compute with {terms.threads}"
    have = os.environ.get(THREADS_VARIABLE, str(terms.threads))
    if have != str(terms.threads):
        return f"it computes with {have} thread(s) a trial since an earlier sweep. {mend}"
    try:
        terms.set_up(terms.threads)
    except RuntimeError:
        return f"something else has used TensorFlow there, with other threads. {mend}"
    os.environ[THREADS_VARIABLE] = str(terms.threads)
    return None


def _find_wrong_database(terms: Terms) -> str | None:
    try:
        with open_to_read(terms.study_url):
            return None
    except Exception as err:  # each driver of a database has errors of its own
        said = f"{type(err).__name__}: {first_line(err).rstrip('.')}"
    return f"it cannot open the study database ({said})"
