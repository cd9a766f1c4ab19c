"""What a request takes in the real `mlflow models serve`, with one worker, on this machine."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from registry.child import run_child
from registry.probe import ModelFailedError

if TYPE_CHECKING:
    from registry.evidence import Serving

WARM_UP: Final = 20
"""Requests that are not timed."""


def measure_serving(folder: Path, body: bytes, n: int = 200, timeout_s: float = 600) -> Serving:
    """Times requests to a server of its own, which is kept from the network where possible.

    Args:
        folder: The model. It is loaded, so it must have passed the check.
        body: One request in JSON, of one row.
        n: How many requests, one after another over one connection.
        timeout_s: For all of it, the start of the server too, in seconds.

    Raises:
        ModelFailedError: The server does not start, or does not answer with status 200.
    """
    import numpy as np

    from registry.evidence import Serving

    request = {"folder": str(folder.absolute()), "body": body.decode("utf-8"), "n": n}
    told = run_child(time_requests, request, timeout_s)
    if not told.lines:
        raise ModelFailedError(f"the model could not be served: what asked it {told.death}")
    (said,) = told.lines
    if "error" in said:
        raise ModelFailedError(f"the model could not be served: {said['error']}")
    p50, p95 = (1e3 * np.percentile(said["times_s"], [50, 95])).tolist()
    return Serving(n, p50, p95, said["memory_bytes"])


def time_requests(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The work of `measure_serving`, in its child: yields times and memory, or an error."""
    return map(_time_requests, [request])


def _time_requests(request: Mapping[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as log:
        port = _free_port()
        server = _start(request["folder"], port, log)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while not _is_up(connection):
            if server.poll() is not None:
                return {"error": f"exit status {server.returncode}, {_last_line(log)}"}
            time.sleep(0.1)
        times_s = []
        for _ in range(WARM_UP + request["n"]):
            began = time.perf_counter()
            status, answer = _ask(connection, request["body"])
            times_s.append(time.perf_counter() - began)
            if status != 200:
                return {"error": f"status {status}, {answer[:300]}"}
        return {"times_s": times_s[WARM_UP:], "memory_bytes": _memory(server.pid)}


def _start(folder: str, port: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Starts the server; who started this process ends it, since it is of the same session."""
    options = {"-m": folder, "--env-manager": "local", "--host": "127.0.0.1", "--port": str(port)}
    words = [word for option in options.items() for word in option]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "mlflow", "models", "serve", *words],
        env={**os.environ, "PATH": path},  # it starts uvicorn by its name
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _is_up(connection: http.client.HTTPConnection) -> bool:
    try:
        connection.request("GET", "/ping")
        answer = connection.getresponse()
        answer.read()
        return answer.status == 200
    except (OSError, http.client.HTTPException):
        connection.close()  # the next request opens it again
        return False


def _ask(connection: http.client.HTTPConnection, body: str) -> tuple[int, str]:
    connection.request("POST", "/invocations", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.read().decode(errors="replace")


def _memory(pid: int) -> int:
    import psutil

    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    return sum(one.memory_info().rss for one in family)


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace").strip().rsplit("\n", 1)[-1][:300]
