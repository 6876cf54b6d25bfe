"""Where page, players and segments come from: a small HTTP server that tests can break for single files.

    with Origin(media) as origin:
        origin.fail(r"chunk-stream[01]-00004", 404)
        with origin.hold(r"chunk-stream[01]-00004"):
            ...             # half of each such segment arrives, the rest when the block ends

What the page measures comes to `measured`; what players post to `/collect`, as it came, to `reports`.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from tests.players import HERE, SCRIPTS

HELD_S = 30.0
"""A held segment goes on after so long in any case, so that no test hangs."""
TYPES = {
    ".html": "text/html", ".js": "text/javascript", ".m3u8": "application/vnd.apple.mpegurl", ".mpd": "application/dash+xml",
    ".m4s": "video/mp4",
}  # fmt: skip


@dataclass
class Posted:
    """One body that a player posted, with the page's origin and what it said of its type."""

    body: bytes
    origin: str
    content_type: str
    query: str


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Of a browser that is killed no connection ends well; anything else is a bug of a test."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Origin:
    """Serves on a free port of loopback, to pages of any origin."""

    def __init__(self, media: Path | None = None) -> None:
        self._media = media
        self._failing: list[tuple[re.Pattern[str], int]] = []
        self._holding: list[tuple[re.Pattern[str], threading.Event]] = []
        self.measured: list[dict[str, Any]] = []
        """What pages told, in order: `what`, `at` (ms of the page's monotonic clock), `epoch`, `sid`, and more."""
        self.reports: list[Posted] = []
        self.preflights: list[str] = []
        """What the browser asked leave to send (`Access-Control-Request-Headers`), each time."""
        self.served: list[str] = []
        """The paths asked for, in order."""
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def page(self) -> str:
        return f"{self.base}/page.html"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for _, released in self._holding:
            released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fail(self, pattern: str, status: int) -> None:
        """From now on paths in which the pattern is found are answered with this status."""
        self._failing.append((re.compile(pattern), status))

    @contextmanager
    def hold(self, pattern: str) -> Iterator[None]:
        """Within it, files whose path has the pattern stop half-way."""
        entry = (re.compile(pattern), threading.Event())
        self._holding.append(entry)
        try:
            yield
        finally:
            self._holding.remove(entry)
            entry[1].set()

    def told(self, sid: str, *whats: str) -> list[dict[str, Any]]:
        """The moments that the page of this session told, all or those of these names."""
        return [moment for moment in self.measured if moment["sid"] == sid and (not whats or moment["what"] in whats)]

    # one request

    def _status(self, path: str) -> int:
        return next((status for pattern, status in self._failing if pattern.search(path)), 200)

    def _held(self, path: str) -> threading.Event | None:
        return next((released for pattern, released in list(self._holding) if pattern.search(path)), None)

    def _file(self, path: str) -> Path | None:
        if path == "/page.html":
            return HERE / "page.html"
        if path.startswith("/players/"):
            return SCRIPTS.get(path.removeprefix("/players/").removesuffix(".js"))
        name = path.rpartition("/")[2]
        return self._media / name if self._media is not None and (self._media / name).is_file() else None

    def _take(self, path: str, query: str, headers: Any, body: bytes) -> int:
        if path == "/measured":
            self.measured.append(json.loads(body))
        elif path == "/collect":
            self.reports.append(Posted(body, headers.get("Origin", ""), headers.get("Content-Type", ""), query))
        else:
            return 404
        return 204

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        origin = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                path = urlsplit(self.path).path
                origin.served.append(path)
                file = origin._file(path)
                status = origin._status(path) if file is not None else 404
                body = file.read_bytes() if file is not None and status == 200 else b""
                self._begin(status, len(body), TYPES.get(Path(path).suffix, "application/octet-stream"))
                held = origin._held(path)
                # A player that gives a segment up hangs up.
                with suppress(ConnectionError):
                    if held is not None and body:
                        self.wfile.write(body[: len(body) // 2])
                        held.wait(HELD_S)
                        body = body[len(body) // 2 :]
                    self.wfile.write(body)

            def do_POST(self) -> None:
                address = urlsplit(self.path)
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self._begin(origin._take(address.path, address.query, self.headers, body), 0)

            def do_OPTIONS(self) -> None:
                origin.preflights.append(self.headers.get("Access-Control-Request-Headers", ""))
                self._begin(204, 0)

            def _begin(self, status: int, length: int, kind: str = "text/plain") -> None:
                self.send_response(status)
                if status != 204:
                    self.send_header("Content-Length", str(length))
                    self.send_header("Content-Type", kind)
                self.send_header("Cache-Control", "no-store")
                self.send_header("Access-Control-Allow-Origin", "*")
                self.send_header("Access-Control-Allow-Headers", "Content-Type")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler
