"""What `make capacity` prints, and the same as JSON."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from pathlib import Path

from loadtest.bench_rig import Spread, cores
from loadtest.bench_table import Row, table
from loadtest.capacity import measure
from loadtest.capacity.measure import Background, Front, Options
from loadtest.capacity.sizing import VIEWERS, Assumed, Costs, arithmetic, sheet, size, to_json

GOAL_HALF = 3.0


def machine() -> str:
    """What it runs on."""
    mine, others = cores()
    pinned = "not pinned" if mine is None else f"API on core {mine}, the rest on core {others}"
    return f"{platform.system()} {platform.machine()}, {_cpu()}, {os.cpu_count()} cores; {pinned}; Python {platform.python_version()}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown processor"
    )


def costs(front: Front, back: Background) -> Costs:
    """CPU of API and Redis are those of the knee, where they are busiest; bytes of Redis too."""
    at = front.knee.at
    if at is None:
        raise ValueError("front: there is no knee in it")
    return Costs(
        front.knee_per_s, max(at.api_us, 0.1), max(at.redis_us, 0.1), max(back.log_us.median, 0.1), max(back.worker_us.median, 0.1),
        max(front.session_bytes, 1.0), max(front.outbox_bytes, 1.0), max(back.log_bytes.median, 1.0), sum(front.http_bytes), max(at.redis_bytes, 1.0),
        max(back.work_bytes.median, 1.0),
    )  # fmt: skip


def sizes(front: Front, back: Background, assumed: Assumed, options: Options) -> tuple[str, dict[str, object]]:
    """(text, JSON)."""
    found = costs(front, back)
    table_of = [size(viewers, found, assumed) for viewers in VIEWERS]
    parts = [
        "",
        table("The knee, and what a heartbeat costs", rows(front, back, options)),
        "From this, step by step",
        arithmetic(found, assumed, at_least=front.knee.at_least),
        "",
        table("Sizing", [sheet(table_of)]),
    ]
    raw: dict[str, object] = {"machine": machine(), "options": _plain(options)}
    return "\n".join(parts), raw | measure.to_json(front, back) | {"sizing": to_json(found, assumed, table_of)}


def _plain(options: Options) -> dict[str, object]:
    return asdict(options) | {"mix": dict(options.mix)}


def rows(front: Front, back: Background, options: Options) -> list[Row]:
    knee, at = front.knee, front.knee.at
    assert at is not None
    more = "≥ " if knee.at_least else ""
    busy = at.api_us * at.achieved_per_s * front.heartbeat_share / 1e6
    ours, bare = front.half.p99_ms
    ratio = front.half.ratio
    sent, got = front.http_bytes
    return [
        Row("heartbeats/s of one API core, percentiles in order", f"{more}{front.knee_per_s:,.0f}", "/s", "", knee.why),
        Row(f"  with stops and checks; p99 there, from due (broken above {options.goal.p99_ms:g} ms)", f"{knee.per_s:,.0f}; {at.p99_ms:.1f}", "/s; ms"),
        Row("  its core in use there", f"{busy:.2f}", "cores"),
        Row("  CPU of the API", f"{at.api_us:.1f}", "µs", f"{1e6 / max(at.api_us, 1e-9):,.0f}/s a core"),
        Row("  CPU of the session Redis", f"{at.redis_us:.1f}", "µs", f"{1e6 / max(at.redis_us, 1e-9):,.0f}/s a core"),
        Row("CPU of all workers", back.worker_us.text(1), "µs", f"{1e6 / back.worker_us.median:,.0f}/s a core"),
        Row("  with nothing to do", f"{back.idle_cores:.2f}", "cores"),
        Row("CPU of the log Redis", back.log_us.text(1), "µs", f"{1e6 / back.log_us.median:,.0f}/s a core"),
        Row(f"session Redis: bytes a session, of {options.players:,}", f"{front.session_bytes:,.0f}", "B"),
        Row("  and a heartbeat in the outbox", f"{front.outbox_bytes:,.0f}", "B"),
        Row("log Redis: bytes a heartbeat", back.log_bytes.text(0), "B"),
        Row("player → API; API → player", f"{sent:,.0f}; {got:,.0f}", "B"),
        Row("API ↔ session Redis; workers ↔ both Redis", f"{at.redis_bytes:,.0f}; {back.work_bytes.median:,.0f}", "B"),
        Row(f"p50 at half of the knee, {front.half.per_s:,.0f} requests/s: API; bare ASGI", _p50s(front), "ms"),
        Row("  p99: API; bare ASGI (medians of the rounds)", f"{ours:.2f}; {bare:.2f}", "ms", f"{ours / max(bare, 1e-3):.2f}",
            f"≤ {GOAL_HALF:g} of bare", ours <= GOAL_HALF * bare),
        Row("  ratio of p99 by rounds", ratio.text(2), ""),
    ]  # fmt: skip


def _p50s(front: Front) -> str:
    ours, bare = (Spread(tuple(p50 for p50, _ in each)).median for each in (front.half.ours, front.half.bare))
    return f"{ours:.2f}; {bare:.2f}"
