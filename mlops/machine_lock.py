"""A lock that the processes of one user on one machine share, whatever home they work in."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def machine_lock(what: str, *, wait_s: float) -> Iterator[bool]:
    """Holds the lock named `what` while the block runs, and says whether it does.

    For what is better done by one process at a time, and is right all the same where it is not: who
    has waited `wait_s`, or cannot make the file, goes on without. The kernel drops the lock with
    its process.

    Args:
        what: Any text; it is hashed, so it may hold what no file name may.
        wait_s: Seconds to wait for whoever holds it.
    """
    digest = hashlib.sha256(what.encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"podium-{os.getuid()}-{digest}.lock"
    try:
        # Not through a link: the folder is everybody's.
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        yield False
        return
    try:
        yield _lock(fd, wait_s)
    finally:
        os.close(fd)


def _lock(fd: int, wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
