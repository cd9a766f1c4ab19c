"""The rows before the recorder, a seed each; and the checker, which must see what is wrong.

`make faults` plays them all, many times, and before a real MLflow too.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.faults.__main__ import play
from tests.faults.check import Found, Outcome, compare
from tests.faults.rows import ROWS
from tests.faults.tape import Item, Said

METRIC = ("metric", "k", "loss", 0, 0.5)
FOUND = Found(
    run_id="1",
    key="k",
    status="FINISHED",
    orphaned=False,
    parent=None,
    has_model=True,
    items=(METRIC, ("version", "k", "m"), ("file", "k", "model/MLmodel", "f00")),
)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_loses_doubles_and_orphans_nothing(row: str) -> None:
    outcome = play(row, "recorder", seed=100)
    assert outcome.said == ()
    assert outcome.good
    assert outcome.acknowledged >= 10


def say(*more: Item) -> Said:
    said = Said()
    for item in (("run", "k"), *FOUND.items, ("end", "k", "FINISHED"), *more):
        said.take("about", item)
        said.take("done", item)
    return said


def count(outcome: Outcome) -> tuple[int, int, int, int]:
    return outcome.lost, outcome.duplicated, outcome.orphaned, outcome.strange


def test_the_checker_finds_nothing_where_nothing_is_wrong() -> None:
    outcome = compare(say(), [FOUND])
    assert count(outcome) == (0, 0, 0, 0)
    assert outcome.acknowledged == 5
    assert outcome.good


def test_the_checker_sees_what_is_lost() -> None:
    lost = ("metric", "k", "loss", 1, 0.25)
    assert compare(say(lost), [FOUND]).said == (f"lost: {lost}",)
    # All five that were acknowledged but the end, which a run that is not there cannot have.
    assert compare(say(), []).lost == 4


def test_the_checker_sees_what_is_there_twice() -> None:
    again = replace(FOUND, items=(*FOUND.items, METRIC))
    assert count(compare(say(), [again])) == (0, 1, 0, 0)
    other_value = replace(FOUND, items=(*FOUND.items, (*METRIC[:4], 0.75)))
    assert count(compare(say(), [other_value])) == (0, 1, 0, 1)
    twin = replace(FOUND, run_id="2", items=())
    assert count(compare(say(), [FOUND, twin])) == (0, 1, 0, 0)


def test_the_checker_sees_what_nobody_ends_and_versions_without_a_model() -> None:
    assert count(compare(say(), [replace(FOUND, status="RUNNING")])) == (0, 0, 1, 0)
    assert count(compare(say(), [replace(FOUND, has_model=False)])) == (0, 0, 1, 0)


def test_the_checker_sees_what_was_never_logged_and_a_wrong_end() -> None:
    more = replace(FOUND, items=(*FOUND.items, ("tag", "k", "name", "value")))
    assert count(compare(say(), [more])) == (0, 0, 0, 1)
    assert count(compare(say(), [replace(FOUND, status="FAILED")])) == (0, 0, 0, 1)
    assert count(compare(say(), [replace(FOUND, orphaned=True)])) == (0, 0, 0, 1)
