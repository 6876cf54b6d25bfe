"""For operators and content providers: erase an account, prove what was enforced."""

from __future__ import annotations

import re
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.asking import identifier, moment, verified, whole
from api.http import json_response, token_of
from api.services import Services
from engine.errors import BadRequest

JOB_S = 3_600
RANGE_MS = 92 * 86_400_000
LIMIT, LIMIT_MAX = 100, 1_000
_JOB = re.compile("[0-9a-f-]{36}")


class Admin:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._wait_s = services.settings.ask_wait_s

    def routes(self) -> list[Route]:
        return [
            Route("/v1/accounts/{account:any}", self.erase, methods=["DELETE"]),
            Route("/v1/jobs/{job}", self.job, methods=["GET"]),
            Route("/v1/audit/blocks", self.blocks, methods=["GET"]),
        ]

    async def erase(self, request: Request) -> Response:
        verified(self._services, request).require("admin")
        account = identifier("account", request.path_params["account"])
        job, receipt = await self._services.asks.ask(
            token_of(request), "workers.erase.erase", account, wait_s=self._wait_s, timeout_s=JOB_S
        )
        return _answered(job, receipt)

    async def job(self, request: Request) -> Response:
        """The answer of an earlier request that took too long."""
        verified(self._services, request).require("admin")
        job = request.path_params["job"]
        if not _JOB.fullmatch(job):
            raise BadRequest("job must be an id that an earlier answer gave", field="job")
        return _answered(job, await self._services.asks.answer(job))

    async def blocks(self, request: Request) -> Response:
        verified(self._services, request).require("read")
        query = request.query_params
        now = self._services.clock.ms()
        end = moment(query, "to", now + 1)
        start = moment(query, "from", max(0, end - 86_400_000))
        if not start < end <= start + RANGE_MS:
            raise BadRequest("from and to must be ms, from before to, at most 92 days apart", field="from")
        asked: dict[str, Any] = {
            name: identifier(name, query.get(name), required=False)
            for name in ("account", "rule", "provider", "content")
        }
        asked |= {"from": start, "to": end, "after": query.get("cursor", "")}
        asked["limit"] = whole(request.query_params, "limit", LIMIT, 1, LIMIT_MAX)
        job, found = await self._services.asks.ask(
            token_of(request), "workers.audit.blocks", asked, wait_s=self._wait_s, timeout_s=JOB_S
        )
        return _answered(job, found)


def _answered(job: str, found: Any) -> Response:
    """200 with the answer and its job, or 202 with where to ask for it."""
    if found is None:
        return json_response({"job": job}, 202)
    return json_response({"job": job} | found)
