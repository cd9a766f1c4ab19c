"""The parent goes on where a worker dies or a disk is full, and ends where it cannot serve."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mlops.errors import MlopsError
from registry.reference import write_reference
from registry.serving.drifting import Drifting
from registry.serving.follower import Accepted, News, Unset
from registry.serving.metrics import Board
from registry.serving.parent import FIRST_DEATHS, Parent
from registry.serving.rollout import Rollout
from registry.serving.state import Report, Role, StateFolder


def accepted(version: int, role: Role = "champion") -> Accepted:
    return Accepted(role, "m", version, "run", Path(f"/r/{version}"), "00", f"sha{version}")


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

    def alias(self, role: Role) -> str:
        return role

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
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def make_world(
    tmp_path: Path, share: float = 0.0, shadow: bool = False, watches: str = ""
) -> World:
    folder = StateFolder(tmp_path / "state")
    folder.create()
    folder.clean()
    folder.lock.touch()
    following, workers, board = Following(), Workers(folder), Board(folder.metrics)
    start: Any = workers.start
    follower: Any = following
    drifting = None
    if watches:
        drifting = Drifting(folder, board.add_drift(), watches=watches, window_rows=100)
    parent = Parent(
        folder,
        follower,
        Rollout(folder, share, shadow),
        board,
        start,
        lambda refusal: None,
        workers=1,
        interval_s=0.05,
        shadow=shadow,
        share=share,
        drifting=drifting,
    )
    return World(folder, following, workers, board, parent)


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


TIMED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ")


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was said; where it has a time in front, a dot stands in its place."""
    return [TIMED.sub(". ", line) for line in capsys.readouterr().err.splitlines()]


def test_what_is_loaded_and_what_replaces_what_is_said_with_the_time(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.following.news = [accepted(8)]
    assert world.run_until(lambda: world.following.held == [7, 8], []) == 0
    assert lines(capsys)[:3] == [
        "m version 7 is verified; loading TensorFlow and the release, which takes some 20 s or "
        "more ...",
        ". version 7 answers as champion (loaded in 0.5 s).",
        ". version 8 answers as champion, in place of version 7 (loaded in 0.5 s).",
    ]


@pytest.mark.parametrize(
    ("share", "shadow", "does"),
    [
        (0.0, True, "scores beside the champion"),
        (0.3, False, "answers 30 % of the requests as challenger"),
        (
            *(0.3, True),
            "answers 30 % of the requests as challenger, and scores the others beside the champion",
        ),
    ],
)
def test_a_challenger_is_said_to_do_what_it_does(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    share: float,
    shadow: bool,
    does: str,
) -> None:
    world = make_world(tmp_path, share, shadow)
    world.following.news = [accepted(8, "challenger")]
    assert world.run_until(lambda: world.following.held == [7, 8], []) == 0
    assert f". version 8 {does} (loaded in 0.5 s)." in lines(capsys)


def test_one_release_in_both_roles_is_said_once_and_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world(tmp_path, 0.3, True)
    world.following.news = [accepted(7, "challenger")]
    pages: list[Any] = []

    def has_seen() -> bool:
        pages.append(world.parent.shadow())
        return len(pages) > 40 and world.following.held == [7, 7]

    assert world.run_until(has_seen, []) == 0
    said = (
        ". version 7 is champion and challenger: nothing is compared, and the challenger's share "
        "changes nothing."
    )
    assert [line for line in lines(capsys) if "challenger" in line] == [said]
    assert pages[-1] == "nothing is compared: version 7 is champion and challenger."
    desired = world.folder.read_desired()
    assert (desired.challenger, desired.shadow) == (None, False)


def watcher(tmp_path: Path, version: int, takes: str) -> Accepted:
    folder = tmp_path / f"{version}-vae"
    folder.mkdir()
    write_reference(folder, range(1, 200))
    one = replace(accepted(version, "watcher"), name="m-vae", folder=folder)
    return replace(one, task="vae", takes=takes)


def test_a_watcher_is_followed_refused_and_tried_again_with_another_champion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world(tmp_path, watches="m-vae@champion")
    steps: list[tuple[News | None, str]] = [
        (watcher(tmp_path, 1, ""), ". m-vae version 1 watches for drift (loaded in 0.5 s)."),
        (
            watcher(tmp_path, 2, "others"),
            ". REFUSED as watcher: version 2 of m-vae takes other rows than m version 7: kind, "
            "shape, dtype and columns must be the same. Version 1 goes on.",
        ),
        (
            replace(accepted(8), takes="others"),
            ". the watcher takes other rows than what answers: nothing is watched.",
        ),
        (None, ". m-vae version 2 watches for drift (loaded in 0.5 s)."),
        (Unset("watcher"), ". there is no watcher: nothing is watched for drift."),
    ]
    wanted, said, given = [line for _, line in steps], list[str](), [0]

    def all_said() -> bool:
        said.extend(line for line in lines(capsys) if line in wanted)
        if given[0] == len(said) < len(steps):
            news = steps[given[0]][0]
            world.following.news = [] if news is None else [news]
            given[0] += 1
        return len(said) == len(steps)

    assert world.run_until(all_said, []) == 0
    assert said == wanted
    assert 'podium_model_version{role="watcher"}' not in world.board.text().decode()


def test_a_server_that_died_and_answers_again_is_told_of(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    ready: list[int] = []
    said: list[str] = []

    def answers_again() -> bool:
        if ready and len(ready) == 1:
            ready.append(0)
            world.workers.ended = True
        said.extend(lines(capsys))
        return any("the server answers again with version 7, after" in line for line in said)

    assert world.run_until(answers_again, ready) == 0
    assert answers_again()


def test_the_page_of_the_model_says_what_answers(tmp_path: Path) -> None:
    world = make_world(tmp_path, 0.3, True)
    world.following.news = [accepted(8, "challenger")]
    assert "being loaded" in world.parent.model()
    pages: list[Any] = []

    def has_challenger() -> bool:
        pages.append(world.parent.model())
        return not isinstance(pages[-1], str) and pages[-1]["challenger"] is not None

    assert world.run_until(has_challenger, []) == 0
    found = pages[-1]
    assert (found["name"], found["alias"], found["version"]) == ("m", "champion", 7)
    assert (found["statement_sha256"], found["workers"]) == ("sha7", 1)
    other = found["challenger"]
    assert (other["version"], other["share"], other["shadow"]) == (8, 0.3, True)
    assert datetime.fromisoformat(found["since"]) <= datetime.now(UTC)
