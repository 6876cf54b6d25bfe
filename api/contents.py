"""`/v1/contents`: what backends say of contents, and how many watch one."""

from __future__ import annotations

import contextlib
from functools import cached_property

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.asking import identifier, verified
from api.http import json_response, read_body
from api.services import Services
from api.trending import kind_of, may_read
from engine import catalogue
from engine.audience import Audiences
from engine.catalogue import Catalogue, Entry
from engine.errors import NotFound, Unavailable

BODY_MAX_BYTES = 2**20


class Contents:
    def __init__(self, services: Services) -> None:
        self._services = services

    def routes(self) -> list[Route]:
        return [
            Route("/v1/contents", self.say, methods=["POST"]),
            Route("/v1/contents/{content:any}/audience", self.audience, methods=["GET"]),
            Route("/v1/contents/{content:any}", self.one, methods=["GET"]),
        ]

    @cached_property
    def _catalogue(self) -> Catalogue:
        return Catalogue(self._services.log, self._services.keys)

    @cached_property
    def _audiences(self) -> Audiences:
        services, clock = self._services, self._services.clock
        return Audiences(services.client, services.log, services.keys, clock.seconds, clock.monotonic)

    async def say(self, request: Request) -> Response:
        verified(self._services, request).require("admin")
        length = request.headers.get("content-length")
        limit = max(BODY_MAX_BYTES, self._services.settings.body_max_bytes)
        body = await read_body(request.receive, limit, length.encode("latin-1") if length else None)
        contents = catalogue.read(body)
        if contents and await self._catalogue.say(contents):
            # Here at once; the other processes hear of it.
            with contextlib.suppress(Unavailable):
                await self._services.published.refresh()
        return json_response({"accepted": len(contents)})

    async def one(self, request: Request) -> Response:
        may_read(verified(self._services, request))
        content = identifier("content", request.path_params["content"])
        found = await self._catalogue.get(content)
        if found is None:
            raise NotFound("nothing is known of this content", field="content")
        return json_response(_said(content, found))

    async def audience(self, request: Request) -> Response:
        may_read(verified(self._services, request))
        content = identifier("content", request.path_params["content"])
        return json_response(await self._audiences.of(content, kind_of(request.query_params, required=False)))


def _said(content: str, entry: Entry) -> dict[str, object]:
    """What nobody has said is null."""
    known = {name: value or None for name, value in msgspec.structs.asdict(entry).items()}
    return {"content": content} | known | {"hidden": entry.hidden}
