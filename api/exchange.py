"""A heartbeat that is answered without ASGI: no task, no request object, no event to wait for; the answer is written where Redis'
reply arrives. docs/decisions/015-answers-without-a-task.md says what that gives. Only what is unusual about a heartbeat (a token
not seen before, events, an error, Redis away) is left to the ASGI route of the same name.

Nothing here raises into its caller, who hands over replies of Redis to others as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

from starlette.types import ASGIApp, Message, Scope

from api.connections import Connections
from api.http import INTERNAL, Cors, RawHeaders, error_answer, log_bug, request_id
from api.joined import Joined
from engine.errors import PulsegateError
from engine.log import log_failure
from engine.tokens import Claims

log = logging.getLogger(__name__)

HEARTBEATS = b"/v1/heartbeats"
_JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n%b"
CLOSE = (b"connection", b"close")


@dataclass(frozen=True, slots=True)
class Door:
    """What the protocol needs of the application; the lifespan's state has it."""

    known: Callable[[bytes | None], Claims | None]
    """The claims of a player's token in an Authorization header, if it was verified before. Raises nothing."""
    begin: Callable[[Exchange], bool]
    """Takes a heartbeat whose body is there; whether it will answer, or has. False: it is the route's."""
    route: ASGIApp
    body_max: int
    """Bytes."""
    connections: Connections
    refused: Callable[[int], None]
    """Counts a connection that was refused with this status."""


class Owner(Protocol):
    """The connection that an exchange is on."""

    transport: Any
    client: tuple[str, int] | None
    loop: asyncio.AbstractEventLoop
    tasks: set[asyncio.Task[None]]

    def on_response_complete(self) -> None: ...


class Exchange:
    """A heartbeat and its answer, in the place of uvicorn's cycle: those attributes that have no underscore and no comment are
    the ones that are looked at there. What most heartbeats have alike is the class's."""

    _head: Message | None = None
    body = b""  # whole, when it begins
    started = 0.0  # s, of `perf_counter`: when its body was there
    response_started = False
    response_complete = False
    disconnected = False
    keep_alive = True
    message_event: Any

    def __init__(
        self, owner: Owner, route: ASGIApp, claims: Claims, headers: RawHeaders, found: dict[bytes, bytes]
    ) -> None:
        self._owner = owner
        self._route = route
        self.claims = claims  # of its token, verified before the body was read
        self.headers = headers  # in lower case
        self.found = found  # the same, by name
        self.parts: list[bytes] = []  # of the body, as they come

    @property
    def scope(self) -> Scope:
        """As much of an ASGI scope as the route reads."""
        return {
            "type": "http", "method": "POST", "path": HEARTBEATS.decode(), "query_string": b"", "headers": self.headers,
            "client": self._owner.client,
        }  # fmt: skip

    def answer(self, body: bytes, headers: RawHeaders) -> None:
        """200, JSON."""
        if not self.keep_alive:
            headers = [*headers, CLOSE]
        self._end(_JSON % (len(body), _lines(headers), body))

    def hand_over(self) -> None:
        """The route answers instead."""
        owner = self._owner
        task = owner.loop.create_task(self._run())
        owner.tasks.add(task)
        task.add_done_callback(owner.tasks.discard)

    def refuse(self, error: PulsegateError, cors: Cors) -> None:
        """What the route would answer."""
        identity = request_id(self.headers)
        status, body, headers = error_answer(error)
        origin = self.found.get(b"origin")
        headers = [*headers, _length(body), *(cors.headers(origin) if origin is not None else ())]
        log_failure(HEARTBEATS.decode(), status, identity, body)
        self._whole(status, [*headers, (b"x-request-id", identity.encode())], body)

    def fail(self, error: Exception) -> None:
        """A bug of ours, which ends this heartbeat and nothing else."""
        identity = request_id(self.headers)
        log_bug(self.scope, identity, error)
        status, body, headers = error_answer(INTERNAL)
        self._whole(status, [*headers, _length(body), (b"x-request-id", identity.encode())], body)

    async def _run(self) -> None:
        try:
            await self._route(self.scope, self._receive, self._send)
        except Exception as error:
            self.fail(error)

    async def _receive(self) -> Message:
        return {"type": "http.request", "body": self.body, "more_body": False}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._head = message
            return
        assert self._head is not None
        self._whole(self._head["status"], self._head["headers"], message["body"])

    def _whole(self, status: int, headers: RawHeaders, body: bytes) -> None:
        if not self.keep_alive:
            headers = [*headers, CLOSE]
        self._end(whole(status, headers, body))

    def _end(self, text: bytes) -> None:
        if self.response_complete:
            return
        self.response_complete = True
        try:
            if not self.disconnected:
                transport: Joined = self._owner.transport
                transport.write_whole(text)
                if not self.keep_alive:
                    transport.close()
            self._owner.on_response_complete()
        except Exception:
            log.exception("connection")
            self._owner.transport.abort()


def whole(status: int, headers: RawHeaders, body: bytes) -> bytes:
    """An answer as it is written; `headers` has the body's length."""
    known = HTTPStatus(status)
    return b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (known, known.phrase.encode(), _lines(headers), body)


def last(status: int, headers: RawHeaders, body: bytes, identity: str) -> bytes:
    """The last answer on a connection."""
    return whole(status, [*headers, _length(body), (b"x-request-id", identity.encode()), CLOSE], body)


def _length(body: bytes) -> tuple[bytes, bytes]:
    return (b"content-length", str(len(body)).encode())


def _lines(headers: RawHeaders) -> bytes:
    return b"".join([b"%b: %b\r\n" % pair for pair in headers]) if headers else b""


class _Nothing:
    """Nobody waits for an exchange's body."""

    def set(self) -> None: ...


Exchange.message_event = _Nothing()
