"""The parent: keeps a server running, and brings what the follower finds to its workers.

Two threads. One looks at the registry, fetches and verifies, which may take long. The other, the
caller's, watches the server and the workers and never waits for the network.
"""

from __future__ import annotations

import contextlib
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from mlops.errors import MlopsError, first_line
from mlops.program import say
from registry.serving.follower import Accepted, Follower, News, Refusal, Unset
from registry.serving.metrics import Board
from registry.serving.rollout import Done, NotLoaded, Rollout
from registry.serving.server import Server
from registry.serving.shadow import evidence, merge
from registry.serving.state import ROLES, Report, Role, StateFolder, write_json
from registry.signing import UnverifiedError

TICK_S: Final = 0.05
VERIFY_EVERY_S: Final = 30.0
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 30.0
"""Between two tries to start a server that ends by itself."""
FIRST_S: Final = 600.0
"""How long the first start of all workers may take."""
FIRST_DEATHS: Final = 3
"""So many workers that died before the first start was done are no chance."""

Note = Callable[[Refusal], None]
"""Writes a refusal into the ledger; raises MlopsError where it cannot."""


def _say(line: str) -> None:
    """Says a line where it can be said: the log may lie on a disk that is full."""
    with contextlib.suppress(OSError, ValueError):
        say(line)


class Parent:
    """Serves one alias until it is told to stop."""

    def __init__(
        self,
        folder: StateFolder,
        follower: Follower,
        rollout: Rollout,
        board: Board,
        start: Callable[[], Server],
        note: Note,
        *,
        workers: int,
        interval_s: float,
        shadow: bool,
    ) -> None:
        self._folder = folder
        self._follower = follower
        self._rollout = rollout
        self._board = board
        self._start = start
        self._note = note
        self._workers = workers
        self._interval_s = interval_s
        self._shadow = shadow
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._refusals: queue.SimpleQueue[Refusal] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._server: Server | None = None
        self._is_ready = False
        self._pause_s = FIRST_PAUSE_S
        self._start_at = 0.0
        self._following: dict[Role, bool] = {}
        self._key = ""
        self._deaths = 0
        self._give_up_at = 0.0
        self._not_kept: dict[Role, Accepted] = {}
        self._is_said = False

    def stop(self) -> None:
        """Has `run` end; may be called from a signal's handler."""
        self._stop.set()

    def tell(self, news: Iterable[News]) -> None:
        """Takes what was found before `run`."""
        for one in news:
            self._news.put(one)

    def run(self, champion: Accepted, on_ready: Callable[[Accepted], None]) -> int:
        """Serves until `stop`; returns the exit code.

        Args:
            champion: What is served first.
            on_ready: Called once, when all workers answer.

        Raises:
            UnverifiedError: no worker could load the first champion, or it answers otherwise.
            MlopsError: the server ended before it ever answered.
        """
        self._key = self._rollout.begin(champion)
        self._give_up_at = time.monotonic() + FIRST_S
        threading.Thread(target=self._follow, name="follow", daemon=True).start()
        try:
            self._server = self._start()
            while not self._stop.is_set():
                try:
                    self._tick(champion, on_ready)
                except OSError as err:  # a full disk, say: what answers goes on
                    _say(f"the workers could not be told: {err}")
                    self._stop.wait(1.0)
                self._stop.wait(TICK_S if self._is_busy else 4 * TICK_S)
        finally:
            in_time = self._server is None or self._server.stop()
            self._leave_evidence()
        if not in_time:
            _say("the server did not end in time: requests that it answered were cut off.")
        return 0

    @property
    def _is_busy(self) -> bool:
        return self._rollout.is_busy or not self._is_ready

    def _tick(self, champion: Accepted, on_ready: Callable[[Accepted], None]) -> None:
        server = self._server
        if server is None or server.has_ended():
            self._start_again(server)
            return
        self._take_news()
        reports = self._live_reports(server)
        serving = [one for one in reports if one.serving]
        self._board.workers.set(len(serving))
        self._board.reachable.set(int(self._follower.reachable))
        if not self._is_ready:
            self._await_first(server, champion, reports, on_ready)
            return
        if serving:
            self._pause_s = FIRST_PAUSE_S
        self._keep()
        for one in self._rollout.step(reports, server.end):
            if isinstance(one, Done):
                self._is_done(one)
            else:
                self._is_not_loaded(one)

    def _await_first(
        self,
        server: Server,
        champion: Accepted,
        reports: list[Report],
        on_ready: Callable[[Accepted], None],
    ) -> None:
        called = f"{champion.name} version {champion.version}"
        for one in reports:
            if self._key in one.refused:
                raise UnverifiedError(f"{called} cannot be served: {one.refused[self._key]}")
        if self._deaths >= FIRST_DEATHS:
            raise MlopsError(
                f"{called} cannot be served: {self._deaths} workers died while they loaded it. "
                "The last lines above may say why; memory may be short."
            )
        if time.monotonic() > self._give_up_at:
            raise MlopsError(f"{called} was not loaded by all workers within {FIRST_S:g} s.")
        serving = [one for one in reports if one.serving]
        if len(serving) < self._workers or not server.answers():
            return
        self._is_ready = True
        self._is_done(Done(champion, max(one.loaded[self._key] for one in serving)))
        on_ready(champion)

    def _is_not_loaded(self, one: NotLoaded) -> None:
        accepted = one.accepted
        self._follower.not_loaded(accepted)
        reason = f"could not be loaded: {one.reason}"
        self._refuse(Refusal(accepted.role, accepted.version, "not_loaded", reason))

    def _keep(self) -> None:
        """Has the follower write down what answers; what a full disk kept from it, once more."""
        for role, accepted in list(self._not_kept.items()):
            try:
                self._follower.hold(accepted)
            except OSError as err:
                if not self._is_said:
                    _say(f"what answers could not be written down: {err}")
                self._is_said = True
                return
            del self._not_kept[role]
            self._is_said = False

    def _is_done(self, done: Done) -> None:
        accepted = done.accepted
        self._not_kept[accepted.role] = accepted
        self._keep()
        self._board.show(accepted.role, accepted.version, time.time(), done.load_s)
        if self._rollout.present("challenger") is None:
            self._board.show("challenger", None, 0.0, 0.0)
        _say(
            f"version {accepted.version} answers as {accepted.role} "
            f"(loaded in {done.load_s:.2f} s)."
        )

    def _start_again(self, server: Server | None) -> None:
        now = time.monotonic()
        if server is not None:
            if not self._is_ready:
                raise MlopsError("the server ended before it answered; its last lines say why.")
            if not self._folder.lock.exists():
                raise MlopsError(
                    f"the folder {str(self._folder.path)!r} was removed, through which the "
                    "workers are told what to answer with. Start the server anew."
                )
            server.stop()
            for report in self._folder.read_reports().values():
                self._forget(report)
            _say(f"the server has ended; starting it again in {self._pause_s:g} s.")
            self._board.workers.set(0)
            self._board.restarts.inc()
            self._server, self._start_at = None, now + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        elif now >= self._start_at:
            self._server = self._start()

    def _live_reports(self, server: Server) -> list[Report]:
        found = []
        for pid, report in self._folder.read_reports().items():
            if server.holds(pid):
                found.append(report)
            else:
                self._forget(report)
        return found

    def _forget(self, report: Report) -> None:
        self._folder.remove_report(report.pid)
        self._deaths += 1
        self._rollout.died(report)
        self._board.forget(report.pid)

    # What the follower finds.

    def _take_news(self) -> None:
        while True:
            try:
                news = self._news.get_nowait()
            except queue.Empty:
                return
            if isinstance(news, Accepted):
                self._rollout.propose(news)
            elif isinstance(news, Refusal):
                self._refuse(news)
            else:
                self._is_unset(news)

    def _is_unset(self, news: Unset) -> None:
        if news.role == "challenger":
            self._rollout.withdraw_challenger()
            self._board.show("challenger", None, 0.0, 0.0)
            _say("there is no challenger: the champion answers all requests.")
        else:
            _say("the alias points at nothing any more; what answers goes on.")

    def _refuse(self, refusal: Refusal) -> None:
        kept = self._rollout.present(refusal.role)
        on = "" if kept is None else f" Version {kept.version} goes on answering."
        _say(f"REFUSED as {refusal.role}: version {refusal.version} {refusal.reason}.{on}")
        self._board.refused.labels(refusal.sort).inc()
        self._refusals.put(refusal)

    def _follow(self) -> None:
        """Looks at the registry for ever; the second thread."""
        verify_at = time.monotonic() + VERIFY_EVERY_S
        while not self._stop.is_set():
            try:
                self._look()
                if time.monotonic() >= verify_at:
                    verify_at = time.monotonic() + VERIFY_EVERY_S
                    self._verify_present()
            except Exception as err:  # a thread that ends would leave a server that never follows
                _say(f"following the alias failed: {type(err).__name__}: {first_line(err)}")
            # Jittered, so that replicas which started together do not ask together.
            self._stop.wait(self._interval_s * random.uniform(0.8, 1.2))

    def _look(self) -> None:
        was_reachable = self._follower.reachable
        for one in self._follower.look():
            self._news.put(one)
        if self._follower.reachable != was_reachable:
            how = "answers again" if not was_reachable else "does not answer; what is served stays"
            _say(f"the registry {how}.")
        while not self._refusals.empty():
            refusal = self._refusals.get()
            try:
                self._note(refusal)
            except MlopsError as err:
                _say(f"the ledger does not know of the refusal: {first_line(err)}")

    def _verify_present(self) -> None:
        for role in ROLES:
            held = self._rollout.present(role)
            if held is None:
                continue
            good = self._follower.still_verifies(held)
            self._board.verifies.labels(role).set(int(good))
            if self._following.get(role, True) != good:
                how = "verifies again" if good else "DOES NOT VERIFY any more with this host's keys"
                _say(f"version {held.version}, which answers as {role}, {how}.")
            self._following[role] = good

    # What the shadow saw.

    def evidence(self) -> dict[str, Any] | None:
        """Returns the report of the shadow about what is served now; None where there is none."""
        champion = self._rollout.present("champion")
        challenger = self._rollout.present("challenger")
        if not self._shadow or champion is None or challenger is None:
            return None
        found = merge(self._folder.read_shadows(), champion.version, challenger.version)
        shas = (champion.statement_sha256, challenger.statement_sha256)
        return evidence(champion.name, found, *shas)

    def _leave_evidence(self) -> None:
        found = self.evidence()
        if found is not None and found["requests"]:
            try:
                write_json(self._folder.report, found)
            except OSError as err:
                _say(f"what the challenger did could not be written down: {err}")
                return
            _say(
                f"what the challenger did with {found['requests']} requests stands in "
                f"{str(self._folder.report)!r}; python -m registry.promote takes it as --replayed."
            )
