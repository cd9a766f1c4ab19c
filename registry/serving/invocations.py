"""POST /invocations: the rows of a request, the model that answers it, and the answer's bytes.

It takes MLflow's forms (JSON with one of `inputs`, `instances`, `dataframe_split` and
`dataframe_records`; CSV; Parquet) and gives the same predictions. It stands in the place of
`mlflow.pyfunc.scoring_server.invocations`, which copies nested lists deeply, answers NaN with
invalid JSON, and puts the request into its error messages.

An error is `{"code", "message", "field"}`. Codes of this file: bad_json, ambiguous_input,
missing_key, unknown_key, wrong_type, unsupported_media_type, bad_csv, bad_parquet; the scoring
runtime has the others. Not of this file: what takes longer than the server's time limit MLflow
itself answers, with status 504 and plain text.

A short body must not become a large table: most cells of one that is filled up (a column that one
record has, a line of CSV that is cut short), or that is stored once for many (Parquet), are not in
the body. So no table is made of more than `MAX_CELLS` cells beyond the bytes of its body.
"""

from __future__ import annotations

import atexit
import csv
import functools
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
from registry.serving.parquet import ParquetReader, UnreadParquetError
from registry.serving.shadow import Offer

FORMS: Final = ("inputs", "instances", "dataframe_split", "dataframe_records")
JSON: Final = "application/json"
CSV: Final = "text/csv"
PARQUET: Final = "application/vnd.apache.parquet"

