"""How the processes of one home agree on its server: a folder of locks, leases and an address.

Who needs the embedded tracking server holds a *lease*; the server lives as long as a lease is held.
A crash must not leave a lease behind, so each is a lock that the kernel drops with its process
(`flock`; Linux and macOS). `<home>/server/` holds:

- `start.lock`: held for a moment by who starts or joins, and by who looks whether anyone is left.
  So a join and the end of the server never overlap.
- `server.lock`: held as long as any process of the server lives. The starter locks it and hands
  the same open file on to the supervisor, and that one to MLflow, so there is no moment between.
- `server.json`: where the server answers. Written before `start.lock` is let go.
- `leases/`: one locked file a holder.
- `server.log`: what supervisor and MLflow say.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from mlops.errors import ServerError

GRACE_S = 2.0
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

    def open_log(self) -> BinaryIO:
        """Opens the log at its end, begun anew if it is too long, and marks a start in it."""
        too_long = self.log.exists() and self.log.stat().st_size > LOG_BYTES
        log = self.log.open("wb" if too_long else "ab")
        log.write(f"{START_MARK}{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n".encode())
        log.flush()
        return log

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
