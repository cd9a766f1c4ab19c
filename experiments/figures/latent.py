"""The latent space of a VAE: where rows lie in it, which of its dimensions are used, what is there.

Samples and walks are what the decoder makes of points that no row was encoded to. They are drawn
always: they show nothing that the packaged network, which lies beside them, does not show to
whoever has it. A VAE that learned rows by heart shows those in its samples as well as in its
weights; where that must not be, its network must not be given away either (ADR 37).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from experiments.figures import Subject
from experiments.figures.canvas import label, save, write_table
from experiments.figures.panels import (
    as_pictures,
    feature_names,
    mosaic,
    new_figure,
    show_picture,
    show_strip,
)
from experiments.figures.vae import as_means

N_SAMPLES: Final = 64
SEED: Final = 0
"""Of the samples: the same network gives the same ones."""
WALK: Final = tuple(np.linspace(-2.0, 2.0, 9).tolist())
"""Where a dimension is walked to, in standard deviations of the prior; the others are 0."""
MOST_WALKED: Final = 8
"""Most dimensions that are walked: those that are used most."""
USED_FROM: Final = 0.01
"""Variance of the posterior's mean over rows, above which a dimension is used."""
MOST_FEATURES: Final = 20
"""Most features of a table that are drawn."""
MOST_WALKED_FEATURES: Final = 4
"""Most features of a sequence that a walk shows."""
_FROM_TO: Final = f"{WALK[0]:g} to {WALK[-1]:g}"

Floats = npt.NDArray[Any]
Decode = Callable[[Floats], Floats]


def draw_latent_map(subject: Subject, folder: Path) -> None:
    """Writes latent_map.png: the mean of each validation row's posterior, in two dimensions.

    Of more than two dimensions the two principal components; the axes say what share of the
    variance each has. Coloured by class where there are labels. Where rows may be shown also
    latent_map.csv, the mean itself: with the decoder it is nearly the row.
    """
    if subject.task != "vae":
        return
    z = subject.outputs[2].astype(np.float64)
    is_finite = np.isfinite(z).all(axis=1)
    points, axis_names = project(z[is_finite])
    labels = None if subject.labels is None else subject.labels[is_finite]
    figure = new_figure(6.4, 5.0, f"Latent means of {len(points)} validation rows")
    axes = figure.subplots()
    _scatter(axes, points, labels, subject.class_names)
    axes.set_xlabel(axis_names[0])
    axes.set_ylabel(axis_names[1])
    axes.grid(alpha=0.3)
    save(figure, folder / "latent_map.png")
    if subject.may_show_rows:
        head = ("class", *(f"z{i}" for i in range(z.shape[1])))
        classes = [""] * len(z) if labels is None else [subject.class_names[i] for i in labels]
        kept = zip(classes, z[is_finite], strict=labels is not None)
        lines = [(name, *(f"{value:.6g}" for value in row)) for name, row in kept]
        write_table(folder / "latent_map.csv", head, lines)


