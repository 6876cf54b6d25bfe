"""`/v1/alerts`: what fires now, and what was told before. A service token with scope `read`."""

from __future__ import annotations

from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import orjson
from redis.asyncio import Redis
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.asking import moment, verified, whole
from api.http import json_response
from api.services import Services
from engine.alerts import RuleFile, store
from engine.alerts.figures import check
from engine.errors import BadRequest, Unavailable
from engine.projected import answered
from engine.wire import AT_MAX

LIMIT, LIMIT_MAX = 100, 1_000
STATUSES = ("firing", "pending", "quiet")


class Alerts:
    def __init__(self, services: Services) -> None:
        self._services = services
        path = services.settings.alerts_file
        self._rules = RuleFile(Path(path) if path else None, check)

    def routes(self) -> list[Route]:
        return [
            Route("/v1/alerts", self.now, methods=["GET"]),
            Route("/v1/alerts/history", self.history, methods=["GET"]),
        ]

    async def now(self, request: Request) -> Response:
        """Those that fire, the longest first; or of another status."""
        log = self._log(request)
        status = request.query_params.get("status", "firing")
        if status not in STATUSES:
            raise BadRequest(f"status must be one of {', '.join(STATUSES)}", field="status")
        self._rules.refresh()
        rules = {rule.name: rule for rule in self._rules.current}
        asked: Awaitable[Any] = log.hgetall(self._services.keys.alerts)
        found = store.read(await answered(asked))
        items = [store.shown(place, state, rules) for place, state in found.items() if state.status == status]
        items.sort(key=lambda item: (item["since_at"], item["alert"], str(item["by"])))
        return json_response({"items": items, "next": None, "rules_error": self._rules.error or None})

    async def history(self, request: Request) -> Response:
        """What was told, the newest first."""
        log, query = self._log(request), request.query_params
        limit, before = whole(query, "limit", LIMIT, 1, LIMIT_MAX), moment(query, "before", AT_MAX, 1)
        asked: Awaitable[Any] = log.xrevrange(self._services.keys.alerts_told, max=f"({before}-0", count=limit)
        items = [{"id": id_.decode()} | orjson.loads(fields[b"a"]) for id_, fields in await answered(asked)]
        return json_response({"items": items, "next": None})

    def _log(self, request: Request) -> Redis:
        """Raises Unauthorized, Forbidden, Unavailable."""
        verified(self._services, request).require("read")
        if self._services.log is None:
            raise Unavailable("the session Redis is a cluster: PULSEGATE_LOG_REDIS_URL must name the log Redis")
        return self._services.log
