"""What explanations are worth: `python -m benchmarks.explanations`.

Four questions, asked of small networks that were trained on the digits:

- Completeness: how far attributions add up to the change of the answer (Sundararajan, Taly & Yan
  2017, proposition 1), by the points of the path.
- Randomised networks (Adebayo et al. 2018, section 3): whether the map of a network changes where
  its layers get new initial weights, from the top layer down and at last all of them. A map that
  does not change says nothing of what was learned. Spearman's rank correlation, over the numbers of
  a row that differ from the baseline: at the others every attribution is 0. Beside it what two
  networks say that learned the same from different seeds. Then the same of the means of a class.
- Randomised labels (section 4): the same for a network that learned labels that were shuffled.
- Time: what the maps of all classes take that a sweep draws.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import tyro

from benchmarks.tables import print_aim, print_heading, print_rows
from experiments.built_in import BUILT_IN

if TYPE_CHECKING:
    from mlops.data import Dataset
    from mlops.inputs import InputSpec

COMMAND = "python -m benchmarks.explanations"
LEAST = 0.2
"""What the correlation with a network of new weights should be below, in the mean over rows."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Options:
    """Train small networks on the digits, and ask what their explanations are worth."""

    rows: int = 64
    """Validation rows that are explained."""
    epochs: int = 15
    """Epochs of each training."""
    shuffled_epochs: int = 100
    """Epochs of a training on shuffled labels, which have to be learned by heart."""
    seeds: int = 3
    """Networks of each architecture, and new weights for each."""
    steps: tuple[int, ...] = (32, 64, 128)
    """Points of the path."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A trained network, rows, and what their explanations start from.

    Attributes:
        network: As it is packaged.
        rows: (n, *shape).
        targets: (n,) index of the class that it named; 0 of a VAE.
        answers: (n,) its probability, or the anomaly score.
        accuracy: On all validation rows; of a VAE None.
        train_accuracy: On the rows it learned from, with the labels that it had there.
    """

    network: Any
    data: InputSpec
    likelihood: str | None
    rows: npt.NDArray[Any]
    baselines: Floats
    targets: npt.NDArray[np.int64]
    answers: Floats
    accuracy: float | None = None
    train_accuracy: float | None = None


def ask(architecture: str, dataset: Dataset, seed: int, epochs: int, n_rows: int) -> Asked:
    """Trains an architecture's baseline, and asks it about validation rows."""
    return _asked(architecture, dataset, seed, epochs, n_rows, {}, None)


def ask_by_heart(architecture: str, dataset: Dataset, seed: int, epochs: int, n_rows: int) -> Asked:
    """The same of one that learns its training rows by heart: the epoch counts that knows most."""
    params = {"dropout": 0.0, "learning_rate": 3e-3}
    return _asked(architecture, dataset, seed, epochs, n_rows, params, "train_accuracy")


def _asked(
    architecture: str,
    dataset: Dataset,
    seed: int,
    epochs: int,
    n_rows: int,
    params: dict[str, Any],
    objective: str | None,
) -> Asked:
    from experiments.architectures import open_architecture
    from experiments.training import train
    from mlops.attribution import baselines_of

    one = open_architecture(BUILT_IN[architecture])
    own = {**one.baseline(dataset.input), **params}
    trained = train(one, own, dataset, seed=seed, epochs=epochs, objective=objective)
    network, likelihood = one.to_package(trained.model), one.likelihood(dataset.input)
    x, y = dataset.part("val")
    rows = x[:n_rows]
    targets = np.zeros(len(rows), np.int64)
    accuracies: dict[str, float] = {}
    if likelihood is None:
        targets = np.asarray(network(rows)).argmax(axis=1)
        accuracies = {
            "accuracy": _accuracy(network, x, y),
            "train_accuracy": _accuracy(network, *dataset.part("train")),
        }
    return Asked(
        network=network,
        data=dataset.input,
        likelihood=likelihood,
        rows=rows,
        baselines=baselines_of(dataset.input, rows),
        targets=targets,
        answers=_answers(network, likelihood, rows, targets),
        **accuracies,
    )


