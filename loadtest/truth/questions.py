"""What the engine is asked when a simulation is over: all view records, every resume position, its metrics, a recount."""

from __future__ import annotations

import asyncio
import time
from urllib.parse import quote, urlencode

import orjson

from loadtest.bench_rig import BenchError
from loadtest.http1 import Pool
from loadtest.truth.conservation import parse, total
from loadtest.truth.deployment import Deployment
from loadtest.truth.figures import TIMES
from loadtest.truth.score import Answers, Position
from loadtest.truth.truth import Truth

DRAIN_MS = TIMES.lifetime + 10_000
"""After the last heartbeat every stream that is not paused has ended, and the totals know."""
DAY_MS, HOUR_MS = 86_400_000, 3_600_000
AT_ONCE = 32
METRICS_EVERY_S, METRICS_WAIT_S = 6.0, 30.0


def ask(deployed: Deployment, truth: Truth) -> Answers:
    """Lets all streams run out, waits until everything is where it belongs, and asks. Raises BenchError."""
    deployed.move(deployed.now() + DRAIN_MS)
    deployed.settle()
    titles = {
        (view.account, view.profile or "", view.content)
        for views in truth.views.values()
        for view in views
        if view.kind == "vod"
    }
    differences = deployed.verify_audience()
    return asyncio.run(_ask(deployed, truth.run.spans, sorted(titles), differences))


async def _ask(
    deployed: Deployment, spans: list[tuple[int, int]], titles: list[tuple[str, str, str]], differences: list[str]
) -> Answers:
    pool = Pool(deployed.base, most=AT_ONCE, timeout_s=60)
    try:
        records = await _records(pool, deployed.token, spans)
        positions: list[Position] = []
        for at in range(0, len(titles), AT_ONCE):
            some = titles[at : at + AT_ONCE]
            positions += await asyncio.gather(*(_position(pool, deployed.token, *each) for each in some))
        metrics = await _metrics(pool, deployed.token)
    finally:
        pool.close()
    return Answers(records, positions, metrics, differences)


async def _metrics(pool: Pool, token: str) -> str:
    """`/metrics`, once its figures of the background work are of after the run: they are taken every 5 s of real time."""
    deadline = time.monotonic() + METRICS_WAIT_S
    await asyncio.sleep(METRICS_EVERY_S)
    while True:
        answer = await pool.send("GET", "/metrics", token=token)
        if answer.status != 200:
            raise BenchError(f"GET /metrics: {answer.status}")
        text = answer.body.decode()
        found = parse(text)
        lag = total(found, "pulsegate_mirrored_events") - total(found, "pulsegate_handled_events", consumer="lake")
        if not lag or time.monotonic() > deadline:
            return text
        await asyncio.sleep(0.5)


async def _records(pool: Pool, token: str, spans: list[tuple[int, int]]) -> list[dict[str, object]]:
    """Every view record of the run, page by page; the API gives a day at a time."""
    records: list[dict[str, object]] = []
    for begin, end in spans:
        # A view may have begun before the first tick: evidence counts from when it happened.
        for first in range(begin - HOUR_MS, end + HOUR_MS, DAY_MS):
            cursor: str | None = ""
            span = {"from": first, "to": min(first + DAY_MS, end + HOUR_MS), "limit": 500}
            while cursor is not None:
                query = urlencode(span | ({"cursor": cursor} if cursor else {}))
                answer = await pool.send("GET", f"/v1/views?{query}", token=token)
                if answer.status != 200:
                    raise BenchError(f"GET /v1/views: {answer.status} {answer.body[:500].decode(errors='replace')}")
                page = orjson.loads(answer.body)
                records += page["items"]
                cursor = page["next"]
    return records


async def _position(pool: Pool, token: str, account: str, profile: str, content: str) -> Position:
    query = urlencode({"account": account, "profile": profile})
    answer = await pool.send("GET", f"/v1/resume/{quote(content, safe='')}?{query}", token=token)
    if answer.status not in (200, 404):
        raise BenchError(f"GET /v1/resume/{content}: {answer.status} {answer.body[:500].decode(errors='replace')}")
    return Position(account, profile, content, orjson.loads(answer.body) if answer.status == 200 else None)
