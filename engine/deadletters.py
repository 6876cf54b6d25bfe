"""Dead letters: events that a consumer or a receiver will never take, each with the reason, kept until someone looks.

One stream per consumer or sink (`keys.dead`), whose newest entries are kept. An entry has the fields `id` (the event's:
partition and stream id), `e` (its payload), `why` and `at` (ms, when it was buried).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from redis import Redis

from engine.events import Event, read
from engine.keys import Keys

PAGE = 500
WHY_MAX = 500


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """`id` is the letter's own, `of` the event's."""

    id: str
    of: str
    payload: bytes
    why: str
    at: int

    def event(self) -> Event:
        """Raises msgspec.DecodeError if the payload is none, which may be why it is here."""
        partition, _, stream_id = self.of.partition("-")
        return read(int(partition), stream_id, self.payload)


def fields(of: str, payload: bytes, why: str, at: int) -> dict[str, str | bytes | int]:
    """The entry of a letter about the event with id `of`. `at` is ms."""
    return {"id": of, "e": payload, "why": why[:WHY_MAX], "at": at}


def letters(client: Redis, keys: Keys, name: str) -> Iterator[DeadLetter]:
    """All of them, oldest first. Raises redis-py's errors."""
    after = "-"
    while page := _page(client, keys.dead(name), after):
        for id_, found in page:
            said = {key: found.get(key.encode(), b"").decode(errors="replace") for key in ("id", "why", "at")}
            payload = bytes(found.get(b"e", b""))
            yield DeadLetter(
                id_.decode(), said["id"], payload, said["why"], int(said["at"]) if said["at"].isdecimal() else 0
            )
        after = f"({page[-1][0].decode()}"


def _page(client: Redis, key: str, after: str) -> Any:
    return client.xrange(key, min=after, count=PAGE)


def remove(client: Redis, keys: Keys, name: str, ids: Sequence[str]) -> int:
    """Takes letters away, by their own ids; how many there were."""
    return int(client.xdel(keys.dead(name), *ids)) if ids else 0


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
