"""A training's recipe: all that decides its weights, beside the code and the machine.

It stands on the run of each trial, and of what comes after a search, as the tag `mlops.recipe`. So
a training can be made again from its run alone, where the study is gone or elsewhere.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from experiments.built_in import BUILT_IN
from experiments.numerics import Numerics, Precision, Xla
from mlops.errors import UsageError

RECIPE: Final = "mlops.recipe"
"""The tag."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a training was asked to be.

    Attributes:
        architecture: `module:Class`.
        objective: The metric that chooses the best epoch.
        epochs: All that were asked for; a training that was stopped earlier has no recipe for that.
        backend: Of Keras.
        population: How many were trained in one program; None for a training alone.
        refit: Whether it learned from training and validation rows together.
    """

    architecture: str
    objective: str
    params: dict[str, Any]
    seed: int
    epochs: int
    dataset_fingerprint: str
    threads: int
    backend: str
    precision: Precision = "float32"
    xla: Xla = "auto"
    population: int | None = None
    refit: bool = False

    @property
    def numerics(self) -> Numerics:
        return Numerics(self.precision, self.xla)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def to_tag(self) -> str:
        """Returns JSON that gives each param back in its own type, floats to the last bit."""
        return json.dumps(self.to_json(), sort_keys=True)

    @classmethod
    def from_json(cls, value: Any) -> Recipe:
        """Reads what `to_json` gave.

        Raises:
            UsageError: it is anything else; a newer version may have written it.
        """
        known = {one.name for one in fields(cls)}
        if not isinstance(value, dict):
            raise UsageError("the recipe of the training is damaged; expected a JSON object.")
        unknown = sorted(set(value) - known)
        if unknown:
            raise UsageError(
                f"the recipe of the training says {', '.join(unknown)}, which this version of "
                "Podium does not know. Upgrade it to the one that trained."
            )
        try:
            recipe = cls(**value)
        except TypeError as err:
            raise UsageError(f"the recipe of the training is not whole: {err}.") from err
        wrong = [name for name, kinds in _KINDS.items() if not _is(getattr(recipe, name), kinds)]
        if wrong:
            raise UsageError(f"the recipe of the training is damaged in: {', '.join(wrong)}.")
        return recipe


_KINDS: Final[dict[str, tuple[type, ...]]] = {
    **dict.fromkeys(
        ("architecture", "objective", "dataset_fingerprint", "backend", "precision", "xla"), (str,)
    ),
    **dict.fromkeys(("seed", "epochs", "threads"), (int,)),
    "params": (dict,),
    "population": (int, type(None)),
    "refit": (bool,),
}


def _is(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def read_recipe(
    tags: Mapping[str, str], params: Mapping[str, str], metrics: Iterable[str]
) -> Recipe:
    """Returns the recipe of a run.

    A run of an older version has no such tag. Then it is put together from its other tags and its
    params, whose types follow from how they are written.

    Args:
        tags: Of the run, as all that follows, as MLflow has it.
        params: By name; MLflow keeps texts.
        metrics: Names.

    Raises:
        UsageError: what is there does not suffice.
    """
    if RECIPE in tags:
        try:
            value = json.loads(tags[RECIPE])
        except (ValueError, RecursionError):
            value = None
        return Recipe.from_json(value)
    return _read_older(tags, params, metrics)


def _read_older(
    tags: Mapping[str, str], params: Mapping[str, str], metrics: Iterable[str]
) -> Recipe:
    name = tags.get("mlops.architecture", "")
    if name not in BUILT_IN:
        raise UsageError(
            f"the run does not say which class {name or 'its architecture'!r} is: it was made by "
            "an older version of Podium. Sweep again to have a run that can be reproduced."
        )
    objectives = [one.removeprefix("best_") for one in metrics if one.startswith("best_val_")]
    try:
        return Recipe(
            architecture=BUILT_IN[name],
            objective=(objectives or ["val_elbo" if name == "vae" else "val_accuracy"])[0],
            params={key: read_value(text) for key, text in params.items() if key != "architecture"},
            seed=int(tags["mlops.seed"]),
            epochs=int(tags["mlops.epochs"]),
            dataset_fingerprint=tags["mlops.dataset_fingerprint"],
            threads=int(tags["mlops.threads"]),
            backend=tags.get("mlops.backend", "tensorflow"),
            precision=tags.get("mlops.precision", "float32"),  # type: ignore[arg-type]
            xla=tags.get("mlops.xla", "auto"),  # type: ignore[arg-type]
            population=int(tags["mlops.population"]) if "mlops.population" in tags else None,
            refit=tags.get("mlops.final") == "refit",
        )
    except (KeyError, ValueError) as err:
        raise UsageError(f"the run does not say how it was trained: {err}.") from err


def read_value(text: str) -> Any:
    """Returns the number, True, False, None or text that `str` wrote.

    Example:
        >>> [read_value(one) for one in ("0.001", "32", "True", "None", "balanced")]
        [0.001, 32, True, None, 'balanced']
    """
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return value if value is None or isinstance(value, (bool, int, float)) else text
