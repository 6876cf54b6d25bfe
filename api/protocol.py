"""uvicorn's HTTP protocol with two things of our own.

An answer's header and body leave in one write instead of two. A write is a system call and a packet, about a tenth of what an
answer costs. uvicorn writes the header as soon as it has it; here it waits for the body, at most until the event loop's next turn.

Heartbeats are answered without ASGI (`Exchange`): no task, no request object, no event to wait for; the answer is written where
Redis' reply arrives. docs/decisions/015-answers-without-a-task.md says what that gives. Only what is unusual about a heartbeat
(a token not seen before, events, an error, Redis away) is left to the ASGI route of the same name.

A request's `scope["state"]` has its `transport`: a stream must know when its reader takes nothing, and be able to let go of it.
When the server stops, `closing` in the lifespan's state is called, because uvicorn waits for answers under way.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from http import HTTPStatus
from time import perf_counter
from typing import Any, NamedTuple, cast

from starlette.types import ASGIApp, Message, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.http import RawHeaders

HEARTBEATS = b"/v1/heartbeats"
_JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n%b"
_LENGTH_DIGITS = 9


class Exchanges(NamedTuple):
    """How exchanges are answered; the lifespan's state has it."""

    begin: Callable[[Exchange], bool]
    """Takes a heartbeat whose body is there; whether it will answer, or has. False: it is the route's. Raises nothing."""
    route: ASGIApp
    body_max: int
    """Bytes."""


class Protocol(HttpToolsProtocol):
    """Pass it to uvicorn as `http="api.protocol:Protocol"`."""

    _exchanges: Exchanges | None = None
    _exchange: Exchange | None = None
    """The heartbeat whose body is being read."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _Joined(transport, self.loop)))
        self.app_state = self.app_state | {"transport": self.transport}
        self._exchanges = self.app_state.get("exchanges")

    def shutdown(self) -> None:
        if closing := self.app_state.get("closing"):
            closing()
        super().shutdown()

    def on_message_begin(self) -> None:
        # The scope is made when it is known that somebody reads it.
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        if self.url == HEARTBEATS and self._exchanges and (exchange := self._heartbeat(self._exchanges.body_max)):
            self._exchange = exchange
            self.cycle = cast(Any, exchange)
            return
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers += headers
        super().on_headers_complete()

    def _heartbeat(self, body_max: int) -> Exchange | None:
        """The exchange that this request is to be, unless HTTP asks for more than an exchange knows."""
        if (
            self.parser.get_method() != b"POST"
            or not (self.cycle is None or self.cycle.response_complete)
            or self.expect_100_continue
            or self.parser.get_http_version() != "1.1"
            or not self.parser.should_keep_alive()
        ):
            return None
        exchange, length = Exchange(self), None
        for name, value in self.headers:
            if name == b"authorization":
                exchange.authorization = value
            elif name == b"content-length":
                length = value
            elif name == b"origin":
                exchange.origin = value
            elif name == b"x-request-id":
                exchange.named = True
            elif name == b"transfer-encoding" or name == b"upgrade":
                return None
        # A body too long is refused before it is read.
        if length is None or len(length) > _LENGTH_DIGITS or not length.isdigit() or int(length) > body_max:
            return None
        return exchange

    def on_body(self, body: bytes) -> None:
        if self._exchange is not None:
            self._exchange.body += body
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            super().on_message_complete()
            return
        exchange.started = perf_counter()
        assert self._exchanges is not None
        if not self._exchanges.begin(exchange):
            exchange.hand_over()

    def hand_over(self, exchange: Exchange) -> None:
        """Lets the route answer."""
        assert self._exchanges is not None
        task = self.loop.create_task(exchange.run(self._exchanges.route))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


class Exchange:
    """A heartbeat and its answer, in the place of uvicorn's cycle: those attributes that have no underscore and no comment are
    the ones uvicorn looks at."""

    __slots__ = (
        "_head", "_protocol", "authorization", "body", "disconnected", "headers", "keep_alive", "message_event", "named",
        "origin", "response_complete", "started",
    )  # fmt: skip

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._head: Message | None = None
        self.headers: RawHeaders = protocol.headers  # in lower case
        self.authorization: bytes | None = None  # the header
        self.origin: bytes | None = None  # the header
        self.named = False  # whether there is an X-Request-Id
        self.body = b""  # whole, when it begins
        self.started = 0.0  # s, of `perf_counter`: when its body was there
        self.response_complete = False
        self.disconnected = False
        self.keep_alive = True
        self.message_event = _NOTHING

    @property
    def scope(self) -> Scope:
        """As much of an ASGI scope as the route reads."""
        return {
            "type": "http", "method": "POST", "path": HEARTBEATS.decode(), "query_string": b"", "headers": self.headers,
            "client": self._protocol.client,
        }  # fmt: skip

    def answer(self, body: bytes, headers: RawHeaders) -> None:
        """200, JSON."""
        self._end(_JSON % (len(body), _lines(headers), body))

    def hand_over(self) -> None:
        """The route answers instead."""
        self._protocol.hand_over(self)

    async def run(self, route: ASGIApp) -> None:
        await route(self.scope, self._receive, self._send)

    async def _receive(self) -> Message:
        return {"type": "http.request", "body": self.body, "more_body": False}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._head = message
            return
        assert self._head is not None
        status = HTTPStatus(self._head["status"])
        line = (status, status.phrase.encode(), _lines(self._head["headers"]), message["body"])
        self._end(b"HTTP/1.1 %d %b\r\n%b\r\n%b" % line)

    def _end(self, text: bytes) -> None:
        protocol, self.response_complete = self._protocol, True
        if not self.disconnected:
            cast(_Joined, protocol.transport).write_whole(text)
            if not self.keep_alive:
                protocol.transport.close()
        protocol.on_response_complete()


def _lines(headers: RawHeaders) -> bytes:
    return b"".join([b"%b: %b\r\n" % pair for pair in headers]) if headers else b""


class _Nothing:
    """Nobody waits for an exchange's body."""

    def set(self) -> None: ...


_NOTHING = _Nothing()


class _Joined:
    """A transport that holds back an answer's header until its body is written."""

    __slots__ = ("_held", "_late", "_transport", "_write", "is_closing")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._write = transport.write
        self.is_closing = transport.is_closing
        self._late = _late(loop)
        self._held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._held:
            data, self._held = self._held + data, b""
        elif data.startswith(b"HTTP/1.1 "):
            self._held = data
            self._late.add(self)
            return
        self._write(data)

    def write_whole(self, data: bytes) -> None:
        """An answer with its body."""
        self.flush()
        self._write(data)

    def flush(self) -> None:
        data, self._held = self._held, b""
        if data and not self.is_closing():
            self._write(data)

    def close(self) -> None:
        self.flush()
        self._transport.close()


class _Late:
    """Those whose body was not there by the loop's next turn: one look for all that answer in one turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._holding: list[_Joined] = []

    def add(self, joined: _Joined) -> None:
        if not self._holding:
            self._loop.call_soon(self._flush)
        self._holding.append(joined)

    def _flush(self) -> None:
        holding, self._holding = self._holding, []
        for joined in holding:
            joined.flush()


_late = functools.lru_cache(maxsize=4)(_Late)
