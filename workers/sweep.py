"""The sweep: a little more often than once a second, ends the views of every partition whose deadline has passed.

While all API processes are away nothing is swept: silence is then our fault, not the players'.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from redis.exceptions import RedisError

from engine import scripts
from engine.settings import Settings
from workers.runtime import Runtime, runtime
from workers.tenure import Ownership, enqueue, serve

log = logging.getLogger(__name__)

FUNCTION = "workers.sweep.sweep"
BATCH = 500
EVERY_S = 0.75


def sweep(group: int) -> int:
    """The RQ job. Returns how many rounds its tenure had."""
    run = runtime(Settings.from_env(os.environ))
    settings = run.settings

    def round_() -> None:
        try:
            ended = sweep_once(run, group)
        except RedisError as error:
            log.warning("sweep", extra={"group": group, "why": str(error)})
        else:
            if ended:
                log.debug("swept", extra={"group": group, "ended": ended})

    return serve(
        Ownership(run.rq, run.keys, "sweep", group),
        round_,
        seconds=settings.tenure_s,
        every_s=EVERY_S,
        successor=lambda: enqueue(run.queue, FUNCTION, group, timeout_s=settings.tenure_s + 60),
    )


def sweep_once(run: Runtime, group: int, now: Any = "") -> int:
    """Sweeps the group's partitions; returns the number of views ended. Nothing while no API process lives."""
    settings, keys = run.settings, run.keys
    began, ended, live, _ = run.call(
        scripts.load("announce"),
        [keys.processes, keys.outage],
        [now, "", "", 0, settings.gone_after_ms, settings.lifetime_ms, 0],
    )
    if live == 0:
        return 0
    total = 0
    script = scripts.load("sweep")
    for partition in range(group, settings.partitions, settings.sweep_groups):
        while True:
            args = [now, BATCH, settings.outbox_max, settings.tuning(), began, ended]
            views, looked = run.call(script, [keys.deadlines(partition), keys.outbox(partition)], args)
            total += views
            if looked < BATCH:
                break
        run.session.xtrim(keys.outbox(partition), maxlen=settings.outbox_keep, approximate=True)
    return total
