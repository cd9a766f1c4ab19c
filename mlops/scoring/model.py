"""The model that MLflow loads and asks: settings, parameters, one request from rows to answers."""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .batches import BATCH, Batches, Floats
from .cells import is_nested
from .compiled import compile_forward, most_rows
from .errors import BadInputError, refuse, scoring_error
from .explain import EXPLAIN_S, MAX_EXPLAINED, Gradients, OverloadedError, room_to_explain
from .pictures import ImageRows
from .ragged import RaggedRows
from .rows import Rows
from .scores import gaussian_kl, reconstruction_error
from .tables import TableRows

_VAE_SCORES: Final = ("reconstruction_error", "kl", "anomaly_score")

_log = logging.getLogger(__name__)


def load_pyfunc(data_path: str, model_config: Mapping[str, Any] | None = None) -> Model:
    """Loads the model; MLflow calls this. Checks nothing: `load_model` of mlops/packaging.py does.

    Args:
        data_path: The folder that holds model.keras; MLmodel lies beside it.
        model_config: Any of `max_rows` (the most rows of a request; None: any number), `max_batch`
            (the most rows of a forward pass that requests share; 64. 1: they share none) and
            `max_wait_ms` (how long a pass that could take more rows waits for them; 0.0).

    Raises:
        ValueError: `model_config` holds anything else.
    """
    import keras
    import yaml

    _leave_no_bytecode()
    config = Config.of(model_config)
    data = Path(data_path)
    podium = yaml.safe_load((data.parent / "MLmodel").read_text("utf-8"))["metadata"]["podium"]
    network = keras.saving.load_model(data / "model.keras", compile=False, safe_mode=True)
    return Model(podium, network, config)


