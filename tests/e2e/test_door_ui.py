"""The port of MLflow's UI and API, before something that stands for MLflow."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.e2e.door import Door, open_door

pytestmark = pytest.mark.system


seen: list[str] = []
"""What came to what stands for MLflow."""
let_go = threading.Event()


class Behind(BaseHTTPRequestHandler):
    """Stands for MLflow: says what it was asked, and knows one login."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        n_bytes = 0
        if "transfer-encoding" in self.headers:  # an empty body
            assert self.rfile.readline() + self.rfile.readline() == b"0\r\n\r\n"
        left = int(self.headers.get("content-length", 0))
        while left and (piece := self.rfile.read(min(left, 65536))):
            left -= len(piece)
            n_bytes += len(piece)
        headers = {name.lower(): value for name, value in self.headers.items()}
        seen.append(f"{self.command} {self.path}")
        is_known = headers.get("authorization") == "Basic Z29vZDpsb2dpbg=="
        if self.path.endswith("/slow"):
            let_go.wait(30)
        content = json.dumps({"headers": headers, "n_bytes": n_bytes}).encode()
        self.send_response(200 if self.path == "/health" or is_known else 401)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


LOGIN = {"authorization": "Basic Z29vZDpsb2dpbg=="}
WRONG = {"authorization": "Basic d3Jvbmc6bG9naW4="}
ARTIFACT = "/api/2.0/mlflow-artifacts/artifacts/1/run/artifacts/model.keras"
Open = Callable[..., Door]


@pytest.fixture
def ui(tmp_path: Path) -> Iterator[Open]:
    """Opens a door before something like MLflow; takes limits."""
    seen.clear()
    let_go.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Behind)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with contextlib.ExitStack() as until_exit:

        def opened(**env: str) -> Door:
            address = f"127.0.0.1:{server.server_address[1]}"
            door = until_exit.enter_context(open_door(tmp_path, MLFLOW_ADDRESS=address, **env))
            door.await_that(200, "/health", "ui")
            return door

        yield opened
        let_go.set()
        server.shutdown()
    thread.join()
    server.server_close()


def test_mlflow_hears_of_a_client_by_the_door_only_and_gets_its_login(ui: Open) -> None:
    door = ui()
    spoofed = {"x-forwarded-for": "192.0.2.1", "x-forwarded-host": "evil", "forwarded": "for=x"}
    reply = door.ask(
        "GET", "/api/2.0/mlflow/users/current", headers={**LOGIN, **spoofed}, port="ui"
    )
    seen = reply.json["headers"]
    assert reply.status == 200
    assert seen["authorization"] == LOGIN["authorization"]
    assert (seen["x-forwarded-for"], seen["x-forwarded-proto"]) == ("127.0.0.1", "https")
    assert seen["x-forwarded-host"] == seen["host"] == f"localhost:{door.ports['ui']}"
    assert "forwarded" not in seen
    assert reply.headers["strict-transport-security"]


def test_an_address_that_fails_to_log_in_too_often_waits_and_browsers_do_not(ui: Open) -> None:
    door = ui(LOGIN_FAILURES="3")
    for _ in range(10):  # a browser's first request has no login
        assert door.ask("GET", "/", port="ui").status == 401
    assert [door.ask("GET", "/", headers=WRONG, port="ui").status for _ in range(4)] == [401] * 4
    for headers in (WRONG, LOGIN):
        reply = door.ask("POST", "/", "x" * 300_000, headers, port="ui")
        assert (reply.status, reply.json["code"]) == (429, "too_many_failures")
        assert reply.headers["retry-after"] == "60"
    assert door.ask("GET", "/", port="ui").status == 401


def test_artifacts_may_be_large_and_all_else_may_not(ui: Open) -> None:
    door = ui(UPLOAD_MAX_BODY="30000000")
    reply = door.ask("PUT", ARTIFACT, b"x" * 20_000_000, LOGIN, port="ui")
    assert (reply.status, reply.json["n_bytes"]) == (200, 20_000_000)
    path = "/api/2.0/mlflow/runs/log-batch"
    assert door.ask("POST", path, b"x" * 15_000_000, LOGIN, port="ui").status == 200
    upload = "/api/2.0/mlflow/upload-artifact"
    for line, n in (
        (f"POST {path}", 16_777_217),
        (f"GET {ARTIFACT}", 16_777_217),
        (f"POST {ARTIFACT}", 16_777_217),
        (f"POST {upload}", 16_777_217),  # MLflow takes 10 MB there
        (f"PUT {ARTIFACT}", 30_000_001),
    ):
        content = f"{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {n}\r\n\r\n"
        reply = door.answer_to(content.encode(), "ui")
        assert (reply.status, reply.json["code"]) == (413, "too_large")


def head(line: str, *lines: str, **headers: str) -> bytes:
    more = (f"{name}: {value}" for name, value in headers.items())
    return "\r\n".join((f"{line} HTTP/1.1", "Host: localhost", *lines, *more, "", "")).encode()


