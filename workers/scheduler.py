"""The scheduler: watches who owns each group of each job, queues a tenure where nobody does, and lets RQ's own scheduler
bring back what waits for a retry.

Several may run; what they do twice is harmless, because a tenure that finds its group owned ends at once.
"""

from __future__ import annotations

import logging

from redis.exceptions import RedisError
from rq.scheduler import RQScheduler

from engine.stopping import Stop
from workers.jobs import groups, jobs, queue_tenure
from workers.runtime import Runtime

log = logging.getLogger(__name__)

EVERY_S = 1.0


class Retries(RQScheduler):
    """RQ's scheduler without its lock, which a killed one would hold for a minute: here two do no harm."""

    def acquire_locks(self, auto_start: bool = False) -> set[str]:
        self._acquired_locks = set(self._queue_names)
        return self._acquired_locks


def schedule_once(run: Runtime) -> None:
    """Queues a tenure for every group without an owner. Raises redis-py's errors."""
    for job in jobs(run.settings):
        for group in groups(run.settings, job):
            if not run.log.exists(run.keys.owner(job, group)):
                queue_tenure(run, job, group)


def schedule(run: Runtime, stop: Stop) -> None:
    """Until `stop` is set."""
    queues = sorted({run.queue_of(job).name for job in jobs(run.settings)})
    retries = Retries(queues, connection=run.log, logging_level=logging.WARNING)
    retries.acquire_locks()
    while not stop.wait(EVERY_S):
        try:
            schedule_once(run)
            retries.enqueue_scheduled_jobs()  # type: ignore[no-untyped-call]
        except RedisError as error:
            log.warning("schedule", extra={"why": str(error)})