MAX_CELLS: Final = 4_000_000
"""Most cells of a table that its body does not hold; pandas takes up to 17 bytes for each."""
MAX_COLUMNS: Final = 20_000
"""Most columns of CSV; of 50,000 pandas takes seconds to read one line."""
MAX_DOUBTFUL_NAMES: Final = 1000
"""Most columns of CSV of which two may have the same name; of 50,000 pandas takes a minute."""

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
        watch: Takes rows that were answered, and their number; None where nothing is watched.
    """

    champion: Loaded
    challenger: Loaded | None = None
    share: float = 0.0
    shadow: Callable[[Offer], None] | None = None
    watch: Callable[[Any, int], None] | None = None

    def pick(self, draw: float) -> Loaded:
        """Returns who answers a request; `draw` is uniform in [0, 1)."""
        is_canary = self.challenger is not None and draw < self.share
        return self.challenger if is_canary and self.challenger is not None else self.champion


@dataclass(frozen=True, slots=True)
class Reply:
    """`code` is that of an error, and None of an answer."""

    status: int
    body: bytes
    code: str | None = None

    @property
    def is_the_models_fault(self) -> bool:
        """Whether another model might answer the same request."""
        return self.status >= 500 or self.code == "not_finite"


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
        return Reply(err.status, orjson.dumps(err.body), err.body["code"])
    reply = _ask(chosen, rows, params, answering)
    if reply.is_the_models_fault and chosen is not answering.champion:
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
        # That the champion gives no finite answer is taken for the rows' fault.
        is_champion = chosen is answering.champion
        has_failed = reply.status >= 500 if is_champion else reply.is_the_models_fault
        (chosen.meter.failed if has_failed else chosen.meter.bad_input)()
        return reply
    chosen.meter.ok()
    other = answering.challenger
    if answering.shadow is not None and other is not None and chosen is answering.champion:
        offer = Offer(rows, None, predictions, chosen.version, other.version, other.predict)
        answering.shadow(offer)
    if answering.watch is not None:
        answering.watch(rows, len(predictions))
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
        return Reply(500, orjson.dumps(body), "model_failed")
    number = int(status())
    if hasattr(err, "to_json"):
        return Reply(number, err.to_json().encode(), getattr(err, "code", None))
    said = json.loads(tell())
    # Releases from before the codes say `error_code` instead.
    code = said.get("code") or ("bad_input" if number < 500 else "model_failed")
    body = {"code": code, "message": said.get("message", ""), "field": said.get("field")}
    return Reply(number, orjson.dumps(body), code)


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
    params = _params(value.get("params"))
    return _FRAMES[form](rows, len(content)) if form in _FRAMES else rows, params


def _params(params: Any) -> Any:
    if params is not None and not isinstance(params, dict):
        raise RefusedRequestError("wrong_type", "params is no object; expected one.", "params")
    return params


def _names() -> str:
    return ", ".join(FORMS)


def _from_split(value: Any, n_bytes: int) -> Any:
    import pandas as pd

    keys = {"columns", "data", "index"}
    if not isinstance(value, Mapping) or not {"data"} <= value.keys() <= keys:
        raise RefusedRequestError(
            "wrong_type",
            "dataframe_split is no table; expected an object with data, and columns and index or "
            "neither.",
            "dataframe_split",
        )
    rows, columns, index = value["data"], value.get("columns"), value.get("index")
    if not all(isinstance(part, list) for part in (rows, columns or [], index or [])):
        raise RefusedRequestError(
            "wrong_type", "A part of dataframe_split is no list; expected lists.", "dataframe_split"
        )
    if not all(isinstance(name, (str, int, float)) for name in columns or ()):
        raise RefusedRequestError(
            "wrong_type",
            "A column's name is neither text nor a number; expected names as text.",
            "dataframe_split.columns",
        )
    # What the rows are called is of no use to a model.
    if index is not None and len(index) != len(rows):
        raise _no_table("dataframe_split")
    _check_cells(rows, n_bytes, "dataframe_split", len(columns or ()))
    try:
        return pd.DataFrame(data=rows, columns=columns)
    except Exception:  # of rows that make no table pandas raises many types
        raise _no_table("dataframe_split") from None


def _from_records(value: Any, n_bytes: int) -> Any:
    import pandas as pd

    if not isinstance(value, list):
        raise RefusedRequestError(
            "wrong_type",
            "dataframe_records is no list; expected a list of records.",
            "dataframe_records",
        )
    _check_cells(value, n_bytes, "dataframe_records")
    try:
        return pd.DataFrame(data=value)
    except Exception:
        raise _no_table("dataframe_records") from None


def _check_cells(rows: list[Any], n_bytes: int, form: str, width: int = 0) -> None:
    """Refuses rows that pandas would fill up to a table much larger than the request.

    Args:
        n_bytes: Of the request.
        form: What the rows came in.
        width: Of the table at least.
    """
    names: set[str] = set()
    n_records = 0
    for row in rows:
        if isinstance(row, dict):
            n_records += 1
            names.update(row)
        elif isinstance(row, list):
            width = max(width, len(row))
    if 0 < n_records < len(rows):  # pandas reads records even of lists then
        raise _no_table(form)
    if len(rows) * max(width, len(names)) > n_bytes + MAX_CELLS:
        raise _too_sparse(form)


def _too_sparse(form: str | None = None) -> RefusedRequestError:
    return RefusedRequestError(
        "too_many_rows",
        "The request makes a table that is much larger than itself; expected rows that hold most "
        "of the columns, or fewer rows.",
        form,
    )


def _no_table(form: str) -> RefusedRequestError:
    return RefusedRequestError(
        "ragged", f"{form} makes no table; expected rows of one width, as pandas takes them.", form
    )


_FRAMES: Final[Mapping[str, Callable[[Any, int], Any]]] = {
    "dataframe_split": _from_split,
    "dataframe_records": _from_records,
}


def _read_csv(content: bytes) -> Any:
    import pandas as pd

    try:
        text = content.decode("utf-8")
        _check_header(text)
        n_lines = text.count("\n") + text.count("\r") + 1
        most = len(content) + MAX_CELLS
        if n_lines * (text.count(",") + 1) <= most or n_lines * _csv_width(text) <= most:
            return pd.read_csv(io.StringIO(text))
    except Exception:
        raise RefusedRequestError(
            "bad_csv",
            "The request is no CSV; expected UTF-8 with a line of column names that differ, "
            f"{MAX_COLUMNS} at most.",
        ) from None
    raise _too_sparse()


def _csv_width(text: str) -> int:
    """Returns how many columns the table has: its first line says so."""
    import pandas as pd

    first = pd.read_csv(io.StringIO(text), nrows=1)
    return int(first.shape[1] + first.index.nlevels)  # what is more than the names is an index


def _check_header(text: str) -> None:
    """Refuses what takes pandas long: very many names, or many of which some are equal."""
    lines = csv.reader(io.StringIO(text, newline=""))
    # pandas skips blank lines too.
    header = next((line for line in lines if len(line) > 1 or "".join(line).strip()), [])
    names = {name or f"Unnamed: {index}" for index, name in enumerate(header)}
    most = MAX_COLUMNS if len(names) == len(header) else MAX_DOUBTFUL_NAMES
    if len(header) > most:
        raise ValueError("too many names")


@functools.cache
def _parquet_reader() -> ParquetReader:
    reader = ParquetReader(MAX_CELLS)
    atexit.register(reader.close)
    return reader


def _read_parquet(content: bytes) -> Any:
    try:
        return _parquet_reader().read(content)
    except UnreadParquetError as err:
        if err.reason == "large":
            raise _too_sparse() from None
        if err.reason == "busy":
            raise RefusedRequestError(
                "overloaded",
                "The server is busy with other Parquet files. Try again in a moment.",
                status=503,
            ) from None
    except Exception:  # of what pandas notes in a file it raises many types
        _log.info("a Parquet file's table makes no frame")
    raise RefusedRequestError(
        "bad_parquet",
        "The request is no Parquet file; expected one of a table of numbers, text, bytes and "
        "lists of them.",
    )
