"""Raw connections to an API process, for requests that no HTTP client would send."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
from types import TracebackType
from typing import Any, NamedTuple, Self

from tests.servers import ApiProcess

_numbers = itertools.count(1)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def said(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.said["error"]["code"])


class Wire:
    """One connection, seen as bytes. Nothing waits for more than ten seconds."""

    def __init__(self, api: ApiProcess) -> None:
        self.socket = socket.create_connection(("127.0.0.1", api.port), timeout=10)
        self._file = self.socket.makefile("rb")

    def send(self, *data: bytes) -> Self:
        self.socket.sendall(b"".join(data))
        return self

    def try_send(self, data: bytes) -> bool:
        """Whether the other side took it."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def finish(self) -> Self:
        """Says that nothing more will come."""
        self.socket.shutdown(socket.SHUT_WR)
        return self

    def answer(self) -> Answer:
        line = self._file.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        headers: dict[str, str] = {}
        while (text := self._file.readline().decode("latin-1").strip()) != "":
            name, _, value = text.partition(": ")
            assert name not in headers, f"{name} twice"
            headers[name] = value
        status = int(line.split()[1])
        if status == 100:
            return self.answer()
        if headers.get("transfer-encoding") == "chunked":
            return Answer(status, headers, b"")
        body = self._file.read(int(headers.get("content-length", "0")))
        return Answer(status, headers, body)

    def line(self) -> bytes:
        return self._file.readline()

    def closed(self) -> bool:
        """Whether nothing more comes and the other side has closed; waits for that."""
        try:
            return self._file.read(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
            self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def request(
    method: str, path: str, token: str = "", body: bytes | None = None, *headers: str, version: str = "1.1", host: str = "Host: h"
) -> bytes:  # fmt: skip
    lines = [f"{method} {path} HTTP/{version}", *([host] if host else []), *headers]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def beat(**fields: Any) -> bytes:
    """A heartbeat's body, with a new `seq`."""
    number = next(_numbers)
    said = {
        "session": "s", "device": "d", "content": "film", "kind": "vod", "state": "playing", "seq": number, "position": float(number),
    } | fields  # fmt: skip
    return json.dumps(said).encode()


def heartbeat(token: str, *headers: str, **fields: Any) -> bytes:
    return request("POST", "/v1/heartbeats", token, beat(**fields), *headers)


HEALTH = request("GET", "/healthz")


def account(name: str) -> str:
    return f"{name}-{next(_numbers)}"
