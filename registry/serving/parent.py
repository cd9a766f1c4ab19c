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
from datetime import UTC, datetime
from typing import Any, Final

from mlops.errors import MlopsError, first_line
from mlops.program import say
from registry.serving.about import describe_release
from registry.serving.comparing import Comparing
from registry.serving.drifting import Drifting
from registry.serving.follower import Accepted, Follower, News, Refusal, Unset
from registry.serving.followers import Followers
from registry.serving.metrics import Board
from registry.serving.rollout import Done, NotLoaded, Rollout
from registry.serving.server import Server
from registry.serving.state import ROLES, Report, Role, StateFolder
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


class Parent:
    """Serves one alias until it is told to stop."""

    def __init__(
        self,
        folder: StateFolder,
        follower: Follower | Followers,
        rollout: Rollout,
        board: Board,
        start: Callable[[], Server],
        note: Note,
        *,
        workers: int,
        interval_s: float,
        shadow: bool,
        share: float = 0.0,
        drifting: Drifting | None = None,
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
        self._share = share
        self._comparing = Comparing(folder, self._say, is_on=shadow)
        self._drifting = drifting
        if drifting is not None:
            drifting.say = self._say
        self._shown: dict[Role, tuple[int, datetime]] = {}
        self._is_same = False
        self._down_since: tuple[str, float] | None = None
        self._n_serving = 0
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

    def _say(self, line: str) -> None:
        """Says a line where it can be said: the log may lie on a disk that is full."""
        when = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} " if self._is_ready else ""
        with contextlib.suppress(OSError, ValueError):
            say(when + line)

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
        self._say(
            f"{champion.name} version {champion.version} is verified; loading TensorFlow and the "
            "release, which takes some 20 s or more ..."
        )
        self._key = self._rollout.begin(champion)
        self._give_up_at = time.monotonic() + FIRST_S
        threading.Thread(target=self._follow, name="follow", daemon=True).start()
        try:
            self._server = self._start()
            while not self._stop.is_set():
                try:
                    self._tick(champion, on_ready)
                except OSError as err:  # a full disk, say: what answers goes on
                    self._say(f"the workers could not be told: {err}")
                    self._stop.wait(1.0)
                self._stop.wait(TICK_S if self._is_busy else 4 * TICK_S)
        finally:
            in_time = self._server is None or self._server.stop()
            self._comparing.end()
        if not in_time:
            self._say("the server did not end in time: requests that it answered were cut off.")
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
        self._n_serving = len(serving)
        self._board.workers.set(self._n_serving)
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
        self._watch_challenger()
        self._watch_drift()
        self._watch_recovery(server)

    def _watch_challenger(self) -> None:
        """Says once where champion and challenger are one release, and where they part."""
        champion = self._rollout.present("champion")
        challenger = self._rollout.present("challenger")
        is_same, before = self._rollout.is_one_release, self._is_same
        self._comparing.watch(champion, challenger, is_same=is_same)
        self._is_same = is_same
        if is_same and not before and champion is not None:
            self._hide("challenger")
            self._say(
                f"version {champion.version} is champion and challenger: nothing is compared, and "
                "the challenger's share changes nothing."
            )
        elif before and challenger is not None and "challenger" not in self._shown:
            self._show(challenger, 0.0)
            self._say(f"version {challenger.version} {self._does('challenger')}.")

    def _watch_drift(self) -> None:
        """Takes what the watcher saw; says once that it takes other rows than a new champion."""
        if self._drifting is None:
            return
        watcher, pauses = self._rollout.present("watcher"), self._rollout.watcher_pauses
        self._drifting.step(watcher, time.monotonic(), pauses=pauses)
        if pauses and "watcher" in self._shown:
            self._hide("watcher")
            self._say("the watcher takes other rows than what answers: nothing is watched.")
        elif watcher is not None and "watcher" not in self._shown:
            self._show(watcher, 0.0)
            self._say(f"{watcher.name} version {watcher.version} watches again.")

    def _watch_recovery(self, server: Server) -> None:
        """Says that all answer again after a worker or the server died."""
        if self._down_since is None or self._n_serving < self._workers or not server.answers():
            return
        what, since = self._down_since
        self._down_since = None
        held = self._rollout.present("champion")
        version = "" if held is None else f" with version {held.version}"
        self._say(f"{what} again{version}, after {time.monotonic() - since:.0f} s.")

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
        refusal = Refusal(accepted.role, accepted.version, "not_loaded", reason)
        self._note_news(refusal)
        self._refuse(refusal)

    def _keep(self) -> None:
        """Has the follower write down what answers; what a full disk kept from it, once more."""
        for role, accepted in list(self._not_kept.items()):
            try:
                self._follower.hold(accepted)
            except OSError as err:
                if not self._is_said:
                    self._say(f"what answers could not be written down: {err}")
                self._is_said = True
                return
            del self._not_kept[role]
            self._is_said = False

    def _is_done(self, done: Done) -> None:
        accepted, role = done.accepted, done.accepted.role
        before = self._shown.get(role)
        self._not_kept[role] = accepted
        self._keep()
        self._show(accepted, done.load_s)
        if role == "champion" and self._drifting is not None:
            self.tell(self._drifting.unfit)
        if self._rollout.present("challenger") is None:
            self._hide("challenger")
            if role == "challenger":
                return  # it is the champion, which is said of both
        of = "" if before is None else f", in place of version {before[0]}"
        called = f"{accepted.name} version" if role == "watcher" else "version"
        self._say(
            f"{called} {accepted.version} {self._does(role)}{of} (loaded in {done.load_s:.1f} s)."
        )

    def _show(self, accepted: Accepted, load_s: float) -> None:
        now = datetime.now(UTC)
        self._shown[accepted.role] = (accepted.version, now)
        self._board.show(accepted.role, accepted.version, now.timestamp(), load_s)

    def _hide(self, role: Role) -> None:
        self._shown.pop(role, None)
        self._board.show(role, None, 0.0, 0.0)

    def _does(self, role: Role) -> str:
        """What a release does in a role, to go on from its version."""
        if role == "champion":
            return "answers as champion"
        if role == "watcher":
            return "watches for drift"
        if not self._share:
            return "scores beside the champion" if self._shadow else "is challenger, asked nothing"
        answers = f"answers {100 * self._share:g} % of the requests as challenger"
        return answers + (", and scores the others beside the champion" if self._shadow else "")

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
            self._say(f"the server has ended; starting it again in {self._pause_s:g} s.")
            self._n_serving = 0
            self._board.workers.set(0)
            self._down_since = ("the server answers", now)
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
                if self._is_ready and report.serving:
                    self._say(f"worker {pid} has ended; another takes its place.")
                    if self._down_since is None:
                        self._down_since = ("all workers answer", time.monotonic())
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
            if self._drifting is not None:
                news = self._drifting.judge(news, self._rollout.present("champion"))
            self._note_news(news)
            if isinstance(news, Accepted):
                self._rollout.propose(news)
            elif isinstance(news, Refusal):
                self._refuse(news)
            else:
                self._is_unset(news)

    def _note_news(self, news: News) -> None:
        if news.role == "challenger":
            self._comparing.challenger = news
        elif news.role == "watcher" and self._drifting is not None:
            self._drifting.news = news

    def _is_unset(self, news: Unset) -> None:
        if news.role == "watcher":
            self._rollout.withdraw("watcher")
            self._hide("watcher")
            self._say("there is no watcher: nothing is watched for drift.")
        elif news.role == "challenger":
            self._rollout.withdraw("challenger")
            self._hide("challenger")
            what = "the champion answers all requests" if self._share else "nothing is compared"
            self._say(f"there is no challenger: {what}.")
        else:
            self._say("the alias points at nothing any more; what answers goes on.")

    def _refuse(self, refusal: Refusal) -> None:
        kept = self._rollout.present(refusal.role)
        on = "" if kept is None else f" Version {kept.version} goes on."
        self._say(f"REFUSED as {refusal.role}: version {refusal.version} {refusal.reason}.{on}")
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
                self._say(f"following the alias failed: {type(err).__name__}: {first_line(err)}")
            # Jittered, so that replicas which started together do not ask together.
            self._stop.wait(self._interval_s * random.uniform(0.8, 1.2))

    def _look(self) -> None:
        was_reachable = self._follower.reachable
        for one in self._follower.look():
            self._news.put(one)
        if self._follower.reachable != was_reachable:
            how = "answers again" if not was_reachable else "does not answer; what is served stays"
            self._say(f"the registry {how}.")
        while not self._refusals.empty():
            refusal = self._refusals.get()
            try:
                self._note(refusal)
            except MlopsError as err:
                self._say(f"the ledger does not know of the refusal: {first_line(err)}")

    def _verify_present(self) -> None:
        for role in ROLES:
            held = self._rollout.present(role)
            if held is None:
                continue
            good = self._follower.still_verifies(held)
            self._board.verifies.labels(role).set(int(good))
            if self._following.get(role, True) != good:
                how = "verifies again" if good else "DOES NOT VERIFY any more with this host's keys"
                self._say(f"version {held.version}, which is {role}, {how}.")
            self._following[role] = good

    # What is told of what answers.

    def model(self) -> dict[str, Any] | str:
        """Returns what answers now, for the page /model."""
        roles = {role: self._rollout.present(role) for role in ROLES}
        champion, challenger = roles["champion"], roles["challenger"]
        if champion is None or not self._is_ready:
            return "nothing answers yet: the first release is being loaded."
        told = describe_release(champion, self._follower.alias("champion"), self._since("champion"))
        told["workers"] = self._n_serving
        told["workers_wanted"] = self._workers
        told["challenger"] = None
        if challenger is not None:
            alias = self._follower.alias("challenger")
            told["challenger"] = {
                **describe_release(challenger, alias, self._since("challenger")),
                "share": self._share,
                "shadow": self._shadow,
            }
        return told

    def _since(self, role: Role) -> datetime | None:
        shown = self._shown.get(role)
        return None if shown is None else shown[1]

    def drift(self) -> dict[str, Any] | str:
        """Returns what the watcher found, for the page /drift; else a sentence."""
        if self._drifting is None:
            return "nothing is watched: this server was started without --watch."
        return self._drifting.page()

    def shadow(self) -> dict[str, Any] | str:
        """Returns what is compared now, for the page /shadow; a sentence where nothing is."""
        return self._comparing.page()
