"""The runtime that travels inside every packaged model: parse, check, compiled forward, answer.

A byte-for-byte copy of this file lies in the model folder as `code/podium_scoring_<sha12>.py` and
is what `mlflow models serve` runs, so it imports nothing of Podium's. The name holds the content,
so that two versions of it live in one process side by side.

A request is rows, in any of these forms; each gives the same answer:

- nested lists `(n, *shape)`, or flattened `(n, prod(shape))` in C order;
- base64: one string a row, the row's raw little-endian bytes in the model's dtype, C order;
- a DataFrame (`dataframe_split`, `dataframe_records`, CSV, Parquet): by column name where the
  model knows its columns, else by position; or one column of base64 strings, of raw bytes, or of
  nested lists;
- in Python also numpy arrays.

What a caller did wrong is answered with one sentence: the expected shape and dtype, and the first
bad row where it is known. It never holds the caller's data, and never a stack trace.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import json
import logging
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]

CHUNK_ROWS: Final = 1024
"""Most rows of one forward pass; more go through in turns, so that memory stays bounded."""

_log = logging.getLogger(__name__)


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


class _BadInputError(Exception):
    """What is wrong with the rows; `_Model.predict` adds what was expected."""


def _refuse(wrong: str, row: int | None = None) -> NoReturn:
    raise _BadInputError(wrong if row is None else f"row {row} {wrong}")


# Tables with columns.


def encode_table(frame: Any, columns: Sequence[Mapping[str, Any]]) -> npt.NDArray[np.float32]:
    """Returns the features that a network sees of a table, shape (n, features).

    Training uses this very function, so that a model is asked what it was trained on.

    Args:
        frame: A DataFrame that has all of `columns`, in any order; others are not looked at.
        columns: As `InputSpec.to_json` gives them: name, categories, missing, fill.

    Raises:
        _BadInputError: A cell holds what its column cannot; names the column and the row.
    """
    n = len(frame)
    features: list[Any] = []
    for column in columns:
        series, name = frame[column["name"]], column["name"]
        missing = np.asarray(series.isna().to_numpy(), bool)
        if missing.any() and column["missing"] == "refused":
            _refuse(f"lacks a value in column {name!r}", int(missing.argmax()))
        if column["categories"] is None:
            values = np.full(n, column["fill"] or 0.0)
            values[~missing] = _column_numbers(series[~missing], name)
            features.append(values)
        else:
            codes = _column_codes(series, column["categories"], name)
            features += [codes == code for code in range(len(column["categories"]))]
        if column["missing"] == "flagged":
            features.append(missing)
    with np.errstate(over="ignore"):
        return (
            np.column_stack(features).astype(np.float32)
            if n
            else np.empty((0, len(features)), np.float32)
        )


def _column_numbers(series: Any, name: str) -> npt.NDArray[np.float64]:
    """Numbers of a column without missing values."""
    array = series.to_numpy()
    if array.dtype.kind not in "biuf":
        array = _numbers(array.astype(object))
    return np.asarray(array, np.float64)


def _column_codes(series: Any, categories: Sequence[str], name: str) -> npt.NDArray[np.int64]:
    """Index of each row's category; -1 where it is missing or none of `categories`."""
    import pandas as pd

    known = {category: code for code, category in enumerate(categories)}
    codes, uniques = pd.factorize(series)
    found = np.array([*(known.get(category_name(value), -1) for value in uniques), -1])
    return found[codes]  # factorize says -1 for missing: the last


def category_name(value: Any) -> str:
    """Returns the name of a category: text as it is, a whole number without a point."""
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value))
    if isinstance(value, numbers.Real):
        return str(int(value)) if float(value).is_integer() else repr(float(value))
    _refuse("holds something else than text or numbers where a category was expected")


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
    if picture.has_transparency_data:
        return picture.convert("RGBA")
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB")


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


# Rows in.


