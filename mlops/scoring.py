"""The runtime that travels inside every packaged model: parse, check, compiled forward, answer.

A byte-for-byte copy of this file lies in the model folder as `code/podium_scoring_<sha12>.py` and
is what `mlflow models serve` runs, so it imports nothing of Podium's. The name holds the content,
so that two versions of it live in one process side by side.

A request is rows, in any of these forms; each gives the same answer:

- nested lists `(n, *shape)`, or flattened `(n, prod(shape))` in C order;
- base64: one string a row, the row's raw little-endian bytes in the model's dtype, C order;
- a DataFrame (`dataframe_split`, `dataframe_records`, CSV, Parquet): one column of base64 strings,
  of raw bytes or of nested lists, or else one column a number;
- in Python also numpy arrays.

What one row is depends on the model:

- Images of uint8: base64 or bytes may be a PNG or JPEG file of any size, up to `MAX_PIXELS`.
- Sequences of unequal length: a row is `(time, features)`, not padded; a padded row with its last
  feature, which says what is padding, does too. MLflow itself refuses `inputs` and `instances` of
  unequal length: send `dataframe_records` with one key, as `{"steps": [[...], ...]}`, or base64.
- Tables with columns: cells, as numbers, text or null, in a DataFrame, in records or in a
  dictionary of lists, all by name and in any order; or in lists by position. Lists and arrays as
  wide as the features that the network sees, and base64, are taken as these features: numbers
  scaled no further, one feature a category. Where the columns are as many, lists are cells.

`params` may hold `labels` and `explain`, each true or false. Requests that come at the same time
share a forward pass; `_load_pyfunc` says what can be set.

What cannot be answered gets JSON with three keys. `code` is one of the words below. `field` says
where, as far as that is known: `rows[3]`, `rows[3].age`, `columns.age`, `params.labels`, or null.
`message` is one sentence with what was expected. It never holds the caller's data, and never a
stack trace. The status is 400 but where a word says otherwise:

- wrong_shape: a row, or the whole input, of another shape or size; one row without a batch axis.
- ragged: rows, or parts of one row, of unequal length.
- empty: no rows.
- not_a_number: text, true or false, null, or an object where a number belongs. In a column of
  numbers of a table true and false are 1 and 0, as in training.
- out_of_range: NaN, infinity, a number too large; for uint8 what is not a whole number to 255.
- missing_key, unknown_key: a column that is not there, is not one of the model's, or is there
  twice; a parameter that there is not.
- not_base64, not_an_image: text that is no base64; a file that is damaged, or too large.
- too_many_rows: more than the server takes, or than can be explained at a time.
- wrong_type: input that holds no rows at all; a cell that is not the name of a category; a file
  where raw values belong; a parameter that is neither true nor false.
- not_finite: the network's answer to these numbers is NaN or infinite.
- model_failed (500): the network failed.
- overloaded (503): the server has too much to do; it did not look at the request, or had no time
  left to explain it.
"""

from __future__ import annotations

import base64
import contextlib
import decimal
import functools
import io
import json
import logging
import math
import numbers
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]

CHUNK_ROWS: Final = 1024
"""Most rows of one forward pass; more go through in turns, so that memory stays bounded."""

MAX_EXPLAINED: Final = 64
"""Most rows of a request that asks for explanations: each costs as much as hundreds of others."""

EXPLAINED_AT_ONCE: Final = 2
"""Most requests that are explained at a time: each keeps one of the server's threads."""
EXPLAIN_S: Final = 30.0
"""Seconds after which no further row of a request is explained: nobody waits for it any more."""

STEPS: Final = 128
"""Points of the path from the baseline to a row at which an explanation takes the gradient."""
_PASS: Final = 64  # of them at a time

STATUS: Final[Mapping[str, int]] = {
    **dict.fromkeys(("wrong_shape", "ragged", "empty", "not_a_number", "out_of_range"), 400),
    **dict.fromkeys(("missing_key", "unknown_key", "not_base64", "not_an_image"), 400),
    **dict.fromkeys(("too_many_rows", "wrong_type", "not_finite"), 400),
    "model_failed": 500,
    "overloaded": 503,
}
"""The status of each code that an error has; the module's docstring says what each means."""

_log = logging.getLogger(__name__)


# Errors.


def scoring_error(code: str, message: str, field: str | None = None) -> Exception:
    """Returns an MlflowException that a scoring server answers word for word.

    It has `code`, `field`, `http_status` and `to_json()`, the text of the answer.

    Args:
        code: One of `STATUS`.
        message: One sentence, without the caller's data.
        field: Where, as the module's docstring says.

    Example:
        >>> scoring_error("empty", "The input cannot be scored: it has no rows.").to_json()
        '{"code": "empty", "message": "The input cannot be scored: it has no rows.", "field": null}'
    """
    return _error_type()(code, message, field)


@functools.cache
def _error_type() -> type[Exception]:
    """Returns the class of `scoring_error`.

    MLflow's server writes the request into the `message` of an MlflowException, and answers any
    other exception with its stack trace. Made on first use, because mlflow takes seconds to import.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.protos import databricks_pb2 as codes

    error_codes = {
        400: codes.INVALID_PARAMETER_VALUE,
        500: codes.INTERNAL_ERROR,
        503: codes.TEMPORARILY_UNAVAILABLE,
    }

    class ScoringError(MlflowException):  # type: ignore[misc, unused-ignore]
        def __init__(self, code: str, message: str, field: str | None) -> None:
            self.code, self.field, self.http_status = code, field, STATUS[code]
            self._sentence = message
            super().__init__(message, error_code=error_codes[self.http_status])

        @property
        def message(self) -> str:
            return self._sentence

        @message.setter
        def message(self, _: str) -> None:
            """Drops what the server would put in: it holds the request."""

        def to_json(self) -> str:
            return json.dumps({"code": self.code, "message": self._sentence, "field": self.field})

        def serialize_as_json(self) -> str:
            return self.to_json()

        def get_http_status_code(self) -> int:
            return self.http_status

    return ScoringError


class _BadInputError(ValueError):
    """What is wrong with the rows; `_Model.predict` adds what was expected."""

    def __init__(self, code: str, wrong: str, row: int | None, column: Any, field: str | None):
        where = "" if column is None else f" in column {column!r}"
        super().__init__(wrong + where if row is None else f"row {row} {wrong}{where}")
        self.code, self.wrong, self.row = code, wrong, row
        if field is None and row is not None:
            field = f"rows[{row}]" if column is None else f"rows[{row}].{column}"
        self.field = field


def _refuse(
    code: str,
    wrong: str,
    row: int | None = None,
    column: Any = None,
    *,
    field: str | None = None,
    err: BaseException | None = None,
) -> NoReturn:
    raise _BadInputError(code, wrong, None if row is None else int(row), column, field) from err


# What a VAE's outputs are worth. mlops/evaluation.py uses these two, so that a candidate is judged
# by the very numbers that it serves.


def reconstruction_error(
    x: npt.ArrayLike, output: npt.ArrayLike, likelihood: str
) -> npt.NDArray[np.float64]:
    """Returns `-log p(x|z)` of each row, shape (n,), in nats summed over the row's elements.

    `bernoulli`: the cross-entropy of x in [0, 1] with logits l, `max(l,0) - l*x + log(1+e^-|l|)`,
    a form that overflows nowhere (Kingma & Welling 2013, appendix C.1). `gaussian`: unit variance
    around the mean m, `(x-m)^2/2 + log(2 pi)/2` (appendix C.2).

    Args:
        x: The preprocessed input, shape (n, ...).
        output: The decoder's output, same shape: logits, or means.
        likelihood: "bernoulli" or "gaussian".

    Raises:
        ValueError: The shapes differ, or the likelihood is another word.

    Example:
        >>> reconstruction_error([[0.5]], [[0.0]], "bernoulli").round(4)
        array([0.6931])
    """
    target = np.asarray(x, dtype=np.float64)
    out = np.asarray(output, dtype=np.float64)
    if target.shape != out.shape:
        raise ValueError(f"shapes differ; expected {target.shape}, got {out.shape}.")
    if likelihood == "bernoulli":
        nats = np.maximum(out, 0.0) - out * target + np.log1p(np.exp(-np.abs(out)))
    elif likelihood == "gaussian":
        nats = 0.5 * np.square(target - out) + 0.5 * math.log(2.0 * math.pi)
    else:
        raise ValueError(f"no such likelihood; expected bernoulli or gaussian, got {likelihood!r}.")
    return np.asarray(nats.reshape(len(nats), math.prod(nats.shape[1:])).sum(axis=1))


def gaussian_kl(z_mean: npt.ArrayLike, z_log_var: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Returns `KL(N(z_mean, e^z_log_var) || N(0, I))` of each row, shape (n,), in nats.

    `-1/2 sum(1 + log var - mean^2 - var)` (Kingma & Welling 2013, appendix B).

    Args:
        z_mean: Shape (n, k).
        z_log_var: Shape (n, k).

    Example:
        >>> gaussian_kl([[0.0, 1.0]], [[0.0, 0.0]])
        array([0.5])
    """
    mean = np.asarray(z_mean, dtype=np.float64)
    log_var = np.asarray(z_log_var, dtype=np.float64)
    with np.errstate(over="ignore"):
        nats = -0.5 * (1.0 + log_var - np.square(mean) - np.exp(log_var))
    return np.asarray(nats.sum(axis=1))


