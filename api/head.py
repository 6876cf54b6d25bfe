"""What the head of a request must be, and what a connection is told that keeps to no rule.

A header that decides something must not come twice: whoever stands before us may have read the other one. Trailers are no
headers. Upgrades are not taken; one with a body is refused, because the parser takes its body for the next request.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from api.http import INTERNAL, RawHeaders
from engine.errors import BadRequest, PulsegateError, Unavailable

SINGLE = frozenset([
    b"authorization", b"host", b"content-length", b"content-type", b"transfer-encoding", b"origin", b"expect", b"upgrade",
    b"x-original-uri", b"x-original-method", b"x-forwarded-uri", b"x-forwarded-method",
])  # fmt: skip
FULL_RETRY_S = 5


class Refusal(NamedTuple):
    """The last answer on a connection."""

    status: int
    error: PulsegateError


def _full() -> Unavailable:
    error = Unavailable("this process has as many connections as it may", code="connections_full")
    error.retry_after_s = FULL_RETRY_S
    return error


BAD = Refusal(400, BadRequest("this is no HTTP/1.1 request", code="bad_http"))
SLOW = Refusal(408, PulsegateError("the request took too long to come", code="too_slow"))
LARGE = Refusal(
    431, PulsegateError("the request's head, or what follows its body, is too large", code="head_too_large")
)
FULL = Refusal(503, _full())
OURS = Refusal(500, INTERNAL)
VERSION = Refusal(505, PulsegateError("only HTTP/1.1 and HTTP/1.0 are spoken here", code="http_version"))


def wrong(method: bytes, version: str, headers: RawHeaders, found: dict[bytes, bytes], upgrade: bool) -> Refusal | None:
    """What is wrong with a head, if anything; `found` is the dictionary of its `headers`."""
    if version not in ("1.1", "1.0"):
        return VERSION
    if len(found) != len(headers):
        for name, count in Counter(name for name, _ in headers).items():
            if count > 1 and name in SINGLE:
                return _bad(f"{name.decode('latin-1')} comes {count} times", name)
    if version == "1.1" and b"host" not in found:
        return _bad("HTTP/1.1 needs a Host", b"host")
    coding = found.get(b"transfer-encoding")
    if coding is not None and (version == "1.0" or coding.strip().lower() != b"chunked"):
        return _bad("the only transfer coding is chunked, of HTTP/1.1", b"transfer-encoding")
    if method == b"CONNECT":
        return BAD
    if upgrade and (coding is not None or found.get(b"content-length", b"0").strip() != b"0"):
        return _bad("no upgrade is taken, least of all with a body", b"upgrade")
    return None


def size(url: bytes, headers: RawHeaders) -> int:
    """Bytes of a head, without spaces that do not count."""
    return len(url) + sum(len(name) + len(value) + 4 for name, value in headers)


def _bad(message: str, name: bytes) -> Refusal:
    return Refusal(400, BadRequest(message, code="bad_http", field=name.decode("latin-1")))
