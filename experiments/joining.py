"""The side of a running cluster's worker: what it must be to train for a sweep.

A worker joins before it gets a trial. It checks that it runs the sweep's code, sees its home and
its study database, and can compute with the sweep's threads; then it is made ready for that. What
it says is a sentence for a person.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.cluster import run_once
from experiments.same_code import describe_code, find_difference
from experiments.trial import THREADS_VARIABLE
from experiments.wanted import wanted_while
from mlops.errors import first_line
from mlops.stores.database_check import open_to_read

MARKER = "driver"
"""In the folder of a sweep's calls: its token."""

_joined: set[str] = set()
"""The tokens of the sweeps that this process is ready for."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a sweep asks of a worker.

    Attributes:
        token: Of this driver alone.
        folder: Of its calls' results, in the sweep's home.
        code: As `describe_code` has it in the driver.
        own: Modules of a user's own architectures.
        set_up: Makes a process compute with so many threads; RuntimeError if it is too late.
    """

    token: str
    home: Path
    folder: Path
    threads: int
    study_url: str = field(repr=False)  # Dask logs what it cannot run
    code: dict[str, str]
    own: tuple[str, ...]
    set_up: Callable[[int], None]


class NotJoinedError(Exception):
    """A call came to a process that is not ready for its sweep: it has another's address."""


def join(terms: Terms) -> str | None:
    """Makes this process ready for a sweep; returns why it cannot be, or None."""
    wrong = (
        _find_wrong_code(terms)
        or _find_wrong_home(terms)
        or _find_wrong_threads(terms)
        or _find_wrong_database(terms)
    )
    if wrong is None:
        _joined.add(terms.token)
    return wrong


def run_joined(token: str, place: Path, call: Callable[..., Any], *args: Any) -> Any:
    """Runs a call once (`run_once`), for as long as its driver waits for it.

    Raises:
        NotJoinedError: this process has not joined that sweep.
        NotWantedError: nobody waits for it any more.
    """
    from distributed import get_worker

    if token not in _joined:
        raise NotJoinedError
    worker = get_worker()
    key = worker.get_current_task()
    with wanted_while(lambda: _is_wanted(worker, key)):
        return run_once(place, call, *args)


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


def _find_wrong_home(terms: Terms) -> str | None:
    try:
        said = (terms.folder / MARKER).read_text()
    except OSError:
        said = ""
    if said != terms.token:
        return (
            f"it does not see this sweep's MLOPS_HOME; expected the same folder at {terms.home}, "
            "on this host or on a volume that both mount there"
        )
    trace = terms.folder / secrets.token_hex(8)
    try:
        trace.touch()
        trace.unlink()
    except OSError as err:
        return f"it cannot write in this sweep's MLOPS_HOME, {terms.home} ({err.strerror})"
    return None


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
