"""`/v1/trending`: what is watched more than expected, or most; once, and as a stream of server-sent events."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.asking import identifier, verified, whole
from api.http import token_of
from api.services import Services
from api.streams import Reader
from engine.errors import BadRequest
from engine.published import ITEMS_MAX, Listed
from engine.tokens import Claims
from engine.wire import AT_MAX

LIMIT, LIMIT_MAX = 20, ITEMS_MAX


def may_read(claims: Claims) -> None:
    """A player, of whatever account, or a service with scope `read`. Raises Forbidden."""
    if not claims.account:
        claims.require("read")


def kind_of(request: Request, *, required: bool) -> str:
    """Raises BadRequest."""
    kind = request.query_params.get("kind", "")
    if kind not in ("live", "vod") and (kind or required):
        raise BadRequest("kind must be live or vod", field="kind")
    return kind


class Trending:
    def __init__(self, services: Services) -> None:
        self._services = services

    def routes(self) -> list[Route]:
        return [
            Route("/v1/trending", self.listed, methods=["GET"]),
            Route("/v1/trending/stream", self.stream, methods=["GET"]),
        ]

    async def _asked(self, request: Request) -> tuple[Listed, int]:
        """The list and how much of it."""
        kind, rank = kind_of(request, required=True), request.query_params.get("rank", "trending")
        if rank not in ("trending", "popular"):
            raise BadRequest("rank must be trending or popular", field="rank")
        if rank == "popular" and kind == "live":
            raise BadRequest("rank: popular is hours viewed by runtime, so there is none of live", field="rank")
        provider = identifier("provider", request.query_params.get("provider"), required=False)
        limit = whole(request, "limit", LIMIT, 1, LIMIT_MAX)
        return await self._services.published.get(kind, rank, provider), limit

    async def listed(self, request: Request) -> Response:
        may_read(verified(self._services, request))
        listed, limit = await self._asked(request)
        return Response(listed.encoded(limit), 200, {"cache-control": "no-store"}, media_type="application/json")

    async def stream(self, request: Request) -> Response:
        services = self._services
        token = token_of(request)

        def still() -> None:
            may_read(services.tokens.verify(token))

        still()
        listed, limit = await self._asked(request)
        last = request.headers.get("last-event-id", "")
        # What is no number of ours is an id of nobody's.
        after = int(last) if last.isascii() and last.isdigit() and len(last) <= len(str(AT_MAX)) else None
        return Reader(services.streams, listed, limit, still, after)
