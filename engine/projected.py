"""Reads a projection for the API: always its live generation, within a second, or `Unavailable`.

A replay builds the next generation beside the live one and swaps them in `generations`; so each request learns which one is
live in the same round trip as it reads (`lua/projected.lua`), or asks first where it reads several keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError

from engine import scripts
from engine.errors import Unavailable
from engine.events import order
from engine.keys import Keys, Space

ANSWER_S = 1.0
"""What a request waits for the log Redis, at most."""
POLL_S = 0.01

T = TypeVar("T")


class Projected:
    """One projection. `log` is None where a cluster holds the sessions and no log Redis is named."""

    def __init__(self, log: Redis | None, keys: Keys, name: str) -> None:
        self._log, self._keys, self._name = log, keys, name
        self._read = scripts.load("projected")

    @property
    def client(self) -> Redis:
        """Raises Unavailable if there is no log Redis."""
        if self._log is None:
            raise Unavailable("the session Redis is a cluster: PULSEGATE_LOG_REDIS_URL must name the log Redis")
        return self._log

    async def call(self, command: str, rest: tuple[str, ...], *args: str | int) -> Any:
        """The reply of a reading command on the live generation's key `rest`. Raises Unavailable."""
        return await self._call(self._keys.stem(self._name), rest, command, *args)

    async def live(self) -> Space:
        """The keys of the live generation, for who reads more than one. Raises Unavailable."""
        found: Any = await answered(self._hget(self._keys.generations, self._name))
        return self._keys.projection(self._name, int(found or 1))

    def _hget(self, key: str, field: str) -> Awaitable[Any]:
        found: Any = self.client.hget(key, field)
        return found  # type: ignore[no-any-return]

    async def caught_up(self, partition: int, stream_id: str, within_s: float) -> bool:
        """Waits until the live projection holds the event of this id; False if that takes longer. Raises Unavailable."""
        deadline = asyncio.get_running_loop().time() + within_s
        wanted = order(stream_id)
        while True:
            found = await self._call(self._keys.stem("cursor", self._name), (), "HGET", str(partition))
            if found is not None and order(found.decode()) >= wanted:
                return True
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(POLL_S)

    async def _call(self, stem: str, rest: tuple[str, ...], command: str, *args: str | int) -> Any:
        client = self.client
        ending = "".join(f":{part}" for part in rest)
        values = [self._name, stem, ending, command, *args]
        self._read.check(1, len(values))
        run: Any = client.register_script(self._read.source)
        return await answered(run(keys=[self._keys.generations], args=values))


async def answered(question: Awaitable[T]) -> T:
    """The log Redis' answer. Raises Unavailable when it is away or takes longer than `ANSWER_S`."""
    try:
        async with asyncio.timeout(ANSWER_S):
            return await question
    except (RedisError, OSError) as error:  # a time-out is an OSError
        raise Unavailable(f"log Redis: {str(error) or 'no answer'}") from None
