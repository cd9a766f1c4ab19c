"""A worker scores a sample of what was answered, and no request waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from registry.serving.watch import KEPT_SCORES, MOST_REQUESTS, REQUEST_ROWS, Watch, take_rows


def first_cells(rows: Any) -> Any:
    """A VAE whose score of a row is its first cell; refuses rows that are mixed."""
    if len({type(row) for row in rows}) > 1 or "bad" in rows:
        raise ValueError("bad rows")
    return [{"anomaly_score": float(row[0])} for row in rows]


def make(rows_s: float, every_s: float = 0.02) -> tuple[Watch, list[Any]]:
    written: list[Any] = []
    return Watch(written.append, rows_s, every_s), written


def wait(written: list[Any], holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if written and holds(said := written[-1]["watchers"].get("a", {"total": 0, "dropped": 0})):
            return dict(said)
        time.sleep(0.01)
    raise AssertionError(written[-1:])


def test_every_row_is_scored_where_there_is_time() -> None:
    watch, written = make(rows_s=100_000)
    time.sleep(0.1)  # what may be scored a second adds up
    for number in range(30):
        watch.offer([[number, 0.0], [number + 100, 0.0]], 2, "a", first_cells)
    said = wait(written, lambda one: one["total"] == 60)
    assert sorted(said["scores"]) == [*map(float, range(30)), *map(float, range(100, 130))]
    assert said["dropped"] == 0


def test_no_more_rows_are_scored_than_may_be_and_the_others_are_counted() -> None:
    watch, written = make(rows_s=50)
    asked = 0

    def score(rows: Any) -> Any:
        nonlocal asked
        asked += len(rows)
        return first_cells(rows)

    began = time.monotonic()
    for _ in range(40):
        watch.offer([[1.0]] * 20, 20, "a", score)
        time.sleep(0.01)
    said = wait(written, lambda one: one["total"] + one["dropped"] == 800)
    assert 0 < said["total"] == asked <= 50 * (time.monotonic() - began) + 1


def test_the_sample_is_of_all_rows_alike() -> None:
    watch, written = make(rows_s=20_000, every_s=0.3)
    for number in range(4 * MOST_REQUESTS):
        watch.offer([[number]], 1, "a", first_cells)
    said = wait(written, lambda one: one["total"] + one["dropped"] == 4 * MOST_REQUESTS)
    assert said["total"] == MOST_REQUESTS
    assert np.mean(said["scores"]) == pytest.approx(2 * MOST_REQUESTS, rel=0.2)


def test_a_large_request_gives_some_of_its_rows() -> None:
    watch, written = make(rows_s=100_000)
    time.sleep(0.1)
    watch.offer([[number] for number in range(5000)], 5000, "a", first_cells)
    said = wait(written, lambda one: one["total"] > 0)
    assert (said["total"], said["dropped"]) == (REQUEST_ROWS, 5000 - REQUEST_ROWS)
    assert len(set(said["scores"])) == REQUEST_ROWS


def test_rows_that_cannot_be_scored_are_dropped_alone() -> None:
    watch, written = make(rows_s=100_000)
    time.sleep(0.1)
    watch.offer(["bad"], 1, "a", first_cells)
    watch.offer(["123"], 1, "a", first_cells)
    watch.offer(object(), 7, "a", first_cells)
    watch.offer(object(), 7000, "a", first_cells)
    said = wait(written, lambda one: one["total"] + one["dropped"] == 7009)
    assert (said["total"], said["scores"]) == (1, [1.0])


def test_scores_of_two_watchers_are_kept_apart_and_but_the_last_of_many() -> None:
    watch, written = make(rows_s=1e6)
    time.sleep(0.1)
    for _ in range(3):
        for number in range(200):
            watch.offer([[number]] * 30, 30, "a", first_cells)
        time.sleep(0.2)
    watch.offer([[5.0]], 1, "b", first_cells)
    said = wait(written, lambda one: one["total"] == 18_000)
    assert len(said["scores"]) == KEPT_SCORES
    deadline = time.monotonic() + 10
    while written[-1]["watchers"].get("b", {}).get("scores") != [5.0]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_slow_watcher_and_a_full_disk_hold_up_no_request() -> None:
    go_on, tries = threading.Event(), []

    def slow(rows: Any) -> Any:
        go_on.wait(10)
        return first_cells(rows)

    def write(value: Any) -> None:
        tries.append(value)
        raise OSError("no space left on device")

    watch = Watch(write, 1000.0, 0.01)
    time.sleep(0.05)
    began = time.monotonic()
    for _ in range(2000):
        watch.offer([[1.0]], 1, "a", slow)
    assert time.monotonic() - began < 1
    go_on.set()
    deadline = time.monotonic() + 10
    while len(tries) < 2:  # tried again though nothing new came
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    "rows",
    [
        [[0, "a"], [1, "b"], [2, "c"]],
        np.array([[0, 5], [1, 6], [2, 7]]),
        pd.DataFrame({"x": [0, 1, 2], "y": ["a", "b", "c"]}),
        {"x": [0, 1, 2], "y": ["a", "b", "c"]},
        [{"x": 0}, {"x": 1}, {"x": 2}],
    ],
)
def test_rows_are_taken_out_of_each_form(rows: Any) -> None:
    taken = take_rows(rows, [2, 0])
    if isinstance(taken, dict):
        assert taken == {"x": [2, 0], "y": ["c", "a"]}
        return
    found = taken["x"] if isinstance(taken, pd.DataFrame) else taken
    cells = [one["x"] if isinstance(one, dict) else one for one in found]
    assert [cell if np.isscalar(cell) else cell[0] for cell in cells] == [2, 0]
