"""How a challenger's answers compare with the champion's: counts, latency, and the evidence file.

A worker keeps a `Comparison` for each pair of releases; the parent merges those of all workers.
Pure, but for `Shadow`, the thread that scores.
"""

from __future__ import annotations

import contextlib
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt

FORMAT: Final = 1
RESERVOIR: Final = 1000
"""Latencies kept of each worker and pair: a uniform sample (Vitter 1985, algorithm R)."""
MOST_ROWS: Final = 4096
"""Rows that wait to be compared; a request of more waits only where no other does."""
RTOL: Final = 1e-3
"""Relative difference up to which two anomaly scores agree."""


@dataclass(slots=True)
class Comparison:
    """What was seen of one challenger beside one champion.

    Attributes:
        requests: How many both scored, errors included.
        agreed: Of them, where each row got the same class, or a score within `RTOL`.
        errors: Of them, where the challenger gave no answer.
        dropped: Not scored, since too many waited.
        worst: Largest absolute difference of two numbers.
        latencies_ms: A uniform sample of the challenger's latencies, `RESERVOIR` at most.
        since: Seconds since the epoch, of the first request; `until` of the last.
    """

    champion: int
    challenger: int
    requests: int = 0
    agreed: int = 0
    errors: int = 0
    dropped: int = 0
    worst: float = 0.0
    since: float = 0.0
    until: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)

    def count(
        self, agreement: tuple[bool, float] | None, ms: float, now: float, pick: random.Random
    ) -> None:
        """Counts a request; `agreement` is what `compare_answers` gave, None after an error."""
        self.since = self.since or now
        self.until = now
        self.requests += 1
        if agreement is None:
            self.errors += 1
            return
        self.agreed += agreement[0]
        self.worst = max(self.worst, agreement[1])
        n = self.requests - self.errors
        if n <= RESERVOIR:
            self.latencies_ms.append(ms)
        elif (place := pick.randrange(n)) < RESERVOIR:
            self.latencies_ms[place] = ms

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


Columns = tuple[int, ...]
"""For each of the champion's classes, in order, the challenger's column of that name."""


def columns_of(mine: Sequence[str] | None, other: Sequence[str] | None) -> Columns | None:
    """Returns where the challenger has the champion's classes; () where their names are others.

    None, which means that columns stand as they are, where a release says no names.
    """
    if mine is None or other is None:
        return None
    if sorted(mine) != sorted(other):
        return ()
    return tuple(other.index(name) for name in mine)


def compare_answers(
    mine: npt.NDArray[Any], other: npt.NDArray[Any], columns: Columns | None = None
) -> tuple[bool, float]:
    """Returns whether two answers agree, and the largest absolute difference.

    Args:
        mine: Probabilities (n, classes): the same class must be likeliest in each row. Or anomaly
            scores (n,) in nats: they must be within `RTOL` of the other's.
        other: The same of the other release; of another shape it does not agree.
        columns: What `columns_of` says of their classes.
    """
    if mine.shape != other.shape:
        return False, 1.0
    if columns is not None and mine.ndim == 2:
        if len(columns) != mine.shape[1]:
            return False, 1.0
        other = other[:, columns]
    difference = np.abs(mine - other)
    worst = float(difference.max(initial=0.0))
    if mine.ndim == 2:
        return bool((mine.argmax(axis=1) == other.argmax(axis=1)).all()), worst
    return bool((difference <= RTOL * np.abs(mine)).all()), worst


def as_scores(answer: Any) -> npt.NDArray[np.float64]:
    """Returns what is compared of a model's answer, float64: (n, classes) or anomaly scores (n,).

    Raises:
        ValueError: the answer is none of a packaged model's.
    """
    if isinstance(answer, np.ndarray):
        return answer.astype(np.float64)
    try:
        keys = ("anomaly_score", "probabilities")
        key = next(key for key in keys if answer and key in answer[0])
        return np.array([row[key] for row in answer], np.float64)
    except (StopIteration, KeyError, TypeError) as err:
        raise ValueError("no scores in the answer") from err


def merge(values: Iterable[Any], champion: int, challenger: int) -> Comparison:
    """Returns what all workers saw of one pair; latencies are drawn anew in proportion.

    Args:
        values: What each worker wrote: a list of `Comparison.to_json`.
    """
    found = [
        Comparison(**one)
        for value in values
        for one in value["pairs"]
        if (one["champion"], one["challenger"]) == (champion, challenger)
    ]
    merged = Comparison(champion, challenger)
    for one in found:
        merged.requests += one.requests
        merged.agreed += one.agreed
        merged.errors += one.errors
        merged.dropped += one.dropped
        merged.worst = max(merged.worst, one.worst)
        merged.until = max(merged.until, one.until)
    merged.since = min((one.since for one in found if one.since), default=0.0)
    n = merged.requests - merged.errors
    for one in found:  # a worker's sample stands for all that it scored
        share = (one.requests - one.errors) / max(1, n)
        merged.latencies_ms += one.latencies_ms[: max(1, round(RESERVOIR * share))]
    return merged


