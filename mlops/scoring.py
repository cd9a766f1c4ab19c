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

What a caller did wrong is answered with one sentence: what was expected, and the first bad row, and
its column, where they are known. It never holds the caller's data, and never a stack trace.
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]

CHUNK_ROWS: Final = 1024
"""Most rows of one forward pass; more go through in turns, so that memory stays bounded."""

_log = logging.getLogger(__name__)


# Errors.


@functools.cache
def _error_type() -> type[Exception]:
    """Returns the exception that a scoring server answers word for word.

    MLflow's server writes the request into the `message` of an MlflowException, and answers any
    other exception with its stack trace. Made on first use, because mlflow takes seconds to import.
    """
    from mlflow.exceptions import MlflowException

    class ScoringError(MlflowException):  # type: ignore[misc, unused-ignore]
        def __init__(self, sentence: str, error_code: int) -> None:
            self._sentence = sentence
            super().__init__(sentence, error_code=error_code)

        @property
        def message(self) -> str:
            return self._sentence

        @message.setter
        def message(self, _: str) -> None:
            """Drops what the server would put in: it holds the request."""

        def serialize_as_json(self) -> str:
            return json.dumps({"error_code": self.error_code, "message": self._sentence})

    return ScoringError


class _BadInputError(ValueError):
    """What is wrong with the rows; `_Model.predict` adds what was expected."""


def _refuse(wrong: str, row: int | None = None) -> NoReturn:
    raise _BadInputError(wrong if row is None else f"row {row} {wrong}")


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
    _refuse("holds something else than text or numbers")


def _encode(cells: Any, n: int, columns: Sequence[Mapping[str, Any]]) -> npt.NDArray[np.float32]:
    """Encodes `cells`, which hold a Series or an array of n by the name of the column."""
    widths = [
        (1 if column["categories"] is None else len(column["categories"]))
        + (column["missing"] == "flagged")
        for column in columns
    ]
    features = np.zeros((n, sum(widths)), np.float32)
    start = 0
    for column, width in zip(columns, widths, strict=True):
        encode = _encode_numbers if column["categories"] is None else _encode_categories
        missing = encode(cells[column["name"]], column, features[:, start : start + width])
        if column["missing"] == "refused" and missing.any():
            _refuse(f"lacks a value in column {column['name']!r}", int(missing.argmax()))
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
        wrong = f"holds infinity or a number too large in column {column['name']!r}"
        _refuse(wrong, int(infinite.argmax()))
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
            _refuse(f"{err} in column {name!r}", row)
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
            _refuse(f"{err} in column {name!r}", int((codes == code).argmax()))
    return codes, names


def _can_factorize(cells: Any) -> bool:
    """Whether equal cells are the same category: among objects True is equal to 1."""
    import pandas as pd

    if cells.dtype != object:
        return True
    sort = pd.api.types.infer_dtype(cells, skipna=True)
    return sort == "string" or sort in _NUMBERS


