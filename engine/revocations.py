"""Revoked tokens: kept in Redis until the token would have expired, looked up from memory, refreshed every second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from redis.exceptions import RedisError

from engine.errors import Unavailable
from engine.keys import Keys
from engine.tokens import Tokens
from engine.wire import Revocation

KEEP_DEFAULT_S = 30 * 86_400


class Revocations:
    """`client` is redis-py's, single node or cluster."""

    def __init__(self, client: Any, keys: Keys, tokens: Tokens, clock: Callable[[], float] = time.time) -> None:
        self._client = client
        self._key = keys.revoked
        self._tokens = tokens
        self._clock = clock

    async def revoke(self, revocation: Revocation) -> None:
        """Takes effect here at once, elsewhere within a second. Raises Unavailable."""
        now = self._clock()
        until = revocation.expires_at / 1000 + 3600 if revocation.expires_at is not None else now + KEEP_DEFAULT_S
        try:
            await self._client.zadd(self._key, {revocation.jti: until})
            await self._client.zremrangebyscore(self._key, "-inf", now)
        except RedisError as error:
            raise Unavailable(f"session Redis: {error}") from None
        self._tokens.revoked |= {revocation.jti}

    async def refresh(self) -> None:
        try:
            found = await self._client.zrange(self._key, 0, -1)
        except RedisError as error:
            raise Unavailable(f"session Redis: {error}") from None
        self._tokens.revoked = frozenset(item.decode() for item in found)
