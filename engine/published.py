"""The newest published lists, in the memory of an API process: reading one costs no round trip.

The trending tenure writes all lists at once and says so on a channel; a change of the catalogue is said there too. Each
process listens, reads the lists it is asked for, adds titles and leaves hidden contents out. It also reads when it has heard
nothing for a while, so a lost message or a silent connection delays a list and no more. While the log Redis is away the
last lists stay.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from engine import catalogue
from engine.catalogue import UNKNOWN, Entry
from engine.errors import PulsegateError, Unavailable
from engine.keys import Keys
from engine.projected import answered

log = logging.getLogger(__name__)

ITEMS_MAX = 100
SILENCE_S = 6.0
"""Lists come every 5 s; without a message for so long the process looks by itself."""
RETRY_S = 1.0
KEPT_S = 120.0
"""A provider's list is kept up to date until nobody has asked for it for so long."""
LISTS_MAX = 200
_TOGETHER = 20

Name = tuple[str, str, str]
"""Kind, rank, provider ('': all)."""
STANDING: tuple[Name, ...] = (("live", "trending", ""), ("vod", "trending", ""), ("vod", "popular", ""))


class Listed:
    """One list as it is answered. `version` counts its changes; `listeners` are called after each."""

    def __init__(self, name: Name) -> None:
        kind, rank, provider = name
        self.name = name
        self.version = 0
        self.asked_at = 0.0
        self.listeners: set[Callable[[], None]] = set()
        self._stored: bytes | None = None
        self._found: dict[str, Any] = {}
        self._document: dict[str, Any] = {
            "kind": kind, "rank": rank, "provider": provider or None, "published_at": None, "formula": None, "items": [],
            "next": None,
        }  # fmt: skip
        self._empty = self._document
        self._encoded: dict[int, bytes] = {}

    @property
    def published_at(self) -> int | None:
        """ms; None if there is no such list."""
        found: int | None = self._document["published_at"]
        return found

    def encoded(self, limit: int = ITEMS_MAX) -> bytes:
        """The document as JSON in one line, with at most so many items."""
        found = self._encoded.get(limit)
        if found is None:
            document = self._document | {"items": self._document["items"][:limit]}
            found = self._encoded[limit] = orjson.dumps(document)
        return found

    def read(self, stored: bytes | None) -> list[str]:
        """Takes a list as Redis has it; the contents in it. One that cannot be read changes nothing."""
        if stored != self._stored:
            self._stored = stored
            try:
                found = orjson.loads(stored) if stored is not None else {}
                [item["content"] for item in found.get("items", ())]
                self._found = found
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                log.error("list", extra={"list": self.name, "why": f"{type(error).__name__}: {error}"})
        return [item["content"] for item in self._found.get("items", ())]

    def show(self, entries: dict[str, Entry]) -> bool:
        """Makes the document out of what was read and what is known of its contents; whether it has changed."""
        document = self._empty | {
            name: self._found[name] for name in ("published_at", "formula") if name in self._found
        }
        document["items"] = [
            item | {"title": entry.title or None}
            for item in self._found.get("items", ())[:ITEMS_MAX]
            if not (entry := entries.get(item["content"], UNKNOWN)).hidden
        ]
        if document == self._document:
            return False
        self._document = document
        self._encoded = {}
        self.version += 1
        return True


class Published:
    """One per process; `follow` is its background task. `log` is None if there is no log Redis."""

    def __init__(self, log: Redis | None, keys: Keys, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._log, self._keys, self._monotonic = log, keys, monotonic
        self._lists = {name: Listed(name) for name in STANDING}
        self._reading = asyncio.Lock()
        self._reached = False
        self._failed_at = float("-inf")

    async def get(self, kind: str, rank: str, provider: str = "") -> Listed:
        """A list; from memory, but for a provider's that nobody has asked for lately. Raises Unavailable if it was never read."""
        name = (kind, rank, provider)
        listed = self._lists.get(name)
        if listed is None or not self._reached:
            async with self._reading:
                listed = self._lists.get(name)
                if listed is None or not self._reached:
                    listed = await self._first(name)
        listed.asked_at = self._monotonic()
        return listed

    async def _first(self, name: Name) -> Listed:
        if self._monotonic() < self._failed_at + RETRY_S:
            raise Unavailable("log Redis: it did not answer a moment ago")
        listed = self._lists.get(name) or Listed(name)
        await self._read([listed] if self._reached else {listed, *self._lists.values()})
        if name not in self._lists and len(self._lists) >= LISTS_MAX:
            idle = [each for each in self._lists.values() if each.name not in STANDING and not each.listeners]
            if idle:
                del self._lists[min(idle, key=lambda each: each.asked_at).name]
        return self._lists.setdefault(name, listed)

    def listen(self, listed: Listed, listener: Callable[[], None]) -> Listed:
        """Has the listener called after each change of a list, which is kept up to date until then; the list as it is kept."""
        listed = self._lists.setdefault(listed.name, listed)
        listed.listeners.add(listener)
        return listed

    async def refresh(self) -> None:
        """Reads all lists anew and wakes who listens to those that changed. Raises Unavailable."""
        async with self._reading:
            now = self._monotonic()
            for listed in list(self._lists.values()):
                if listed.name not in STANDING and not listed.listeners and listed.asked_at < now - KEPT_S:
                    del self._lists[listed.name]
            changed = await self._read(self._lists.values())
        await _wake([listener for listed in changed for listener in listed.listeners])

    async def _read(self, lists: Iterable[Listed]) -> list[Listed]:
        """Those that have changed. Raises Unavailable."""
        lists = list(lists)
        try:
            if self._log is None:
                raise Unavailable("the session Redis is a cluster: PULSEGATE_LOG_REDIS_URL must name the log Redis")
            found: list[Any] = await answered(
                self._log.mget([self._keys.trending_list(*listed.name) for listed in lists])
            )
            contents = sorted(
                {content for listed, stored in zip(lists, found, strict=True) for content in listed.read(stored)}
            )
            entries = {}
            if contents:
                asked: Any = self._log.hmget(self._keys.contents, contents)
                known = await answered(asked)
                entries = {name: catalogue.decode(each) for name, each in zip(contents, known, strict=True)}
        except Unavailable:
            self._failed_at = self._monotonic()
            raise
        self._reached = True
        return [listed for listed in lists if listed.show(entries)]

    async def follow(self) -> None:
        """Keeps the lists up to date, for ever; reconnects by itself."""
        if self._log is None:
            return
        away = False
        while True:
            try:
                async with self._log.pubsub(ignore_subscribe_messages=True) as pubsub:
                    await pubsub.subscribe(self._keys.published)
                    while True:
                        await self.refresh()
                        away = False
                        await pubsub.get_message(timeout=SILENCE_S)
            except (RedisError, OSError, PulsegateError) as error:
                if not away:
                    log.warning("lists", extra={"why": str(error)})
                away = True
            except Exception:
                log.exception("lists")
            await asyncio.sleep(RETRY_S)


async def _wake(listeners: list[Callable[[], None]]) -> None:
    """A few at a time: what they do then must not keep heartbeats waiting."""
    for number, listener in enumerate(listeners, 1):
        listener()
        if number % _TOGETHER == 0:
            await asyncio.sleep(0)
