"""What keeps the embedded tracking server alive, and ends it: its folder, its locks, its processes.

One server a home. Who needs it holds a *lease*; a detached supervisor runs MLflow as long as a
lease is held. A crash must not leave a lease behind, so each is a lock that the kernel drops with
its process (`flock`; Linux and macOS). `<home>/server/` holds:

- `start.lock`: held for a moment by who starts or joins, and by who looks whether anyone is left.
  So a join and the end of the server never overlap.
- `server.lock`: held as long as any process of the server lives. The starter locks it and hands
  the same open file on to the supervisor, and that one to MLflow, so there is no moment between.
- `server.json`: where the server answers. Written before `start.lock` is let go.
- `leases/`: one locked file a holder.
- `server.log`: what supervisor and MLflow say.

What a kill -9 leaves: of a holder, a lease that nobody locks, which is deleted. Of a starter, a
server without a holder, which ends itself. Of MLflow, a supervisor that starts it again on the
socket it still has, so that clients wait instead of failing. Of the supervisor, an MLflow that
goes on, can be joined, and ends itself after the last holder. Of both, free locks and a
`server.json` that says which port the next server should take.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from mlops.errors import ServerError
from mlops.settings import QUIET, Settings

LOOK_EVERY_S = 1.0
GRACE_S = 2.0
END_S = 5.0
N_RESTARTS = 4
LOG_BYTES = 1 << 20
START_MARK = "=== started "


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server answers, and the processes that it is.

    Attributes:
        url: Base URL that a client on this machine uses.
        host: The interface it listens on.
        port: 1 to 65535.
        supervisor_pid: The detached process that restarts and ends MLflow.
        mlflow_pid: MLflow's process, leader of a process group of its own.
        started_at: When MLflow was last started; UTC, ISO 8601.
    """

    url: str
    host: str
    port: int
    supervisor_pid: int
    mlflow_pid: int
    started_at: str


