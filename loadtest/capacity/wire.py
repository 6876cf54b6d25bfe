"""Bytes on the connection between a player and the API, counted at a socket: what a browser sends, and all that it gets."""

from __future__ import annotations

import re
import socket

from loadtest.bench_rig import BenchError
from loadtest.capacity.crowd import Crowd, Request
from loadtest.capacity.rig import HEARTBEATS

HEADERS = (
    "Accept: */*",
    "Accept-Encoding: gzip, deflate, br",
    "Accept-Language: en-GB,en;q=0.9,pt;q=0.8",
    "Content-Type: application/json",
    "Origin: https://watch.example.com",
    "Referer: https://watch.example.com/",
    "Sec-Fetch-Dest: empty",
    "Sec-Fetch-Mode: cors",
    "Sec-Fetch-Site: same-site",
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36",
)
"""What a browser adds on HTTP/1.1. A television's player adds less; HTTP/2 says the same in a few bytes after the first time."""
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)\r\n")


def bytes_a_heartbeat(port: int, crowd: Crowd, requests: int) -> tuple[float, float]:
    """(bytes sent, bytes received) per heartbeat over so many requests of the crowd on one kept connection, what comes with
    heartbeats included. Raises BenchError for an answer that is no 2xx."""
    sent = received = heartbeats = 0
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for _ in range(requests):
            request = crowd.next()
            text = request_text(request, f"127.0.0.1:{port}")
            connection.sendall(text)
            answer = _answer(connection)
            if not answer.startswith(b"HTTP/1.1 2"):
                raise BenchError(f"{request.kind}: {answer[:300].decode(errors='replace')}")
            sent, received, heartbeats = (
                sent + len(text),
                received + len(answer),
                heartbeats + (request.kind in HEARTBEATS),
            )
    if not heartbeats:
        raise BenchError(f"none of {requests} requests was a heartbeat")
    return sent / heartbeats, received / heartbeats


def request_text(request: Request, host: str) -> bytes:
    """The whole request, as a browser would send it on a kept connection."""
    length = (f"Content-Length: {len(request.body)}",) if request.method == "POST" else ()
    lines = (
        f"{request.method} {request.path} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {request.token}", *HEADERS, *length,
    )  # fmt: skip
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + request.body


def _answer(connection: socket.socket) -> bytes:
    """Head and body of one response."""
    text = b""
    while True:
        head, found, body = text.partition(b"\r\n\r\n")
        if found:
            length = _LENGTH.search(head + b"\r\n")
            if len(body) >= (int(length[1]) if length else 0):
                return text
        part = connection.recv(65_536)
        if not part:
            raise BenchError("the server closed the connection")
        text += part
