"""Brings a release to all workers, or to none.

First every worker that answers loads it beside the present one; when all have, all are told to
answer with it; when one cannot, none does. A worker that starts meanwhile loads what stands by then
before it answers anybody.

Workers that are to be told and a disk that is full: what is wanted is written again by each step
until it stands, and nothing counts as done before.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from registry.serving.follower import Accepted
from registry.serving.state import ROLES, Desired, Report, Role, StateFolder, Wanted

LOAD_S: Final = 120.0
"""After so long a release counts as one that cannot be loaded."""
START_S: Final = 30.0
"""So long a rollout waits for workers that start."""
DEATHS: Final = 2
"""So many workers that died while they loaded a release are no chance."""


@dataclass(frozen=True, slots=True)
class Done:
    """A release that all workers have and are told to answer with."""

    accepted: Accepted
    load_s: float


@dataclass(frozen=True, slots=True)
class NotLoaded:
    """A release that a worker could not load; none answers with it."""

    accepted: Accepted
    reason: str


@dataclass(slots=True)
class _Try:
    """A release on its way to the workers, or with them.

    Attributes:
        key: Under which it is wanted.
        since: When the workers were told; None before.
        deaths: Workers that died before they had it.
    """

    accepted: Accepted
    key: str
    since: float | None = None
    deaths: int = 0


class Rollout:
    """What answers, and what shall; `step` moves it on."""

    def __init__(
        self,
        folder: StateFolder,
        share: float,
        shadow: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._share = share
        self._shadow = shadow
        self._clock = clock
        self._present: dict[Role, _Try] = {}
        self._target: dict[Role, Accepted] = {}
        self._trying: dict[Role, _Try] = {}
        self._ended: list[Done | NotLoaded] = []
        self._is_dirty = False
        self._tries = 0
        self._replacing = _Replacing(clock)

    def begin(self, champion: Accepted) -> str:
        """Has the first champion loaded by workers that start; returns the key it stands under."""
        made = self._present["champion"] = self._new(champion)
        self._is_dirty = True
        self._flush()
        return made.key

    def present(self, role: Role) -> Accepted | None:
        """Returns what answers in a role.

        A challenger that is the champion is none, nor is a watcher that takes other rows.
        """
        found = self._answering(role)
        return None if found is None else found.accepted

    @property
    def is_one_release(self) -> bool:
        """Whether champion and challenger are the same."""
        return "challenger" in self._present and self.present("challenger") is None

    @property
    def watcher_pauses(self) -> bool:
        """Whether there is a watcher, and it takes other rows than what answers."""
        return "watcher" in self._present and self.present("watcher") is None

    def _answering(self, role: Role) -> _Try | None:
        found, champion = self._present.get(role), self._present.get("champion")
        if role == "challenger" and found and champion and _is_same(found, champion.accepted):
            return None
        takes_other_rows = found and champion and found.accepted.takes != champion.accepted.takes
        return None if role == "watcher" and takes_other_rows else found

    @property
    def is_busy(self) -> bool:
        return bool(self._trying or self._target or self._is_dirty)

    def propose(self, accepted: Accepted) -> None:
        """Wants a release; one that is on its way in this role and is another one is given up."""
        self._target[accepted.role] = accepted

    def withdraw(self, role: Role) -> None:
        """Has no challenger, or no watcher, any more."""
        for waiting in (self._target, self._trying, self._present):
            waiting.pop(role, None)
        self._is_dirty = True
        with contextlib.suppress(OSError):  # the next step writes it
            self._flush()

    def died(self, report: Report) -> None:
        """Takes note of the last report of a worker that is dead."""
        if not report.serving or self._replacing.knows(report.pid):
            return
        for one in self._trying.values():
            if one.since is not None and one.key not in report.loaded:
                one.deaths += 1

    def step(self, reports: Sequence[Report], end: Callable[[int], None]) -> list[Done | NotLoaded]:
        """Moves on by what the workers say; returns what came to its end.

        Args:
            reports: Of all workers that are alive.
            end: Has a worker that hangs in loading end; called again until it is gone.

        Raises:
            OSError: the workers could not be told; the next step tells them.
        """
        self._flush()
        is_replacing = self._replacing.step(reports, end)
        for role in ROLES:
            self._cancel(role)
            if role in self._trying:
                self._step(role, reports, is_replacing)
            if role in self._target and not is_replacing:
                self._try(self._target.pop(role))
        self._flush()
        ended, self._ended = self._ended, []
        return ended

    def _cancel(self, role: Role) -> None:
        """Gives up what is on its way where the alias points elsewhere by now."""
        target, trying = self._target.get(role), self._trying.get(role)
        if target is None or trying is None:
            return
        if _is_same(trying, target):
            trying.accepted = self._target.pop(role)  # its record may be newer
        else:
            del self._trying[role]
            self._is_dirty = True

    def _try(self, accepted: Accepted) -> None:
        present = self._present.get(accepted.role)
        if present is not None and _is_same(present, accepted):
            present.accepted = accepted  # its record may be newer
            return
        self._trying[accepted.role] = self._new(accepted)
        self._is_dirty = True

    def _new(self, accepted: Accepted) -> _Try:
        """Returns a try of a release, under the key under which workers have it if they have."""
        for one in self._present.values():
            if _is_same(one, accepted):
                return _Try(accepted, one.key)
        self._tries += 1
        return _Try(accepted, f"{accepted.version}.{self._tries}")

    def _step(self, role: Role, reports: Sequence[Report], is_replacing: bool) -> None:
        one = self._trying[role]
        serving = [report for report in reports if report.serving]
        if one.deaths >= DEATHS:
            self._give_up(role, "a worker died while loading it, and another after it")
            return
        if one.since is None or is_replacing or not serving:
            one.since = self._clock()  # the server starts again: that is no fault of this release
            return
        reason = next((found.refused[one.key] for found in serving if one.key in found.refused), "")
        late = self._clock() - one.since
        missing = [report for report in serving if one.key not in report.loaded]
        if reason:
            self._give_up(role, reason)
        elif missing and late > LOAD_S:
            self._replacing.add(missing, len(serving))
            self._give_up(role, f"it was not loaded within {LOAD_S:g} s")
        elif not missing and (len(serving) == len(reports) or late > START_S):
            self._present[role] = self._trying.pop(role)
            load_s = max(report.loaded[one.key] for report in serving)
            self._ended.append(Done(one.accepted, load_s))
            self._is_dirty = True

    def _give_up(self, role: Role, reason: str) -> None:
        self._ended.append(NotLoaded(self._trying.pop(role).accepted, reason))
        self._is_dirty = True

    def _flush(self) -> None:
        if not self._is_dirty:
            return
        tries = (*self._present.values(), *self._trying.values())
        champion, challenger = self._answering("champion"), self._answering("challenger")
        watcher = self._answering("watcher")
        self._folder.write_desired(
            Desired(
                {one.key: _wanted(one.accepted) for one in tries},
                None if champion is None else champion.key,
                None if challenger is None else challenger.key,
                self._share,
                self._shadow and challenger is not None,
                None if watcher is None else watcher.key,
            )
        )
        self._is_dirty = False
        for one in self._trying.values():
            one.since = self._clock() if one.since is None else one.since
        kept = (*(one.accepted for one in tries), *self._target.values())
        self._folder.keep_releases(one.folder for one in kept)


class _Replacing:
    """Workers that hang in a release that was given up: ended one after another.

    They answer still, with the old release; but they would never follow again. The next one is
    ended when as many serve as did before.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._hanging: dict[int, Report] = {}
        self._full = 0
        self._now: int | None = None
        self._since = 0.0

    def add(self, hanging: list[Report], full: int) -> None:
        self._hanging |= {report.pid: report for report in hanging}
        self._full = full

    def knows(self, pid: int) -> bool:
        return pid in self._hanging

    def step(self, reports: Sequence[Report], end: Callable[[int], None]) -> bool:
        """Returns whether there is one still, or a successor is waited for."""
        alive = {report.pid: report for report in reports}
        # One that says anything new has come through by itself.
        self._hanging = {
            pid: said
            for pid, said in self._hanging.items()
            if pid in alive and (alive[pid] == said or pid == self._now)
        }
        if self._now in self._hanging:
            end(self._now)
            return True
        if self._now is not None and not self._has_successor(reports):
            return True
        self._now = next(iter(self._hanging), None)
        self._since = self._clock()
        if self._now is not None:
            end(self._now)
        return self._now is not None

    def _has_successor(self, reports: Sequence[Report]) -> bool:
        is_late = self._clock() - self._since > LOAD_S
        return sum(report.serving for report in reports) >= self._full or is_late


def _is_same(one: _Try, accepted: Accepted) -> bool:
    mine = one.accepted
    return (mine.version, mine.statement_sha256) == (accepted.version, accepted.statement_sha256)


def _wanted(accepted: Accepted) -> Wanted:
    return Wanted(accepted.version, str(accepted.folder), accepted.scoring_sha256)
