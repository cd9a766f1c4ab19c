"""Maps of what a classifier looks at: what is in the files, and what never is."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.figures.attribution import draw_attributions
from experiments.figures.class_maps import (
    ENOUGH_S,
    FEWEST,
    MOST_ROWS,
    MOST_S,
    explain_classes,
)
from mlops.attribution import (
    baselines_of,
    integrated_gradients,
    occlusion,
    parts_of,
    spread,
    summed,
)
from tests.experiments.figures.network_subjects import NAMES, subject_of


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def ticking(seconds: float) -> Callable[[], float]:
    """A clock that is so much later each time it is asked."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += seconds
        return now

    return clock


def is_picture(path: Path) -> bool:
    with Image.open(path) as picture:
        colours = picture.convert("RGB").getcolors(maxcolors=1 << 24)
        return min(picture.size) > 150 and colours is not None and len(colours) > 20


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [("image", "cnn"), ("colour", "cnn"), ("table", "dnn"), ("sequence", "rnn")],
)
def test_a_map_is_the_mean_over_rows_of_the_class(
    kind: str, architecture: str, tmp_path: Path
) -> None:
    subject = subject_of(kind, architecture)
    draw_attributions(subject, tmp_path)
    assert is_picture(tmp_path / "attribution.png")
    with np.load(tmp_path / "attribution.npz") as stored:
        found = dict(stored)
    assert found["class_names"].tolist() == list(NAMES)
    assert found["n_rows"].tolist() == [6, 6, 6]
    rows = subject.rows[1::3]  # all bees
    start, parts = baselines_of(subject.data, rows), parts_of(subject.data)
    slopes, _ = integrated_gradients(subject.network, rows, start, [1] * 6, n_steps=64)
    drops = occlusion(subject.network, rows, start, parts, [1] * 6)
    if kind == "table":
        slopes = summed(slopes, parts)
    else:
        drops = spread(drops, parts)
        drops = drops[..., 0] if kind == "sequence" else drops
    np.testing.assert_allclose(found["absolute"][1], np.abs(slopes).mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found["signed"][1], slopes.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found["drop"][1], drops.mean(axis=0), atol=1e-6)


def test_a_table_is_written_by_column_and_a_sequence_by_step(tmp_path: Path) -> None:
    cases = {"table": ["width", "colour", "height"], "ragged": [str(i) for i in range(6)]}
    for kind, places in cases.items():
        folder = tmp_path / kind
        folder.mkdir()
        draw_attributions(subject_of(kind, "dnn" if kind == "table" else "rnn"), folder)
        assert files_in(folder) == ["attribution.csv", "attribution.npz", "attribution.png"]
        with (folder / "attribution.csv").open() as file:
            lines = list(csv.DictReader(file))
        place = "column" if kind == "table" else "step"
        assert [line[place] for line in lines] == places * 3
        assert {line["class"] for line in lines} == set(NAMES)
        with np.load(folder / "attribution.npz") as stored:
            signed = stored["signed"] if kind == "table" else stored["signed"].sum(axis=2)
        written = np.array([float(line["signed"]) for line in lines]).reshape(3, -1)
        np.testing.assert_allclose(written, signed, rtol=1e-4, atol=1e-7)


def test_single_rows_are_drawn_only_where_rows_may_be_shown(tmp_path: Path) -> None:
    for may_show_rows in (False, True):
        folder = tmp_path / str(may_show_rows)
        folder.mkdir()
        draw_attributions(subject_of("image", "dnn", may_show_rows=may_show_rows), folder)
        expected = ["attribution.npz", "attribution.png"]
        assert files_in(folder) == expected + ["attribution_rows.png"] * may_show_rows
    assert is_picture(tmp_path / "True" / "attribution_rows.png")


def test_a_class_of_few_rows_is_left_out_unless_rows_may_be_shown(tmp_path: Path) -> None:
    labels = np.array([0] * FEWEST + [1] * (FEWEST - 1) + [0] * 3)
    n = len(labels)
    subject = subject_of("unnamed", "dnn", n, labels=labels)
    assert [(one.index, len(one.rows)) for one in explain_classes(subject, ticking(0))] == [(0, 8)]
    shown = subject_of("unnamed", "dnn", n, labels=labels, may_show_rows=True)
    found = explain_classes(shown, ticking(0))
    assert [(one.index, len(one.rows)) for one in found] == [(0, 8), (1, 4)]
    few = subject_of("unnamed", "dnn", 4, labels=np.array([0, 0, 1, 1]))
    draw_attributions(few, tmp_path)
    assert files_in(tmp_path) == []


def test_time_that_runs_out_costs_all_classes_alike() -> None:
    subject = subject_of("unnamed", "dnn", 60)

    def rows_with(seconds: float) -> list[int]:
        return [len(one.rows) for one in explain_classes(subject, ticking(seconds))]

    assert rows_with(0.0) == [20, 20, 20]
    assert rows_with(ENOUGH_S / 30) == [11, 10, 10]
    # What is slower goes on until no class has too few rows, but not for ever.
    assert rows_with(ENOUGH_S / 3) == [FEWEST] * 3
    assert rows_with(MOST_S / 3) == []


def test_no_class_has_too_many_rows() -> None:
    subject = subject_of("unnamed", "dnn", 3 * MOST_ROWS + 9)
    assert [len(one.rows) for one in explain_classes(subject, ticking(0))] == [MOST_ROWS] * 3


def test_a_row_without_a_finite_answer_is_left_out_and_odd_names_are_drawn(
    tmp_path: Path,
) -> None:
    subject = subject_of("unnamed", "dnn")
    subject.rows[4] = np.nan
    odd = replace(subject, class_names=("$\\frac$", "_", "a$b$c{"))
    assert [len(one.rows) for one in explain_classes(odd, ticking(0))] == [6, 5, 6]
    draw_attributions(odd, tmp_path)
    assert is_picture(tmp_path / "attribution.png")


def test_nothing_is_drawn_of_a_vae_or_without_labels(tmp_path: Path) -> None:
    draw_attributions(subject_of("image", "vae"), tmp_path)
    draw_attributions(subject_of("image", "dnn", labels=None), tmp_path)
    assert files_in(tmp_path) == []
