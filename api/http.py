"""HTTP in the small: reading a body within its limit, tokens, answers, CORS, and the one table from errors to status."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from functools import cache, lru_cache
from typing import Any
from urllib.parse import parse_qs

import msgspec
import orjson
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine import errors
from engine.errors import BadRequest, PulsegateError, TooLarge, Unauthorized
from engine.tokens import Claims

log = logging.getLogger(__name__)

STATUS: dict[type[PulsegateError], int] = {
    errors.TooLarge: 413,
    errors.BadRequest: 400,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Gone: 410,
    errors.TooCostly: 422,
    errors.Overloaded: 429,
    errors.Unavailable: 503,
}

RawHeaders = list[tuple[bytes, bytes]]
JSON = (b"content-type", b"application/json")
_REQUEST_ID_MAX = 128
_serial = itertools.count(1)
INTERNAL = PulsegateError("an error of ours; it has been logged", code="internal")


def new_request_id() -> str:
    return f"{os.getpid():x}-{next(_serial):x}"


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The caller's X-Request-Id if it is printable and short, else a new one."""
    for name, value in headers:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            if 0 < len(text) <= _REQUEST_ID_MAX and text.isascii() and text.isprintable():
                return text
    return new_request_id()


def status_of(error: PulsegateError) -> int:
    kind: Any = type(error)
    return _status_of(kind)


@cache
def _status_of(kind: Any) -> int:
    return next((status for known, status in STATUS.items() if issubclass(kind, known)), 500)


def error_answer(error: PulsegateError, status: int = 0) -> tuple[int, bytes, RawHeaders]:
    """(status, body, headers) of an error; `status` is given for those that are not in the table. What is wrong with us is for our
    log, not for the caller."""
    kind: Any = type(error)
    status = status or status_of(error)
    if status == 500 and error is not INTERNAL:
        log.error("internal", extra={"code": error.code, "why": error.message})
        error, kind = INTERNAL, PulsegateError
    retry_after_s = error.retry_after_s if isinstance(error, errors.Overloaded | errors.Unavailable) else None
    body, headers = _error_text(kind, error.code, error.message, error.field, retry_after_s)
    return status, body, [*headers]


@lru_cache(256)
def _error_text(
    kind: Any, code: str, message: str, field: str | None, retry_after_s: int | None
) -> tuple[bytes, RawHeaders]:
    """Who makes many errors makes the same ones."""
    said: dict[str, Any] = {"code": code, "message": message}
    field = field or ("authorization" if issubclass(kind, errors.Unauthorized | errors.Forbidden) else None)
    if field:
        said["field"] = field
    headers: RawHeaders = [JSON]
    if retry_after_s is not None:
        headers.append((b"retry-after", str(retry_after_s).encode()))
    if issubclass(kind, errors.Unauthorized):
        headers.append((b"www-authenticate", b"Bearer"))
    return orjson.dumps({"error": said}), headers


def log_bug(scope: Scope, identity: str, error: Exception) -> None:
    """An error nobody meant to raise; the caller is told INTERNAL. Without the path, which may carry a token."""
    log.error("bug", exc_info=error, extra={"method": scope["method"], "request_id": identity})


async def send_error(send: Send, error: PulsegateError) -> None:
    """An error where there is no Starlette response to put it in."""
    status, body, headers = error_answer(error)
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def json_response(value: Any, status: int = 200) -> Response:
    """An answer that no cache may keep: it is true now."""
    return Response(orjson.dumps(value), status, {"cache-control": "no-store"}, media_type="application/json")


async def read_body(receive: Receive, limit: int, declared: bytes | None = None) -> bytes:
    """The whole body; TooLarge as soon as it is known to exceed `limit` bytes."""
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise TooLarge(f"the body exceeds {limit} bytes", field="body")
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadRequest("the body ends too soon", field="body")
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        if size > limit:
            raise TooLarge(f"the body exceeds {limit} bytes", field="body")
        more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def bearer(authorization: bytes | None) -> str:
    """The token of an Authorization header. Raises Unauthorized."""
    if authorization is None:
        raise Unauthorized("a bearer token is required", code="token_missing")
    if authorization.startswith(b"Bearer ey"):  # as nearly everybody writes it; what follows is judged with the token
        return authorization[7:].decode("latin-1")
    scheme, _, token = authorization.partition(b" ")
    if scheme.lower() != b"bearer" or not token.strip():
        raise Unauthorized("Authorization must be: Bearer <token>", code="token_invalid")
    return token.strip().decode("latin-1")


def token_of(request: Request) -> str:
    """Header, else query. Raises Unauthorized if there is none."""
    return _token_before_body(request) or bearer(None)


def _token_before_body(request: Request) -> str:
    authorization = request.headers.get("authorization")
    if authorization is not None:
        return bearer(authorization.encode("latin-1"))
    query: bytes = request.scope["query_string"]
    return parse_qs(query.decode("latin-1")).get("token", [""])[0] if b"token" in query else ""


class _Carrying(Struct):
    """A body that carries its token itself; the rest of it is skipped unread."""

    token: str = ""


_carrying = msgspec.json.Decoder(_Carrying)


async def token_and_body(
    request: Request, verify: Callable[[str], Claims], limit: int, carrying_max: int
) -> tuple[Claims, bytes]:
    """Whose request it is, and its body, for calls that `sendBeacon` makes: their token may be in header, query, or body.

    Nothing that costs is done for nobody: in header or query the token is verified before the body is read; a body that carries its
    token may have `carrying_max` bytes (browsers let a beacon have 64 KiB), and is searched for it and for nothing else. Raises
    Unauthorized, TooLarge, BadRequest.
    """
    token = _token_before_body(request)
    claims = verify(token) if token else None
    most = limit if token else min(limit, carrying_max)
    declared = request.headers.get("content-length")
    try:
        body = await read_body(request.receive, most, declared.encode("latin-1") if declared else None)
    except TooLarge:
        if most == limit:
            raise
        why = f"a body of more than {most} bytes needs its token in Authorization or in the query"
        raise Unauthorized(why, code="token_missing") from None
    if claims is None:
        claims = verify(_carried(body))
    return claims, body


def _carried(body: bytes) -> str:
    """The token in a body; where there is none, or no JSON, nobody asks. Raises Unauthorized."""
    try:
        token = _carrying.decode(body).token
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        token = ""
    return token or bearer(None)


class Cors:
    """CORS for player routes: which origins may call, answered on every response and on preflight."""

    def __init__(self, origins: tuple[str, ...]) -> None:
        self._any = "*" in origins
        self._origins = frozenset(origin.encode() for origin in origins)

    def headers(self, origin: bytes | None) -> RawHeaders:
        exposed = (b"access-control-expose-headers", b"X-Request-Id, Retry-After")
        if self._any:
            return [(b"access-control-allow-origin", b"*"), exposed] if origin is not None else []
        # Also to the others, or a cache would give one origin's answer to another.
        vary = (b"vary", b"Origin")
        if origin is None or origin not in self._origins:
            return [vary]
        return [(b"access-control-allow-origin", origin), vary, exposed]

    def preflight(self, origin: bytes | None) -> RawHeaders:
        headers = self.headers(origin)
        if len(headers) < 2:
            return headers
        return [
            *headers,
            (b"access-control-allow-methods", b"GET, POST, PUT, DELETE, OPTIONS"),
            (b"access-control-allow-headers", b"Authorization, Content-Type, X-Request-Id"),
            (b"access-control-max-age", b"7200"),
        ]


Handler = Callable[[Request], Awaitable[Response]]
