"""What an architecture is: the data it takes, its search space as data, its network.

A module of this folder, or of a user's own, is imported by workers only: it may import Keras at its
top. The driver knows an architecture by its `Description`.

Example, a whole architecture:
    >>> class Linear(Architecture):
    ...     name = "linear"
    ...     kinds = ("table",)
    ...
    ...     def space(self, data):
    ...         return {"learning_rate": FloatDistribution(1e-4, 1e-1, log=True)}
    ...
    ...     def baseline(self, data):
    ...         return {"learning_rate": 1e-2}
    ...
    ...     def build(self, params, data, n_classes):
    ...         inputs, x = scaled_input(data)
    ...         model = keras.Model(inputs, keras.layers.Dense(n_classes)(x))
    ...         return compile_classifier(model, params["learning_rate"])
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)

from experiments.built_in import BUILT_IN, Task
from mlops.errors import StructureError, UsageError, first_line
from mlops.inputs import InputSpec, Kind

if TYPE_CHECKING:
    import keras

UNBALANCED_FROM = 1.5
"""Rows of the largest class for one of the smallest, from which class weights are searched."""

Params = dict[str, Any]


class Architecture(ABC):
    """One family of networks. Subclass it, with a constructor that takes nothing.

    Attributes:
        name: Short name; appears in the names of runs and studies.
        kinds: The kinds of data it takes.
        task: What its models answer: class probabilities, or an anomaly score.
        variable_params: Params that change nothing of a network but values in its variables, or
            the rate of a `keras.layers.Dropout`: a learning rate that is given to the optimizer as
            a number. Trials that differ in no others may be trained in one program
            (`--population`).
    """

    name: ClassVar[str]
    kinds: ClassVar[tuple[Kind, ...]]
    task: ClassVar[Task] = "classifier"
    variable_params: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def space(self, data: InputSpec) -> dict[str, BaseDistribution]:
        """Returns the search space: a distribution for each param.

        The batch size is searched if `batch_size` is among them, and is 32 otherwise. So is
        `class_weight` ("none" or "balanced"), which a classifier gets unasked where the classes of
        the training rows are unbalanced.
        """

    @abstractmethod
    def baseline(self, data: InputSpec) -> Params:
        """Returns the params of the first trial: a value inside `space` for each param."""

    @abstractmethod
    def build(self, params: Params, data: InputSpec, n_classes: int) -> keras.Model:
        """Returns a compiled model from raw rows `(n, *data.shape)` to logits `(n, n_classes)`.

        It is called once for each trial, after the seed is set. Only stock Keras layers: what
        cannot be packaged is refused.
        """

    def to_package(self, model: keras.Model) -> keras.Model:
        """Returns the model that is packaged: from raw rows to class probabilities."""
        import keras

        return keras.Model(model.input, keras.layers.Softmax()(model.output))

    def likelihood(self, data: InputSpec) -> str | None:
        """Returns the VAE's likelihood, "bernoulli" or "gaussian"; None for a classifier."""
        return None


@dataclass(frozen=True, slots=True)
class Description:
    """An architecture as data: all that the driver needs of it.

    Attributes:
        path: `module:Class`, for workers.
        left_out: Why it does not take this data; None where it does.
        space: Each param's distribution as Optuna's JSON.
        baseline: The first trial's params.
        variable_params: As of the architecture.
    """

    path: str
    name: str
    task: Task
    objective: str
    left_out: str | None
    space: dict[str, str]
    baseline: Params
    likelihood: str | None
    variable_params: tuple[str, ...] = ()

    def distributions(self) -> dict[str, BaseDistribution]:
        """Returns the search space as Optuna has it."""
        return {name: json_to_distribution(text) for name, text in self.space.items()}


def open_architecture(path: str) -> Architecture:
    """Returns an instance of `module:Class`.

    Raises:
        UsageError: the module or the class is not there, or is no architecture.
    """
    module_name, _, class_name = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # a user's module lies where the command was typed
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except ModuleNotFoundError as err:
        raise UsageError(
            f"the architecture {path!r} cannot be imported: {err}. Type the command in the folder "
            "that holds the module, or put that folder on PYTHONPATH."
        ) from err
    except AttributeError as err:
        raise UsageError(f"the module {module_name!r} has no class {class_name!r}.") from err
    except Exception as err:
        raise UsageError(
            f"the architecture {path!r} cannot be imported: {type(err).__name__}: {err}"
        ) from err
    if not (isinstance(found, type) and issubclass(found, Architecture)):
        raise UsageError(
            f"{path!r} is no architecture; expected a subclass of "
            "experiments.architectures.Architecture."
        )
    try:
        return found()
    except TypeError as err:
        raise UsageError(f"the architecture {path!r} cannot be made: {err}.") from err


