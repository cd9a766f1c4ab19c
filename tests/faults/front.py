"""An HTTP server that fails on purpose, in front of whatever answers: the recorder, or MLflow.

A `Front` hands each request to a backend, and asks its `plan` beforehand what is to go wrong with
it. It can be gone (the socket is closed, what the backend keeps stays), and it can hang, as a
process does that was sent SIGSTOP: it takes requests, and answers none before it goes on.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Protocol
from urllib.parse import parse_qs, urlsplit

PORTS = range(20_000, 30_000)
"""Below those that a kernel lends to connections: nobody takes ours while the front is gone."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request; `endpoint` is its path behind /mlflow/, for example "runs/create"."""

    method: str
    path: str
    query: dict[str, str]
    body: bytes
    target: str
    content_type: str

    @property
    def endpoint(self) -> str:
        for mark in ("/mlflow-artifacts/", "/mlflow/"):
            if mark in self.path:
                return self.path.split(mark, 1)[1]
        return self.path

    @property
    def artifact(self) -> str:
        """What an artifact's path says behind "artifacts/"; empty for any other request."""
        return self.endpoint.partition("artifacts/")[2] if "artifacts/" in self.path else ""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    content_type: str = "application/json"


class Backend(Protocol):
    """What stands behind a front."""

    def answer(self, request: Request) -> Answer:
        """Does what is asked; OSError where there is nobody."""
        ...


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one request.

    Attributes:
        status: Answered instead of what the backend would say, which is not asked.
        lost: The backend does what is asked, and nobody hears of it.
        before, after: Called before and after the backend; the answer comes after both.
        delay_s: Pause before the backend, and another one before the answer.
    """

    status: int | None = None
    lost: bool = False
    before: Callable[[], None] | None = None
    after: Callable[[], None] | None = None
    delay_s: float = 0.0


Plan = Callable[[Request], Fault | None]


class Front:
    """The address of a server, whatever becomes of the server.

    Attributes:
        calls: The number of requests that came, by endpoint.
        plan: Says what goes wrong with a request; called once for each, one at a time.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.calls: Counter[str] = Counter()
        self.plan: Plan = lambda request: None
        self._lock = threading.Lock()
        self._busy = 0
        self._going = threading.Event()
        self._going.set()
        self._connections: set[socket.socket] = set()
        self._server: _Server | None = None
        self.port = 0
        self.open()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(self) -> None:
        """Begins to listen, on the same port as before."""
        if self._server is not None:
            return
        self._server = self._bind()
        self.port = self._server.server_address[1]
        threading.Thread(
            target=self._server.serve_forever, args=(0.01,), name="front", daemon=True
        ).start()

    def close(self) -> None:
        """Is gone at once, as after kill -9: connections break, and none is taken."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            _break(connection)

    def hang(self) -> None:
        self._going.clear()

    def go_on(self) -> None:
        self._going.set()

    def wait_idle(self) -> None:
        """Returns once nothing is under way: a request that hung may be done late."""
        while self._busy:
            time.sleep(0.002)

    def serve(self, request: Request) -> Answer | None:
        """Returns the answer to a request, or None where the connection is to break."""
        with self._lock:
            self._busy += 1
            self.calls[request.endpoint.removesuffix(f"/{request.artifact}")] += 1
            fault = self.plan(request) or Fault()
        try:
            if fault.before is not None:
                fault.before()
            self._going.wait()
            time.sleep(fault.delay_s)
            if fault.status is not None:
                return _refusal(fault.status)
            if self._server is None and fault.before is not None:
                return None  # killed before it did anything
            answer = self.backend.answer(request)
            if fault.after is not None:
                fault.after()
            time.sleep(fault.delay_s)
            return None if fault.lost else answer
        except OSError:
            return None
        finally:
            with self._lock:
                self._busy -= 1

    def _bind(self) -> _Server:
        if self.port:
            return _Server(("127.0.0.1", self.port), self)
        while True:
            try:
                return _Server(("127.0.0.1", random.SystemRandom().choice(PORTS)), self)
            except OSError:
                continue


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], front: Front) -> None:
        self.front = front
        super().__init__(address, _Handler)

    def handle_error(self, *_: object) -> None:
        """A client that broke off is no news here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        with self.server.front._lock:
            self.server.front._connections.add(self.connection)

    def finish(self) -> None:
        with self.server.front._lock:
            self.server.front._connections.discard(self.connection)
        super().finish()

    def serve(self) -> None:
        parts = urlsplit(self.path)
        size = int(self.headers.get("Content-Length") or 0)
        request = Request(
            method=self.command,
            path=parts.path,
            query={name: values[0] for name, values in parse_qs(parts.query).items()},
            body=self.rfile.read(size),
            target=self.path,
            content_type=self.headers.get("Content-Type") or "",
        )
        whole = len(request.body) == size  # else its client has gone
        answer = self.server.front.serve(request) if whole else None
        if answer is None:
            self.close_connection = True
            _break(self.connection)
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = serve

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def _break(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _refusal(status: int) -> Answer:
    # As what stands in front of a server says it: no JSON, and nothing about MLflow.
    return Answer(status, b"<html><body>try again later</body></html>", "text/html")


@dataclass(slots=True)
class Relay:
    """The backend that is another HTTP server; `url` may change while it restarts."""

    url: str

    def answer(self, request: Request) -> Answer:
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=120)
        try:
            connection.request(
                request.method,
                request.target,
                request.body or None,
                {"Content-Type": request.content_type} if request.content_type else {},
            )
            response = connection.getresponse()
            content_type = response.getheader("Content-Type") or "application/json"
            return Answer(response.status, response.read(), content_type)
        except http.client.HTTPException as err:
            raise ConnectionError(str(err)) from err
        finally:
            connection.close()


@dataclass(slots=True)
class At:
    """A plan: the fault at the requests with these numbers, from 0.

    Attributes:
        numbers: Among the requests that match.
        endpoint: What matches; all requests if it is empty. GET /health and the like never do.
    """

    numbers: Iterable[int]
    fault: Fault
    endpoint: str = ""
    n_seen: int = field(default=0)
    n_met: int = field(default=0)

    def __call__(self, request: Request) -> Fault | None:
        if not request.endpoint.startswith(self.endpoint):
            return None
        number, self.n_seen = self.n_seen, self.n_seen + 1
        if number not in self.numbers:
            return None
        self.n_met += 1
        return self.fault
