from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.figures import drawing
from experiments.figures.canvas import label
from experiments.figures.drawing import FIGURES, draw
from tests.experiments.figures.made_subjects import make_answers, make_subject, names_in


def fail_half_way(subject: Any, folder: Path) -> None:
    (folder / "half.png").write_text("half")
    raise ValueError("no room\nfor more")


def write_one(subject: Any, folder: Path) -> None:
    assert not list(folder.iterdir())
    (folder / "one.csv").write_text("1")


def test_a_figure_that_fails_is_named_and_costs_no_other(tmp_path: Path) -> None:
    here = "tests.experiments.figures.test_figure_drawing"
    figures = (f"{here}:fail_half_way", f"{here}:write_one", f"{here}:missing", "nowhere:draw_it")
    problems = draw(make_subject([[1.0, 0.0]], [0]), tmp_path, figures)
    assert [one.partition(":")[0] for one in problems] == ["fail_half_way", "missing", "it"]
    assert problems[0] == "fail_half_way: ValueError: no room"
    assert names_in(tmp_path) == {"one.csv"}


def test_each_figure_that_is_listed_is_there(tmp_path: Path) -> None:
    for path in FIGURES:
        assert callable(drawing._find(path)), path


def test_of_too_many_rows_some_are_drawn_by_lot_and_always_the_same() -> None:
    assert drawing._choose(5, 8).tolist() == [0, 1, 2, 3, 4]
    chosen = drawing._choose(10**6, 8)
    assert len(chosen) == drawing.MOST_ROWS and (np.diff(chosen) > 0).all()
    assert (chosen == drawing._choose(10**6, 8)).all()
    assert len(drawing._choose(10**6, drawing.MOST_BYTES // 3)) == 3
    assert len(drawing._choose(10, 2 * drawing.MOST_BYTES)) == 1


def test_names_are_short_and_keep_their_ends() -> None:
    assert label("a\n b") == "a b" and label("") == "(empty)" and label("$") == r"\$"
    assert label("_hidden") == " _hidden"
    short = label("class name " + "x" * 40 + " 17")
    assert len(short) == 22 and short.startswith("class name") and short.endswith(" 17")


def test_the_same_subject_gives_the_same_files(tmp_path: Path) -> None:
    probabilities, labels = make_answers(30, 3)
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        draw(make_subject(probabilities, labels), tmp_path / name, FIGURES[:4])
        found.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert found[0] == found[1]
