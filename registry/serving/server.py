"""The unchanged `mlflow models serve`, in a process group of its own.

    serve.py (parent) -> mlflow models serve -> uvicorn -> its workers

One worker is uvicorn itself; of several, uvicorn watches over processes and starts one again that
died. MLflow ends when uvicorn does, and a SIGTERM to MLflow alone would leave uvicorn behind: it is
always the group that is told to end.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from mlops.program import say
from mlops.settings import QUIET
from mlops.supervisor import local_url
from registry.child import without_secrets
from registry.serving.group import MARK, PARENT, record_group, start_of, this_process
from registry.serving.state import StateFolder, write_json

_SIGNATURE: Final = {
    "inputs": None,
    "outputs": None,
    "params": json.dumps(
        [
            {"name": name, "default": False, "shape": None, "type": "boolean"}
            for name in ("labels", "explain")
        ]
    ),
}
"""For MLflow's own code, where it reads requests; ours gives params to the model as they are."""

_CHATTER: Final = (b"WARNING: All log messages before absl", b"I0000 00:00:")
"""What TensorFlow says when it is imported, however quiet it was told to be."""


@dataclass(frozen=True, slots=True)
class Serving:
    """How the server is run.

    Attributes:
        timeout_s: After so long MLflow answers a request with status 504.
        drain_s: How long a request that is being answered may take at the end.
        max_rows, max_batch, max_wait_ms: For the scoring runtime.
        max_queue: Requests that wait for a thread in each worker; more are answered with 503.
        watch_rows_s: Most rows a second that the watcher scores, in all workers; 0 for no watcher.
    """

    host: str
    port: int
    workers: int
    timeout_s: int
    drain_s: int
    max_rows: int
    max_batch: int
    max_wait_ms: float
    max_queue: int
    watch_rows_s: float = 0.0


def write_model(folder: StateFolder, serving: Serving) -> None:
    """Writes the model folder whose model follows the alias; JSON is YAML."""
    flavor = {
        "loader_module": "registry.live",
        "python_version": platform.python_version(),
        "config": {
            "state": str(folder.path),
            "max_rows": serving.max_rows,
            "max_batch": serving.max_batch,
            "max_wait_ms": serving.max_wait_ms,
            "max_queue": serving.max_queue,
            "drain_s": serving.drain_s,
            "watch_rows_s": serving.watch_rows_s / serving.workers,
        },
    }
    value = {"flavors": {"python_function": flavor}, "signature": _SIGNATURE}
    folder.model.mkdir(exist_ok=True)
    write_json(folder.model / "MLmodel", value)


