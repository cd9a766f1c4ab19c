"""Brings a release to all workers, or to none.

First every worker that answers loads it beside the present one; when all have, all are told to
answer with it; when one cannot, none does. A worker that starts meanwhile loads what stands by then
before it answers anybody.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from registry.serving.follower import Accepted
from registry.serving.state import ROLES, Desired, Report, Role, StateFolder, Wanted

LOAD_S: Final = 120.0
"""After so long a release counts as one that cannot be loaded."""


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
        self._present: dict[Role, Accepted] = {}
        self._target: dict[Role, Accepted] = {}
        self._trying: dict[Role, Accepted] = {}
        self._since: dict[Role, float] = {}

    def begin(self, champion: Accepted) -> None:
        """Has the first champion loaded by workers that start."""
        self._present["champion"] = champion
        self._write()

    def present(self, role: Role) -> Accepted | None:
        """Returns what answers in a role; a challenger that is the champion is none."""
        found = self._present.get(role)
        champion = self._present.get("champion")
        if role == "challenger" and found and champion and found.version == champion.version:
            return None
        return found

    @property
    def is_busy(self) -> bool:
        return bool(self._trying or self._target)

    def propose(self, accepted: Accepted) -> None:
        """Wants a release; of several the newest counts, and one on its way comes first."""
        self._target[accepted.role] = accepted

    def withdraw_challenger(self) -> None:
        """Has no challenger any more."""
        for waiting in (self._target, self._trying, self._present):
            waiting.pop("challenger", None)
        self._write()

    def step(self, serving: list[Report], kill: Callable[[int], None]) -> list[Done | NotLoaded]:
        """Moves on by what the workers that answer say; returns what came to its end.

        Args:
            serving: Reports of the workers that are alive and answer.
            kill: Ends a worker that hangs in loading.
        """
        ended = []
        for role in ROLES:
            outcome = self._step(role, serving, kill) if role in self._trying else None
            if outcome is not None:
                ended.append(outcome)
            if role not in self._trying and role in self._target:
                self._try(self._target.pop(role))
        return ended

    def _try(self, accepted: Accepted) -> None:
        present = self._present.get(accepted.role)
        if present is not None and present.version == accepted.version:
            self._present[accepted.role] = accepted  # its record may be newer
            return
        self._trying[accepted.role] = accepted
        self._since[accepted.role] = self._clock()
        self._write()

    def _step(
        self, role: Role, serving: list[Report], kill: Callable[[int], None]
    ) -> Done | NotLoaded | None:
        accepted = self._trying[role]
        version = accepted.version
        if not serving:  # the server starts again: that is no fault of this release
            self._since[role] = self._clock()
            return None
        for report in serving:
            if version in report.refused:
                return self._give_up(role, report.refused[version])
        if all(version in report.loaded for report in serving):
            self._present[role] = self._trying.pop(role)
            self._write()
            return Done(accepted, max(report.loaded[version] for report in serving))
        if self._clock() - self._since[role] > LOAD_S:
            for report in serving:
                if version not in report.loaded:
                    kill(report.pid)
            return self._give_up(role, f"it was not loaded within {LOAD_S:g} s")
        return None

    def _give_up(self, role: Role, reason: str) -> NotLoaded:
        accepted = self._trying.pop(role)
        self._write()
        return NotLoaded(accepted, reason)

    def _write(self) -> None:
        wanted = {
            one.version: Wanted(str(one.folder), one.scoring_sha256)
            for one in (*self._present.values(), *self._trying.values())
        }
        champion, challenger = self.present("champion"), self.present("challenger")
        desired = Desired(
            wanted,
            None if champion is None else champion.version,
            None if challenger is None else challenger.version,
            self._share,
            self._shadow,
        )
        self._folder.write_desired(desired)
        self._folder.keep_releases([*wanted, *(one.version for one in self._target.values())])