def describe(path: str, data: InputSpec, class_counts: tuple[int, ...], metric: str) -> Description:
    """Describes an architecture for a dataset. Runs in a worker.

    Args:
        path: `module:Class`.
        data: What one row is.
        class_counts: Training rows of each class.
        metric: What classifiers are compared by: one of `CLASSIFIER_METRICS`.

    Raises:
        UsageError: it cannot be imported, its baseline lies outside its space, or what it builds
            cannot be packaged.
    """
    architecture = open_architecture(path)
    left_out = None
    space: dict[str, BaseDistribution] = {}
    baseline: Params = {}
    if data.kind not in architecture.kinds:
        takes = " and ".join(f"{kind}s" for kind in architecture.kinds)
        left_out = f"takes {takes}, and this dataset holds {data.kind}s"
    else:
        space, baseline = dict(architecture.space(data)), dict(architecture.baseline(data))
        _check_baseline(path, space, baseline)
        if path not in BUILT_IN.values():
            check_packaging(architecture, path, data, len(class_counts))
        if architecture.task == "classifier" and _are_unbalanced(class_counts):
            space.setdefault("class_weight", CategoricalDistribution(["none", "balanced"]))
            baseline.setdefault("class_weight", "none")
    return Description(
        path=path,
        name=architecture.name,
        task=architecture.task,
        objective="val_elbo" if architecture.task == "vae" else f"val_{metric}",
        left_out=left_out,
        space={name: distribution_to_json(one) for name, one in space.items()},
        baseline=baseline,
        likelihood=None if left_out else architecture.likelihood(data),
        variable_params=architecture.variable_params,
    )


def _are_unbalanced(class_counts: tuple[int, ...]) -> bool:
    return max(class_counts) >= UNBALANCED_FROM * min(class_counts)


def _check_baseline(path: str, space: dict[str, BaseDistribution], baseline: Params) -> None:
    if set(space) != set(baseline):
        odd = ", ".join(sorted(set(space) ^ set(baseline)))
        raise UsageError(f"the baseline and the space of {path!r} differ in: {odd}.")
    for name, distribution in space.items():
        check_distribution_compatibility(distribution, distribution)
        if not distribution._contains(distribution.to_internal_repr(baseline[name])):
            raise UsageError(
                f"the baseline of {path!r} lies outside its space: {name} is {baseline[name]!r}, "
                f"the space is {distribution}."
            )


def check_packaging(architecture: Architecture, path: str, data: InputSpec, n_classes: int) -> None:
    """Builds and packages what the architecture makes, untrained.

    That is its baseline, and the baseline with each other choice of each categorical param, since
    a choice may bring a layer of its own. What is too large for the memory is passed over.

    Raises:
        UsageError: it cannot be built, or a packaged model may not hold it; names the layer.
    """
    from experiments.workers.gpu_share import is_out_of_memory
    from mlops.packaging import ModelSpec, build_model_folder, save_network

    spec = ModelSpec(
        task=architecture.task,
        architecture=architecture.name,
        input=data,
        class_names=tuple(map(str, range(n_classes))),
        dataset_name="none",
        dataset_fingerprint="none",
        likelihood=architecture.likelihood(data),
    )
    for params in find_variants(architecture.space(data), architecture.baseline(data)):
        with tempfile.TemporaryDirectory(prefix="podium-") as scratch:
            network = Path(scratch) / "network.keras"
            try:
                model = architecture.build(params, data, n_classes)
                save_network(architecture.to_package(model), network)
                build_model_folder(network, spec, Path(scratch) / "model")
            except StructureError as err:
                wrong = str(err).removesuffix(" The model is not loaded.")
                wrong = wrong.removeprefix("network.keras ").removeprefix("data/model.keras ")
                raise UsageError(
                    f"the architecture {path!r} cannot be packaged with {_in_words(params)}: "
                    f"{wrong} Use stock Keras layers only, so that every server can check and "
                    "load the model."
                ) from err
            except Exception as err:
                if is_out_of_memory(err):
                    continue  # it becomes of a trial what it will; the others need not suffer
                raise UsageError(
                    f"the architecture {path!r} cannot be built with {_in_words(params)}: "
                    f"{type(err).__name__}: {first_line(err)}"
                ) from err


def find_variants(space: dict[str, BaseDistribution], baseline: Params) -> list[Params]:
    """Returns the baseline, and the baseline with each other choice of each categorical param."""
    found = [baseline]
    for name, distribution in space.items():
        if isinstance(distribution, CategoricalDistribution):
            others = [one for one in distribution.choices if one != baseline[name]]
            found += [{**baseline, name: other} for other in others]
    return found


def _in_words(params: Params) -> str:
    return ", ".join(f"{name} {value}" for name, value in params.items()) or "no params"
