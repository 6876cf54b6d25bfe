"""`/v1/views`: what became of each view."""

from __future__ import annotations

from functools import cached_property

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.asking import account_of, identifier, moment, verified, whole
from api.http import json_response
from api.services import Services
from engine.errors import BadRequest
from engine.viewings import Asked, Viewings
from engine.wire import AT_MAX

LIMIT, LIMIT_MAX = 50, 500
SPAN_MAX_MS = 86_400_000
"""The longest span of time of which all views can be asked for at once."""


class Views:
    def __init__(self, services: Services) -> None:
        self._services = services

    def routes(self) -> list[Route]:
        return [Route("/v1/views", self.listed, methods=["GET"])]

    @cached_property
    def _viewings(self) -> Viewings:
        return Viewings(self._services.log, self._services.keys)

    async def listed(self, request: Request) -> Response:
        claims = verified(self._services, request)
        query = request.query_params
        account = account_of(request, claims, "read", required=False)
        content, session = (identifier(name, query.get(name), required=False) for name in ("content", "session"))
        start, end = moment(query, "from", 0), moment(query, "to", AT_MAX)
        if not account and not content and end - start > SPAN_MAX_MS:
            raise BadRequest(
                "from and to must lie within a day where neither account nor content is named", field="from"
            )
        limit = whole(request.query_params, "limit", LIMIT, 1, LIMIT_MAX)
        asked = Asked(account, content, session, start, end, limit, query.get("cursor", ""), claims.profiles)
        items, more = await self._viewings.find(asked)
        return json_response({"items": items, "next": more})
