"""The ceiling: an ASGI application that reads the body and answers fixed bytes, as long as a real answer, from
`BENCH_ANSWER`. What uvicorn itself can do."""

from __future__ import annotations

import os

from starlette.types import Receive, Scope, Send

ANSWER = os.environ.get("BENCH_ANSWER", "{}").encode()
HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": ANSWER})
