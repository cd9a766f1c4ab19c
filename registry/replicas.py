"""Finds the servers that serve models, and asks them all at the same time.

Those of this home have left their address in their folders; others are named. Each is asked in a
thread of its own that nobody waits for longer than the time-out: a server that does not answer
delays no other, and not the end of the program.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from mlops.errors import UsageError
from mlops.lease import try_lock
from registry.replica import Page, Replica, read_replica
from registry.serving.state import StateFolder, read_json

TIMEOUT_S: Final = 2.0
MOST_BYTES: Final = 8 << 20
"""Of one page. The metrics of a thousand releases take 400 KB."""
PAGES: Final = ("/metrics", "/model", "/shadow", "/drift")
_EXPECTED: Final = "expected http://HOST:PORT of a server's metrics"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a replica's metrics port is.

    Attributes:
        url: Without a page, as http://10.0.0.7:5002.
        folder: Where it left this address; None of one that was named.
        name: The model that it serves by its folder, and `alias`; None of one that was named.
    """

    url: str
    folder: Path | None = None
    name: str | None = None
    alias: str | None = None


def read_address(text: str) -> Address:
    """Returns the address that a person typed; the scheme and a page's path may be there or not.

    Raises:
        UsageError: it is none. A password in it is not repeated.
    """
    text = text.strip()
    if "@" in text:
        raise UsageError(f"a replica's address holds a login; {_EXPECTED}, which ask for none.")
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number or too large, say
        is_good = False
    if not is_good or not text.isprintable() or parts.query or parts.fragment:
        raise UsageError(f"{text!r} is no address of a replica; {_EXPECTED}.")
    path = parts.path.rstrip("/")
    for page in PAGES:
        path = path.removesuffix(page)
    return Address(f"{parts.scheme}://{parts.netloc}{path}")


def find_addresses(home: Path, named: Iterable[str]) -> list[Address]:
    """Returns where the replicas of this home answer, and those that were named; each once.

    Raises:
        UsageError: a name is no address.
    """
    found = [one for one in map(_left_address, StateFolder.find(home)) if one is not None]
    found += map(read_address, named)
    return list({one.url: one for one in reversed(found)}.values())[::-1]


def _left_address(folder: StateFolder) -> Address | None:
    """The address that a server left in its folder, unless it took it away when it ended."""
    told = read_json(folder.address)
    said = [told.get(key) for key in ("metrics", "name", "alias")] if isinstance(told, dict) else []
    if not said or not all(isinstance(one, str) and one for one in said):
        return None
    url, name, alias = map(str, said)
    with contextlib.suppress(UsageError):
        return Address(read_address(url).url, folder.path, name, alias)
    return None


class Asked:
    """Replicas that are being asked."""

    def __init__(self, addresses: Sequence[Address], timeout_s: float = TIMEOUT_S) -> None:
        """Begins to ask them all."""
        self._addresses = addresses
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._found: queue.SimpleQueue[tuple[int, Replica]] = queue.SimpleQueue()
        for number, one in enumerate(addresses):
            call = self._ask(number, one)
            threading.Thread(target=call, name=f"ask {one.url}", daemon=True).start()

    def _ask(self, number: int, address: Address) -> Callable[[], None]:
        def call() -> None:
            self._found.put((number, ask(address, self._deadline, self._timeout_s)))

        return call

    def wait(self) -> list[Replica]:
        """Returns all of them in their order, those that did not answer in time as silent."""
        late = f"did not answer within {self._timeout_s:g} s"
        found: dict[int, Replica] = {}
        while len(found) < len(self._addresses):
            # A little after the deadline of the threads, which know better why there is no answer.
            left_s = self._deadline + 0.2 - time.monotonic()
            try:
                number, one = self._found.get(timeout=max(0.0, left_s))
            except queue.Empty:
                break
            found[number] = one
        return [
            found.get(number) or _silent(one, late) for number, one in enumerate(self._addresses)
        ]


def ask(address: Address, deadline: float, timeout_s: float = TIMEOUT_S) -> Replica:
    """Returns what a replica says of itself, or why it does not answer.

    Args:
        deadline: Of `time.monotonic`, for all its pages together.
        timeout_s: For the sentence that says how long it had.
    """
    try:
        model = _get(address.url, "/model", deadline)
        metrics, drift = (
            _get_beside(address.url, page, deadline) for page in ("/metrics", "/drift")
        )
    except TimeoutError:
        return _silent(address, f"did not answer within {timeout_s:g} s")
    except (OSError, http.client.HTTPException, ValueError) as err:
        return _silent(address, f"does not answer ({_why(err)})")
    found = read_replica(address.url, model, metrics, drift)
    if address.folder is None:
        return found
    if found.state == "starting":
        return replace(found, name=address.name, alias=address.alias)
    if (found.name, found.alias) != (address.name, address.alias):
        return _silent(address, "is answered by another server now")
    return found


def _silent(address: Address, reason: str) -> Replica:
    if address.folder is not None and not _is_held(StateFolder(address.folder).lock):
        reason = "was killed; start it again, with the same command"
        return Replica(address.url, "killed", reason, address.name, address.alias)
    return Replica(address.url, "silent", reason, address.name, address.alias)


def _is_held(lock: Path) -> bool:
    """Tells whether a server holds its folder.

    To be asked only where one does not answer, since a look takes the lock for a moment.
    """
    try:
        fd = try_lock(lock, create=False)
    except OSError:
        return False
    if fd is None:
        return True
    os.close(fd)
    return False


def _get_beside(url: str, page: str, deadline: float) -> Page | None:
    """Like `_get`, of a page that a replica does without."""
    try:
        return _get(url, page, deadline)
    except (OSError, http.client.HTTPException, ValueError):
        return None


def _get(url: str, page: str, deadline: float) -> Page:
    """Asks for a page, directly: no proxy, no redirection, no login."""
    parts = urlsplit(url)
    sort = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = sort(parts.hostname or "", parts.port, timeout=_left(deadline))
    try:
        connection.connect()
        connected = connection.sock
        connection.request("GET", f"{parts.path}{page}", headers={"Connection": "close"})
        with connection.getresponse() as reply:
            content = bytearray()
            connected.settimeout(_left(deadline))
            while chunk := reply.read1(1 << 16):
                content += chunk
                if len(content) > MOST_BYTES:
                    raise ValueError(f"a page of more than {MOST_BYTES >> 20} MiB")
                connected.settimeout(_left(deadline))
            return reply.status, bytes(content)
    finally:
        connection.close()


def _left(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _why(err: Exception) -> str:
    said = getattr(err, "strerror", None) or str(err) or type(err).__name__
    return " ".join(str(said).split()).rstrip(".").lower()[:120]
