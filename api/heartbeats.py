"""`POST /v1/heartbeats`: the hot path, a plain ASGI application without routing or request objects."""

from __future__ import annotations

import contextlib
from time import perf_counter
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from api.http import INTERNAL, JSON, bearer, error_answer, log_bug, read_body, request_id
from api.services import Services
from engine.errors import PulsegateError
from engine.log import log_failure
from engine.tokens import Claims
from engine.tracking import Rejected, sift
from engine.wire import Heartbeat, decode_events, decode_heartbeat

ROUTE = "/v1/heartbeats"


class Heartbeats:
    """One heartbeat in, one decision out."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._limit = services.settings.body_max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        started = perf_counter()
        authorization = origin = length = None
        named, bug = False, None
        for name, value in scope["headers"]:
            if name == b"authorization":
                authorization = value
            elif name == b"origin":
                origin = value
            elif name == b"content-length":
                length = value
            elif name == b"x-request-id":
                named = True
        headers = [JSON]
        try:
            token = bearer(authorization)
            body = await read_body(receive, self._limit, length)
            beat = decode_heartbeat(body)
            events, bad = sift(decode_events(beat.events)) if beat.events else ([], [])
            claims = services.tokens.cached(token) or await services.admitted(token, beat.session)
            decision = await services.decisions.heartbeat(claims, beat, body, events)
            status, answer = 200, orjson.dumps(decision)
            # A bad event costs the viewer nothing: the heartbeat counts, the event is kept with its reason; but not when the
            # heartbeat was refused or a repetition, for then its good events went nowhere either.
            if bad and decision["decision"] == "allow" and not decision["duplicate"]:
                services.metrics.tracked(0, 0, len(bad))
                services.bad.later(claims.account, bad, self._keep(claims, beat, bad))
        except PulsegateError as error:
            status, answer, headers = error_answer(error)
            named = True
        except Exception as error:
            bug, named = error, True
            status, answer, headers = error_answer(INTERNAL)
        if origin is not None:
            headers = headers + services.cors.headers(origin)
        if named:
            identity = request_id(scope["headers"])
            headers = [*headers, (b"x-request-id", identity.encode())]
            if bug is not None:
                log_bug(scope, identity, bug)
            if status != 200:
                log_failure(ROUTE, status, identity, answer)
        headers.append((b"content-length", str(len(answer)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})
        services.metrics.answered(ROUTE, status, perf_counter() - started)

    async def _keep(self, claims: Claims, beat: Heartbeat, bad: list[Rejected]) -> None:
        """Keeps its bad events, with the view they belong to if Redis can be asked. Raises nothing."""
        envelope: dict[str, Any] = {
            "profile": beat.profile, "device": claims.device or beat.device, "content": beat.content,
            "kind": claims.kind or beat.kind,
        }  # fmt: skip
        with contextlib.suppress(PulsegateError):
            fate = await self._services.decisions.track(claims.account, [], beat.session)
            envelope |= {"view": fate.view, "started_at": fate.started_at}
        await self._services.bad.keep(claims.account, beat.session, envelope, bad)
