"""Events as the outbox and the event log hold them: one JSON object, an envelope around the caller's own `data`.

| field       | is                                                                                       |
|-------------|------------------------------------------------------------------------------------------|
| type, at    | what happened, and when (ms, Redis's clock; a spooled heartbeat's own time of arrival)    |
| account, profile, device, session, content, kind | whom and what it is about                             |
| view        | ordinal of the view within the session; 0: no view                                        |
| started_at  | ms, when that view began                                                                  |
| seq         | of the heartbeat it came with                                                             |
| watched_ms  | of the view so far                                                                        |
| revision    | how often the view had been reopened                                                      |
| v           | version of this envelope                                                                  |
| data        | free JSON, byte for byte as it came; for our own types what `docs/events.md` lists        |

An event's id is its partition and the id it has in the outbox: unique, ordered within the partition, and the same in the
log, in the lake and in every export. `event_id` is what a receiver finds duplicates by: the tracking event's own where its
sender can repeat it, one made of the view for its start and ends, else the id.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import msgspec
from msgspec import Raw, Struct

HEARTBEATS, EVENTS = "heartbeats", "events"
TOPICS = (HEARTBEATS, EVENTS)
_ONCE = frozenset(["view_start", "view_end", "view_reopen"])
PLAIN = frozenset(["heartbeat", "evidence"])
"""Types that only say that a stream is alive: the topic `heartbeats`, thinned when the outbox is too long."""


class Event(Struct):
    """One event. `partition`, `stream_id` and `payload` (its JSON) are where it was read from."""

    type: str
    at: int
    account: str
    session: str = ""
    device: str = ""
    profile: str = ""
    content: str = ""
    kind: str = ""
    view: int = 0
    started_at: int = 0
    seq: int = -1
    watched_ms: int = 0
    revision: int = 0
    v: int = 1
    event_id: str = ""
    data: Raw = Raw(b"null")
    partition: int = 0
    stream_id: str = "0-0"
    payload: bytes = b""

    @property
    def id(self) -> str:
        return f"{self.partition}-{self.stream_id}"

    @property
    def topic(self) -> str:
        return HEARTBEATS if self.type in PLAIN else EVENTS

    def details(self) -> dict[str, Any]:
        """`data`, decoded; {} if it is no object."""
        found = msgspec.json.decode(self.data)
        return found if isinstance(found, dict) else {}

    @property
    def export_id(self) -> str:
        """The `event_id` that receivers get. What a view does once (start, each end, each reopening) has one of its own, for a
        session server that lost its last second may tell it again."""
        if self.event_id or self.type not in _ONCE:
            return self.event_id or self.id
        told = "\t".join((self.account, self.session, str(self.started_at), str(self.revision), self.type))
        return blake2b(told.encode(), digest_size=16).hexdigest()

    def export(self) -> bytes:
        """The payload with both ids, as consumers outside get it."""
        ids = b'{"id":"%b","event_id":%b,' % (self.id.encode(), msgspec.json.encode(self.export_id))
        return ids + self.payload[1:]


_decoder = msgspec.json.Decoder(Event)


def read(partition: int, stream_id: str, payload: bytes) -> Event:
    """The event of one log entry. Raises msgspec.DecodeError if it is none."""
    event = _decoder.decode(payload)
    event.partition, event.stream_id, event.payload = partition, stream_id, payload
    return event


def is_id(stored: bytes | str | None) -> bool:
    """Whether it is what Redis takes for the id of a stream's entry, written out."""
    ms, _, seq = (stored.decode(errors="replace") if isinstance(stored, bytes) else stored or "").partition("-")
    return all(part.isascii() and part.isdigit() and len(part) <= 20 and int(part) < 2**64 for part in (ms, seq))


def order(stream_id: str) -> tuple[int, int]:
    """A stream id as what Redis sorts it by."""
    ms, _, seq = stream_id.partition("-")
    return int(ms), int(seq or 0)
