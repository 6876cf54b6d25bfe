"""The webhook: posts batches of events as JSON, signed, to one URL (`engine/signing.py`, `docs/exports.md`).

    POST <webhook_url>
    Pulsegate-Timestamp, Pulsegate-Signature   who sent it, and when
    Pulsegate-Batch                            the same for the same events, so on every retry
    {"items": [<event>, …]}                    or, in Segment's vocabulary, {"batch": [<track call>, …]}

| answer                             | means                                                                  |
|------------------------------------|------------------------------------------------------------------------|
| 2xx                                | taken                                                                  |
| 408, 425, 429, 5xx, none in time   | not now: later, and not before `Retry-After`                           |
| 401, 403, 404 and the like, 3xx    | nothing is ever taken here: a wrong URL or secret, which is no event's fault. Later |
| 400, 413, 422 and any other 4xx    | something in it is refused: the batch is halved until what is refused stands alone; that becomes dead letters |
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from hashlib import sha256
from typing import Any, ClassVar, NamedTuple, Self

from engine import segment, signing
from engine.events import EVENTS, HEARTBEATS, PLAIN, Event
from engine.settings import Settings
from workers.posting import NoAnswer, Poster
from workers.sinks import Rejected, Retry, Sink
from workers.tenure import stopping

NOT_NOW = frozenset([408, 425, 429])
NOT_HERE = frozenset([401, 402, 403, 404, 405, 407, 410, 421, 426, 451])
_WHY_MAX = 200


class Item(NamedTuple):
    """An event as it is sent."""

    event: Event
    body: bytes


class Webhook(Sink):
    """The sink `webhook`."""

    name: ClassVar[str] = "webhook"

    def __init__(self, settings: Settings, now: Callable[[], float] = time.time) -> None:
        self._settings, self._now = settings, now
        self._types = frozenset(settings.webhook_types)
        self._segment = settings.webhook_format == "segment"
        self._head, self._tail = (b'{"batch":[', b"]}") if self._segment else (b'{"items":[', b"]}")
        plain = settings.webhook_heartbeats or bool(self._types & PLAIN)
        self.topics = (HEARTBEATS, EVENTS) if plain else (EVENTS,)
        self.batch = settings.webhook_batch
        self.poster = Poster(settings.webhook_timeout_s)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self | None:
        return cls(settings) if settings.webhook_url else None

    def deliver(self, events: Sequence[Event]) -> None:
        refused: list[tuple[Event, str]] = []
        wanted = [event for event in events if not self._types or event.type in self._types]
        for batch in self._cut(wanted, refused):
            waiting = [batch]
            while waiting:
                if stopping.is_set():
                    raise Retry(None, "the worker stops")
                part = waiting.pop()
                why = self._post(part)
                if why and len(part) == 1:
                    refused.append((part[0].event, why))
                elif why:
                    # The first half goes first: what the receiver gets stays in order.
                    middle = len(part) // 2
                    waiting += [part[middle:], part[:middle]]
        if refused:
            raise Rejected([event for event, _ in refused], [why for _, why in refused])

    def _cut(self, events: Sequence[Event], refused: list[tuple[Event, str]]) -> Iterator[list[Item]]:
        """Requests of at most `webhook_body_max` bytes; an event that fits into none is refused."""
        most = self._settings.webhook_body_max - len(self._head) - len(self._tail)
        batch: list[Item] = []
        size = 0
        for event in events:
            try:
                item = Item(event, b",".join(segment.calls(event)) if self._segment else event.export())
            except Exception as error:
                # One event whose JSON nobody foresaw must not stop all those behind it.
                refused.append((event, f"cannot be written: {type(error).__name__}: {error}"))
                continue
            if len(item.body) > most:
                refused.append((event, f"{len(item.body)} bytes do not fit into a request of {most}"))
                continue
            if batch and size + 1 + len(item.body) > most:
                yield batch
                batch, size = [], 0
            batch.append(item)
            size += len(item.body) + 1
        if batch:
            yield batch

    def _post(self, items: Sequence[Item]) -> str:
        """Why the receiver refused what is in it; '' if it took it. Raises Retry."""
        body = self._head + b",".join(item.body for item in items) + self._tail
        timestamp = int(self._now())
        headers = {
            "Content-Type": "application/json", "User-Agent": "pulsegate",
            signing.TIMESTAMP: str(timestamp), signing.SIGNATURE: signing.sign(self._settings.webhook_secret, timestamp, body),
            "Pulsegate-Batch": batch_id([item.event for item in items]),
        }  # fmt: skip
        if self._settings.webhook_authorization:
            headers["Authorization"] = self._settings.webhook_authorization
        try:
            answer = self.poster.post(self._settings.webhook_url, body, headers)
        except NoAnswer as error:
            raise Retry(None, str(error)) from None
        status, said = answer.status, answer.body[: 4 * _WHY_MAX].decode(errors="replace").strip()[:_WHY_MAX]
        if 200 <= status < 300:
            return ""
        why = f"{status} {said}".strip()
        if status in NOT_NOW or status >= 500:
            raise Retry(retry_after_s(answer.headers.get("Retry-After", ""), self._now()), why)
        if status in NOT_HERE or status < 400:
            raise Retry(None, f"{why} (for whatever is sent: see PULSEGATE_WEBHOOK_*)")
        return why


def batch_id(events: Sequence[Event]) -> str:
    """Names a batch by what is in it."""
    return sha256("\n".join(event.id for event in events).encode()).hexdigest()[:32]


def retry_after_s(value: str, now: float) -> float | None:
    """The header's seconds, or the seconds until its date (RFC 9110, 10.2.3); None if it says neither."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        date: Any = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, float(date.timestamp()) - now)
