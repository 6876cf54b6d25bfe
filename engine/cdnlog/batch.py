"""Signals for one request, like ones coalesced."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import msgspec

from engine.cdnlog.formats import NAMES
from engine.cdnlog.signals import Signal
from engine.wire import SIGNALS_MAX

BODY_BYTES = 60_000  # the server refuses 64 KiB; the rest is for what an escaped character may add


@dataclass(frozen=True, slots=True)
class Entry:
    """A signal and the line it came from, so that a refusal can be kept with its line."""

    signal: Signal
    number: int
    line: str


class Batch:
    """At most `size` signals and BODY_BYTES. Like ones within `window_ms` become one: a segment a second adds nothing.

    Windows are fixed slices of the time line, so the outcome depends neither on the order of the lines
    (CloudFront's are not sorted) nor on where a batch begins.
    """

    def __init__(self, window_ms: int, size: int = SIGNALS_MAX) -> None:
        self._window_ms = window_ms
        self._size = size
        self._entries: dict[object, Entry] = {}
        self._bytes = 2

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Entry) -> Literal["new", "like", "full"]:
        """`like`: one of the two was coalesced away. `full`: not added; take the batch, then add again."""
        signal = entry.signal
        key = self._key(signal)
        known = self._entries.get(key)
        if known is not None:
            if int(signal["at"]) > int(known.signal["at"]):
                self._entries[key] = entry
            return "like"
        size = len(msgspec.json.encode(signal)) + 1
        if self._entries and (len(self) >= self._size or self._bytes + size > BODY_BYTES):
            return "full"
        self._entries[key] = entry
        self._bytes += size
        return "new"

    def take(self) -> list[Entry]:
        """Empties the batch. Oldest first: which content a device left and which it went to depends on it."""
        entries = sorted(self._entries.values(), key=lambda entry: entry.signal["at"])
        self._entries, self._bytes = {}, 2
        return entries

    def _key(self, signal: Signal) -> object:
        if not self._window_ms:
            return len(self._entries)
        window = int(signal["at"]) // self._window_ms
        return (*(signal.get(name) for name in (*NAMES, "evidence")), window)


def encode(entries: Iterable[Entry]) -> bytes:
    """The body of `POST /v1/signals`."""
    return msgspec.json.encode([entry.signal for entry in entries])
