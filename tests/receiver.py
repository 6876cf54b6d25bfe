"""A webhook's receiver on loopback: keeps what it is sent, and answers as the test says.

with Receiver() as receiver:
    receiver.answer = lambda request: (503, {"Retry-After": "2"})
"""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

SECRET = "the webhook's secret, 32 bytes or more"
Answer = tuple[int, dict[str, str]]


@dataclass(frozen=True)
class Request:
    """One request, and when it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def items(self) -> list[Any]:
        said = json.loads(self.body)
        return list(said.get("items", said.get("batch")))

    @property
    def ids(self) -> list[str]:
        return [item["id"] for item in self.items]

    @property
    def signed(self) -> bool:
        """Computed here from the description, not by the code under test."""
        stamp = self.headers["pulsegate-timestamp"]
        made = hmac.new(SECRET.encode(), stamp.encode() + b"." + self.body, hashlib.sha256).hexdigest()
        return self.headers["pulsegate-signature"] == f"v1={made}"


class Receiver:
    """`taken` are the requests answered with 2xx, `asked` all of them, in order."""

    def __init__(self, port: int = 0) -> None:
        self.answer: Callable[[Request], Answer] = lambda _: (200, {})
        self.asked: list[Request] = []
        self.taken: list[Request] = []
        self.connections = 0
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", port), _handler(self))
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hook"

    @property
    def ids(self) -> list[str]:
        """Those of all events taken, in order, repeated ones too."""
        with self._lock:
            return [id_ for request in self.taken for id_ in request.ids]

    def take(self, request: Request) -> Answer:
        with self._lock:
            self.asked.append(request)
        status, headers = self.answer(request)
        if 200 <= status < 300:
            with self._lock:
                self.taken.append(request)
        return status, headers

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A sender that was killed is no news."""


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet

        def setup(self) -> None:
            receiver.connections += 1
            super().setup()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, more = receiver.take(Request(self.path, headers, body))
            said = f"answer {status}".encode()
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(said))} | more).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *args: Any) -> None:
            """Says nothing."""

    return Handler
