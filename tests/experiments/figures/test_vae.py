"""Figures of VAEs: what is in the files, what never is, and the decoder of a stored network."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from experiments.figures import Subject
from experiments.figures.latent import (
    draw_latent_map,
    draw_latent_use,
    draw_samples,
    latent_use,
    open_decoder,
    project,
)
from experiments.figures.panels import as_pictures, mosaic
from experiments.figures.vae import as_means, draw_reconstructions, draw_scores
from mlops.packaging import save_network
from mlops.scoring import gaussian_kl, reconstruction_error
from tests.experiments.figures.network_subjects import NAMES, SPECS, standardised, subject_of
from tests.packaged_models import features_of, network_of, spec_of

FIGURES = (draw_reconstructions, draw_scores, draw_latent_map, draw_latent_use, draw_samples)
ALWAYS = [
    *("anomaly_score.csv", "anomaly_score.png", "latent_map.png", "latent_use.csv"),
    *("latent_use.png", "latent_walk.png", "reconstruction_error.png", "samples.png"),
]
KINDS = ("image", "colour", "table", "ragged")


def draw_all(subject: Subject, folder: Path) -> list[str]:
    folder.mkdir(exist_ok=True)
    for draw in FIGURES:
        draw(subject, folder)
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 150, path
            assert len(picture.convert("RGB").getcolors(maxcolors=1 << 24)) > 10, path
    return sorted(path.name for path in folder.iterdir())


def lines_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def numbers(lines: list[dict[str, str]], name: str) -> list[float]:
    return [float(line[name]) for line in lines]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_has_its_figures_and_rows_only_where_they_may_be_shown(
    kind: str, tmp_path: Path
) -> None:
    is_image = SPECS[kind].kind == "image"
    always = sorted([*ALWAYS, *([] if is_image else ["reconstruction_error.csv"])])
    subject = subject_of(kind, "vae", 30)
    assert draw_all(subject, tmp_path / "sums") == always
    if kind in ("image", "table"):
        shown = ["latent_map.csv", *(["reconstructions.png"] if is_image else [])]
        found = draw_all(replace(subject, may_show_rows=True), tmp_path / "rows")
        assert found == sorted([*always, *shown])


def test_nothing_is_drawn_of_a_classifier(tmp_path: Path) -> None:
    assert draw_all(subject_of("image", "dnn"), tmp_path) == []


def test_the_extreme_scores_are_written_only_where_rows_may_be_shown(tmp_path: Path) -> None:
    subject = subject_of("table", "vae", 40)
    x, output, mean, log_var = subject.outputs
    error = reconstruction_error(x, output, "gaussian")
    score = error + gaussian_kl(mean, log_var)
    draw_scores(subject, tmp_path)
    lines = lines_of(tmp_path / "anomaly_score.csv")
    assert numbers(lines, "quantile") == [0.05, 0.25, 0.5, 0.75, 0.95, 0.99]
    expected = np.quantile(score, [0.05, 0.25, 0.5, 0.75, 0.95, 0.99])
    np.testing.assert_allclose(numbers(lines, "anomaly_score"), expected, rtol=1e-4)
    np.testing.assert_allclose(
        numbers(lines, "reconstruction_error")[2], np.median(error), rtol=1e-4
    )
    draw_scores(replace(subject, may_show_rows=True), tmp_path)
    lines = lines_of(tmp_path / "anomaly_score.csv")
    assert numbers(lines, "anomaly_score")[-1] == pytest.approx(score.max(), rel=1e-4)


def test_rows_without_a_finite_score_leave_the_others_theirs(tmp_path: Path) -> None:
    subject = subject_of("table", "vae", 20)
    outputs = [output.copy() for output in subject.outputs]
    outputs[2][3] = np.inf
    broken = replace(subject, outputs=outputs)
    draw_scores(broken, tmp_path)
    draw_latent_map(broken, tmp_path)
    draw_latent_use(broken, tmp_path)
    without = replace(subject, outputs=[np.delete(output, 3, axis=0) for output in outputs])
    (tmp_path / "without").mkdir()
    for draw, name in ((draw_scores, "anomaly_score.csv"), (draw_latent_use, "latent_use.csv")):
        draw(without, tmp_path / "without")
        assert lines_of(tmp_path / name) == lines_of(tmp_path / "without" / name)


def test_reconstruction_errors_are_written_by_feature(tmp_path: Path) -> None:
    subject = subject_of("table", "vae", 25)
    draw_reconstructions(subject, tmp_path)
    lines = lines_of(tmp_path / "reconstruction_error.csv")
    names = ["width", "colour=blue", "colour=green", "colour is missing", "height"]
    assert [line["feature"] for line in lines] == names
    x = standardised(subject.data, subject.rows)
    squares = np.square(x - subject.outputs[1]).mean(axis=0)
    np.testing.assert_allclose(numbers(lines, "rmse"), np.sqrt(squares), rtol=1e-4)
    np.testing.assert_allclose(numbers(lines, "r2"), 1 - squares / x.var(axis=0), rtol=1e-3)
    by_row = reconstruction_error(x, subject.outputs[1], "gaussian")
    assert sum(numbers(lines, "mean_nats")) == pytest.approx(by_row.mean(), rel=1e-4)


def test_the_kl_of_each_dimension_adds_up_and_an_unused_one_is_said_to_be(
    tmp_path: Path,
) -> None:
    random = np.random.default_rng(0)
    mean = random.normal(0, 1, (50, 4)).astype(np.float32)
    log_var = random.normal(-1, 0.5, (50, 4)).astype(np.float32)
    mean[:, 2], log_var[:, 2] = 0.0, 0.0  # the prior, whatever the row
    kl, variance = latent_use(mean, log_var)
    assert kl.sum() == pytest.approx(gaussian_kl(mean, log_var).mean())
    assert (kl[2], variance[2]) == (0.0, 0.0)
    subject = subject_of("table", "vae", 50, latent_dim=4)
    draw_latent_use(replace(subject, outputs=[*subject.outputs[:2], mean, log_var]), tmp_path)
    lines = lines_of(tmp_path / "latent_use.csv")
    assert [line["is_used"] for line in lines] == ["true", "true", "false", "true"]
    np.testing.assert_allclose(numbers(lines, "mean_kl_nats"), kl, rtol=1e-4)


def test_two_dimensions_are_shown_as_they_are_and_more_by_their_components() -> None:
    random = np.random.default_rng(3)
    flat = random.normal(size=(20, 2))
    points, names = project(flat)
    assert names == ("z0", "z1")
    np.testing.assert_array_equal(points, flat)
    points, names = project(flat[:, :1])
    assert names == ("z0", "") and (points[:, 1] == 0).all()
    wide = random.normal(size=(400, 5)) * [0.1, 3.0, 0.1, 2.0, 0.1]
    points, names = project(wide)
    for i, (name, column) in enumerate(zip(names, (1, 3), strict=True)):
        share = points[:, i].var() / wide.var(axis=0).sum()
        assert name == f"component {i + 1}: {share:.0%} of the variance"
        assert abs(np.corrcoef(points[:, i], wide[:, column])[0, 1]) > 0.95
    assert project(np.ones((1, 3)))[0].tolist() == [[0.0, 0.0]]
    assert project(np.ones((4, 3)))[1][0] == "component 1: 0% of the variance"


def test_a_stored_latent_map_has_the_posterior_means_and_classes(tmp_path: Path) -> None:
    subject = subject_of("table", "vae", 9, may_show_rows=True, latent_dim=2)
    draw_latent_map(subject, tmp_path)
    lines = lines_of(tmp_path / "latent_map.csv")
    assert [line["class"] for line in lines] == list(NAMES) * 3
    np.testing.assert_allclose(numbers(lines, "z1"), subject.outputs[2][:, 1], rtol=1e-4)
    draw_latent_map(replace(subject, labels=None), tmp_path)
    assert {line["class"] for line in lines_of(tmp_path / "latent_map.csv")} == {""}


@pytest.mark.parametrize("kind", ["image", "colour", "table", "sequence"])
def test_the_decoder_of_a_stored_network_is_the_one_that_rebuilds(
    kind: str, tmp_path: Path
) -> None:
    subject = subject_of(kind, "vae", 6)
    save_network(subject.network, tmp_path / "network.keras")
    stored = keras.saving.load_model(tmp_path / "network.keras", compile=False)
    decode = open_decoder(replace(subject, network=stored))
    assert decode is not None
    expected = as_means(subject.outputs[1], str(subject.likelihood))
    np.testing.assert_allclose(decode(subject.outputs[2]), expected, atol=1e-5)


def other_vae(network: Any) -> Subject:
    """A subject whose network is not made by our own VAE."""
    spec, rows = spec_of("vae"), features_of("vae")
    outputs = [np.asarray(output) for output in network(rows)]
    return Subject(network, "vae", spec.input, rows, None, (), outputs, False, "bernoulli")


def test_a_decoder_is_found_among_loose_layers_and_one_that_needs_more_than_the_mean_is_none(
    tmp_path: Path,
) -> None:
    network = network_of("vae")
    subject = other_vae(network)
    decode = open_decoder(subject)
    assert decode is not None
    expected = as_means(subject.outputs[1], "bernoulli")
    np.testing.assert_allclose(decode(subject.outputs[2]), expected, atol=1e-6)
    mean, log_var = network.outputs[2:]
    both = keras.layers.Dense(16)(keras.layers.Concatenate()([mean, log_var]))
    odd = keras.Model(
        network.input,
        [network.outputs[0], keras.layers.Reshape((4, 4, 1))(both), mean, log_var],
    )
    assert open_decoder(other_vae(odd)) is None
    assert draw_all(other_vae(odd), tmp_path) == sorted(
        name for name in ALWAYS if name not in ("samples.png", "latent_walk.png")
    )


def test_samples_are_of_the_seed_and_not_of_the_rows(tmp_path: Path) -> None:
    """The bytes are the same for other rows: nothing of a row is in a sample."""
    subject = subject_of("image", "vae", 30)
    other = replace(subject, rows=subject.rows[::-1] * 0.5)
    for name, one in (("one", subject), ("other", other)):
        (tmp_path / name).mkdir()
        draw_samples(one, tmp_path / name)
    for name in ("samples.png", "latent_walk.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_pictures_lie_side_by_side_in_grey_or_colour() -> None:
    grey = as_pictures(np.array([[[[-1.0]]], [[[0.25]]], [[[2.0]]]]))
    assert grey.shape == (3, 1, 1, 3)
    assert grey[:, 0, 0, 0].tolist() == [0.0, 0.25, 1.0]
    whole = mosaic(grey, 2)
    assert whole.shape == (3, 3, 3)
    assert whole[..., 0].tolist() == [[0.0, 1.0, 0.25], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    two = as_pictures(np.array([[[[0.0, 0.5]]]]))
    assert two.ravel().tolist() == [0.25] * 3
