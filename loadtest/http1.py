"""An HTTP/1.1 client that costs little: the load generator shares its machine with what it measures.

A request is written at once on a kept connection and answered by a future, with no task, no redirects, no cookies and no
retries: 20 µs of CPU a request. Responses are parsed by httptools, as in uvicorn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools


@dataclass(frozen=True, slots=True)
class Answer:
    """`status` 0: there was none; `body` then says why. `said`: headers `X-Pulsegate-…`, named by the rest in lower case."""

    status: int
    body: bytes
    retry_after_s: float = 0.0
    said: dict[str, str] | None = None


class Pool:
    """Connections to one server, opened as they are needed and kept. Use it in one event loop.

    `most` bounds them: what comes when all are busy waits in a queue (its answer then comes late, which is what a caller
    who measures from the moment of the call wants to see).
    """

    def __init__(self, base: str, *, most: int = 256, timeout_s: float = 10.0) -> None:
        parts = urlsplit(base)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"base: expected http://host:port, got {base!r}")
        self.host, self.port = parts.hostname, parts.port or 80
        self._head = f"Host: {parts.netloc}\r\n".encode()
        self._most, self._timeout = most, timeout_s
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._opening = 0
        self._queue: deque[tuple[bytes, asyncio.Future[Answer]]] = deque()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def send(
        self, method: str, path: str, body: bytes = b"", headers: bytes = b"", token: str = ""
    ) -> asyncio.Future[Answer]:
        """Sends now, or as soon as a connection is free. `headers` are whole lines, each with its CRLF. Never raises: a
        failure is an `Answer` of status 0."""
        auth = b"Authorization: Bearer %b\r\n" % token.encode() if token else b""
        length = b"Content-Length: %d\r\n" % len(body) if body or method not in ("GET", "DELETE") else b""
        text = b"%b %b HTTP/1.1\r\n%b%b%b%b\r\n%b" % (
            method.encode(),
            path.encode(),
            self._head,
            auth,
            headers,
            length,
            body,
        )
        future: asyncio.Future[Answer] = self._loop.create_future()
        if self._closed:
            future.set_result(Answer(0, b"closed"))
            return future
        if self._idle:
            self._idle.pop().request(text, future)
        else:
            self._queue.append((text, future))
            if len(self._open) + self._opening < self._most:
                self._opening += 1
                task = self._loop.create_task(self._connect())
                task.add_done_callback(_tasks.discard)
                _tasks.add(task)
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout / 8, self._look)
        return future

    def close(self) -> None:
        """What is under way fails, and what is still being opened closes as soon as it is open."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connection in list(self._open):
            connection.fail("closed")
        self._fail_queue("closed")

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await self._loop.create_connection(lambda: _Connection(self), self.host, self.port)
        except (OSError, TimeoutError) as error:
            self._opening -= 1
            if not self._open and not self._opening:
                self._fail_queue(str(error) or type(error).__name__)

    def _fail_queue(self, why: str) -> None:
        while self._queue:
            _, future = self._queue.popleft()
            if not future.done():
                future.set_result(Answer(0, why.encode()))

    def opened(self, connection: _Connection) -> None:
        self._opening -= 1
        if self._closed:
            connection.fail("closed")
            return
        self._open.add(connection)
        self.free(connection)

    def free(self, connection: _Connection) -> None:
        while self._queue:
            text, future = self._queue.popleft()
            if not future.done():
                connection.request(text, future)
                return
        self._idle.append(connection)

    def lost(self, connection: _Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if self._queue and not self._open and not self._opening:
            self._fail_queue("connection lost")

    def _look(self) -> None:
        """Fails what waits too long; one timer for all."""
        self._timer = None
        limit = self._loop.time() - self._timeout
        for connection in [c for c in self._open if c.waiting is not None and c.since < limit]:
            connection.fail("no answer in time")
        if self._queue or any(c.waiting is not None for c in self._open):
            self._timer = self._loop.call_later(self._timeout / 8, self._look)


_OURS = b"x-pulsegate-"
_tasks: set[asyncio.Task[None]] = set()


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._retry_after = 0.0
        self._said: dict[str, str] | None = None
        self.waiting: asyncio.Future[Answer] | None = None
        self.since = 0.0

    def request(self, text: bytes, future: asyncio.Future[Answer]) -> None:
        self.waiting, self.since = future, self._loop.time()
        assert self._transport is not None
        self._transport.write(text)

    def fail(self, why: str) -> None:
        waiting, self.waiting = self.waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(Answer(0, why.encode()))
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        self._pool.lost(self)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.fail(f"not HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self.fail(str(exc or "connection lost"))

    # httptools

    def on_message_begin(self) -> None:
        self._parts, self._retry_after, self._said = [], 0.0, None

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after" and value.isdigit():
            self._retry_after = float(value)
        elif name[: len(_OURS)].lower() == _OURS:
            self._said = (self._said or {}) | {name[len(_OURS) :].decode().lower(): value.decode("latin-1")}

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return
        waiting, self.waiting = self.waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(Answer(status, b"".join(self._parts), self._retry_after, self._said))
        if not self._parser.should_keep_alive():
            self.fail("closed by the server")
        else:
            self._pool.free(self)