def _leave_no_bytecode() -> None:
    """Removes the __pycache__ that importing this package left in the model folder.

    The folder is checked and signed file by file, and bytecode is code that neither would know.
    """
    here = Path(__file__).parent
    if here.name.startswith("podium_scoring_"):
        shutil.rmtree(here / "__pycache__", ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Config:
    """What can be set where a model is loaded; `load_pyfunc` says what each means."""

    max_rows: int | None = None
    max_batch: int = BATCH
    max_wait_ms: float = 0.0

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> Config:
        unknown = sorted(map(str, set(given or ()) - {*cls.__slots__}))
        if unknown:
            raise ValueError(
                f"model_config has no {', '.join(unknown)}; expected {', '.join(cls.__slots__)}."
            )
        config = cls(**(given or {}))
        for name, value in (("max_rows", config.max_rows), ("max_batch", config.max_batch)):
            is_whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
            if not is_whole and (name, value) != ("max_rows", None):
                raise ValueError(f"model_config's {name} is {value!r}; expected a whole number.")
        wait = config.max_wait_ms
        if not isinstance(wait, (int, float)) or not 0 <= wait < 60_000:
            raise ValueError(f"model_config's max_wait_ms is {wait!r}; expected 0 to 60000.")
        return config


class Model:
    """A packaged network that answers MLflow's `predict`. Safe to call from many threads.

    Attributes:
        on_batch: Called with the number of rows before each forward pass, from any thread.
    """

    on_batch: Callable[[int], None] | None = None

    def __init__(self, podium: Mapping[str, Any], network: Any, config: Config) -> None:
        self._task = podium["task"]
        self._class_names = list(podium["class_names"])
        self._likelihood = podium["likelihood"]
        self._rows = rows_for(podium["input"])
        self._max_rows = config.max_rows
        shape, dtype = self._rows.shape, podium["input"]["dtype"]
        self._chunk_rows = most_rows(config.max_batch)
        self._forward = compile_forward(network, shape, dtype, self._chunk_rows)
        self._batches = Batches(self._score, config.max_batch, config.max_wait_ms / 1000)
        self._gradients = Gradients(network, shape, self._task, self._likelihood)

    def get_raw_model(self) -> Model:
        """Returns itself: MLflow's `PyFuncModel.get_raw_model` asks for it."""
        return self

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Scores rows.

        Args:
            model_input: n rows, 1 or more, in any form that the package's docstring lists.
            params: `{"labels": True}` makes a classifier answer label names too. `{"explain":
                True}` adds integrated gradients, for at most `MAX_EXPLAINED` rows.

        Returns:
            Classifier: probabilities, float32 of shape (n, classes); with labels a list of n
            `{"label", "probabilities"}`. VAE: a list of n `{"reconstruction_error", "kl",
            "anomaly_score"}` in nats; the score is the sum of the two, the negative ELBO at the
            posterior's mean. With explain a list in both cases; each row has its label or its
            scores, and besides:

            - `attributions`: what each number of the row adds to the probability of its label, or
              to its anomaly score. Nested lists in the row's shape, of a sequence its own steps;
              of a table `{column: number}`.
            - `baseline_probability` or `baseline_anomaly_score`: what the network answers to the
              baseline: a black image, or else the mean of the training rows. With it the
              attributions add up to the row's own; `Gradients` says how exactly.

        Raises:
            MlflowException: One that `scoring_error` made.
        """
        deadline = time.monotonic() + EXPLAIN_S
        try:
            options = _options(params)
            self._check_number(model_input, options.explain)
            with room_to_explain() if options.explain else contextlib.nullcontext():
                rows = self._rows.parse(model_input)
                if not len(rows):
                    refuse("empty", "the input has no rows")
                scores = self._scores(rows)
                answers = self._answers(scores, options)
                if options.explain:
                    return self._explained(rows, scores, answers, deadline)
                return answers
        except OverloadedError as err:
            raise scoring_error("overloaded", str(err), "params.explain") from None
        except BadInputError as err:
            sentence = f"The input cannot be scored: {err}; expected {self._rows.expected}."
            raise scoring_error(err.code, sentence, err.field) from None
        except Exception as err:
            # The type only: the text of a vendor's error may hold rows.
            _log.error("scoring failed: %s", type(err).__name__)
            sentence = f"The model could not score this input; expected {self._rows.expected}."
            raise scoring_error("model_failed", sentence) from err

    def _check_number(self, model_input: Any, explain: bool) -> None:
        """Refuses too many rows before they are read."""
        limits = [self._max_rows, MAX_EXPLAINED if explain else None]
        limit = min((limit for limit in limits if limit is not None), default=None)
        n = _n_rows(model_input)
        if limit is not None and n > limit:
            doing = " with an explanation" if explain and limit == MAX_EXPLAINED else ""
            refuse("too_many_rows", f"it has {n} rows, more than the {limit} of a request{doing}")

    def _scores(self, rows: npt.NDArray[Any]) -> Floats:
        chunks = range(0, len(rows), self._chunk_rows)
        parts = [self._batches.score(rows[start : start + self._chunk_rows]) for start in chunks]
        scores = np.concatenate(parts) if len(parts) > 1 else parts[0]
        finite = np.isfinite(scores).all(axis=1)
        if not finite.all():
            wrong = "gives no finite answer: its numbers are too large"
            refuse("not_finite", wrong, int(np.argmin(finite)))
        return scores

    def _answers(self, scores: Floats, options: _Options) -> Any:
        if self._task == "vae":
            return [dict(zip(_VAE_SCORES, row, strict=True)) for row in scores.tolist()]
        if not options.labels and not options.explain:
            return scores
        return [
            {"label": self._class_names[best], "probabilities": row}
            for best, row in zip(scores.argmax(axis=1).tolist(), scores.tolist(), strict=True)
        ]

    def _score(self, rows: npt.NDArray[Any]) -> Floats:
        """Returns one forward pass's scores: (n, classes) float32, or (n, 3) of a VAE."""
        if self.on_batch is not None:
            self.on_batch(len(rows))
        outputs = self._forward(rows)
        if self._task == "classifier":
            return outputs[0].astype(np.float32, copy=False)
        x, reconstruction, z_mean, z_log_var = outputs
        with np.errstate(all="ignore"):  # what overflows is found, and refused, as not finite
            error = reconstruction_error(x, reconstruction, self._likelihood)
            kl = gaussian_kl(z_mean, z_log_var)
            return np.stack([error, kl, error + kl], axis=1)

    def _explained(
        self,
        rows: npt.NDArray[Any],
        scores: Floats,
        answers: list[dict[str, Any]],
        deadline: float,
    ) -> list[dict[str, Any]]:
        """Returns the answers with the integrated gradients of each row.

        Raises:
            OverloadedError: The monotonic clock passed `deadline` before the last row.
        """
        baselines = self._rows.baseline(rows)
        # Of a VAE the only target is the anomaly score.
        targets = scores.argmax(axis=1) if self._task == "classifier" else np.zeros(len(rows), int)
        key = "baseline_probability" if self._task == "classifier" else "baseline_anomaly_score"
        for index, answer in enumerate(answers):
            if time.monotonic() > deadline:
                raise OverloadedError(
                    f"The rows could not be explained in {EXPLAIN_S:g} s; expected fewer rows."
                )
            attributions, before = self._gradients.integrated(
                rows[index].astype(np.float32), baselines[index], int(targets[index])
            )
            if not np.isfinite(attributions).all() or not math.isfinite(before):
                refuse("not_finite", "has no finite explanation", index)
            answer["attributions"] = self._rows.attributed(rows[index], attributions)
            answer[key] = before
        return answers


@dataclass(frozen=True, slots=True)
class _Options:
    """What a request asks for besides the scores."""

    labels: bool = False
    explain: bool = False


def _options(params: Mapping[str, Any] | None) -> _Options:
    # MLflow judges params by the signature first: it drops unknown ones with a line in its log, and
    # answers one of another type itself. This is for who calls the model without MLflow.
    if params is None:
        return _Options()
    names = " and ".join(_Options.__slots__)
    if not isinstance(params, Mapping):
        refuse("wrong_type", f"params is not an object with {names}", field="params")
    for name, value in params.items():
        if name not in _Options.__slots__:
            refuse("unknown_key", f"params may hold {names} only", field="params")
        if not isinstance(value, (bool, np.bool_)):
            wrong = f"the parameter {name} is neither true nor false"
            refuse("wrong_type", wrong, field=f"params.{name}")
    return _Options(**{name: bool(value) for name, value in params.items()})


def _n_rows(model_input: Any) -> int:
    """Returns the number of rows of a request that is not read yet; 0 if there is no telling."""
    if isinstance(model_input, Mapping):
        return max((len(cells) for cells in model_input.values() if is_nested(cells)), default=0)
    if is_nested(model_input) or hasattr(model_input, "columns"):
        return len(model_input)
    return 0


def rows_for(spec: Mapping[str, Any]) -> Rows:
    """Returns what reads the rows of a model; `spec` is what `InputSpec.to_json` gave."""
    if spec["columns"] is not None:
        return TableRows(spec)
    if spec["ragged"]:
        return RaggedRows(spec)
    return ImageRows(spec) if spec["kind"] == "image" else Rows(spec)
