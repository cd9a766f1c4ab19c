"""Tables of Parquet files that anybody may have written, read by a process beside this one."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from typing import Any, Final, Literal

from registry.child import without_secrets
from registry.serving import parquet_decoder
from registry.serving.parquet_decoder import LARGE, READY, TABLE, max_decoded, receive, send

_LEAN: Final = {
    # Memory is taken when it is needed, and not by the gigabyte: the system counts it all.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
_log = logging.getLogger(__name__)


class UnreadParquetError(Exception):
    """Why a file was not read: it is none, or makes too much, or nobody had time for it."""

    def __init__(self, reason: Literal["bad", "large", "busy"]) -> None:
        super().__init__(reason)
        self.reason = reason


class ParquetReader:
    """Reads files, one at a time, each within bounds that follow from its size.

    A file of n bytes takes `max_memory(n)` bytes (32 n + 256 MiB), and twice the file itself, in
    the other process, which the system sees to; and here a stream of `max_decoded(n)` bytes
    (8 n + 64 MiB) and what pandas makes of it, of n + `max_cells` cells.

    The other process is started by the first file, and again where it has died; it ends with this.
    Where the system cannot limit addresses (macOS) only what comes out of it is bounded.

    Args:
        max_cells: Most cells of a table beyond the bytes of its file.
        timeout_s: How long a file may take, and how long it may wait for the ones before it.
    """

    def __init__(self, max_cells: int, timeout_s: float = 5.0) -> None:
        self._max_cells = max_cells
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._peer: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """Of the other process; None before the first file."""
        return None if self._process is None else self._process.pid

    def read(self, content: bytes) -> Any:
        """Returns a file's table as a DataFrame; what its rows are called is dropped.

        Raises:
            UnreadParquetError: there is none.
        """
        import pyarrow as pa

        if not self._lock.acquire(timeout=self._timeout_s):
            raise UnreadParquetError("busy")
        try:
            stream = self._decode(content)
        finally:
            self._lock.release()
        return pa.ipc.open_stream(stream).read_all().to_pandas()

    def close(self) -> int | None:
        """Ends the other process; returns its exit status."""
        if self._process is None or self._peer is None:
            return None
        self._peer.close()
        self._process.kill()  # which does not change how one that has ended did so
        status = self._process.wait()
        self._process = self._peer = None
        return status

    def _decode(self, content: bytes) -> bytearray:
        if self._process is not None and self._process.poll() is not None:
            self.close()
        peer = self._peer or self._start()
        try:
            send(peer, content)
            said = receive(peer, 16)
            if said == TABLE:
                return receive(peer, max_decoded(len(content)))
        except (EOFError, OSError):
            status = self.close()
            _log.warning("reading a Parquet file ended with status %s", status)
            # Of time, or of memory of the whole machine.
            was_long = status in (-signal.SIGALRM, -signal.SIGKILL)
            raise UnreadParquetError("large" if was_long else "bad") from None
        raise UnreadParquetError("large" if said == LARGE else "bad")

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.settimeout(self._timeout_s + 5)  # beyond its own: it may have been stopped
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [
                        *(sys.executable, "-P", parquet_decoder.__file__),
                        *(str(theirs.fileno()), str(self._max_cells), str(self._timeout_s)),
                    ],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=without_secrets(os.environ) | _LEAN,
                )
            self._peer = ours
            if receive(ours, 16) == READY:
                return ours
        except (EOFError, OSError) as err:
            _log.error("the process that reads Parquet could not begin: %s", type(err).__name__)
        ours.close()
        self.close()
        raise UnreadParquetError("busy")
