"""The scheduler: watches who owns each group of partitions and queues a tenure where nobody does.

Several may run; what they do twice is harmless, because a tenure that finds its group owned ends at once.
"""

from __future__ import annotations

import logging

from redis.exceptions import RedisError

from engine.stopping import Stop
from workers import sweep
from workers.runtime import Runtime
from workers.tenure import enqueue

log = logging.getLogger(__name__)

EVERY_S = 1.0


def schedule_once(run: Runtime) -> None:
    """Queues a tenure for every group without an owner. Raises redis-py's errors."""
    for group in range(run.settings.sweep_groups):
        if not run.rq.exists(run.keys.owner("sweep", group)):
            enqueue(run.queue, sweep.FUNCTION, group, timeout_s=run.settings.tenure_s + 60)


def schedule(run: Runtime, stop: Stop) -> None:
    """Until `stop` is set."""
    while not stop.wait(EVERY_S):
        try:
            schedule_once(run)
        except RedisError as error:
            log.warning("schedule", extra={"why": str(error)})
