"""The views consumer: one record per view, folded from the event log (`engine/views.py`), and its indexes.

A batch is read at once, folded in memory in the order of the log, and written once per view. An account keeps its newest
`views_keep` views; which ones go depends on the events alone, not on how they were cut into batches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from redis import Redis
from redis.client import Pipeline

from engine import views
from engine.events import Event
from engine.keys import Space
from engine.partitions import partition_of
from engine.settings import Settings
from engine.views import View
from workers.bulk import get_fields, set_fields
from workers.consumer import Consumer, DeadLetter
from workers.scanning import hashes_below
from workers.troubles import counts, own

DAY_MS = 86_400_000
TIDY_BATCH = 1_000

Place = tuple[str, str]
"""Account and field: where a record is."""


class Views(Consumer):
    name = views.NAME

    def __init__(self, client: Redis, space: Space, settings: Settings) -> None:
        super().__init__(client, space, settings)
        self._partitions = settings.partitions
        self._keep = settings.views_keep
        self._keep_ms = int(settings.views_keep_days * DAY_MS)

    def handle(self, events: Sequence[Event], pipe: Pipeline) -> None:
        told: list[tuple[Event, Place]] = []
        partitions: dict[Place, int] = {}
        links: list[tuple[Event, str]] = []
        for event in events:
            if event.type not in views.TYPES:
                continue
            started = views.began(event)
            if started:
                place = (event.account, views.name_of(event.session, event.view, started))
                told.append((event, place))
                partitions[place] = event.partition
                if event.type == "session_linked":
                    links.append((event, _adopted_from(event)))
        if not told:
            return
        for (event, _), found in zip(links, self._linked(links), strict=True):
            for place in found:
                partitions.setdefault(place, event.partition)
        shelf = self._load(list(partitions))
        self._bound(shelf, partitions)
        for event, place in told:
            self._fold(shelf, event, place)
        self._write(pipe, shelf, partitions)

    def _fold(self, shelf: _Shelf, event: Event, place: Place) -> None:
        old, adopted, source = shelf.get(place), None, None
        if event.type == "session_linked":
            source = shelf.running(event.account, _adopted_from(event), views.began(event))
            adopted = shelf.get(source) if source else None
        try:
            new = views.fold(old, event, adopted)
        except Exception as error:  # what nobody foresaw must not stop all those behind it
            raise DeadLetter(event, f"{type(error).__name__}: {error}") from None
        if new is not None and new is not old:
            shelf.put(place, new)
        if source:
            # One view: it goes on under the player's own session.
            shelf.put(source, None)

    def _linked(self, links: Sequence[tuple[Event, str]]) -> list[list[Place]]:
        """Of each link the stored views that it may take over: they began at the same moment, under the other session."""
        if not links:
            return []
        with self.client.pipeline(transaction=False) as pipe:
            for event, _ in links:
                started = views.began(event)
                pipe.zrangebyscore(self.space.key("account", event.account), started, started)
            answers: list[Any] = pipe.execute(raise_on_error=False)
        found = []
        for (event, session), names in zip(links, answers, strict=True):
            if isinstance(names, Exception):
                if not own(names):
                    raise names
                names = []
            known = [n.decode(errors="replace") for n in names]
            found.append([(event.account, n) for n in known if n.startswith(f"{session}\t")])
        return found

    def _bound(self, shelf: _Shelf, partitions: dict[Place, int]) -> None:
        """Of accounts that might outgrow their shelf, loads what would go: their oldest views."""
        new: Counter[str] = Counter(place[0] for place in partitions if place not in shelf.stored)
        if not new:
            return
        with self.client.pipeline(transaction=False) as pipe:
            for account in new:
                pipe.zcard(self.space.key("account", account))
            lengths = counts(pipe.execute(raise_on_error=False))
            over = {
                a: (n, n + new[a] - self._keep) for a, n in zip(new, lengths, strict=True) if n + new[a] > self._keep
            }
            for account, (_, excess) in over.items():
                pipe.zrange(self.space.key("account", account), 0, excess - 1, withscores=True)
            listed: list[Any] = pipe.execute() if over else []
        for (account, (length, _)), oldest in zip(over.items(), listed, strict=True):
            places = [(account, name.decode()) for name, _ in oldest]
            for place in places:
                partitions.setdefault(place, partition_of(account, self._partitions))
            crowd = [(int(started), place) for place, (_, started) in zip(places, oldest, strict=True)]
            shelf.crowd(account, length - self._keep, crowd, self._load(places).stored)

    def _load(self, places: Sequence[Place]) -> _Shelf:
        found = get_fields(self.client, [(self.space.key("of", account), name) for account, name in places])
        stored = {place: value for place, value in zip(places, found, strict=True) if value is not None}
        return _Shelf(stored, self._decode)

    def _decode(self, stored: bytes) -> View | None:
        try:
            return views.decode(stored)
        except msgspec.DecodeError as error:
            self.troubles.note("records", error)
            return None

    def _content(self, stored: bytes) -> str:
        view = self._decode(stored)
        return view.content if view else ""

    def _write(self, pipe: Pipeline, shelf: _Shelf, partitions: dict[Place, int]) -> None:
        alive: list[Any] = []
        silent: list[str] = []
        records: list[tuple[str, str, bytes]] = []
        for place, view in shelf.changed.items():
            account, name = place
            member = f"{account}\t{name}"
            if view is None:
                if place in shelf.stored:
                    self._remove(pipe, account, name, self._content(shelf.stored[place]), partitions[place])
                continue
            records.append((self.space.key("of", account), name, views.encode(view)))
            if view.running:
                alive += (view.last_seen_at, member)
            elif place in shelf.stored:
                silent.append(member)
            if place not in shelf.stored:
                started = view.started_at
                pipe.execute_command("ZADD", self.space.key("account", account), started, name)
                pipe.execute_command("ZADD", self.space.key("content", view.content), started, member)
                pipe.execute_command("ZADD", self.space.key("all", str(partitions[place])), started, member)
        set_fields(pipe, records)
        if alive:
            pipe.execute_command("ZADD", self.space.key("open"), *alive)
        if silent:
            pipe.zrem(self.space.key("open"), *silent)

    def _remove(self, pipe: Pipeline, account: str, name: str, content: str, partition: int) -> None:
        member = f"{account}\t{name}"
        pipe.hdel(self.space.key("of", account), name)
        pipe.zrem(self.space.key("account", account), name)
        pipe.zrem(self.space.key("content", content), member)
        pipe.zrem(self.space.key("all", str(partition)), member)
        pipe.zrem(self.space.key("open"), member)

    def dump(self) -> Iterator[tuple[str, Any]]:
        for account, records in hashes_below(self.client, self.space.key("of", "")):
            for name, stored in records.items():
                text = name.decode()
                yield f"{account}\t{text}", views.item(account, text, views.decode(stored))

    def erase(self, account: str, pipe: Pipeline) -> int:
        records: Any = self.client.hgetall(self.space.key("of", account))
        partition = partition_of(account, self._partitions)
        for name, stored in records.items():
            self._remove(pipe, account, name.decode(errors="replace"), self._content(stored), partition)
        return len(records)

    def tidy(self, now: int) -> None:
        """Forgets ended views that began `views_keep_days` ago or earlier."""
        until, partitions = now - self._keep_ms, list(range(self._partitions))
        passed = dict.fromkeys(partitions, 0)
        while partitions:
            with self.client.pipeline(transaction=False) as pipe:
                for p in partitions:
                    pipe.zrangebyscore(self.space.key("all", str(p)), "-inf", until, passed[p], TIDY_BATCH)
                found: list[Any] = [
                    answer if isinstance(answer, list) else [] for answer in pipe.execute(raise_on_error=False)
                ]
            for p, members in zip(partitions, found, strict=True):
                texts = self._legible(self.space.key("all", str(p)), members)
                passed[p] += len(texts) - self._forget(p, texts)
            partitions = [p for p, members in zip(partitions, found, strict=True) if len(members) == TIDY_BATCH]

    def _forget(self, partition: int, members: Sequence[str]) -> int:
        """How many of these views went: those that are over."""
        places = [(account, name) for account, _, name in (m.partition("\t") for m in members)]
        shelf, gone = self._load(places), 0
        with self.client.pipeline(transaction=False) as pipe:
            for place in places:
                view = shelf.get(place)
                if view is None or not view.running:
                    self._remove(pipe, *place, view.content if view else "", partition)
                    gone += 1
            self.troubles.check(pipe.execute(raise_on_error=False), "records that are forgotten")
        return gone

    def _legible(self, key: str, members: Sequence[bytes]) -> list[str]:
        """The members that can be names; the others go."""
        found, bad = [], []
        for member in members:
            try:
                found.append(member.decode())
            except UnicodeDecodeError:
                bad.append(member)
        if bad:
            self.troubles.note("members of an index", bad[0], len(bad))
            self.client.zrem(key, *bad)
        return found

    def open_before(self, ms: int, limit: int) -> list[dict[str, Any]]:
        """Records of views that go on, but last showed themselves before `ms`; the most silent first."""
        key = self.space.key("open")
        members: Any = self.client.zrangebyscore(key, "-inf", f"({ms}", 0, limit)
        texts = self._legible(key, members)
        places = [(account, name) for account, _, name in (m.partition("\t") for m in texts)]
        shelf = self._load(places)
        found = [(place, shelf.get(place)) for place in places]
        if strays := [text for text, (_, view) in zip(texts, found, strict=True) if view is None]:
            self.client.zrem(key, *strays)  # or they would stand before all others for ever
        return [views.item(*place, view) for place, view in found if view is not None and view.running]


class _Shelf:
    """Records in memory: read as stored, decoded on demand; `changed` is to be written, None to be removed."""

    def __init__(self, stored: dict[Place, bytes], decode: Callable[[bytes], View | None]) -> None:
        self.stored, self._decode = stored, decode
        self.changed: dict[Place, View | None] = {}
        self._of_account: dict[str, list[Place]] = {}
        self._over: dict[str, int] = {}
        self._crowds: dict[str, list[tuple[int, Place]]] = {}
        for place in stored:
            self._of_account.setdefault(place[0], []).append(place)

    def crowd(self, account: str, over: int, oldest: list[tuple[int, Place]], stored: Mapping[Place, bytes]) -> None:
        """An account of which so many views are too many (below 0: there is room), and its oldest ones, by when they began."""
        self._over[account], self._crowds[account] = over, oldest
        for place, record in stored.items():
            if place not in self.stored:
                self.stored[place] = record
                self._of_account.setdefault(account, []).append(place)

    def get(self, place: Place) -> View | None:
        if place in self.changed:
            return self.changed[place]
        found = self.stored.get(place)
        return None if found is None else self._decode(found)

    def put(self, place: Place, view: View | None) -> None:
        account = place[0]
        if place not in self.stored and place not in self.changed:
            self._of_account.setdefault(account, []).append(place)
        there = self.changed[place] is not None if place in self.changed else place in self.stored
        self.changed[place] = view
        if account in self._over and there != (view is not None):
            self._over[account] += -1 if view is None else 1
            if view is not None:
                self._crowds[account].append((view.started_at, place))
                self._make_room(account)

    def _make_room(self, account: str) -> None:
        while self._over[account] > 0:
            oldest = min(self._crowds[account])
            self._crowds[account].remove(oldest)
            if self.get(oldest[1]) is not None:
                self.changed[oldest[1]] = None
                self._over[account] -= 1

    def running(self, account: str, session: str, started_at: int) -> Place | None:
        """The running view of that session which began then."""
        start, end = f"{session}\t", f"\t{started_at}"
        for place in self._of_account.get(account, ()):
            if place[1].startswith(start) and place[1].endswith(end):
                view = self.get(place)
                if view is not None and view.running:
                    return place
        return None


def _adopted_from(event: Event) -> str:
    try:
        return views.adopted_from(event)
    except msgspec.DecodeError as error:
        raise DeadLetter(event, str(error)) from None
