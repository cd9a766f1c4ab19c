"""uvicorn's HTTP protocol, with two things of our own; its option --http names this.

A 503 that costs next to nothing. A request that MLflow's application refuses has cost half of one
that it answers by then: twice the load that a worker can bear would leave it time for a quarter of
what it could answer. So requests are counted where they begin, and what is too much is answered
there.

Head and body of an answer in one piece. The application makes one after the other, and uvicorn
sends each at once. A process that is killed between them has sent half an answer, and no proxy can
ask another process again then.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from registry.serving.admission import overloaded, request_executor

Send = Callable[[Mapping[str, Any]], Awaitable[None]]


class SheddingProtocol(HttpToolsProtocol):
    """Answers one connection; as uvicorn's, but for requests beyond those that may wait."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app = functools.partial(admit, self.app, self.tasks, self._in_one_piece)

    def connection_made(self, transport: Any) -> None:
        corked: Any = Corked(transport)
        super().connection_made(corked)

    def _in_one_piece(self) -> AbstractContextManager[None]:
        corked: Any = self.transport
        piece: AbstractContextManager[None] = corked.in_one_piece()
        return piece


async def admit(
    app: Any,
    tasks: Collection[Any],
    in_one_piece: Callable[[], AbstractContextManager[None]],
    scope: Mapping[str, Any],
    receive: Any,
    send: Send,
) -> None:
    """Passes a request on, or answers it with 503.

    Args:
        tasks: One for each request that is under way in this process, this one too.
        in_one_piece: What is sent in its block goes out at the end, as one.
    """
    executor = request_executor()
    if len(tasks) <= executor.capacity or scope.get("path") != "/invocations":
        await app(scope, receive, with_head_held(send, in_one_piece))
        return
    executor.on_refusal()
    body = overloaded(executor.most).to_json().encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def with_head_held(send: Send, in_one_piece: Callable[[], AbstractContextManager[None]]) -> Send:
    """Returns a `send` that keeps an answer's head until its body comes, or the first of it."""
    held: list[Mapping[str, Any]] = []

    async def send_together(message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            held.append(message)
        elif held:
            with in_one_piece():
                await send(held.pop())
                await send(message)
        else:
            await send(message)

    return send_together


class Corked:
    """A transport that can be told to keep what is written and send it as one."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._kept: list[bytes] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._kept is None:
            self._transport.write(data)
        else:
            self._kept.append(data)

    def close(self) -> None:
        self._send_kept()
        self._transport.close()

    @contextmanager
    def in_one_piece(self) -> Iterator[None]:
        self._kept = []
        try:
            yield
        finally:
            self._send_kept()

    def _send_kept(self) -> None:
        kept, self._kept = self._kept, None
        if kept:
            self._transport.write(b"".join(kept))
