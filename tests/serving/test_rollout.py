"""A release comes to all workers or to none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from registry.serving.follower import Accepted
from registry.serving.rollout import LOAD_S, START_S, Done, NotLoaded, Rollout
from registry.serving.state import Desired, Report, Role, StateFolder

TIME = [0.0]


def accepted(version: int, role: Role = "champion") -> Accepted:
    return Accepted(role, "m", version, "run", Path(f"/r/{version}"), "00", f"sha{version}")


def worker(pid: int, *loaded: str, refused: dict[str, str] | None = None) -> Report:
    return Report(pid, True, dict.fromkeys(loaded, 0.5), refused or {}, champion=7)


def never(pid: int) -> None:
    raise AssertionError(f"{pid} was killed")


@pytest.fixture
def rollout(folder: StateFolder) -> Rollout:
    made = Rollout(folder, 0.1, shadow=False, clock=lambda: TIME[0])
    made.begin(accepted(7))
    return made


def wants(folder: StateFolder) -> tuple[list[int], int | None, int | None]:
    """The versions that are wanted, and those that shall answer."""
    desired: Desired = folder.read_desired()
    versions = {key: one.version for key, one in desired.wanted.items()}
    answering = [key and versions[key] for key in (desired.champion, desired.challenger)]
    champion, challenger = (None if one is None else int(one) for one in answering)
    return sorted(versions.values()), champion, challenger


def test_a_release_is_loaded_by_all_before_any_answers_with_it(
    folder: StateFolder, rollout: Rollout
) -> None:
    rollout.propose(accepted(8))
    assert rollout.step([worker(1, "7.1"), worker(2, "7.1")], never) == []
    assert wants(folder) == ([7, 8], 7, None)
    assert rollout.step([worker(1, "7.1", "8.2"), worker(2, "7.1")], never) == []
    assert wants(folder) == ([7, 8], 7, None)
    assert rollout.step([worker(1, "7.1", "8.2"), worker(2, "7.1", "8.2")], never) == [
        Done(accepted(8), 0.5)
    ]
    assert wants(folder) == ([8], 8, None)
    assert not rollout.is_busy


def test_one_worker_that_refuses_keeps_all_from_it(folder: StateFolder, rollout: Rollout) -> None:
    rollout.propose(accepted(8))
    rollout.step([worker(1, "7.1")], never)
    ended = rollout.step([worker(1, "7.1", "8.2"), worker(2, "7.1", refused={"8.2": "no"})], never)
    assert ended == [NotLoaded(accepted(8), "no")]
    assert wants(folder) == ([7], 7, None)


def test_a_worker_that_hangs_in_loading_is_killed_and_the_release_given_up(
    folder: StateFolder, rollout: Rollout
) -> None:
    killed: list[int] = []
    rollout.propose(accepted(8))
    rollout.step([worker(1, "7.1"), worker(2, "7.1")], never)
    TIME[0] += LOAD_S + 1
    both = [worker(1, "7.1", "8.2"), worker(2, "7.1")]
    ended = rollout.step(both, killed.append)
    assert [type(one) for one in ended] == [NotLoaded]
    assert wants(folder) == ([7], 7, None)
    rollout.step(both, killed.append)
    assert killed == [2]


def test_workers_that_hang_are_ended_one_after_another(rollout: Rollout) -> None:
    asked: list[int] = []
    rollout.propose(accepted(8))
    hang = [worker(pid, "7.1") for pid in (1, 2, 3)]
    rollout.step(hang, never)
    TIME[0] += LOAD_S + 1
    rollout.step(hang, never)
    rollout.propose(accepted(9))
    rollout.step(hang, asked.append)
    rollout.step(hang, asked.append)
    assert asked == [1, 1]
    rollout.step(hang[1:], asked.append)  # its successor does not serve yet
    rollout.step([*hang[1:], Report(4)], asked.append)
    assert asked == [1, 1]
    new = worker(4, "7.1")
    rollout.step([*hang[1:], new], asked.append)
    assert asked == [1, 1, 2]
    # The third comes through by itself; then the next release has its turn.
    through = worker(3, "7.1", "8.2")
    rollout.step([through, new], asked.append)
    rollout.step([through, new, worker(5, "7.1")], asked.append)
    assert asked == [1, 1, 2]
    all_three = [worker(pid, "7.1", "9.3") for pid in (3, 4, 5)]
    assert rollout.step(all_three, never) == [Done(accepted(9), 0.5)]


def test_no_release_is_given_up_while_nobody_answers(folder: StateFolder, rollout: Rollout) -> None:
    rollout.propose(accepted(8))
    rollout.step([worker(1, "7.1")], never)
    TIME[0] += LOAD_S + 1
    assert rollout.step([], never) == []
    assert rollout.step([worker(3, "7.1", "8.2")], never) == [Done(accepted(8), 0.5)]


def test_a_newer_target_and_the_way_back_give_up_what_is_on_its_way(
    folder: StateFolder, rollout: Rollout
) -> None:
    rollout.propose(accepted(8))
    rollout.step([worker(1, "7.1")], never)
    rollout.propose(accepted(9))
    rollout.propose(accepted(10))
    assert rollout.step([worker(1, "7.1", "8.2")], never) == []
    assert wants(folder) == ([7, 10], 7, None)
    rollout.propose(accepted(7))
    assert rollout.step([worker(1, "7.1", "10.3")], never) == []
    assert wants(folder) == ([7], 7, None)
    assert not rollout.is_busy


def test_a_challenger_that_becomes_the_champion_is_a_challenger_no_more(
    folder: StateFolder, rollout: Rollout
) -> None:
    rollout.propose(accepted(8, "challenger"))
    rollout.step([worker(1, "7.1")], never)
    rollout.step([worker(1, "7.1", "8.2")], never)
    assert wants(folder) == ([7, 8], 7, 8)
    rollout.propose(accepted(8))
    rollout.step([worker(1, "7.1", "8.2")], never)
    assert rollout.step([worker(1, "7.1", "8.2")], never) == [Done(accepted(8), 0.5)]
    assert wants(folder) == ([8], 8, None)


def test_a_challenger_that_is_withdrawn_is_dropped(folder: StateFolder, rollout: Rollout) -> None:
    rollout.propose(accepted(8, "challenger"))
    rollout.step([worker(1, "7.1")], never)
    rollout.step([worker(1, "7.1", "8.2")], never)
    rollout.withdraw("challenger")
    assert wants(folder) == ([7], 7, None)


def test_a_watcher_is_loaded_beside_and_pauses_where_it_takes_other_rows(
    folder: StateFolder, rollout: Rollout
) -> None:
    rollout.propose(accepted(2, "watcher"))
    rollout.step([worker(1, "7.1")], never)
    rollout.step([worker(1, "7.1", "2.2")], never)
    assert (wants(folder), folder.read_desired().watcher) == (([2, 7], 7, None), "2.2")
    rollout.propose(replace(accepted(8), takes="others"))
    rollout.step([worker(1, "7.1", "2.2")], never)
    rollout.step([worker(1, "7.1", "2.2", "8.3")], never)
    assert (wants(folder), folder.read_desired().watcher) == (([2, 8], 8, None), None)
    assert (rollout.watcher_pauses, rollout.present("watcher")) == (True, None)
    rollout.propose(replace(accepted(3, "watcher"), takes="others"))
    rollout.step([worker(1, "2.2", "8.3")], never)
    rollout.step([worker(1, "2.2", "8.3", "3.4")], never)
    assert (wants(folder), folder.read_desired().watcher) == (([3, 8], 8, None), "3.4")
    rollout.withdraw("watcher")
    assert (wants(folder), folder.read_desired().watcher) == (([8], 8, None), None)
    assert not rollout.watcher_pauses


def test_a_watcher_that_cannot_be_loaded_leaves_the_old_one(
    folder: StateFolder, rollout: Rollout
) -> None:
    rollout.propose(accepted(2, "watcher"))
    rollout.step([worker(1, "7.1")], never)
    rollout.step([worker(1, "7.1", "2.2")], never)
    rollout.propose(accepted(3, "watcher"))
    rollout.step([worker(1, "7.1", "2.2")], never)
    bad = worker(1, "7.1", "2.2", refused={"3.3": "it answers otherwise"})
    assert rollout.step([bad], never) == [NotLoaded(accepted(3, "watcher"), "it answers otherwise")]
    assert (wants(folder), folder.read_desired().watcher) == (([2, 7], 7, None), "2.2")


def test_what_answers_already_is_not_loaded_again(folder: StateFolder, rollout: Rollout) -> None:
    rollout.propose(accepted(7))
    assert rollout.step([worker(1, "7.1")], never) == []
    assert not rollout.is_busy
    assert wants(folder) == ([7], 7, None)


def test_a_release_that_kills_its_workers_is_given_up(
    folder: StateFolder, rollout: Rollout
) -> None:
    rollout.propose(accepted(8))
    for pid in (1, 2):  # the only worker, and its successor
        rollout.step([], never)
        rollout.step([worker(pid, "7.1")], never)
        rollout.died(worker(pid, "7.1"))
    (ended,) = rollout.step([], never)
    assert ended == NotLoaded(accepted(8), "a worker died while loading it, and another after it")
    assert wants(folder) == ([7], 7, None)


def test_workers_that_die_with_the_release_or_before_they_serve_say_nothing_of_it(
    rollout: Rollout,
) -> None:
    rollout.propose(accepted(8))
    rollout.step([worker(1, "7.1")], never)
    rollout.died(worker(2, "7.1", "8.2"))
    rollout.died(Report(3))
    rollout.died(worker(4, "7.1"))
    assert rollout.step([worker(1, "7.1")], never) == []
    assert rollout.is_busy


def test_a_release_that_was_given_up_is_tried_anew_under_another_key(
    folder: StateFolder, rollout: Rollout
) -> None:
    for key in ("8.2", "8.3"):
        rollout.propose(accepted(8))
        rollout.step([worker(1, "7.1")], never)
        assert set(folder.read_desired().wanted) == {"7.1", key}
        assert rollout.step([worker(1, "7.1", refused={key: "no"})], never) == [
            NotLoaded(accepted(8), "no")
        ]


def test_the_same_version_with_another_statement_is_another_release(
    folder: StateFolder, rollout: Rollout
) -> None:
    anew = replace(accepted(7), statement_sha256="other", folder=Path("/r/7-other"))
    rollout.propose(anew)
    rollout.step([worker(1, "7.1")], never)
    assert rollout.step([worker(1, "7.1", "7.2")], never) == [Done(anew, 0.5)]
    desired = folder.read_desired()
    assert (desired.champion, set(desired.wanted)) == ("7.2", {"7.2"})


def test_a_worker_that_starts_is_waited_for_but_not_for_ever(rollout: Rollout) -> None:
    rollout.propose(accepted(8))
    rollout.step([worker(1, "7.1"), Report(2)], never)
    assert rollout.step([worker(1, "7.1", "8.2"), Report(2)], never) == []
    TIME[0] += START_S + 1
    assert rollout.step([worker(1, "7.1", "8.2"), Report(2)], never) == [Done(accepted(8), 0.5)]


@contextmanager
def full_disk(folder: StateFolder) -> Iterator[None]:
    """What is wanted cannot be written: a folder lies in the place of its file."""
    kept = folder.desired.rename(folder.path / "kept")
    (folder.desired / "x").mkdir(parents=True)
    yield
    shutil.rmtree(folder.desired)
    kept.rename(folder.desired)


def test_what_could_not_be_written_is_written_by_the_next_step(
    folder: StateFolder, rollout: Rollout
) -> None:
    rollout.propose(accepted(8))
    with full_disk(folder):
        for _ in range(2):
            with pytest.raises(OSError):
                rollout.step([worker(1, "7.1")], never)
            TIME[0] += LOAD_S  # this is no time that a worker had
    assert rollout.step([worker(1, "7.1")], never) == []
    assert wants(folder) == ([7, 8], 7, None)
    with full_disk(folder), pytest.raises(OSError):
        rollout.step([worker(1, "7.1", "8.2")], never)
    assert rollout.step([worker(1, "7.1", "8.2")], never) == [Done(accepted(8), 0.5)]
    assert wants(folder) == ([8], 8, None)


def test_a_challenger_that_is_withdrawn_on_a_full_disk_is_dropped_later(
    folder: StateFolder, rollout: Rollout
) -> None:
    rollout.propose(accepted(8, "challenger"))
    rollout.step([worker(1, "7.1")], never)
    rollout.step([worker(1, "7.1", "8.2")], never)
    with full_disk(folder):
        rollout.withdraw("challenger")
    assert rollout.is_busy
    rollout.step([worker(1, "7.1", "8.2")], never)
    assert wants(folder) == ([7], 7, None)
