"""The lake as a sink: it keeps the positions itself, in the manifest that also names the files, so each event is in it once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

from engine.events import Event
from engine.lake import Lake
from engine.settings import Settings
from workers.sinks import Sink


class LakeSink(Sink):
    """Writes what gathered in the log every few seconds: a file per topic and hour each time, merged later (`tidy`)."""

    name: ClassVar[str] = "lake"

    def __init__(self, lake: Lake, settings: Settings) -> None:
        self._lake = lake
        self.batch = settings.lake_roll_events
        self._roll_s = settings.lake_roll_s
        self._compact_ms, self._file_bytes = settings.lake_compact_s * 1000, settings.lake_file_bytes
        self._due: dict[int, float] = {}

    @classmethod
    def from_settings(cls, settings: Settings) -> Self | None:
        if not settings.lake_dir:
            return None
        return cls(Lake(Path(settings.lake_dir), partitions=settings.partitions), settings)

    def positions(self) -> dict[int, str]:
        return self._lake.positions()

    def gather_s(self, partitions: Sequence[int]) -> float:
        """Seconds for which events of these partitions should gather before the next delivery; 0: deliver what there is."""
        return max(0.0, max((self._due.get(p, 0.0) for p in partitions), default=0.0) - time.monotonic())

    def deliver(self, events: Sequence[Event]) -> None:
        """Durable when it returns. Raises `engine.lake.Conflict` if another writes the same partitions all the time."""
        self._lake.append(events)
        # After a full batch there is more, and it need not wait.
        due = time.monotonic() + self._roll_s if len(events) < self.batch else 0.0
        self._due |= dict.fromkeys({event.partition for event in events}, due)

    def tidy(self, now: int) -> None:
        self._lake.compact(self._compact_ms, self._file_bytes)
        self._lake.sweep()
