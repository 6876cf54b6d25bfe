"""What a consumer is: a class with a name and `handle`, found through the entry point group `pulsegate.consumers`.

A consumer turns the event log into state of its own (a projection) in the log Redis. It is given events in batches, those of
one partition in the order of their ids, and queues its writes on a pipeline; the runtime (`workers/consume.py`) commits
them together with its position in one transaction that also checks that the partitions are still this worker's. So each event
changes the state exactly once, whatever is killed when. `pulsegate new-consumer` writes one to start from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from typing import Any, ClassVar

from redis import Redis
from redis.client import Pipeline

from engine.events import TOPICS, Event
from engine.keys import Keys, Space
from engine.settings import Settings
from workers.troubles import Troubles

GROUP = "pulsegate.consumers"


class Consumer(ABC):
    """`client` reads the log Redis (bytes in, bytes out); `space` builds the projection's keys, shadow or live."""

    name: ClassVar[str]
    topics: ClassVar[tuple[str, ...]] = TOPICS
    gather_s: float = 0.05
    """While fewer than `few` events come in a round, they gather so long: a round costs as much for ten events as for a hundred."""
    few: int = 1_000
    batch: int = 5_000
    """Events committed together, about."""

    def __init__(self, client: Redis, space: Space, settings: Settings) -> None:
        self.client, self.space, self.settings = client, space, settings
        self.troubles = Troubles(client, Keys(settings.prefix, settings.partitions), self.name)

    @abstractmethod
    def handle(self, events: Sequence[Event], pipe: Pipeline) -> None:
        """Queues the writes for a batch of events. May read by `client`; must write by `pipe` only.

        An event that cannot be handled raises `DeadLetter`: it is kept with its reason and not tried again. State of its own that
        it cannot read it takes for none, and says so by `troubles.note`: it must not stop the other accounts.
        """

    @abstractmethod
    def dump(self) -> Iterator[tuple[str, Any]]:
        """All of its state as (name, JSON value), in any order: what `pulsegate replay` compares."""

    @abstractmethod
    def erase(self, account: str, pipe: Pipeline) -> int:
        """Queues the removal of everything about an account; how many things go."""

    def tidy(self, now: int) -> None:  # noqa: B027 - most forget nothing
        """Forgets what is older than its retention. Called every 12 s; `now` is ms."""


class DeadLetter(Exception):
    """This event can never be handled; the message says why."""

    def __init__(self, event: Event, why: str) -> None:
        super().__init__(why)
        self.event = event


def names(*, built_in: bool = False) -> list[str]:
    """The names of all installed consumers, or of Pulsegate's own; loads none."""
    found = entry_points(group=GROUP)
    return sorted(e.name for e in found if not built_in or (e.dist is not None and e.dist.name == "pulsegate"))


def load(name: str) -> type[Consumer]:
    """Raises KeyError if there is none of this name, and whatever its module fails with."""
    cls: type[Consumer] = entry_points(group=GROUP)[name].load()
    if cls.name != name:
        raise TypeError(f"{cls.__qualname__} is named {cls.name!r}, its entry point {name!r}")
    return cls


def consumers() -> dict[str, type[Consumer]]:
    """All installed consumers by name."""
    return {name: load(name) for name in names()}
