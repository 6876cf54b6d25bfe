"""What every job needs, built once per worker process: clients, keys, the queue."""

from __future__ import annotations

from functools import lru_cache

from rq import Queue

from engine.clients import Clients
from engine.settings import Settings


class Runtime(Clients):
    __slots__ = ()

    @property
    def queue(self) -> Queue:
        """Where tenures wait."""
        return Queue(self.keys.queue("tenures"), connection=self.log)

    @property
    def exports(self) -> Queue:
        """Where the tenures of exports wait: their receivers may be slow, so they have workers of their own."""
        return Queue(self.keys.queue("exports"), connection=self.log)

    def queue_of(self, job: str) -> Queue:
        return self.exports if job.startswith("export-") else self.queue

    @property
    def asks(self) -> Queue:
        """What the API asks for; goes before tenures."""
        return Queue(self.keys.queue("asks"), connection=self.log)

    def partitions(self, group: int) -> list[int]:
        return list(range(group, self.settings.partitions, self.settings.groups))


@lru_cache(maxsize=4)
def runtime(settings: Settings) -> Runtime:
    """The runtime for these settings. Raises ConfigError if there is no log Redis that RQ can use."""
    return Runtime.of(settings)
