"""No id of an outbox is used twice.

A session server that restarted without its last second, or a replica that was promoted while it lagged, would go on below
what the event log already has, if its clock is behind too; the log would take a new event for one it knows. So before
anything is decided on a new run of a server, its outboxes' last ids are raised to what the log has.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from redis.exceptions import RedisError

from engine import scripts
from engine.errors import PulsegateError
from engine.keys import Keys
from engine.scripts import Executor

log = logging.getLogger(__name__)

_TIMEOUT_S = 1.0
_DIGITS = 5
"""No partition's number has so many."""


class Marks:
    """`client` is redis-py's asyncio client of the log Redis, None where there is no log yet."""

    def __init__(self, client: Any, keys: Keys) -> None:
        self._client, self.keys = client, keys
        self._script = scripts.load("raise")

    async def raise_outboxes(self, executor: Executor) -> None:
        """All outboxes to what the log has. A log that does not answer is no reason to decide nothing: the mirror raises
        them too, and a clock that has not gone back gives greater ids by itself."""
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                found = await self._client.hgetall(self.keys.mirrored) if self._client is not None else {}
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("marks", extra={"why": str(error) or type(error).__name__})
            return
        calls = (
            executor.run(self._script, (self.keys.outbox(int(p)),), (id_,), unsettled=True)
            for p, id_ in found.items()
            if p.isdigit() and len(p) < _DIGITS and int(p) < self.keys.partitions
        )
        for failed in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(failed, PulsegateError):
                log.warning("marks", extra={"why": failed.message})
            elif isinstance(failed, BaseException):
                raise failed
