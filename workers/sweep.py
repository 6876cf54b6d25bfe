"""The sweep: a little more often than once a second, ends the views of every partition whose deadline has passed.

While all API processes are away nothing is swept: silence is then our fault, not the players'.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from redis.exceptions import RedisError

from engine import scripts
from workers.runtime import Runtime
from workers.tenure import Work, stopping

log = logging.getLogger(__name__)

BATCH = 500
EVERY_S = 0.75


class Sweep(Work):
    """Sweeps one group of partitions every `EVERY_S`."""

    def __init__(self, run: Runtime, group: int) -> None:
        self._run, self._group = run, group
        self._next = 0.0

    def step(self, wait_s: float) -> int:
        left = self._next - time.monotonic()
        if left > 0:
            stopping.wait(min(left, wait_s))
            return 0
        self._next = time.monotonic() + EVERY_S
        try:
            return sweep_once(self._run, self._group)
        except RedisError as error:
            log.warning("sweep", extra={"group": self._group, "why": str(error)})
            return 0


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
    for partition in run.partitions(group):
        while True:
            args = [now, BATCH, settings.tuning(began, ended)]
            views, looked = run.call(script, [keys.deadlines(partition), keys.outbox(partition)], args)
            total += views
            if looked < BATCH:
                break
    return total
