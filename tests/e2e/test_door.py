"""The scoring port as clients meet it: real HAProxy, real TLS."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from mlops.client import PredictionError, predict
from tests.e2e.door import CONFIG, GOOD, JSON, Door, open_door, open_replica, read_reply
from tests.e2e.serving import free_port
from tests.system_programs import find_program

pytestmark = pytest.mark.system

LARGEST = 1048576
"""Of a body, as the configuration has it."""


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """Before two replicas that nobody kills; it allows any number of requests."""
    ports = free_port(), free_port()
    folder = tmp_path_factory.mktemp("door")
    with contextlib.ExitStack() as until_exit:
        for port in ports:
            until_exit.enter_context(open_replica(port))
        made = until_exit.enter_context(
            open_door(
                folder,
                SERVING_1_ADDRESS=f"127.0.0.1:{ports[0]}",
                SERVING_2_ADDRESS=f"127.0.0.1:{ports[1]}",
                SCORING_RATE="100000",
            )
        )
        made.await_that(200)
        yield made


def nested(depth: int) -> str:
    return '{"inputs": ' + "[" * (depth - 1) + "1" + "]" * (depth - 1) + "}"


# -- The configuration.


def test_the_configuration_is_valid_with_no_setting_but_the_folder_of_secrets(door: Door) -> None:
    haproxy = str(find_program("haproxy"))
    for name in ("haproxy.cfg", "s3.cfg"):
        done = subprocess.run(
            [haproxy, "-c", "-q", "-f", str(CONFIG.with_name(name))],
            env={"PATH": os.environ["PATH"], "SECRETS": str(door.secrets / "door")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


# -- Scoring.


def test_a_request_with_a_token_is_scored(door: Door) -> None:
    reply = door.score(GOOD)
    assert reply.status == 200
    assert reply.json["predictions"] == [[0.25, 0.75]]


def test_both_replicas_are_asked(door: Door) -> None:
    assert len({door.score(GOOD).json["port"] for _ in range(10)}) == 2


def test_the_client_of_podium_asks_through_the_door(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(door.secrets / "public" / "ca.pem"))
    url = f"https://localhost:{door.ports['scoring']}"
    rows = np.zeros((1, 2), np.float32)
    assert predict(url, rows, headers=door.bearer).tolist() == [[0.25, 0.75]]
    with pytest.raises(PredictionError) as refused:
        predict(url, rows, headers={"authorization": "Bearer wrong"})
    assert (refused.value.status, refused.value.code) == (401, "unauthorized")
    with pytest.raises(PredictionError) as refused:
        predict(url, np.zeros((1, 2_000_000), np.float32), headers=door.bearer)
    assert (refused.value.status, refused.value.code) == (413, "too_large")


@dataclass(frozen=True)
class Case:
    """A request that is refused: what is other than in a good one."""

    status: int
    code: str
    method: str = "POST"
    path: str = "/invocations"
    body: str = GOOD
    headers: dict[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    says: dict[str, str] = field(default_factory=dict)


REFUSED = {
    "no token": Case(
        401,
        "unauthorized",
        without=("authorization",),
        says={"www-authenticate": 'Bearer realm="podium"'},
    ),
    "a wrong token": Case(
        401,
        "unauthorized",
        headers={"authorization": "Bearer wrong"},
        says={"www-authenticate": 'Bearer realm="podium", error="invalid_token"'},
    ),
    "an empty token": Case(401, "unauthorized", headers={"authorization": "Bearer "}),
    "a login instead of a token": Case(
        401, "unauthorized", headers={"authorization": "Basic YTpi"}
    ),
    "a token of another role": Case(
        403,
        "forbidden",
        headers={"authorization": "metrics"},
        says={"www-authenticate": 'Bearer realm="podium", error="insufficient_scope"'},
    ),
    "another path": Case(404, "not_found", path="/api/2.0/mlflow/experiments/search"),
    "a path that leads back": Case(404, "not_found", path="/ping/../invocations"),
    "the version of MLflow": Case(404, "not_found", method="GET", path="/version"),
    "another method": Case(405, "wrong_method", method="PUT", says={"allow": "POST"}),
    "GET": Case(405, "wrong_method", method="GET", body="", says={"allow": "POST"}),
    "POST to the health": Case(405, "wrong_method", path="/ping", says={"allow": "GET, HEAD"}),
    "no content type": Case(415, "unsupported_media_type", without=("content-type",)),
    "another content type": Case(
        415, "unsupported_media_type", headers={"content-type": "application/x-www-form-urlencoded"}
    ),
    "another charset": Case(
        415, "unsupported_media_type", headers={"content-type": "application/json; charset=latin-1"}
    ),
    "a list of content types": Case(
        415, "unsupported_media_type", headers={"content-type": "application/json, text/csv"}
    ),
    "one byte too much": Case(413, "too_large", body="[" + " " * (LARGEST - 1) + "]"),
    "ten times too much": Case(413, "too_large", body=" " * 10 * LARGEST),
    "nested 17 deep": Case(400, "bad_json", body=nested(17)),
    "nested 100,000 deep": Case(400, "bad_json", body=nested(100_000)),
    "nested deep at the end": Case(400, "bad_json", body="[" + "[1]," * 100_000 + nested(17) + "]"),
    "nested deep in zigzag": Case(400, "bad_json", body="[[1]," * 17 + "1" + "]" * 17),
    "a large head": Case(431, "head_too_large", headers={"x-more": "x" * 60_000}),
    "a long address": Case(431, "head_too_large", path="/invocations?" + "x" * 9_000),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_is_no_request_to_score_is_refused_in_the_words_of_the_house(
    door: Door, case: Case
) -> None:
    headers = {**door.bearer, **JSON, **case.headers}
    if case.headers.get("authorization") == "metrics":
        token = (door.secrets / "door" / "metrics").read_text()
        headers["authorization"] = f"Bearer {token}"
    headers = {name: value for name, value in headers.items() if name not in case.without}
    reply = door.ask(case.method, case.path, case.body, headers)
    assert (reply.status, reply.json["code"]) == (case.status, case.code)
    assert reply.json.keys() == {"code", "message", "field"}
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["strict-transport-security"]
    assert reply.headers.items() >= case.says.items()


ACCEPTED: dict[str, tuple[str, dict[str, str]]] = {
    "JSON with a charset": (GOOD, {"content-type": "application/json; charset=UTF-8"}),
    "CSV": ("a,b\n1,2\n", {"content-type": "text/csv"}),
    "Parquet": ("PAR1", {"content-type": "application/vnd.apache.parquet"}),
    "the largest": ("[" + " " * (LARGEST - 2) + "]", {}),
    "nested 16 deep": (nested(16), {}),
    "brackets in strings": (json.dumps({"inputs": ["[" * 50 + '"' + "\\" + "{" * 50]}), {}),
    "intervals as categories": (json.dumps({"inputs": [f"[{n}, {n + 1})" for n in range(99)]}), {}),
    "brackets in CSV": ("[" * 50, {"content-type": "text/csv"}),
}


@pytest.mark.parametrize(("body", "headers"), ACCEPTED.values(), ids=ACCEPTED)
def test_what_a_replica_may_judge_goes_through(
    door: Door, body: str, headers: dict[str, str]
) -> None:
    reply = door.score(body, headers)
    assert (reply.status, reply.json["n_bytes"]) == (200, len(body))


def head(door: Door, *lines: str) -> bytes:
    all_lines = ("POST /invocations HTTP/1.1", "Host: localhost", "Connection: close", *lines)
    token = f"Authorization: Bearer {door.token}"
    return "\r\n".join((*all_lines, token, "Content-Type: application/json", "", "")).encode()


@pytest.mark.parametrize(
    ("lines", "body", "status"),
    [
        (("Transfer-Encoding: chunked",), b"2\r\n{}\r\n0\r\n\r\n", 411),
        (("Transfer-Encoding: chunked", "Content-Length: 2"), b"2\r\n{}\r\n0\r\n\r\n", 411),
        ((), b"", 411),
        (("Content-Length: 2", "Content-Length: 3"), b"{}", 400),
        (("Content-Length: -2",), b"{}", 400),
        (("Content-Length: 4294967297",), b"", 413),  # 1 in 32 bits
        (("Content-Length: 18446744073709551617",), b"{", 411),  # 1 in 64 bits
    ],
)
def test_a_length_that_is_none_or_two_is_refused(
    door: Door, lines: tuple[str, ...], body: bytes, status: int
) -> None:
    assert door.answer_to(head(door, *lines) + body).status == status


def test_what_the_door_says_of_a_client_is_its_own_word_and_the_token_goes_no_further(
    door: Door,
) -> None:
    spoofed = {
        "x-forwarded-for": "192.0.2.1",
        "x-forwarded-proto": "http",
        "x-forwarded-prefix": "/admin",
        "forwarded": "for=192.0.2.1",
        "x-real-ip": "192.0.2.1",
    }
    reply = door.score(GOOD, spoofed)
    seen = reply.json["headers"]
    assert seen["x-forwarded-for"] == "127.0.0.1"
    assert seen["x-forwarded-proto"] == "https"
    assert not {"authorization", "forwarded", "x-real-ip", "x-forwarded-prefix"} & seen.keys()
    assert "server" not in reply.headers


def test_a_client_that_is_refused_hears_it_however_much_it_sends(door: Door) -> None:
    """A door that closes a connection while a client writes breaks it before it is read."""
    for n in (20_000, 200_000, 900_000):
        assert door.score(" " * n, {"authorization": "Bearer wrong"}).status == 401
        assert door.score(" " * n, {"content-type": "text/plain"}).status == 415
    with contextlib.closing(door.connect()) as connection:
        for _ in range(3):  # on one connection, which goes on
            connection.request("POST", "/invocations", " " * 5_000_000, {**door.bearer, **JSON})
            assert read_reply(connection).status == 413


def test_the_log_holds_no_token_no_query_and_no_row(door: Door) -> None:
    assert (
        door.ask("POST", "/invocations?key=swordfish", GOOD, {**door.bearer, **JSON}).status == 200
    )
    door.ask("POST", "/invocations", GOOD, {"authorization": "Bearer mistyped"})
    log = door.log.read_text()
    assert " 200 " in log and " 401 " in log and "POST /invocations" in log
    for secret in (door.token, "swordfish", "mistyped", "0.5"):
        assert secret not in log


def test_who_watches_sees_the_doors_metrics_inside_and_with_a_token_outside(door: Door) -> None:
    door.await_up("serving-1", "serving-2")
    token = (door.secrets / "door" / "metrics").read_text()
    outside = door.ask("GET", "/metrics", headers={"authorization": f"Bearer {token}"})
    assert outside.status == 200 and b"haproxy_server_status" in outside.body
    assert door.ask("GET", "/metrics", headers=door.bearer).status == 403
    assert door.ask("GET", "/metrics").status == 401


@pytest.mark.parametrize("port", ["ui", "scoring", "grafana"])
def test_versions_of_tls_before_1_2_are_refused(door: Door, port: str) -> None:
    def connect(highest: ssl.TLSVersion) -> str | None:
        context = door.context
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # else OpenSSL itself keeps from the old ones
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = highest
        plain = socket.create_connection(("localhost", door.ports[port]), timeout=10)
        with context.wrap_socket(plain, server_hostname="localhost") as connection:
            return connection.version()

    assert connect(ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    assert connect(ssl.TLSVersion.MAXIMUM_SUPPORTED) == "TLSv1.3"
    for old in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        with pytest.warns(DeprecationWarning), pytest.raises(ssl.SSLError, match="alert protocol"):
            connect(old)


@pytest.mark.parametrize("port", ["ui", "scoring", "grafana"])
def test_http_2_is_refused_also_where_a_client_just_begins_with_it(door: Door, port: str) -> None:
    said = door.answer_to(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), port)
    assert said.status == 400


def test_a_reload_takes_a_new_token_and_gives_up_an_old_one(tmp_path: Path) -> None:
    port = free_port()
    with open_replica(port), open_door(tmp_path, SERVING_1_ADDRESS=f"127.0.0.1:{port}") as door:
        door.await_that(200)
        tokens = door.secrets / "door" / "tokens.map"
        tokens.write_text(f"{hashlib.sha256(b'another').hexdigest()} score\n")
        new = {"authorization": "Bearer another"}
        assert (door.score(GOOD).status, door.score(GOOD, new).status) == (200, 401)
        door.process.send_signal(signal.SIGUSR2)
        deadline = time.monotonic() + 30
        while door.score(GOOD, new).status != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert door.score(GOOD).status == 401


# -- Limits.


def test_a_token_that_asks_too_often_is_told_to_wait_and_others_are_not(tmp_path: Path) -> None:
    port = free_port()
    with (
        open_replica(port),
        open_door(tmp_path, SERVING_1_ADDRESS=f"127.0.0.1:{port}", SCORING_RATE="5") as door,
    ):
        door.await_that(200)
        with contextlib.closing(door.connect()) as connection:
            seen = []
            for _ in range(10):
                connection.request("POST", "/invocations", GOOD, {**door.bearer, **JSON})
                seen.append(read_reply(connection))
        assert Counter(reply.status for reply in seen) == {200: 5, 429: 5}
        assert seen[-1].json["code"] == "too_many_requests"
        assert seen[-1].headers["retry-after"] == "1"
        token = (door.secrets / "door" / "metrics").read_text()
        other = door.ask("GET", "/metrics", headers={"authorization": f"Bearer {token}"})
        assert other.status == 200
        time.sleep(2.1)
        assert door.score(GOOD).status == 200


def test_slow_clients_are_cut_and_no_replica_sees_them(tmp_path: Path) -> None:
    port = free_port()
    with (
        open_replica(port),
        open_door(
            tmp_path,
            SERVING_1_ADDRESS=f"127.0.0.1:{port}",
            HEAD_TIMEOUT="1s",
            BODY_TIMEOUT="1s",
        ) as door,
    ):
        door.await_that(200)
        for content, is_ours in (
            (head(door, "Content-Length: 30") + b'{"inputs"', True),
            (head(door, "Content-Length: 30")[:40], False),  # HAProxy has its own words for that
        ):
            began = time.monotonic()
            said = door.answer_to(content)
            assert 0.9 < time.monotonic() - began < 5
            assert said.status == 408
            assert is_ours == said.body.startswith(b'{"code":"too_slow"')
        with door.open_socket() as idle:  # nothing at all is cut without a word
            assert idle.recv(1) == b""
        assert door.score(GOOD).status == 200
        seen = 'haproxy_server_sessions_total{proxy="replicas",server="serving-1"}'
        assert door.metric(seen) == 1


def test_one_address_has_so_many_connections(tmp_path: Path) -> None:
    with open_door(tmp_path, CLIENT_CONNECTIONS="3") as door, contextlib.ExitStack() as until_exit:
        for _ in range(3):
            until_exit.enter_context(door.open_socket())
        # Without TLS: Python's leaks a socket that is refused before it began.
        place = ("localhost", door.ports["ui"])
        with (
            contextlib.suppress(ConnectionResetError),  # by then, or while it connects
            socket.create_connection(place, timeout=5) as one_more,
        ):
            assert one_more.recv(1) == b""
