"""Models asked in a child process: the only place where promotion loads what it does not trust.

The models are asked as a client asks, through the code in their own folder.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mlops.errors import MlopsError, first_line
from registry.child import Told, run_child

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mlops.dataset_store import DatasetStore
    from registry.golden import Golden

_DTYPES = {"f4": "<f4", "f8": "<f8"}

M = TypeVar("M")
T = TypeVar("T")

_Model = tuple[str, str | None]
"""A folder, and what is vouched for in it."""


class ModelFailedError(MlopsError):
    """A model cannot be loaded, or does not answer."""


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """What one model answered. All arrays are float64, one answer a row.

    Attributes:
        test: The stored test rows' probabilities (n, classes) of a classifier, or anomaly scores
            (n,) of a VAE, in nats.
        perturbed: The same for those rows changed a little, as `registry.perturb` does it.
        golden: The golden requests of its input, and what it answered them.
    """

    test: npt.NDArray[np.float64]
    perturbed: dict[str, npt.NDArray[np.float64]]
    golden: Golden


@dataclass(frozen=True, slots=True)
class Probed:
    """Answers in the order of the folders, and how the models were kept from the network.

    Attributes:
        isolation: "no network", or "not kept from the network: " and why.
    """

    answers: tuple[Answered | ModelFailedError, ...]
    isolation: str


def probe(
    folders: Sequence[Path],
    *,
    store: DatasetStore,
    fingerprint: str,
    vouched_scoring: Sequence[str | None] = (),
    timeout_s: float = 600,
) -> Probed:
    """Asks models the test rows of a stored dataset.

    One child asks all of them, one after another; what a model does to the process cannot change
    the answers of those before it. If it kills the process, the rest is asked in another.

    Args:
        folders: Model folders, at least one; the most trusted first.
        store: The store that has the dataset; the child, which has no network, reads its folder.
        fingerprint: The dataset.
        vouched_scoring: One a folder, as for `mlops.packaging.load_model`; by default none.
        timeout_s: How long one child may take, in seconds.

    Raises:
        DataError: The dataset is not in the store.
        MlopsError: No child could be started.
    """
    # A dataset that is not there is not the models' fault: it is missed here, not in the child.
    n_rows = store.get(fingerprint).counts()["test"]
    request = {"datasets": str(store.folder), "fingerprint": fingerprint}
    vouched = vouched_scoring or [None] * len(folders)
    models = [(str(folder), digest) for folder, digest in zip(folders, vouched, strict=True)]

    def ask(rest: Sequence[_Model]) -> Told:
        return run_child(answer_test, {**request, "models": rest}, timeout_s)

    return Probed(*collect(models, ask, lambda said: _answered(said, n_rows)))


def probe_golden(
    folder: Path, *, vouched_scoring: str | None = None, timeout_s: float = 600
) -> None:
    """Asks a model the golden requests of its folder.

    Args:
        folder: A model folder with a golden.json.
        vouched_scoring: As for `mlops.packaging.load_model`.
        timeout_s: How long the child may take, in seconds.

    Raises:
        ModelFailedError: It does not answer, or otherwise than it did; says how far off.
        StructureError: The folder has no golden.json that can be read.
    """
    from registry.golden import compare, read_golden

    golden = read_golden(folder)
    request = {"models": [(str(folder), vouched_scoring)], "requests": golden.requests}
    (answers,), _ = collect(
        [folder],
        lambda _: run_child(answer_golden, request, timeout_s),
        lambda said: _array(said, len(golden.requests)),
    )
    if isinstance(answers, ModelFailedError):
        raise answers
    difference = compare(golden, answers)
    if difference is not None:
        raise ModelFailedError(f"the model answers otherwise than it did: {difference}")


def collect(
    models: Sequence[M], ask: Callable[[Sequence[M]], Told], read: Callable[[Any], T]
) -> tuple[tuple[T | ModelFailedError, ...], str]:
    """Asks until there is an answer or a failure for each model; returns them, and the isolation.

    Args:
        models: All that are to be asked, at least one.
        ask: Has some of them asked, in order.
        read: Takes what was said of one and returns it as it is wanted; raises ValueError, KeyError
            or TypeError where it cannot.
    """
    found: list[T | ModelFailedError] = []
    while True:
        rest = models[len(found) :]
        told = ask(rest)
        # With all answers there, a crash on the way out takes nothing back.
        found += [_understood(said, read) for said in told.lines[: len(rest)]]
        if len(found) < len(models):
            death = told.death or "ended without an answer"
            found.append(ModelFailedError(f"the process that loaded it {death}"))
        if len(found) == len(models):
            return tuple(found), told.isolation


def _understood(said: Any, read: Callable[[Any], T]) -> T | ModelFailedError:
    """Reads what a child said, which may be anything."""
    try:
        return ModelFailedError(str(said["error"])[:500]) if "error" in said else read(said)
    except (ValueError, KeyError, TypeError, AttributeError):
        return ModelFailedError("the process that loaded it answered what nobody can read")


def _answered(said: Mapping[str, Any], n_rows: int) -> Answered:
    from registry.golden import Golden

    requests = said["requests"]
    return Answered(
        _array(said["test"], n_rows),
        {str(name): _array(part, n_rows) for name, part in said["perturbed"].items()},
        Golden(requests, _array(said["golden"], len(requests))),
    )


def _array(said: Mapping[str, Any], n_rows: int) -> npt.NDArray[np.float64]:
    import numpy as np

    content = base64.b64decode(said["values"], validate=True)
    array = np.frombuffer(content, _DTYPES[said["dtype"]]).reshape(said["shape"])
    if array.ndim not in (1, 2) or len(array) != n_rows:
        raise ValueError("not one answer a row")
    return array.astype(np.float64)


# The child's side.


def answer_test(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The work of `probe`: yields for each model its answers, or its error."""
    from mlops.dataset_store import DatasetStore
    from mlops.packaging import ModelSpec
    from registry.golden import golden_requests
    from registry.perturb import changed_requests

    dataset = DatasetStore(Path(request["datasets"])).get(request["fingerprint"])
    test, changed = dataset.requests("test"), changed_requests(dataset)

    def ask(model: Any) -> dict[str, Any]:
        requests = golden_requests(ModelSpec.from_json(model.metadata.metadata["podium"]).input)
        return {
            "test": _ask(model, test, "test"),
            "perturbed": {name: _ask(model, rows, name) for name, rows in changed.items()},
            "golden": _ask(model, requests, "golden"),
            "requests": requests,
        }

    return _each(request["models"], ask)


