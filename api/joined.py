"""A transport that joins an answer's header and body into one write, and that may be written to whatever has become of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import Any


class Joined:
    """Holds back an answer's header until its body is written, at most until the event loop's next turn."""

    __slots__ = ("_held", "_late", "_over", "_transport", "_write", "is_closing", "unread")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._write = transport.write
        self.is_closing = transport.is_closing
        self._late = _late(loop)
        self._held = b""
        self._over = False
        self.unread = False
        """Whether the peer still sends what nobody reads: then `close` only says that there will be no more answers, because
        the kernel would otherwise throw the last one away."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._held:
            data, self._held = self._held + data, b""
        elif data.startswith(b"HTTP/1.1 "):
            self._held = data
            self._late.add(self)
            return
        self._put(data)

    def write_whole(self, data: bytes) -> None:
        """An answer with its body."""
        if self._held:
            self.flush()
        if not self._over and not self.is_closing():
            self._write(data)

    def _put(self, data: bytes) -> None:
        if not self._over and not self.is_closing():
            self._write(data)

    def flush(self) -> None:
        data, self._held = self._held, b""
        if data:
            self._put(data)

    def close(self) -> None:
        self.flush()
        if self.unread and not self.is_closing():
            self.write_eof()
        else:
            self._transport.close()

    def write_eof(self) -> None:
        self.flush()
        if not self._over and not self.is_closing():
            self._over = True
            # The peer may have gone without our knowing.
            with contextlib.suppress(OSError, RuntimeError):
                self._transport.write_eof()


class _Late:
    """Those whose body was not there by the loop's next turn: one look for all that answer in one turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._holding: list[Joined] = []

    def add(self, joined: Joined) -> None:
        if not self._holding:
            self._loop.call_soon(self._flush)
        self._holding.append(joined)

    def _flush(self) -> None:
        holding, self._holding = self._holding, []
        for joined in holding:
            joined.flush()


_late = functools.lru_cache(maxsize=4)(_Late)
