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
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from optuna.distributions import (
    BaseDistribution,
    check_distribution_compatibility,
    distribution_to_json,
)

from mlops.errors import UsageError
from mlops.inputs import InputSpec, Kind

if TYPE_CHECKING:
    import keras

Params = dict[str, Any]
Task = Literal["classifier", "vae"]


class Architecture(ABC):
    """One family of networks. Subclass it, with a constructor that takes nothing.

    Attributes:
        name: Short name; appears in the names of runs and studies.
        kinds: The kinds of data it takes.
        task: What its models answer: class probabilities, or an anomaly score.
        objective: The metric a study maximises.
    """

    name: ClassVar[str]
    kinds: ClassVar[tuple[Kind, ...]]
    task: ClassVar[Task] = "classifier"
    objective: ClassVar[str] = "val_accuracy"

    @abstractmethod
    def space(self, data: InputSpec) -> dict[str, BaseDistribution]:
        """Returns the search space: a distribution for each param.

        The batch size is searched if `batch_size` is among them, and is 32 otherwise.
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
    """

    path: str
    name: str
    task: Task
    objective: str
    left_out: str | None
    space: dict[str, str]
    baseline: Params
    likelihood: str | None


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


def describe(path: str, data: InputSpec) -> Description:
    """Describes an architecture for a dataset. Runs in a worker.

    Raises:
        UsageError: it cannot be imported, or its baseline lies outside its space.
    """
    architecture = open_architecture(path)
    left_out = None
    space: dict[str, BaseDistribution] = {}
    baseline: Params = {}
    if data.kind not in architecture.kinds:
        takes = " and ".join(f"{kind}s" for kind in architecture.kinds)
        left_out = f"takes {takes}, and this dataset holds {data.kind}s"
    else:
        space, baseline = architecture.space(data), architecture.baseline(data)
        _check_baseline(path, space, baseline)
    return Description(
        path=path,
        name=architecture.name,
        task=architecture.task,
        objective=architecture.objective,
        left_out=left_out,
        space={name: distribution_to_json(one) for name, one in space.items()},
        baseline=baseline,
        likelihood=None if left_out else architecture.likelihood(data),
    )


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
