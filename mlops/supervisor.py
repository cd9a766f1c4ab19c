"""What runs the embedded tracking server: a detached supervisor, and MLflow as its child.

One server a home, kept alive by leases (mlops/lease.py). What a kill -9 leaves: of a holder, a
lease that nobody locks, which is deleted. Of a starter, a server without a holder, which ends
itself. Of MLflow, a supervisor that starts it again on the socket it still has, so that clients
wait instead of failing. Of the supervisor, an MLflow that goes on, can be joined, and ends itself
after the last holder. Of both, free locks and a `server.json` that says which port the next server
should take.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from mlops.lease import Address, ServerFolder
from mlops.settings import QUIET, Settings

LOOK_EVERY_S = 1.0
END_S = 5.0
N_RESTARTS = 4


def spawn_supervisor(
    folder: ServerFolder, settings: Settings, host: str, lock_fd: int, sock: socket.socket
) -> subprocess.Popen[bytes]:
    """Starts the detached process that owns the server; the lock and the socket become its own."""
    keep = (lock_fd, sock.fileno())
    command = _command(
        "supervise",
        str(folder.path),
        settings.mlflow_db_uri,
        str(settings.artifact_root),
        host,
        *map(str, keep),
    )
    with folder.open_log() as log:
        return subprocess.Popen(
            command,
            pass_fds=keep,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def supervise(
    folder_path: str, db_uri: str, artifact_root: str, host: str, lock_fd: str, sock_fd: str
) -> None:
    """Runs MLflow until the last holder is gone. The main function of the supervisor."""
    folder = ServerFolder(Path(folder_path))
    lock, listener = int(lock_fd), int(sock_fd)
    sock = socket.socket(fileno=listener)
    port = sock.getsockname()[1]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    look = folder.last_look()
    n_deaths = 0
    start_lock: int | None = None
    while True:
        started_at = time.monotonic()
        process = subprocess.Popen(
            _command(
                "serve_mlflow",
                *(folder_path, db_uri, artifact_root, str(os.getpid()), lock_fd, sock_fd),
            ),
            pass_fds=(lock, listener),
            env=_mlflow_env(db_uri, artifact_root),
            process_group=0,
        )
        try:
            folder.write_address(
                Address(
                    url=local_url(host, port),
                    host=host,
                    port=port,
                    supervisor_pid=os.getpid(),
                    mlflow_pid=process.pid,
                    started_at=datetime.now(UTC).isoformat(timespec="seconds"),
                )
            )
            while process.poll() is None and start_lock is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK_EVERY_S)
                start_lock = look()
        finally:
            _end_group(process)
        # Killed from outside (out of memory, a person): start it again, its clients wait on the
        # socket. Ended by itself: the log says why, and it would end the same way once more.
        n_deaths = n_deaths + 1 if time.monotonic() - started_at < 60 else 1
        if start_lock is not None or process.returncode >= 0 or n_deaths > N_RESTARTS:
            break
        print(f"MLflow was ended by signal {-process.returncode}; starting it again.", flush=True)  # noqa: T201
        time.sleep(0.2 * 2**n_deaths)
    # From here to the exit the order matters to who waits for start.lock: port and server.lock
    # are free before it is. A crash on the way leaves at most a server.json without a server.
    with contextlib.nullcontext() if start_lock is not None else folder.starting(timeout_s=30):
        folder.remove_address()
        sock.close()
        os.close(lock)


def serve_mlflow(
    folder_path: str, db_uri: str, artifact_root: str, parent: str, lock_fd: str, sock_fd: str
) -> None:
    """Runs MLflow's web application in this process, on a socket that listens already.

    `mlflow server` does the same in two processes, which import MLflow one after the other: 15.5 s
    and 510 MB, against 7.7 s and 257 MB here (2 cores, mlflow 3.17.2).
    """
    os.set_inheritable(int(lock_fd), False)  # no program that MLflow runs may keep the lock
    threading.Thread(
        target=_end_when_orphaned, args=(ServerFolder(Path(folder_path)), int(parent)), daemon=True
    ).start()
    import uvicorn  # before mlflow.server, which looks whether it is run as a server
    from mlflow.server.handlers import initialize_backend_stores

    create_database(Path(db_uri.removeprefix("sqlite:///")), artifact_root)
    initialize_backend_stores(db_uri, db_uri, artifact_root)  # migrates an older database
    from mlflow.server.fastapi_app import app

    # No access log: a sweep makes thousands of requests. 3 s: none of them may hold up the end.
    config = uvicorn.Config(app, access_log=False, timeout_graceful_shutdown=3)
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sock_fd))])


def local_url(host: str, port: int) -> str:
    """The URL under which a process of this machine reaches what listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def create_database(path: Path, artifact_root: str) -> None:
    """Makes MLflow's SQLite file whole, unless it is there."""
    # MLflow makes its tables in dozens of steps and cannot go on from the middle. Made beside its
    # place and renamed when complete: a kill on the way leaves a file that is made anew.
    if path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with path.with_name(f"{path.name}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel lets go of it when this process dies
        if path.exists():
            return
        new = path.with_name(f"{path.name}.new")
        new.unlink(missing_ok=True)
        SqlAlchemyStore(f"sqlite:///{new}", artifact_root).engine.dispose()
        new.rename(path)


def _mlflow_env(db_uri: str, artifact_root: str) -> dict[str, str]:
    env = os.environ | QUIET
    # Where clients look is not where the server keeps: it would follow these in a circle.
    env.pop("MLFLOW_TRACKING_URI", None)
    env.pop("MLFLOW_REGISTRY_URI", None)
    return env | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # The names by which `mlflow server` tells its web application (mlflow.server.constants);
        # some of its checks look whether they are set.
        "_MLFLOW_SERVER_FILE_STORE": db_uri,
        "_MLFLOW_SERVER_REGISTRY_STORE": db_uri,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": artifact_root,
    }


def _end_when_orphaned(folder: ServerFolder, parent: int) -> None:
    """Does the supervisor's last duty if it is gone: ends this process after the last holder."""
    look = folder.last_look()
    with contextlib.suppress(FileNotFoundError):  # the home was deleted: nobody is left
        while os.getppid() == parent or look() is None:
            time.sleep(LOOK_EVERY_S)
    # start.lock stays open until the process is gone, so that who starts next waits for that.
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(END_S)
    os._exit(1)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    gone = (ProcessLookupError, PermissionError)  # the second: macOS, while it is a zombie
    with contextlib.suppress(*gone):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_S)
    with contextlib.suppress(*gone):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _command(function: str, *args: str) -> list[str]:
    # Not `-m`: that needs the package in the working directory or installed, and a program may
    # have changed the directory. -P: nor shall a file lying there pass for one of MLflow's.
    root = str(Path(__file__).resolve().parents[1])
    code = (
        f"import sys; sys.path.append({root!r}); "
        f"from mlops.supervisor import {function}; {function}(*sys.argv[1:])"
    )
    return [sys.executable, "-P", "-c", code, *args]
