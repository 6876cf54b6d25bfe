"""The quality consumer: what players tell becomes facts (`engine/quality/fold.py`) in a lake of their own.

Events gather for `quality_roll_s`; then their facts are written as Parquet, durably, and after that the states of the sessions with
the position. Who dies in between folds the same events again from the same states: the lake has those facts already and drops them. So
each is there once. Without a lake there is nothing to ask later, and nothing is folded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from redis import Redis
from redis.client import Pipeline

from engine.events import Event, order
from engine.keys import Space
from engine.lake import Lake
from engine.quality.columns import table
from engine.quality.facts import Fact
from engine.quality.files import TOPIC, lake_of
from engine.quality.fold import Playback, decode, encode, fold
from engine.settings import Settings
from workers.bulk import get_fields, set_fields
from workers.consumer import Consumer, DeadLetter
from workers.scanning import hashes_below
from workers.troubles import counts

NAME = "quality"
SILENT_MS = 12 * 3_600_000
"""A session not heard of for so long has nothing to go on with."""
SESSIONS_MAX = 1_000
"""Sessions of one account that are kept; beyond it those not heard of for longest have nothing to go on with either."""
TIDY_BATCH = 1_000

Place = tuple[str, str]
"""Account and session: whose state it is."""


class Quality(Consumer):
    name = NAME
    few = batch = 50_000

    def __init__(self, client: Redis, space: Space, settings: Settings) -> None:
        super().__init__(client, space, settings)
        self.gather_s = settings.quality_roll_s
        self._lake: Lake | None = lake_of(settings)

    def handle(self, events: Sequence[Event], pipe: Pipeline) -> None:
        if self._lake is None or not events:
            return
        places = list({(event.account, event.session): None for event in events if event.session})
        stored = get_fields(self.client, [(self.space.key("of", account), session) for account, session in places])
        states = {place: self._decode(found) for place, found in zip(places, stored, strict=True)}
        known = {place for place, found in zip(places, stored, strict=True) if found}
        seen: dict[Place, int] = {}
        facts: list[Fact] = []
        for event in events:
            place = (event.account, event.session)
            if event.session:
                try:
                    states[place], made = fold(states[place], event)
                except Exception as error:  # what nobody foresaw must not stop all those behind it
                    raise DeadLetter(event, f"{type(error).__name__}: {error}") from None
                facts += made
                seen[place] = event.at
        self._add(self._lake, events, facts)
        self._write(pipe, states, known, seen)

    def _decode(self, stored: bytes | None) -> Playback | None:
        try:
            return decode(stored) if stored else None
        except msgspec.DecodeError as error:
            self.troubles.note("states", error)
            return None

    @staticmethod
    def _add(lake: Lake, events: Sequence[Event], facts: Sequence[Fact]) -> None:
        ends = {event.partition: event.stream_id for event in events}
        positions = lake.positions()
        # A replay folds what the lake has long had.
        if any(order(end) > order(positions.get(p, "0-0")) for p, end in ends.items()):
            lake.add(TOPIC, table(facts), ends)

    def _write(
        self, pipe: Pipeline, states: dict[Place, Playback | None], known: set[Place], seen: dict[Place, int]
    ) -> None:
        records = []
        heard: list[Any] = []
        over = self._crowded(states, known, seen)
        gone = set(over)
        for place, state in states.items():
            if place in gone:
                continue
            if state is not None:
                records.append((self.space.key("of", place[0]), place[1], encode(state)))
                heard += (seen[place], f"{place[0]}\t{place[1]}")
            elif place in known:
                over.append(place)
        set_fields(pipe, records)
        if heard:
            pipe.execute_command("ZADD", self.space.key("heard"), *heard)
        self._remove(pipe, over)

    def _crowded(self, states: dict[Place, Playback | None], known: set[Place], seen: dict[Place, int]) -> list[Place]:
        """Of accounts with more sessions than are kept, those that go."""
        new = Counter(place[0] for place, state in states.items() if state is not None and place not in known)
        if not new:
            return []
        with self.client.pipeline(transaction=False) as pipe:
            for account in new:
                pipe.hlen(self.space.key("of", account))
            lengths = counts(pipe.execute(raise_on_error=False))
        gone: list[Place] = []
        for (account, more), length in zip(new.items(), lengths, strict=True):
            if length + more > SESSIONS_MAX:
                names: Any = self.client.hkeys(self.space.key("of", account))
                places = [(account, name.decode()) for name in names]
                members = ["\t".join(place) for place in places]
                scores: Any = self.client.zmscore(self.space.key("heard"), members) if members else []
                heard = {place: int(score or 0) for place, score in zip(places, scores, strict=True)}
                heard |= {place: at for place, at in seen.items() if place[0] == account and states[place] is not None}
                gone += sorted(heard, key=lambda place: (heard[place], place))[: len(heard) - SESSIONS_MAX]
        return gone

    def _remove(self, pipe: Pipeline, places: Sequence[Place]) -> None:
        for account, session in places:
            pipe.hdel(self.space.key("of", account), session)
        if places:
            pipe.zrem(self.space.key("heard"), *(f"{account}\t{session}" for account, session in places))

    def dump(self) -> Iterator[tuple[str, Any]]:
        for account, records in hashes_below(self.client, self.space.key("of", "")):
            for session, stored in records.items():
                yield f"{account}\t{session.decode()}", msgspec.to_builtins(decode(stored))

    def erase(self, account: str, pipe: Pipeline) -> int:
        sessions: Any = self.client.hkeys(self.space.key("of", account))
        self._remove(pipe, [(account, session.decode()) for session in sessions])
        return len(sessions)

    def tidy(self, now: int) -> None:
        while True:
            names: Any = self.client.zrangebyscore(self.space.key("heard"), "-inf", now - SILENT_MS, 0, TIDY_BATCH)
            if not names:
                break
            with self.client.pipeline(transaction=True) as pipe:
                pipe.zrem(self.space.key("heard"), *names)
                for name in names:
                    account, _, session = name.decode(errors="replace").partition("\t")
                    pipe.hdel(self.space.key("of", account), session)
                self.troubles.check(pipe.execute(raise_on_error=False), "states that are forgotten")
        if self._lake is not None:
            self._lake.compact(self.settings.lake_compact_s * 1000, self.settings.lake_file_bytes)
            self._lake.sweep()
