"""`/v1/trending`: what is watched more than expected, or most; once, and as a stream of server-sent events."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope

from api.asking import identifier, whole
from api.direct import Direct
from api.http import JSON, RawHeaders, bearer, token_of
from api.services import Services
from api.streams import Reader
from engine.errors import BadRequest
from engine.published import ITEMS_MAX
from engine.tokens import Claims
from engine.wire import AT_MAX

LIMIT, LIMIT_MAX = 20, ITEMS_MAX
_QUERY_BYTES = 512
"""Longer questions are not remembered."""


def may_read(claims: Claims) -> None:
    """A player, of whatever account, or a service with scope `read`. Raises Forbidden."""
    if not claims.account:
        claims.require("read")


def kind_of(query: QueryParams, *, required: bool) -> str:
    """Raises BadRequest."""
    kind = query.get("kind", "")
    if kind not in ("live", "vod") and (kind or required):
        raise BadRequest("kind must be live or vod", field="kind")
    return kind


@dataclass(frozen=True, slots=True)
class Asked:
    """Which list, and how much of it."""

    kind: str
    rank: str
    provider: str
    limit: int

    @classmethod
    def of(cls, query: QueryParams) -> Asked:
        """Raises BadRequest."""
        kind, rank = kind_of(query, required=True), query.get("rank", "trending")
        if rank not in ("trending", "popular"):
            raise BadRequest("rank must be trending or popular", field="rank")
        if rank == "popular" and kind == "live":
            raise BadRequest("rank: popular is hours viewed by runtime, so there is none of live", field="rank")
        provider = identifier("provider", query.get("provider"), required=False)
        return cls(kind, rank, provider, whole(query, "limit", LIMIT, 1, LIMIT_MAX))


@lru_cache(maxsize=1_024)
def _asked(query: bytes) -> Asked:
    """The same few questions come all the time."""
    return Asked.of(QueryParams(query))


class List(Direct):
    """The list, from memory."""

    path = "/v1/trending"
    methods = ("GET", "HEAD")
    headers: ClassVar[RawHeaders] = [JSON, (b"cache-control", b"no-store")]

    async def answer(self, scope: Scope, receive: Receive, authorization: bytes | None, length: bytes | None) -> bytes:
        services, token = self.services, bearer(authorization)
        may_read(services.tokens.cached(token) or services.tokens.verify(token))
        query = scope["query_string"]
        asked = _asked(query) if len(query) <= _QUERY_BYTES else Asked.of(QueryParams(query))
        listed = await services.published.get(asked.kind, asked.rank, asked.provider)
        return listed.encoded(asked.limit)


class Trending:
    def __init__(self, services: Services) -> None:
        self._services = services

    def routes(self) -> list[Route]:
        return [Route("/v1/trending/stream", self.stream, methods=["GET"])]

    async def stream(self, request: Request) -> Response:
        services = self._services
        token = token_of(request)

        def still() -> Claims:
            claims = services.tokens.verify(token)
            may_read(claims)
            return claims

        account = still().account
        who = f"account {account}" if account else f"token {token}"
        asked = Asked.of(request.query_params)
        listed = await services.published.get(asked.kind, asked.rank, asked.provider)
        last = request.headers.get("last-event-id", "")
        # What is no number of ours is an id of nobody's.
        after = int(last) if last.isascii() and last.isdigit() and len(last) <= len(str(AT_MAX)) else None
        return Reader(services.streams, who, listed, asked.limit, still, after)
