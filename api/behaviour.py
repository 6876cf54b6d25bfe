"""`/v1/behaviour`: how people watch. A service token with scope `read`; answered by the process that answers questions on quality."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.asking import identifier, verified, whole
from api.quality import Quality, span
from api.services import Services
from engine.quality.behaviour import FILTERS, Asked

DAY_MS = 86_400_000
LIMIT, LIMIT_MAX = 100, 10_000


class Behaviour:
    def __init__(self, services: Services, quality: Quality) -> None:
        self._services, self._quality = services, quality

    def routes(self) -> list[Route]:
        return [
            Route("/v1/behaviour", self.figures, methods=["GET"]),
            Route("/v1/behaviour/dropoff", self.curve, methods=["GET"]),
        ]

    async def figures(self, request: Request) -> Response:
        return await self._answer(request, "behaviour", self._asked(request))

    async def curve(self, request: Request) -> Response:
        return await self._answer(request, "dropoff", self._asked(request, content=True))

    def _asked(self, request: Request, *, content: bool = False) -> Asked:
        """Raises Unauthorized, Forbidden, BadRequest."""
        verified(self._services, request).require("read")
        query = request.query_params
        start, end = span(query, DAY_MS, self._services.clock.ms())
        where = []
        for name in FILTERS:
            value = identifier(name, query.get(name), required=content and name == "content")
            if value:
                where.append((name, value))
        by = (
            tuple(part.strip() for part in query.get("by", "").split(","))
            if query.get("by", "").strip() and not content
            else ()
        )
        return Asked(start, end, by, tuple(where), whole(query, "limit", LIMIT, 1, LIMIT_MAX))

    async def _answer(self, request: Request, do: str, asked: Asked) -> Response:
        args = msgspec.to_builtins(asked)
        return await self._quality.answer(request, do, args, asked.start, asked.until)
