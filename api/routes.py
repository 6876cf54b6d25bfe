"""Every route: players, backends, operations. Most handlers here are a few lines around `Decisions`."""

from __future__ import annotations

import msgspec
import orjson
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.admin import Admin
from api.alerts import Alerts
from api.asking import identifier
from api.behaviour import Behaviour
from api.clock import Clocks
from api.cmcd import Cmcd
from api.connections import Connections, Limits
from api.contents import Contents
from api.direct import Direct
from api.edge import METHODS as EDGE_METHODS
from api.edge import Edge
from api.events import ROUTE as EVENTS_ROUTE
from api.events import Events
from api.exchange import Door
from api.heartbeats import Heartbeats
from api.http import bearer, json_response, read_body, token_and_body
from api.openapi import document
from api.quality import Quality
from api.resume import Resume
from api.services import Services
from api.trending import List, Trending
from api.views import Views
from engine import names
from engine.clock import VirtualClock
from engine.errors import BadRequest
from engine.metrics import CONTENT_TYPE
from engine.tokens import Claims
from engine.wire import SIGNALS_MAX, Revocation, Signal, Stop, Takeover, check_ms, check_printable, decode

_stop = msgspec.json.Decoder(Stop)
_takeover = msgspec.json.Decoder(Takeover)
_signal = msgspec.json.Decoder(Signal)
_signals = msgspec.json.Decoder(list[msgspec.Raw])
_revocation = msgspec.json.Decoder(Revocation)