CHUNKED = "Transfer-Encoding: chunked"
METHODS = ("DELETE", "GET", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")


@pytest.mark.parametrize("headers", [{}, LOGIN], ids=["nobody", "an account"])
def test_no_method_takes_a_body_of_unknown_length(ui: Open, headers: dict[str, str]) -> None:
    door = ui()
    seen.clear()
    for method in METHODS:
        asked = head(f"{method} /api/2.0/mlflow/runs/search", CHUNKED, **headers)
        assert door.answer_to(asked + b"2\r\n{}\r\n", "ui").status == 411, method
        both = head(f"{method} /", CHUNKED, "Content-Length: 2", **headers)
        assert door.answer_to(both + b"2\r\n{}\r\n", "ui").status == 411, method
    artifact = head(f"PUT {ARTIFACT}", CHUNKED, **headers)
    assert door.answer_to(artifact + b"2\r\n{}\r\n0\r\n\r\n", "ui").status == 411
    assert not [one for one in seen if one != "GET /health"]


def test_an_empty_file_comes_as_mlflows_client_sends_it(ui: Open) -> None:
    door = ui()
    content = head(f"PUT {ARTIFACT}", CHUNKED, **LOGIN) + b"0\r\n\r\n"
    assert door.answer_to(content, "ui").status == 200


def test_without_a_login_a_request_is_tiny(ui: Open) -> None:
    door = ui()
    path = "/api/2.0/mlflow/runs/search"
    assert door.ask("POST", path, b"x" * 8192, port="ui").status == 401
    seen.clear()
    for method, asked in (("POST", path), ("DELETE", path), ("GET", "/health"), ("PUT", ARTIFACT)):
        reply = door.ask(method, asked, b"x" * 300_000, port="ui")
        assert (reply.status, reply.json["code"]) == (401, "no_login")
        assert reply.headers["www-authenticate"] == 'Basic realm="mlflow"'
    assert not [one for one in seen if one.endswith((path, ARTIFACT))]
    assert door.ask("POST", path, b"x" * 300_000, LOGIN, port="ui").status == 200


def test_a_second_place_for_a_login_is_not_passed_on(ui: Open) -> None:
    door = ui()
    headers = {**LOGIN, "x-mlflow-authorization": LOGIN["authorization"]}
    reply = door.ask("POST", "/gateway/mlflow/v1/chat/completions", "{}", headers, port="ui")
    assert "x-mlflow-authorization" not in reply.json["headers"]


@pytest.mark.parametrize("port", ["ui", "grafana"])
def test_a_host_that_is_no_name_with_a_port_is_refused(ui: Open, port: str) -> None:
    door = ui()
    for host in ("localhost:8443@evil", "evil@localhost", "a/b", "a b", "a?b", "a,b"):
        content = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        assert door.answer_to(content, port).status == 400, host
    for host in ("localhost", f"localhost:{door.ports[port]}", "[::1]:8443"):
        content = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        assert door.answer_to(content, port).status == (401 if port == "ui" else 503), host


def ask_slowly(until_exit: contextlib.ExitStack, door: Door, path: str, n: int) -> None:
    """Sends requests that are answered when `let_go` is set, and waits for no answer."""
    for _ in range(n):
        socket = until_exit.enter_context(door.open_socket("ui"))
        socket.sendall(head(f"GET {path}", **LOGIN))


def await_that(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_mlflow_is_asked_so_much_at_once_and_the_rest_waits(ui: Open) -> None:
    door = ui()
    with contextlib.ExitStack() as until_exit:
        ask_slowly(until_exit, door, "/slow", 40)
        queued = 'haproxy_backend_current_queue{proxy="mlflow"}'
        await_that(lambda: door.metric(queued) == 8)
        assert door.metric('haproxy_server_current_sessions{proxy="mlflow",server="mlflow"}') == 32
        reply = door.ask("GET", ARTIFACT, headers=LOGIN, port="ui")  # which has places of its own
        assert reply.status == 200
        let_go.set()
        await_that(lambda: seen.count("GET /slow") == 40)


def test_an_address_moves_so_many_artifacts_at_once(ui: Open) -> None:
    door = ui()
    with contextlib.ExitStack() as until_exit:
        ask_slowly(until_exit, door, f"{ARTIFACT}/slow", 24)
        await_that(lambda: seen.count(f"GET {ARTIFACT}/slow") == 24)
        for path in (ARTIFACT, "/get-artifact?path=x", "/model-versions/get-artifact?path=x"):
            reply = door.ask("GET", path, headers=LOGIN, port="ui")
            assert (reply.status, reply.json["code"]) == (429, "too_many_transfers")
        assert door.ask("GET", "/", headers=LOGIN, port="ui").status == 200
        let_go.set()
        await_that(lambda: door.ask("GET", ARTIFACT, headers=LOGIN, port="ui").status == 200)


def test_without_mlflow_and_grafana_the_door_says_so(tmp_path: Path) -> None:
    with open_door(tmp_path) as door:
        for port in ("ui", "grafana"):
            door.await_that(503, "/", port)
            assert door.ask("GET", "/", port=port).json["code"] == "unavailable"