def project(z: Floats) -> tuple[Floats, tuple[str, str]]:
    """Returns points (n, 2) and what their axes are.

    Two dimensions stay as they are, one lies on a line. Of more the first two principal components
    (Jolliffe 2002, section 1.1), each with the share of the variance that it has. Fewer than two
    rows have no components: they are at 0.
    """
    if z.shape[1] <= 2:
        points = np.zeros((len(z), 2))
        points[:, : z.shape[1]] = z
        return points, ("z0", "z1" if z.shape[1] == 2 else "")
    if len(z) < 2:
        return np.zeros((len(z), 2)), ("", "")
    centred = z - z.mean(axis=0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    shares = np.square(sizes) / max(np.square(sizes).sum(), np.finfo(float).tiny)
    first, second = (f"component {i + 1}: {shares[i]:.0%} of the variance" for i in range(2))
    return centred @ directions[:2].T, (first, second)


def draw_latent_use(subject: Subject, folder: Path) -> None:
    """Writes latent_use.csv and latent_use.png: what each latent dimension carries.

    `mean_kl_nats` is the mean KL divergence of the posterior from the prior over validation rows
    (Kingma & Welling 2013, appendix B); over the dimensions they add up to the KL of the ELBO. A
    dimension is used where the posterior's mean varies over rows by more than `USED_FROM` (Burda,
    Grosse & Salakhutdinov 2016, section 5).
    """
    if subject.task != "vae":
        return
    kl, variance = latent_use(*subject.outputs[2:4])
    lines = [
        (f"z{i}", f"{kl[i]:.6g}", f"{variance[i]:.6g}", str(bool(variance[i] > USED_FROM)).lower())
        for i in range(len(kl))
    ]
    head = ("dimension", "mean_kl_nats", "variance_of_mean", "is_used")
    write_table(folder / "latent_use.csv", head, lines)
    n_used = int((variance > USED_FROM).sum())
    figure = new_figure(6.0, 3.4, f"What latent dimensions carry: {n_used} of {len(kl)} are used")
    axes = figure.subplots()
    order = np.argsort(-kl, kind="stable")
    colours = ["tab:blue" if variance[i] > USED_FROM else "0.7" for i in order]
    axes.bar(np.arange(len(kl)), kl[order], color=colours)
    axes.set_xticks(np.arange(len(kl)), [f"z{i}" for i in order], fontsize="x-small")
    axes.set_ylabel("mean KL, nats")
    axes.grid(axis="y", alpha=0.3)
    save(figure, folder / "latent_use.png")


def latent_use(z_mean: Floats, z_log_var: Floats) -> tuple[Floats, Floats]:
    """Returns each dimension's mean KL in nats, and the variance of its mean over rows, both (k,).

    Rows that are not finite are left out.

    Args:
        z_mean: (n, k).
        z_log_var: (n, k).
    """
    mean, log_var = z_mean.astype(np.float64), z_log_var.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        kl = -0.5 * (1.0 + log_var - np.square(mean) - np.exp(log_var))
    is_finite = np.isfinite(kl).all(axis=1) & np.isfinite(mean).all(axis=1)
    if not is_finite.any():
        return np.zeros(mean.shape[1]), np.zeros(mean.shape[1])
    return kl[is_finite].mean(axis=0), mean[is_finite].var(axis=0)


def draw_samples(subject: Subject, folder: Path) -> None:
    """Writes samples.png and latent_walk.png; nothing where no decoder can be had.

    Samples: the decoder's means at points that are drawn from the prior N(0, I). Images side by
    side; sequences as lines over time, a panel a feature; of tables how each column's values lie,
    beside the mean and the standard deviation of the training rows. The walk: each of the most used
    dimensions by itself: images side by side, else maps of the values by feature, and by step.
    """
    if subject.task != "vae" or (decode := open_decoder(subject)) is None:
        return
    kl, _ = latent_use(*subject.outputs[2:4])
    prior = np.random.default_rng(SEED).standard_normal((N_SAMPLES, len(kl)))
    walked = np.argsort(-kl, kind="stable")[:MOST_WALKED]
    walk = np.zeros((len(walked), len(WALK), len(kl)))
    for line, dimension in enumerate(walked):
        walk[line, :, dimension] = WALK
    steps = decode(walk.reshape(-1, len(kl)))
    names = [f"z{i}" for i in walked]
    samples = decode(prior)
    if subject.data.kind == "image":
        _draw_pictures(samples, folder / "samples.png")
        _draw_picture_walk(steps, names, folder / "latent_walk.png")
        return
    is_table = subject.data.kind == "table"
    (_draw_columns if is_table else _draw_lines)(subject, samples, folder / "samples.png")
    values = steps.reshape(len(walked), len(WALK), *subject.data.shape)
    draw = _draw_column_walk if is_table else _draw_line_walk
    draw(subject, values, names, folder / "latent_walk.png")


def open_decoder(subject: Subject) -> Decode | None:
    """Returns what makes rows of latent points, as the packaged network does at the mean.

    The layers between the network's third output, z_mean, and its second are a network of their
    own. None where the second does not come from the third alone.
    """
    import keras

    network = subject.network
    try:
        decoder = keras.Model(network.outputs[2], network.outputs[1])
    except ValueError:
        return None
    assert subject.likelihood is not None
    likelihood = subject.likelihood

    def decode(z: Floats) -> Floats:
        output = decoder(z.astype(np.float32), training=False)
        return as_means(keras.ops.convert_to_numpy(output), likelihood)

    return decode


def _scatter(
    axes: Any, points: Floats, labels: npt.NDArray[np.int64] | None, names: tuple[str, ...]
) -> None:
    if labels is None or not names:
        axes.scatter(points[:, 0], points[:, 1], s=8, alpha=0.7)
        return
    import matplotlib

    colours = matplotlib.colormaps["tab10" if len(names) <= 10 else "nipy_spectral"]
    for index, name in enumerate(names):
        inside = points[labels == index]
        colour = colours(index if len(names) <= 10 else index / (len(names) - 1))
        axes.scatter(
            inside[:, 0], inside[:, 1], s=8, alpha=0.7, color=colour, label=label(name, 16)
        )
    if len(names) <= MOST_FEATURES:
        axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_pictures(samples: Floats, path: Path) -> None:
    figure = new_figure(5.0, 5.2, f"{len(samples)} samples: means at points drawn from the prior")
    show_picture(figure.subplots(), mosaic(as_pictures(samples), 8))
    save(figure, path)


def _draw_picture_walk(steps: Floats, names: list[str], path: Path) -> None:
    height, width = steps.shape[1:3]
    figure = new_figure(6.0, 0.9 + 0.62 * len(names), "One latent dimension at a time")
    axes = figure.subplots()
    show_picture(axes, mosaic(as_pictures(steps), len(WALK)))
    down = np.arange(len(names)) * (height + 1) + height / 2 - 0.5
    across = np.arange(len(WALK)) * (width + 1) + width / 2 - 0.5
    axes.set_yticks(down, names, fontsize="x-small")
    axes.set_xticks(across, [f"{value:g}" for value in WALK], fontsize="x-small")
    axes.tick_params(length=0)
    axes.set_xlabel("standard deviations of the prior", fontsize="small")
    save(figure, path)


def _draw_lines(subject: Subject, samples: Floats, path: Path) -> None:
    names = feature_names(subject.data)[:6]
    title = f"{len(samples)} samples: means at points drawn from the prior"
    figure = new_figure(7.0, 1.0 + 1.5 * len(names), title)
    panels = figure.subplots(len(names), 1, squeeze=False, sharex=True)[:, 0]
    for i, axes in enumerate(panels):
        axes.plot(samples[:, :, i].T, color="tab:blue", alpha=0.25, linewidth=0.8)
        axes.plot(samples[:, :, i].mean(axis=0), color="tab:orange", label="their mean")
        axes.axhline(0.0, color="0.3", linewidth=0.6)
        axes.set_ylabel(label(names[i], 16), fontsize="small")
    panels[0].legend(fontsize="x-small")
    panels[-1].set_xlabel("step")
    figure.supylabel("standardised", fontsize="small")
    save(figure, path)


def _draw_columns(subject: Subject, samples: Floats, path: Path) -> None:
    """Boxes of the samples, in standard deviations of the training rows, whose mean is 0."""
    names = feature_names(subject.data)[:MOST_FEATURES]
    title = f"{len(samples)} samples: means at points drawn from the prior"
    figure = new_figure(6.5, 1.2 + 0.26 * len(names), title)
    axes = figure.subplots()
    axes.axvspan(-1.0, 1.0, color="0.9", label="training rows: mean and standard deviation")
    axes.axvline(0.0, color="0.5", linewidth=0.8)
    places = np.arange(len(names))[::-1]
    axes.boxplot(samples[:, : len(names)], positions=places, orientation="horizontal", widths=0.6)
    axes.set_yticks(places, [label(name, 30) for name in names], fontsize="small")
    axes.set_xlabel("standardised")
    figure.legend(loc="outside lower center", fontsize="small")
    save(figure, path)


def _draw_column_walk(subject: Subject, values: Floats, names: list[str], path: Path) -> None:
    """A map a dimension: what each feature is where the dimension is walked to."""
    features = feature_names(subject.data)[:MOST_FEATURES]
    size = (2.4 + 1.2 * len(names), 1.3 + 0.22 * len(features))
    figure = new_figure(*size, "One latent dimension at a time")
    axes = figure.subplots()
    show_strip(axes, [one[:, : len(features)].T for one in values], names, True, "standardised")
    axes.set_yticks(
        np.arange(len(features)), [label(name, 24) for name in features], fontsize="x-small"
    )
    axes.set_xlabel(f"each from {_FROM_TO} standard deviations of the prior", fontsize="small")
    save(figure, path)


def _draw_line_walk(subject: Subject, values: Floats, names: list[str], path: Path) -> None:
    """Of the features that change most a map a dimension: over time, by where it is walked to."""
    moves = np.ptp(values, axis=1).max(axis=(0, 1))
    chosen = np.sort(np.argsort(-moves, kind="stable")[:MOST_WALKED_FEATURES])
    features = feature_names(subject.data)
    size = (2.4 + 1.4 * len(names), 1.0 + 1.3 * len(chosen))
    figure = new_figure(*size, "One latent dimension at a time")
    panels = figure.subplots(len(chosen), squeeze=False)[:, 0]
    for axes, feature in zip(panels, chosen, strict=True):
        show_strip(axes, [one[:, :, feature] for one in values], names, True, "standardised")
        axes.set_ylabel(label(features[feature], 16), fontsize="x-small")
    panels[-1].set_xlabel(
        f"steps 0 to {values.shape[2] - 1}; from top to bottom {_FROM_TO} standard deviations of "
        "the prior",
        fontsize="small",
    )
    save(figure, path)
