"""The parent goes on where a worker dies or a disk is full, and ends where it cannot serve."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mlops.errors import MlopsError
from registry.serving.follower import Accepted, News
from registry.serving.metrics import Board
from registry.serving.parent import FIRST_DEATHS, Parent
from registry.serving.rollout import Rollout
from registry.serving.state import Report, StateFolder


def accepted(version: int) -> Accepted:
    return Accepted("champion", "m", version, "run", Path(f"/r/{version}"), "00", f"sha{version}")


@dataclass
class Following:
    """What the registry says, and what the parent tells the follower."""

    news: list[News] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    not_loaded_: list[int] = field(default_factory=list)
    full: int = 0
    reachable: bool = True

    def look(self) -> list[News]:
        news, self.news = self.news, []
        return news

    def still_verifies(self, held: Accepted) -> bool:
        return True

    def hold(self, one: Accepted) -> None:
        if self.full:
            self.full -= 1
            raise OSError("no space left on device")
        self.held.append(one.version)

    def not_loaded(self, one: Accepted) -> None:
        self.not_loaded_.append(one.version)


@dataclass
class Workers:
    """A server whose one worker is a number: it loads what is wanted, or dies of it."""

    folder: StateFolder
    deadly: set[int] = field(default_factory=set)
    pid: int = 0
    ended: bool = True

    def start(self) -> Workers:
        self.pid, self.ended = self.pid + 1, False
        desired = self.folder.read_desired()
        assert desired.champion is not None
        if desired.wanted[desired.champion].version in self.deadly:
            self.folder.write_report(Report(self.pid))
            return self
        self._say({desired.champion: 0.5})
        return self

    def _say(self, loaded: dict[str, float]) -> None:
        self.folder.write_report(Report(self.pid, True, loaded))

    def has_ended(self) -> bool:
        return self.ended

    def answers(self) -> bool:
        return True

    def holds(self, pid: int) -> bool:
        """Does what the worker would have done since the last time."""
        if pid != self.pid or self.ended:
            return False
        desired = self.folder.read_desired()
        said = self.folder.read_reports()[pid]
        if not said.serving:
            self.pid += 1  # uvicorn starts another
            self.folder.write_report(Report(self.pid))
        elif self.deadly & {one.version for one in desired.wanted.values()}:
            self.ended = True
        else:
            self._say(dict.fromkeys(desired.wanted, 0.5))
            return True
        return False

    def end(self, pid: int) -> None:
        raise AssertionError

    def stop(self) -> bool:
        return True


@dataclass
class World:
    folder: StateFolder
    following: Following
    workers: Workers
    board: Board
    parent: Any

    def run_until(self, holds: Callable[[], bool], seen: list[int]) -> int:
        """Runs the parent; `seen` gets the version with which it was ready."""

        ended = threading.Event()

        def stop() -> None:
            deadline = time.monotonic() + 20
            while not holds() and time.monotonic() < deadline and not ended.wait(0.02):
                pass
            self.parent.stop()

        watch = threading.Thread(target=stop)
        watch.start()
        try:
            code: int = self.parent.run(accepted(7), lambda first: seen.append(first.version))
        finally:
            ended.set()
            watch.join()
        return code

    def not_loaded(self) -> float:
        (line,) = (
            line
            for line in self.board.text().decode().splitlines()
            if line.startswith('podium_refused_releases_total{reason="not_loaded"}')
        )
        return float(line.rsplit(" ", 1)[1])


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    folder = StateFolder(tmp_path / "state")
    folder.create()
    folder.clean()
    folder.lock.touch()
    following, workers, board = Following(), Workers(folder), Board(folder.metrics)
    start: Any = workers.start
    follower: Any = following
    parent = Parent(
        folder,
        follower,
        Rollout(folder, 0.0, False),
        board,
        start,
        lambda refusal: None,
        workers=1,
        interval_s=0.05,
        shadow=False,
    )
    yield World(folder, following, workers, board, parent)


def test_a_release_that_kills_the_only_worker_is_refused_and_the_old_one_answers(
    world: World,
) -> None:
    world.workers.deadly = {8}
    world.following.news = [accepted(8)]
    ready: list[int] = []
    assert world.run_until(lambda: world.following.not_loaded_ == [8], ready) == 0
    assert ready == world.following.held == [7]
    assert world.not_loaded() == 1
    assert [one.version for one in world.folder.read_desired().wanted.values()] == [7]


def test_a_first_release_that_kills_its_workers_ends_the_parent(world: World) -> None:
    world.workers.deadly = {7}
    with pytest.raises(MlopsError, match=f"{FIRST_DEATHS} workers died while they loaded it"):
        world.run_until(lambda: False, [])


def test_it_is_ready_though_the_disk_is_full_and_writes_it_down_later(world: World) -> None:
    world.following.full = 3
    ready: list[int] = []
    assert world.run_until(lambda: world.following.held == [7], ready) == 0
    assert ready == [7]


def test_a_state_folder_that_was_removed_ends_it_with_a_sentence(world: World) -> None:
    ready: list[int] = []

    def remove() -> bool:
        if ready:
            world.workers.ended = True
            shutil.rmtree(world.folder.path, ignore_errors=True)
        return False

    with pytest.raises(MlopsError, match="was removed, through which the workers are told"):
        world.run_until(remove, ready)
