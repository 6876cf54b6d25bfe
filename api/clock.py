"""`/v1/clock`: a simulation moves the deployment's virtual clock. These routes exist in virtual mode only (docs/simulation.md).

`POST` answers when everything is done that is due by the new time. The announcement is this process's own; the sweep and the
trending lists are the workers' (`workers/virtual.py`), which are asked through a list in the log Redis:

| key                       | type | holds                                                           |
|---------------------------|------|-----------------------------------------------------------------|
| pg:{clock}:asked          | list | JSON {id, due: [[ms, name], …]}                                 |
| pg:{clock}:answered       | list | JSON {id, error}; error is '' when all of it was done           |
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from typing import Any

import msgspec
import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.asking import body_of, verified
from api.http import json_response
from api.services import Services
from engine import lag
from engine.clock import ClockSet, Due, VirtualClock, due
from engine.errors import BadRequest, Conflict, Unavailable
from engine.wire import check_ms, decode

AGAIN_S = 2
"""A worker that was killed took the question with it: it is asked again so often. What was done is not done twice."""
WAIT_S = 16
_set = msgspec.json.Decoder(ClockSet)


class Clocks:
    """Moves the clock of the only API process."""

    def __init__(self, services: Services, clock: VirtualClock) -> None:
        self._services, self._clock = services, clock
        self._done = clock.ms()
        """All that was due until then is done. Behind the clock only after a failure."""
        self._moving = asyncio.Lock()
        self._ids = (f"{uuid.uuid4().hex}-{n}" for n in itertools.count())
        self._log: Redis | None = None

    def routes(self) -> list[Route]:
        return [Route("/v1/clock", self.get, methods=["GET"]), Route("/v1/clock", self.post, methods=["POST"])]

    async def post(self, request: Request) -> Response:
        verified(self._services, request).require("admin")
        now = decode(_set, await body_of(self._services, request)).now
        if now <= 0:
            raise BadRequest("now must be ms since the epoch", field="now")
        check_ms(now, "now")
        async with self._moving:
            await self._move(now)
        return json_response({"now": now})

    async def get(self, request: Request) -> Response:
        verified(self._services, request).require("admin")
        return json_response({"now": self._clock.ms() or None, "settled": await self._settled()})

    async def _move(self, now: int) -> None:
        clock = self._clock
        if now < max(clock.ms(), self._done):
            raise Conflict(f"the clock says {clock.ms()} and never goes back", code="clock_back", field="now")
        waiting: list[Due] = []
        for at, name in due(self._done, now) if now > self._done else ():
            if name != "announce":
                waiting.append((at, name))
                continue
            await self._have_done(waiting)
            waiting = []
            clock.set(at)
            await self._services.announcer.announce()
            # What else is due at the same moment is not done yet.
            self._done = at - 1
        await self._have_done(waiting)
        clock.set(now)
        self._done = now
        if not self._services.router.ready:
            await self._services.announcer.announce()

    async def _have_done(self, waiting: list[Due]) -> None:
        """Has the workers do this; raises Unavailable if they do not."""
        if not waiting:
            return
        identity = next(self._ids)
        question = orjson.dumps({"id": identity, "due": waiting})
        for _ in range(WAIT_S // AGAIN_S):
            try:
                answer = await self._ask(identity, question)
            except (RedisError, OSError) as error:
                raise Unavailable(f"log Redis: {str(error) or 'no answer'}") from None
            if answer is not None:
                break
        else:
            raise Unavailable(f"no worker moved with the clock within {WAIT_S} s", code="clock_workers")
        if answer["error"]:
            raise Unavailable(f"a worker could not move with the clock: {answer['error']}", code="clock_workers")
        if any(name == "publish" for _, name in waiting):
            await self._services.published.refresh()

    async def _ask(self, identity: str, question: bytes) -> dict[str, Any] | None:
        """One question; None if nobody answers it in time."""
        keys, log = self._services.keys, self._client()
        async with log.pipeline(transaction=False) as pipe:
            pipe.delete(keys.clock_asked, keys.clock_answered)
            pipe.rpush(keys.clock_asked, question)
            pipe.blpop([keys.clock_answered], timeout=AGAIN_S)
            *_, found = await pipe.execute()
        while found is not None:
            answer: dict[str, Any] = orjson.loads(found[1])
            if answer["id"] == identity:
                return answer
            asked: Any = log.blpop([keys.clock_answered], timeout=AGAIN_S)
            found = await asked
        return None

    def _client(self) -> Redis:
        """A client of our own: it waits longer than others may."""
        settings = self._services.settings
        if self._services.log is None:
            raise Unavailable("the session Redis is a cluster: PULSEGATE_LOG_REDIS_URL must name the log Redis")
        if self._log is None:
            self._log = Redis.from_url(settings.log_redis_url or settings.redis_url, socket_timeout=2 * AGAIN_S)
        return self._log

    async def close(self) -> None:
        if self._log is not None:
            await self._log.aclose()

    async def _settled(self) -> bool:
        """Whether all that was accepted so far is mirrored, in the projections of views and resume, and in the lake."""
        services = self._services
        if services.log is None:
            raise Unavailable("the session Redis is a cluster: PULSEGATE_LOG_REDIS_URL must name the log Redis")
        names = ("views", "resume", *(("lake",) if services.settings.lake_dir else ()))
        try:
            return await lag.settled(services.client, services.log, services.keys, names)
        except (RedisError, OSError) as error:
            raise Unavailable(f"Redis: {str(error) or 'no answer'}") from None
