"""Asks a scoring server for predictions: numpy in, numpy out, base64 on the wire.

Needs neither Keras nor MLflow. Each thread keeps the connection to the server that it asked last,
because a new one takes longer than a small network's answer. Proxies of the environment are not
used.
"""

from __future__ import annotations

import base64
import functools
import http.client
import json
import os
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

import numpy as np
import numpy.typing as npt

from mlops.errors import MlopsError

FIRST_WAIT_S: Final = 0.1
"""How long after the first failure to try again; twice as long after each further one."""

_SCHEMES: Final = ("http", "https")
_open = threading.local()


class PredictionError(MlopsError):
    """The server refused the rows, or could not be reached.

    Attributes:
        status: Of HTTP; None where there was no answer.
        code: What is wrong in one word, as `mlops.scoring` lists them; None where the answer
            names none.
        field: Where, as `rows[3]` or `rows[3].age`; None where that is not known.
    """

    def __init__(
        self, message: str, status: int | None = None, code: str | None = None, field: Any = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.field = field


def predict(
    url: str,
    array: npt.ArrayLike | Sequence[npt.ArrayLike],
    *,
    labels: bool = False,
    explain: bool = False,
    timeout_s: float = 30.0,
    retries: int = 3,
    headers: Mapping[str, str] | None = None,
    cafile: str | os.PathLike[str] | None = None,
) -> Any:
    """Returns the server's answer to each row of `array`.

    A classifier's probabilities are float32 of shape (n, classes). With `labels` or `explain`, and
    of a VAE, it is a list of n dictionaries; `predict` of a packaged model says what they hold.

    Args:
        url: Of the server, as http://127.0.0.1:5001; `/invocations` may follow.
        array: Rows of shape (n, ...), or n arrays of unequal length. uint8 and float32 are sent as
            they are: take the dtype that the model was trained on. Others are sent as float32.
        labels: Whether to answer names of classes.
        explain: Whether to answer integrated gradients; of 64 rows at most.
        timeout_s: How long to wait for the server to take the request, and then for its answer.
        retries: How often to try again where the connection fails. Asking twice does no harm. What
            the server did answer, or is slow to answer, is not asked again.
        headers: To send besides, as {"Authorization": "Bearer ..."}.
        cafile: Certificates (PEM) of the authorities that may vouch for an https:// server; by
            default the system's.

    Raises:
        PredictionError: The server refused the request, or there is no answer.
        ValueError: `url` or `cafile` is none, `array` holds no rows of numbers, or numbers that
            change when they become float32.

    Example:
        >>> predict("http://127.0.0.1:5001", x_test[:2])  # doctest: +SKIP
        array([[0.98, 0.02], [0.11, 0.89]], dtype=float32)
    """
    server = _server(url)
    # tobytes is in C order, whatever the array's own is.
    texts = [base64.b64encode(row.tobytes()).decode("ascii") for row in _rows(array)]
    params = {"labels": True} if labels else {}
    params |= {"explain": True} if explain else {}
    body = json.dumps({"inputs": texts, **({"params": params} if params else {})}).encode()
    sent = {"Content-Type": "application/json", **(headers or {})}
    connect = functools.partial(
        _connection, server, None if cafile is None else os.fspath(cafile), timeout_s
    )
    status, content = _asked(server, body, sent, timeout_s, retries, connect)
    return _answer(_place(server), status, content)


def _server(url: str) -> SplitResult:
    # Without the URL, and without Python's own words for it: it may hold a password.
    wrong = "no server's URL; expected http://HOST:PORT."
    try:
        parts = urlsplit(url)
        _ = parts.port  # read now: only this checks it
    except ValueError:
        raise ValueError(wrong) from None
    if parts.scheme not in _SCHEMES or not parts.hostname:
        raise ValueError(wrong)
    path = parts.path.rstrip("/")
    return parts._replace(path=path if path.endswith("/invocations") else f"{path}/invocations")


def _place(server: SplitResult) -> str:
    """Returns the host and the port; not the URL's user and password."""
    return server.netloc.rpartition("@")[2]


def _rows(array: Any) -> Sequence[npt.NDArray[Any]]:
    if isinstance(array, (list, tuple)) and all(isinstance(row, np.ndarray) for row in array):
        return [_as_sent(row) for row in array]
    rows = np.asarray(array)
    if rows.ndim < 2:
        raise ValueError(f"no rows; expected an array of shape (n, ...), got {rows.shape}.")
    return list(_as_sent(rows))


def _as_sent(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns the same numbers as little-endian uint8 or float32."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "iuf":
        raise ValueError(f"not numbers; expected uint8 or float32, got {array.dtype}.")
    with np.errstate(over="ignore"):
        cast = array.astype("<f4", copy=False)
    if not np.array_equal(cast.astype(array.dtype, copy=False), array, equal_nan=True):
        raise ValueError(
            f"{array.dtype} numbers that change when they become float32, which is what is sent; "
            "cast them with .astype(numpy.float32) if that does not matter."
        )
    return cast


def _asked(
    server: SplitResult,
    body: bytes,
    headers: Mapping[str, str],
    timeout_s: float,
    retries: int,
    connect: Callable[[], http.client.HTTPConnection],
) -> tuple[int, bytes]:
    """Returns the status and the content of the answer."""
    failures = 0
    while True:
        connection = connect()
        was_open = connection.sock is not None
        try:
            connection.request("POST", _target(server), body, dict(headers))
            response = connection.getresponse()
            return response.status, response.read()
        except TimeoutError as err:
            connection.close()
            raise PredictionError(f"{_place(server)} gave no answer in {timeout_s} s.") from err
        except ssl.SSLCertVerificationError as err:
            connection.close()
            raise PredictionError(
                f"{_place(server)} has a certificate that nobody vouches for here "
                f"({err.verify_message}). Name the authority's by cafile."
            ) from err
        except (OSError, http.client.HTTPException) as err:
            connection.close()
            if was_open:  # servers close what is idle for seconds: that is no failure
                continue
            if failures >= retries:
                wrong = str(err) or type(err).__name__
                raise PredictionError(f"{_place(server)} cannot be reached: {wrong}.") from err
        time.sleep(FIRST_WAIT_S * 2**failures)
        failures += 1


def _target(server: SplitResult) -> str:
    return f"{server.path}?{server.query}" if server.query else server.path


class _Kept:
    """A connection that is closed with the thread that it belongs to."""

    def __init__(self, key: tuple[Any, ...], connection: http.client.HTTPConnection) -> None:
        self.key = key
        self.connection = connection

    def __del__(self) -> None:
        self.connection.close()


def _connection(
    server: SplitResult, cafile: str | None, timeout_s: float
) -> http.client.HTTPConnection:
    """Returns this thread's connection to the server; it opens itself where it is closed."""
    # By process too: a forked one must not speak on its parent's.
    key = (os.getpid(), server.scheme, server.netloc, cafile)
    kept: _Kept | None = getattr(_open, "kept", None)
    if kept is None or kept.key != key:
        kept = _Kept(key, _closed_connection(server, cafile))
        _open.kept = kept
    kept.connection.timeout = timeout_s
    if kept.connection.sock is not None:
        kept.connection.sock.settimeout(timeout_s)
    return kept.connection


def _closed_connection(server: SplitResult, cafile: str | None) -> http.client.HTTPConnection:
    host = server.hostname or ""
    if server.scheme == "http":
        return http.client.HTTPConnection(host, server.port)
    try:
        context = ssl.create_default_context(cafile=cafile)
    except OSError as err:  # no such file, or no certificate in it
        raise ValueError(f"{cafile!r} holds no certificates: {err.strerror or err}.") from err
    return http.client.HTTPSConnection(host, server.port, context=context)


def _answer(place: str, status: int, content: bytes) -> Any:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if status != 200:
        raise _refused(place, status, value if isinstance(value, dict) else {})
    predictions = value.get("predictions") if isinstance(value, dict) else None
    if _are_all(predictions, dict):
        return predictions
    array = _probabilities(predictions)
    if array is None:
        raise PredictionError(f"{place} answered something else than predictions.", status)
    return array


def _are_all(values: Any, *types: type) -> bool:
    return isinstance(values, list) and len(values) > 0 and set(map(type, values)) <= set(types)


def _probabilities(rows: Any) -> npt.NDArray[np.float32] | None:
    """Returns lists of numbers of one length as an array (n, classes); None of anything else."""
    if not _are_all(rows, list) or len(set(map(len, rows))) > 1:
        return None
    if not all(_are_all(row, int, float) for row in rows):
        return None
    try:
        with np.errstate(over="ignore"):
            return np.asarray(rows, np.float32)
    except OverflowError:
        return None


def _refused(place: str, status: int, error: Mapping[str, Any]) -> PredictionError:
    # MLflow's own errors call it error_code.
    code = error.get("code", error.get("error_code"))
    message = error.get("message") or f"{place} answered with status {status}."
    return PredictionError(str(message), status, code, error.get("field"))
