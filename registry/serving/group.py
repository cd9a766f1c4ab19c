"""The processes of a server end with the parent, however that one ended.

A parent that is killed can end nothing. So each worker looks whether its parent is there, in a
thread that waits for no model; and a parent that starts ends what one before it left behind.
Nothing here imports MLflow or TensorFlow.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from registry.serving.state import StateFolder, read_json, write_json

LOOK_EVERY_S: Final = 1.0
LEFT_S: Final = 10.0
"""How long a server that was left behind may take to end by itself."""
MARK: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Of the environment that a server's processes have: it names their state folder."""
PARENT: Final = "PODIUM_SERVING_PARENT"
"""Of the same environment: what `this_process` said in the parent, as JSON.

Not of the state folder, which another parent may have by the time that a worker starts.
"""
_log = logging.getLogger(__name__)


def start_of(pid: int) -> float | None:
    """Returns when a process began, in a unit of this system's; None where there is none.

    With its number it tells a process from all others that ever had the number.
    """
    if not Path("/proc/self/stat").exists():
        return _start_elsewhere(pid)
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else float(fields[19])


def _start_elsewhere(pid: int) -> float | None:
    import psutil

    try:
        process = psutil.Process(pid)
        is_zombie = process.status() == psutil.STATUS_ZOMBIE
        return None if is_zombie else float(round(process.create_time()))
    except psutil.Error:
        return None


def this_process() -> list[float | None]:
    """Returns this process's number and start, for `is_orphaned`; plain JSON values."""
    return [os.getpid(), start_of(os.getpid())]


def is_orphaned(folder: StateFolder, parent: Any = None) -> bool:
    """Tells whether the parent of a server is gone: the process, its lock, or its folder.

    Args:
        parent: What `this_process` said in the parent.
    """
    if parent is not None and start_of(int(parent[0])) != parent[1]:
        return True  # another parent may hold the lock by now
    try:
        fd = os.open(folder.lock, os.O_RDWR)
    except FileNotFoundError:
        return True
    except OSError:
        return False  # without knowing, go on
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def end_with_parent(folder: StateFolder, parent: Any, drain_s: float) -> None:
    """Ends this process group when the parent is gone; looks at once, and then in a thread.

    Args:
        drain_s: How long requests have to come to their end.
    """

    def watch() -> None:
        while not is_orphaned(folder, parent):
            time.sleep(LOOK_EVERY_S)
        _end_this_group(drain_s)

    if is_orphaned(folder, parent):
        _end_this_group(0.0)
    threading.Thread(target=watch, name="orphan", daemon=True).start()


def _end_this_group(drain_s: float) -> None:
    _log.error("the parent is gone: this server ends")
    os.killpg(0, signal.SIGTERM)
    time.sleep(drain_s + 5.0)
    os.killpg(0, signal.SIGKILL)  # what hangs hears of no gentle end


def record_group(folder: StateFolder, group: int) -> None:
    """Has the next parent know of a server, if this one can end it no more."""
    with contextlib.suppress(OSError):  # its workers look for themselves
        write_json(folder.group, {"group": group})


def end_left_behind(folder: StateFolder, within_s: float = LEFT_S) -> bool:
    """Ends the server that a killed parent left; True where there was one. Needs the lock."""
    value = read_json(folder.group)
    group = value.get("group") if isinstance(value, dict) else None
    left = _members(folder, group) if isinstance(group, int) else []
    _signal(left, signal.SIGTERM)
    if left and not _wait(lambda: not _members(folder, group), within_s):
        _signal(_members(folder, group), signal.SIGKILL)
        _wait(lambda: not _members(folder, group), within_s)
    with contextlib.suppress(OSError):
        folder.group.unlink(missing_ok=True)
    return bool(left)


def _members(folder: StateFolder, group: Any) -> list[int]:
    """Returns the processes of a group that serve from a folder: its number may be another's."""
    import psutil

    found = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError, psutil.Error):
            is_alive = os.getpgid(pid) == group and start_of(pid) is not None
            if is_alive and psutil.Process(pid).environ().get(MARK) == str(folder.metrics):
                found.append(pid)
    return found


def _signal(pids: list[int], what: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, what)


def _wait(holds: Callable[[], bool], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not (is_so := holds()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return is_so
