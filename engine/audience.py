"""How many watch a content: now, minute by minute for the last hours, and how many different accounts.

Now is in the totals that the trending tenure keeps (`<kind>\\t<content>\\t<provider>` → views). The last hours are rings: 360
slots in one string, a minute's slot at `minute % 360`, of 6 bytes each: the minute modulo 65,536 and the count, unsigned
and big-endian. The minute in it tells a slot of this turn from one of an earlier turn. A content's ring is written while
somebody watches it; the ring without a name holds the sum of all and is written every minute, so that a minute without a
slot is known to be nobody (0), or not measured (None).
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import RedisError

from engine import catalogue, scripts
from engine.errors import Unavailable
from engine.keys import Keys
from engine.projected import answered
from engine.viewers import windows

KINDS = ("live", "vod", "")
"""'' where nobody said."""
MINUTE_MS = 60_000
MINUTES = 360
SLOT = struct.Struct(">HI")
RING_S = MINUTES * 60 + 600
"""A content's ring has nothing to say once its last slot is older than a turn."""
KEEP_S = 86_400
"""The sum of all says which minutes were measured at all."""
_COUNT_MAX = 2**32 - 1
_DIGITS = 16
"""No count has so many."""
_RINGS_A_CALL = 1_000

DISTINCT_S = 5.0
"""Distinct viewers are counted at most this often for each content and process: a count costs the session Redis some 60 µs."""
_DISTINCT_KEPT = 10_000


def member(kind: str, content: str, provider: str = "") -> str:
    """A field of the totals."""
    return f"{kind}\t{content}\t{provider}"


def counts(stored: Mapping[bytes, bytes]) -> tuple[dict[str, int], list[bytes]]:
    """A hash of totals, and the fields that are none: `<kind>\\t<content>\\t<provider>` → a whole number is one."""
    found: dict[str, int] = {}
    bad: list[bytes] = []
    for what, count in stored.items():
        try:
            name, number = what.decode(), int(count[:_DIGITS])
        except ValueError:
            bad.append(what)
            continue
        if name.count("\t") == 2 and len(count) < _DIGITS:
            found[name] = number
        else:
            bad.append(what)
    return found, bad


def offset(minute: int) -> int:
    """Where in a ring a minute's slot begins."""
    return minute % MINUTES * SLOT.size


def slot(minute: int, count: int) -> bytes:
    return SLOT.pack(minute & 0xFFFF, min(max(count, 0), _COUNT_MAX))


def _whole(count: bytes | None) -> int:
    """0 for what is not there, and for what is no number."""
    try:
        return int(count or 0)
    except ValueError:
        return 0


class Series:
    """One ring, read. `stored` is None or short where less was ever written."""

    def __init__(self, stored: bytes | None) -> None:
        self._stored = stored or b""
        self.exists = stored is not None

    def at(self, minute: int) -> int | None:
        """The count of a minute of the last turn; None if it was not written."""
        begin = offset(minute)
        if len(self._stored) < begin + SLOT.size:
            return None
        stamp, count = SLOT.unpack_from(self._stored, begin)
        return int(count) if stamp == minute & 0xFFFF else None


