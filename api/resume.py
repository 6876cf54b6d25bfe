"""`/v1/resume`: continue watching, and one title's position to read, set and hide."""

from __future__ import annotations

from functools import cached_property

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.asking import account_of, body_of, identifier, profile_of, verified, whole
from api.http import json_response
from api.services import Services
from engine.errors import BadRequest, NotFound
from engine.resumes import Resumes, ResumeSet
from engine.wire import check_printable, decode

LIMIT, LIMIT_MAX = 20, 100
_given = msgspec.json.Decoder(ResumeSet)


class Resume:
    def __init__(self, services: Services) -> None:
        self._services = services

    def routes(self) -> list[Route]:
        return [
            Route("/v1/resume", self.listed, methods=["GET"]),
            # One route, so that 405 names all the methods.
            Route("/v1/resume/{content:any}", self.by_method, methods=["GET", "PUT", "DELETE"]),
        ]

    @cached_property
    def _resumes(self) -> Resumes:
        services = self._services
        return Resumes(services.log, services.keys, services.decisions, services.settings.resume_wait_ms / 1000)

    def _whose(self, request: Request, scope: str) -> tuple[str, str]:
        """Account and profile."""
        claims = verified(self._services, request)
        return account_of(request, claims, scope), profile_of(request, claims)

    async def listed(self, request: Request) -> Response:
        account, profile = self._whose(request, "read")
        limit = whole(request.query_params, "limit", LIMIT, 1, LIMIT_MAX)
        items, more = await self._resumes.listed(account, profile, limit, request.query_params.get("cursor", ""))
        return json_response({"items": items, "next": more})

    async def by_method(self, request: Request) -> Response:
        return await {"PUT": self.set, "DELETE": self.hide}.get(request.method, self.one)(request)

    async def one(self, request: Request) -> Response:
        account, profile = self._whose(request, "read")
        content = identifier("content", request.path_params["content"])
        found = await self._resumes.one(account, profile, content)
        if found is None:
            raise NotFound("no position of this content", field="content")
        return json_response(found)

    async def set(self, request: Request) -> Response:
        account, profile = self._whose(request, "admin")
        content = identifier("content", request.path_params["content"])
        given = decode(_given, await body_of(self._services, request))
        check_printable(given)
        if given.kind == "live" and not given.start_over:
            raise BadRequest("kind: live content has no position, unless start_over is true", field="kind")
        if await self._resumes.set(account, profile, content, given):
            found = await self._resumes.one(account, profile, content)
            if found is not None:
                return json_response(found)
        return json_response({"accepted": True}, 202)

    async def hide(self, request: Request) -> Response:
        account, profile = self._whose(request, "admin")
        content = identifier("content", request.path_params["content"])
        if await self._resumes.hide(account, profile, content):
            return Response(status_code=204)
        return json_response({"accepted": True}, 202)
