"""Revoked tokens: kept in Redis until they have long expired, looked up from memory, refreshed every second.

To forget a revocation too soon would make a token good again. So what the caller says of its end is not believed where it would
be forgotten within `KEEP_LEAST_S`, no later revocation shortens an earlier one, and a revoked token that is shown is kept revoked until its own end.
"""

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
"""Where nobody says when the token expires, or says that it has: then why revoke it?"""
KEEP_LEAST_S = 86_400
_MARGIN_S = 3_600


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
        ends = (revocation.expires_at or 0) / 1000
        until = max(self._after(ends), now + KEEP_LEAST_S) if ends > now else now + KEEP_DEFAULT_S
        try:
            await self._client.zadd(self._key, {revocation.jti: until}, gt=True)
            await self._client.zremrangebyscore(self._key, "-inf", now)
        except RedisError as error:
            raise Unavailable(f"session Redis: {error}") from None
        self._tokens.revoked |= {revocation.jti}

    def _after(self, ends: float) -> float:
        """When a token that expires then (s) passes nowhere any more, an admitted session's not either."""
        return ends + self._tokens.grace_s + _MARGIN_S

    async def refresh(self) -> None:
        """Raises Unavailable."""
        outlived, self._tokens.outlived = self._tokens.outlived, {}
        try:
            if outlived:
                ends = {jti: self._after(at / 1000) for jti, at in outlived.items()}
                await self._client.zadd(self._key, ends, xx=True, gt=True)
            found = await self._client.zrange(self._key, 0, -1)
        except RedisError as error:
            raise Unavailable(f"session Redis: {error}") from None
        self._tokens.revoked = frozenset(item.decode() for item in found)
