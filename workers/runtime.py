"""What every job needs, built once per worker process: clients, keys, the queue."""

from __future__ import annotations

from functools import lru_cache

from rq import Queue

from engine import layout
from engine.clients import Clients
from engine.settings import Settings


class Runtime(Clients):
    __slots__ = ()

    @property
    def queue(self) -> Queue:
        """Where tenures wait."""
        return Queue(self.keys.queue("tenures"), connection=self.log)

    def queue_of(self, job: str) -> Queue:
        """Where the job's tenures wait. Each export has a queue and workers of its own: its receiver may be slow, and keeps
        nothing waiting but itself."""
        return Queue(self.keys.queue(job), connection=self.log) if job.startswith("export-") else self.queue

    @property
    def asks(self) -> Queue:
        """What the API asks for. Its workers do nothing else, so no tenure waits for it."""
        return Queue(self.keys.queue("asks"), connection=self.log)

    def partitions(self, group: int) -> list[int]:
        return list(range(group, self.settings.partitions, self.settings.groups))


@lru_cache(maxsize=4)
def runtime(settings: Settings) -> Runtime:
    """The runtime for these settings. Raises ConfigError if there is no log Redis that RQ can use, LayoutMismatch if the
    deployment's clock is of the other kind; one that no API process has created yet has none."""
    run = Runtime.of(settings)
    if run.session.exists(run.keys.layout):
        layout.check_clock(run.keys, run.session.hget(run.keys.layout, layout.CLOCK), settings.virtual_clock)
    return run
