"""A release comes to all workers or to none."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.serving.follower import Accepted
from registry.serving.rollout import LOAD_S, Done, NotLoaded, Rollout
from registry.serving.state import Desired, Report, Role, StateFolder

TIME = [0.0]


def accepted(version: int, role: Role = "champion") -> Accepted:
    return Accepted(role, "m", version, "run", Path(f"/r/{version}"), "00", f"sha{version}")


def worker(pid: int, *loaded: int, refused: dict[int, str] | None = None) -> Report:
    return Report(pid, True, dict.fromkeys(loaded, 0.5), refused or {}, champion=7)


def never(pid: int) -> None:
    raise AssertionError(f"{pid} was killed")


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    made = StateFolder(tmp_path / "state")
    made.create()
    made.clean()
    return made


@pytest.fixture
def rollout(folder: StateFolder) -> Rollout:
    made = Rollout(folder, 0.1, shadow=False, clock=lambda: TIME[0])
    made.begin(accepted(7))
    return made


def wants(folder: StateFolder) -> tuple[list[int], int | None, int | None]:
    desired: Desired = folder.read_desired()
    return sorted(desired.wanted), desired.champion, desired.challenger


def test_a_release_is_loaded_by_all_before_any_answers_with_it(
    folder: StateFolder, rollout: Rollout
) -> None:
    rollout.propose(accepted(8))
    assert rollout.step([worker(1, 7), worker(2, 7)], never) == []
    assert wants(folder) == ([7, 8], 7, None)
    assert rollout.step([worker(1, 7, 8), worker(2, 7)], never) == []
    assert wants(folder) == ([7, 8], 7, None)
    assert rollout.step([worker(1, 7, 8), worker(2, 7, 8)], never) == [Done(accepted(8), 0.5)]
    assert wants(folder) == ([8], 8, None)
    assert not rollout.is_busy


def test_one_worker_that_refuses_keeps_all_from_it(folder: StateFolder, rollout: Rollout) -> None:
    rollout.propose(accepted(8))
    rollout.step([worker(1, 7)], never)
    ended = rollout.step([worker(1, 7, 8), worker(2, 7, refused={8: "no"})], never)
    assert ended == [NotLoaded(accepted(8), "no")]
    assert wants(folder) == ([7], 7, None)


def test_a_worker_that_hangs_in_loading_is_killed_and_the_release_given_up(
    folder: StateFolder, rollout: Rollout
) -> None:
    killed: list[int] = []
    rollout.propose(accepted(8))
    rollout.step([worker(1, 7), worker(2, 7)], never)
    TIME[0] += LOAD_S + 1
    ended = rollout.step([worker(1, 7, 8), worker(2, 7)], killed.append)
    assert [type(one) for one in ended] == [NotLoaded]
    assert killed == [2]
    assert wants(folder) == ([7], 7, None)


def test_no_release_is_given_up_while_nobody_answers(folder: StateFolder, rollout: Rollout) -> None:
    rollout.propose(accepted(8))
    rollout.step([worker(1, 7)], never)
    TIME[0] += LOAD_S + 1
    assert rollout.step([], never) == []
    assert rollout.step([worker(3, 7, 8)], never) == [Done(accepted(8), 0.5)]


def test_the_release_on_its_way_comes_first_and_then_the_newest(
    folder: StateFolder, rollout: Rollout
) -> None:
    rollout.propose(accepted(8))
    rollout.step([worker(1, 7)], never)
    rollout.propose(accepted(9))
    rollout.propose(accepted(10))
    assert rollout.step([worker(1, 7, 8)], never) == [Done(accepted(8), 0.5)]
    assert wants(folder) == ([8, 10], 8, None)


def test_a_challenger_that_becomes_the_champion_is_a_challenger_no_more(
    folder: StateFolder, rollout: Rollout
) -> None:
    rollout.propose(accepted(8, "challenger"))
    rollout.step([worker(1, 7)], never)
    rollout.step([worker(1, 7, 8)], never)
    assert wants(folder) == ([7, 8], 7, 8)
    rollout.propose(accepted(8))
    rollout.step([worker(1, 7, 8)], never)
    assert rollout.step([worker(1, 7, 8)], never) == [Done(accepted(8), 0.5)]
    assert wants(folder) == ([8], 8, None)


def test_a_challenger_that_is_withdrawn_is_dropped(folder: StateFolder, rollout: Rollout) -> None:
    rollout.propose(accepted(8, "challenger"))
    rollout.step([worker(1, 7)], never)
    rollout.step([worker(1, 7, 8)], never)
    rollout.withdraw_challenger()
    assert wants(folder) == ([7], 7, None)


def test_what_answers_already_is_not_loaded_again(folder: StateFolder, rollout: Rollout) -> None:
    rollout.propose(accepted(7))
    assert rollout.step([worker(1, 7)], never) == []
    assert not rollout.is_busy
    assert wants(folder) == ([7], 7, None)
