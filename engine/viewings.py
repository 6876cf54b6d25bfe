"""View records as the API gives them: by account, by content, or all of a span of time; newest first, page by page."""

from __future__ import annotations

import base64
import binascii
import heapq
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from engine.errors import BadRequest
from engine.keys import Keys, Space
from engine.projected import Projected, answered
from engine.views import NAME, decode, item

EXAMINED_MAX = 2_000
"""Index entries one answer looks at; with many that do not match, a page may be short or even empty and still have a next."""
CHUNK = 200

Found = tuple[int, str, str]
"""When the view began, its account, its field."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Which views: '' is any; `start` ≤ began < `end`, ms."""

    account: str = ""
    content: str = ""
    session: str = ""
    start: int = 0
    end: int = 0
    limit: int = 50
    cursor: str = ""
    profiles: frozenset[str] | None = None
    """Only views of these; None: of any."""


class Viewings:
    """One per process."""

    def __init__(self, log: Redis | None, keys: Keys) -> None:
        self._projected = Projected(log, keys, NAME)
        self._keys = keys

    async def find(self, asked: Asked) -> tuple[list[dict[str, Any]], str | None]:
        """One page of records, and where the next begins. Raises BadRequest, Unavailable."""
        after = _place(asked.cursor) if asked.cursor else None
        space = await self._projected.live()
        items: list[dict[str, Any]] = []
        examined, last = 0, after
        async for chunk in self._index(space, asked, after):
            for place, record in zip(chunk, await self._records(space, chunk, asked), strict=True):
                if len(items) == asked.limit:
                    return items, _cursor(last)
                examined, last = examined + 1, place
                if record is not None:
                    items.append(record)
            if examined >= EXAMINED_MAX:
                return items, _cursor(last)
        return items, None

    async def _records(self, space: Space, chunk: list[Found], asked: Asked) -> list[dict[str, Any] | None]:
        """Each view's record if it is asked for, else None."""
        pipe = self._projected.client.pipeline(transaction=False)
        wanted = [not asked.session or name.startswith(f"{asked.session}\t") for _, _, name in chunk]
        for (_, account, name), want in zip(chunk, wanted, strict=True):
            if want:
                pipe.hget(space.key("of", account), name)
        stored = iter(await answered(pipe.execute()))
        records: list[dict[str, Any] | None] = []
        for (_, account, name), want in zip(chunk, wanted, strict=True):
            found = next(stored) if want else None
            view = decode(found) if found is not None else None
            good = (
                view is not None
                and (not asked.content or view.content == asked.content)
                and (asked.profiles is None or view.profile in asked.profiles)
            )
            records.append(item(account, name, view) if view is not None and good else None)
        return records

    async def _index(self, space: Space, asked: Asked, after: Found | None) -> AsyncIterator[list[Found]]:
        """What the index holds behind `after`, newest first, in chunks."""
        if asked.account:
            keys = [space.key("account", asked.account)]
        elif asked.content:
            keys = [space.key("content", asked.content)]
        else:
            keys = [space.key("all", str(p)) for p in range(self._keys.partitions)]
        while True:
            chunk = await self._chunk(keys, asked, after)
            if not chunk:
                return
            yield chunk
            after = chunk[-1]

    async def _chunk(self, keys: list[str], asked: Asked, after: Found | None) -> list[Found]:
        """The next entries over all the keys, at most CHUNK."""
        newest = min(after[0], asked.end - 1) if after else asked.end - 1
        count = CHUNK if len(keys) == 1 else min(asked.limit + 1, CHUNK)
        fresh: dict[str, list[Found]] = {}
        cut: dict[str, bool] = {}
        skip, left = 0, keys
        while left:
            pipe = self._projected.client.pipeline(transaction=False)
            for key in left:
                pipe.zrange(key, newest, asked.start, byscore=True, desc=True, offset=skip, num=count, withscores=True)
            for key, answer in zip(left, await answered(pipe.execute()), strict=True):
                found = [_found(asked.account, member, score) for member, score in answer]
                fresh[key] = [f for f in found if after is None or f < after]
                cut[key] = len(found) == count
            # More entries of this very moment, all before `after`, than one answer holds: look behind them.
            left = [key for key in left if cut[key] and not fresh[key]]
            skip += count
        return _newest([fresh[key] for key in keys], [cut[key] for key in keys])


def _newest(lists: list[list[Found]], cut: list[bool]) -> list[Found]:
    """The lists merged, as far as every list that was cut short reaches."""
    floor = max((found[-1] for found, more in zip(lists, cut, strict=True) if more and found), default=None)
    merged = heapq.merge(*lists, reverse=True)
    return [found for found in merged if floor is None or found >= floor][:CHUNK]


def _found(account: str, member: bytes, score: float) -> Found:
    text = member.decode()
    if account:
        return int(score), account, text
    account, _, name = text.partition("\t")
    return int(score), account, name


def _cursor(place: Found | None) -> str:
    assert place is not None
    return base64.urlsafe_b64encode("\t".join(map(str, place)).encode()).decode().rstrip("=")


def _place(cursor: str) -> Found:
    """What the page before ended with. Raises BadRequest."""
    try:
        score, account, name = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode().split("\t", 2)
        return int(score), account, name
    except (ValueError, binascii.Error):
        raise BadRequest("cursor must be the `next` of an earlier answer", field="cursor") from None
