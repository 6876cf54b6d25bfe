"""Server-sent events: a list as it is published, to many readers, none of whom can cost more than a document.

A reader is sent the newest document when the one before has left this process. What it could not take in the meantime it
never gets, and a reader that takes nothing for too long is disconnected. Streams end when the process stops, when their
token does, and after a while in any case; browsers connect again by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.errors import Overloaded, PulsegateError, Unavailable
from engine.metrics import Metrics
from engine.published import Listed, Published
from engine.settings import Settings

KEEP_ALIVE_S = 15.0
RETRY_MS = 2_000
FULL_RETRY_S = 5
MEDIA_TYPE = "text/event-stream"
_KERNEL_BYTES = 65_536
"""What the kernel may hold for a reader, about: a few lists."""


class Streams:
    """The readers of one process."""

    def __init__(self, settings: Settings, published: Published, metrics: Metrics) -> None:
        self._most, self._most_each = settings.streams_max, settings.streams_each_max
        self._published, self._metrics = published, metrics
        self._of: Counter[str] = Counter()
        self.patience_s, self.lasts_s = settings.stream_slow_s, settings.stream_max_s
        self._readers: set[Reader] = set()
        self._closed = False

    def close(self) -> None:
        """Ends all streams, and lets none begin: the process stops."""
        self._closed = True
        for reader in list(self._readers):
            reader.end()

    def dropped(self) -> None:
        self._metrics.slow_readers.inc()

    @contextlib.contextmanager
    def entered(self, reader: Reader) -> Iterator[None]:
        """Raises Unavailable if there are as many as may be, Overloaded if these are the reader's own."""
        if self._of[reader.who] >= self._most_each:
            why = f"this account or service token has {self._most_each} streams of this process (PULSEGATE_STREAMS_EACH_MAX)"
            raise Overloaded(why, retry_after_s=FULL_RETRY_S)
        if self._closed or len(self._readers) >= self._most:
            why = "the process stops" if self._closed else "as many streams as this process may have"
            error = Unavailable(why, code="streams_full")
            error.retry_after_s = FULL_RETRY_S
            raise error
        self._readers.add(reader)
        self._of[reader.who] += 1
        self._metrics.stream_readers.set(len(self._readers))
        reader.listed = self._published.listen(reader.listed, reader.wake)
        try:
            yield
        finally:
            reader.listed.listeners.discard(reader.wake)
            self._readers.discard(reader)
            self._of[reader.who] -= 1
            if not self._of[reader.who]:
                del self._of[reader.who]
            self._metrics.stream_readers.set(len(self._readers))


class Reader(Response):
    """One stream, as the response that sends it. `still` raises when its token has ceased to hold; `after` is the
    `published_at` of the last list that the reader has; `who` is whose streams are counted together."""

    def __init__(
        self,
        streams: Streams,
        who: str,
        listed: Listed,
        limit: int,
        still: Callable[[], object],
        after: int | None = None,
    ) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no", "connection": "close"}
        super().__init__(b"", 200, headers, media_type=MEDIA_TYPE)
        del self.headers["content-length"]
        self.who, self.listed = who, listed
        self._streams, self._limit, self._still, self._after = streams, limit, still, after
        self._ending = False
        self._version = -1
        self._changed: asyncio.Future[None] | None = None
        self._abort: Callable[[], None] | None = None
        self._sending = False

    def wake(self) -> None:
        """There is something new."""
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    def end(self) -> None:
        self._ending = True
        if self._sending and self._abort is not None:
            self._abort()
        self.wake()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._streams.entered(self):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if scope["method"] != "HEAD":
                transport = scope.get("state", {}).get("transport")
                if transport is not None:
                    self._abort = transport.abort
                    _hold_little(transport)
                gone = asyncio.create_task(_gone(receive))
                gone.add_done_callback(lambda _: self.end())
                try:
                    await self._tell(send)
                except TimeoutError:
                    self._streams.dropped()
                    if self._abort is not None:
                        self._abort()
                        # Only then does the server know that there is nobody to answer.
                        await asyncio.wait((gone,), timeout=1)
                    return
                finally:
                    gone.cancel()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _tell(self, send: Send) -> None:
        """Sends lists until the stream ends. Raises TimeoutError when the reader takes nothing for too long."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._streams.lasts_s * random.uniform(0.9, 1.0)
        await self._send(send, f"retry: {RETRY_MS}\n\n".encode())
        while not self._ending:
            self._changed = loop.create_future()
            event = self._event()
            if event:
                await self._send(send, event)
                continue
            await asyncio.wait((self._changed,), timeout=min(KEEP_ALIVE_S, max(0.0, until - loop.time())))
            try:
                self._still()
            except PulsegateError:
                return
            if loop.time() >= until:
                return
            if not self._changed.done():
                await self._send(send, b":\n\n")

    def _event(self) -> bytes:
        """The list, if the reader has not got it yet, else nothing."""
        listed, first = self.listed, self._version < 0
        if listed.version == self._version:
            return b""
        self._version = listed.version
        at = listed.published_at
        if first and at in (None, self._after):
            return b""
        ident = b"" if at is None else b"id: %d\n" % at
        return b"event: trending\n%bdata: %b\n\n" % (ident, listed.encoded(self._limit))

    async def _send(self, send: Send, text: bytes) -> None:
        """Returns when the text has left this process. Raises TimeoutError."""
        self._sending = True
        try:
            async with asyncio.timeout(self._streams.patience_s):
                await send({"type": "http.response.body", "body": text, "more_body": True})
                # Sending waits until what was sent before has left.
                await send({"type": "http.response.body", "body": b"", "more_body": True})
        finally:
            self._sending = False


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _hold_little(transport: Any) -> None:
    """Sending waits as soon as the kernel does not take all, and the kernel does not take much."""
    transport.set_write_buffer_limits(high=0)
    connection = transport.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KERNEL_BYTES)