def answer_golden(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The work of `probe_golden`: yields the answers of its model, or its error."""
    return _each(request["models"], lambda model: _ask(model, request["requests"], "golden"))


def _each(models: Sequence[_Model], ask: Callable[[Any], dict[str, Any]]) -> Iterator[Any]:
    # Here, so that a broken installation is not a model's fault.
    import mlflow.pyfunc  # noqa: F401
    import tensorflow  # noqa: F401

    from mlops.packaging import load_model

    def attempt(model: _Model) -> dict[str, Any]:
        folder, vouched_scoring = model
        try:
            return ask(load_model(Path(folder), vouched_scoring))
        except Exception as err:
            return {"error": _in_short(err)}

    return map(attempt, models)


def _ask(model: Any, rows: Any, name: str) -> dict[str, Any]:
    """Returns the answers as JSON can have them: raw little-endian numbers in base64."""
    import numpy as np

    try:
        answers = model.predict(rows)
    except Exception as err:
        raise ModelFailedError(f"{_in_short(err)} ({name} rows)") from err
    if not isinstance(answers, np.ndarray):
        answers = np.array([answer["anomaly_score"] for answer in answers])
    dtype = "f4" if answers.dtype == np.float32 else "f8"
    values = base64.b64encode(answers.astype(f"<{dtype}").tobytes()).decode("ascii")
    return {"shape": answers.shape, "dtype": dtype, "values": values}


def _in_short(err: Exception) -> str:
    """What a model's error says, without what it expected: that is long, and the same for all."""
    return (first_line(err) or type(err).__name__).split("; expected")[0].rstrip(".")
