"""The embedded tracking server: MLflow on the home's SQLite file and folder of artifacts.

The processes of one home share one server by lease; it ends when the last of them is gone, killed
ones included. `mlops.lease` and `mlops.supervisor` say how.

Example:
    >>> with open_server(Settings.from_env()) as server:   # starts or joins, and does not wait
    ...     server.wait()                                  # until it answers
    ...     print(server.url)
    http://127.0.0.1:5000
"""

from __future__ import annotations

import errno
import ipaddress
import os
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from mlops.errors import ServerError, UsageError
from mlops.lease import Address, ServerFolder, try_lock
from mlops.program import answer, run_program, say
from mlops.settings import Settings
from mlops.supervisor import local_url, spawn_supervisor

FIRST_PORT = 5000
START_TIMEOUT_S = 30.0
"""How long the supervisor, and who starts or ends beside us, may take; MLflow takes longer."""


@dataclass(frozen=True, slots=True)
class Server:
    """An embedded server that this process holds a lease on.

    Attributes:
        url: Base URL, for example http://127.0.0.1:5000. It does not change while it is held.
        joined: True when the server was running already.
    """

    url: str
    joined: bool
    _folder: ServerFolder = field(repr=False)

    def wait(self, timeout_s: float = 90.0) -> None:
        """Returns once GET /health answers 200.

        Raises:
            ServerError: The server ended, or did not answer within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            if self._answers(timeout_s=min(left_s, 2.0)):
                return
            self.check_alive()
            time.sleep(0.05)
        raise ServerError(
            f"The tracking server does not answer; expected {self.url}/health within "
            f"{timeout_s:g} s. {self._log_says()}"
        )

    def check_alive(self) -> None:
        """Raises ServerError, with the last line of the log, if no process of the server lives."""
        if not self._folder.is_running():
            raise ServerError(f"The tracking server has ended. {self._log_says()}")

    def _answers(self, *, timeout_s: float) -> bool:
        # No proxy: one that the environment names cannot reach this machine's loopback.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"{self.url}/health", timeout=timeout_s) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _log_says(self) -> str:
        return f"Its log {str(self._folder.log)!r} ends with: {self._folder.log_tail()}"


@contextmanager
def open_server(
    settings: Settings, *, host: str = "127.0.0.1", port: int | None = None
) -> Iterator[Server]:
    """Starts the home's server or joins the running one, and holds a lease on it until exit.

    Returns as soon as the address is fixed, in well under a second; MLflow answers some 8 s later,
    and until then a request to it waits.

    Args:
        settings: Embedded settings.
        host: The interface to listen on; a running server that listens elsewhere is joined only
            if this one is loopback.
        port: 1 to 65535. None joins any; and starts on the port of a server that crashed, else on
            5000 if that is free, else on any.

    Raises:
        UsageError: `settings` name a server of their own, or `port` is out of range.
        ServerError: The port is taken, or the running server has another address.
    """
    if settings.tracking_uri is not None:
        raise UsageError(
            "MLFLOW_TRACKING_URI points to a tracking server elsewhere; expected it unset for the "
            "embedded one. Unset it (unset MLFLOW_TRACKING_URI), or use that server."
        )
    if port is not None and not 1 <= port <= 65535:
        raise UsageError(f"The port is out of range; expected 1 to 65535, got {port}.")
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = ServerFolder(settings.home / "server")
    folder.create()
    with ExitStack() as until_exit:
        with folder.starting(timeout_s=START_TIMEOUT_S):
            # The lease comes first: killed after this line, we leave a lease that nobody locks
            # and at most a server without a holder, and the server ends itself.
            until_exit.enter_context(folder.lease())
            lock = try_lock(folder.server_lock)
            if lock is None:
                address, joined = _join(folder, host, port), True
            else:
                address, joined = _start(folder, settings, lock, host, port), False
        yield Server(address.url, joined, folder)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _join(folder: ServerFolder, host: str, port: int | None) -> Address:
    # The address is there unless a starter was killed a moment ago: then it comes in a moment.
    deadline = time.monotonic() + START_TIMEOUT_S
    while (address := folder.find_address()) is None:
        if time.monotonic() > deadline:
            raise ServerError(
                f"A server of this home runs but does not say where; expected its address in "
                f"{str(folder.path / 'server.json')!r}. End the process that holds "
                f"{str(folder.server_lock)!r} (fuser {folder.server_lock})."
            )
        time.sleep(0.05)
    elsewhere = host != address.host and not is_loopback(host)
    if elsewhere or port not in (None, address.port):
        wanted = local_url(host, port or address.port)
        raise ServerError(
            f"A server of this home is running already at {address.url}; expected {wanted}. "
            "Use that one, or end what holds it (a sweep, make ui) and try again."
        )
    return address


def _start(
    folder: ServerFolder, settings: Settings, lock: int, host: str, port: int | None
) -> Address:
    """Starts a supervisor that inherits `lock`; returns the address that it has published."""
    try:
        crashed = folder.find_address()  # its holders may still be there, and know that port
        with _listen(host, port, preferred=crashed.port if crashed else FIRST_PORT) as sock:
            folder.remove_address()
            process = spawn_supervisor(folder, settings, host, lock, sock)
    finally:
        os.close(lock)  # the supervisor's copy keeps it locked
    deadline = time.monotonic() + START_TIMEOUT_S
    while (address := folder.find_address()) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise ServerError(
                "The embedded server could not be started. Its log "
                f"{str(folder.log)!r} ends with: {folder.log_tail()}"
            )
        time.sleep(0.02)
    # It may end before we do: somebody has to take its exit status.
    threading.Thread(target=process.wait, daemon=True).start()
    return address


def _listen(host: str, port: int | None, *, preferred: int) -> socket.socket:
    """Returns a socket that listens, so that from here on nobody else gets the port."""
    candidates = [port] if port is not None else [preferred, FIRST_PORT, 0]
    for candidate in candidates:
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server((host, candidate), family=family, backlog=2048)
        except OSError as err:
            if err.errno == errno.EADDRINUSE and port is None:
                continue
            if err.errno == errno.EADDRINUSE:
                raise ServerError(
                    f"Port {port} of {host} is taken by another program; expected a free one. "
                    "Name another port, or none to have one chosen."
                ) from err
            raise ServerError(
                f"Cannot listen on {host} port {candidate}: {err.strerror}. "
                "Name an address of this machine, and a port above 1023."
            ) from err
    raise ServerError(f"No port of {host} is free. End a program that listens, and try again.")


@dataclass(frozen=True)
class ServerOptions:
    """What `python -m mlops.server` takes."""

    host: str = "127.0.0.1"
    """Interface to listen on. Any but loopback opens the server, which has no login, to others."""
    port: int | None = None
    """Port to listen on; without it the running server's, else 5000, else any free one."""
    debug: bool = False
    """Show the traceback of an error."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs or joins the server in the foreground until Ctrl-C; returns the exit code."""
    return run_program(
        ServerOptions,
        _serve,
        prog="python -m mlops.server",
        description="The embedded tracking server and its UI, until Ctrl-C.",
        args=args,
    )


def _serve(options: ServerOptions) -> int:
    # Ctrl-C is how a server ends, so exit code 0; a plain kill ends it the same way.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with open_server(Settings.from_env(), host=options.host, port=options.port) as server:
            if not is_loopback(options.host):
                say(f"It listens on {options.host} without a login: who reaches it can change it.")
            say(f"{'Joined' if server.joined else 'Starting'} {server.url} ...")
            server.wait()
            say("Ctrl-C ends it, unless something else of this home still uses it.")
            # Last: who waits for the link may press Ctrl-C at once.
            answer(f"MLflow UI: {server.url}/#/experiments?workflowType=machine_learning")
            while True:
                time.sleep(1.0)
                server.check_alive()
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