def evidence(
    name: str, found: Comparison, champion_sha256: str, challenger_sha256: str
) -> dict[str, Any]:
    """Returns the report that the gate `replayed` reads: plain JSON values.

    Args:
        champion_sha256: Of the champion's statement.
        challenger_sha256: Of the challenger's statement.
    """
    p50, p95 = _percentiles(found.latencies_ms)
    return {
        "format": FORMAT,
        "name": name,
        "champion": {"version": found.champion, "statement_sha256": champion_sha256},
        "challenger": {"version": found.challenger, "statement_sha256": challenger_sha256},
        "requests": found.requests,
        "agreed": found.agreed,
        "challenger_errors": found.errors,
        "dropped": found.dropped,
        "p50_ms": p50,
        "p95_ms": p95,
        "max_abs_difference": found.worst,
        "since": _iso(found.since),
        "until": _iso(found.until),
    }


def _percentiles(ms: list[float]) -> tuple[float | None, float | None]:
    if not ms:
        return None, None
    p50, p95 = np.percentile(ms, [50, 95]).round(3).tolist()
    return p50, p95


def _iso(seconds: float) -> str | None:
    if not seconds:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True)
class Offer:
    """A request that the champion answered, to be scored by the challenger too.

    Attributes:
        columns: What `columns_of` says of their classes.
    """

    rows: Any
    params: Mapping[str, Any] | None
    answer: Any
    champion: int
    challenger: int
    predict: Callable[[Any, Any], Any]
    columns: Columns | None = None


class Shadow:
    """Scores offers in a thread of its own, one after another; those that find it full are dropped.

    It takes processor time from the requests, but none of them waits for it.
    """

    def __init__(
        self,
        write: Callable[[dict[str, Any]], None],
        meter: Callable[[str, float], None],
        size: int = 256,
        write_every_s: float = 0.2,
        most_rows: int = MOST_ROWS,
    ) -> None:
        """`write` gets all comparisons as JSON; `meter` each one's result and its seconds.

        At most `size` offers wait, and `most_rows` rows of several.
        """
        self._write = write
        self._meter = meter
        self._write_every_s = write_every_s
        self._pairs: dict[tuple[int, int], Comparison] = {}
        self._lock = threading.Lock()
        self._offers: queue.Queue[Offer] = queue.Queue(size)
        self._most_rows = most_rows
        self._rows = 0
        self._pick = random.Random(0)
        threading.Thread(target=self._run, name="shadow", daemon=True).start()

    def offer(self, offer: Offer) -> None:
        """Takes an offer, or counts it as dropped."""
        n = len(offer.answer)
        with self._lock:
            is_taken = self._rows == 0 or self._rows + n <= self._most_rows
            if is_taken:
                try:
                    self._offers.put_nowait(offer)
                except queue.Full:
                    is_taken = False
            self._rows += n if is_taken else 0
            self._pair(offer).dropped += not is_taken
        if not is_taken:
            self._meter("dropped", 0.0)

    def _pair(self, offer: Offer) -> Comparison:
        key = (offer.champion, offer.challenger)
        return self._pairs.setdefault(key, Comparison(*key))

    def _run(self) -> None:
        dirty, written = False, time.monotonic()
        while True:
            try:
                offer = self._offers.get(timeout=self._write_every_s)
                self._score(offer)
                dirty = True
                with self._lock:
                    self._rows -= len(offer.answer)
                del offer  # it holds a model
            except queue.Empty:
                pass
            if dirty and time.monotonic() - written >= self._write_every_s:
                written = time.monotonic()
                with contextlib.suppress(OSError):  # a full disk, say: the next one may go
                    self._save()
                    dirty = False

    def _score(self, offer: Offer) -> None:
        began = time.perf_counter()
        agreement = None
        try:
            answer = offer.predict(offer.rows, offer.params)
            took_s = time.perf_counter() - began
            agreement = compare_answers(as_scores(offer.answer), as_scores(answer), offer.columns)
            result = "agreed" if agreement[0] else "differed"
        except Exception:  # whatever it is: the champion has answered this very request
            took_s = time.perf_counter() - began
            result = "failed"
        with self._lock:
            self._pair(offer).count(agreement, 1e3 * took_s, time.time(), self._pick)
        self._meter(result, took_s)

    def _save(self) -> None:
        with self._lock:
            pairs = [one.to_json() for one in list(self._pairs.values())[-8:]]
        self._write({"pairs": pairs})
