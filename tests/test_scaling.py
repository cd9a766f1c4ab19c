"""benchmarks/scaling.py: its sums, and a small form of all of it."""

from __future__ import annotations

import math

import pytest

from benchmarks.scaling import Options, Row, Told, main, rate_rows, rows_of
from experiments.study import Tally


def test_rows_are_here_and_on_no_more_hosts_than_workers() -> None:
    assert rows_of(Options()) == [
        *(Row(0, 1), Row(0, 2), Row(0, 4)),
        *(Row(1, 1), Row(2, 2), Row(2, 4)),
    ]
    assert rows_of(Options(workers=(2,), hosts=0)) == [Row(0, 2)]


def test_efficiency_is_beside_one_worker_and_beside_what_cores_allow() -> None:
    found = {Row(0, 1): [3.6, 4.0, 3.5], Row(0, 2): [2.0, 2.0], Row(2, 4): [1.8]}
    rows = rate_rows(found, n_cores=2)
    assert rows[0] == ["here", 1, 3, "1000", "900", "1029", "1.00", "1.00"]
    assert rows[1] == ["here", 2, 2, "1800", "1800", "1800", "0.90", "0.90"]
    assert rows[2] == ["2 simulated host(s)", 4, 1, "2000", "2000", "2000", "0.50", "1.00"]


def test_a_trial_costs_what_passes_between_two_that_are_told() -> None:
    told = Told()
    told.marks = [(0, 10.0, 1.0), (1, 40.0, 1.5), (3, 44.0, 1.7), (5, 48.0, 1.9)]
    for n_before, seconds in ((1, (2.0, 0.1)), (2, (2.0, 0.1)), (3, (2.0, 0.1))):
        found = told.cost(n_before)
        assert all(map(math.isclose, found, seconds))
    with pytest.raises(ValueError, match="more than 5 trials"):
        told.cost(5)
    told.update("cnn", Tally(9, 5, 0, 0, None))
    assert len(told.marks) == 4  # told again, not finished again


@pytest.mark.long
def test_a_small_form_prints_both_tables(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--workers 1 --hosts 1 --trials 3 --epochs 1 --bare 6 --repeats 1"
    main(words.split())
    printed = capsys.readouterr().out
    first, second = printed.split("### ")[1:]
    for table in (first, second):
        places = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")]
        assert places[1:] == ["| here", "| 1 simulated host(s)"]
    assert "efficiency" in first and "driver CPU" in second
