"""POST /invocations: the rows of a request, the model that answers it, and the answer's bytes.

It takes MLflow's forms (JSON with one of `inputs`, `instances`, `dataframe_split` and
`dataframe_records`; CSV; Parquet) and gives the same predictions. It stands in the place of
`mlflow.pyfunc.scoring_server.invocations`, which copies nested lists deeply, answers NaN with
invalid JSON, and puts the request into its error messages.

An error is `{"code", "message", "field"}`. Codes of this file: bad_json, ambiguous_input,
missing_key, unknown_key, wrong_type, unsupported_media_type, bad_csv, bad_parquet; the scoring
runtime has the others.
"""

from __future__ import annotations

import io
import json
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from registry.serving.metrics import Meter
from registry.serving.shadow import Offer

FORMS: Final = ("inputs", "instances", "dataframe_split", "dataframe_records")
JSON: Final = "application/json"
CSV: Final = "text/csv"
PARQUET: Final = "application/vnd.apache.parquet"

_log = logging.getLogger(__name__)


class RefusedRequestError(Exception):
    """What is wrong with a request before any model is asked; holds nothing of it."""

    def __init__(self, code: str, message: str, field: str | None = None, status: int = 400):
        super().__init__(message)
        self.status = status
        self.body = {"code": code, "message": message, "field": field}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A release in this process, in one role.

    Attributes:
        predict: Takes rows in any form of the scoring runtime, and params.
    """

    version: int
    predict: Callable[[Any, Any], Any]
    meter: Meter


@dataclass(frozen=True, slots=True)
class Answering:
    """What answers now; replaced whole by a swap, so that a request sees one or the other.

    Attributes:
        share: 0 to 1: of the requests that the challenger answers.
        shadow: Takes what the champion answered; None where nothing is compared.
    """

    champion: Loaded
    challenger: Loaded | None = None
    share: float = 0.0
    shadow: Callable[[Offer], None] | None = None

    def pick(self, draw: float) -> Loaded:
        """Returns who answers a request; `draw` is uniform in [0, 1)."""
        is_canary = self.challenger is not None and draw < self.share
        return self.challenger if is_canary and self.challenger is not None else self.champion


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: bytes


def answer(
    content: bytes,
    content_type: str | None,
    answering: Answering,
    draw: Callable[[], float] = random.random,
    fell_back: Callable[[], None] = lambda: None,
) -> Reply:
    """Answers one request.

    Args:
        content: Its body.
        content_type: Its header; None where there is none.
        answering: What answers now.
        draw: Gives a number in [0, 1) for the canary.
        fell_back: Called where the challenger failed and the champion answers.
    """
    began = time.perf_counter()
    chosen = answering.pick(draw())
    try:
        rows, params = read_request(content, content_type)
    except RefusedRequestError as err:
        chosen.meter.bad_input()
        return Reply(err.status, orjson.dumps(err.body))
    reply = _ask(chosen, rows, params, answering)
    if reply.status >= 500 and chosen is not answering.champion:
        fell_back()
        chosen = answering.champion
        reply = _ask(chosen, rows, params, answering)
    chosen.meter.seconds(time.perf_counter() - began)
    return reply


def _ask(chosen: Loaded, rows: Any, params: Any, answering: Answering) -> Reply:
    try:
        predictions = chosen.predict(rows, params)
        body = orjson.dumps(
            {"predictions": predictions, "model_version": chosen.version},
            default=_plain,
            option=orjson.OPT_SERIALIZE_NUMPY,
        )
    except Exception as err:
        reply = _failure(err)
        (chosen.meter.failed if reply.status >= 500 else chosen.meter.bad_input)()
        return reply
    chosen.meter.ok()
    other = answering.challenger
    if answering.shadow is not None and other is not None and chosen is answering.champion:
        offer = Offer(rows, None, predictions, chosen.version, other.version, other.predict)
        answering.shadow(offer)
    return Reply(200, body)


def _plain(value: Any) -> Any:
    """What orjson cannot write by itself: an array that is a view across another."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"an answer holds a {type(value).__name__}")


def _failure(err: Exception) -> Reply:
    """Returns what a model's error is answered with; never its stack trace."""
    tell = getattr(err, "serialize_as_json", None)
    status = getattr(err, "get_http_status_code", None)
    if tell is None or status is None:
        # The type only: the text of a vendor's error may hold rows.
        _log.error("answering failed: %s", type(err).__name__)
        message = "The model could not score this input."
        body = {"code": "model_failed", "message": message, "field": None}
        return Reply(500, orjson.dumps(body))
    number = int(status())
    if hasattr(err, "to_json"):
        return Reply(number, err.to_json().encode())
    said = json.loads(tell())
    # Releases from before the codes say `error_code` instead.
    code = said.get("code") or ("bad_input" if number < 500 else "model_failed")
    body = {"code": code, "message": said.get("message", ""), "field": said.get("field")}
    return Reply(number, orjson.dumps(body))