# Pictures.

MAX_PIXELS: Final = 89_478_485
"""Most pixels of a picture: Pillow's own limit. Decoding one takes about 1 GB for a moment."""

_PNG, _PNG_END, _JPEG = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82", b"\xff\xd8\xff"


def decode_picture(content: bytes, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Returns the pixels of a PNG or JPEG file, of shape (height, width, channels).

    Training and serving use this very function. The picture is turned as its EXIF orientation
    says. One of another size is brought to `shape` by Pillow's bilinear filter, which takes all
    pixels into account when it makes smaller. Of 16 bits a channel the upper 8 count.

    Args:
        content: The whole file. Of several pictures in one file the first counts.
        shape: With 1 channel the pixels are greyscale (ITU-R 601), with 3 RGB, with 4 RGBA. With 1
            or 3, what is transparent shows white.

    Raises:
        ValueError: The file is something else, damaged, cut off, or of more than `MAX_PIXELS`, or
            pictures do not have so many channels. The text holds nothing of the file.
    """
    from PIL import Image

    height, width, channels = shape
    if channels not in (1, 3, 4):
        raise ValueError(f"is a picture, which has 1, 3 or 4 channels, not {channels}")
    picture = _opened_picture(content)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    if picture.mode == "RGBA" and channels < 4:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    pixels = np.asarray(picture.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))
    return pixels.reshape(shape)


def _opened_picture(content: bytes) -> Any:
    """Returns the picture in one of the modes L, RGB and RGBA, turned upright."""
    from PIL import JpegImagePlugin, PngImagePlugin

    if content.startswith(_PNG):
        reader: Any = PngImagePlugin.PngImageFile
    elif content.startswith(_JPEG):
        reader = JpegImagePlugin.JpegImageFile
    else:
        raise ValueError("is neither a PNG nor a JPEG file")
    try:
        # Not Image.open: it warns of too many pixels where this refuses.
        picture = reader(io.BytesIO(content))
        n_pixels = math.prod(picture.size)
        if n_pixels <= MAX_PIXELS:
            picture.load()
            upright = _turned(_in_8_bits(picture), picture)
    except MemoryError:
        raise
    except Exception as err:  # of a damaged file Pillow raises about any type
        raise ValueError("is a damaged or incomplete PNG or JPEG file") from err
    if n_pixels > MAX_PIXELS:
        raise ValueError(f"is a picture of {n_pixels} pixels, more than {MAX_PIXELS}")
    if reader is PngImagePlugin.PngImageFile and _PNG_END not in content:  # Pillow lets it pass
        raise ValueError("is an incomplete PNG file")
    return upright


def _in_8_bits(picture: Any) -> Any:
    from PIL import Image

    if picture.mode.startswith("I"):  # grey of 16 bits; those of colours Pillow cuts itself
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    mode = "L" if picture.mode in ("1", "L") else "RGB"
    if picture.has_transparency_data:
        mode = "RGBA"
    return picture if picture.mode == mode else picture.convert(mode)


def _turned(pixels: Any, picture: Any) -> Any:
    """Returns `pixels` as the EXIF orientation of the file says that they are to be seen."""
    from PIL.Image import Transpose

    orientation = 1
    with contextlib.suppress(Exception):  # EXIF that cannot be read turns nothing, as in a browser
        orientation = picture.getexif().get(0x0112, 1)
    ways = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return pixels.transpose(ways[orientation]) if orientation in ways else pixels


# Tables.

_FEW: Final = 50
"""Rows up to which finding the distinct cells takes longer than it saves."""

_NUMBERS: Final = {"boolean", "decimal", "floating", "integer", "mixed-integer-float"}
"""What pandas calls objects that are numbers throughout."""


def encode_table(frame: Any, columns: Sequence[Mapping[str, Any]]) -> npt.NDArray[np.float32]:
    """Returns the features that a network sees of a table, shape (n, features).

    Training and serving use this very function. A cell is missing if it is None, NaN, NA or an
    empty text.

    Args:
        frame: A DataFrame that has all of `columns`, in any order; others are not looked at.
        columns: As `InputSpec.to_json` gives them: name, categories, missing, fill.

    Raises:
        ValueError: A cell holds what its column cannot; names the column and the first row.
    """
    return _encode(frame, len(frame), columns)


def category_name(value: Any) -> str:
    """Returns the name of a category: text as it is, a whole number without a point.

    Raises:
        ValueError: It is neither text nor a number nor a bool.

    Example:
        >>> category_name(3.0), category_name("3"), category_name(True)
        ('3', '3', 'True')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value))
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, (numbers.Real, decimal.Decimal)):
        number = float(value)
        return str(int(number)) if number.is_integer() else repr(number)
    _refuse("wrong_type", "holds something else than text or numbers")


def _width(column: Mapping[str, Any]) -> int:
    """Returns how many features a column becomes."""
    values = 1 if column["categories"] is None else len(column["categories"])
    return values + int(column["missing"] == "flagged")


def _encode(cells: Any, n: int, columns: Sequence[Mapping[str, Any]]) -> npt.NDArray[np.float32]:
    """Encodes `cells`, which hold a Series or an array of n by the name of the column."""
    widths = list(map(_width, columns))
    features = np.zeros((n, sum(widths)), np.float32)
    start = 0
    for column, width in zip(columns, widths, strict=True):
        encode = _encode_numbers if column["categories"] is None else _encode_categories
        missing = encode(cells[column["name"]], column, features[:, start : start + width])
        if column["missing"] == "refused" and missing.any():
            code = "not_a_number" if column["categories"] is None else "wrong_type"
            _refuse(code, _LACKS, int(missing.argmax()), column["name"])
        if column["missing"] == "flagged":
            features[:, start + width - 1] = missing
        start += width
    return features


