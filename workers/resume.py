"""The resume consumer: one entry per (account, profile, content), folded from the event log (`engine/resume.py`).

A batch is read at once, folded in memory in the order of the log, and written once per title. An account keeps
its newest `resume_keep` entries; which ones go depends on the events alone, not on how they were cut into batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from redis import Redis
from redis.client import Pipeline

from engine import resume
from engine.events import Event
from engine.keys import Space
from engine.resume import Entry, Rules
from engine.settings import Settings
from workers.bulk import get_fields, set_fields
from workers.consumer import Consumer, DeadLetter
from workers.scanning import hashes_below
from workers.troubles import own

Fields = dict[str, dict[str, None]]
"""Account → fields of its hash, in the order of their first event."""


class Resume(Consumer):
    name = resume.NAME

    def __init__(self, client: Redis, space: Space, settings: Settings) -> None:
        super().__init__(client, space, settings)
        self._rules, self._keep = Rules.of(settings), settings.resume_keep

    def handle(self, events: Sequence[Event], pipe: Pipeline) -> None:
        wanted: Fields = {}
        told: list[tuple[Event, str]] = []
        for event in events:
            if event.type in resume.TYPES and event.content and _resumable(event):
                name = resume.field(event.profile, event.content)
                told.append((event, name))
                wanted.setdefault(event.account, {})[name] = None
        if not told:
            return
        shelves = self._load(wanted)
        for event, name in told:
            shelf = shelves[event.account]
            old = shelf.get(name)
            try:
                new = resume.fold(old, event, self._rules)
            except Exception as error:  # what nobody foresaw must not stop all those behind it
                raise DeadLetter(event, f"{type(error).__name__}: {error}") from None
            if new is not None and new is not old:
                shelf.put(name, new)
        values: list[tuple[str, str, bytes]] = []
        for account, shelf in shelves.items():
            key = resume.key(self.space, account)
            values += ((key, name, resume.encode(entry)) for name, entry in shelf.changed.items() if entry is not None)
            gone = [name for name, entry in shelf.changed.items() if entry is None and name in shelf.stored]
            if gone:
                pipe.hdel(key, *gone)
        set_fields(pipe, values)

    def _load(self, wanted: Fields) -> dict[str, _Shelf]:
        """The entries asked for; of an account that might outgrow its shelf all of them."""
        places = [(resume.key(self.space, account), name) for account, names in wanted.items() for name in names]
        found = iter(get_fields(self.client, places))
        shelves = {
            account: _Shelf(self._keep, self._decode, {n: v for n in names if (v := next(found)) is not None})
            for account, names in wanted.items()
        }
        growing = [account for account, names in wanted.items() if len(names) > len(shelves[account].stored)]
        if not growing:
            return shelves
        with self.client.pipeline(transaction=False) as pipe:
            for account in growing:
                pipe.hlen(resume.key(self.space, account))
            full = []
            for account, length in zip(growing, pipe.execute(raise_on_error=False), strict=True):
                if isinstance(length, Exception):
                    if not own(length):
                        raise length
                    continue
                shelf = shelves[account]
                shelf.length = length
                if length + len(wanted[account]) - len(shelf.stored) > self._keep:
                    full.append(account)
                    pipe.hgetall(resume.key(self.space, account))
            for account, everything in zip(full, pipe.execute() if full else (), strict=True):
                entries = {n.decode(errors="replace"): v for n, v in everything.items()}
                shelves[account] = _Shelf(self._keep, self._decode, entries, len(everything))
        return shelves

    def _decode(self, stored: bytes) -> Entry | None:
        try:
            return resume.decode(stored)
        except msgspec.DecodeError as error:
            self.troubles.note("entries", error)
            return None

    def dump(self) -> Iterator[tuple[str, Any]]:
        for account, entries in hashes_below(self.client, resume.key(self.space, "")):
            for name, stored in entries.items():
                entry = resume.decode(stored)
                yield f"{account}\t{name.decode()}", {field: getattr(entry, field) for field in entry.__struct_fields__}

    def erase(self, account: str, pipe: Pipeline) -> int:
        key = resume.key(self.space, account)
        count: Any = self.client.hlen(key)
        pipe.delete(key)
        return int(count)


class _Shelf:
    """One account's entries in memory: read as stored, decoded on demand; `changed` is to be written, None to be removed."""

    def __init__(
        self, keep: int, decode: Callable[[bytes], Entry | None], stored: Mapping[str, bytes], length: int = 0
    ) -> None:
        self.stored, self.length = stored, length
        self._keep, self._decode = keep, decode
        self.changed: dict[str, Entry | None] = {}

    def get(self, name: str) -> Entry | None:
        if name in self.changed:
            return self.changed[name]
        found = self.stored.get(name)
        return None if found is None else self._decode(found)

    def put(self, name: str, entry: Entry) -> None:
        new = self.changed[name] is None if name in self.changed else name not in self.stored
        self.changed[name] = entry
        self.length += new
        if new and self.length > self._keep:
            oldest = min(self._held(), key=lambda held: (held[1].updated_at, held[0]))[0]
            self.changed[oldest] = None
            self.length -= 1

    def _held(self) -> Iterator[tuple[str, Entry]]:
        """All entries; only a full shelf, which was loaded whole, asks."""
        for name in {**self.stored, **self.changed}:
            entry = self.get(name)
            if entry is not None:
                yield name, entry


def _resumable(event: Event) -> bool:
    """Live is not, unless its player can start over; that is looked up here, for live is half of all heartbeats."""
    return event.kind != "live" or event.type != "heartbeat" or b"start_over" in bytes(event.data)
