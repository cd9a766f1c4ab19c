"""The parent's side of watching for drift: scores of all workers into windows, and what they say.

A new watcher begins anew: its scores are compared with its own reference only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from mlops.errors import StructureError
from registry.drift import Reference, Rule, Window, judge_window
from registry.reference import read_reference
from registry.serving.follower import Accepted, News, Refusal, Unset
from registry.serving.metrics import DriftGauges
from registry.serving.state import StateFolder

LOOK_EVERY_S: Final = 1.0
KEPT_WINDOWS: Final = 64


def find_misfit(watcher: Accepted, champion: Accepted | None) -> str | None:
    """Returns why a release cannot watch what is served, to go on from "version 2"; None if it can.

    Its rows must be the classifier's in kind, shape, dtype and columns.
    """
    if watcher.task != "vae":
        return f"of {watcher.name} is no VAE: only a VAE's anomaly score is watched"
    try:
        reference = read_reference(watcher.folder)
    except StructureError as err:
        return str(err).rstrip(".")
    if reference is None:
        return (
            f"of {watcher.name} has no reference to compare scores with: it was promoted before "
            "releases had one. Promote a VAE anew"
        )
    if champion is not None and champion.takes != watcher.takes:
        return (
            f"of {watcher.name} takes other rows than {champion.name} version {champion.version}: "
            "kind, shape, dtype and columns must be the same"
        )
    return None


class Drifting:
    """What the watcher saw. `page` is for any thread; the rest for one.

    Attributes:
        news: What was found last of the watcher's alias; None before the first look.
        say: Tells a person when drift begins and ends.
        unfit: A watcher that was refused since it does not fit what answers, or []: it may fit the
            next champion.
    """

    def __init__(
        self,
        folder: StateFolder,
        gauges: DriftGauges,
        *,
        watches: str,
        window_rows: int,
        rule: Rule | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`watches` is the watcher's name and alias, as `digits-vae@champion`."""
        self._folder = folder
        self._gauges = gauges
        self.say: Callable[[str], None] = lambda line: None
        self._watches = watches
        self._window_rows = window_rows
        self._rule = rule or Rule()
        self._now = now
        self._lock = threading.Lock()
        self._looked_at = 0.0
        self._taken: dict[str, tuple[int, int]] = {}
        self.news: News | None = None
        self.unfit: list[News] = []
        self._pauses = False
        self._begin(None)

    def _begin(self, watcher: Accepted | None) -> None:
        self._watcher = watcher
        self._reference: Reference | None = None
        self._scores: list[float] = []
        self._windows: list[tuple[Window, datetime]] = []
        self._n_windows = self._n_rows = self._n_dropped = 0
        self._since: datetime | None = None
        self._taken = {}
        if watcher is not None:
            self._reference = read_reference(watcher.folder)
        self._gauges.begin()

    def judge(self, news: News, champion: Accepted | None) -> News:
        """Returns news as they are, or the refusal of a watcher that does not fit the champion."""
        if news.role != "watcher":
            return news
        self.unfit = []
        reason = find_misfit(news, champion) if isinstance(news, Accepted) else None
        if reason is None or not isinstance(news, Accepted):
            return news
        self.unfit = [news]
        return Refusal("watcher", news.version, "unfit", reason)

    def step(self, watcher: Accepted | None, monotonic_s: float, *, pauses: bool = False) -> None:
        """Takes what the workers scored meanwhile; does nothing within a second of the last time.

        Args:
            watcher: What scores rows now; None where nothing does.
            monotonic_s: What a monotonic clock says.
            pauses: Whether there is one that takes other rows than what answers.
        """
        if monotonic_s < self._looked_at + LOOK_EVERY_S:
            return
        self._looked_at = monotonic_s
        with self._lock:
            self._pauses = pauses
            if _key(watcher) != _key(self._watcher):
                self._begin(watcher)
            if watcher is not None:
                for value in self._folder.read_drifts():
                    self._take(value, watcher.folder.name)
                while len(self._scores) >= self._window_rows:
                    window = self._scores[: self._window_rows]
                    del self._scores[: self._window_rows]
                    self._judge(window)

    def _take(self, value: Any, watcher: str) -> None:
        """Takes what is new of one worker's scores."""
        try:
            started, said = str(value["started"]), value["watchers"][watcher]
            total, dropped = int(said["total"]), int(said["dropped"])
            scores = [float(score) for score in said["scores"]]
        except (KeyError, TypeError, ValueError):
            return  # it has scored nothing with this watcher yet
        total_before, dropped_before = self._taken.get(started, (0, 0))
        if total < total_before:  # it forgot this watcher meanwhile
            total_before = dropped_before = 0
        new = total - total_before
        found = scores[-new:] if new else []
        lost = dropped - dropped_before + new - len(found)
        self._taken[started] = (total, dropped)
        self._scores += found
        self._n_rows += len(found)
        self._n_dropped += lost
        self._gauges.rows.inc(len(found))
        self._gauges.dropped.inc(max(0, lost))

    def _judge(self, scores: list[float]) -> None:
        assert self._reference is not None
        window = judge_window(self._reference, scores, self._rule)
        now = self._now()
        self._windows = [*self._windows, (window, now)][-KEPT_WINDOWS:]
        self._n_windows += 1
        was = self._since is not None
        shifted = [one.shifted for one, _ in self._windows]
        is_drifted = self._rule.is_drifted(was, shifted)
        self._gauges.show(window.psi, window.ks, window.ks_p, window.shifted, is_drifted)
        if is_drifted and not was:
            self._since = now
            n = sum(shifted[-self._rule.of :])
            self.say(
                f"DRIFT: the rows that are answered are not like the test rows of "
                f"{self._called}: {_words(window)}; {n} of the last {self._rule.of} windows are "
                "shifted."
            )
        elif was and not is_drifted:
            assert self._since is not None
            self.say(
                f"the drift that began at {_iso(self._since)} has ended: {_words(window)}; none of "
                f"the last {self._rule.of} windows is shifted."
            )
            self._since = None

    @property
    def _called(self) -> str:
        assert self._watcher is not None
        return f"{self._watcher.name} version {self._watcher.version}"

    def page(self) -> dict[str, Any] | str:
        """Returns what was found, as plain JSON values; before a first window, why there is none.

        `psi`, `ks` and `ks_p` are the last window's.
        """
        with self._lock:
            if self._watcher is None:
                return self._why_nothing()
            if not self._windows:
                return (
                    f"no window is full yet: {self._called} has scored {len(self._scores)} of "
                    f"{self._window_rows} rows."
                )
            window, at = self._windows[-1]
            return {
                "watcher": self._watcher.name,
                "watcher_version": self._watcher.version,
                "window_rows": self._window_rows,
                "windows": self._n_windows,
                "n_rows": self._n_rows,
                "psi": round(window.psi, 4),
                "ks": round(window.ks, 4),
                "ks_p": float(f"{window.ks_p:.3g}"),
                "drifted": self._since is not None,
                "drifted_since": None if self._since is None else _iso(self._since),
                "last_window_at": _iso(at),
                "alpha": self._rule.alpha,
                "psi_threshold": self._rule.psi,
                "n_dropped": self._n_dropped,
            }

    def _why_nothing(self) -> str:
        found, watches = self.news, self._watches
        if found is None:
            return f"nothing is watched yet: {watches} has not been looked up."
        if isinstance(found, Unset):
            return f"nothing is watched: no release holds {watches}."
        if isinstance(found, Refusal):
            return f"nothing is watched: {watches}, version {found.version}, {found.reason}."
        doing = "takes other rows than what answers" if self._pauses else "is being loaded"
        return f"nothing is watched: {watches}, version {found.version}, {doing}."


def _key(watcher: Accepted | None) -> tuple[int, str] | None:
    return None if watcher is None else (watcher.version, watcher.statement_sha256)


def _words(window: Window) -> str:
    return f"PSI {window.psi:.2f}, KS {window.ks:.2f} (p = {window.ks_p:.1g}) over {window.n} rows"


def _iso(when: datetime) -> str:
    return when.isoformat(timespec="seconds")
