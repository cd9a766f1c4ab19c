"""Trains a recipe once more, in a process of its own; `experiments.reproduce` starts it.

A fresh process is part of what is repeated: backend, threads and XLA are taken when it starts.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.reproducing.recipe import Recipe

if TYPE_CHECKING:
    from experiments.architectures import Architecture
    from experiments.training import OnEpoch, Trained
    from mlops.data import Dataset


@dataclass(frozen=True, slots=True)
class Job:
    """What the process is asked.

    Attributes:
        datasets: Folder of the dataset store, or of its copies.
        save_to: Where the network is saved as it would be packaged; "" where that is not asked.
    """

    recipe: Recipe
    datasets: str
    save_to: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Retrained:
    """What came out.

    Attributes:
        history: The metrics of each epoch.
        spec: Likelihood and name of the architecture, for the package's specification.
    """

    weights_sha256: str
    best_epoch: int | None
    history: tuple[dict[str, float], ...]
    spec: dict[str, Any]


def retrain(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Trains, and yields lines: first the environment, then each epoch, last what came out.

    Nothing is trained before the second is asked for.

    Args:
        request: A `Job`, as JSON.
    """
    from experiments.architectures import open_architecture
    from experiments.reproducing.environment import describe_environment
    from experiments.trial import set_up_process
    from mlops.dataset_store import open_datasets

    recipe = Recipe.from_json(request["recipe"])
    set_up_process(recipe.threads)
    architecture = open_architecture(recipe.architecture)
    folder = Path(request["datasets"])
    dataset = open_datasets(str(folder), folder).get(recipe.dataset_fingerprint)
    yield {"environment": describe_environment(recipe.architecture)}
    out: list[Trained] = []

    def run(on_epoch: OnEpoch) -> None:
        out.append(_train(recipe, architecture, dataset, on_epoch))

    for epoch, metrics in _follow(run):
        yield {"epoch": epoch, "metrics": metrics}
    (trained,) = out
    if request["save_to"]:
        from mlops.packaging import save_network

        save_network(architecture.to_package(trained.model), Path(request["save_to"]))
    result = Retrained(
        weights_sha256=trained.weights_sha256,
        best_epoch=trained.best_epoch,
        history=trained.history,
        spec={
            "task": architecture.task,
            "architecture": architecture.name,
            "likelihood": architecture.likelihood(dataset.input),
        },
    )
    yield {"result": asdict(result)}


def _train(
    recipe: Recipe, architecture: Architecture, dataset: Dataset, on_epoch: OnEpoch
) -> Trained:
    if recipe.population is not None:
        return _train_in_population(recipe, architecture, dataset, on_epoch)
    from experiments.training import train

    return train(
        architecture,
        recipe.params,
        dataset,
        seed=recipe.seed,
        epochs=recipe.epochs,
        objective=recipe.objective,
        refit=recipe.refit,
        numerics=recipe.numerics,
        on_epoch=on_epoch,
    )


def _train_in_population(
    recipe: Recipe, architecture: Architecture, dataset: Dataset, on_epoch: OnEpoch
) -> Trained:
    """Trains one member of a population of the recorded width, whose other places are nobody's."""
    from experiments.population import Member, Population

    assert recipe.population is not None
    population = Population(
        architecture,
        dataset,
        size=recipe.population,
        epochs=recipe.epochs,
        objective=recipe.objective,
        numerics=recipe.numerics,
    )
    outcomes: list[Trained | Exception] = []
    population.train(iter([Member(recipe.params, recipe.seed, on_epoch, outcomes.append)]))
    (outcome,) = outcomes
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _follow(run: Callable[[OnEpoch], None]) -> Iterator[tuple[int, dict[str, float]]]:
    """Runs a training in a thread, as a worker does, and yields its epochs as they end."""
    told: queue.SimpleQueue[tuple[int, dict[str, float]] | Exception | None] = queue.SimpleQueue()

    def on_epoch(epoch: int, metrics: dict[str, float]) -> bool:
        told.put((epoch, metrics))
        return False

    def run_and_tell() -> None:
        try:
            run(on_epoch)
            told.put(None)
        except Exception as err:
            told.put(err)

    threading.Thread(target=run_and_tell, daemon=True).start()
    while (one := told.get()) is not None:
        if isinstance(one, Exception):
            raise one
        yield one
