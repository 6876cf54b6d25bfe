"""The peer: the same decision as one would write it first. A Starlette route, msgspec, PyJWT with verified tokens
remembered, redis-py's asyncio client, one `EVALSHA` of the same script with the same arguments.

`BENCH_REDIS` is the server, `BENCH_CALL` a captured call (JSON list of strings) whose constants are used: script,
interval, lifetime, limits, policy. It stands in for settings and plans, which cost nothing here.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any
from zlib import crc32

import jwt
import msgspec
import orjson
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

CALL: list[str] = json.loads(os.environ["BENCH_CALL"])
TAGS: list[str] = json.loads(os.environ["BENCH_TAGS"])
SHA, KEYS, ARGV = CALL[1], CALL[3 : 3 + int(CALL[2])], CALL[3 + int(CALL[2]) :]
KEYS = [re.sub(r"\{.*\}", "{{{tag}}}", key).replace(ARGV[1], "{account}") for key in KEYS]
SECRET = os.environ["BENCH_SECRET"]
STATES = {"playing": "p", "buffering": "b", "paused": "a"}
client = Redis.from_url(os.environ["BENCH_REDIS"], max_connections=128)
verified: dict[str, dict[str, Any]] = {}


class Heartbeat(msgspec.Struct):
    session: str
    device: str
    content: str
    kind: str
    state: str
    seq: int
    position: float | None = None
    rate: float = 1.0


decoder = msgspec.json.Decoder(Heartbeat)


def claims_of(request: Request) -> dict[str, Any]:
    token = request.headers["authorization"].removeprefix("Bearer ")
    claims = verified.get(token)
    if claims is None:
        claims = verified[token] = jwt.decode(token, SECRET, algorithms=["HS256"])
    return claims


async def heartbeat(request: Request) -> Response:
    claims = claims_of(request)
    body = await request.body()
    beat = decoder.decode(body)
    account = claims["sub"]
    place = {"tag": TAGS[crc32(account.encode()) % len(TAGS)], "account": account}
    common = {
        "account": account,
        "profile": "",
        "device": beat.device,
        "session": beat.session,
        "content": beat.content,
        "kind": beat.kind,
        "v": 1,
    }
    event = orjson.dumps(common)[1:-1] + b',"data":' + body + b"}"
    reply = await client.evalsha(
        SHA, len(KEYS), *(key.format_map(place) for key in KEYS),
        "", account, ARGV[2], beat.session, f"{beat.device}\t{beat.content}\t{beat.kind}\t\t\t\tstreams", beat.seq,
        STATES[beat.state], "" if beat.position is None else int(beat.position * 1000), ARGV[8], ARGV[9], "" if beat.rate == 1 else beat.rate,
        ARGV[11], "", event, "",
    )  # fmt: skip
    code, expires, last_seq, duplicate, *_ = [0, abs(reply), beat.seq, 0] if isinstance(reply, int) else reply
    answer = {
        "decision": "allow" if code == 0 else "block", "session": beat.session, "reason": None, "rule": None, "limit": None,
        "by": None, "lease_expires_at": expires, "next_heartbeat_ms": 10_000, "retry_at": None, "conflicts": [],
        "duplicate": duplicate == 1, "last_seq": last_seq, "token_expires_at": claims["exp"] * 1000, "degraded": False,
    }  # fmt: skip
    return Response(orjson.dumps(answer), media_type="application/json")


async def ready(request: Request) -> Response:
    await client.ping()
    return Response("ready")


app = Starlette(routes=[Route("/v1/heartbeats", heartbeat, methods=["POST"]), Route("/", ready)])
