"""Maintenance: trims the event log behind those who need it, lets projections and sinks forget what is past its use, and
ends the views that the log has started and the session Redis has forgotten.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from redis.exceptions import RedisError

from engine.events import TOPICS, is_id, order
from workers import consumer
from workers.consume import live_generation
from workers.lost import Lost
from workers.runtime import Runtime
from workers.sinks import build, configured
from workers.tenure import Ownership, Work, stopping
from workers.troubles import Troubles

log = logging.getLogger(__name__)

TRIM_EVERY_S = 5.0
TIDY_EVERY_S = 12.0
"""As often as a lake that is written every 2 s has files enough to merge (engine/lake/compact.py)."""
_SEQ_MAX = 2**64 - 1


class _Clock:
    """When this process did it last: a turn is shorter than that."""

    trim_at = tidy_at = 0.0


class Maintain(Work):
    """All partitions; one tenure at a time in a deployment."""

    def __init__(self, run: Runtime, ownership: Ownership) -> None:
        self._run, self._owner = run, ownership
        self._lost = Lost(run)

    def step(self, wait_s: float) -> int:
        moment = time.monotonic()
        if moment >= _Clock.trim_at:
            _Clock.trim_at = moment + TRIM_EVERY_S
            return trim(self._run) + self._lost.end()
        if moment >= _Clock.tidy_at:
            _Clock.tidy_at = moment + TIDY_EVERY_S
            self._tidy()
            return 1
        stopping.wait(wait_s)
        return 0

    def _tidy(self) -> None:
        now = int(time.time() * 1000)
        for name in consumer.names():
            self._tidy_one(name, now)
        for name, cls in configured(self._run.settings).items():
            if (sink := build(cls, self._run.settings)) is not None:
                self._kept(name, sink.tidy, now)

    def _tidy_one(self, name: str, now: int) -> None:
        space = self._run.keys.projection(name, live_generation(self._run, name))
        self._kept(name, lambda at: consumer.load(name)(self._run.log, space, self._run.settings).tidy(at), now)

    def _kept(self, name: str, tidy: Callable[[int], None], now: int) -> None:
        """One plug-in that fails keeps no other from being tidied."""
        try:
            tidy(now)
        except RedisError:
            raise
        except Exception:
            log.exception("tidy", extra={"plugin": name})
        self._owner.renew()


def trim(run: Runtime) -> int:
    """Trims each partition's log behind the slowest projection and the lake, and no younger than `log_keep_s`.

    Others that lag find noted how far it was trimmed and go on from the lake. Returns how many events went.
    """
    seconds, micros = run.log.time()
    young = (int(seconds) - run.settings.log_keep_s) * 1000 + int(micros) // 1000
    keys = run.keys
    reached = _reached(run)
    with run.log.pipeline(transaction=True) as pipe:
        for partition, id_ in reached.items():
            ms, seq = order(id_)
            if ms >= young:
                ms, seq = young - 1, _SEQ_MAX
            pipe.hset(keys.trimmed, str(partition), f"{ms}-{seq}")
            for topic in TOPICS:
                pipe.xtrim(keys.log(partition, topic), minid=f"{ms}-{seq + 1}" if seq < _SEQ_MAX else f"{ms + 1}-0")
        answers = pipe.execute(raise_on_error=False)
    Troubles(run.log, run.keys, "maintain").check(answers, "logs that are to be trimmed")
    return sum(int(n) for at, n in enumerate(answers) if at % (1 + len(TOPICS)) and isinstance(n, int))


def _reached(run: Runtime) -> dict[int, str]:
    """Up to where each partition's log is no longer needed: by our own projections and the lake, from which all others go on;
    without a lake, by every consumer and sink."""
    partitions = range(run.settings.partitions)
    needs: list[dict[int, str]] = []
    for name in consumer.names(built_in=bool(run.settings.lake_dir)):
        needs.append(_cursor(run, name, live_generation(run, name)))
    sinks = {name: build(cls, run.settings) for name, cls in configured(run.settings).items()}
    own = {name: sink.positions() for name, sink in sinks.items() if sink is not None}
    kept = [positions for positions in own.values() if positions is not None]
    needs += kept or [_cursor(run, name, 0) for name in own]
    return {
        p: min((positions[p] for positions in needs), key=order)
        for p in partitions
        if all(p in positions for positions in needs)
    }


def _cursor(run: Runtime, name: str, generation: int) -> dict[int, str]:
    found: Any = run.log.hgetall(run.keys.cursor(name, generation))
    return {int(p): id_.decode() for p, id_ in found.items() if p.isdigit() and is_id(id_)}
