"""Whether anybody still waits for what a worker trains.

A worker of a running cluster is nobody's child: it lives on when a driver is interrupted or
killed, or gives a call up. Dask ends no call that runs; it notes that nobody waits for it. So a
training asks, after each epoch, and ends there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

_is_wanted: ContextVar[Callable[[], bool]] = ContextVar("is_wanted", default=lambda: True)


class NotWantedError(BaseException):
    """Nobody waits for this training any more.

    It is no Exception: a trial would take it for a failure of its own, and tell of it.
    """


@contextlib.contextmanager
def wanted_while(is_wanted: Callable[[], bool]) -> Iterator[None]:
    """Lets `check_wanted` ask this function, in this thread, until the block is left."""
    token = _is_wanted.set(is_wanted)
    try:
        yield
    finally:
        _is_wanted.reset(token)


def check_wanted() -> None:
    """Does nothing as long as somebody waits for what this thread trains.

    Raises:
        NotWantedError: nobody does; what is written from here on would be in another's way.
    """
    if not _is_wanted.get()():
        raise NotWantedError
