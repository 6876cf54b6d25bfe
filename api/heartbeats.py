"""`POST /v1/heartbeats`: the hot path, a plain ASGI application without routing or request objects."""

from __future__ import annotations

from time import perf_counter

import orjson
from starlette.types import Receive, Scope, Send

from api.http import INTERNAL, JSON, bearer, error_answer, log_bug, read_body, request_id
from api.services import Services
from engine.errors import PulsegateError
from engine.log import log_failure
from engine.wire import decode_events, decode_heartbeat

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
            events = decode_events(beat.events) if beat.events else []
            claims = services.tokens.cached(token) or await services.admitted(token, beat.session)
            status, answer = 200, orjson.dumps(await services.decisions.heartbeat(claims, beat, body, events))
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
