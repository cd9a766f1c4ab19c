"""Signs of life of a driver, in the study database, for homes that do not share its lock.

In its own home a driver holds a lock that dies with it. Another home, on another machine perhaps,
sees only the study database: there a live driver counts up, in each of its studies, every few
seconds. Whether it counts is judged by looking twice, so that no two clocks are compared.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import optuna

from experiments.studies import find_studies

EVERY_S = 10.0
SILENT_S = 25.0
"""Seconds in which a live driver has counted at least once, with a beat lost."""

ATTR = "beat"


@contextlib.contextmanager
def beating(studies: Sequence[optuna.Study], every_s: float = EVERY_S) -> Iterator[None]:
    """Counts in these studies until the block is left; a study that nobody drives has no count."""
    stopping = threading.Event()

    def beat() -> None:
        n = 0
        while True:
            n += 1
            with contextlib.suppress(Exception):  # a database that is away for a moment
                _write(studies, n)
            if stopping.wait(every_s):
                return

    thread = threading.Thread(target=beat, name="beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
        with contextlib.suppress(Exception):
            _write(studies, None)


def is_beating(storage: optuna.storages.RDBStorage, sweep: str, silent_s: float = SILENT_S) -> bool:
    """Tells whether a driver drives a sweep now, wherever it is; waits to see it, where need be."""
    before = _read(storage, sweep)
    deadline = time.monotonic() + silent_s
    while any(before.values()):
        if _read(storage, sweep) != before:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(min(1.0, silent_s / 5))
    return False


def _read(storage: optuna.storages.RDBStorage, sweep: str) -> dict[str, Any]:
    names = [record.name for record in find_studies(storage) if record.sweep == sweep]
    studies = [optuna.load_study(study_name=name, storage=storage) for name in names]
    return {study.study_name: study.user_attrs.get(ATTR) for study in studies}


def _write(studies: Sequence[optuna.Study], count: int | None) -> None:
    for study in studies:
        study.set_user_attr(ATTR, count)
