"""The ceiling of whatever asks Redis before it answers: bare ASGI that sends one empty `EVALSHA` a request and waits for it.

The client is as cheap as one can be in Python: one connection, the calls of one tick of the event loop in one write,
replies matched in order. No deadlines, no second node, no opening again: what a client for use needs comes on top.
`BENCH_REDIS_PORT` is the server on loopback, `BENCH_SHA` the empty script, `BENCH_ANSWER` what is answered.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from typing import Any, cast

import hiredis
from starlette.types import Receive, Scope, Send

from loadtest.baseline.bare import ANSWER, HEADERS

CALL: bytes = hiredis.pack_command(("EVALSHA", os.environ["BENCH_SHA"], "0"))  # type: ignore[arg-type]


class Client(asyncio.Protocol):
    """One connection, shared by all requests."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=Ellipsis)
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._unsent = 0
        self._transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def call(self) -> asyncio.Future[Any]:
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent += 1
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.append(future)
        return future

    def _flush(self) -> None:
        self._transport.write(CALL * self._unsent)
        self._unsent = 0

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not Ellipsis:
            self._waiting.popleft().set_result(reply)


_opening: asyncio.Future[Client] | None = None


async def client() -> Client:
    """The connection; whoever comes first opens it."""
    global _opening
    if _opening is None:
        loop = asyncio.get_running_loop()
        _opening = loop.create_future()
        _, made = await loop.create_connection(Client, "127.0.0.1", int(os.environ["BENCH_REDIS_PORT"]))
        _opening.set_result(made)
    return _opening.result() if _opening.done() else await _opening


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    reply = await (await client()).call()
    ok = reply == 1
    await send({"type": "http.response.start", "status": 200 if ok else 500, "headers": HEADERS})
    await send({"type": "http.response.body", "body": ANSWER})
