"""What tells a training from its repetition: values in, sentences out.

Weights decide. Where they differ, the metrics of the epochs tell when it began, the packaged
network how far it went, and the environments what may have caused it.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from experiments.reproducing.recipe import Recipe

LARGEST: Final = 1.7976931348623157e308
"""What MLflow's databases keep of infinity."""
_LAYERS: Final = ("keras.layers", "keras.src.models")
_ADDRESS: Final = "shared_object_id"
"""Keras writes a number of its process there, of what several layers share."""
_NOT_COMPARED: Final = frozenset({"epoch_s"})

History = Sequence[Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Drift:
    """How far two arrays of numbers are apart, at most.

    Attributes:
        n: Numbers that differ, of `n_all`.
        relative: Of the larger of the two amounts: 0 to 2.
    """

    n: int
    n_all: int
    absolute: float
    relative: float

    def __str__(self) -> str:
        return (
            f"{self.n:,} of {self.n_all:,} differ, by at most {self.absolute:.3g} "
            f"(relative {self.relative:.3g})"
        )


def compare_arrays(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Drift:
    """Compares arrays of equal shapes, number by number; NaN is equal to NaN."""
    n = n_all = 0
    absolute = relative = 0.0
    for one, other in pairs:
        a, b = (np.asarray(each, np.float64).ravel() for each in (one, other))
        n_all += a.size
        apart = ~((a == b) | (np.isnan(a) & np.isnan(b)))
        n += int(apart.sum())
        if apart.any():
            with np.errstate(invalid="ignore", over="ignore"):
                gap = np.abs(a - b)[apart]
                share = gap / np.maximum(np.abs(a), np.abs(b))[apart]
            absolute = max(absolute, _largest(gap))
            relative = max(relative, _largest(share))
    return Drift(n, n_all, absolute, relative)


def _largest(values: np.ndarray) -> float:
    return math.inf if np.isnan(values).any() else float(values.max())


def compare_metrics(recorded: Mapping[int, Mapping[str, float]], found: History) -> list[str]:
    """Returns when the metrics of the epochs part, and how far; nothing where they do not.

    What one side alone has is not compared.

    Args:
        recorded: By epoch, as MLflow gives it.
    """
    apart = [
        (epoch, name, recorded[epoch][name], value)
        for epoch, metrics in enumerate(found)
        for name, value in sorted(metrics.items())
        if name not in _NOT_COMPARED
        and name in recorded.get(epoch, {})
        and not _is_same(recorded[epoch][name], value)
    ]
    if not apart:
        return []
    first = apart[0]
    worst = max(apart, key=lambda one: _gap(one[2], one[3]))
    says = f"metrics differ from epoch {first[0]} on: {first[1]} was {first[2]!r}, is {first[3]!r}"
    if worst != first:
        says += f"; most at epoch {worst[0]}: {worst[1]} was {worst[2]!r}, is {worst[3]!r}"
    return [says]


def _gap(one: float, other: float) -> float:
    gap = abs(one - other)
    return math.inf if math.isnan(gap) else gap


def _is_same(recorded: float, value: float) -> bool:
    if math.isnan(recorded) or math.isnan(value):
        return math.isnan(recorded) and math.isnan(value)
    if math.isinf(value):
        return abs(recorded) >= LARGEST and (recorded > 0) == (value > 0)
    return recorded == value


def compare_networks(recorded: Path, found: Path) -> list[str]:
    """Returns in what two saved networks differ; names of layers do not count.

    Args:
        recorded: A `.keras` file that the structural check let through.
        found: Another.
    """
    (was, weights_were), (now, weights_are) = _read_network(recorded), _read_network(found)
    if was != now:
        return ["the packaged network is built otherwise than the recipe builds it"]
    if {name: value.shape for name, value in weights_were.items()} != {
        name: value.shape for name, value in weights_are.items()
    }:
        return ["the packaged network's weights have other shapes"]
    pairs = [(value, weights_are[name]) for name, value in weights_were.items()]
    if all(one.tobytes() == other.tobytes() for one, other in pairs):
        return []
    drift = compare_arrays(pairs)
    says = str(drift) if drift.n else "equal as numbers, not in all bits"  # as of 0.0 and -0.0
    return [f"weights against the packaged network: {says}"]


def _read_network(path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """Returns a network's configuration without the names of its layers, and its weights."""
    import h5py

    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
        stored = io.BytesIO(archive.read("model.weights.h5"))
    weights: dict[str, np.ndarray] = {}

    def keep(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            weights[name] = item[()]

    with h5py.File(stored, "r") as file:
        file.visititems(keep)
    return without_names(config), weights


def without_names(config: Any) -> Any:
    """Returns a Keras configuration whose layers are called by their order in it.

    Keras counts names in a process: the same network has others as the second of its kind.
    """
    names: dict[str, str] = {}
    for name in _find_names(config):
        names.setdefault(name, f"layer {len(names)}")
    return _renamed(config, names)


def _find_names(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        # Not of a dtype's policy, whose name is what it is.
        if str(value.get("module")).startswith(_LAYERS) and isinstance(value.get("config"), dict):
            name = value["config"].get("name")
            if isinstance(name, str):
                yield name
        for one in value.values():
            yield from _find_names(one)
    elif isinstance(value, list):
        for one in value:
            yield from _find_names(one)


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(one, names) for key, one in value.items() if key != _ADDRESS}
    if isinstance(value, list):
        return [_renamed(one, names) for one in value]
    return names.get(value, value) if isinstance(value, str) else value


def describe_run(recipe: Recipe, environment: Mapping[str, str]) -> dict[str, str]:
    """Returns what decides weights beside params and seed, by name: how it trained and where."""
    return {
        **environment,
        "threads": str(recipe.threads),
        "backend": recipe.backend,
        "precision": recipe.precision,
        "XLA": recipe.xla,
        "population": "none" if recipe.population is None else str(recipe.population),
    }


def find_changes(
    recorded: Mapping[str, str], found: Mapping[str, str]
) -> list[tuple[str, str, str]]:
    """Returns what differs between then and now: name, then, now.

    What a run of an older version does not say is not compared.
    """
    whole = "CPU" in recorded
    names = [*recorded, *(name for name in found if whole and name not in recorded)]
    return [
        (name, recorded.get(name, "not set"), found.get(name, "not set"))
        for name in names
        if recorded.get(name) != found.get(name)
    ]