def record(log: Redis, keys: Keys, minute: int, totals: Mapping[str, int]) -> int:
    """Writes a minute (ms ÷ 60,000) of every content into the rings; how many rings. `totals` as in the hash, without zeros.

    For the tenure, once a minute; the same minute again overwrites. A key of another type is left out. Raises redis-py's errors.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for name, count in totals.items():
        kind, content, _ = name.split("\t")
        counts[kind, content] += count
    rings = [(keys.series(kind, content), count) for (kind, content), count in counts.items() if count > 0]
    script = scripts.load("series")
    run: Any = log.register_script(script.source)

    def write(part: Sequence[tuple[str, int]], keep_s: int) -> int:
        args: list[int | bytes] = [offset(minute), keep_s, *(slot(minute, count) for _, count in part)]
        script.check(len(part), len(args))
        return int(run(keys=[ring for ring, _ in part], args=args))

    parts = (rings[begin : begin + _RINGS_A_CALL] for begin in range(0, len(rings), _RINGS_A_CALL))
    written = sum(write(part, RING_S) for part in parts)
    return written + write([(keys.series(), sum(count for _, count in rings))], KEEP_S)


def series(rings: Sequence[Series], every: Series, now_ms: int) -> list[dict[str, int | None]]:
    """The last 360 minutes, oldest first, added up over `rings`; `every` is the ring that is written each minute.

    The current minute is there as soon as it was written.
    """
    last = now_ms // MINUTE_MS
    found: list[dict[str, int | None]] = []
    for minute in range(last - MINUTES + 1, last + 1):
        counts = [count for ring in rings if (count := ring.at(minute)) is not None]
        measured = bool(counts) or not every.exists or every.at(minute) is not None
        if minute == last and not counts and every.at(minute) is None:
            break
        found.append({"at": minute * MINUTE_MS, "concurrent": sum(counts) if measured else None})
    return found


class Audiences:
    """Answers for the API; one per process. `session` is redis-py's client of the session Redis, single node or cluster."""

    def __init__(
        self, session: Any, log: AsyncRedis | None, keys: Keys, clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._session, self._log, self._keys = session, log, keys
        self._clock, self._monotonic = clock, monotonic
        self._distinct: dict[str, tuple[float, asyncio.Task[dict[str, int]]]] = {}

    async def of(self, content: str, kind: str = "") -> dict[str, Any]:
        """The audience of a content, of one kind or of all. Distinct viewers are of all kinds. Raises Unavailable."""
        now_ms = int(self._clock() * 1000)
        kinds = (kind,) if kind else KINDS
        title, rings, every, by_kind = await self._read(content, kinds)
        distinct = await self._viewers(content, now_ms)
        return {
            "content": content, "title": title, "kind": kind or None, "concurrent": sum(by_kind.values()),
            "by_kind": {name or "unknown": count for name, count in by_kind.items()}, "distinct": distinct,
            "series": series(rings, every, now_ms),
        }  # fmt: skip

    async def _read(
        self, content: str, kinds: tuple[str, ...]
    ) -> tuple[str | None, list[Series], Series, dict[str, int]]:
        if self._log is None:
            raise Unavailable("the session Redis is a cluster: PULSEGATE_LOG_REDIS_URL must name the log Redis")
        keys, pipe = self._keys, self._log.pipeline(transaction=False)
        pipe.smembers(keys.providers)
        pipe.hget(keys.contents, content)
        pipe.mget(keys.series(), *(keys.series(kind, content) for kind in kinds))
        providers, stored, rings = await answered(pipe.execute())
        named = sorted({"", *(provider.decode(errors="replace") for provider in providers)})
        asked: Any = self._log.hmget(keys.totals, [member(kind, content, who) for kind in kinds for who in named])
        found = await answered(asked)
        by_kind = {}
        for number, kind in enumerate(kinds):
            part = found[number * len(named) : (number + 1) * len(named)]
            # A change may be applied before another that it follows: below zero for a moment.
            by_kind[kind] = max(0, sum(map(_whole, part)))
        title = catalogue.decode(stored).title or None
        return title, [Series(ring) for ring in rings[1:]], Series(rings[0]), by_kind

    async def _viewers(self, content: str, now_ms: int) -> dict[str, int]:
        now = self._monotonic()
        known = self._distinct.get(content)
        if known is None or known[0] < now or (known[1].done() and (known[1].cancelled() or known[1].exception())):
            if len(self._distinct) >= _DISTINCT_KEPT:
                self._distinct.clear()
            known = self._distinct[content] = (now + DISTINCT_S, asyncio.create_task(self._count(content, now_ms)))
        return await asyncio.shield(known[1])

    async def _count(self, content: str, now_ms: int) -> dict[str, int]:
        asked = windows(self._keys, content, now_ms)
        try:
            counts = await asyncio.gather(*(self._session.execute_command("PFCOUNT", *of) for of in asked.values()))
        except (RedisError, OSError) as error:
            raise Unavailable(f"session Redis: {str(error) or 'no answer'}") from None
        return {window: int(count) for window, count in zip(asked, counts, strict=True)}
