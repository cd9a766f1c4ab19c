"""What a VAE makes of the validation rows: how well it rebuilds them, and which it finds odd.

All is worked out from what its packaged network answered: rows as it sees them, what it rebuilt at
the posterior's mean, and that posterior. What its latent space is like is in `latent`.
"""

from __future__ import annotations

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
from mlops.scoring import gaussian_kl, reconstruction_error

N_SHOWN: Final = 12
"""Rows that are shown beside their reconstructions: from the best rebuilt to the worst."""
MOST_ROWS: Final = 2000
"""Rows that reconstruction errors are a mean over, at most, so that memory stays bounded."""
MOST_BARS: Final = 30
"""Most features that are drawn; all are in the CSV."""
QUANTILES: Final = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)

Floats = npt.NDArray[Any]


def draw_reconstructions(subject: Subject, folder: Path) -> None:
    """Writes how well a VAE rebuilds the validation rows; nothing of a classifier.

    Of images reconstruction_error.png, the mean error by pixel, and where rows may be shown
    reconstructions.png: rows above what was rebuilt. Of tables and sequences
    reconstruction_error.csv and .png, by feature, of sequences by step in the picture too. Errors
    are in nats a number, `-log p(x|z)` at the posterior's mean, over the first `MOST_ROWS` rows.
    """
    if subject.task != "vae":
        return
    assert subject.likelihood is not None
    x, output = (values[:MOST_ROWS] for values in subject.outputs[:2])
    numbers = reconstruction_error(x.reshape(-1), output.reshape(-1), subject.likelihood)
    nats = numbers.reshape(x.shape)
    if subject.data.kind == "image":
        _draw_error_map(nats, folder / "reconstruction_error.png")
        if subject.may_show_rows:
            _draw_pairs(x, output, nats, subject.likelihood, folder / "reconstructions.png")
        return
    names = feature_names(subject.data)
    _write_features(x, output, nats, names, folder / "reconstruction_error.csv")
    draw = _draw_features if subject.data.kind == "table" else _draw_steps
    draw(nats, names, folder / "reconstruction_error.png")


def draw_scores(subject: Subject, folder: Path) -> None:
    """Writes how anomaly scores are distributed; nothing of a classifier.

    anomaly_score.png is a histogram; anomaly_score.csv has quantiles of the score and of its two
    terms, the reconstruction error and the KL divergence, in nats a row. Without the extremes,
    which are single rows', unless rows may be shown.
    """
    if subject.task != "vae":
        return
    scores = _scores(subject)
    _draw_histogram(scores["anomaly_score"], folder / "anomaly_score.png")
    kept = [q for q in QUANTILES if subject.may_show_rows or 0.0 < q < 1.0]
    lines = [(q, *(f"{np.quantile(values, q):.6g}" for values in scores.values())) for q in kept]
    write_table(folder / "anomaly_score.csv", ("quantile", *scores), lines)


def as_means(output: Floats, likelihood: str) -> Floats:
    """Returns the mean of each number under the decoder: of logits their sigmoid."""
    if likelihood == "gaussian":
        return output
    with np.errstate(over="ignore"):
        means: Floats = 1.0 / (1.0 + np.exp(-output))
    return means


def _scores(subject: Subject) -> dict[str, Floats]:
    """Returns each finite row's anomaly score and its two terms, (n,) in nats, by name."""
    assert subject.likelihood is not None
    x, output, z_mean, z_log_var = subject.outputs
    chunks = [slice(start, start + MOST_ROWS) for start in range(0, len(x), MOST_ROWS)]
    errors = [reconstruction_error(x[i], output[i], subject.likelihood) for i in chunks]
    error = np.concatenate(errors)
    kl = gaussian_kl(z_mean, z_log_var)
    is_finite = np.isfinite(error + kl)
    terms = {"anomaly_score": error + kl, "reconstruction_error": error, "kl": kl}
    return {name: values[is_finite] for name, values in terms.items()}


