"""Prometheus metrics: what workers count in files that they share, and what the parent shows.

A worker runs with PROMETHEUS_MULTIPROC_DIR set before prometheus_client is imported: its counters
are then memory-mapped files, which outlive it, and the parent adds up those of all workers. What is
known to the parent alone (versions, refusals, the registry) lies in its own memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

SECONDS: Final = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0),
)
ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
RESULTS: Final = ("ok", "bad_input", "failed", "overloaded")
_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"


@dataclass(frozen=True, slots=True)
class Meter:
    """Counts the requests of one release in one role; its labels are looked up but once."""

    ok: Callable[[], None]
    bad_input: Callable[[], None]
    failed: Callable[[], None]
    seconds: Callable[[float], None]


_COUNTERS: Final = ("counter", "histogram", "gauge_livesum")
"""Of the files of a worker's counters: prometheus_client puts "_<pid>.db" behind."""
COUNTERS_BYTES: Final = 1 << 20
"""Of each of them: for thousands of releases. prometheus_client makes it grow, without room."""


def reserve_counters(env: MutableMapping[str, str], pid: int) -> str | None:
    """Has room on the disk for a worker's counters, or has them kept in its memory.

    A memory-mapped file without room kills the process that writes into it (SIGBUS). To be called
    before prometheus_client is imported; `env` loses the name of the folder where there is no room.

    Returns:
        Why there is none; None where there is.
    """
    folder = env.get(_FOLDER)
    if folder is None:
        return None
    paths = [Path(folder, f"{sort}_{pid}.db") for sort in _COUNTERS]
    try:
        for path in paths:
            _reserve(path)
    except OSError as err:
        del env[_FOLDER]
        for path in paths:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        return (err.strerror or str(err)).lower()
    return None


def _reserve(path: Path) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, COUNTERS_BYTES)
    finally:
        os.close(fd)


def _trim(path: Path) -> None:
    """Gives back what a dead worker's counters did not use: its first number says how much."""
    with path.open("rb") as counters:
        (used,) = struct.unpack("i", counters.read(4))
    if used:
        os.truncate(path, used)
    else:
        path.unlink()


class WorkerMetrics:
    """What one worker counts."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        mine = CollectorRegistry()
        self._requests = Counter(
            "podium_requests_total",
            "Requests to /invocations, by the release that was asked.",
            ["version", "result"],
            registry=mine,
        )
        self._seconds = Histogram(
            "podium_request_seconds",
            "Time from a free thread to the answer's bytes.",
            ["role"],
            buckets=SECONDS,
            registry=mine,
        )
        rows = Histogram(
            "podium_batch_rows", "Rows of one forward pass.", buckets=ROWS, registry=mine
        )
        self._depth = Gauge(
            "podium_queue_depth",
            "Requests that wait for a thread.",
            multiprocess_mode="livesum",
            registry=mine,
        )
        self._fallbacks = Counter(
            "podium_challenger_fallbacks_total",
            "Requests that the challenger failed and the champion answered.",
            registry=mine,
        )
        self._shadows = Counter(
            "podium_shadow_requests_total",
            "Requests that the challenger scored beside the champion.",
            ["result"],
            registry=mine,
        )
        self._shadow_seconds = Histogram(
            "podium_shadow_seconds",
            "Time that the challenger took for a request of the shadow.",
            buckets=SECONDS,
            registry=mine,
        )
        self.on_batch: Callable[[int], None] = rows.observe
        self._overloaded = self._requests.labels("none", "overloaded").inc

    def meter(self, version: int, role: str) -> Meter:
        label = str(version)
        ok, bad, failed = (self._requests.labels(label, result).inc for result in RESULTS[:3])
        return Meter(ok, bad, failed, self._seconds.labels(role).observe)

    def overloaded(self) -> None:
        self._overloaded()

    def fell_back(self) -> None:
        self._fallbacks.inc()

    def queued(self, n: int) -> None:
        self._depth.set(n)

    def shadowed(self, result: str, seconds: float) -> None:
        self._shadows.labels(result).inc()
        if result != "dropped":
            self._shadow_seconds.observe(seconds)


class DriftGauges:
    """What the parent shows of drift; the last window's figures are NaN before the first."""

    def __init__(self, own: CollectorRegistry) -> None:
        from prometheus_client import Counter, Gauge

        self._psi = Gauge(
            "podium_drift_psi",
            "Population stability index of the last window against the watcher's reference.",
            registry=own,
        )
        self._ks = Gauge(
            "podium_drift_ks",
            "Largest distance of the two distribution functions, of the last window.",
            registry=own,
        )
        self._ks_p = Gauge("podium_drift_ks_p", "p of the last window's KS test.", registry=own)
        self._drifted = Gauge(
            "podium_drifted", "1 while the rows that are answered have drifted.", registry=own
        )
        self._windows = Counter(
            "podium_drift_windows_total", "Windows that were full.", registry=own
        )
        self._shifted = Counter(
            "podium_drift_shifted_windows_total", "Of them, those that were shifted.", registry=own
        )
        self.rows = Counter(
            "podium_drift_rows_total", "Rows that the watcher scored.", registry=own
        )
        self.dropped = Counter(
            "podium_drift_dropped_total",
            "Rows that were answered and that the watcher did not score.",
            registry=own,
        )

    def begin(self) -> None:
        """Sets what stands before a first window."""
        for one in (self._psi, self._ks, self._ks_p):
            one.set(float("nan"))
        self._drifted.set(0)

    def show(self, psi: float, ks: float, ks_p: float, shifted: bool, drifted: bool) -> None:
        self._psi.set(psi)
        self._ks.set(ks)
        self._ks_p.set(ks_p)
        self._windows.inc()
        self._shifted.inc(int(shifted))
        self._drifted.set(int(drifted))