class Server:
    """A running server; start it again with a new one."""

    def __init__(self, folder: StateFolder, serving: Serving) -> None:
        """Starts it; it answers some seconds later."""
        self._serving = serving
        self._ending = threading.Event()
        self._process = subprocess.Popen(
            _command(folder.model, serving),
            # A private folder: uvicorn imports from where it is started.
            cwd=folder.model,
            env=_env(folder, serving),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        record_group(folder, self.group)
        self._told: dict[int, float] = {}
        threading.Thread(target=self._copy_log, name="log", daemon=True).start()

    @property
    def group(self) -> int:
        return self._process.pid

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def answers(self) -> bool:
        """Tells whether this server answers GET /ping.

        One worker reports before it listens, and the port may be another's by then.
        """
        if not self._listens():
            return False
        url = f"{local_url(self._serving.host, self._serving.port)}/ping"
        # No proxy: one that the environment names cannot reach this machine's loopback.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(url, timeout=2.0) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def holds(self, pid: int) -> bool:
        """Tells whether a process is alive and of this server."""
        try:
            return os.getpgid(pid) == self.group and start_of(pid) is not None
        except ProcessLookupError:
            return False

    def end(self, pid: int) -> None:
        """Has a worker that hangs end: gently first, and killed when called after `drain_s`.

        Uvicorn, or the parent, starts another.
        """
        if not self.holds(pid):
            return
        now = time.monotonic()
        if pid not in self._told:
            self._told[pid] = now
            os.kill(pid, signal.SIGTERM)
        elif now - self._told[pid] > self._serving.drain_s + 5.0:
            os.kill(pid, signal.SIGKILL)

    def _listens(self) -> bool:
        """Tells whether a process of this group listens on the port."""
        import psutil

        for pid in filter(self.holds, psutil.pids()):
            with contextlib.suppress(psutil.Error):
                for one in psutil.Process(pid).net_connections("tcp"):
                    if one.status == psutil.CONN_LISTEN and one.laddr.port == self._serving.port:
                        return True
        return False

    def stop(self) -> bool:
        """Lets what is being answered come to its end, then ends all; True where it did in time."""
        self._ending.set()
        self._tell(signal.SIGTERM)
        # Uvicorn gives up by itself after drain_s; a worker that hangs does not.
        deadline = time.monotonic() + self._serving.drain_s + 5.0
        while (alive := self._alive()) and time.monotonic() < deadline:
            self._process.poll()
            time.sleep(0.05)
        self._tell(signal.SIGKILL)
        self._process.wait()
        return not alive

    def _tell(self, what: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.group, what)

    def _alive(self) -> bool:
        import psutil

        return any(self.holds(pid) for pid in psutil.pids())

    def _copy_log(self) -> None:
        """Passes on what MLflow, uvicorn and the workers say; the pipe is never full."""
        log: IO[bytes] | None = self._process.stdout
        assert log is not None
        for line in log:
            if line.startswith(_CHATTER):
                continue
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(line.decode(errors="replace"))
                sys.stderr.flush()


def _command(model: Path, serving: Serving) -> list[str]:
    options = {
        "-m": str(model),
        "--env-manager": "local",
        "--host": serving.host,
        "--port": str(serving.port),
        "--workers": str(serving.workers),
        "--timeout": str(serving.timeout_s),
    }
    words = [word for option in options.items() for word in option]
    # -P: a file that lies in the working folder shall not pass for one of MLflow's.
    return [sys.executable, "-P", "-m", "mlflow", "models", "serve", *words]


def _env(folder: StateFolder, serving: Serving) -> dict[str, str]:
    """The environment of the server: without credentials, and with its settings."""
    env = without_secrets(os.environ)
    root = str(Path(__file__).resolve().parents[2])
    threads = max(1, cores() // serving.workers)
    defaults = {
        **QUIET,
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "TF_NUM_INTEROP_THREADS": "1",
        "UVICORN_LOG_LEVEL": "warning",
        "UVICORN_TIMEOUT_KEEP_ALIVE": "75",
        "UVICORN_TIMEOUT_WORKER_HEALTHCHECK": "15",
    }
    return {
        **defaults,
        **env,
        "UVICORN_ACCESS_LOG": "false",
        **_ours_in_uvicorn(),
        "UVICORN_APP_DIR": str(folder.model),
        "UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN": str(serving.drain_s),
        MARK: str(folder.metrics),
        PARENT: json.dumps(this_process()),
        "PATH": _joined(str(Path(sys.executable).parent), env.get("PATH", os.defpath)),
        "PYTHONPATH": _joined(root, env.get("PYTHONPATH", "")),
        "PYTHONDONTWRITEBYTECODE": "1",  # in a model folder it would be a file too many
        "PYTHONUNBUFFERED": "1",
    }


def _ours_in_uvicorn() -> dict[str, str]:
    """Has uvicorn take our event loop and protocol, if it is one that lets itself be told."""
    from uvicorn.config import Config

    if not hasattr(Config, "get_loop_factory"):
        say("this uvicorn takes no event loop of ours: the queue of requests is not bounded.")
        return {}
    ours = {"UVICORN_LOOP": "registry.serving.admission:new_event_loop"}
    if importlib.util.find_spec("uvicorn.protocols.http.httptools_impl") is not None:
        ours["UVICORN_HTTP"] = "registry.serving.protocol:SheddingProtocol"
    return ours


def _joined(first: str, rest: str) -> str:
    return os.pathsep.join(filter(None, (first, rest)))


def cores() -> int:
    """Returns how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_port(host: str, port: int) -> str | None:
    """Returns why a server could not listen there; None where it could."""
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family):
            return None
    except OSError as err:
        return (err.strerror or str(err)).lower()
