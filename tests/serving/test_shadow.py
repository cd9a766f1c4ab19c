"""How two releases' answers are compared, counted and put into the evidence of a gate."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.serving.shadow import (
    RESERVOIR,
    Comparison,
    Offer,
    Shadow,
    as_scores,
    columns_of,
    compare_answers,
    evidence,
    merge,
)

MINE = np.array([[0.9, 0.1], [0.2, 0.8]])


def test_classifiers_agree_where_each_row_gets_the_same_class() -> None:
    agreed, worst = compare_answers(MINE, np.array([[0.6, 0.4], [0.4, 0.6]]))
    assert agreed
    assert worst == pytest.approx(0.3)
    assert not compare_answers(MINE, np.array([[0.4, 0.6], [0.4, 0.6]]))[0]


def test_scores_agree_within_a_thousandth() -> None:
    scores = np.array([100.0, -3.0])
    assert compare_answers(scores, scores * 1.0009)[0]
    assert not compare_answers(scores, scores * 1.0011)[0]


def test_answers_of_other_shapes_do_not_agree() -> None:
    assert compare_answers(MINE, MINE[:, :1]) == (False, 1.0)


def test_classes_are_compared_by_name() -> None:
    columns = columns_of(["a", "b"], ["b", "a"])
    assert compare_answers(MINE, MINE[:, ::-1], columns) == (True, 0.0)
    assert not compare_answers(MINE, MINE, columns)[0]
    others = columns_of(["a", "b"], ["a", "c"])
    assert compare_answers(MINE, MINE, others) == (False, 1.0)
    assert columns_of(None, ["a"]) is None
    scores = np.array([1.0])
    assert compare_answers(scores, scores, columns) == (True, 0.0)


def test_scores_are_found_in_each_form_of_an_answer() -> None:
    assert as_scores(MINE.astype(np.float32)).dtype == np.float64
    labelled = [{"label": "a", "probabilities": [0.9, 0.1]}]
    assert as_scores(labelled).tolist() == [[0.9, 0.1]]
    assert as_scores([{"anomaly_score": 2.5, "kl": 1.0}]).tolist() == [2.5]
    with pytest.raises(ValueError, match="no scores"):
        as_scores([])


@given(st.lists(st.sampled_from([(True, 0.1), (False, 0.4), None]), max_size=60), st.integers(1, 4))
def test_workers_together_count_what_each_counted(results: list[Any], n: int) -> None:
    workers = [Comparison(7, 8) for _ in range(n)]
    pick = random.Random(0)
    for place, result in enumerate(results):
        workers[place % n].count(result, 1.0 + place, 1000.0 + place, pick)
    values = [{"pairs": [one.to_json(), Comparison(6, 7, requests=9).to_json()]} for one in workers]
    merged = merge(values, 7, 8)
    counts = Counter(results)
    assert merged.requests == len(results)
    assert merged.errors == counts[None]
    assert merged.agreed == counts[(True, 0.1)]
    assert len(merged.latencies_ms) == len(results) - counts[None]
    assert merged.since == (1000.0 if results else 0.0)
    said = evidence("m", merged, "aa", "bb")
    assert said["challenger"] == {"version": 8, "statement_sha256": "bb"}
    assert said["requests"] == len(results)


def test_the_sample_of_latencies_is_bounded_and_fair() -> None:
    found = Comparison(7, 8)
    pick = random.Random(0)
    for n in range(20 * RESERVOIR):
        found.count((True, 0.0), float(n), 1.0, pick)
    assert len(found.latencies_ms) == RESERVOIR
    assert np.mean(found.latencies_ms) == pytest.approx(10 * RESERVOIR, rel=0.1)


def test_an_evidence_without_requests_has_no_percentiles() -> None:
    said = evidence("m", Comparison(7, 8), "aa", "bb")
    assert (said["requests"], said["p95_ms"], said["since"]) == (0, None, None)


def _offer(predict: Any) -> Offer:
    return Offer([[1.0]], None, MINE, 7, 8, predict)


def _wait(written: list[Any], n: int) -> dict[str, Any]:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if written and written[-1]["pairs"][0]["requests"] >= n:
            pair: dict[str, Any] = written[-1]["pairs"][0]
            return pair
        time.sleep(0.01)
    raise AssertionError(f"not counted: {written[-1:]}")


def test_the_challenger_scores_in_a_thread_of_its_own_and_its_errors_are_counted() -> None:
    written: list[Any] = []
    results: list[str] = []
    shadow = Shadow(written.append, lambda result, _: results.append(result), write_every_s=0.01)

    def fails(rows: Any, params: Any) -> Any:
        raise RuntimeError("no")

    for predict in (lambda rows, params: MINE, lambda rows, params: 1 - MINE, fails):
        shadow.offer(_offer(predict))
    pair = _wait(written, 3)
    assert (pair["agreed"], pair["errors"]) == (1, 1)
    assert pair["worst"] == pytest.approx(0.8)
    assert results == ["agreed", "differed", "failed"]


def test_a_full_shadow_drops_and_never_waits() -> None:
    written: list[Any] = []
    go_on = threading.Event()
    shadow = Shadow(written.append, lambda *_: None, size=2, write_every_s=0.01)

    def slow(rows: Any, params: Any) -> Any:
        go_on.wait(10)
        return MINE

    began = time.monotonic()
    for _ in range(10):
        shadow.offer(_offer(slow))
    assert time.monotonic() - began < 1
    go_on.set()
    pair = _wait(written, 2)
    assert pair["dropped"] >= 7


def test_few_rows_wait_however_few_requests_they_are() -> None:
    written: list[Any] = []
    go_on, has_begun = threading.Event(), threading.Event()
    shadow = Shadow(written.append, lambda *_: None, write_every_s=0.01, most_rows=5)

    def slow(rows: Any, params: Any) -> Any:
        has_begun.set()
        go_on.wait(10)
        return MINE

    for _ in range(4):  # of two rows each
        shadow.offer(_offer(slow))
    assert has_begun.wait(10)
    go_on.set()
    assert _wait(written, 2)["dropped"] == 2
    many = np.repeat(MINE, 5, axis=0)
    deadline = time.monotonic() + 10
    while written[-1]["pairs"][0]["requests"] < 3:  # one of more comes alone
        assert time.monotonic() < deadline
        shadow.offer(Offer([[1.0]], None, many, 7, 8, lambda rows, params: many))
        time.sleep(0.05)


def test_a_file_that_cannot_be_written_ends_nothing() -> None:
    written: list[Any] = []

    def write(value: Any) -> None:
        written.append(value)
        if len(written) < 3:
            raise OSError("no space left on device")

    shadow = Shadow(write, lambda *_: None, write_every_s=0.01)
    shadow.offer(_offer(lambda rows, params: MINE))
    deadline = time.monotonic() + 10
    while len(written) < 3:  # written again though nothing new came
        assert time.monotonic() < deadline
        time.sleep(0.01)
    shadow.offer(_offer(lambda rows, params: MINE))
    _wait(written, 2)