class Board:
    """What the parent knows, and the text of everything."""

    def __init__(self, folder: Path) -> None:
        """`folder` is where the workers keep their counters."""
        from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics

        quieter: Any = disable_created_metrics  # it has no types
        quieter()
        self._folder = folder
        self._own = own = CollectorRegistry()

        def gauge(name: str, what: str, labels: tuple[str, ...] = ()) -> Any:
            return Gauge(name, what, labels, registry=own)

        self.version = gauge("podium_model_version", "The version that answers.", ("role",))
        self.loaded_at = gauge(
            "podium_model_loaded_timestamp_seconds", "When all workers had it.", ("role",)
        )
        self.load_s = gauge(
            "podium_model_load_seconds", "What loading took the slowest worker.", ("role",)
        )
        self.verifies = gauge(
            "podium_release_verifies",
            "Whether what answers verifies with the keys that are there now.",
            ("role",),
        )
        self.reachable = gauge("podium_registry_reachable", "Whether the registry answers.")
        self.workers = gauge("podium_workers", "Workers that answer.")
        self.restarts = Counter(
            "podium_server_restarts_total", "How often the server was started again.", registry=own
        )
        self.refused = Counter(
            "podium_refused_releases_total",
            "Releases that the alias pointed at and that were not served.",
            ["reason"],
            registry=own,
        )
        for reason in REFUSALS:
            self.refused.labels(reason)

    def add_drift(self) -> DriftGauges:
        """Has the metrics of drift too, of a server with a watcher."""
        return DriftGauges(self._own)

    def text(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        shared: CollectorRegistry = CollectorRegistry()
        if self._folder.is_dir():
            collect: Any = MultiProcessCollector
            collect(shared, path=str(self._folder))
        return generate_latest(self._own) + generate_latest(shared)

    def forget(self, pid: int) -> None:
        """Drops the gauges of a dead worker; what it counted stays."""
        from prometheus_client.multiprocess import mark_process_dead

        if self._folder.is_dir():
            forget: Any = mark_process_dead
            forget(pid, str(self._folder))
        for counters in self._folder.glob(f"*_{pid}.db"):
            with contextlib.suppress(OSError, struct.error):
                _trim(counters)

    def show(self, role: str, version: int | None, loaded_at: float, load_s: float) -> None:
        """Sets what stands of a role; without a version it goes."""
        if version is None:
            for one in (self.version, self.loaded_at, self.load_s, self.verifies):
                with contextlib.suppress(KeyError):
                    one.remove(role)
            return
        self.version.labels(role).set(version)
        self.loaded_at.labels(role).set(loaded_at)
        self.load_s.labels(role).set(load_s)
        self.verifies.labels(role).set(1)


REFUSALS: Final = ("unverified", "unrecorded", "too_large", "not_loaded", "unfit")
"""Why a release was refused: its bytes, the alias record, its size, what loading it met, or that it
is a watcher that cannot watch what is served."""


def open_exposition(
    host: str, port: int, pages: Mapping[str, Callable[[], Any]]
) -> ThreadingHTTPServer:
    """Serves pages by GET in threads of their own; bytes are Prometheus text, the rest is JSON.

    Args:
        pages: By path, as `/metrics`. One that has nothing to tell returns a sentence that says
            why, which is answered with 404.

    Raises:
        OSError: the port cannot be had.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_GET(self) -> None:
            page = pages.get(self.path.split("?", 1)[0])
            value = None if page is None else page()
            if isinstance(value, bytes):
                self._send(200, "text/plain; version=0.0.4; charset=utf-8", value)
            elif value is None or isinstance(value, str):
                why = value or f"nothing here; there are {', '.join(pages)}"
                self._send(404, "text/plain; charset=utf-8", f"{why}\n".encode())
            else:
                self._send(200, "application/json", json.dumps(value).encode())

        def _send(self, status: int, sort: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", sort)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing: a scrape every few seconds is no event."""

    class Exposition(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        daemon_threads = True

    server = Exposition((host, port), Handler)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server
