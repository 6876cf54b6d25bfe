"""In a simulation: does what is due by the virtual clock, when the API says that it has moved (`api/clock.py`).

One process stands in for the tenures `sweep` and `trending`. It owns what they would own, so that of several only one is at work,
and `pulsegate status` shows it. A question asked twice is answered twice and done once.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import orjson
from redis.exceptions import RedisError

from engine.stopping import Stop
from workers.runtime import Runtime
from workers.sweep import sweep_once
from workers.tenure import LostOwnership, Ownership
from workers.trending import Trending
from workers.troubles import Troubles, own

log = logging.getLogger(__name__)

TICK_MS = 250
"""As in `lua/lib/account.lua`."""
WAIT_S = 0.5
"""Longest wait for a question: well below an ownership's life, and how long a stop may take."""


class Hands:
    """Does what is due. `done` remembers until when, by name."""

    def __init__(self, run: Runtime, trending: Trending) -> None:
        self._run, self._trending = run, trending
        self._done: dict[str, int] = {}

    def do(self, name: str, at: int) -> None:
        """Raises LostOwnership and redis-py's errors; ValueError for what nobody knows."""
        if at <= self._done.get(name, 0):
            return
        match name:
            case "sweep":
                self._sweep(at)
            case "claim":
                self._trending.claim()
            case "publish":
                self._trending.publish(at)
            case _:
                raise ValueError(f"nothing is called {name!r}")
        self._done[name] = at

    def _sweep(self, at: int) -> None:
        """Only where the script would find somebody: a simulation asks for thousands of sweeps of a second."""
        run = self._run
        every = range(run.settings.partitions)
        with run.session.pipeline(transaction=False) as pipe:
            for partition in every:
                pipe.zrange(run.keys.deadlines(partition), 0, 0)
            first: list[Any] = pipe.execute(raise_on_error=False)
        if overdue := [p for p in every if first[p] and _due(first[p], at)]:
            sweep_once(run, 0, at, overdue)


def _due(first: Any, at: int) -> bool:
    """Whether a partition's first tick is due; what is none is for the sweep to say."""
    if isinstance(first, Exception):
        if not own(first):
            raise first
        return True
    return not first[0].isdigit() or int(first[0]) * TICK_MS <= at


def follow(run: Runtime, stop: Stop) -> None:
    """Follows the clock until `stop` is set."""
    while not stop.is_set():
        try:
            with _owned(run) as owned:
                if owned:
                    _serve(run, stop, owned)
                else:
                    stop.wait(WAIT_S)
        except LostOwnership as error:
            log.warning("clock", extra={"why": f"another took {error}"})
        except (RedisError, OSError) as error:
            log.warning("clock", extra={"why": str(error)})
            stop.wait(WAIT_S)


@contextlib.contextmanager
def _owned(run: Runtime) -> Iterator[list[Ownership]]:
    """Ownership of trending (first) and of every group's sweep; none if another has them."""
    wanted = [Ownership(run, "trending", 0), *(Ownership(run, "sweep", g) for g in range(run.settings.groups))]
    taken: list[Ownership] = []
    try:
        for each in wanted:
            if not each.acquire():
                break
            taken.append(each)
        yield taken if len(taken) == len(wanted) else []
    finally:
        for each in taken:
            with contextlib.suppress(RedisError):
                each.release()


def _serve(run: Runtime, stop: Stop, owned: list[Ownership]) -> None:
    trending = Trending(run, owned[0])
    hands = Hands(run, trending)
    try:
        while not stop.is_set():
            found: Any = run.log.blpop([run.keys.clock_asked], timeout=WAIT_S)
            for each in owned:
                each.renew()
            if found is not None:
                if (asked := _asked(found[1])) is not None:
                    _answer(run, hands, asked)
                else:
                    Troubles(run.log, run.keys, "clock").note("questions", found[1])
    finally:
        trending.close()


def _asked(text: bytes) -> dict[str, Any] | None:
    """None if it is no question of `api/clock.py`'s."""
    try:
        asked = orjson.loads(text)
        return {"id": asked["id"], "due": [(at, name) for at, name in asked["due"]]}
    except (ValueError, KeyError, TypeError):
        return None


def _answer(run: Runtime, hands: Hands, asked: dict[str, Any]) -> None:
    """Does what was asked and says so, or why not. Raises LostOwnership and redis-py's errors."""
    error = ""
    try:
        for at, name in asked["due"]:
            hands.do(name, at)
    except (LostOwnership, RedisError, OSError) as found:
        error = f"{type(found).__name__}: {found}"
        raise
    except Exception as found:
        # A mistake of ours, which the next question need not suffer from.
        log.exception("clock")
        error = f"{type(found).__name__}: {found}"
    finally:
        run.log.rpush(run.keys.clock_answered, orjson.dumps({"id": asked["id"], "error": error}))
