"""Bytes on a socket, for what no HTTP client would send."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Sequence

from loadtest.attack.base import Target

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_ID = re.compile(rb"(?i)\r\nx-request-id: *([^\r]+)")
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")
RESET = "reset"
SILENT = "no end"


class Reply:
    """What came back on a connection until it ended, enough answers were there, or the time was over."""

    def __init__(self, data: bytes, ended: str) -> None:
        self.data = data
        self.ended = ended
        """'' if it ended or had what was wanted; RESET, or SILENT: neither an end nor enough answers in time."""
        self.statuses: list[int] = []
        self.ids: list[str] = []
        self.bodies: list[bytes] = []
        rest = data
        while match := _STATUS.match(rest):
            head, found, rest = rest.partition(b"\r\n\r\n")
            if not found:
                break
            length = _LENGTH.search(head)
            size = int(length[1]) if length else 0
            identity = _ID.search(head)
            self.statuses.append(int(match[1]))
            self.ids.append(identity[1].decode("latin-1") if identity else "")
            self.bodies.append(rest[:size])
            if len(rest) < size:
                break
            rest = rest[size:]

    @property
    def said(self) -> int | str:
        """The first status, or why there is none."""
        return self.all_said[0]

    @property
    def all_said(self) -> list[int | str]:
        """Every status, or why there is none."""
        return [*self.statuses] or [self.ended or "closed"]


async def talk(
    target: Target, pieces: Sequence[bytes], *, answers: int = 0, wait_s: float = 5.0, half_close: bool = False
) -> Reply:
    """Writes the pieces, one turn of the loop apart, then reads until `answers` have come (0: until the end). Never raises."""
    try:
        async with asyncio.timeout(wait_s):
            reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    except (OSError, TimeoutError):
        return Reply(b"", RESET)
    data, ended = b"", ""
    try:
        async with asyncio.timeout(wait_s):
            for piece in pieces:
                writer.write(piece)
                if len(pieces) > 1:
                    await asyncio.sleep(0)
            await writer.drain()
            if half_close:
                writer.write_eof()
            while part := await reader.read(65_536):
                data += part
                if answers and len(Reply(data, "").statuses) >= answers:
                    break
    except TimeoutError:
        ended = SILENT
    except OSError:
        ended = RESET
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return Reply(data, ended)


def post(path: str, token: str, body: bytes, *more: str, host: str = "Host: loopback") -> bytes:
    """A whole request. `more` are header lines."""
    lines = [
        f"POST {path} HTTP/1.1",
        host,
        f"Authorization: Bearer {token}" if token else "",
        f"Content-Length: {len(body)}",
        *more,
    ]
    return "\r\n".join(line for line in lines if line).encode("latin-1") + b"\r\n\r\n" + body
