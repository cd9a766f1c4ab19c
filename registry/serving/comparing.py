"""The comparison of a champion and a challenger: its report while it goes on, and when it ended.

It ends when either release does not answer any more in its role, or the server ends. Then its
report is left in the server's folder, in place of the one before.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final

from registry.serving.follower import Accepted, News, Refusal, Unset
from registry.serving.shadow import evidence, merge
from registry.serving.state import StateFolder, write_json

SETTLE_S: Final = 1.0
"""So long after the end of a comparison workers may still write down what they saw."""
Pair = tuple[Accepted, Accepted]


class Comparing:
    """What the shadow saw. `page` is for any thread; the rest for one.

    Attributes:
        challenger: What was found last of the alias challenger; None before the first look.
    """

    def __init__(
        self,
        folder: StateFolder,
        say: Callable[[str], None],
        *,
        is_on: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._say = say
        self._is_on = is_on
        self._clock = clock
        self._lock = threading.Lock()
        self._pair: Pair | None = None
        self._ended: list[tuple[float, Pair]] = []
        self._last = ""
        self._is_same = False
        self.challenger: News | None = None

    def watch(
        self, champion: Accepted | None, challenger: Accepted | None, *, is_same: bool = False
    ) -> None:
        """Takes what answers now; leaves the report of a comparison that ended.

        Args:
            is_same: Whether the challenger is the champion; then `challenger` is None.
        """
        now = None
        if self._is_on and champion is not None and challenger is not None:
            now = (champion, challenger)
        with self._lock:
            before, self._pair, self._is_same = self._pair, now, is_same
            if before is not None and (now is None or _key(before) != _key(now)):
                self._ended.append((self._clock() + SETTLE_S, before))
                self._last = f" That of {_words(before)} ended; its report is being written."
        while self._ended and self._clock() >= self._ended[0][0]:
            self._leave(self._ended.pop(0)[1])

    def end(self) -> None:
        """Leaves what is not left yet: the server has ended."""
        for _, pair in self._ended:
            self._leave(pair)
        self._ended = []
        if self._pair is not None:
            self._leave(self._pair)

    def page(self) -> dict[str, Any] | str:
        """Returns the report of what is compared now; where nothing is, a sentence that says why.

        It may end with where the report of the comparison before stands.
        """
        with self._lock:
            pair, last = self._pair, self._last
        return self._report(pair) if pair is not None else self._why_nothing() + last

    def _why_nothing(self) -> str:
        if not self._is_on:
            return "nothing is compared: this server was started without --shadow."
        found = self.challenger
        if found is None:
            return "nothing is compared yet: the alias challenger has not been looked up."
        if isinstance(found, Unset):
            return "nothing is compared: no release holds the alias challenger."
        if isinstance(found, Refusal):
            return f"nothing is compared: the challenger, version {found.version}, {found.reason}."
        if self._is_same:
            return f"nothing is compared: version {found.version} is champion and challenger."
        return f"nothing is compared yet: the challenger, version {found.version}, is being loaded."

    def _report(self, pair: Pair) -> dict[str, Any]:
        champion, challenger = pair
        found = merge(self._folder.read_shadows(), champion.version, challenger.version)
        shas = (champion.statement_sha256, challenger.statement_sha256)
        return evidence(champion.name, found, *shas)

    def _leave(self, pair: Pair) -> None:
        found, file = self._report(pair), str(self._folder.report)
        if not found["requests"]:
            self._ended_with(f" That of {_words(pair)} ended without a request.")
            return
        try:
            write_json(self._folder.report, found)
        except OSError as err:
            self._say(f"the comparison of {_words(pair)} could not be written down: {err}")
            self._ended_with(f" That of {_words(pair)} ended, and could not be written down.")
            return
        self._ended_with(f" That of {_words(pair)} ended, and stands in {file!r}.")
        self._say(
            f"the comparison of {_words(pair)} has ended: what the challenger did with "
            f"{found['requests']} requests stands in {file!r}; python -m registry.promote takes it "
            "as --replayed."
        )

    def _ended_with(self, last: str) -> None:
        with self._lock:
            self._last = last


def _key(pair: Pair) -> list[tuple[int, str]]:
    return [(one.version, one.statement_sha256) for one in pair]


def _words(pair: Pair) -> str:
    return f"version {pair[0].version} and challenger {pair[1].version}"
