"""HTTP as nobody should send it: pipelines, splits, chunks, lengths that lie, garbage. The same inputs for the same seed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import ClassVar

from loadtest.attack.base import HEARTBEATS, Attack, Finding
from loadtest.attack.wires import SILENT, post, talk


class Pipelines(Attack):
    name = "fuzz-pipelines"
    line = "fuzzing: framing"
    what = "up to 23 good requests on one connection, cut anywhere: each must be answered, in order"
    at_once = 64
    longest: ClassVar[int] = 23

    async def prepare(self) -> None:
        self._tokens = [self.target.player(f"pipe-{n}") for n in range(16)]
        self._wrong = self._hung = self._requests = 0

    async def fire(self, n: int) -> None:
        # As many requests as the rate says, in fewer connections.
        if n % ((1 + self.longest) // 2):
            return
        count = self.random.randint(1, self.longest)
        text, wanted = b"", []
        for i in range(count):
            identity = f"id-{n}-{i}"
            wanted.append(identity)
            text += self._request(identity)
        reply = await talk(
            self.target, cut(self.random.random, text, self.random.randint(0, 12)), answers=count, wait_s=10
        )
        for status in reply.all_said:
            self.tell(status)
        self._requests += count
        self._hung += reply.ended == SILENT
        self._wrong += reply.ids != wanted

    def _request(self, identity: str) -> bytes:
        who = self.random.randrange(16)
        token, body = self._tokens[who], self.beat_body(f"pipe-{who}", "pipe")
        named = f"X-Request-Id: {identity}"
        kind = self.random.randrange(5)
        if kind == 0:
            return f"GET /healthz HTTP/1.1\r\nHost: loopback\r\n{named}\r\n\r\n".encode()
        if kind == 1:
            head = f"POST {HEARTBEATS} HTTP/1.1\r\nHost: loopback\r\nAuthorization: Bearer {token}\r\n{named}\r\n"
            return head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunks(self.random.randint, body)
        if kind == 2:
            query = f"/v1/check?content=film&device=pipe&session=pipe-{who}"
            return (
                f"GET {query} HTTP/1.1\r\nHost: loopback\r\nAuthorization: Bearer {token}\r\n{named}\r\n\r\n".encode()
            )
        return post(HEARTBEATS, token, body, named)

    async def finish(self) -> list[Finding]:
        return [
            Finding("pipelines not answered in order", self._wrong, most=0),
            Finding("connections without an end", self._hung, most=0),
            Finding("requests", self._requests),
        ]


class Framing(Attack):
    name = "fuzz-framing"
    line = "fuzzing: framing"
    what = "requests whose head, length, chunks or bytes were changed, then the client's half closed: the end must come"
    at_once = 200

    async def prepare(self) -> None:
        self._token = self.target.player("framing")
        self._hung = self._inputs = 0

    async def fire(self, n: int) -> None:
        text = self._request()
        for _ in range(self.random.randint(1, 3)):
            text = self.random.choice(self._changes)(self, text)
        reply = await talk(
            self.target, cut(self.random.random, text, self.random.randint(0, 4)), wait_s=15, half_close=True
        )
        self._inputs += 1
        self._hung += reply.ended == SILENT
        for status in reply.all_said:
            self.tell(status)

    def _request(self) -> bytes:
        body = self.beat_body("framing", "framing")
        if self.random.random() < 0.3:
            head = f"POST {HEARTBEATS} HTTP/1.1\r\nHost: loopback\r\nAuthorization: Bearer {self._token}\r\n"
            return head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunks(self.random.randint, body)
        return post(HEARTBEATS, self._token, body) * self.random.randint(1, 3)

    def _flip(self, text: bytes) -> bytes:
        at = self.random.randrange(len(text))
        return text[:at] + bytes([self.random.randrange(256)]) + text[at + 1 :]

    def _drop(self, text: bytes) -> bytes:
        at = self.random.randrange(len(text))
        return text[:at] + text[at + self.random.randint(1, 20) :] or b"\r\n"

    def _double(self, text: bytes) -> bytes:
        at, size = self.random.randrange(len(text)), self.random.randint(1, 60)
        return text[:at] + text[at : at + size] * 2 + text[at + size :]

    def _insert(self, text: bytes) -> bytes:
        at = self.random.randrange(len(text))
        return text[:at] + self.random.choice(_PIECES) + text[at:]

    def _line(self, text: bytes) -> bytes:
        """Another header line, behind the first line end."""
        head, end, rest = text.partition(b"\r\n")
        return head + end + self.random.choice(_LINES) + b"\r\n" + rest

    def _first(self, text: bytes) -> bytes:
        _, end, rest = text.partition(b"\r\n")
        return self.random.choice(_FIRST) + end + rest

    _changes: ClassVar[tuple[Callable[[Framing, bytes], bytes], ...]] = (_flip, _drop, _double, _insert, _line, _first)

    async def finish(self) -> list[Finding]:
        return [
            Finding("connections without an end", self._hung, self._inputs, most=0),
            Finding("inputs", self._inputs),
        ]


_PIECES = (
    b"\0",
    b"\r",
    b"\n",
    b"\r\n\r\n",
    b"\xff\xfe",
    b"\x7f",
    b" ",
    b"\t",
    b"0\r\n\r\n",
    b"ffffffffffffffff\r\n",
    b"-1\r\n",
    b"{",
    b"\x16\x03\x01",
)
_LINES = (
    b"Content-Length: -1", b"Content-Length: 0", b"Content-Length: 99999999999999999999", b"Content-Length: 5, 5", b"Content-Length: 0x10",
    b"Content-Length:", b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding:\x0bchunked", b"Connection: close", b"Connection: upgrade\r\nUpgrade: websocket", b"Upgrade: h2c", b"Expect: 100-continue",
    b"Expect: 200-ok", b" folded: yes", b": no name", b"No colon", b"Host: elsewhere", b"Authorization: Basic eDp5", b"X-Long: " + b"x" * 9_000,
    b"Content-Encoding: gzip", b"Origin: null", b"X-Request-Id: " + b"\xc3\xa9" * 300, b"Trailer: Content-Length",
)  # fmt: skip
_FIRST = (
    b"POST /v1/heartbeats HTTP/1.0", b"POST /v1/heartbeats HTTP/2.0", b"POST /v1/heartbeats HTTP/9.9", b"POST /v1/heartbeats", b"POST", b"",
    b"post /v1/heartbeats HTTP/1.1", b"PRI * HTTP/2.0", b"POST http://loopback/v1/heartbeats HTTP/1.1", b"OPTIONS * HTTP/1.1", b"CONNECT a:1 HTTP/1.1",
    b"POST //v1//heartbeats HTTP/1.1", b"POST /v1/heartbeats%00 HTTP/1.1", b"POST /v1/%2e%2e/heartbeats HTTP/1.1", b"HEAD /v1/heartbeats HTTP/1.1",
    b"GET /v1/resume/%ff%fe HTTP/1.1", b"GET /" + b"a" * 70_000 + b" HTTP/1.1", b"DELETE /v1/sessions/%0d%0aX HTTP/1.1", b"POST /v1/heartbeats  HTTP/1.1",
)  # fmt: skip


def cut(chance: Callable[[], float], text: bytes, times: int) -> list[bytes]:
    """The text in up to so many pieces more than one."""
    places = sorted({0, len(text), *(int(chance() * len(text)) for _ in range(times))})
    return [text[start:end] for start, end in itertools.pairwise(places)]


def chunks(between: Callable[[int, int], int], body: bytes) -> bytes:
    """The body in chunks of up to 80 bytes, some with an extension."""
    out = b""
    while body:
        size = between(1, 80)
        piece, body = body[:size], body[size:]
        out += f"{len(piece):x}".encode() + (b";a=b" if size % 7 == 0 else b"") + b"\r\n" + piece + b"\r\n"
    return out + b"0\r\n\r\n"


ALL: tuple[type[Attack], ...] = (Pipelines, Framing)