class _Any(Convertor[str]):
    """The rest of a path, slashes and line breaks too, so that it is judged and not just unknown."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("any", _Any())


def _check_signal(signal: Signal, where: str) -> None:
    """Raises BadRequest."""
    check_printable(signal, where)
    names.check_session(signal.session, f"{where}session")
    names.check_signal_device(signal.device, f"{where}device")
    check_ms(signal.at, f"{where}at")


class Routes:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._edge = Edge(services)
        self._events = Events(services)
        self._resume, self._views = Resume(services), Views(services)
        self._trending, self._contents = Trending(services), Contents(services)
        self._admin, self._quality = Admin(services), Quality(services)
        self._behaviour, self._alerts = Behaviour(services, self._quality), Alerts(services)
        heartbeats = Heartbeats(services)
        # In simulations only, and therefore no part of the API's description.
        clock = services.clock if services.settings.virtual_clock else None
        self._clocks = [Clocks(services, clock)] if isinstance(clock, VirtualClock) else []
        self.direct: list[Direct] = [heartbeats, List(services), Cmcd(services)]
        self._heartbeats = heartbeats

    def door(self) -> Door:
        """What the protocol needs; within the event loop that serves."""
        heartbeats, services = self._heartbeats, self._services
        connections = Connections(Limits.of(services.settings), services.metrics.connections.set)
        return Door(
            heartbeats.known, heartbeats.begin, heartbeats, services.settings.body_max_bytes, connections,
            lambda status: services.metrics.answered("unmatched", status, 0.0),
        )  # fmt: skip

    def all(self) -> list[Route]:
        return [
            # These are served before routing; here for other methods.
            *(Route(each.path, each, methods=each.methods) for each in self.direct),
            Route("/v1/check", self.check, methods=["GET"]),
            # Ids may contain a slash; DELETE, which has nothing behind the id, leaves those to stop.
            Route("/v1/sessions/{session:any}/stop", self.stop, methods=["POST"]),
            Route("/v1/sessions/{session:any}/takeover", self.takeover, methods=["POST"]),
            Route("/v1/sessions/{session}", self.stop, methods=["DELETE"]),
            Route("/v1/accounts/{account:any}/sessions", self.sessions, methods=["GET"]),
            Route(EVENTS_ROUTE, self._events.post, methods=["POST"]),
            *self._admin.routes(),
            *self._resume.routes(),
            *self._views.routes(),
            *self._trending.routes(),
            *self._contents.routes(),
            *self._quality.routes(),
            *self._behaviour.routes(),
            *self._alerts.routes(),
            *(route for clocks in self._clocks for route in clocks.routes()),
            Route("/v1/signals", self.signals, methods=["POST"]),
            Route("/v1/edge/authorize", self._edge.authorize, methods=["GET", "POST"]),
            Route("/v1/edge/authorize/{original:any}", self._edge.authorize, methods=EDGE_METHODS),
            Route("/v1/tokens/revoke", self.revoke, methods=["POST"]),
            Route("/healthz", self.healthz, methods=["GET"]),
            Route("/readyz", self.readyz, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/openapi.json", self.openapi, methods=["GET"]),
        ]

    async def close(self) -> None:
        for clocks in self._clocks:
            await clocks.close()

    async def _body(self, request: Request) -> bytes:
        length = request.headers.get("content-length")
        limit = self._services.settings.body_max_bytes
        return await read_body(request.receive, limit, length.encode("latin-1") if length else None)

    def _verified(self, request: Request) -> Claims:
        authorization = request.headers.get("authorization")
        return self._services.tokens.verify(
            bearer(authorization.encode("latin-1") if authorization is not None else None)
        )

    # players

    async def check(self, request: Request) -> Response:
        authorization = request.headers.get("authorization")
        claims = self._services.player(bearer(authorization.encode("latin-1") if authorization is not None else None))
        query = request.query_params
        kind = query.get("kind", "")
        if kind not in ("", "live", "vod"):
            raise BadRequest("kind must be live or vod", field="kind")
        attributes = {
            name: identifier(name, query.get(name), required=False) for name in ("profile", "device_type", "provider")
        }
        session, device = (identifier(name, query.get(name), required=False) for name in ("session", "device"))
        names.check_session(session)
        names.check_device(device)
        content = identifier("content", query.get("content"))
        return json_response(await self._services.decisions.check(claims, session, device, content, kind, attributes))

    async def stop(self, request: Request) -> Response:
        session = identifier("session", request.path_params["session"])
        limit = self._services.settings.body_max_bytes
        claims, body = await token_and_body(request, self._stops, limit, limit)
        stop = decode(_stop, body) if body.strip() else Stop()
        check_printable(stop)
        await self._services.decisions.stop(claims, session, stop)
        return Response(status_code=204)

    def _stops(self, token: str) -> Claims:
        """Raises Unauthorized, Forbidden."""
        claims = self._services.tokens.verify(token, grace_s=self._services.settings.token_grace_s)
        if not claims.account:
            claims.require("admin")
        return claims

    async def takeover(self, request: Request) -> Response:
        session = identifier("session", request.path_params["session"])
        claims = self._verified(request)
        names.check_session(session)
        if not claims.account:
            claims.require("admin")
        ask = decode(_takeover, await self._body(request))
        check_printable(ask)
        names.check_device(ask.device)
        return json_response(await self._services.decisions.takeover(claims, session, ask))

    async def sessions(self, request: Request) -> Response:
        claims = self._verified(request)
        account = identifier("account", request.path_params["account"])
        if not claims.account:
            claims.require("read")
        items = await self._services.decisions.sessions(claims.account_or(account))
        items = [item for item in items if claims.reaches(item["profile"], backend=item["origin"] == "backend")]
        return json_response({"items": items, "next": None})

    # backends

    async def signals(self, request: Request) -> Response:
        self._verified(request).require("signals")
        body = await self._body(request)
        many = body.lstrip()[:1] == b"["
        raw = [bytes(item) for item in decode(_signals, body)] if many else [body]
        if len(raw) > SIGNALS_MAX:
            raise BadRequest(f"at most {SIGNALS_MAX} signals at once", field="body")
        read = []
        for index, item in enumerate(raw):
            signal = decode(_signal, item, f"[{index}]" if many else "")
            _check_signal(signal, f"[{index}]." if many else "")
            read.append((signal, item))
        answers = await self._services.decisions.signals(read)
        return json_response(answers if many else answers[0])

    async def revoke(self, request: Request) -> Response:
        self._verified(request).require("admin")
        revocation = decode(_revocation, await self._body(request))
        check_printable(revocation)
        check_ms(revocation.expires_at, "expires_at")
        await self._services.revocations.revoke(revocation)
        return Response(status_code=204)

    # operations

    async def healthz(self, request: Request) -> Response:
        return json_response({"ok": True})

    async def readyz(self, request: Request) -> Response:
        services = self._services
        redis = services.router.state
        if redis == "up" and services.decisions.unreal:
            redis = "slow"
        ready = redis == "up"
        said = {
            "ready": ready,
            "redis": redis,
            "memory": "high" if services.outage.full else "ok",
            "plans": services.plans.error or "ok",
            "api_processes": services.outage.processes,
        }
        return json_response(said, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        if not self._services.settings.metrics_public:
            self._verified(request).require("read")
        return Response(self._services.metrics.render(), headers={"content-type": CONTENT_TYPE})

    async def openapi(self, request: Request) -> Response:
        return Response(orjson.dumps(document()), media_type="application/json")
