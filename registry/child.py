"""A child process that works for this one: without network, without credentials, never trusted.

The parent stays light (TensorFlow is the child's) and safe: what comes back is lines of JSON, and a
child that crashes, hangs or is killed is an answer like any other. A line that was sent stays as it
was, whatever the child does later, so work that can be trusted more comes first.

It keeps a hostile model from the network, not from the files of the user who runs it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib
import itertools
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mlops.errors import MlopsError, without_passwords
from mlops.settings import QUIET

NO_NETWORK: Final = "no network"

_SECRETS = re.compile(
    r"^(AWS|AZURE|GOOGLE|PG|SSH|MLOPS|MLFLOW_TRACKING|MLFLOW_REGISTRY)"
    r"|PASSW|TOKEN|SECRET|CREDENTIAL|_KEY",
    re.IGNORECASE,
)
# Of <sched.h>, <net/if.h> and <sys/prctl.h>; os.unshare is there from Python 3.12 on.
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000
_SET_INTERFACE_FLAGS, _INTERFACE_UP = 0x8914, 0x1
_SIGNAL_AT_PARENTS_DEATH = 1


@dataclass(frozen=True, slots=True)
class Told:
    """What a child said, and how it ended.

    Attributes:
        lines: What its work yielded, as JSON gives it back; not checked any further.
        isolation: "no network", or "not kept from the network: " and why.
        death: Why it ended before its work did, to go on from "the process that loaded it"; None
            where it came to the end.
    """

    lines: tuple[Any, ...]
    isolation: str
    death: str | None


def run_child(work: Callable[[Any], Iterable[Any]], request: Any, timeout_s: float) -> Told:
    """Calls `work(request)` in a process of its own and returns what that yields.

    The work sets up what it needs (imports, data), and returns an iterable that has the rest to do.
    Nothing outlives this call: the child is a session of its own, and all of it is ended.

    Args:
        work: A function at the top of a module; the child imports it by name.
        request: Plain values, as JSON has them.
        timeout_s: When the child is killed, in seconds.

    Raises:
        MlopsError: The child did not come as far as to begin the work.
    """
    with _started(work, subprocess.PIPE) as process:
        try:
            out, err = process.communicate(json.dumps(request).encode(), timeout_s)
            death = _death(process.returncode, err)
        except subprocess.TimeoutExpired as late:
            out, death = late.output or b"", f"was not done after {timeout_s:g} s"
    return _read(out, death)


def follow_child(
    work: Callable[[Any], Iterable[Any]], request: Any, env: Mapping[str, str]
) -> Generator[Any, None, None]:
    """Calls `work(request)` in a process of its own and yields what that yields, as it comes.

    As `run_child` does, without an end to its time. Closing the iterator ends the child.

    Args:
        env: More for the child's environment.

    Raises:
        MlopsError: The child ended before its work did; says how, and its last words.
    """
    with tempfile.TemporaryFile() as said, _started(work, said, env) as process:
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as asked:
            asked.write(json.dumps(request).encode())
        for place, line in enumerate(process.stdout):
            # The first is its isolation; what stands behind the last end of a line was cut off.
            if place and line.endswith(b"\n"):
                yield json.loads(line)
        process.wait()
        said.seek(0)
        death = _death(process.returncode, said.read())
    if death is not None:
        raise MlopsError(f"the process {death}")


@contextlib.contextmanager
def _started(
    work: Callable[[Any], Iterable[Any]], stderr: Any, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a child that waits for its request; ends it, and all that it started."""
    root = str(Path(__file__).resolve().parents[1])
    # Not `-m`: the package need not be installed. -P: nor is the working folder to be trusted.
    code = f"import sys; sys.path.append({root!r}); from registry.child import serve; serve()"
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code, work.__module__, work.__name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=QUIET | without_secrets(os.environ) | dict(env or {}),
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def without_secrets(env: Mapping[str, str]) -> dict[str, str]:
    """Returns an environment without what may be a credential, by name or as part of a URL."""
    return {
        name: value
        for name, value in env.items()
        if not _SECRETS.search(name) and without_passwords(value) == value
    }


def leave_network() -> str:
    """Moves this process, and those it starts, where there is no network but a loopback of its own.

    A process without the right to do so does it as the root of a user namespace of its own, which
    the kernel allows to a single thread only: call it before anything heavy is imported.

    Returns:
        `NO_NETWORK`, or "not kept from the network: " and why.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "unshare"):
        return "not kept from the network: this system cannot do that"
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_NEW_NETWORK):
        if libc.unshare(_NEW_USER | _NEW_NETWORK):
            refused = os.strerror(ctypes.get_errno()).lower()
            return f"not kept from the network: the system refused that ({refused})"
        _keep_names(user, group)
    with socket.socket() as any_socket, contextlib.suppress(OSError):
        up = struct.pack("16sH22x", b"lo", _INTERFACE_UP)
        fcntl.ioctl(any_socket, _SET_INTERFACE_FLAGS, up)
    return NO_NETWORK


def _keep_names(user: int, group: int) -> None:
    """Has a new user namespace call this user and group what they are called outside of it."""
    lines = {
        "uid_map": f"{user} {user} 1",
        "setgroups": "deny",  # the kernel wants it before the next
        "gid_map": f"{group} {group} 1",
    }
    with contextlib.suppress(OSError):  # else they are nobody's, and may do the same
        for name, line in lines.items():
            Path("/proc/self", name).write_text(line)


def serve() -> None:
    """Does what `run_child` asked of this process."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what libraries print is no answer
    isolation = leave_network()
    _end_with_parent()
    module, name = sys.argv[1:]
    work = getattr(importlib.import_module(module), name)
    for line in itertools.chain([isolation], work(json.load(sys.stdin))):
        answers.write(json.dumps(line) + "\n")
        answers.flush()


def _end_with_parent() -> None:
    """Ends this session when the parent is killed, which can end nothing then."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
        libc.prctl(_SIGNAL_AT_PARENTS_DEATH, signal.SIGTERM)


def _death(status: int, err: bytes) -> str | None:
    if status == 0:
        return None
    how = f"ended with exit status {status}"
    if status < 0:
        how = f"was killed by signal {-status} ({signal.strsignal(-status)})"
    if status == -signal.SIGKILL:
        how += ", as the system does when memory runs out"
    said = err.decode(errors="replace").strip().rsplit("\n", 1)[-1]
    return f"{how}: {without_passwords(said)[:300]}" if said else how


def _read(out: bytes, death: str | None) -> Told:
    lines: list[Any] = []
    try:
        # What stands behind the last end of a line was cut off.
        lines.extend(json.loads(line) for line in out.split(b"\n")[:-1])
    except (ValueError, RecursionError):
        death = death or "answered what nobody can read"
    if not lines:
        raise MlopsError(
            f"the process that loads models could not begin: it {death or 'said nothing'}. "
            "Run the command with --debug, and check that the installation is whole."
        )
    isolation, *rest = lines
    return Told(tuple(rest), str(isolation), death)
