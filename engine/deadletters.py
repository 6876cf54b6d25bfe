"""Dead letters: events that a consumer or a receiver will never take, each with the reason, kept until someone looks.

One stream per consumer or sink (`keys.dead`), whose newest entries are kept. An entry has the fields `id` (the event's:
partition and stream id), `e` (its payload), `why` and `at` (ms, when it was buried); and `size` where only the first
`PAYLOAD_MAX` bytes of so many are kept: the event itself is in the lake.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from redis import Redis

from engine import keeping
from engine.events import Event, read
from engine.keys import Keys
from engine.scripts import Arg

PAGE = 500
WHY_MAX = 500
PAYLOAD_MAX = 64 * 1024
"""Bytes of an event that are kept."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """`id` is the letter's own, `of` the event's."""

    id: str
    of: str
    payload: bytes
    why: str
    at: int
    size: int = 0
    """Bytes the event had, where only its beginning is kept."""

    def event(self) -> Event:
        """Raises msgspec.DecodeError if the payload is none, which may be why it is here, and ValueError if it was cut."""
        if self.size:
            raise ValueError(f"only the first {len(self.payload)} of its {self.size} bytes were kept")
        partition, _, stream_id = self.of.partition("-")
        return read(int(partition), stream_id, self.payload)


def fields(of: str, payload: bytes, why: str, at: int) -> dict[str, Arg]:
    """The entry of a letter about the event with id `of`. `at` is ms."""
    kept, size = keeping.cut(payload, PAYLOAD_MAX)
    return {"id": of, "e": kept, "why": why[:WHY_MAX], "at": at, **size}


def letters(client: Redis, keys: Keys, name: str) -> Iterator[DeadLetter]:
    """All of them, oldest first. Raises redis-py's errors."""
    after = "-"
    while page := _page(client, keys.dead(name), after):
        for id_, found in page:
            said = {key: found.get(key.encode(), b"").decode(errors="replace") for key in ("id", "why", "at", "size")}
            payload = bytes(found.get(b"e", b""))
            at, size = (int(text) if text.isdecimal() else 0 for text in (said["at"], said["size"]))
            yield DeadLetter(id_.decode(), said["id"], payload, said["why"], at, size)
        after = f"({page[-1][0].decode()}"


def _page(client: Redis, key: str, after: str) -> Any:
    return client.xrange(key, min=after, count=PAGE)


def remove(client: Redis, keys: Keys, name: str, ids: Sequence[str]) -> int:
    """Takes letters away, by their own ids; how many there were."""
    return keeping.remove(client, keys.dead(name), ids)


def count(client: Redis, keys: Keys, name: str) -> int:
    return int(client.xlen(keys.dead(name)))


def erase(client: Redis, keys: Keys, name: str, account: str) -> int:
    """Takes away every letter about an account; how many there were. Raises redis-py's errors."""
    named = b'"account":' + msgspec.json.encode(account)
    ids = [letter.id for letter in letters(client, keys, name) if named in letter.payload or _about(letter, account)]
    return remove(client, keys, name, ids)


def _about(letter: DeadLetter, account: str) -> bool:
    try:
        return letter.event().account == account
    except (msgspec.DecodeError, ValueError):
        return False