# Rows in.


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

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.shape = tuple(spec["shape"])
        self.size = math.prod(self.shape)
        self.dtype = np.dtype(spec["dtype"]).newbyteorder("<")

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
        _refuse(f"the input is a {type(data).__name__}, which holds no rows")

    def _from_array(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if array.dtype.kind in "US" or (array.dtype.kind == "O" and _is_text_list(array)):
            if array.ndim != 1 or array.dtype.kind == "S":
                _refuse("the input holds text where numbers were expected")
            return self._from_text(array.tolist())
        if array.dtype.kind == "O":
            if array.ndim == 1 and len(array) and all(map(_is_nested, array)):
                return self._from_nested(list(array))
            array = _numbers(array)
        if array.dtype.kind not in "biuf":
            _refuse(f"the input holds {array.dtype.name} where numbers were expected")
        return self._cast(self._stacked(array))

    def _from_list(self, rows: Sequence[Any]) -> npt.NDArray[Any]:
        if rows and all(isinstance(row, (str, bytes)) for row in rows):
            return self._from_text(rows)
        if rows and all(isinstance(row, Mapping) for row in rows):
            import pandas as pd

            return self._from_frame(pd.DataFrame(_columns_of(rows)))
        try:
            array = np.asarray(rows)
        except (ValueError, TypeError, OverflowError):
            return self._from_nested(rows)
        return self._from_array(array)

    def _from_nested(self, rows: Sequence[Any]) -> npt.NDArray[Any]:
        """Rows that are lists or arrays of their own: names the first that is not as expected."""
        parsed = []
        for index, row in enumerate(rows):
            try:
                array = np.asarray(row)
            except (ValueError, TypeError, OverflowError):
                _refuse("is ragged, or not made of numbers", index)
            parsed.append(self._row(array, index))
        return self._cast(np.stack(parsed))

    def _from_text(self, rows: Sequence[str | bytes]) -> npt.NDArray[Any]:
        """Base64 strings, or raw bytes (a binary column of Parquet), one a row."""
        parsed = []
        for index, row in enumerate(rows):
            if isinstance(row, bytes):
                content = row
            elif isinstance(row, str):
                try:
                    content = base64.b64decode(row, validate=True)
                except ValueError:
                    _refuse("is text but not base64", index)
            else:
                _refuse("is not a base64 string", index)
            parsed.append(self._decoded(content, index))
        # One row is the usual request, and np.stack would copy it.
        return self._cast(np.stack(parsed) if len(parsed) > 1 else parsed[0][np.newaxis])

    def _from_columns(self, columns: Mapping[Any, Any]) -> npt.NDArray[Any]:
        _refuse("the input is a dictionary, but this model knows no column names")

    def _from_frame(self, frame: Any) -> npt.NDArray[Any]:
        if not len(frame):
            return self._no_rows()
        if frame.shape[1] == 1:
            rows = self._from_single(frame.iloc[:, 0].tolist())
            if rows is not None:
                return rows
        if frame.shape[1] != self.size:
            _refuse(f"the input has {frame.shape[1]} columns; expected {self.size}")
        array = frame.to_numpy()
        if array.dtype.kind not in "biuf":
            array = _numbers(array.astype(object))
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
            _refuse(f"has shape {array.shape}", index)
        return _checked_numbers(array, index).reshape(self.shape)

    def _decoded(self, content: bytes, index: int) -> npt.NDArray[Any]:
        """Returns the row that lies in bytes."""
        n_bytes = self.size * self.dtype.itemsize
        if len(content) != n_bytes:
            _refuse(f"decodes to {len(content)} bytes; expected {n_bytes}", index)
        return np.frombuffer(content, self.dtype).reshape(self.shape)

    def _stacked(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Returns an array of rows in (n, *shape)."""
        if array.shape == (0,):
            return self._no_rows()
        if array.ndim and array.shape[1:] in (self.shape, (self.size,)):
            return array.reshape(len(array), *self.shape)
        if array.shape == self.shape:
            _refuse("the input is one row without the batch axis; put it into a list")
        _refuse(f"the input has shape {array.shape}")

    def _cast(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Casts to the model's dtype; a number it cannot hold is refused, not wrapped."""
        if array.dtype == self.dtype and self.dtype.kind == "u":
            return array
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
            _refuse(wrong, int(np.unravel_index(good.argmin(), good.shape)[0]))


class _ImageRows(_Rows):
    """Images: those of uint8 may come as files."""

    @property
    def expected(self) -> str:
        return super().expected + (", or PNG or JPEG files" if self.dtype.kind == "u" else "")

    def _decoded(self, content: bytes, index: int) -> npt.NDArray[Any]:
        is_jpeg = content.startswith(_JPEG) and content.endswith(b"\xff\xd9")
        if not is_jpeg and not content.startswith(_PNG):
            return super()._decoded(content, index)
        if self.dtype.kind != "u":
            _refuse("is a PNG or JPEG file, but this model takes raw values only", index)
        height, width, channels = self.shape
        try:
            return decode_picture(content, (height, width, channels))
        except ValueError as err:
            _refuse(str(err), index)


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
        padded: npt.NDArray[Any] = self._padded(_checked_numbers(array, index)[None], index)[0]
        return padded

    def _decoded(self, content: bytes, index: int) -> npt.NDArray[Any]:
        n_bytes = self.features * self.dtype.itemsize
        if len(content) % n_bytes:
            _refuse(f"decodes to {len(content)} bytes; expected a multiple of {n_bytes}", index)
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
            _refuse(f"has {n_steps} steps; expected 1 to {self.time}", index)
        padded = np.empty((n, *self.shape), np.result_type(steps, self.padding))
        padded[:, :n_steps, :-1] = steps
        padded[:, :n_steps, -1] = 1
        padded[:, n_steps:] = self.padding
        return padded


class _TableRows(_Rows):
    """Tables with columns: cells by name in any order or by position, or features."""

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

    def _from_array(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        is_features = array.dtype.kind in "biuf" and self.is_plain
        is_wrong = array.dtype.kind == "U" and not self.has_categories
        if array.ndim != 2 or array.shape[1] != len(self.names) or is_features or is_wrong:
            return super()._from_array(array)
        return self._from_cells(self.names, list(map(_flat, array.T)))

    def _from_list(self, rows: Sequence[Any]) -> npt.NDArray[Any]:
        if rows and all(isinstance(row, Mapping) for row in rows):
            return self._from_columns(_columns_of(rows))
        if rows and not self.is_plain and all(isinstance(row, (list, tuple)) for row in rows):
            return self._from_nested(rows)  # an array would make text of numbers beside text
        return super()._from_list(rows)

    def _from_nested(self, rows: Sequence[Any]) -> npt.NDArray[Any]:
        width = len(self.names)
        is_row = [_is_nested(row) and len(row) == width for row in rows]
        if self.is_plain or not any(is_row):
            return super()._from_nested(rows)
        if not all(is_row):
            _refuse(f"is not a list of {width} cells", is_row.index(False))
        cells = [_objects((row[i] for row in rows), len(rows)) for i in range(width)]
        return self._from_cells(self.names, cells)

    def _from_columns(self, columns: Mapping[Any, Any]) -> npt.NDArray[Any]:
        if not all(_is_nested(values) for values in columns.values()):
            _refuse("the input's columns are not lists")
        if len(columns) == 1 and not columns.keys() <= set(self.names):
            ((_, values),) = columns.items()
            rows = self._from_single(list(values))
            if rows is not None:
                return rows
        cells = list(map(_flat, columns.values()))
        shapes = {values.shape for values in cells}
        if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
            _refuse("the input's columns are not flat lists of one length")
        if shapes <= {(0,)}:
            return self._no_rows()
        return self._from_cells(list(columns), cells)

    def _from_frame(self, frame: Any) -> npt.NDArray[Any]:
        if not len(frame):
            return self._no_rows()
        names = list(frame.columns)
        if names == list(range(len(names))):  # no names at all
            if len(names) in (1, self.size) and len(names) != len(self.names):
                return super()._from_frame(frame)
            if len(names) != len(self.names):
                _refuse(f"the input has {len(names)} columns; expected {len(self.names)}")
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
                self._refuse_first(~np.isnan(array), "lacks a value")
                return self._cast(array)
        return self._from_cells(names, [cells for _, cells in frame.items()])

    def _from_cells(self, names: Sequence[Any], cells: Sequence[Any]) -> npt.NDArray[Any]:
        """Encodes columns, each a Series or a flat array."""
        self._check_names(names)
        found = dict(zip(names, cells, strict=True))
        for column in self.columns:
            values = found[column["name"]]
            if isinstance(values, np.ndarray) and values.dtype.kind == "U":
                found[column["name"]] = _as_said(values, column)
            elif isinstance(values, np.ndarray) and values.dtype.kind not in "biufO":
                _refuse(f"column {column['name']!r} holds {values.dtype.name}")
        return self._cast(_encode(found, len(cells[0]), self.columns))

    def _check_names(self, names: Sequence[Any]) -> None:
        own, given = set(self.names), set(names)
        missing = [repr(name) for name in self.names if name not in given]
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            are = "columns {} are" if len(missing) > 1 else "column {} is"
            _refuse(f"{are.format(', '.join(missing[:5]) + more)} missing")
        for name in names:
            if name not in own:
                # Only when all others are there: the "names" of a CSV without a header are data.
                _refuse(f"column {str(name)[:40]!r} is not one of this model's")
        if len(names) != len(self.names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            _refuse(f"column {twice!r} is there twice")

    def _refuse_first(self, good: npt.NDArray[np.bool_], wrong: str) -> None:
        if not self.is_plain or good.all():
            super()._refuse_first(good, wrong)
            return
        row, column = np.unravel_index(good.argmin(), good.shape)
        _refuse(f"{wrong} in column {self.names[column]!r}", int(row))


def _is_nested(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _is_text_list(array: npt.NDArray[Any]) -> bool:
    return array.ndim == 1 and len(array) > 0 and isinstance(array[0], (str, bytes))


def _columns_of(records: Sequence[Mapping[Any, Any]]) -> dict[Any, npt.NDArray[Any]]:
    """Returns records as columns; a cell that only some records have is None in the others."""
    names = dict.fromkeys(name for record in records for name in record)
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


def _checked_numbers(row: npt.NDArray[Any], index: int) -> npt.NDArray[Any]:
    if row.dtype.kind == "O":
        return _numbers(row, index)
    if row.dtype.kind not in "biuf":
        _refuse("holds something else than numbers", index)
    return row


def _numbers(array: npt.NDArray[Any], row: int | None = None) -> npt.NDArray[np.float64]:
    """Casts an object array of plain numbers; names the row that holds anything else."""
    result = np.empty(array.shape, np.float64)
    for index, value in np.ndenumerate(array):
        plain = value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
        try:
            result[index] = _number(plain)
        except _BadInputError as err:
            _refuse(str(err), row if row is not None else index[0] if index else None)
    return result


def _number(value: Any) -> float:
    """Returns a plain number as a float; text that says a number is none."""
    if value is None:
        _refuse("holds null")
    if isinstance(value, (str, bytes)):
        _refuse("holds text where a number was expected")
    if not isinstance(value, (numbers.Real, np.bool_, decimal.Decimal)):
        _refuse("holds something else than numbers")
    try:
        return float(value)
    except (OverflowError, ValueError, TypeError):
        _refuse("holds a number too large")


# Answers out.


class _Model:
    """A packaged network that answers MLflow's `predict`. Safe to call from many threads."""

    def __init__(self, podium: Mapping[str, Any], forward: Callable[[Any], list[Any]]) -> None:
        self._task = podium["task"]
        self._class_names = list(podium["class_names"])
        self._likelihood = podium["likelihood"]
        self._rows = _rows_for(podium["input"])
        self._forward = forward

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Scores rows.

        Args:
            model_input: n rows in any form that the module's docstring lists.
            params: `{"labels": True}` makes a classifier answer label names too.

        Returns:
            Classifier: probabilities, float32 of shape (n, classes); with labels a list of n
            `{"label", "probabilities"}`. VAE: a list of n `{"reconstruction_error", "kl",
            "anomaly_score"}` in nats; the score is the sum of the two, the negative ELBO at the
            posterior's mean.

        Raises:
            MlflowException: One sentence on what is wrong (HTTP 400), or that the model failed
                (HTTP 500).
        """
        from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE

        error = _error_type()
        try:
            labels = _labels(params)
            rows = self._rows.parse(model_input)
            return self._answer(rows, labels)
        except _BadInputError as err:
            sentence = f"The input cannot be scored: {err}; expected {self._rows.expected}."
            raise error(sentence, INVALID_PARAMETER_VALUE) from None
        except Exception as err:
            # The type only: the text of a vendor's error may hold rows.
            _log.error("scoring failed: %s", type(err).__name__)
            sentence = f"The model could not score this input; expected {self._rows.expected}."
            raise error(sentence, INTERNAL_ERROR) from err

    def _answer(self, rows: npt.NDArray[Any], labels: bool) -> Any:
        chunks = range(0, len(rows), CHUNK_ROWS)
        parts = [self._score(rows[start : start + CHUNK_ROWS]) for start in chunks]
        if not parts:
            parts = [np.empty((0, len(self._class_names) if self._task == "classifier" else 3))]
        scores = np.concatenate(parts)
        finite = np.isfinite(scores).all(axis=1)
        if not finite.all():
            _refuse("gives no finite answer: its numbers are too large", int(np.argmin(finite)))
        if self._task == "vae":
            names = ("reconstruction_error", "kl", "anomaly_score")
            return [dict(zip(names, row, strict=True)) for row in scores.tolist()]
        scores = scores.astype(np.float32, copy=False)
        if not labels:
            return scores
        return [
            {"label": self._class_names[best], "probabilities": row}
            for best, row in zip(scores.argmax(axis=1).tolist(), scores.tolist(), strict=True)
        ]

    def _score(self, rows: npt.NDArray[Any]) -> Floats:
        outputs = [np.asarray(output) for output in self._forward(rows)]
        if self._task == "classifier":
            return outputs[0]
        x, reconstruction, z_mean, z_log_var = outputs
        with np.errstate(all="ignore"):  # what overflows is found, and refused, as not finite
            error = reconstruction_error(x, reconstruction, self._likelihood)
            kl = gaussian_kl(z_mean, z_log_var)
            return np.stack([error, kl, error + kl], axis=1)


def _labels(params: Mapping[str, Any] | None) -> bool:
    # MLflow judges params by the signature first: it drops unknown ones with a line in its log, and
    # answers a `labels` of another type itself. This is for who calls the model without MLflow.
    params = {} if params is None else params
    if not isinstance(params, Mapping) or set(params) - {"labels"}:
        _refuse("params hold something else than labels (true or false)")
    labels = params.get("labels", False)
    if not isinstance(labels, (bool, np.bool_)):
        _refuse("the parameter labels is neither true nor false")
    return bool(labels)


def _compile(network: Any, shape: Sequence[int], dtype: str) -> Callable[[Any], list[Any]]:
    """Returns the forward pass, warmed with one row, so that no request waits for a trace."""
    import keras

    def outputs(rows: Any) -> list[Any]:
        result = network(rows, training=False)
        return list(result) if isinstance(result, (list, tuple)) else [result]

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # Not jit_compile: XLA was 2 to 4 times slower for small networks on a CPU.
        signature = [tf.TensorSpec([None, *shape], dtype)]
        forward: Callable[[Any], list[Any]] = tf.function(outputs, input_signature=signature)
    else:

        def forward(rows: Any) -> list[Any]:
            return [keras.ops.convert_to_numpy(output) for output in outputs(rows)]

    forward(np.zeros((1, *shape), dtype))
    return forward


def _load_pyfunc(data_path: str) -> _Model:
    """Loads the model; MLflow calls this. Checks nothing: `load_model` of mlops/packaging.py does.

    Args:
        data_path: The folder that holds model.keras; MLmodel lies beside it.
    """
    import keras
    import yaml

    _leave_no_bytecode()
    data = Path(data_path)
    podium = yaml.safe_load((data.parent / "MLmodel").read_text("utf-8"))["metadata"]["podium"]
    network = keras.saving.load_model(data / "model.keras", compile=False, safe_mode=True)
    spec = podium["input"]
    return _Model(podium, _compile(network, spec["shape"], spec["dtype"]))


def _leave_no_bytecode() -> None:
    """Removes the __pycache__ that importing this file left in the model folder.

    The folder is checked and signed file by file, and bytecode is code that neither would know.
    """
    cached = globals().get("__cached__")
    if __name__.startswith("podium_scoring_") and cached:
        with contextlib.suppress(OSError):
            Path(cached).unlink(missing_ok=True)
            Path(cached).parent.rmdir()
