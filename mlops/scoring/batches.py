"""Many requests at a time: those that come together share a forward pass.

There is no thread for it and no wait: one of the requests leads, the others follow (ADR 28).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]

BATCH: Final = 64
"""Most rows of a pass that requests share, where nobody says otherwise."""


class _Request:
    """Rows that wait for their scores."""

    __slots__ = ("error", "rows", "scores", "turn")

    def __init__(self, rows: npt.NDArray[Any]) -> None:
        self.rows = rows
        self.scores: Floats | None = None
        self.error: BaseException | None = None
        # Held until there is an answer, or nobody computes and this request is to lead.
        self.turn = threading.Lock()


class Batches:
    """Scores rows that many threads bring at the same time in common forward passes.

    As a database commits in groups: who finds nobody computing computes at once. What comes
    meanwhile waits together, and is the next pass; the first of those that wait leads it, in its
    own thread. So a lone request waits for nobody, and the more come the larger the passes are.
    """

    def __init__(
        self, score: Callable[[npt.NDArray[Any]], Floats], max_batch: int, max_wait_s: float
    ) -> None:
        self._score = score
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        # All three are guarded by the lock.
        self._waiting: deque[_Request] = deque()
        self._n_rows = 0  # of those that wait
        self._is_led = False

    def score(self, rows: npt.NDArray[Any]) -> Floats:
        """Returns the scores of `rows`, or raises what the forward pass raises of them."""
        if len(rows) >= self._max_batch:
            return self._score(rows)
        request = _Request(rows)
        if self._join(request):
            request.turn.acquire()
        if request.scores is None and request.error is None:
            self._lead(request)
        if request.error is not None:
            raise request.error
        assert request.scores is not None
        return request.scores

    def _join(self, request: _Request) -> bool:
        """Queues a request; returns whether another one leads, and it has to wait."""
        with self._lock:
            self._waiting.append(request)
            self._n_rows += len(request.rows)
            if not self._is_led:
                self._is_led = True
                return False
            request.turn.acquire()
            self._arrived.notify()
            return True

    def _lead(self, own: _Request) -> None:
        """Answers those that wait, as many as fit, and hands the lead on."""
        batch: list[_Request] = []
        try:
            self._take(batch)
            self._answer(batch)
        except BaseException as err:  # nobody may wait for ever
            for request in {*batch, own}:
                if request.scores is None and request.error is None:
                    request.error = err
        with self._lock:
            if own.error is not None and own in self._waiting:  # it was not even taken
                self._waiting.remove(own)
                self._n_rows -= len(own.rows)
            successor = self._waiting[0] if self._waiting else None
            self._is_led = successor is not None
        for request in ([successor] if successor else []) + batch:
            if request.turn.locked():
                request.turn.release()

    def _answer(self, batch: Sequence[_Request]) -> None:
        """Scores requests in one pass; where that fails each alone, to find whose fault it is."""
        rows = [request.rows for request in batch]
        try:
            scores = self._score(np.concatenate(rows) if len(rows) > 1 else rows[0])
        except Exception as err:
            if len(batch) == 1:
                batch[0].error = err
                return
            for request in batch:
                self._answer([request])
            return
        start = 0
        for request in batch:
            request.scores = scores[start : start + len(request.rows)]
            start += len(request.rows)

    def _take(self, batch: list[_Request]) -> None:
        """Puts those that are next into `batch`."""
        with self._lock:
            if self._max_wait_s:
                self._arrived.wait_for(lambda: self._n_rows >= self._max_batch, self._max_wait_s)
            n = 0
            while self._waiting and n + len(self._waiting[0].rows) <= self._max_batch:
                batch.append(self._waiting.popleft())
                n += len(batch[-1].rows)
                self._n_rows -= len(batch[-1].rows)
