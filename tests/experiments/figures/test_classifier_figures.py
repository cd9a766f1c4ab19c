from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    precision_recall_fscore_support,
    roc_auc_score,
)

from experiments.figures.drawing import draw
from experiments.figures.mistakes import find_mistakes
from experiments.figures.ranking import rank
from tests.experiments.figures.made_subjects import (
    IMAGE,
    SEQUENCE,
    TABLE,
    check_pictures,
    make_answers,
    make_subject,
    names_in,
)

EVERY = {
    "confusion_matrix.png",
    "confusion_matrix.csv",
    "per_class.png",
    "per_class.csv",
    "calibration.png",
    "calibration.json",
    "roc.png",
    "precision_recall.png",
    "ranking.json",
}
CLASSIFIER = (
    "experiments.figures.classifier:draw_confusion",
    "experiments.figures.classifier:draw_per_class",
    "experiments.figures.classifier:draw_calibration",
    "experiments.figures.ranking:draw_ranking",
    "experiments.figures.mistakes:draw_mistakes",
)


def draw_all(subject: Any, folder: Path) -> None:
    assert draw(subject, folder, CLASSIFIER) == []
    check_pictures(folder)


def read_csv(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_tables_and_areas_are_what_scikit_learn_makes_of_the_answers(tmp_path: Path) -> None:
    probabilities, labels = make_answers(300, 5)
    probabilities = np.round(probabilities, 2)  # so that some are equal
    draw_all(make_subject(probabilities, labels), tmp_path)
    assert names_in(tmp_path) == EVERY
    named = probabilities.argmax(axis=1)

    head, *rows = read_csv(tmp_path / "confusion_matrix.csv")
    assert head == ["true class", "0", "1", "2", "3", "4"]
    counts = np.array([row[1:] for row in rows], int)
    assert (counts == confusion_matrix(labels, named)).all()

    _, *rows = read_csv(tmp_path / "per_class.csv")
    expected = precision_recall_fscore_support(labels, named)
    assert np.allclose(np.array([row[1:] for row in rows], float), np.stack(expected, axis=1))

    found = json.loads((tmp_path / "ranking.json").read_text())
    for index in range(5):
        areas = found["classes"][str(index)]
        ours, scores = labels == index, probabilities[:, index].astype(np.float32)
        assert areas["roc_auc"] == pytest.approx(roc_auc_score(ours, scores))
        assert areas["average_precision"] == pytest.approx(average_precision_score(ours, scores))
    each = [one["roc_auc"] for one in found["classes"].values()]
    assert found["macro_roc_auc"] == pytest.approx(np.mean(each))


def test_the_calibration_names_each_bin_with_rows(tmp_path: Path) -> None:
    answers = [[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]
    draw_all(make_subject(answers, [0, 1, 1, 0]), tmp_path)
    found = json.loads((tmp_path / "calibration.json").read_text())
    bins = [(one["n_rows"], one["confidence"], one["accuracy"]) for one in found["bins"]]
    assert bins == [
        (1, 0.5, 1.0),
        (1, pytest.approx(0.8), 1.0),
        (2, pytest.approx(0.9), 0.5),
    ]
    gaps = 0.5 + 0.2 + 2 * 0.4
    assert found["expected_calibration_error"] == pytest.approx(gaps / 4)


def test_a_ranking_knows_equal_scores_as_one_threshold() -> None:
    one = rank([0.5, 0.5, 0.5, 0.5], [True, False, True, False])
    assert one is not None
    assert one.recall.tolist() == [0.0, 1.0]
    assert (one.roc_auc, one.average_precision) == (0.5, 0.5)
    assert rank([0.1, 0.2], [True, True]) is None and rank([0.1, 0.2], [False, False]) is None


def test_the_precision_at_a_recall_is_that_of_the_highest_threshold() -> None:
    one = rank([0.9, 0.8, 0.7, 0.6], [True, False, True, False])
    assert one is not None
    assert one.precision_on(np.array([0.0, 0.5, 0.6, 1.0])).tolist() == [1.0, 1.0, 2 / 3, 2 / 3]
    assert [part.tolist() for part in one.reached] == [[0.0, 0.5, 1.0], [1.0, 1.0, 2 / 3]]


def test_mistakes_are_the_surest_first_and_only_those() -> None:
    answers = np.array([[0.6, 0.4], [0.1, 0.9], [0.2, 0.8], [np.nan, 1.0]])
    assert find_mistakes(answers, np.array([1, 0, 1, 0])).tolist() == [1, 0]


def test_rows_are_shown_only_where_they_may_be(tmp_path: Path) -> None:
    probabilities, labels = make_answers(60, 3)
    for data in (IMAGE, TABLE, SEQUENCE):
        for may_show_rows in (False, True):
            folder = tmp_path / f"{data.kind}-{may_show_rows}"
            folder.mkdir()
            subject = make_subject(probabilities, labels, data, may_show_rows=may_show_rows)
            draw_all(subject, folder)
            name = "mistakes.png" if data is IMAGE else "mistakes.csv"
            assert names_in(folder) == (EVERY | {name} if may_show_rows else EVERY)


def test_the_mistakes_of_a_table_have_its_columns(tmp_path: Path) -> None:
    answers = [[0.9, 0.1], [0.7, 0.3], [0.4, 0.6], [0.8, 0.2]]
    names = ("a", "b")
    draw_all(make_subject(answers, [1, 0, 1, 1], TABLE, names, may_show_rows=True), tmp_path)
    head, *rows = read_csv(tmp_path / "mistakes.csv")
    assert head[3:] == ["width", "colour=blue", "colour=red"]
    assert rows == [["b", "a", "0.9", *["0.0"] * 3], ["b", "a", "0.8", *["3.0"] * 3]]


def test_a_classifier_without_a_mistake_has_all_else(tmp_path: Path) -> None:
    draw_all(make_subject(np.eye(3)[[0, 1, 2, 0]], [0, 1, 2, 0], may_show_rows=True), tmp_path)
    assert names_in(tmp_path) == EVERY
    assert json.loads((tmp_path / "ranking.json").read_text())["macro_roc_auc"] == 1.0


def test_answers_that_are_not_finite_are_counted_and_left_out(tmp_path: Path) -> None:
    answers = [[0.9, 0.1], [np.nan, np.nan], [0.2, 0.8], [0.1, 0.9]]
    draw_all(make_subject(answers, [0, 0, 1, 1], may_show_rows=True), tmp_path)
    _, *rows = read_csv(tmp_path / "confusion_matrix.csv")
    assert rows == [["0", "1", "0"], ["1", "0", "2"]]
    assert json.loads((tmp_path / "calibration.json").read_text())["n_rows"] == 3


def test_a_network_of_nan_alone_breaks_nothing(tmp_path: Path) -> None:
    assert draw(make_subject(np.full((4, 2), np.nan), [0, 0, 1, 1]), tmp_path, CLASSIFIER) == []
    assert names_in(tmp_path) == EVERY - {
        *("calibration.png", "calibration.json", "roc.png", "precision_recall.png", "ranking.json"),
    }


@pytest.mark.parametrize("n_classes", [2, 35, 110])
def test_few_and_many_classes_fit_into_the_pictures(tmp_path: Path, n_classes: int) -> None:
    probabilities, labels = make_answers(4 * n_classes, n_classes)
    draw_all(make_subject(probabilities, labels, may_show_rows=True), tmp_path)
    assert len(read_csv(tmp_path / "per_class.csv")) == 1 + n_classes


def test_names_that_mean_something_to_matplotlib_or_have_no_font_are_only_names(
    tmp_path: Path,
) -> None:
    names = ("$x^{$", "_hidden\n" + "long " * 20, "日本語")
    probabilities, labels = make_answers(40, 3)
    draw_all(make_subject(probabilities, labels, names=names, may_show_rows=True), tmp_path)
    assert read_csv(tmp_path / "per_class.csv")[3][0] == "日本語"


def test_colour_pictures_keep_their_colours(tmp_path: Path) -> None:
    data = make_subject([[1.0, 0.0]], [1]).data
    shape = (4, 4, 3)
    red = np.zeros((2, *shape), np.uint8)
    red[..., 0] = 255
    spec = type(data)("image", shape, "uint8", None, 0.0, 255.0, (0.0,) * 3, (1.0,) * 3)
    subject = make_subject([[0.9, 0.1], [0.2, 0.8]], [1, 1], spec, rows=red, may_show_rows=True)
    draw_all(subject, tmp_path)
    with Image.open(tmp_path / "mistakes.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert (pixels == [255, 0, 0]).all(axis=1).mean() > 0.05


def test_what_is_no_classifier_has_none_of_these(tmp_path: Path) -> None:
    subject = make_subject([[1.0, 0.0]], [0], task="vae", may_show_rows=True)
    draw_all(subject, tmp_path)
    assert names_in(tmp_path) == set()
