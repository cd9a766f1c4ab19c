"""So many requests wait, and the next is told that the server is busy."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from registry.serving.admission import (
    BoundedExecutor,
    new_event_loop,
    request_executor,
)
from registry.serving.protocol import Corked, admit, with_head_held


def test_work_beyond_the_limit_is_refused_and_counted() -> None:
    refused: list[int] = []
    go_on = threading.Event()
    executor = BoundedExecutor(threads=1, most=2)
    executor.on_refusal = lambda: refused.append(1)
    taken = []
    with pytest.raises(MlflowException) as refusal:
        for _ in range(4):
            taken.append(executor.submit(go_on.wait, 10))
    assert executor.waiting == 2
    assert refused == [1]
    assert refusal.value.get_http_status_code() == 503
    said = json.loads(refusal.value.serialize_as_json())
    assert set(said) == {"code", "message", "field"}
    assert said["code"] == "overloaded"
    assert taken[-1].cancel()  # as a request that took too long: its place is free
    taken[-1] = executor.submit(go_on.wait, 10)
    go_on.set()
    assert all(one.result() for one in taken)
    while executor.waiting:
        time.sleep(0.001)
    assert executor.submit(lambda: 5).result() == 5
    executor.shutdown()


def test_a_thread_of_the_loop_is_one_of_the_bounded_ones() -> None:
    loop = new_event_loop()
    try:
        name = loop.run_until_complete(asyncio.to_thread(lambda: threading.current_thread().name))
    finally:
        loop.close()
    assert name.startswith("request")
    assert request_executor() is request_executor()
    request_executor.cache_clear()


def test_what_is_too_much_is_answered_before_the_application_sees_it() -> None:
    executor = request_executor()
    executor.most = 2
    refused: list[int] = []
    executor.on_refusal = lambda: refused.append(1)
    sent: list[Mapping[str, Any]] = []
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["path"])

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    def ask(path: str, under_way: int) -> None:
        whole = contextlib.nullcontext
        asyncio.run(admit(app, range(under_way), whole, {"path": path}, None, send))

    try:
        ask("/invocations", executor.capacity)
        ask("/ping", executor.capacity + 1)  # a busy worker is a healthy one
        assert (seen, refused) == (["/invocations", "/ping"], [])
        ask("/invocations", executor.capacity + 1)
    finally:
        request_executor.cache_clear()
    assert (len(seen), refused) == (2, [1])
    start, end = sent
    assert start["status"] == 503
    assert json.loads(end["body"])["code"] == "overloaded"
    assert dict(start["headers"])[b"content-length"] == str(len(end["body"])).encode()


class Wire:
    """A transport that notes what it is told."""

    def __init__(self) -> None:
        self.seen: list[bytes | str] = []

    def write(self, data: bytes) -> None:
        self.seen.append(data)

    def close(self) -> None:
        self.seen.append("close")

    def get_extra_info(self, name: str) -> str:
        return name


def test_head_and_body_of_an_answer_are_sent_as_one() -> None:
    """A process that is killed between the two would leave half an answer."""
    wire = Wire()
    corked = Corked(wire)
    head = {"type": "http.response.start", "status": 200}
    assert corked.get_extra_info("peername") == "peername"

    async def send(message: Mapping[str, Any]) -> None:
        corked.write(message.get("body", b"head "))

    async def answer() -> None:
        together = with_head_held(send, corked.in_one_piece)
        await together(head)
        assert wire.seen == []
        await together({"type": "http.response.body", "body": b"a", "more_body": True})
        assert wire.seen == [b"head a"]
        await together({"type": "http.response.body", "body": b"b"})

    asyncio.run(answer())
    assert wire.seen == [b"head a", b"b"]


def test_a_connection_that_ends_with_its_answer_sends_that_first() -> None:
    wire = Wire()
    corked = Corked(wire)
    with corked.in_one_piece():
        corked.write(b"head ")
        corked.write(b"body")
        corked.close()
    assert wire.seen == [b"head body", "close"]
