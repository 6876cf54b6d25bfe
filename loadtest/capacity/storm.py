"""The reconnect storm: at half capacity the API is killed, is away for a minute, and comes back to all its players at once.

A whole deployment, on all cores there are: API, workers, scheduler, lake, two Redis servers, and the players besides. What became of
the views is read where the engine keeps it: every start and end in the event log, and a sample through `GET /v1/views`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import time
from dataclasses import replace

import uvloop

from loadtest.bench_rig import BenchError, Place, Web, unpinned
from loadtest.capacity.crowd import PLAIN
from loadtest.capacity.deployment import Deployment
from loadtest.capacity.herd import Herd
from loadtest.capacity.measure import Options, Say, all_come, find_knee
from loadtest.capacity.rig import Stage, generator
from loadtest.capacity.verdict import Plan, Result, views_of
from loadtest.http1 import Pool

CONNECTIONS = 2_000
SAMPLE = 200
_SAMPLE_S = 20.0


def run(place: Place, plan: Plan, options: Options, say: Say) -> Result:
    """Raises BenchError if a part does not start, or the players' requests fail before there is any outage."""
    with unpinned(place) as free:
        if not plan.rate:
            plan = replace(plan, rate=_half_of_the_knee(free, plan, options, say))
        with Deployment(free, plan) as deployment:
            count = plan.players or max(2, round(plan.rate * plan.interval_s))
            plan = replace(plan, rate=count / plan.interval_s)
            say(
                f"{count:,} players beat every {plan.interval_s:g} s: {plan.rate:,.0f} heartbeats/s, two to an account with two slots"
            )
            return uvloop.run(_Storm(deployment, plan, count, say).run())


def _half_of_the_knee(place: Place, plan: Plan, options: Options, say: Say) -> float:
    """Heartbeats/s: of the same deployment, workers at work, on the same cores; looked for with less precision."""
    options = replace(
        options, mix=dict(PLAIN), precision=max(options.precision, 0.15), seconds=min(options.seconds, 3.0)
    )
    with Deployment(place, plan) as deployment, generator(None, options.players, options.mix, options.late_ms) as load:
        stage = Stage(place, deployment.session, Web(deployment.process, deployment.port), load, options.mix)
        all_come(stage, options)
        found = find_knee(stage, options, say)
        say(f"the knee of the whole deployment here: {found.per_s:,.0f} heartbeats/s ({found.why})")
        return found.per_s / 2


class _Storm:
    def __init__(self, deployment: Deployment, plan: Plan, count: int, say: Say) -> None:
        self._deployment, self._plan, self._count, self._say = deployment, plan, count, say

    async def run(self) -> Result:
        plan, deployment = self._plan, self._deployment
        pool = Pool(f"http://127.0.0.1:{deployment.port}", most=min(CONNECTIONS, max(64, self._count // 4)))
        herd = Herd(self._count, plan.interval_s, pool)
        gc.collect()
        gc.freeze()
        gc.disable()  # its pauses would be mistaken for the API's
        # All have joined after two intervals and a bit.
        killed = herd.timeline.zero = time.perf_counter() + 2.5 * plan.interval_s + plan.before_s
        try:
            herd.start()
            await self._wait(herd, killed - time.perf_counter())
            if sum(herd.seen.wrong.values()) > self._count / 100:
                raise BenchError(f"wrong answers before any outage: {dict(herd.seen.wrong)}; {herd.seen.said}")
            killed_at = time.time()
            herd.away()
            deployment.kill()
            self._say(f"API killed; away for {plan.outage_s:g} s")
            await self._wait(herd, killed + plan.outage_s - time.perf_counter())
            await asyncio.to_thread(deployment.start)
            back = time.perf_counter() - killed
            herd.back(plan.at_once_s)
            self._say(f"API back after {back:.1f} s; all reconnect within {plan.at_once_s:g} s")
            await self._wait(herd, plan.after_s)
            waiting, until = herd.waiting(), time.time()
            seen, timeline = herd.judged()
            sampled = await self._sample(herd, killed_at)
            herd.check()
        finally:
            herd.stop()
            pool.close()
            gc.enable()
        # What ends after they were sent home ends rightly.
        views = await asyncio.to_thread(lambda: views_of(deployment.events(), herd.players, herd.others, until * 1000))
        first = -max(1, int(plan.before_s))
        normal = timeline.normal((first, 0), back, plan.normal_ms)
        return Result(plan, seen, timeline, normal, views, sampled, len(herd.players), waiting, back)

    async def _wait(self, herd: Herd, seconds: float) -> None:
        until = time.perf_counter() + seconds
        while (left := until - time.perf_counter()) > 0:
            await asyncio.sleep(min(left, 0.5))
            herd.check()

    async def _sample(self, herd: Herd, killed_at: float) -> tuple[int, int]:
        """(asked, wrong): views of some players by the API, while all go on: one each, running, begun before the outage."""
        chosen = random.Random(2).sample(herd.players, min(SAMPLE, len(herd.players)))
        # A few connections of its own: players do not wait for it.
        pool = Pool(f"http://127.0.0.1:{self._deployment.port}", most=4)
        deadline, wrong = time.perf_counter() + _SAMPLE_S, list(chosen)
        while wrong and time.perf_counter() < deadline:
            answers = await asyncio.gather(
                *(pool.send("GET", f"/v1/views?session={player.session}", token=player.token) for player in wrong)
            )
            wrong = [
                player for player, answer in zip(wrong, answers, strict=True)
                if answer.status != 200 or not _same_view(json.loads(answer.body)["items"], killed_at)
            ]  # fmt: skip
            if wrong:
                # What is asked of comes from the log, which may be a little behind.
                await asyncio.sleep(0.5)
        pool.close()
        return len(chosen), len(wrong)


def _same_view(items: list[dict[str, object]], killed_at: float) -> bool:
    if len(items) != 1:
        return False
    view = items[0]
    started = view["started_at"]
    return isinstance(started, (int, float)) and view.get("ended_at") is None and started < killed_at * 1000
