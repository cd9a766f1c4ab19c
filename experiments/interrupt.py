"""Signals that end a sweep: they set a flag, so that the end is always an orderly one."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


class Stop:
    """A flag that a signal handler may set.

    A `threading.Event` is no such flag. It takes a lock to be set or cleared; a signal that comes
    at that moment is handled in the thread that holds the lock, and would wait for it for ever.
    """

    __slots__ = ("_set",)

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        self._set = True

    def clear(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set


@contextlib.contextmanager
def interruptible() -> Iterator[Stop]:
    """Yields a flag that SIGINT and SIGTERM set until the block is left.

    Outside the main thread, which alone may handle signals, nothing but the caller sets it.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
