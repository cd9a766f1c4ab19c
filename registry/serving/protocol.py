"""uvicorn's HTTP protocol, with a 503 that costs next to nothing; its option --http names this.

A request that MLflow's application refuses has cost half of one that it answers by then: twice the
load that a worker can bear would leave it time for a quarter of what it could answer. So requests
are counted where they begin, and what is too much is answered there.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from registry.serving.admission import overloaded, request_executor

Send = Callable[[Mapping[str, Any]], Awaitable[None]]


class SheddingProtocol(HttpToolsProtocol):
    """Answers one connection; as uvicorn's, but for requests beyond those that may wait."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app = functools.partial(admit, self.app, self.tasks)


async def admit(
    app: Any, tasks: Collection[Any], scope: Mapping[str, Any], receive: Any, send: Send
) -> None:
    """Passes a request on, or answers it with 503.

    Args:
        tasks: One for each request that is under way in this process, this one too.
    """
    executor = request_executor()
    if len(tasks) <= executor.capacity or scope.get("path") != "/invocations":
        await app(scope, receive, send)
        return
    executor.on_refusal()
    body = overloaded(executor.most).to_json().encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
