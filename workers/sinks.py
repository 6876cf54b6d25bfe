"""What a sink is: a class that carries events out of Pulsegate, found through the entry point group `pulsegate.sinks`.

A sink delivers; where it stands, when it tries again and what becomes of events that nobody will take is the runtime's
(`workers/export.py`). A delivery that was cut off is made once more, so a receiver sees each event at least once, always
with the same ids and bytes. A sink that keeps its own position together with what it writes (the lake) makes that
exactly once. `docs/exports.md` shows how to write one.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import entry_points
from typing import ClassVar, Self

from engine.events import TOPICS, Event
from engine.settings import Settings

log = logging.getLogger(__name__)

GROUP = "pulsegate.sinks"


class Retry(Exception):
    """The receiver cannot take it now. `after_s`: when it asked to be tried again, in seconds; None if it did not say."""

    def __init__(self, after_s: float | None, why: str) -> None:
        super().__init__(why)
        self.after_s = after_s


class Rejected(Exception):
    """The receiver will never take these events; all others of the delivery it has taken.

    `why` is one reason for all of them, or one for each. They are kept as dead letters.
    """

    def __init__(self, events: Sequence[Event], why: str | Sequence[str]) -> None:
        reasons = [why] * len(events) if isinstance(why, str) else list(why)
        super().__init__(f"{len(events)} events refused, the first because: {reasons[0] if reasons else '?'}")
        self.refused = list(zip(events, reasons, strict=True))


class Sink(ABC):
    """One kind of receiver. A worker process builds it once and uses it for all groups of partitions in turn."""

    name: ClassVar[str]
    topics: tuple[str, ...] = TOPICS
    """The topics it wants; an instance may narrow them."""
    batch: int = 1_000
    """Events of one delivery, at most."""

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: Settings) -> Self | None:
        """The sink these settings ask for; None if they ask for none. Cheap: connects to nothing."""

    @abstractmethod
    def deliver(self, events: Sequence[Event]) -> None:
        """Hands over a batch, those of one partition in order. It is done with when this returns.

        Raises Retry or Rejected; any other error counts as a failure and is tried again, too.
        """

    def gather_s(self, partitions: Sequence[int]) -> float:
        """Seconds for which events of these partitions should gather in the log before the next delivery."""
        return 0.0

    def positions(self) -> dict[int, str] | None:
        """Partition → last id delivered, for a sink that keeps that itself; None: the runtime does, in Redis."""
        return None

    def tidy(self, now: int) -> None:  # noqa: B027 (most have nothing to tidy)
        """Cleans up behind itself. Called every 12 s; `now` is ms."""


def names() -> list[str]:
    """The names of all installed sinks; loads none."""
    return sorted(entry.name for entry in entry_points(group=GROUP))


def load(name: str) -> type[Sink]:
    """Raises KeyError if there is none of this name, and whatever its module fails with."""
    cls: type[Sink] = entry_points(group=GROUP)[name].load()
    if cls.name != name:
        raise TypeError(f"{cls.__qualname__} is named {cls.name!r}, its entry point {name!r}")
    return cls


def sinks() -> dict[str, type[Sink]]:
    """All installed sinks by name."""
    return {name: load(name) for name in names()}


def configured(settings: Settings) -> dict[str, type[Sink]]:
    """Those that these settings ask for. One that cannot be loaded or built is logged, and left out."""
    found = {}
    for name in names():
        try:
            cls = load(name)
            if build(cls, settings) is not None:
                found[name] = cls
        except Exception:
            log.exception("broken_sink", extra={"sink": name})
    return found


@lru_cache(maxsize=64)
def build(cls: type[Sink], settings: Settings) -> Sink | None:
    """The sink, built once per process, so that its connections outlive a tenure. None if it is not configured."""
    return cls.from_settings(settings)