def _encode_numbers(
    cells: Any, column: Mapping[str, Any], out: npt.NDArray[np.float32]
) -> npt.NDArray[np.bool_]:
    """Writes the numbers into the first feature of `out`; returns where they are missing."""
    values = _column_numbers(cells, column["name"])
    missing: npt.NDArray[np.bool_] = np.isnan(values)
    with np.errstate(over="ignore"):
        out[:, 0] = values
    infinite = ~np.isfinite(out[:, 0]) & ~missing
    if infinite.any():
        wrong = "holds infinity or a number too large"
        _refuse("out_of_range", wrong, int(infinite.argmax()), column["name"])
    out[:, 0] += np.float32(0)  # -0.0 becomes 0.0
    if column["fill"] is not None:
        out[missing, 0] = column["fill"]
    return missing


def _column_numbers(cells: Any, name: str) -> npt.NDArray[Any]:
    """Returns numbers of any dtype, NaN where missing."""
    import pandas as pd

    if not isinstance(cells.dtype, np.dtype) and pd.api.types.is_numeric_dtype(cells.dtype):
        return np.asarray(cells.to_numpy(np.float64, na_value=np.nan))
    if cells.dtype.kind in "biuf":
        return np.asarray(cells)
    objects = np.asarray(cells, object)
    values = np.full(len(objects), np.nan)
    there = np.flatnonzero(~pd.isna(objects))
    if pd.api.types.infer_dtype(objects, skipna=True) in _NUMBERS:
        with contextlib.suppress(OverflowError, ValueError):  # the loop below says in which row
            values[there] = objects[there].astype(np.float64)
            return values
    for row in there.tolist():
        if isinstance(objects[row], str) and not objects[row]:
            continue
        try:
            values[row] = _number(objects[row])
        except _BadInputError as err:
            _refuse(err.code, err.wrong, row, name)
    return values


def _encode_categories(
    cells: Any, column: Mapping[str, Any], out: npt.NDArray[np.float32]
) -> npt.NDArray[np.bool_]:
    """Writes 1.0 into the feature of each row's category; returns where it is missing."""
    codes, names = _column_names(cells, column["name"])
    known = {category: feature for feature, category in enumerate(column["categories"])}
    # The code -1 means missing: the last of these.
    feature = np.array([*(known.get(name, -1) for name in names), -1])[codes]
    rows = np.flatnonzero(feature >= 0)
    out[rows, feature[rows]] = 1.0
    missing: npt.NDArray[np.bool_] = np.array([*(not name for name in names), True])[codes]
    return missing


