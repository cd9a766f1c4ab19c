from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops.client import PredictionError, predict
from mlops.team.certificates import certificate_of, make_authority, make_certificate

Answer = Callable[[dict[str, Any]], tuple[int, Any]]


class Server:
    """A scoring server over real HTTP that answers as it is told, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.connections = 0
        self.drops = 0  # how many requests to hang up on
        self.answer: Answer = lambda body: (200, {"predictions": [[0.25, 0.75]]})
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                server.connections += 1
                super().setup()

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.asked.append((self.path, dict(self.headers), body))
                if server.drops:
                    server.drops -= 1
                    self.close_connection = True
                    return
                status, value = server.answer(body)
                content = value if isinstance(value, bytes) else json.dumps(value).encode()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.send_response(status)
                    self.send_header("content-length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def rows(self, dtype: str) -> list[list[float]]:
        """The rows of the last request, as numbers again."""
        texts = self.asked[-1][2]["inputs"]
        return [np.frombuffer(base64.b64decode(text), dtype).tolist() for text in texts]


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    thread = threading.Thread(target=one.http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield one
    one.http.shutdown()
    one.http.server_close()


def test_rows_go_as_base64_and_probabilities_come_as_an_array(server: Server) -> None:
    for url in (server.url, server.url + "/", server.url + "/invocations"):
        answer = predict(url, np.array([[1.5, 2.0]], np.float32))
        assert answer.dtype == np.float32 and answer.tolist() == [[0.25, 0.75]]
        path, headers, body = server.asked[-1]
        assert path == "/invocations" and set(body) == {"inputs"}
        assert headers["Content-Type"] == "application/json"
        assert server.rows("<f4") == [[1.5, 2.0]]


@pytest.mark.parametrize(
    ("array", "dtype", "rows"),
    [
        (np.array([[0, 255], [3, 4]], np.uint8), "u1", [[0, 255], [3, 4]]),
        (np.array([[1, -2]]), "<f4", [[1.0, -2.0]]),
        (np.array([[0.5, 3.0]]), "<f4", [[0.5, 3.0]]),
        (np.array([[1.5]], ">f4"), "<f4", [[1.5]]),
        (np.array([[1.5, 2.0]], np.float16), "<f4", [[1.5, 2.0]]),
        ([[1, 2], [3, 4]], "<f4", [[1.0, 2.0], [3.0, 4.0]]),
        (np.array([[[1, 2], [3, 4]]], np.uint8).transpose(0, 2, 1), "u1", [[1, 3, 2, 4]]),
        ([np.zeros((1, 2)), np.ones((2, 2))], "<f4", [[0.0] * 2, [1.0] * 4]),
    ],
)
def test_numbers_arrive_as_they_are(
    server: Server, array: Any, dtype: str, rows: list[list[float]]
) -> None:
    predict(server.url, array)
    assert server.rows(dtype) == rows


def test_nan_is_sent_for_the_server_to_refuse(server: Server) -> None:
    predict(server.url, np.array([[np.nan, np.inf]]))
    assert np.isnan(server.rows("<f4")[0][0])


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.array([[0.1]]), "float64 numbers that change when they become float32"),
        (np.array([[1e300]]), "change when they become float32"),
        (np.array([[2**24 + 1]]), "int64 numbers that change"),
        (np.array([[True]]), "not numbers; expected uint8 or float32, got bool"),
        (np.array([["a"]]), "not numbers"),
        (np.zeros(3, np.float32), r"no rows; expected an array of shape \(n, ...\), got \(3,\)"),
        (np.float32(1), "no rows"),
    ],
)
def test_what_would_not_arrive_as_it_is_is_not_sent(
    server: Server, array: Any, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        predict(server.url, array)
    assert server.asked == []


@pytest.mark.parametrize("url", ["127.0.0.1:5001", "ftp://host", "http://", ""])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="no server's URL; expected http://HOST:PORT"):
        predict(url, np.zeros((1, 2), np.float32))


@pytest.mark.parametrize(
    "url", ["ftp://me:secret@host", "http://me:sec/ret@host", "http://me:secret@host:port"]
)
def test_no_password_is_repeated_of_a_url_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="no server's URL; expected") as caught:
        predict(url, np.zeros((1, 2), np.float32))
    trace = "".join(traceback.format_exception_only(caught.value))
    assert "sec" not in trace and caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_no_password_of_the_url_is_repeated(server: Server) -> None:
    rows = np.zeros((1, 2), np.float32)
    place = server.url.removeprefix("http://")
    url = f"http://me:secret@{place}"
    said = []
    for status, value in ((200, b"x"), (502, b"")):
        server.answer = lambda body, status=status, value=value: (status, value)  # type: ignore[misc]
        with pytest.raises(PredictionError) as caught:
            predict(url, rows)
        said.append(str(caught.value))
    server.drops = 5
    with pytest.raises(PredictionError) as caught:
        predict(url, rows, retries=0)
    said.append(str(caught.value))
    for sentence in said:
        assert "secret" not in sentence and place in sentence


def test_labels_explanations_and_headers_are_asked_for(server: Server) -> None:
    found = [{"label": "a", "probabilities": [1.0], "attributions": [0.5]}]
    server.answer = lambda body: (200, {"predictions": found})
    rows = np.zeros((1, 2), np.float32)
    answer = predict(server.url, rows, labels=True, explain=True, headers={"X-Who": "me"})
    assert answer == found
    _, headers, body = server.asked[-1]
    assert body["params"] == {"labels": True, "explain": True}
    assert headers["X-Who"] == "me"
    predict(server.url, rows, labels=True)
    assert server.asked[-1][2]["params"] == {"labels": True}


@pytest.mark.parametrize(
    ("status", "value", "code", "field", "message"),
    [
        (
            400,
            {"code": "ragged", "message": "Row 3 is short.", "field": "rows[3]"},
            "ragged",
            "rows[3]",
            "Row 3 is short.",
        ),
        (503, {"code": "overloaded", "message": "Busy.", "field": None}, "overloaded", None, "Bus"),
        (400, {"error_code": "BAD_REQUEST", "message": "No."}, "BAD_REQUEST", None, "No."),
        (502, b"<html>Bad gateway</html>", None, None, "answered with status 502"),
        (302, b"", None, None, "answered with status 302"),
        (200, b"<html>", None, None, "something else than predictions"),
        *(
            (200, {"predictions": value}, None, None, "something else than predictions")
            for value in (
                None,
                {},
                {"a": 1},
                "x",
                [],
                1.5,
                [None],
                ["x"],
                [["x"]],
                [["0.5"]],
                [[None]],
                [[True]],
                [[]],
                [[0.5], [0.5, 0.5]],
                [[[0.5]]],
                [{"label": "a"}, [0.5]],
                [[0.5], {"label": "a"}],
                [[10**400]],
            )
        ),
        (200, [[0.5]], None, None, "something else than predictions"),
        pytest.param(
            *(200, b'{"predictions": ' + b"[" * 100_000, None, None, "else than predictions"),
            id="deep predictions",
        ),
        pytest.param(
            *(500, b"[" * 100_000, None, None, "answered with status 500"), id="a deep error"
        ),
    ],
)
def test_what_the_server_refuses_is_said_and_not_asked_again(
    server: Server, status: int, value: Any, code: str | None, field: str | None, message: str
) -> None:
    server.answer = lambda body: (status, value)
    with pytest.raises(PredictionError) as caught:
        predict(server.url, np.zeros((1, 2), np.float32))
    found = caught.value
    assert (found.status, found.code, found.field) == (status, code, field)
    assert message in str(found) and found.message == str(found)
    assert len(server.asked) == 1


def test_a_broken_connection_is_tried_again(server: Server) -> None:
    server.drops = 2
    assert predict(server.url, np.zeros((1, 2), np.float32)).shape == (1, 2)
    assert len(server.asked) == 3


def test_a_connection_that_the_server_closed_meanwhile_is_no_failure(server: Server) -> None:
    rows = np.zeros((1, 2), np.float32)
    predict(server.url, rows)
    server.drops = 1
    assert predict(server.url, rows, retries=0).shape == (1, 2)
    assert (len(server.asked), server.connections) == (3, 2)


def test_after_so_many_tries_it_gives_up(server: Server) -> None:
    server.drops = 5
    with pytest.raises(PredictionError, match="cannot be reached") as caught:
        predict(server.url, np.zeros((1, 2), np.float32), retries=1)
    assert caught.value.status is None and caught.value.code is None
    assert len(server.asked) == 2


def test_nobody_there_is_said_in_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(PredictionError, match=r"127\.0\.0\.1:\d+ cannot be reached: .*refused"):
            predict(url, np.zeros((1, 2), np.float32), retries=0)


def test_a_slow_server_is_not_asked_again(server: Server) -> None:
    def slow(body: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(1.0)
        return 200, {"predictions": [[0.0]]}

    server.answer = slow
    with pytest.raises(PredictionError, match=r"gave no answer in 0\.2 s"):
        predict(server.url, np.zeros((1, 2), np.float32), timeout_s=0.2)
    assert len(server.asked) == 1
    # The next one has a connection of its own, and not the late answer.
    server.answer = lambda body: (200, {"predictions": [[0.5]]})
    assert predict(server.url, np.zeros((1, 2), np.float32)).tolist() == [[0.5]]


def test_a_thread_keeps_its_connection(server: Server) -> None:
    rows = np.zeros((1, 2), np.float32)

    def ask() -> None:
        for _ in range(5):
            predict(server.url, rows)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(server.asked), server.connections) == (15, 3)


def test_the_client_imports_nothing_heavy() -> None:
    code = (
        "import sys, mlops.client\n"
        "print(sorted({'keras', 'tensorflow', 'mlflow', 'pandas', 'requests'} & set(sys.modules)))"
    )
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout == "[]\n"


def test_a_server_behind_tls_is_asked_where_its_authority_is_named(
    server: Server, tmp_path: Path
) -> None:
    authority = make_authority()
    (tmp_path / "tls.pem").write_bytes(make_certificate(authority, ["localhost"]))
    (tmp_path / "ca.pem").write_bytes(certificate_of(authority))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.pem")
    server.http.socket = context.wrap_socket(server.http.socket, server_side=True)
    url = server.url.replace("http://127.0.0.1", "https://localhost")
    rows = np.zeros((1, 3), np.float32)

    answer = predict(url, rows, cafile=tmp_path / "ca.pem", headers={"Authorization": "Bearer x"})

    assert answer.tolist() == [[0.25, 0.75]]
    assert server.asked[-1][1]["Authorization"] == "Bearer x"
    began = time.monotonic()
    with pytest.raises(PredictionError, match="a certificate that nobody vouches for here"):
        predict(url, rows)
    assert time.monotonic() - began < 3  # it is not asked again
    with pytest.raises(ValueError, match="holds no certificates"):
        predict(url, rows, cafile=tmp_path / "nothing.pem")
