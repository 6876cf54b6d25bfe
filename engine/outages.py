"""Outages of our own, and what a process must look at about once a second.

API processes announce themselves; one that vanishes, all of them being away, or a jump of the server's clock is an
outage: leases and deadlines alive when it began live one more lifetime after it ended. The judgement is made in
`lua/announce.lua`; each process keeps the result and hands it to every script.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from engine import scripts
from engine.errors import PulsegateError
from engine.keys import Keys
from engine.scripts import Arg, Executor
from engine.settings import Settings

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Outage:
    """The last outage (ms; 0 if none), how many API processes live, and which partitions are thinned."""

    began: int = 0
    ended: int = 0
    processes: int = 0
    thin: frozenset[str] = field(default_factory=frozenset)
    full: bool = False
    """Whether Redis has little memory left: what decides nothing is not written (engine/watch.py)."""
    skipped: int = 0
    """Heartbeats left out since the metrics were last told."""

    def thinned(self, base: str) -> bool:
        """Whether plain heartbeats of a partition are not appended now. Whoever asks leaves one out."""
        if base not in self.thin:
            return False
        self.skipped += 1
        return True


class Announcer:
    """Announces one process and keeps its `Outage` current. A process without a name (a worker) only reads."""

    def __init__(
        self, executor: Executor, keys: Keys, settings: Settings, outage: Outage, *, reads_only: bool = False,
        now: Callable[[], Arg] = lambda: "", monotonic: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.name = "" if reads_only else uuid.uuid4().hex
        self._executor = executor
        self._keys = keys
        self._settings = settings
        self._outage = outage
        self._now = now
        self._monotonic = monotonic
        self._last: float | None = None
        self._script = scripts.load("announce")

    async def announce(self, *, leaving: bool = False) -> None:
        """One announcement. Raises Unavailable."""
        moment = self._monotonic()
        elapsed: Arg = "" if self._last is None else int((moment - self._last) * 1000)
        reply = await self._executor.run(
            self._script,
            (self._keys.processes, self._keys.outage),
            (
                self._now(),
                self.name,
                elapsed,
                1 if leaving else 0,
                self._settings.gone_after_ms,
                self._settings.lifetime_ms,
                self._executor.away_ms(),
            ),
            unsettled=True,
        )
        await self._executor.settle()
        self._last = moment
        self._outage.began, self._outage.ended, self._outage.processes = (int(value) for value in reply[:3])


async def every(seconds: float, *steps: Callable[[], Awaitable[None] | None]) -> None:
    """Runs the steps for ever, one after another; one that fails is logged and tried again next time."""
    while True:
        for step in steps:
            try:
                result = step()
                if result is not None:
                    await result
            except PulsegateError as error:
                log.warning("tick", extra={"step": step.__name__, "why": error.message})
            except Exception:
                log.exception("tick", extra={"step": step.__name__})
        await asyncio.sleep(seconds)


async def cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
