"""`/v1/quality`: how good the picture is, asked by analysts and dashboards. A service token with scope `read`.

A question is judged here, and answered by a process of its own (engine/quality/ask.py), so that none slows a heartbeat.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.asking import identifier, moment, verified, whole
from api.services import Services
from engine.errors import BadRequest
from engine.events import EVENTS, HEARTBEATS
from engine.partitions import partition_of
from engine.quality.metrics import METRICS
from engine.quality.query import ROWS_MAX, Asked, by_of, check_range, interval_of, metrics_of, where_of

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
LIMIT_WORST, LIMIT_PLAYERS = 20, 100
WORST_BY = ("content", "provider", "device_type", "os", "browser", "player", "app_version", "cdn", "asn", "country")
"""What is looked at where `by` is not given."""
CLOSED = 499
"""Nobody reads this answer."""


class Quality:
    def __init__(self, services: Services) -> None:
        self._services = services

    def routes(self) -> list[Route]:
        return [
            Route("/v1/quality", self.metrics, methods=["GET"]),
            Route("/v1/quality/worst", self.worst, methods=["GET"]),
            Route("/v1/quality/players", self.players, methods=["GET"]),
            Route("/v1/quality/sessions/{session:any}", self.timeline, methods=["GET"]),
        ]

    async def metrics(self, request: Request) -> Response:
        query = self._allowed(request)
        start, end = span(query, HOUR_MS, self._services.clock.ms())
        asked = Asked(
            metrics_of(query.get("metrics", "")), start, end, by_of(query.get("by", "")), where_of(query.get("where", "")),
            interval_of(query.get("interval", ""), start, end), whole(query, "limit", ROWS_MAX, 1, ROWS_MAX),
        )  # fmt: skip
        return await self.answer(request, "metrics", msgspec.to_builtins(asked), start, end)

    async def worst(self, request: Request) -> Response:
        query = self._allowed(request)
        start, end = span(query, HOUR_MS, self._services.clock.ms())
        metric = query.get("metric", "")
        rankable = [name for name, known in METRICS.items() if known.bad]
        if metric not in rankable:
            raise BadRequest(f"metric must be one of {', '.join(rankable)}", field="metric")
        asked = Asked(
            (metric,), start, end, by_of(query.get("by", "")) or WORST_BY, where_of(query.get("where", "")),
            limit=whole(query, "limit", LIMIT_WORST, 1, ROWS_MAX),
        )  # fmt: skip
        return await self.answer(request, "worst", msgspec.to_builtins(asked), start, end)

    async def players(self, request: Request) -> Response:
        query = self._allowed(request)
        start, end = span(query, HOUR_MS, self._services.clock.ms())
        limit = whole(query, "limit", LIMIT_PLAYERS, 1, ROWS_MAX)
        return await self.answer(request, "players", {"start": start, "end": end, "limit": limit}, start, end)

    async def timeline(self, request: Request) -> Response:
        query = self._allowed(request)
        session = identifier("session", request.path_params["session"])
        account = identifier("account", query.get("account"))
        start, end = span(query, DAY_MS, self._services.clock.ms())
        partition = partition_of(account, self._services.settings.partitions)
        args = {"partition": partition, "account": account, "session": session, "start": start, "end": end}
        return await self.answer(request, "timeline", args, start, end, ("facts", EVENTS, HEARTBEATS))

    def _allowed(self, request: Request) -> QueryParams:
        """Raises Unauthorized, Forbidden."""
        verified(self._services, request).require("read")
        return request.query_params

    async def answer(
        self,
        request: Request,
        do: str,
        args: Mapping[str, Any],
        start: int,
        end: int,
        reads: Sequence[str] = ("facts",),
    ) -> Response:
        services = self._services
        with services.metrics.questions.track_inprogress():
            body = await while_there(request, lambda: services.asker.ask(do, args, start, end, reads))
        if body is None:
            return Response(status_code=CLOSED)
        return Response(body, headers={"cache-control": "no-store"}, media_type="application/json")


def span(query: QueryParams, default_ms: int, now_ms: int) -> tuple[int, int]:
    """`from` and `to`, ms; to now unless given, and from so long before it. Raises BadRequest."""
    end = moment(query, "to", now_ms + 1)
    start = moment(query, "from", max(0, end - default_ms))
    check_range(start, end)
    return start, end


async def while_there(request: Request, ask: Callable[[], Any]) -> bytes | None:
    """The answer, or None: the caller has gone, and the question was cancelled."""
    asking = asyncio.ensure_future(ask())
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((asking, gone), return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            answer: bytes = await asking
            return answer
        return None
    finally:
        for task in (asking, gone):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
