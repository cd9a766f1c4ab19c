from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops.errors import StructureError
from mlops.inputs import Column, InputSpec
from mlops.scoring.model import rows_for
from registry.golden import (
    ATOL,
    RTOL,
    Golden,
    cell_moments,
    compare,
    golden_requests,
    read_golden,
    write_golden,
)
from tests.packaged_models import KINDS, spec_of


@pytest.mark.parametrize("kind", KINDS)
def test_golden_requests_are_rows_that_a_model_of_that_input_takes(kind: str) -> None:
    spec = spec_of(kind).input
    requests = golden_requests(spec)
    rows = rows_for(spec.to_json()).parse(json.loads(json.dumps(requests)))
    assert rows.shape == (8, *spec.shape)
    assert len(np.unique(rows.reshape(8, -1), axis=0)) == 8
    assert requests == golden_requests(spec)
    assert requests != golden_requests(spec, seed=1)


def test_golden_rows_are_like_the_rows_a_model_was_trained_on() -> None:
    spec = InputSpec("table", (3,), "float32", None, -90.0, 60.0, (0, 50, -80), (1, 4, 0))
    texts = golden_requests(spec, n=2000)
    rows = np.array([np.frombuffer(base64.b64decode(text), "<f4") for text in texts])
    assert rows.mean(axis=0) == pytest.approx([0, 50, -80], abs=0.2)
    assert rows.std(axis=0) == pytest.approx([1, 2, 0], abs=0.2)
    kept = golden_requests(replace(spec, low=0.0), n=50)
    assert min(np.frombuffer(base64.b64decode(text), "<f4").min() for text in kept) == 0.0


def test_golden_cells_have_categories_by_name_and_leave_out_what_may_be_missing() -> None:
    spec = spec_of("mixed").input
    requests = golden_requests(spec, n=200)
    weight, age, colour, island = map(list, zip(*requests, strict=True))
    assert all(isinstance(cell, float) for cell in weight)
    assert {type(cell) for cell in age} == {float, type(None)}
    assert set(colour) == {"blue", "green", "red", None}
    assert set(island) == {"3", "Dream"}
    assert 5 < colour.count(None) < 60


def test_golden_sequences_are_of_many_lengths() -> None:
    spec = spec_of("ragged").input
    lengths = {len(base64.b64decode(text)) // 8 for text in golden_requests(spec, n=100)}
    assert lengths == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(("pixels", "n"), [(64, 8), (512, 1), (300, 2)])
def test_large_rows_are_fewer_but_one(pixels: int, n: int) -> None:
    spec = replace(spec_of("vae").input, shape=(pixels, pixels, 1))
    assert len(golden_requests(spec)) == n


def test_the_moments_of_cells_are_those_of_the_features_they_become() -> None:
    columns = (
        Column("colour", ("blue", "red"), "flagged"),
        Column("age", None, "flagged", 40.0),
        Column("weight"),
    )
    mean, variance = (0, 0, 0, 40, 0, 7), (1, 1, 1, 9, 1, 4)
    spec = InputSpec("table", (6,), "float32", columns, 0, 90, mean, variance)
    means, deviations = cell_moments(spec)
    assert (means[1:].tolist(), deviations.tolist()) == ([40, 7], [0, 3, 2])


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    for answers in (np.array([[0.1, 0.9], [1 / 3, 2 / 3]]), np.array([1e-9, 12345.678901])):
        golden = Golden(["AAAA", "BBBB"], answers)
        path = write_golden(tmp_path, golden)
        found = read_golden(tmp_path)
        assert path == tmp_path / "golden.json"
        assert found.requests == golden.requests
        assert np.array_equal(found.answers, answers)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "\xff",
        '{"format": 2, "inputs": ["A"], "answers": [[1.0]]}',
        '{"format": 1, "inputs": ["A"], "answers": [[1.0], [2.0]]}',
        '{"format": 1, "inputs": [], "answers": []}',
        '{"format": 1, "inputs": 1, "answers": [1.0]}',
        '{"format": 1, "inputs": ["A"], "answers": 1.0}',
        '{"format": 1, "inputs": ["A", "B"], "answers": [[1.0], [2.0, 3.0]]}',
        '{"format": 1, "inputs": ["A"], "answers": ["x"]}',
        "[" * 100_000,
    ],
)
def test_a_golden_file_of_anything_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "golden.json").write_text(content, encoding="latin-1")
    with pytest.raises(StructureError, match=r"^golden.json holds no golden requests"):
        read_golden(tmp_path)


def test_a_golden_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(StructureError, match=r"^golden.json is missing\. "):
        read_golden(tmp_path)


numbers = st.floats(-1e6, 1e6)


@given(answers=st.lists(numbers, min_size=1, max_size=5), share=st.floats(-0.9, 0.9))
def test_answers_within_the_tolerance_are_as_good_as_the_same(
    answers: list[float], share: float
) -> None:
    wanted = np.array(answers)
    golden = Golden(["A"] * len(wanted), wanted)
    assert compare(golden, wanted + share * (ATOL + RTOL * np.abs(wanted))) is None


@given(
    answers=st.lists(numbers, min_size=1, max_size=5),
    row=st.integers(0, 4),
    times=st.one_of(st.floats(1.1, 1e3), st.just(np.nan), st.just(np.inf)),
)
def test_answers_beyond_it_are_told_apart_with_their_row(
    answers: list[float], row: int, times: float
) -> None:
    wanted = np.array(answers)
    row %= len(wanted)
    off = wanted.copy()
    off[row] += times * (ATOL + RTOL * abs(off[row]))
    said = compare(Golden(["A"] * len(wanted), wanted), off)
    assert said is not None
    assert said.startswith(f"1 of {len(wanted)} golden rows are answered otherwise, row {row} most")


def test_the_row_that_is_furthest_off_is_named() -> None:
    golden = Golden(["A", "B", "C"], np.array([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]))
    answers: Any = golden.answers + np.array([[0.0, 0.01], [0.0, 0.2], [0.0, 0.0]])
    assert compare(golden, answers) == (
        "2 of 3 golden rows are answered otherwise, row 1 most: expected 0.1, got 0.3"
    )
    assert compare(golden, answers[:, 0]) == "answers of shape (3,); expected (3, 2)"
