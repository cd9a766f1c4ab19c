"""What a private training cannot have: params whose values mix the rows of a batch, and layers.

Batch normalisation makes a row's gradient depend on the others of its batch, so clipping it bounds
nothing. Class weights are counted over all training rows, and each row's loss then tells of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from optuna.distributions import CategoricalDistribution

from experiments.architectures import Description, describe, find_variants, open_architecture
from experiments.built_in import BUILT_IN
from experiments.space import Space, fits
from mlops.errors import StructureError, UsageError
from mlops.inputs import InputSpec

ONLY: Final[dict[str, Any]] = {"batch_norm": False, "class_weight": "none"}
"""Params of which a private training has this value alone."""


def narrow_private(spaces: Mapping[str, Space]) -> tuple[dict[str, Space], list[str]]:
    """Leaves of each space what can be private; returns what is wrong too, a sentence each."""
    narrowed = {path: dict(space) for path, space in spaces.items()}
    wrong = []
    for path, space in narrowed.items():
        for name in ONLY.keys() & space.keys():
            if not fits({name: space[name]}, {name: ONLY[name]}):
                only = str(ONLY[name]).lower()
                wrong.append(
                    f"{name} of {path} can only be {only} with --dp-epsilon, since anything else "
                    "mixes rows"
                )
            space[name] = CategoricalDistribution([ONLY[name]])
    return narrowed, list(dict.fromkeys(wrong))


def describe_private(
    path: str, data: InputSpec, class_counts: tuple[int, ...], metric: str
) -> Description:
    """Describes an architecture that is to be trained privately. Runs in a worker.

    Raises:
        UsageError: as `describe` does; or this worker cannot train so, or what the architecture
            builds normalises over batches.
    """
    try:
        from experiments.privacy.passes import check_layers
    except ImportError as err:
        raise UsageError(
            f"--dp-epsilon needs {err.name} in each worker. Type there: "
            "python -m pip install 'podium-mlops[privacy]'"
        ) from err
    found = describe(path, data, class_counts, metric)
    if path in BUILT_IN.values() or found.left_out is not None:
        return found
    architecture = open_architecture(path)
    space, baseline = architecture.space(data), architecture.baseline(data)
    for params in find_variants(space, baseline):
        if any(params.get(name, value) != value for name, value in ONLY.items()):
            continue
        try:
            check_layers(architecture.build(params, data, len(class_counts)))
        except StructureError as err:
            raise UsageError(
                f"the architecture {path!r} cannot be with --dp-epsilon: {err}"
            ) from err
    return found
