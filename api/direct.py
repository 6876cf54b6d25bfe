"""Routes that are served before Starlette: plain ASGI, without routing or request objects, for what is asked most."""

from __future__ import annotations

from abc import ABC, abstractmethod
from time import perf_counter
from typing import ClassVar

from starlette.types import Receive, Scope, Send

from api.http import INTERNAL, JSON, RawHeaders, error_answer, log_bug, request_id
from api.services import Services
from engine.errors import PulsegateError
from engine.log import log_failure


class Direct(ABC):
    """One path, whole; other methods of it are Starlette's. An answer names its request only where the caller did, or failed."""

    path: ClassVar[str]
    methods: ClassVar[tuple[str, ...]]
    headers: ClassVar[RawHeaders] = [JSON]
    """Of what `answer` returns."""
    status: ClassVar[int] = 200
    """Of what `answer` returns; 204 has no body."""

    def __init__(self, services: Services) -> None:
        self.services = services

    @abstractmethod
    async def answer(self, scope: Scope, receive: Receive, authorization: bytes | None, length: bytes | None) -> bytes:
        """The body of a good answer; the last two are headers. Raises PulsegateError."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self.services
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
        try:
            answer = await self.answer(scope, receive, authorization, length)
            status, headers = self.status, self.headers
        except PulsegateError as error:
            status, answer, headers = error_answer(error)
            named = True
        except Exception as error:
            bug, named = error, True
            status, answer, headers = error_answer(INTERNAL)
        headers = [*headers, (b"content-length", str(len(answer)).encode())] if status != 204 else [*headers]
        if origin is not None:
            headers += services.cors.headers(origin)
        if named:
            identity = request_id(scope["headers"])
            headers.append((b"x-request-id", identity.encode()))
            if bug is not None:
                log_bug(scope, identity, bug)
            if status >= 400:
                log_failure(self.path, status, identity, answer)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})
        services.metrics.answered(self.path, status, perf_counter() - started)
