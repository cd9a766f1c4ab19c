"""Admission: so many requests are answered at once, so many wait, and the rest is told so.

MLflow's server gives each request to the default executor of its event loop. Without a limit the
queue grows with the load, each answer comes later than the last, and memory with it.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from mlops.scoring import scoring_error

THREADS: Final = 32


class BoundedExecutor(ThreadPoolExecutor):
    """A pool of threads that refuses work when `most` pieces wait for one.

    Attributes:
        on_refusal: Called for each piece that it refuses.
    """

    def __init__(self, threads: int = THREADS, most: int = 256) -> None:
        super().__init__(threads, "request")
        self.most = most
        self.on_refusal: Callable[[], None] = lambda: None
        self._threads_most = threads
        self._under_way = 0
        self._count = threading.Lock()

    @property
    def capacity(self) -> int:
        """How many pieces are taken: one a thread, and those that wait."""
        return self._threads_most + self.most

    @property
    def waiting(self) -> int:
        """How many pieces no thread is free for.

        Not the length of the pool's queue: what came a moment ago lies there too until an idle
        thread wakes up.
        """
        return max(0, self._under_way - self._threads_most)

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Takes a piece of work.

        Raises:
            MlflowException: too many wait; answered with status 503.
        """
        with self._count:
            is_full = self._under_way >= self.capacity
            self._under_way += not is_full
        if is_full:
            self.on_refusal()
            raise overloaded(self.most)
        future = super().submit(work, *args, **kwargs)
        future.add_done_callback(self._is_done)
        return future

    def _is_done(self, _: Future[Any]) -> None:
        with self._count:
            self._under_way -= 1


def overloaded(most: int) -> Any:
    """Returns the error of a request that finds `most` others waiting; its status is 503."""
    message = f"The server is busy: {most} requests wait. Try again in a moment."
    return scoring_error("overloaded", message)


@functools.cache
def request_executor() -> BoundedExecutor:
    """Returns the one through which this process answers."""
    return BoundedExecutor()


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Returns a loop that answers through `request_executor`; uvicorn's option --loop names this.

    With one worker uvicorn loads the model before it has a loop, with several after.
    """
    loop = _fastest_loop()
    loop.set_default_executor(request_executor())
    return loop


def _fastest_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # it is not made for every system
        return asyncio.new_event_loop()
    made: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return made