def _column_names(cells: Any, name: str) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Returns names of categories, and for each row the index of its own.

    Where a cell is missing the index is -1, or that of an empty name.
    """
    import pandas as pd

    if len(cells) > _FEW and _can_factorize(cells):
        codes, distinct = pd.factorize(cells)
    else:
        codes, distinct = np.arange(len(cells)), np.asarray(cells, object)
    names = []
    for code, (value, missing) in enumerate(zip(distinct, pd.isna(distinct), strict=True)):
        try:
            names.append("" if missing else category_name(value))
        except _BadInputError as err:
            _refuse(err.code, err.wrong, int((codes == code).argmax()), name)
    return codes, names


def _can_factorize(cells: Any) -> bool:
    """Whether equal cells are the same category: among objects True is equal to 1."""
    import pandas as pd

    if cells.dtype != object:
        return True
    sort = pd.api.types.infer_dtype(cells, skipna=True)
    return sort == "string" or sort in _NUMBERS


# Rows in.


_IS_BOOL: Final = "holds true or false where a number was expected"
_IS_TEXT: Final = "holds text where a number was expected"
_IS_NULL: Final = "holds null"
_LACKS: Final = "lacks a value"


def _rows_for(spec: Mapping[str, Any]) -> _Rows:
    """Returns what reads the rows of a model; `spec` is what `InputSpec.to_json` gave."""
    if spec["columns"] is not None:
        return _TableRows(spec)
    if spec["ragged"]:
        return _RaggedRows(spec)
    return _ImageRows(spec) if spec["kind"] == "image" else _Rows(spec)


class _Rows:
    """Turns any form of a request into one checked array of shape (n, *shape).

    This one reads rows of one shape without names; what images, sequences of unequal length and
    tables have of their own is in the classes below.
    """

    takes_bools = False
    """Whether true and false are numbers."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.shape = tuple(spec["shape"])
        self.size = math.prod(self.shape)
        self.dtype = np.dtype(spec["dtype"]).newbyteorder("<")
        self.mean = np.array(spec["mean"], np.float32)

    @property
    def expected(self) -> str:
        """What rows should be, for the end of a sentence."""
        return f"{self.dtype.name} of shape (n, {', '.join(map(str, self.shape))})"

    def parse(self, data: Any) -> npt.NDArray[Any]:
        """Returns `data` as an array (n, *shape) of the model's dtype; raises _BadInputError."""
        if isinstance(data, np.ndarray):
            return self._from_array(data)
        if isinstance(data, (list, tuple)):
            return self._from_list(data)
        if hasattr(data, "columns") and hasattr(data, "to_numpy"):
            return self._from_frame(data)
        if isinstance(data, Mapping):
            return self._from_columns(data)
        _refuse("wrong_type", f"the input is a {type(data).__name__}, which holds no rows")

    def baseline(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Returns what an explanation of `rows` starts from, of their shape: the training mean."""
        return np.broadcast_to(self.mean, rows.shape)

    def attributed(self, row: npt.NDArray[Any], attributions: npt.NDArray[Any]) -> Any:
        """Returns the attributions of one row as plain values, in the form that the row has."""
        return attributions.tolist()

    def _from_array(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if array.dtype.kind in "US" or (array.dtype.kind == "O" and _is_text_list(array)):
            if array.ndim != 1 or array.dtype.kind == "S":
                _refuse("not_a_number", "the input holds text where numbers were expected")
            return self._from_text(array.tolist())
        if array.dtype.kind == "O":
            if array.ndim == 1 and len(array) and all(map(_is_nested, array)):
                return self._from_nested(list(array))
            array = self._numbers(array)
        if array.dtype.kind not in "biuf":
            wrong = f"the input holds {array.dtype.name} where numbers were expected"
            _refuse("not_a_number", wrong)
        return self._cast(self._stacked(array))

    def _from_list(self, rows: Sequence[Any]) -> npt.NDArray[Any]:
        if rows and all(isinstance(row, (str, bytes)) for row in rows):
            return self._from_text(rows)
        if rows and all(isinstance(row, Mapping) for row in rows):
            return self._from_records(rows)
        array = self._from_plain(rows)
        if array is not None:
            return self._cast(array)
        # numpy makes numbers of bools, and text of numbers beside text, each as long as the longest
        for index, row in enumerate(rows):
            wrong = _not_a_number(row)
            if wrong == _IS_TEXT or (wrong and not self.takes_bools):
                _refuse("not_a_number", wrong, index)
        try:
            array = np.asarray(rows)
        except (ValueError, TypeError, OverflowError):
            return self._from_nested(rows)
        return self._from_array(array)

    def _from_records(self, rows: Sequence[Mapping[Any, Any]]) -> npt.NDArray[Any]:
        # Without pandas, which raises what it likes of text that is no Unicode.
        names = rows[0].keys()
        for index, row in enumerate(rows):
            if row.keys() != names:
                _refuse("ragged", "has other names than row 0", index)
        if len(names) != 1:
            self._check_width(len(names))
        columns = list(_columns_of(rows, len(names)).values())
        if len(columns) == 1:
            array = self._from_single(columns[0].tolist())
            if array is not None:
                return array
        self._check_width(len(columns))
        array = self._numbers(np.stack(columns, axis=1))
        return self._cast(array.reshape(len(array), *self.shape))

    def _check_width(self, n_columns: int) -> None:
        if n_columns != self.size:
            _refuse("wrong_shape", f"the input has {n_columns} columns; expected {self.size}")

    def _from_plain(self, rows: Sequence[Any]) -> npt.NDArray[Any] | None:
        """Reads nested lists of ints and floats in just the right shape; None of anything else.

        What most clients send. np.asarray takes three times as long, and hides bools among ints.
        """
        cells = _flattened(rows, self.shape) or _flattened(rows, (self.size,))
        if cells is None:
            return None
        array = _bytes_of(cells) if self.dtype.kind == "u" else None
        if array is None and set(map(type, cells)) <= {int, float}:
            with contextlib.suppress(OverflowError):  # the slow way says in which row
                array = np.fromiter(cells, np.float64, len(cells))
        return None if array is None else array.reshape(-1, *self.shape)

    def _from_nested(self, rows: Sequence[Any]) -> npt.NDArray[Any]:
        """Rows that are lists or arrays of their own: names the first that is not as expected."""
        parsed = []
        for index, row in enumerate(rows):
            try:
                array = np.asarray(row, object if _has_text(row) else None)
            except (ValueError, TypeError, OverflowError):
                _refuse("ragged", "is ragged, or not made of numbers", index)
            try:
                parsed.append(self._row(array, index))
            except _BadInputError as err:
                if err.code == "wrong_shape" and self._are_unequal(rows):
                    _refuse("ragged", err.wrong, index)
                raise
        return self._cast(np.stack(parsed))

    def _are_unequal(self, rows: Sequence[Any]) -> bool:
        """Whether rows differ in length where they must not."""
        return len({len(row) if _is_nested(row) else -1 for row in rows}) > 1

    def _from_text(self, rows: Sequence[str | bytes]) -> npt.NDArray[Any]:
        """Base64 strings, or raw bytes (a binary column of Parquet), one a row."""
        parsed = []
        for index, row in enumerate(rows):
            if isinstance(row, bytes):
                content = row
            elif isinstance(row, str):
                try:
                    content = base64.b64decode(row, validate=True)  # strict: padded, no line ends
                except ValueError:
                    _refuse("not_base64", "is text but not base64", index)
            else:
                _refuse("not_base64", "is not a base64 string", index)
            parsed.append(self._decoded(content, index))
        # One row is the usual request, and np.stack would copy it.
        return self._cast(np.stack(parsed) if len(parsed) > 1 else parsed[0][np.newaxis])

    def _from_columns(self, columns: Mapping[Any, Any]) -> npt.NDArray[Any]:
        _refuse("wrong_type", "the input is a dictionary, but this model knows no column names")

    def _from_frame(self, frame: Any) -> npt.NDArray[Any]:
        if not len(frame):
            return self._no_rows()
        if frame.shape[1] == 1:
            rows = self._from_single(frame.iloc[:, 0].tolist())
            if rows is not None:
                return rows
        self._check_width(frame.shape[1])
        array = frame.to_numpy()
        if array.dtype.kind not in "biuf":
            array = self._numbers(array.astype(object))
        return self._cast(array.reshape(len(array), *self.shape))

    def _from_single(self, cells: Sequence[Any]) -> npt.NDArray[Any] | None:
        """Reads the only column of a table where its cells are whole rows."""
        if any(isinstance(cell, (str, bytes)) for cell in cells):
            return self._from_text(cells)
        return self._from_nested(cells) if any(map(_is_nested, cells)) else None

    def _no_rows(self) -> npt.NDArray[Any]:
        return np.empty((0, *self.shape), self.dtype)

    def _row(self, array: npt.NDArray[Any], index: int) -> npt.NDArray[Any]:
        """Returns one row in `shape`."""
        if array.shape != self.shape and array.shape != (self.size,):
            _refuse("wrong_shape", f"has shape {array.shape}", index)
        return self._checked(array, index).reshape(self.shape)

    def _checked(self, row: npt.NDArray[Any], index: int) -> npt.NDArray[Any]:
        """Returns a row of numbers."""
        if row.dtype.kind == "O":
            return self._numbers(row, index)
        if row.dtype.kind not in "biuf":
            _refuse("not_a_number", "holds something else than numbers", index)
        if row.dtype.kind == "b" and not self.takes_bools:
            _refuse("not_a_number", _IS_BOOL, index)
        return row

    def _numbers(self, array: npt.NDArray[Any], row: int | None = None) -> npt.NDArray[np.float64]:
        """Casts an object array of plain numbers; names the row that holds anything else."""
        result = np.empty(array.shape, np.float64)
        for index, value in np.ndenumerate(array):
            plain = value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
            try:
                if isinstance(plain, (bool, np.bool_)) and not self.takes_bools:
                    _refuse("not_a_number", _IS_BOOL)
                result[index] = _number(plain)
            except _BadInputError as err:
                at = row if row is not None else index[0] if index else None
                _refuse(err.code, err.wrong, at)
        return result

    def _decoded(self, content: bytes, index: int) -> npt.NDArray[Any]:
        """Returns the row that lies in bytes."""
        n_bytes = self.size * self.dtype.itemsize
        if len(content) != n_bytes:
            wrong = f"decodes to {len(content)} bytes; expected {n_bytes}"
            _refuse("wrong_shape", wrong, index)
        return np.frombuffer(content, self.dtype).reshape(self.shape)

    def _stacked(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Returns an array of rows in (n, *shape)."""
        if array.shape == (0,):
            return self._no_rows()
        if array.ndim and array.shape[1:] in (self.shape, (self.size,)):
            return array.reshape(len(array), *self.shape)
        if array.shape == self.shape:
            wrong = "the input is one row without the batch axis; put it into a list"
            _refuse("wrong_shape", wrong)
        _refuse("wrong_shape", f"the input has shape {array.shape}")

    def _cast(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Casts to the model's dtype; a number it cannot hold is refused, not wrapped."""
        if array.dtype == self.dtype and self.dtype.kind == "u":
            return array
        if array.dtype.kind == "b" and array.size and not self.takes_bools:
            _refuse("not_a_number", _IS_BOOL, 0)
        if self.dtype.kind == "u":
            good = (array >= 0) & (array <= np.iinfo(self.dtype).max)
            if array.dtype.kind == "f":
                good &= np.floor(array) == array
            self._refuse_first(good, "holds a value that is not a whole number from 0 to 255")
            return array.astype(self.dtype)
        with np.errstate(over="ignore"):
            cast = array.astype(self.dtype, copy=False)
        good = np.isfinite(cast)
        self._refuse_first(good, "holds NaN, infinity or a number too large")
        return cast

    def _refuse_first(self, good: npt.NDArray[np.bool_], wrong: str) -> None:
        """Refuses the first row that has anything not `good`."""
        if not good.all():
            _refuse("out_of_range", wrong, int(np.unravel_index(good.argmin(), good.shape)[0]))


class _ImageRows(_Rows):
    """Images: those of uint8 may come as files."""

    @property
    def expected(self) -> str:
        return super().expected + (", or PNG or JPEG files" if self.dtype.kind == "u" else "")

    def baseline(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Returns black images."""
        return np.zeros(rows.shape, np.float32)

    def _decoded(self, content: bytes, index: int) -> npt.NDArray[Any]:
        is_jpeg = content.startswith(_JPEG) and content.endswith(b"\xff\xd9")
        if not is_jpeg and not content.startswith(_PNG):
            return super()._decoded(content, index)
        if self.dtype.kind != "u":
            wrong = "is a PNG or JPEG file, but this model takes raw values only"
            _refuse("wrong_type", wrong, index)
        height, width, channels = self.shape
        try:
            return decode_picture(content, (height, width, channels))
        except ValueError as err:
            _refuse("not_an_image", str(err), index)


class _RaggedRows(_Rows):
    """Sequences of unequal length: padded as `Dataset.part` pads them in training."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__(spec)
        self.time, self.features = self.shape[0], self.shape[1] - 1
        # In the model's dtype, as in training.
        self.padding = np.array([*spec["mean"][:-1], 0.0], self.dtype)

    @property
    def expected(self) -> str:
        steps = f"of 1 to {self.time} steps and {self.features} features"
        return f"{self.dtype.name} sequences {steps}"

    def _row(self, array: npt.NDArray[Any], index: int) -> npt.NDArray[Any]:
        if array.ndim != 2 or array.shape[1] != self.features:
            return super()._row(array, index)
        padded: npt.NDArray[Any] = self._padded(self._checked(array, index)[None], index)[0]
        return padded

    def _are_unequal(self, rows: Sequence[Any]) -> bool:
        return False

    def baseline(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Returns sequences of the same length, each step of which is the mean step."""
        steps = np.array(rows, np.float32)
        steps[steps[..., -1] != 0, :-1] = self.mean[:-1]
        return steps

    def attributed(self, row: npt.NDArray[Any], attributions: npt.NDArray[Any]) -> Any:
        """Returns those of the row's own steps and features: padding has none."""
        return attributions[row[:, -1] != 0, :-1].tolist()

    def _decoded(self, content: bytes, index: int) -> npt.NDArray[Any]:
        n_bytes = self.features * self.dtype.itemsize
        if len(content) % n_bytes:
            wrong = f"decodes to {len(content)} bytes; expected a multiple of {n_bytes}"
            _refuse("wrong_shape", wrong, index)
        steps = np.frombuffer(content, self.dtype).reshape(1, -1, self.features)
        padded: npt.NDArray[Any] = self._padded(steps, index)[0]
        return padded

    def _stacked(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if array.ndim != 3 or array.shape[2] != self.features:
            return super()._stacked(array)
        return self._padded(array, 0) if len(array) else self._no_rows()

    def _padded(self, steps: npt.NDArray[Any], index: int) -> npt.NDArray[Any]:
        """Returns (n, time, features + 1) of sequences of one length (n, steps, features)."""
        n, n_steps, _ = steps.shape
        if not 1 <= n_steps <= self.time:
            _refuse("wrong_shape", f"has {n_steps} steps; expected 1 to {self.time}", index)
        padded = np.empty((n, *self.shape), np.result_type(steps, self.padding))
        padded[:, :n_steps, :-1] = steps
        padded[:, :n_steps, -1] = 1
        padded[:, n_steps:] = self.padding
        return padded


class _TableRows(_Rows):
    """Tables with columns: cells by name in any order or by position, or features."""

    takes_bools = True

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__(spec)
        self.columns = list(spec["columns"])
        self.names = [column["name"] for column in self.columns]
        self.has_categories = any(column["categories"] is not None for column in self.columns)
        # Plain: the cells are the features.
        self.is_plain = not self.has_categories and all(
            column["missing"] == "refused" for column in self.columns
        )

    @property
    def expected(self) -> str:
        sorts = ", ".join(
            f"{column['name']} ({'number' if column['categories'] is None else 'category'})"
            for column in self.columns
        )
        if len(sorts) > 1000:
            return f"a table with {len(self.columns)} columns"
        return f"a table with columns {sorts}"

    def attributed(self, row: npt.NDArray[Any], attributions: npt.NDArray[Any]) -> Any:
        """Returns one number a column: the sum over its features."""
        ends = np.cumsum(list(map(_width, self.columns)))
        sums = [float(part.sum()) for part in np.split(attributions, ends[:-1])]
        return dict(zip(self.names, sums, strict=True))

    def _from_array(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        is_features = array.dtype.kind in "biuf" and self.is_plain
        is_wrong = array.dtype.kind == "U" and not self.has_categories
        if array.ndim != 2 or array.shape[1] != len(self.names) or is_features or is_wrong:
            return super()._from_array(array)
        return self._from_cells(self.names, list(map(_flat, array.T)))

    def _from_list(self, rows: Sequence[Any]) -> npt.NDArray[Any]:
        if rows and all(isinstance(row, Mapping) for row in rows):
            return self._from_columns(_columns_of(rows, len(self.names) + _MORE_NAMES))
        if rows and not self.is_plain and all(isinstance(row, (list, tuple)) for row in rows):
            return self._from_nested(rows)  # an array would make text of numbers beside text
        return super()._from_list(rows)

    def _from_nested(self, rows: Sequence[Any]) -> npt.NDArray[Any]:
        width = len(self.names)
        is_row = [_is_nested(row) and len(row) == width for row in rows]
        if self.is_plain or not any(is_row):
            return super()._from_nested(rows)
        if not all(is_row):
            wrong = f"is not a list of {width} cells"
            _refuse("ragged", wrong, is_row.index(False))
        cells = [_objects((row[i] for row in rows), len(rows)) for i in range(width)]
        return self._from_cells(self.names, cells)

    def _from_columns(self, columns: Mapping[Any, Any]) -> npt.NDArray[Any]:
        if not all(_is_nested(values) for values in columns.values()):
            _refuse("wrong_type", "the input's columns are not lists")
        if len(columns) == 1 and not columns.keys() <= set(self.names):
            ((_, values),) = columns.items()
            rows = self._from_single(list(values))
            if rows is not None:
                return rows
        cells = list(map(_flat, columns.values()))
        shapes = {values.shape for values in cells}
        if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
            _refuse("ragged", "the input's columns are not flat lists of one length")
        if shapes <= {(0,)}:
            return self._no_rows()
        return self._from_cells(list(columns), cells)

    def _from_frame(self, frame: Any) -> npt.NDArray[Any]:
        if not len(frame):
            return self._no_rows()
        names = list(frame.columns)
        _refuse_odd_names(names)
        if names == list(range(len(names))):  # no names at all
            if len(names) in (1, self.size) and len(names) != len(self.names):
                return super()._from_frame(frame)
            if len(names) != len(self.names):
                wrong = f"the input has {len(names)} columns; expected {len(self.names)}"
                _refuse("wrong_shape", wrong)
            names = self.names
        elif len(names) == 1 and names[0] not in self.names:
            rows = self._from_single(frame.iloc[:, 0].tolist())
            if rows is not None:
                return rows
        if self.is_plain:  # all at once is faster
            self._check_names(names)
            array = frame.to_numpy()
            if array.dtype.kind in "biuf":
                place = {name: index for index, name in enumerate(names)}
                array = array[:, [place[name] for name in self.names]]
                self._refuse_first(~np.isnan(array), _LACKS)
                return self._cast(array)
        return self._from_cells(names, [cells for _, cells in frame.items()])

    def _from_cells(self, names: Sequence[Any], cells: Sequence[Any]) -> npt.NDArray[Any]:
        """Encodes columns, each a Series or a flat array."""
        _refuse_odd_names(names)
        self._check_names(names)
        found = dict(zip(names, cells, strict=True))
        for column in self.columns:
            values = found[column["name"]]
            if isinstance(values, np.ndarray) and values.dtype.kind == "U":
                found[column["name"]] = _as_said(values, column)
            elif isinstance(values, np.ndarray) and values.dtype.kind not in "biufO":
                code = "not_a_number" if column["categories"] is None else "wrong_type"
                wrong = f"column {column['name']!r} holds {values.dtype.name}"
                _refuse(code, wrong, field=f"columns.{column['name']}")
        return self._cast(_encode(found, len(cells[0]), self.columns))

    def _check_names(self, names: Sequence[Any]) -> None:
        own, given = set(self.names), set(names)
        absent = [name for name in self.names if name not in given]
        if absent:
            missing = list(map(repr, absent))
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            are = "columns {} are" if len(missing) > 1 else "column {} is"
            wrong = f"{are.format(', '.join(missing[:5]) + more)} missing"
            _refuse("missing_key", wrong, field=f"columns.{absent[0]}")
        n_unknown = sum(name not in own for name in names)
        if n_unknown:
            # Without their names: those of a CSV without a header are data.
            are = "a column is" if n_unknown == 1 else f"{n_unknown} columns are"
            _refuse("unknown_key", f"{are} not of this model's", field="columns")
        if len(names) != len(self.names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            _refuse("unknown_key", f"column {twice!r} is there twice", field=f"columns.{twice}")

    def _refuse_first(self, good: npt.NDArray[np.bool_], wrong: str) -> None:
        if not self.is_plain or good.all():
            super()._refuse_first(good, wrong)
            return
        row, column = np.unravel_index(good.argmin(), good.shape)
        code = "not_a_number" if wrong == _LACKS else "out_of_range"
        _refuse(code, wrong, int(row), self.names[column])


def _is_nested(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _refuse_odd_names(names: Iterable[Any]) -> None:
    """Refuses names that may not even be compared."""
    if not all(isinstance(name, (str, numbers.Real)) for name in names):
        _refuse("wrong_type", "a column's name is neither text nor a number", field="columns")


def _is_text_list(array: npt.NDArray[Any]) -> bool:
    return array.ndim == 1 and len(array) > 0 and isinstance(array[0], (str, bytes))


_MORE_NAMES: Final = 16
"""How many more names than the model has columns records may have: each becomes a column."""


def _columns_of(records: Sequence[Mapping[Any, Any]], most: int) -> dict[Any, npt.NDArray[Any]]:
    """Returns records as columns; a cell that only some records have is None in the others.

    Args:
        most: How many names there may be.
    """
    names: dict[Any, None] = {}
    for record in records:
        names.update(dict.fromkeys(record))
        if len(names) > most:
            wrong = "the input's rows have more names than this model has columns"
            _refuse("unknown_key", wrong, field="columns")
    return {
        name: _objects((record.get(name) for record in records), len(records)) for name in names
    }


def _objects(values: Iterable[Any], n: int) -> npt.NDArray[Any]:
    """Returns values as they are in a flat array of objects; MLflow puts each into an array."""
    plain = (
        value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
        for value in values
    )
    return np.fromiter(plain, object, n)


def _flat(cells: Any) -> npt.NDArray[Any]:
    """Returns the cells of one column as an array that leaves each what it is."""
    if isinstance(cells, np.ndarray) and cells.dtype.kind != "O":
        return cells
    return _objects(cells, len(cells))


def _as_said(texts: npt.NDArray[Any], column: Mapping[str, Any]) -> npt.NDArray[Any]:
    """Returns cells with their numbers as numbers again.

    Of a list that holds numbers and text MLflow makes an array of text: 3.0 becomes "3.0". What
    is the name of a category stays text.
    """
    names = frozenset(column["categories"] or ())
    cells = texts.tolist()
    return _objects((text if text in names else _said(text) for text in cells), len(cells))


def _said(text: str) -> Any:
    for read in (int, float):
        with contextlib.suppress(ValueError):
            if str(read(text)) == text:
                return read(text)
    return {"True": True, "False": False}.get(text, text)


def _flattened(rows: Sequence[Any], sizes: tuple[int, ...]) -> list[Any] | None:
    """Returns the cells of rows that are nested lists of these sizes; None if any is not."""
    level: Any = rows
    for size in sizes:
        if set(map(type, level)) != {list} or set(map(len, level)) != {size}:
            return None
        level = list(chain.from_iterable(level))
    return level  # type: ignore[no-any-return]


def _bytes_of(cells: list[Any]) -> npt.NDArray[np.uint8] | None:
    """Returns ints of 0 to 255 as an array; None if any is something else, as a bool is."""
    try:
        array = np.frombuffer(bytes(cells), np.uint8)
    except (ValueError, TypeError):
        return None
    # bytes takes bools, but they can only be where it has 0 or 1.
    few = map(cells.__getitem__, np.flatnonzero(array <= 1).tolist())
    return None if bool in set(map(type, few)) else array


def _not_a_number(row: Any) -> str | None:
    """Says what in nested lists is no number, if anything is: text before all else."""
    found = None
    for value in _leaves(row):
        kind = value.dtype.kind if isinstance(value, np.ndarray) else None
        if isinstance(value, (str, bytes)) or kind in ("U", "S"):
            return _IS_TEXT
        if isinstance(value, (bool, np.bool_)) or kind == "b":
            found = found or _IS_BOOL
        if value is None:
            found = found or _IS_NULL
    return found


def _has_text(row: Any) -> bool:
    return any(isinstance(value, (str, bytes)) for value in _leaves(row))


def _leaves(row: Any) -> Iterator[Any]:
    """Yields what nested lists hold, not what lists of numbers only hold; without recursion."""
    levels = [row]
    while levels:
        value = levels.pop()
        if not isinstance(value, (list, tuple)):
            yield value
        elif not set(map(type, value)) <= {int, float}:
            levels.extend(value)


def _number(value: Any) -> float:
    """Returns a plain number as a float; text that says a number is none."""
    if value is None:
        _refuse("not_a_number", _IS_NULL)
    if isinstance(value, (str, bytes)):
        _refuse("not_a_number", _IS_TEXT)
    if not isinstance(value, (numbers.Real, np.bool_, decimal.Decimal)):
        _refuse("not_a_number", "holds something else than numbers")
    try:
        return float(value)
    except (OverflowError, ValueError, TypeError):
        _refuse("out_of_range", "holds a number too large")


# Many requests at a time.

_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class _Config:
    """What can be set where a model is loaded; `_load_pyfunc` says what each means."""

    max_rows: int | None = None
    max_batch: int = _BATCH
    max_wait_ms: float = 0.0

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> _Config:
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


class _Request:
    """Rows that wait for their scores."""

    __slots__ = ("error", "rows", "scores", "turn")

    def __init__(self, rows: npt.NDArray[Any]) -> None:
        self.rows = rows
        self.scores: Floats | None = None
        self.error: BaseException | None = None
        # Held until there is an answer, or nobody computes and this request is to lead.
        self.turn = threading.Lock()


class _Batches:
    """Scores rows that many threads bring at the same time in common forward passes.

    As a database commits in groups: who finds nobody computing computes at once. What comes
    meanwhile waits together, and is the next pass; the first of those that wait leads it, in its
    own thread. So a lone request waits for nobody, and the more come the larger the passes are.
    """

    def __init__(
        self, score: Callable[[npt.NDArray[Any]], Floats], max_batch: int, max_wait_s: float
    ) -> None:
        self._score = score
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        # All three are guarded by the lock.
        self._waiting: deque[_Request] = deque()
        self._n_rows = 0  # of those that wait
        self._is_led = False

    def score(self, rows: npt.NDArray[Any]) -> Floats:
        """Returns the scores of `rows`, or raises what the forward pass raises of them."""
        if len(rows) >= self._max_batch:
            return self._score(rows)
        request = _Request(rows)
        if self._join(request):
            request.turn.acquire()
        if request.scores is None and request.error is None:
            self._lead(request)
        if request.error is not None:
            raise request.error
        assert request.scores is not None
        return request.scores

    def _join(self, request: _Request) -> bool:
        """Queues a request; returns whether another one leads, and it has to wait."""
        with self._lock:
            self._waiting.append(request)
            self._n_rows += len(request.rows)
            if not self._is_led:
                self._is_led = True
                return False
            request.turn.acquire()
            self._arrived.notify()
            return True

    def _lead(self, own: _Request) -> None:
        """Answers those that wait, as many as fit, and hands the lead on."""
        batch: list[_Request] = []
        try:
            self._take(batch)
            self._answer(batch)
        except BaseException as err:  # nobody may wait for ever
            for request in {*batch, own}:
                if request.scores is None and request.error is None:
                    request.error = err
        with self._lock:
            if own.error is not None and own in self._waiting:  # it was not even taken
                self._waiting.remove(own)
                self._n_rows -= len(own.rows)
            successor = self._waiting[0] if self._waiting else None
            self._is_led = successor is not None
        for request in ([successor] if successor else []) + batch:
            if request.turn.locked():
                request.turn.release()

    def _answer(self, batch: Sequence[_Request]) -> None:
        """Scores requests in one pass; where that fails each alone, to find whose fault it is."""
        rows = [request.rows for request in batch]
        try:
            scores = self._score(np.concatenate(rows) if len(rows) > 1 else rows[0])
        except Exception as err:
            if len(batch) == 1:
                batch[0].error = err
                return
            for request in batch:
                self._answer([request])
            return
        start = 0
        for request in batch:
            request.scores = scores[start : start + len(request.rows)]
            start += len(request.rows)

    def _take(self, batch: list[_Request]) -> None:
        """Puts those that are next into `batch`."""
        with self._lock:
            if self._max_wait_s:
                self._arrived.wait_for(lambda: self._n_rows >= self._max_batch, self._max_wait_s)
            n = 0
            while self._waiting and n + len(self._waiting[0].rows) <= self._max_batch:
                batch.append(self._waiting.popleft())
                n += len(batch[-1].rows)
                self._n_rows -= len(batch[-1].rows)


# Answers out.

_VAE_SCORES: Final = ("reconstruction_error", "kl", "anomaly_score")

Forward = Callable[[npt.NDArray[Any]], list[npt.NDArray[Any]]]


class _Model:
    """A packaged network that answers MLflow's `predict`. Safe to call from many threads.

    Attributes:
        on_batch: Called with the number of rows before each forward pass, from any thread.
    """

    on_batch: Callable[[int], None] | None = None

    def __init__(self, podium: Mapping[str, Any], network: Any, config: _Config) -> None:
        self._task = podium["task"]
        self._class_names = list(podium["class_names"])
        self._likelihood = podium["likelihood"]
        self._rows = _rows_for(podium["input"])
        self._max_rows = config.max_rows
        shape, dtype = self._rows.shape, podium["input"]["dtype"]
        self._chunk_rows = _most_rows(config.max_batch)
        self._forward = _compile(network, shape, dtype, self._chunk_rows)
        self._batches = _Batches(self._score, config.max_batch, config.max_wait_ms / 1000)
        self._gradients = _Gradients(network, shape, self._task, self._likelihood)

    def get_raw_model(self) -> _Model:
        """Returns itself: MLflow's `PyFuncModel.get_raw_model` asks for it."""
        return self

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Scores rows.

        Args:
            model_input: n rows, 1 or more, in any form that the module's docstring lists.
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
              attributions add up to the row's own; `_Gradients` says how exactly.

        Raises:
            MlflowException: One that `scoring_error` made.
        """
        deadline = time.monotonic() + EXPLAIN_S
        try:
            options = _options(params)
            self._check_number(model_input, options.explain)
            with _room_to_explain() if options.explain else contextlib.nullcontext():
                rows = self._rows.parse(model_input)
                if not len(rows):
                    _refuse("empty", "the input has no rows")
                scores = self._scores(rows)
                answers = self._answers(scores, options)
                if options.explain:
                    return self._explained(rows, scores, answers, deadline)
                return answers
        except _OverloadedError as err:
            raise scoring_error("overloaded", str(err), "params.explain") from None
        except _BadInputError as err:
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
            _refuse("too_many_rows", f"it has {n} rows, more than the {limit} of a request{doing}")

    def _scores(self, rows: npt.NDArray[Any]) -> Floats:
        chunks = range(0, len(rows), self._chunk_rows)
        parts = [self._batches.score(rows[start : start + self._chunk_rows]) for start in chunks]
        scores = np.concatenate(parts) if len(parts) > 1 else parts[0]
        finite = np.isfinite(scores).all(axis=1)
        if not finite.all():
            wrong = "gives no finite answer: its numbers are too large"
            _refuse("not_finite", wrong, int(np.argmin(finite)))
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
            _OverloadedError: The monotonic clock passed `deadline` before the last row.
        """
        baselines = self._rows.baseline(rows)
        # Of a VAE the only target is the anomaly score.
        targets = scores.argmax(axis=1) if self._task == "classifier" else np.zeros(len(rows), int)
        key = "baseline_probability" if self._task == "classifier" else "baseline_anomaly_score"
        for index, answer in enumerate(answers):
            if time.monotonic() > deadline:
                raise _OverloadedError(
                    f"The rows could not be explained in {EXPLAIN_S:g} s; expected fewer rows."
                )
            attributions, before = self._gradients.integrated(
                rows[index].astype(np.float32), baselines[index], int(targets[index])
            )
            if not np.isfinite(attributions).all() or not math.isfinite(before):
                _refuse("not_finite", "has no finite explanation", index)
            answer["attributions"] = self._rows.attributed(rows[index], attributions)
            answer[key] = before
        return answers


class _OverloadedError(Exception):
    """There is no room or time for an explanation."""


_explaining = threading.BoundedSemaphore(EXPLAINED_AT_ONCE)


@contextlib.contextmanager
def _room_to_explain() -> Iterator[None]:
    """Keeps one of the places of explained requests; raises _OverloadedError if none is free."""
    if not _explaining.acquire(blocking=False):
        raise _OverloadedError(
            f"{EXPLAINED_AT_ONCE} requests are being explained, which is the most at a time; "
            "expected one without an explanation, or later."
        )
    try:
        yield
    finally:
        _explaining.release()


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
        _refuse("wrong_type", f"params is not an object with {names}", field="params")
    for name, value in params.items():
        if name not in _Options.__slots__:
            _refuse("unknown_key", f"params may hold {names} only", field="params")
        if not isinstance(value, (bool, np.bool_)):
            wrong = f"the parameter {name} is neither true nor false"
            _refuse("wrong_type", wrong, field=f"params.{name}")
    return _Options(**{name: bool(value) for name, value in params.items()})


def _n_rows(model_input: Any) -> int:
    """Returns the number of rows of a request that is not read yet; 0 if there is no telling."""
    if isinstance(model_input, Mapping):
        return max((len(cells) for cells in model_input.values() if _is_nested(cells)), default=0)
    if _is_nested(model_input) or hasattr(model_input, "columns"):
        return len(model_input)
    return 0


# The network.


def _most_rows(max_batch: int) -> int:
    """Returns the most rows of one forward pass."""
    import keras

    if keras.backend.backend() != "jax":
        return CHUNK_ROWS
    # Each padded size takes a compilation, so not up to CHUNK_ROWS. At least _BATCH: who shares no
    # passes still sends many rows.
    return 1 << (max(max_batch, _BATCH) - 1).bit_length()


def _compile(network: Any, shape: Sequence[int], dtype: str, n_rows: int = 1) -> Forward:
    """Returns the forward pass, compiled and warm for 1 to `n_rows` rows: no request waits."""
    import keras

    if keras.backend.backend() == "tensorflow":
        return _compile_tensorflow(network, shape, dtype)
    if keras.backend.backend() == "jax":
        return _compile_jax(network, shape, dtype, n_rows)

    def forward(rows: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        outputs = _listed(network(rows, training=False))
        return [keras.ops.convert_to_numpy(output) for output in outputs]

    forward(np.zeros((1, *shape), dtype))
    return forward


def _compile_tensorflow(network: Any, shape: Sequence[int], dtype: str) -> Forward:
    import tensorflow as tf

    # One trace for every number of rows, which are not padded to a few sizes: on a CPU the first
    # pass of a new size took up to 5 ms longer, once, and padding to powers of two made passes of
    # 1 to 32 rows 16 to 33% slower (baseline CNN, 32x32x3). Its concrete function: tf.function's
    # own dispatch took 0.12 ms of 0.54 a row. Not jit_compile: XLA was 2 to 4 times slower for
    # small networks on a CPU.
    signature = [tf.TensorSpec([None, *shape], dtype)]
    compiled = tf.function(
        lambda rows: _listed(network(rows, training=False)), input_signature=signature
    ).get_concrete_function()

    def forward(rows: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        return [output.numpy() for output in compiled(tf.constant(rows))]

    for n in (1, 2):  # several rows take other kernels than one
        forward(np.zeros((n, *shape), dtype))
    return forward


def _compile_jax(network: Any, shape: Sequence[int], dtype: str, n_rows: int) -> Forward:
    """JAX compiles anew for each number of rows: they are padded to powers of two."""
    import jax

    variables = [variable.value for variable in network.trainable_variables]
    others = [variable.value for variable in network.non_trainable_variables]

    @jax.jit  # type: ignore[untyped-decorator, unused-ignore]
    def compiled(variables: Any, others: Any, rows: Any) -> list[Any]:
        return _listed(network.stateless_call(variables, others, rows, training=False)[0])

    def forward(rows: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        n = len(rows)
        padded = np.zeros((1 << (n - 1).bit_length(), *shape), dtype)
        padded[:n] = rows
        return [np.asarray(output)[:n] for output in compiled(variables, others, padded)]

    for power in range((n_rows - 1).bit_length() + 1):
        forward(np.zeros((1 << power, *shape), dtype))
    return forward


def _listed(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


class _Gradients:
    """Integrated gradients (Sundararajan, Taly & Yan 2017, section 3, equation 1).

    Of each number `x_i` of a row, `(x_i - b_i)` times the mean over `a` in [0, 1] of
    `dF(b + a (x - b)) / dx_i`, where b is the baseline and F the probability of one class, or of a
    VAE the anomaly score in nats. The mean is that of `STEPS` points, by the midpoint rule.

    Their sum is `F(x) - F(b)`, but for the error of that rule. Of 64 rows each of a trained CNN,
    DNN and GRU the largest was 0.016 and the mean 0.002 in probability, of a VAE 0.010 and 0.004
    nats; with 32 points they were 0.128 and 0.012, 0.056 and 0.016.

    Compiled at the first use, which takes seconds; later ones wait for it.
    """

    def __init__(
        self, network: Any, shape: Sequence[int], task: str, likelihood: str | None
    ) -> None:
        self._network = network
        self._shape = tuple(shape)
        self._task = task
        self._likelihood = likelihood
        self._lock = threading.Lock()
        self._compiled: Callable[..., tuple[Any, Any]] | None = None

    def integrated(
        self, row: npt.NDArray[np.float32], baseline: npt.NDArray[np.float32], target: int
    ) -> tuple[npt.NDArray[np.float32], float]:
        """Returns the attributions, of the row's shape, and what F is at the baseline."""
        far = row - baseline
        total = np.zeros_like(row)
        weights = np.array([*[1.0 / STEPS] * _PASS, 0.0], np.float32)
        for alphas in ((np.arange(STEPS) + 0.5) / STEPS).astype(np.float32).reshape(-1, _PASS):
            # The baseline is the last point, and counts for nothing.
            path = np.append(alphas, np.float32(0)).reshape(-1, *[1] * row.ndim)
            with self._lock:  # one at a time, so that explanations leave room for scores
                if self._compiled is None:
                    self._compiled = self._compile()
                slopes, values = self._compiled(baseline + path * far, weights, np.int32(target))
            total += np.asarray(slopes)
        return total * far, float(np.asarray(values)[-1])

    def _compile(self) -> Callable[..., tuple[Any, Any]]:
        """Returns what gives the weighted sum of the gradients at points, and F at each."""
        import keras

        network = _of_floats(self._network)

        def values(points: Any, target: Any) -> Any:
            return self._value(_listed(network(points, training=False)), target)

        if keras.backend.backend() == "tensorflow":
            return _tensorflow_gradients(values, self._shape)
        if keras.backend.backend() == "jax":
            return _jax_gradients(values)
        raise RuntimeError("explanations need the backend tensorflow or jax")

    def _value(self, outputs: list[Any], target: Any) -> Any:
        """Returns F of each row, shape (n,), as a tensor."""
        from keras import ops

        if self._task == "classifier":
            return ops.take(outputs[0], target, axis=1)
        x, out, mean, log_var = (ops.reshape(o, (_PASS + 1, -1)) for o in outputs)
        if self._likelihood == "bernoulli":
            error = ops.maximum(out, 0.0) - out * x + ops.log1p(ops.exp(-ops.abs(out)))
        else:
            error = 0.5 * ops.square(x - out) + 0.5 * math.log(2.0 * math.pi)
        kl = -0.5 * (1.0 + log_var - ops.square(mean) - ops.exp(log_var))
        return ops.sum(error, axis=1) + ops.sum(kl, axis=1)


def _of_floats(network: Any) -> Any:
    """Returns the same layers, weights shared, as a network of float32.

    One of uint8 rows casts what it gets to uint8 first, and no gradient passes that.
    """
    import keras

    rows = keras.Input(network.inputs[0].shape[1:], dtype="float32")
    inputs = keras.tree.map_structure(lambda _: rows, network.input)
    return keras.models.clone_model(network, inputs, clone_function=lambda layer: layer)


def _tensorflow_gradients(values: Any, shape: tuple[int, ...]) -> Callable[..., tuple[Any, Any]]:
    import tensorflow as tf

    @tf.function(  # type: ignore[untyped-decorator, unused-ignore]
        input_signature=[
            tf.TensorSpec([_PASS + 1, *shape], tf.float32),
            tf.TensorSpec([_PASS + 1], tf.float32),
            tf.TensorSpec([], tf.int32),
        ]
    )
    def gradients(points: Any, weights: Any, target: Any) -> tuple[Any, Any]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(points)
            found = values(points, target)
            total = tf.reduce_sum(weights * found)
        slopes = tape.gradient(total, points, unconnected_gradients="zero")
        return tf.reduce_sum(slopes, axis=0), found

    return gradients  # type: ignore[no-any-return, unused-ignore]


def _jax_gradients(values: Any) -> Callable[..., tuple[Any, Any]]:
    import jax

    def total(points: Any, weights: Any, target: Any) -> tuple[Any, Any]:
        found = values(points, target)
        return (weights * found).sum(), found

    @jax.jit  # type: ignore[untyped-decorator, unused-ignore]
    def gradients(points: Any, weights: Any, target: Any) -> tuple[Any, Any]:
        slopes, found = jax.grad(total, has_aux=True)(points, weights, target)
        return slopes.sum(axis=0), found

    return gradients  # type: ignore[no-any-return, unused-ignore]


def _load_pyfunc(data_path: str, model_config: Mapping[str, Any] | None = None) -> _Model:
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
    config = _Config.of(model_config)
    data = Path(data_path)
    podium = yaml.safe_load((data.parent / "MLmodel").read_text("utf-8"))["metadata"]["podium"]
    network = keras.saving.load_model(data / "model.keras", compile=False, safe_mode=True)
    return _Model(podium, network, config)


def _leave_no_bytecode() -> None:
    """Removes the __pycache__ that importing this file left in the model folder.

    The folder is checked and signed file by file, and bytecode is code that neither would know.
    """
    cached = globals().get("__cached__")
    if __name__.startswith("podium_scoring_") and cached:
        with contextlib.suppress(OSError):
            Path(cached).unlink(missing_ok=True)
            Path(cached).parent.rmdir()
