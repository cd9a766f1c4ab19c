"""The port of MLflow's UI and API, before something that stands for MLflow."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.e2e.door import Door, open_door

pytestmark = pytest.mark.system


class Behind(BaseHTTPRequestHandler):
    """Stands for MLflow: says what it was asked, and knows one login."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        n_bytes = 0
        left = int(self.headers.get("content-length", 0))
        while left and (piece := self.rfile.read(min(left, 65536))):
            left -= len(piece)
            n_bytes += len(piece)
        headers = {name.lower(): value for name, value in self.headers.items()}
        is_known = headers.get("authorization") == "Basic Z29vZDpsb2dpbg=="
        content = json.dumps({"headers": headers, "n_bytes": n_bytes}).encode()
        self.send_response(200 if self.path == "/health" or is_known else 401)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


LOGIN = {"authorization": "Basic Z29vZDpsb2dpbg=="}
WRONG = {"authorization": "Basic d3Jvbmc6bG9naW4="}
ARTIFACT = "/api/2.0/mlflow-artifacts/artifacts/1/run/artifacts/model.keras"
Open = Callable[..., Door]


@pytest.fixture
def ui(tmp_path: Path) -> Iterator[Open]:
    """Opens a door before something like MLflow; takes limits."""
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
    for line, n in ((f"POST {path}", 16_777_217), (f"PUT {ARTIFACT}", 30_000_001)):
        content = f"{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {n}\r\n\r\n"
        reply = door.answer_to(content.encode(), "ui")
        assert (reply.status, reply.json["code"]) == (413, "too_large")
    chunked = f"PUT {ARTIFACT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert door.answer_to(chunked.encode() + b"0\r\n\r\n", "ui").status == 411


def test_without_mlflow_and_grafana_the_door_says_so(tmp_path: Path) -> None:
    with open_door(tmp_path) as door:
        for port in ("ui", "grafana"):
            door.await_that(503, "/", port)
            assert door.ask("GET", "/", port=port).json["code"] == "unavailable"
