"""A worker's side of watching for drift: a sample of the rows that were answered, scored by a VAE.

Requests give rows to a bounded sample and go on; a thread scores it once a second, no more rows
than it may. What is not scored is counted. The thread has no lower priority: in one interpreter a
thread that is kept waiting may hold the lock that those which answer wait for. It is paced instead.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from registry.drift import round_scores
from registry.serving.shadow import as_scores

MOST_REQUESTS: Final = 256
"""Requests whose rows wait: a uniform sample of a second's (Vitter 1985, algorithm R)."""
REQUEST_ROWS: Final = 32
"""Rows taken of one request, at random, so that a large one fills no window by itself."""
BATCH_ROWS: Final = 64
KEPT_SCORES: Final = 2048
"""Scores that a worker leaves for the parent, which looks about once a second."""
MOST_ROWS_S: Final = 1000.0

Predict = Callable[[Any], Any]


@dataclass(slots=True)
class _Watcher:
    """What one release has scored in this worker.

    Attributes:
        total: Rows scored since the start; `scores` has the last of them.
        dropped: Rows that were answered and not scored.
    """

    total: int = 0
    dropped: int = 0
    scores: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {"total": self.total, "dropped": self.dropped, "scores": self.scores}


@dataclass(frozen=True, slots=True)
class _Taken:
    watcher: str
    predict: Predict
    rows: Any
    n: int


class Watch:
    """Scores what is offered, in a thread of its own. `offer` may be called from any."""

    def __init__(
        self,
        write: Callable[[dict[str, Any]], None],
        rows_s: float,
        every_s: float = 1.0,
    ) -> None:
        """`write` gets what was scored as JSON; at most `rows_s` rows a second are."""
        self._write = write
        self._rows_s = rows_s
        self._every_s = every_s
        self._lock = threading.Lock()
        self._pick = random.Random()
        self._taken: list[_Taken] = []
        self._n_offers = 0
        self._watchers: dict[str, _Watcher] = {}
        self._started = f"{os.getpid()}-{time.time_ns()}"
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def offer(self, rows: Any, n: int, watcher: str, predict: Predict) -> None:
        """Takes some rows of a request that was answered, or none; raises nothing, waits for none.

        Args:
            rows: n of them, in any form that the scoring runtime takes.
            watcher: What the scores are noted under.
            predict: Scores rows, with the release that watches.
        """
        with self._lock:
            self._n_offers += 1
            place = len(self._taken)
            if place >= MOST_REQUESTS:
                place = self._pick.randrange(self._n_offers)
        taken = None
        if place < MOST_REQUESTS:
            with contextlib.suppress(Exception):  # whatever form it is: the request was answered
                taken = _Taken(watcher, predict, *self._some_of(rows, n))
        with self._lock:
            self._noted(watcher).dropped += n - (taken.n if taken else 0)
            if taken is None:
                return
            if place < len(self._taken):
                self._put_in_place(place, taken)
            elif len(self._taken) < MOST_REQUESTS:
                self._taken.append(taken)
            else:  # others came meanwhile
                self._noted(watcher).dropped += taken.n

    def _put_in_place(self, place: int, taken: _Taken) -> None:
        if len(self._taken) < MOST_REQUESTS:
            self._taken.append(taken)
            return
        old, self._taken[place] = self._taken[place], taken
        self._noted(old.watcher).dropped += old.n

    def _noted(self, watcher: str) -> _Watcher:
        return self._watchers.setdefault(watcher, _Watcher())

    def _some_of(self, rows: Any, n: int) -> tuple[Any, int]:
        if n <= REQUEST_ROWS:
            return rows, n
        return take_rows(rows, self._pick.sample(range(n), REQUEST_ROWS)), REQUEST_ROWS

    def _run(self) -> None:
        credit, before = 0.0, time.monotonic()
        is_dirty = False
        while True:
            time.sleep(self._every_s)
            now = time.monotonic()
            credit = min(credit + self._rows_s * (now - before), max(1.0, 2 * self._rows_s))
            before = now
            with self._lock:
                taken, self._taken, self._n_offers = self._taken, [], 0
            if taken:
                credit -= self._score(taken, int(credit))
                is_dirty = True
            del taken  # it holds models
            if is_dirty:
                with contextlib.suppress(OSError):  # a full disk, say: the next one may go
                    self._save()
                    is_dirty = False

    def _score(self, taken: Sequence[_Taken], most: int) -> int:
        """Scores at most so many rows of all that were taken; returns how many it tried."""
        chosen = _choose(taken, most, self._pick)
        with self._lock:
            for one, places in zip(taken, chosen, strict=True):
                self._noted(one.watcher).dropped += one.n - len(places)
        for watcher, predict, rows, n in _batches(taken, chosen):
            scores = _scores(predict, rows, n)
            with self._lock:
                noted = self._noted(watcher)
                noted.dropped += n - len(scores)
                noted.total += len(scores)
                noted.scores = (noted.scores + scores)[-KEPT_SCORES:]
        return sum(map(len, chosen))

    def _save(self) -> None:
        with self._lock:
            last = list(self._watchers.items())[-2:]
            self._watchers = dict(last)
            value = {name: one.to_json() for name, one in last}
        self._write({"started": self._started, "watchers": value})


def take_rows(rows: Any, places: Sequence[int]) -> Any:
    """Returns some rows of a request, in the form that it has."""
    if hasattr(rows, "iloc"):
        return rows.iloc[list(places)]
    if isinstance(rows, np.ndarray):
        return rows[list(places)]
    if isinstance(rows, Mapping):
        return {name: [cells[place] for place in places] for name, cells in rows.items()}
    return [rows[place] for place in places]


def _choose(taken: Sequence[_Taken], most: int, pick: random.Random) -> list[list[int]]:
    """Returns which rows of each are scored: each row is as likely as any other."""
    n = sum(one.n for one in taken)
    if n <= most:
        return [list(range(one.n)) for one in taken]
    chosen = sorted(pick.sample(range(n), most))
    found, first, place = [], 0, 0
    for one in taken:
        mine = []
        while place < most and chosen[place] < first + one.n:
            mine.append(chosen[place] - first)
            place += 1
        found.append(mine)
        first += one.n
    return found


def _batches(
    taken: Sequence[_Taken], chosen: Sequence[Sequence[int]]
) -> Iterator[tuple[str, Predict, Any, int]]:
    """Yields watcher, predict, rows and their number; lists of one form are put together."""
    waiting: dict[tuple[str, type], tuple[Predict, list[Any]]] = {}
    for one, places in zip(taken, chosen, strict=True):
        if not places:
            continue
        rows = one.rows if len(places) == one.n else take_rows(one.rows, places)
        if not isinstance(rows, list):
            yield one.watcher, one.predict, rows, len(places)
            continue
        key = (one.watcher, type(rows[0]))
        _, together = waiting.setdefault(key, (one.predict, []))
        together += rows
        if len(together) >= BATCH_ROWS:
            del waiting[key]
            yield one.watcher, one.predict, together, len(together)
    for (watcher, _), (predict, together) in waiting.items():
        yield watcher, predict, together, len(together)


def _scores(predict: Predict, rows: Any, n: int) -> list[float]:
    """Returns the scores of rows; those that cannot be scored with others are tried alone."""
    try:
        scores: list[float] = round_scores(as_scores(predict(rows))).tolist()
        return scores if len(scores) == n else []
    except Exception:  # whatever it is: the classifier has answered these rows
        if n == 1 or not isinstance(rows, list):
            return []
    return [score for row in rows for score in _scores(predict, [row], 1)]