def _accuracy(network: Any, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> float:
    return float((network.predict(x, verbose=0).argmax(axis=1) == y).mean())


def _answers(
    network: Any, likelihood: str | None, rows: npt.NDArray[Any], targets: npt.NDArray[np.int64]
) -> Floats:
    from mlops.scoring import gaussian_kl, reconstruction_error

    if likelihood is None:
        found: Floats = np.asarray(network(rows))[np.arange(len(rows)), targets]
        return found
    x, output, z_mean, z_log_var = map(np.asarray, network(rows))
    scores = reconstruction_error(x, output, likelihood) + gaussian_kl(z_mean, z_log_var)
    return scores.astype(np.float32)


def gradients_of(asked: Asked, network: Any = None, n_steps: int = 64) -> tuple[Floats, Floats]:
    """Returns integrated gradients of the rows, and the answers to the baselines.

    Args:
        network: Another one, asked for the same classes.
    """
    from mlops.attribution import integrated_gradients

    return integrated_gradients(
        network or asked.network,
        asked.rows,
        asked.baselines,
        None if asked.likelihood else asked.targets,
        likelihood=asked.likelihood,
        n_steps=n_steps,
    )


def drops_of(asked: Asked, network: Any = None) -> Floats:
    """Returns what occlusion finds, as maps of the rows' shape; arguments as above."""
    from mlops.attribution import occlusion, parts_of, spread
    from mlops.scoring import compile_forward

    data = asked.data
    parts = parts_of(data)
    forward = compile_forward(network or asked.network, data.shape, data.dtype, len(parts))
    drops = occlusion(
        lambda rows: forward(rows)[0], asked.rows, asked.baselines, parts, asked.targets
    )
    return spread(drops, parts)


def completeness_errors(asked: Asked, n_steps: int) -> Floats:
    """Returns `|sum of attributions - (F(x) - F(b))|` of each row, (n,)."""
    found, before = gradients_of(asked, n_steps=n_steps)
    sums = found.reshape(len(found), -1).sum(axis=1)
    errors: Floats = np.abs(sums - (asked.answers - before))
    return errors


def randomise(network: Any, n_layers: int | None = None) -> Any:
    """Returns a copy whose top layers have new initial weights: the last `n_layers`, or all.

    Only layers count that learn; those that scale rows stay what they are.
    """
    import keras

    fresh = keras.models.clone_model(network)
    top = len(learned_layers(network)) if n_layers is None else n_layers
    kept = learned_layers(network)[: len(learned_layers(network)) - top]
    for name in kept:
        fresh.get_layer(name).set_weights(network.get_layer(name).get_weights())
    return fresh


def learned_layers(network: Any) -> list[str]:
    """Returns the names of the layers that learn, from the rows to the answer."""
    return [layer.name for layer in network.layers if layer.trainable_weights]


def correlations(asked: Asked, maps: Floats, others: Floats) -> npt.NDArray[np.float64]:
    """Returns the rank correlation of two maps of each row, where it differs from the baseline."""
    return rank_correlations(maps, others, asked.rows != asked.baselines)


def rank_correlations(
    maps: Floats, others: Floats, inside: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Returns Spearman's rank correlation of each pair of maps, (n,), over the numbers inside.

    A map that is the same everywhere correlates with none: 0.
    """
    from scipy.stats import rankdata

    found = np.zeros(len(maps))
    for i, counted in enumerate(inside):
        ranks = [rankdata(each[i][counted]) for each in (maps, others)]
        if all(np.ptp(each) > 0 for each in ranks):
            found[i] = np.corrcoef(*ranks)[0, 1]
    return found


def shuffled(dataset: Dataset, seed: int) -> Dataset:
    """Returns the dataset with the labels of its training rows shuffled among them."""
    y = dataset.y.copy()
    index = np.flatnonzero(dataset.split == 0)
    y[index] = np.random.default_rng(seed).permutation(y[index])
    return replace(dataset, y=y)


def main(argv: Sequence[str] | None = None) -> None:
    options = tyro.cli(Options, args=argv, description=__doc__)
    from mlops.data import load_dataset

    digits = load_dataset("digits")
    networks = {
        name: [ask(name, digits, s, options.epochs, options.rows) for s in range(options.seeds)]
        for name in BUILT_IN
    }
    print_completeness(networks, options)
    networks.pop("vae")
    print_randomised(networks, options)
    print_class_maps(networks, options)
    print_shuffled(networks, digits, options)
    print_time(networks)


def _print_heading(title: str, options: Options) -> None:
    data = (
        f"digits, {options.rows} validation rows; baselines of {options.seeds} seeds, "
        f"{options.epochs} epochs"
    )
    print_heading(title, data, COMMAND)


def print_completeness(networks: dict[str, list[Asked]], options: Options) -> None:
    _print_heading("Attributions add up to the change of the answer", options)
    lines = []
    most = 0.0
    for name, each in networks.items():
        changes = np.concatenate([np.abs(one.answers) for one in each])
        for n_steps in options.steps:
            errors = np.concatenate([completeness_errors(one, n_steps) for one in each])
            unit = "nats" if name == "vae" else "probability"
            spread = (float(errors.mean()), float(errors.std()), float(errors.max()))
            lines.append((name, unit, n_steps, len(errors), *spread, float(changes.mean())))
            if n_steps == max(options.steps):
                most = max(most, float(errors.max()))
    head = ("network", "unit", "points", "n", "mean error", "sd", "largest", "mean answer")
    print_rows(head, lines)
    print_aim(f"largest error with {max(options.steps)} points", most, 0.02)
    print()


def print_randomised(networks: dict[str, list[Asked]], options: Options) -> None:
    _print_heading("New weights change the map", options)
    lines: list[Sequence[object]] = []
    highest = -1.0
    for name, each in networks.items():
        own = [_all_maps(one, one.network) for one in each]
        for change, n_layers in _changes(each[0].network):
            found = _compared(each, own, n_layers)
            lines.append((name, change, found[0].size, *map(_shown, found)))
        highest = max(highest, float(found[0].mean()))  # all layers are the last change
    head = ("network", "compared with", "n", "integrated gradients", "their absolute", "occlusion")
    print_rows(head, lines)
    print_aim("integrated gradients with all weights new, highest mean", highest, LEAST)
    print()


def _changes(network: Any) -> Iterator[tuple[str, int]]:
    """Yields what is compared: 0 layers stand for another seed."""
    names = learned_layers(network)
    yield "another seed", 0
    for n in range(1, len(names)):
        yield f"new weights from {names[-n].rstrip('_0123456789')} up: {n} of {len(names)}", n
    yield f"new weights in all {len(names)} layers", len(names)


def _all_maps(asked: Asked, network: Any) -> tuple[Floats, Floats, Floats]:
    """Returns integrated gradients of a network, their absolute values, and occlusion's maps."""
    gradients = gradients_of(asked, network)[0]
    return gradients, np.abs(gradients), drops_of(asked, network)


def _compared(
    each: Sequence[Asked], own: Sequence[tuple[Floats, ...]], n_layers: int
) -> list[npt.NDArray[np.float64]]:
    """Returns the correlations by row and seed, for each kind of map."""
    import keras

    found = []
    for seed, asked in enumerate(each):
        keras.utils.set_random_seed(100 + seed)
        other = each[(seed + 1) % len(each)].network
        other = randomise(asked.network, n_layers) if n_layers else other
        maps = _all_maps(asked, other)
        found.append([correlations(asked, *pair) for pair in zip(own[seed], maps, strict=True)])
    return [np.concatenate(kind) for kind in zip(*found, strict=True)]


def _shown(values: npt.NDArray[np.float64]) -> str:
    return f"{values.mean():.2f} ± {values.std():.2f}"


def print_class_maps(networks: dict[str, list[Asked]], options: Options) -> None:
    """The means over rows that named one class, as a sweep draws them, over all numbers."""
    import keras

    _print_heading("The same of the mean map of each class, over all pixels", options)
    lines = []
    for name, each in networks.items():
        maps = [gradients_of(asked)[0] for asked in each]
        keras.utils.set_random_seed(100)
        fresh = [gradients_of(asked, randomise(asked.network))[0] for asked in each]
        seeds = [
            gradients_of(a, b.network)[0] for a, b in zip(each, each[1:] + each[:1], strict=True)
        ]
        for change, others in (("another seed", seeds), ("new weights in all layers", fresh)):
            found = [_by_class(*one) for one in zip(each, maps, others, strict=True)]
            signed, absolute = (np.concatenate(kind) for kind in zip(*found, strict=True))
            lines.append((name, change, signed.size, _shown(signed), _shown(absolute)))
    head = ("network", "compared with", "n classes", "integrated gradients", "their absolute")
    print_rows(head, lines)


def _by_class(asked: Asked, maps: Floats, others: Floats) -> tuple[Any, Any]:
    """Returns the correlations of the means of each class: of the maps, and of their absolutes."""
    classes = np.unique(asked.targets)
    found = []
    for kind in (lambda values: values, np.abs):
        means = [
            np.stack([kind(each)[asked.targets == one].mean(axis=0) for one in classes])
            for each in (maps, others)
        ]
        everywhere = np.ones(means[0].shape, bool)
        found.append(rank_correlations(means[0], means[1], everywhere))
    return found[0], found[1]


def print_shuffled(networks: dict[str, list[Asked]], digits: Dataset, options: Options) -> None:
    _print_heading("A network that learned shuffled labels by heart says something else", options)
    lines = []
    for name, each in networks.items():
        found, right = [], []
        for seed, asked in enumerate(each):
            other = ask(name, shuffled(digits, seed), seed, options.shuffled_epochs, options.rows)
            right.append(other.train_accuracy)
            maps, others = gradients_of(asked)[0], gradients_of(asked, other.network)[0]
            found.append(correlations(asked, maps, others))
        values = np.concatenate(found)
        lines.append((name, values.size, min(map(float, filter(None, right))), _shown(values)))
    head = ("network", "n", "least accuracy on its shuffled labels", "integrated gradients")
    print_rows(head, lines)


def print_time(networks: dict[str, list[Asked]]) -> None:
    from benchmarks.models import baseline_cnn, coloured_pictures
    from mlops.data import load_dataset

    data = "validation rows of digits, and made-up pictures 32 x 32 x 3; one draw each"
    print_heading("Maps of all classes, as a sweep draws them", data, COMMAND)
    digits = load_dataset("digits")
    with TemporaryDirectory() as folder:
        coloured = coloured_pictures(Path(folder), 2000)
        cases = [(f"{name}, 8 x 8 x 1", each[0].network, digits) for name, each in networks.items()]
        cases.append(("cnn, 32 x 32 x 3", baseline_cnn(coloured, epochs=1), coloured))
        lines = [(name, *_timed(network, dataset)) for name, network, dataset in cases]
    head = ("network", "classes", "least rows of a class", "most", "s after compiling")
    print_rows(head, lines)


def _timed(network: Any, dataset: Dataset) -> tuple[int, int, int, float]:
    from experiments.figures import Subject
    from experiments.figures.class_maps import explain_classes

    x, y = dataset.part("val")
    subject = Subject(network, "classifier", dataset.input, x, y, dataset.class_names, [])
    looks: list[float] = []

    def clock() -> float:
        looks.append(time.perf_counter())
        return looks[-1]

    maps = explain_classes(subject, clock)
    n_rows = [len(one.rows) for one in maps]
    return len(maps), min(n_rows), max(n_rows), looks[-1] - looks[0]


if __name__ == "__main__":
    main()
