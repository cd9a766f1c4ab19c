"""What a person sees while a sweep runs: a bar a study in a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Protocol

from experiments.study import Tally
from mlops.program import say

LINE_EVERY_S = 15.0


class Progress(Protocol):
    """Takes news of a sweep's studies."""

    def __enter__(self) -> Progress: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def update(self, study: str, tally: Tally) -> None:
        """Shows how a study stands."""

    def note(self, line: str) -> None:
        """Shows a sentence."""


def open_progress() -> Progress:
    return Bars() if sys.stderr.isatty() else Lines()


class Lines:
    """For logs and pipes: a line when something was noted, and one every 15 seconds at most."""

    def __init__(self) -> None:
        self._tallies: dict[str, Tally] = {}
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, study: str, tally: Tally) -> None:
        self._tallies[study] = tally
        now = time.monotonic()
        if now - self._said >= LINE_EVERY_S:
            self._said = now
            parts = [
                f"{name} {one.n_finished}/{one.target}" + _best(one)
                for name, one in self._tallies.items()
            ]
            say(f"[{now - self._began:5.0f} s] " + ", ".join(parts))

    def note(self, line: str) -> None:
        say(line)


class Bars:
    """For a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def update(self, study: str, tally: Tally) -> None:
        if study not in self._tasks:
            self._tasks[study] = self._bars.add_task(study, total=tally.target, state="")
        self._bars.update(
            self._tasks[study],
            total=tally.target,
            completed=tally.n_finished,
            state=f"{_best(tally)}  pruned {tally.n_pruned}  failed {tally.n_failed}",
        )

    def note(self, line: str) -> None:
        self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _best(tally: Tally) -> str:
    return "" if tally.value is None else f" best {tally.value:.4f}"
