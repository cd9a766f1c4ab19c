"""Replicas that answer, that do not, and that take their time; over real sockets."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mlops.errors import UsageError
from mlops.lease import try_lock
from registry.replicas import Address, Asked, find_addresses, read_address
from registry.serving.metrics import open_exposition
from registry.serving.state import StateFolder, write_json
from tests.e2e.serving import free_port
from tests.registry.test_replica import DRIFT, METRICS, MODEL

Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves pages as a parent does, and returns their address."""
    with ExitStack() as open_ones:

        def start(**pages: Any) -> str:
            port = free_port()
            paths = {f"/{name}": (lambda value=value: value) for name, value in pages.items()}
            server = open_exposition("127.0.0.1", port, paths)
            open_ones.callback(server.server_close)
            open_ones.callback(server.shutdown)
            return f"http://127.0.0.1:{port}"

        yield start


@pytest.fixture
def hang() -> Iterator[Callable[[bytes], str]]:
    """Listens, takes a request, and answers with a byte now and then, for ever."""
    done = threading.Event()
    with ExitStack() as open_ones:
        open_ones.callback(done.set)

        def start(content: bytes) -> str:
            class Handler(BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    for byte in content:
                        self.wfile.write(bytes([byte]))
                        if done.wait(0.1):
                            return
                    done.wait(20)

                def log_message(self, format: str, *args: Any) -> None:
                    pass

            server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            server.daemon_threads = True
            open_ones.callback(server.server_close)
            open_ones.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            return f"http://127.0.0.1:{server.server_address[1]}"

        yield start


def test_all_pages_of_a_replica_are_asked_for(serve: Serve) -> None:
    url = serve(model=MODEL, metrics=METRICS, drift=DRIFT)
    (found,) = Asked([Address(url)]).wait()
    assert (found.state, found.url, found.traffic.n_requests) == ("answers", url, 100)
    assert found.drift.figures == DRIFT


def test_metrics_and_drift_may_be_missing(serve: Serve) -> None:
    (found,) = Asked([Address(serve(model=MODEL))]).wait()
    assert (found.state, found.traffic.n_requests) == ("answers", 0)
    assert found.drift.state == "unknown"


DRIBBLE = b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n" + b" " * 800


@pytest.mark.parametrize("content", [b"", DRIBBLE], ids=["nothing", "a byte now and then"])
def test_one_that_takes_its_time_delays_no_other(
    serve: Serve, hang: Callable[[bytes], str], content: bytes
) -> None:
    urls = [hang(content), serve(model=MODEL, metrics=METRICS), f"http://127.0.0.1:{free_port()}"]
    began = time.monotonic()
    slow, good, closed = Asked([Address(url) for url in urls], timeout_s=0.6).wait()
    assert time.monotonic() - began < 2.0
    assert (slow.state, slow.reason) == ("silent", "did not answer within 0.6 s")
    assert good.state == "answers"
    assert (closed.state, closed.reason) == ("silent", "does not answer (connection refused)")


def test_what_speaks_no_http_and_what_sends_too_much_is_silent(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def answer() -> None:
            for _ in range(3):
                with listener.accept()[0] as one:
                    one.recv(1000)
                    one.sendall(b"SSH-2.0-OpenSSH\r\n")

        threading.Thread(target=answer, daemon=True).start()
        large = serve(model=b"a" * (9 << 20))
        urls = [f"http://127.0.0.1:{listener.getsockname()[1]}", large]
        other, too_large = Asked([Address(url) for url in urls]).wait()
    assert (other.state, too_large.state) == ("silent", "silent")
    assert "more than 8 mib" in too_large.reason


def test_a_proxy_of_the_environment_is_not_asked(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    (found,) = Asked([Address(serve(model=MODEL))]).wait()
    assert found.state == "answers"


@pytest.mark.parametrize(
    ("typed", "url"),
    [
        ("http://h:5002", "http://h:5002"),
        (" h:5002 ", "http://h:5002"),
        ("http://h:5002/", "http://h:5002"),
        ("http://h:5002/metrics", "http://h:5002"),
        ("https://door/one/model", "https://door/one"),
        ("http://[::1]:5002/shadow", "http://[::1]:5002"),
    ],
)
def test_an_address_is_read_as_people_type_it(typed: str, url: str) -> None:
    assert read_address(typed) == Address(url)


@pytest.mark.parametrize(
    "typed",
    ["", "ftp://h:1", "http://", "h:port", "h:99999", "h:0", "http://h:1/?a=b", "h\x1b[2J:1"],
)
def test_what_is_no_address_is_refused_in_one_sentence(typed: str) -> None:
    with pytest.raises(UsageError, match="is no address of a replica; expected http://HOST:PORT"):
        read_address(typed)


def test_a_login_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError) as refused:
        read_address("http://ada:swordfish@h:5002")
    assert "swordfish" not in str(refused.value)


def leave(home: Path, url: str, name: str = "digits", alias: str = "champion") -> StateFolder:
    """Leaves in a home what a server leaves that answers there."""
    folder = StateFolder.of(home, name, alias, 5001)
    folder.create()
    folder.lock.touch()
    write_json(folder.address, {"name": name, "alias": alias, "metrics": url})
    return folder


def test_the_replicas_of_a_home_are_found_and_each_is_asked_once(
    serve: Serve, tmp_path: Path
) -> None:
    url = serve(model=MODEL, metrics=METRICS)
    folder = leave(tmp_path, url)
    addresses = find_addresses(tmp_path, [f"{url}/metrics", "http://other:5002"])
    assert addresses == [
        Address(url, folder.path, "digits", "champion"),
        Address("http://other:5002"),
    ]
    (found,) = Asked(addresses[:1]).wait()
    assert found.state == "answers"


def test_a_home_without_replicas_has_none_and_nothing_is_made_in_it(tmp_path: Path) -> None:
    assert find_addresses(tmp_path / "home", []) == []
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("content", ["", "[]", '{"metrics": 3}', '{"metrics": "ftp://x"}'])
def test_a_folder_that_says_no_address_is_passed_over(tmp_path: Path, content: str) -> None:
    leave(tmp_path, "http://h:1").address.write_text(content)
    assert find_addresses(tmp_path, []) == []


def test_one_that_was_killed_and_one_that_hangs_are_told_apart(tmp_path: Path) -> None:
    folder = leave(tmp_path, f"http://127.0.0.1:{free_port()}")
    (killed,) = Asked(find_addresses(tmp_path, [])).wait()
    assert (killed.state, killed.name) == ("killed", "digits")
    assert killed.reason == "was killed; start it again, with the same command"
    held = try_lock(folder.lock)
    assert held is not None
    (hangs,) = Asked(find_addresses(tmp_path, [])).wait()
    assert (hangs.state, hangs.name, hangs.alias) == ("silent", "digits", "champion")
    os.close(held)


def test_a_port_that_another_server_took_is_not_taken_for_the_old_one(
    serve: Serve, tmp_path: Path
) -> None:
    folder = leave(tmp_path, serve(model=MODEL | {"name": "other"}))
    with_lock = try_lock(folder.lock)
    (found,) = Asked(find_addresses(tmp_path, [])).wait()
    assert (found.state, found.reason) == ("silent", "is answered by another server now")
    assert with_lock is not None
    os.close(with_lock)


def test_a_folder_is_cleaned_of_the_address_that_a_killed_one_left(tmp_path: Path) -> None:
    folder = leave(tmp_path, "http://h:1")
    folder.clean()
    assert not folder.address.exists()