def read_request(content: bytes, content_type: str | None) -> tuple[Any, Any]:
    """Returns a request's rows, in a form that the scoring runtime takes, and its params.

    Raises:
        RefusedRequestError: it is none.
    """
    sort = _media_type(content_type)
    if sort == JSON:
        return _read_json(content)
    if sort == CSV:
        return _read_csv(content), None
    return _read_parquet(content), None


def _media_type(content_type: str | None) -> str:
    sort, *pairs = (part.strip() for part in (content_type or "").split(";"))
    if sort not in (JSON, CSV, PARQUET):
        _refuse_media(f"The content type is not known; expected one of {JSON}, {CSV}, {PARQUET}.")
    for name, _, value in (pair.partition("=") for pair in pairs if pair):
        if name.strip().lower() != "charset" or value.strip(' "').lower() != "utf-8":
            _refuse_media("The content type has a parameter; expected none but charset=utf-8.")
    return sort


def _refuse_media(message: str) -> None:
    raise RefusedRequestError("unsupported_media_type", message, status=415)


def _read_json(content: bytes) -> tuple[Any, Any]:
    try:
        value = orjson.loads(content)
    except ValueError:
        # orjson's own words hold the place, not the text; they differ from version to version.
        raise RefusedRequestError(
            "bad_json",
            "The request is no JSON; expected one object in UTF-8, without NaN or Infinity.",
        ) from None
    if not isinstance(value, dict):
        raise RefusedRequestError(
            "wrong_type", f"The request is no object; expected one with one of {_names()}."
        )
    forms = [form for form in FORMS if form in value]
    if len(forms) > 1:
        raise RefusedRequestError(
            "ambiguous_input",
            f"The request holds rows twice, in {' and '.join(forms)}; expected one of {_names()}.",
            forms[1],
        )
    if value.keys() - {*FORMS, "params"}:
        raise RefusedRequestError(
            "unknown_key",
            f"The request holds a key that is not known; expected one of {_names()}, and params.",
        )
    if not forms:
        raise RefusedRequestError(
            "missing_key", f"The request holds no rows; expected one of {_names()}."
        )
    (form,) = forms
    rows = value[form]
    return _FRAMES[form](rows) if form in _FRAMES else rows, _params(value.get("params"))


def _params(params: Any) -> Any:
    if params is not None and not isinstance(params, dict):
        raise RefusedRequestError("wrong_type", "params is no object; expected one.", "params")
    return params


def _names() -> str:
    return ", ".join(FORMS)


def _from_split(value: Any) -> Any:
    import pandas as pd

    keys = {"columns", "data", "index"}
    if not isinstance(value, Mapping) or not {"data"} <= value.keys() <= keys:
        raise RefusedRequestError(
            "wrong_type",
            "dataframe_split is no table; expected an object with data, and columns and index or "
            "neither.",
            "dataframe_split",
        )
    try:
        return pd.DataFrame(
            data=value["data"], columns=value.get("columns"), index=value.get("index")
        )
    except Exception:  # of rows that make no table pandas raises many types
        raise _no_table("dataframe_split") from None


def _from_records(value: Any) -> Any:
    import pandas as pd

    if not isinstance(value, list):
        raise RefusedRequestError(
            "wrong_type",
            "dataframe_records is no list; expected a list of records.",
            "dataframe_records",
        )
    try:
        return pd.DataFrame(data=value)
    except Exception:
        raise _no_table("dataframe_records") from None


def _no_table(form: str) -> RefusedRequestError:
    return RefusedRequestError(
        "ragged", f"{form} makes no table; expected rows of one width, as pandas takes them.", form
    )


_FRAMES: Final[Mapping[str, Callable[[Any], Any]]] = {
    "dataframe_split": _from_split,
    "dataframe_records": _from_records,
}


def _read_csv(content: bytes) -> Any:
    import pandas as pd

    try:
        return pd.read_csv(io.StringIO(content.decode("utf-8")))
    except Exception:
        raise RefusedRequestError(
            "bad_csv", "The request is no CSV; expected UTF-8 with a line of column names."
        ) from None


def _read_parquet(content: bytes) -> Any:
    import pandas as pd

    try:
        return pd.read_parquet(io.BytesIO(content))
    except Exception:
        raise RefusedRequestError(
            "bad_parquet", "The request is no Parquet file; expected one of a table."
        ) from None
