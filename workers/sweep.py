"""The sweep: a little more often than once a second, ends the views of every partition whose deadline has passed.

While all API processes are away nothing is swept: silence is then our fault, not the players'.

After a mass exit there is more to end than one round has time for, and heartbeats must not wait for it. So calls are short
(`BATCH`), and a round is done in steps (`STEP_S`), between which the group's ownership is renewed.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from redis.exceptions import RedisError, ResponseError

from engine import scripts
from workers.runtime import Runtime
from workers.tenure import Work, stopping
from workers.troubles import Troubles, own

log = logging.getLogger(__name__)

BATCH = 40
"""Accounts that one call looks at, at most. Redis takes about 50 µs for one whose view ends (20 µs for one that lives), does nothing
else meanwhile, and between two calls takes only 16 KB, some 25 heartbeats, from each API process's connection. So this is how
long a heartbeat waits, and also how many of them a second get through while views end in great numbers."""
EVERY_S = 0.75
STEP_S = 0.5
"""Work of one step: well below `OWNER_MS`, or a second tenure would begin beside this one; and an outage of the API that
begins meanwhile is known to the next step."""


class Sweep(Work):
    """Sweeps one group of partitions every `EVERY_S`, or without a pause where one round takes longer."""

    def __init__(self, run: Runtime, group: int) -> None:
        self._run = run
        self._partitions = run.partitions(group)
        # A tenure that hands over in the middle of a round must not leave the same partitions to the next each time.
        start = random.randrange(len(self._partitions)) if self._partitions else 0
        self._partitions = self._partitions[start:] + self._partitions[:start]
        self._round: deque[int] = deque()
        self._next = 0.0

    def step(self, wait_s: float) -> int:
        if not self._round:
            left = self._next - time.monotonic()
            if left > 0:
                stopping.wait(min(left, wait_s))
                return 0
            self._next = time.monotonic() + EVERY_S
            self._round.extend(self._partitions)
        try:
            return _sweep(self._run, self._round, "", STEP_S)
        except RedisError as error:
            log.warning("sweep", extra={"partitions": len(self._round), "why": str(error)})
            self._round.clear()
            return 0


def sweep_once(run: Runtime, group: int, now: Any = "", partitions: Sequence[int] | None = None) -> int:
    """Sweeps the group's partitions (or these of them); returns the number of views ended. Nothing while no API process lives."""
    return _sweep(run, deque(run.partitions(group) if partitions is None else partitions), now)


def _sweep(run: Runtime, partitions: deque[int], now: Any, seconds: float | None = None) -> int:
    """Sweeps these, each as often as it has more than one batch, and takes those that are done from the queue; at most for so
    long. Returns the number of views ended. Nothing while no API process lives."""
    settings, keys = run.settings, run.keys
    until = None if seconds is None else time.monotonic() + seconds
    began, ended, live, _ = run.call(
        scripts.load("announce"),
        [keys.processes, keys.outage],
        [now, "", "", 0, settings.gone_after_ms, settings.lifetime_ms, 0],
    )
    if live == 0:
        partitions.clear()
        return 0
    total, troubles = 0, Troubles(run.log, keys, "sweep")
    script = scripts.load("sweep")
    args = [now, BATCH, settings.tuning(began, ended)]
    while partitions and (until is None or time.monotonic() < until):
        partition = partitions[0]
        try:
            views, looked, bad, why = run.call(script, [keys.deadlines(partition), keys.outbox(partition)], args)
        except ResponseError as error:
            if not own(error):
                raise
            views, looked, bad, why = 0, 0, 1, error
        total += views
        if bad:
            troubles.note("sessions", why, bad)
        if looked < BATCH:
            partitions.popleft()
    return total