class _Rows:
    """Turns any form of a request into one checked array of shape (n, *shape)."""

    def __init__(self, shape: Sequence[int], dtype: str, columns: Sequence[str] | None) -> None:
        self.shape = tuple(shape)
        self.size = math.prod(self.shape)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.columns = list(columns) if columns is not None else None

    @property
    def expected(self) -> str:
        """The shape and dtype, and the columns where they are few, for the end of a sentence."""
        words = f"{self.dtype.name} of shape (n, {', '.join(map(str, self.shape))})"
        if self.columns is not None and len(self.columns) <= 20:
            words += f" with columns {', '.join(self.columns)}"
        return words

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
            if array.ndim == 1 and len(array) and all(np.ndim(row) for row in array):
                return self._from_nested(list(array))
            array = _numbers(array)
        if array.dtype.kind not in "biuf":
            _refuse(f"the input holds {array.dtype.name} where numbers were expected")
        return self._cast(self._reshape(array))

    def _from_list(self, rows: Sequence[Any]) -> npt.NDArray[Any]:
        if rows and all(isinstance(row, (str, bytes)) for row in rows):
            return self._from_text(rows)
        if rows and all(isinstance(row, Mapping) for row in rows):
            import pandas as pd

            return self._from_frame(pd.DataFrame([dict(row) for row in rows]))
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
            if array.shape != self.shape and array.shape != (self.size,):
                _refuse(f"has shape {array.shape}", index)
            if array.dtype.kind == "O":
                array = _numbers(array, index)
            if array.dtype.kind not in "biuf":
                _refuse("holds something else than numbers", index)
            parsed.append(array.reshape(self.shape))
        return self._cast(np.stack(parsed))

    def _from_text(self, rows: Sequence[str | bytes]) -> npt.NDArray[Any]:
        """Base64 strings, or raw bytes (a binary column of Parquet), one a row."""
        n_bytes = self.size * self.dtype.itemsize
        raw = bytearray()
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
            if len(content) != n_bytes:
                _refuse(f"decodes to {len(content)} bytes; expected {n_bytes}", index)
            raw += content
        array = np.frombuffer(raw, dtype=self.dtype).reshape(len(rows), *self.shape)
        return self._cast(array)

    def _from_columns(self, columns: Mapping[Any, Any]) -> npt.NDArray[Any]:
        import pandas as pd

        if self.columns is None:
            _refuse("the input is a dictionary, but this model knows no column names")
        try:
            frame = pd.DataFrame({name: np.asarray(values) for name, values in columns.items()})
        except (ValueError, TypeError):
            _refuse("the input's columns are not flat lists of one length")
        return self._from_frame(frame)

    def _from_frame(self, frame: Any) -> npt.NDArray[Any]:
        if not len(frame):
            return np.empty((0, *self.shape), self.dtype)
        if frame.shape[1] == 1:
            column = frame.iloc[:, 0]
            if column.dtype.kind == "O" or str(column.dtype) in ("str", "string"):
                rows = column.tolist()
                if any(isinstance(row, (str, bytes)) for row in rows):
                    return self._from_text(rows)
                if any(isinstance(row, (list, tuple, np.ndarray)) for row in rows):
                    return self._from_nested(rows)
        names = list(frame.columns)
        positional = names == list(range(len(names)))
        if self.columns is not None and not positional:
            frame = frame[self._in_order(names)]
        elif len(names) != self.size:
            _refuse(f"the input has {len(names)} columns; expected {self.size}")
        array = frame.to_numpy()
        if array.dtype.kind not in "biuf":
            array = _numbers(array.astype(object))
        return self._cast(array.reshape(len(array), *self.shape))

    def _in_order(self, names: list[Any]) -> list[str]:
        assert self.columns is not None
        missing = [name for name in self.columns if name not in names]
        extra = [name for name in names if name not in self.columns]
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            _refuse(f"column {', '.join(missing[:5])}{more} is missing")
        if extra:
            # Named only when all others are there: the "names" of a CSV without a header are data.
            _refuse(f"column {str(extra[0])[:40]!r} is not one of this model's")
        if len(names) != len(self.columns):
            _refuse("a column is there twice")
        return self.columns

    def _reshape(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if array.shape == (0,):
            return np.empty((0, *self.shape), self.dtype)
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
            _first_bad(good, "holds a value that is not a whole number from 0 to 255")
            return array.astype(self.dtype)
        with np.errstate(over="ignore"):
            cast = array.astype(self.dtype, copy=False)
        if not np.isfinite(cast).all():
            _first_bad(np.isfinite(cast), "holds NaN, infinity or a number too large")
        return cast


def _is_text_list(array: npt.NDArray[Any]) -> bool:
    return array.ndim == 1 and len(array) > 0 and isinstance(array[0], (str, bytes))


def _numbers(array: npt.NDArray[Any], row: int | None = None) -> npt.NDArray[np.float64]:
    """Casts an object array of plain numbers; names the row that holds anything else."""
    result = np.empty(array.shape, np.float64)
    for index, value in np.ndenumerate(array):
        plain = value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
        at = row if row is not None else index[0] if index else None
        if plain is None:
            _refuse("holds null", at)
        if not isinstance(plain, (numbers.Real, np.bool_)):
            _refuse("holds something else than numbers", at)
        try:
            result[index] = float(plain)
        except (OverflowError, ValueError, TypeError):
            _refuse("holds a number too large", at)
    return result


def _first_bad(good: npt.NDArray[np.bool_], wrong: str) -> None:
    rows = good.reshape(len(good), math.prod(good.shape[1:])).all(axis=1)
    if not rows.all():
        _refuse(wrong, int(np.argmin(rows)))


# Answers out.


class _Model:
    """A packaged network that answers MLflow's `predict`. Safe to call from many threads."""

    def __init__(self, podium: Mapping[str, Any], forward: Callable[[Any], list[Any]]) -> None:
        self._task = podium["task"]
        self._class_names = list(podium["class_names"])
        self._likelihood = podium["likelihood"]
        spec = podium["input"]
        self._rows = _Rows(spec["shape"], spec["dtype"], spec["columns"])
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
