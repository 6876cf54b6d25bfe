"""Bad events: tracking events that were rejected, each with its reason, kept until somebody has fixed what was wrong.

One stream on the log Redis (`keys.bad`), of which the newest `PULSEGATE_BAD_MAX` and `PULSEGATE_BAD_MAX_BYTES` are kept. No
account has more than `PULSEGATE_BAD_ACCOUNT_BYTES` of it, so that none pushes out what others sent. An entry has the fields
`at` (ms, when it arrived), `account`, `session`, `reason` (a code), `message`, `field`, `event` (its JSON as it came) and
`envelope` (JSON: profile, device, content, kind, view, started_at), so that a replay gives the event that would have been; and
`size` where only the first `EVENT_MAX` bytes of so many are kept: it can be looked at, not replayed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, NamedTuple

import orjson
from redis import Redis
from redis.exceptions import RedisError

from engine import keeping
from engine.keys import Keys
from engine.metrics import Metrics
from engine.quotas import ENTRY, Quotas
from engine.settings import Settings
from engine.tracking import Rejected

log = logging.getLogger(__name__)

PAGE = 500
EVENT_MAX = 16 * 1024
"""Bytes of an event that are kept."""
TEXT_MAX = 1_000
_AGAIN_S = 1.0
_UNDER_WAY_MAX = 64
_TEXTS = ("account", "session", "reason", "message", "field")


class BadEvents:
    """The keeper's side, one per API process. `client` is redis-py's asyncio client, None if there is no log Redis."""

    def __init__(
        self, client: Any, keys: Keys, settings: Settings, metrics: Metrics, quotas: Quotas,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._client, self._key, self._metrics, self._quotas, self._clock = client, keys.bad, metrics, quotas, clock
        self._bounds = (settings.bad_max, settings.bad_max_bytes, settings.bad_account_bytes)
        self._try_at = 0.0
        self._under_way: set[asyncio.Task[None]] = set()

    async def keep(self, account: str, session: str, envelope: dict[str, Any], rejected: Sequence[Rejected]) -> None:
        """Never raises: what the log Redis does not take is logged and counted as lost, what no quota allows only counted."""
        now = time.monotonic()
        # Counted whole: it was read whole, however little of it is kept.
        if not self._quotas.may_tell(account, sum(ENTRY + len(bad.raw) for bad in rejected)):
            self._metrics.bad.labels("over_quota").inc(len(rejected))
            return
        try:
            if self._client is None or now < self._try_at:
                raise RedisError("the log Redis is away")
            kept = await self._write(account, session, envelope, rejected)
        except (RedisError, OSError) as error:
            if now >= self._try_at:
                self._try_at = time.monotonic() + _AGAIN_S
            self._lose(account, rejected, str(error))
        else:
            self._metrics.bad.labels("kept").inc(kept)
            self._metrics.bad.labels("over_quota").inc(len(rejected) - kept)

    async def _write(self, account: str, session: str, envelope: dict[str, Any], rejected: Sequence[Rejected]) -> int:
        """How many of them the account's share had room for."""
        common: dict[str, Any] = {"at": int(self._clock() * 1000), "account": account, "session": session}
        common["envelope"] = orjson.dumps(envelope)
        async with self._client.pipeline(transaction=True) as pipe:
            for bad in rejected:
                event, size = keeping.cut(bad.raw, EVENT_MAX)
                said = {
                    "reason": bad.code,
                    "message": bad.message[:TEXT_MAX],
                    "field": bad.field[:TEXT_MAX],
                    "event": event,
                }
                pipe.execute_command(*keeping.command(self._key, common | said | size, *self._bounds, account))
            return sum(await pipe.execute())

    def _lose(self, account: str, rejected: Sequence[Rejected], why: str) -> None:
        self._metrics.bad.labels("lost").inc(len(rejected))
        reasons = sorted({bad.code for bad in rejected})
        log.warning(
            "bad_events_lost", extra={"account": account, "events": len(rejected), "reasons": reasons, "why": why}
        )

    def later(self, account: str, rejected: Sequence[Rejected], keeping: Coroutine[Any, Any, None]) -> None:
        """Runs what keeps them beside the hot path, which does not wait. With too many under way they are lost."""
        if len(self._under_way) >= _UNDER_WAY_MAX:
            keeping.close()
            self._lose(account, rejected, "too many at once")
            return
        task = asyncio.get_running_loop().create_task(keeping)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def close(self) -> None:
        """Waits for what is under way, a few seconds at most."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=3)


# the other side: commands


class BadEvent(NamedTuple):
    id: str
    at: int
    account: str
    session: str
    reason: str
    message: str
    field: str
    event: bytes
    envelope: dict[str, Any]
    size: int = 0
    """Bytes the event had, where only its beginning is kept."""

    def describe(self) -> dict[str, Any]:
        """For people and programs; the event is text, so that it stays byte for byte."""
        return self._asdict() | {"event": self.event.decode(errors="replace")}


def find(
    client: Redis,
    keys: Keys,
    *,
    ids: Sequence[str] = (),
    account: str = "",
    reason: str = "",
    newest_first: bool = False,
) -> Iterator[BadEvent]:
    """Those with one of the ids (all if there are none), of an account, for a reason. Raises redis-py's errors.

    Entries that come in meanwhile are not among them.
    """
    found = (
        (entry for id_ in ids for entry in _entries(client.xrange(keys.bad, id_, id_)))
        if ids
        else _all(client, keys.bad, newest_first)
    )
    for entry in found:
        if account in ("", entry.account) and reason in ("", entry.reason):
            yield entry


def _all(client: Redis, key: str, newest_first: bool) -> Iterator[BadEvent]:
    newest: Any = client.xrevrange(key, count=1)
    if not newest:
        return
    low, high = "-", newest[0][0].decode()
    while True:
        page: Any
        page = client.xrevrange(key, high, low, PAGE) if newest_first else client.xrange(key, low, high, PAGE)
        if not page:
            return
        yield from _entries(page)
        beyond = f"({page[-1][0].decode()}"
        low, high = (low, beyond) if newest_first else (beyond, high)


def _entries(page: Any) -> Iterator[BadEvent]:
    for id_, fields in page:
        texts = [fields.get(name.encode(), b"").decode(errors="replace") for name in _TEXTS]
        envelope = orjson.loads(fields.get(b"envelope") or b"{}")
        account, session, reason, message, field = texts
        event, at, size = fields.get(b"event", b""), int(fields.get(b"at", 0)), int(fields.get(b"size", 0))
        yield BadEvent(id_.decode(), at, account, session, reason, message, field, event, envelope, size)


def remove(client: Redis, keys: Keys, ids: Sequence[str]) -> int:
    """Takes entries away; how many there were."""
    return keeping.remove(client, keys.bad, ids)
