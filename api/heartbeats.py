"""`POST /v1/heartbeats`: the hot path."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from time import perf_counter
from typing import Any

import orjson
from starlette.types import Receive, Scope

from api.direct import Direct
from api.exchange import Exchange
from api.http import bearer, read_body, request_id
from api.services import Services
from engine.decisions import Decision
from engine.errors import AccountBusy, PulsegateError
from engine.tokens import Claims
from engine.tracking import Rejected, sift
from engine.wire import Heartbeat, decode_events, decode_heartbeat

ROUTE = "/v1/heartbeats"
_REFUSED_A_TURN = 16


class Heartbeats(Direct):
    """One heartbeat in, one decision out."""

    path = ROUTE
    methods = ("POST",)

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._busy: deque[tuple[Exchange, AccountBusy]] = deque()

    async def answer(self, scope: Scope, receive: Receive, authorization: bytes | None, length: bytes | None) -> bytes:
        services = self.services
        token = bearer(authorization)
        known = services.tokens.cached(token)
        who = known or services.player(token, grace_s=services.settings.token_grace_s)
        services.decisions.quotas.check_busy(who.account)
        body = await read_body(receive, services.settings.body_max_bytes, length)
        beat = decode_heartbeat(body)
        events, bad = sift(decode_events(beat.events)) if beat.events else ([], [])
        claims = known or await services.admitted(token, beat.session)
        decision = await services.decisions.heartbeat(claims, beat, body, events)
        if (claims.account, beat.session) not in services.visitors.beating:
            services.visitors.beat(scope, claims.account, beat.session, decision)
        # A bad event costs the viewer nothing: the heartbeat counts, the event is kept with its reason; but not when the
        # heartbeat was refused or a repetition, for then its good events went nowhere either.
        if bad and decision["decision"] == "allow" and not decision["duplicate"]:
            services.metrics.tracked(0, 0, len(bad))
            services.bad.later(claims.account, bad, self._keep(claims, beat, bad))
        return orjson.dumps(decision)

    def known(self, authorization: bytes | None) -> Claims | None:
        """The claims of a player's token that was verified before. Raises nothing."""
        try:
            return self.services.tokens.cached(bearer(authorization))
        except PulsegateError:
            return None

    def begin(self, exchange: Exchange) -> bool:
        """What nearly every heartbeat needs, without waiting for anything; False leaves it to `answer`, which says what is wrong."""
        services, claims = self.services, exchange.claims
        try:
            services.decisions.quotas.check_busy(claims.account)
            beat = decode_heartbeat(exchange.body)
            if beat.events:
                return False

            def tell(decision: Decision | None) -> None:
                try:
                    if decision is None:
                        exchange.hand_over()
                        return
                    if (claims.account, beat.session) not in services.visitors.beating:
                        services.visitors.beat(exchange.scope, claims.account, beat.session, decision)
                    found = exchange.found
                    origin = found.get(b"origin")
                    headers = [] if origin is None else services.cors.headers(origin)
                    if b"x-request-id" in found:
                        headers.append((b"x-request-id", request_id(exchange.headers).encode()))
                    exchange.answer(orjson.dumps(decision), headers)
                    services.metrics.answered(ROUTE, 200, perf_counter() - exchange.started)
                except Exception as error:
                    exchange.fail(error)
                    services.metrics.answered(ROUTE, 500, perf_counter() - exchange.started)

            return services.decisions.submit(claims, beat, exchange.body, tell)
        except AccountBusy as error:
            if not self._busy:
                asyncio.get_running_loop().call_soon(self._refuse_some)
            self._busy.append((exchange, error))
            return True
        except PulsegateError:
            return False

    def _refuse_some(self) -> None:
        """A few a turn of the loop: the others must not wait until a burst of one account has its answers."""
        for _ in range(min(_REFUSED_A_TURN, len(self._busy))):
            exchange, error = self._busy.popleft()
            try:
                exchange.refuse(error, self.services.cors)
            except Exception as bug:
                exchange.fail(bug)
            self.services.metrics.answered(ROUTE, 429, perf_counter() - exchange.started)
        if self._busy:
            asyncio.get_running_loop().call_soon(self._refuse_some)

    async def _keep(self, claims: Claims, beat: Heartbeat, bad: list[Rejected]) -> None:
        """Keeps its bad events, with the view they belong to if Redis can be asked. Raises nothing."""
        envelope: dict[str, Any] = {
            "profile": claims.profile_or(beat.profile), "device": claims.device or beat.device, "content": beat.content,
            "kind": claims.kind or beat.kind,
        }  # fmt: skip
        with contextlib.suppress(PulsegateError):
            fate = await self.services.decisions.track(claims.account, [], beat.session)
            envelope |= {"view": fate.view, "started_at": fate.started_at}
        await self.services.bad.keep(claims.account, beat.session, envelope, bad)
