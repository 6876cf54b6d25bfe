"""The API's composition root: builds every part, runs the once-a-second chores, and dispatches requests.

One heartbeat goes `api/heartbeats.py` → `engine/decisions.py` → `engine/multiplex.py` → `lua/heartbeat.lua`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http import INTERNAL, Cors, error_answer, log_bug, request_id, send_error
from api.routes import Routes
from api.services import Services
from api.streams import Streams
from engine import lag, layout
from engine.ask import Asks
from engine.bad import BadEvents
from engine.clock import Clock, VirtualClock
from engine.decisions import Decisions
from engine.errors import Forbidden, NotFound, PulsegateError, Unavailable
from engine.keys import Keys
from engine.log import configure, log_answer, log_failure
from engine.marks import Marks
from engine.metrics import Metrics
from engine.outages import Announcer, Outage, cancel, every
from engine.places import Places
from engine.plans import PlanFile
from engine.projected import answered
from engine.published import Published
from engine.quality.ask import Asker
from engine.revocations import Revocations
from engine.router import Router, connect
from engine.settings import Settings
from engine.spill import Spill
from engine.spool import Entry, Spool
from engine.tokens import Claims, Tokens
from engine.tracking import sift
from engine.visitors import Visitors
from engine.watch import Backlog, Memory
from engine.wire import decode_events, decode_kept_heartbeat

log = logging.getLogger(__name__)

_PLAYER_ROUTES = (
    "/v1/heartbeats",
    "/v1/check",
    "/v1/sessions/",
    "/v1/accounts/",
    "/v1/events",
    "/v1/cmcd",
    "/v1/resume",
    "/v1/views",
    "/v1/trending",
    "/v1/contents/",
)
_SLOW_EVERY_S = 5.0
# redis-py's client serves chores and administration; the hot path has deadlines of its own.
_CLIENT_S = 1.0


class App:
    """The ASGI application of one API process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._cors = Cors(settings.cors_origins)
        self._direct: dict[tuple[str, str], ASGIApp] = {}
        # Given here, because Starlette reads them before the lifespan begins.
        handlers: dict[Any, Any] = {PulsegateError: _on_error, HTTPException: _on_http_error}
        self._rest = Starlette(lifespan=self._lifespan, exception_handlers=handlers)
        self._rest.router.redirect_slashes = False
        self._metrics = Metrics(settings.metrics_dir)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            direct = self._direct.get((scope["method"], scope["path"]))
            await (direct or self._serve)(scope, receive, send)
        else:
            await self._rest(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Everything but the direct routes: CORS, request id, errors, metrics around Starlette."""
        started = perf_counter()
        headers = dict(scope["headers"])
        identity = scope["request_id"] = request_id(scope["headers"])
        player = scope["path"].startswith(_PLAYER_ROUTES)
        if player and scope["method"] == "OPTIONS":
            extra = self._cors.preflight(headers.get(b"origin"))
            await send({"type": "http.response.start", "status": 204, "headers": extra})
            await send({"type": "http.response.body", "body": b""})
            return
        extra = [(b"x-request-id", identity.encode()), *(self._cors.headers(headers.get(b"origin")) if player else [])]
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        try:
            await self._rest(scope, receive, send_with_headers)
        except Exception as error:
            if status:
                raise
            log_bug(scope, identity, error)
            await send_error(send_with_headers, INTERNAL)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            seconds = perf_counter() - started
            self._metrics.answered(route, status, seconds)
            log_answer(route, scope["method"], status, identity, seconds)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[dict[str, Any]]:
        settings, metrics = self._settings, self._metrics
        configure(settings.log_level)
        keys, outage = Keys(settings.prefix, settings.partitions), Outage()
        places = Places.of(settings)
        client: Any = await connect(settings.redis_url, socket_timeout=_CLIENT_S, socket_connect_timeout=_CLIENT_S)
        clock = VirtualClock() if settings.virtual_clock else Clock()
        await layout.ensure(client, keys, clock.virtual)
        log_client = _log_client(settings, client)
        router = Router(
            settings.redis_url, client, Marks(log_client, keys),
            timeout_ms=settings.redis_timeout_ms, silent_ms=settings.redis_silent_ms, retry_ms=settings.breaker_retry_ms,
        )  # fmt: skip
        await router.open()
        tokens = Tokens(settings)
        await tokens.refresh_keys()
        plans = PlanFile(Path(settings.plans_file), lambda why: log.error("plans_broken", extra={"why": why}))
        root = Path(settings.spool_dir) if settings.spool_dir else None
        spool = Spool(root and root / "heartbeats", settings.spool_max_bytes, metrics.spooled)
        spilled = Spool(root and root / "events", settings.spool_max_bytes, metrics.spilled)
        spool.open()
        spilled.open()
        decisions = Decisions(router, keys, settings, plans, metrics, outage, spool, clock.now, clock.monotonic)
        spill = Spill(client, router, keys, spilled, decisions.restore)
        revocations = Revocations(client, keys, tokens)
        with contextlib.suppress(Unavailable):
            await revocations.refresh()
        announcer = Announcer(router, keys, settings, outage, now=clock.now, monotonic=clock.monotonic)
        if isinstance(clock, VirtualClock) and not await _set_as_it_was(clock, client, keys):
            await router.settle()
        else:
            await announcer.announce()
        bad = BadEvents(log_client, keys, settings, metrics, decisions.quotas)
        asks = Asks(settings.log_redis_url or (settings.redis_url if log_client is not None else ""), keys, settings)
        published = Published(log_client, keys)
        streams = Streams(settings, published, metrics)
        visitors = Visitors(router, keys, settings, places, clock=clock.monotonic, now=clock.now)
        asker = Asker(settings)
        services = Services(
            settings,
            keys,
            client,
            log_client,
            router,
            plans,
            tokens,
            revocations,
            metrics,
            outage,
            decisions,
            bad,
            asks,
            self._cors,
            published,
            streams,
            visitors,
            asker,
            announcer,
            clock,
        )
        routes = Routes(services)
        app.router.routes.extend(routes.all())
        self._direct = {(method, each.path): each for each in routes.direct for method in each.methods}

        async def replay() -> None:
            if spool.waiting and router.ready:
                await spool.drain(lambda entry: _reapply(decisions, entry))

        def flush() -> None:
            metrics.redis_up.set(1 if router.ready else 0)
            metrics.plans_broken.set(1 if plans.error else 0)
            metrics.thinned_events.inc(outage.skipped)
            outage.skipped = 0
            metrics.flush()
            visitors.forget()
            decisions.quotas.turn()

        memory = Memory({"session": client, "log": log_client}, settings.memory_high, metrics, outage)
        backlog = Backlog(client, keys, settings, metrics, outage)
        # A virtual clock announces when it moves (api/clock.py).
        chores = (router.prove, flush) if clock.virtual else (announcer.announce, router.prove, flush)
        fast = asyncio.create_task(every(1.0, *chores))
        # Apart from the announcements, which must not wait for a long spool: a process that is silent has vanished.
        back = asyncio.create_task(every(1.0, replay, spill.give_back))

        async def take() -> None:
            await spill.take(backlog.spilling)

        async def flow() -> None:
            if log_client is not None:
                metrics.flows(await answered(lag.look(log_client, keys, settings.groups)))

        slow = asyncio.create_task(every(_SLOW_EVERY_S, memory.look, backlog.look, take, flow))
        lists = asyncio.create_task(published.follow())
        # Each by itself: keys that come slowly must not keep a revocation waiting.
        upkeep = [
            asyncio.create_task(every(1.0, step)) for step in (plans.refresh, revocations.refresh, tokens.refresh_keys)
        ]
        _settle()
        log.info("serving", extra={"pid": os.getpid(), "cluster": type(client).__name__ == "RedisCluster"})
        try:
            yield {"closing": streams.close, "door": routes.door()}
        finally:
            for task in (fast, back, slow, lists, *upkeep):
                await cancel(task)
            await _sign_off(announcer)
            await routes.close()
            await asker.close()
            asks.close()
            await visitors.close()
            await decisions.close()
            await bad.close()
            await router.close()
            await client.aclose()
            if log_client is not None and log_client is not client:
                await log_client.aclose()
            spool.close()
            spilled.close()
            places.close()
            metrics.leave()


def _log_client(settings: Settings, client: Any) -> Redis | None:
    """The log Redis; None if there is none: a cluster holds the sessions, and no other server is named."""
    if settings.log_redis_url:
        return Redis.from_url(settings.log_redis_url, socket_timeout=_CLIENT_S, socket_connect_timeout=_CLIENT_S)
    return client if isinstance(client, Redis) else None


def _settle() -> None:
    """What was built at the start lives as long as the process, and a heartbeat leaves no cycles behind: look at the
    former never again, and for the latter seldom. A thread that computes lets the event loop go on after half a millisecond, not after
    Python's five."""
    sys.setswitchinterval(0.0005)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


async def _set_as_it_was(clock: VirtualClock, client: Any, keys: Keys) -> bool:
    """Goes on from where the clock stood when it last announced; whether there was such a time."""
    last = await client.hget(keys.outage, "last")
    clock.set(int(last or 0))
    return bool(last)


async def _sign_off(announcer: Announcer) -> None:
    try:
        await announcer.announce(leaving=True)
    except PulsegateError as error:
        log.warning("sign_off", extra={"why": error.message})


async def _reapply(decisions: Decisions, entry: Entry) -> bool:
    claims, body, at = _kept_claims(entry["claims"]), entry["body"].encode(), entry["at"]
    beat = decode_kept_heartbeat(body)
    # Those of its events that are bad were kept apart when it came.
    events, _ = sift(decode_events(beat.events)) if beat.events else ([], [])
    try:
        decision = await decisions.heartbeat(claims, beat, body, events, at)
    except Forbidden:
        return (
            True  # it spoke for a session of a profile that its token is not for, which nobody could tell at the time
        )
    return not decision["degraded"]


def _kept_claims(kept: dict[str, Any]) -> Claims:
    profiles = kept.get("profiles")
    return Claims(**kept | {"profiles": None if profiles is None else frozenset(profiles)})


def _answer(request: Request, error: PulsegateError, status: int | None = None) -> Response:
    status, body, headers = error_answer(error, status or 0)
    route = getattr(request.scope.get("route"), "path", "unmatched")
    log_failure(route, status, request.scope["request_id"], body)
    response = Response(body, status)
    response.raw_headers.extend(headers)
    return response


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PulsegateError)
    return _answer(request, error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _answer(request, _as_ours(error), error.status_code)
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


def _as_ours(error: HTTPException) -> PulsegateError:
    if error.status_code == 404:
        return NotFound("no such route", field="path")
    if error.status_code == 405:
        return PulsegateError("this route has no such method; see Allow", code="method_not_allowed", field="method")
    return PulsegateError(error.detail, code="http")


def create() -> App:
    """For uvicorn's factory mode: settings from the environment."""
    return App(Settings.from_env(os.environ))
