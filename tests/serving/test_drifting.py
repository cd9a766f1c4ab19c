"""What workers scored becomes windows; a watcher that does not fit is refused with a sentence."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops.errors import UsageError
from registry.reference import write_reference
from registry.serving.drifting import Drifting, find_misfit
from registry.serving.follower import Accepted, Refusal, Unset
from registry.serving.followers import find_watched
from registry.serving.metrics import Board
from registry.serving.state import StateFolder

START = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)


def watcher(folder: Path, version: int = 2, takes: str = "rows", task: str = "vae") -> Accepted:
    """An accepted release in a private folder, with a reference of scores from 0 to 1."""
    place = folder / f"{version}-aa"
    place.mkdir(exist_ok=True)
    write_reference(place, 1 + np.random.default_rng(version).random(300))
    sha = f"sha{version}{takes}"
    return Accepted("watcher", "m-vae", version, "run", place, "00", sha, None, task, takes)


def champion(takes: str = "rows") -> Accepted:
    return Accepted("champion", "m", 7, "run", Path("/r"), "00", "sha7", None, "classifier", takes)


class World:
    def __init__(self, folder: StateFolder, path: Path) -> None:
        self.folder, self.path = folder, path
        self.board = Board(folder.metrics)
        self.said: list[str] = []
        self.times = iter(START + timedelta(minutes=one) for one in range(99))
        self.drifting = Drifting(
            folder,
            self.board.add_drift(),
            watches="m-vae@champion",
            window_rows=100,
            now=lambda: next(self.times),
        )
        self.drifting.say = self.said.append
        self.seconds = 0.0
        self.workers: dict[int, list[float]] = {}

    def score(self, pid: int, scores: Any, dropped: int = 0, under: str = "2-aa") -> None:
        """Writes what a worker has scored, as it does: all so far, of which the last are kept."""
        mine = self.workers.setdefault(pid, [])
        mine += [float(one) for one in scores]
        said = {"total": len(mine), "dropped": dropped, "scores": mine[-250:]}
        self.folder.write_drift(pid, {"started": f"{pid}-1", "watchers": {under: said}})

    def step(self, held: Accepted | None, **more: Any) -> dict[str, Any] | str:
        self.seconds += 2.0
        self.drifting.step(held, self.seconds, **more)
        return self.drifting.page()

    def metric(self, name: str) -> float:
        lines = self.board.text().decode().splitlines()
        (found,) = [line for line in lines if line.startswith(f"{name} ")]
        return float(found.rsplit(" ", 1)[1])


@pytest.fixture
def world(folder: StateFolder, tmp_path: Path) -> World:
    return World(folder, tmp_path)


def same(n: int, seed: int = 0) -> Any:
    return 1 + np.random.default_rng(seed).random(n)


def test_the_scores_of_all_workers_make_windows(world: World) -> None:
    held = watcher(world.path)
    assert world.step(held) == ("no window is full yet: m-vae version 2 has scored 0 of 100 rows.")
    world.score(1, same(60), dropped=5)
    world.score(2, same(30, 1))
    assert "has scored 90 of 100 rows" in str(world.step(held))
    world.score(2, same(130, 2), dropped=2)
    page = world.step(held)
    assert isinstance(page, dict)
    assert (page["watcher"], page["watcher_version"], page["windows"]) == ("m-vae", 2, 2)
    assert (page["n_rows"], page["n_dropped"], page["drifted"]) == (220, 7, False)
    assert (page["drifted_since"], page["last_window_at"]) == (None, "2026-11-26T12:01:00+00:00")
    assert world.metric("podium_drift_rows_total") == 220
    assert world.metric("podium_drift_dropped_total") == 7
    assert world.metric("podium_drift_windows_total") == 2
    assert world.step(held) == page  # nothing is counted twice


def test_scores_that_were_no_longer_there_are_counted_as_dropped(world: World) -> None:
    held = watcher(world.path)
    world.step(held)
    world.score(1, same(400))
    page = world.step(held)
    assert isinstance(page, dict)
    assert (page["n_rows"], page["n_dropped"]) == (250, 150)


def test_drift_is_said_once_when_it_begins_and_once_when_it_ends(world: World) -> None:
    held = watcher(world.path)
    world.step(held)
    drifted = []
    for number, shift in enumerate((0, 0.5, 0, 0.5, 0.5, 0, 0, 0, 0)):
        world.score(1, same(100, number) + shift)
        page = world.step(held)
        assert isinstance(page, dict)
        drifted.append(page["drifted"])
    assert drifted == [False] * 3 + [True] * 4 + [False] * 2
    begins, ends = world.said
    assert begins.startswith(
        "DRIFT: the rows that are answered are not like the test rows of m-vae"
    )
    assert "2 of the last 3 windows are shifted" in begins
    assert ends.startswith("the drift that began at 2026-11-26T12:03:00+00:00 has ended: PSI")
    assert world.metric("podium_drifted") == 0
    assert world.metric("podium_drift_shifted_windows_total") == 3


def test_another_watcher_begins_anew(world: World) -> None:
    world.score(1, same(300) + 0.5)
    page = world.step(watcher(world.path))
    assert isinstance(page, dict)
    assert page["drifted"]
    assert world.metric("podium_drifted") == 1
    other = watcher(world.path, version=3)
    assert "m-vae version 3 has scored 0 of 100" in str(world.step(other))
    assert world.metric("podium_drifted") == 0
    assert np.isnan(world.metric("podium_drift_psi"))


@pytest.mark.parametrize(
    "value",
    [None, [], {}, {"started": "1", "watchers": {"2-aa": {"total": "x"}}}, {"watchers": 3}],
)
def test_a_file_that_is_no_workers_is_passed_over(world: World, value: Any) -> None:
    held = watcher(world.path)
    world.folder.write_drift(1, value)
    assert "has scored 0 of 100" in str(world.step(held))


def test_it_says_why_nothing_is_watched(world: World) -> None:
    assert "has not been looked up" in str(world.step(None))
    world.drifting.news = Unset("watcher")
    assert world.step(None) == "nothing is watched: no release holds m-vae@champion."
    world.drifting.news = Refusal("watcher", 3, "unverified", "does not verify: x")
    assert "m-vae@champion, version 3, does not verify: x." in str(world.step(None))
    world.drifting.news = watcher(world.path)
    assert "is being loaded" in str(world.step(None))
    assert "takes other rows than what answers" in str(world.step(None, pauses=True))


def without_reference(one: Accepted) -> Accepted:
    (one.folder / "reference.json").unlink()
    return one


def with_bad_reference(one: Accepted) -> Accepted:
    (one.folder / "reference.json").write_text("{}")
    return one


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: watcher(path), None),
        (lambda path: watcher(path, task="classifier"), "of m-vae is no VAE"),
        (lambda path: watcher(path, takes="others"), "takes other rows than m version 7"),
        (lambda path: without_reference(watcher(path)), "has no reference to compare scores with"),
        (lambda path: with_bad_reference(watcher(path)), "holds no reference of scores"),
    ],
)
def test_a_release_that_cannot_watch_is_refused_with_a_sentence(
    world: World, change: Callable[[Path], Accepted], said: str | None
) -> None:
    one = change(world.path)
    reason = find_misfit(one, champion())
    assert (reason is None) == (said is None)
    assert said is None or said in str(reason)
    news = world.drifting.judge(one, champion())
    assert isinstance(news, Refusal) == (said is not None)
    assert world.drifting.unfit == ([] if said is None else [one])


def test_what_watches_is_found_by_the_option() -> None:
    assert find_watched("digits-vae", "digits-classifier") == ("digits-vae", "champion")
    assert find_watched("digits-vae@next", "digits-classifier") == ("digits-vae", "next")
    assert find_watched("auto", "digits-classifier") == ("digits-vae", "champion")
    for watch, name in (("auto", "digits"), ("auto", "-classifier"), ("@x", "m"), ("m", "m")):
        with pytest.raises(UsageError, match="--watch"):
            find_watched(watch, name)