def _draw_pairs(x: Floats, output: Floats, nats: Floats, likelihood: str, path: Path) -> None:
    by_row = nats.reshape(len(nats), -1).sum(axis=1)
    places = np.linspace(0, len(x) - 1, min(N_SHOWN, len(x))).round().astype(int)
    chosen = np.argsort(by_row, kind="stable")[places]
    pictures = as_pictures(np.concatenate([x[chosen], as_means(output[chosen], likelihood)]))
    title = f"Validation rows (above) and what was rebuilt, best to worst of {len(x)}"
    figure = new_figure(0.9 * len(chosen) + 0.4, 2.5, title)
    axes = figure.subplots()
    show_picture(axes, mosaic(pictures, len(chosen)))
    width = x.shape[2] + 1
    middles = np.arange(len(chosen)) * width + x.shape[2] / 2 - 0.5
    axes.set_xticks(middles, [f"{by_row[i]:.0f}" for i in chosen], fontsize="x-small")
    axes.tick_params(length=0)
    axes.set_xlabel("reconstruction error, nats", fontsize="small")
    save(figure, path)


def _draw_error_map(nats: Floats, path: Path) -> None:
    figure = new_figure(4.6, 3.8, f"Mean reconstruction error of {len(nats)} validation rows")
    axes = figure.subplots()
    show_strip(axes, [nats.mean(axis=0).sum(axis=-1)], [""], False, "nats a pixel")
    axes.set_aspect("equal")
    save(figure, path)


def _write_features(x: Floats, output: Floats, nats: Floats, names: list[str], path: Path) -> None:
    """A line a feature; `rmse` is in the units that the network sees, a table's are standard
    deviations; `r2` is the share of the feature's variance that was rebuilt.
    """  # noqa: D205
    wide = x.shape[-1]
    squares = np.square(x - output).reshape(-1, wide).mean(axis=0)
    variance = x.reshape(-1, wide).var(axis=0)
    lines = [
        (
            name,
            f"{nats[..., i].mean():.6g}",
            f"{np.sqrt(squares[i]):.6g}",
            f"{1.0 - squares[i] / variance[i]:.6g}" if variance[i] > 0 else "",
        )
        for i, name in enumerate(names)
    ]
    write_table(path, ("feature", "mean_nats", "rmse", "r2"), lines)


def _draw_features(nats: Floats, names: list[str], path: Path) -> None:
    means = nats.mean(axis=0)
    order = np.argsort(-means, kind="stable")[:MOST_BARS][::-1]
    title = f"Mean reconstruction error of {len(nats)} validation rows"
    figure = new_figure(6.0, 1.2 + 0.22 * len(order), title)
    axes = figure.subplots()
    axes.barh(np.arange(len(order)), means[order])
    axes.set_yticks(np.arange(len(order)), [label(names[i], 30) for i in order], fontsize="small")
    axes.set_xlabel("nats")
    axes.grid(axis="x", alpha=0.3)
    save(figure, path)


def _draw_steps(nats: Floats, names: list[str], path: Path) -> None:
    """The error over time, a line for each of the features that are rebuilt worst."""
    by_step = nats.mean(axis=0)
    order = np.argsort(-by_step.mean(axis=0), kind="stable")[:10]
    title = f"Mean reconstruction error of {len(nats)} validation rows"
    figure = new_figure(7.0, 3.8, title)
    axes = figure.subplots()
    for i in order:
        axes.plot(by_step[:, i], label=label(names[i], 30))
    axes.set_xlabel("step")
    axes.set_ylabel("nats a number")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small", ncols=2)
    save(figure, path)


def _draw_histogram(scores: Floats, path: Path) -> None:
    figure = new_figure(6.5, 3.8, f"Anomaly scores of {len(scores)} validation rows")
    axes = figure.subplots()
    if len(scores):
        axes.hist(scores, bins=min(40, max(5, int(np.sqrt(len(scores))))), color="tab:blue")
        for quantile, style in ((0.5, "-"), (0.95, "--"), (0.99, ":")):
            value = np.quantile(scores, quantile)
            said = f"{quantile:.0%} are below {value:.4g}"
            axes.axvline(value, color="tab:orange", linestyle=style, label=said)
        axes.legend(fontsize="small")
    axes.set_xlabel("anomaly score, nats")
    axes.set_ylabel("rows")
    save(figure, path)