@dataclass(frozen=True, slots=True)
class ServerFolder:
    """The folder through which the processes of one home agree on their server."""

    path: Path

    @property
    def server_lock(self) -> Path:
        return self.path / "server.lock"

    @property
    def log(self) -> Path:
        return self.path / "server.log"

    def create(self) -> None:
        (self.path / "leases").mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextmanager
    def starting(self, *, timeout_s: float) -> Iterator[None]:
        """Holds `start.lock`; raises ServerError if others keep it for `timeout_s`."""
        path = self.path / "start.lock"
        deadline = time.monotonic() + timeout_s
        while (fd := try_lock(path)) is None:
            if time.monotonic() > deadline:
                raise ServerError(
                    f"The embedded server is being started or ended by another process; expected "
                    f"{str(path)!r} to be free within {timeout_s:g} s. Try again, or end the "
                    f"process that holds it (fuser {path})."
                )
            time.sleep(0.05)
        try:
            yield
        finally:
            os.close(fd)

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Keeps the server alive until exit or death. To be entered under `start.lock`.

        The lock belongs to the open file, not to the process: `exec` closes it, but a child made
        by a bare `os.fork` shares it, and would hold the lease on after a kill -9 of its parent.
        """
        path = self.path / "leases" / f"{os.getpid()}-{secrets.token_hex(4)}"
        fd = try_lock(path)
        assert fd is not None, "a name of its own has no other holder"
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(fd)

    def is_running(self) -> bool:
        """Whether a process of the server lives, or one is being started or ended right now."""
        # A look at a lock takes it for a moment. Under start.lock, so that no starter takes the
        # look for a server.
        with contextlib.suppress(FileNotFoundError):
            start_fd = try_lock(self.path / "start.lock")
            if start_fd is None:
                return True
            try:
                fd = try_lock(self.server_lock, create=False)
                if fd is None:
                    return True
                os.close(fd)
            finally:
                os.close(start_fd)
        return False

    def find_address(self) -> Address | None:
        """What `server.json` says; it is true only while `is_running`."""
        try:
            return Address(**json.loads((self.path / "server.json").read_text("utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def write_address(self, address: Address) -> None:
        new = self.path / "server.json.new"
        new.write_text(json.dumps(asdict(address)) + "\n", "utf-8")
        new.replace(self.path / "server.json")

    def remove_address(self) -> None:
        (self.path / "server.json").unlink(missing_ok=True)

    def log_tail(self) -> str:
        """The last error since the last start, else the last line, for a message."""
        try:
            text = self.log.read_text("utf-8", errors="replace")
        except FileNotFoundError:
            text = ""
        lines = [line.strip() for line in text.rpartition(START_MARK)[2].splitlines()]
        said = [line for line in lines[1:] if line]
        errors = [line for line in said if re.match(r"([\w.]+(Error|Exception)|ERROR)\b.*:", line)]
        return (errors or said or ["nothing"])[-1]

    def has_holder(self) -> bool:
        """Whether a lease is held; deletes those of the dead. To be called under `start.lock`.

        Under that lock no holder is between creating its file and locking it, so a file that can
        be locked here is one whose holder is gone.
        """
        found = False
        for path in (self.path / "leases").glob("*"):
            with contextlib.suppress(FileNotFoundError):  # let go this very moment
                fd = try_lock(path, create=False)
                if fd is None:
                    found = True
                else:
                    path.unlink(missing_ok=True)
                    os.close(fd)
        return found

    def last_look(self, *, grace_s: float = GRACE_S) -> Callable[[], int | None]:
        """Returns a function to call every second, that answers once nobody is left.

        It answers None as long as there was a holder in the last `grace_s`. After that it answers
        the open `start.lock`, held since before it looked: nobody can join until it is closed.
        """
        seen_at = time.monotonic()

        def look() -> int | None:
            nonlocal seen_at
            fd = try_lock(self.path / "start.lock")
            if fd is None or self.has_holder():  # a locked start.lock: somebody is joining
                seen_at = time.monotonic()
            elif time.monotonic() - seen_at >= grace_s:
                return fd
            if fd is not None:
                os.close(fd)
            return None

        return look


def try_lock(path: Path, *, create: bool = True) -> int | None:
    """Locks a file and returns its descriptor, or None if another open file has the lock."""
    fd = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def spawn_supervisor(
    folder: ServerFolder, settings: Settings, host: str, lock_fd: int, sock: socket.socket
) -> subprocess.Popen[bytes]:
    """Starts the detached process that owns the server; the lock and the socket become its own."""
    too_long = folder.log.exists() and folder.log.stat().st_size > LOG_BYTES
    keep = (lock_fd, sock.fileno())
    command = _command(
        "supervise",
        str(folder.path),
        settings.mlflow_db_uri,
        str(settings.artifact_root),
        host,
        *map(str, keep),
    )
    with folder.log.open("wb" if too_long else "ab") as log:
        log.write(f"{START_MARK}{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n".encode())
        log.flush()
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

    _create_database(Path(db_uri.removeprefix("sqlite:///")), artifact_root)
    initialize_backend_stores(db_uri, db_uri, artifact_root)  # migrates an older database
    from mlflow.server.fastapi_app import app

    # No access log: a sweep makes thousands of requests. 3 s: none of them may hold up the end.
    config = uvicorn.Config(app, access_log=False, timeout_graceful_shutdown=3)
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sock_fd))])


def local_url(host: str, port: int) -> str:
    """The URL under which a process of this machine reaches what listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _create_database(path: Path, artifact_root: str) -> None:
    # MLflow makes its tables in dozens of steps and cannot go on from the middle. Made beside its
    # place and linked there when complete: a kill on the way leaves a file that is made anew.
    if path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    SqlAlchemyStore(f"sqlite:///{new}", artifact_root).engine.dispose()
    with contextlib.suppress(FileExistsError):  # another program opened the store meanwhile
        path.hardlink_to(new)
    new.unlink()


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
