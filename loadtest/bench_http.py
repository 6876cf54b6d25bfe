"""Heartbeats a second of one API process on one core, beside the ceiling (bare ASGI) and the peer (plain redis-py)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from loadtest.bench_load import Load, Player, heartbeat_json, token, wrk
from loadtest.bench_replay import DEVICE, LIFETIME_MS, SESSION, Captured, capture
from loadtest.bench_rig import (
    DURABLE,
    SECRET,
    BenchError,
    Place,
    Spread,
    Valkey,
    Web,
    api,
    check_fast,
    uvicorn,
    valkey,
)
from loadtest.bench_table import Row

ACCOUNTS = 2_000
CONNECTIONS = 64
SCRIPT = Path(__file__).with_name("bench_wrk.lua")
WARM_UP_S = 3.0
"""Long enough for every account to have its session and its token verified."""
_FIRST_SEQ, _SEQS_A_RUN = 1_000_000_000, 1_000_000
_DECISIONS = re.compile(rb'^pulsegate_decisions_total\{outcome="(\w+)".*\} ([0-9.e+]+)$', re.MULTILINE)


@dataclass
class Series:
    """Repetitions of one server under load."""

    per_s: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)

    def add(self, load: Load, cpu_s: float | None) -> None:
        self.per_s.append(load.per_s)
        self.p50_ms.append(load.p50_ms)
        self.p99_ms.append(load.p99_ms)
        if cpu_s is not None:
            self.cpu_us.append(cpu_s / load.requests * 1e6)
            self.busy.append(cpu_s / load.seconds)


class Beats:
    """wrk's heartbeats: 2,000 accounts in turn, each with a `seq` above all it has sent before."""

    def __init__(self, place: Place) -> None:
        self._accounts = place.directory / "accounts"
        self._accounts.write_text(
            "".join(f"{token(f'acct-{n:07d}')} {SESSION % n} {DEVICE % n}\n" for n in range(ACCOUNTS))
        )
        self._turn = 0

    def send(self, port: int, seconds: float, core: int | None) -> Load:
        """One run of wrk on that core. Raises BenchError for any answer but 2xx."""
        self._turn += 1
        first = str(_FIRST_SEQ + self._turn * _SEQS_A_RUN)
        load = wrk(port, SCRIPT, seconds, CONNECTIONS, core, str(self._accounts), first)
        if load.failed:
            raise BenchError(f"{load.failed} of {load.requests} answers were no 2xx")
        return load


def measure(place: Place, *, quick: bool) -> tuple[list[Row], dict[str, object]]:
    """Alternates the three servers under the same load. Raises BenchError for any answer but a fresh allow."""
    repetitions, seconds = (3, 2.0) if quick else (7, 4.0)
    with valkey(place, place.others, DURABLE) as server:
        captured = capture(server, place, place.mine)
        server.know_outboxes(captured.outboxes())
        with (
            api(place, place.mine, server.url, PULSEGATE_LIFETIME_MS=LIFETIME_MS) as real,
            uvicorn("loadtest.baseline.bare:app", place, place.mine, {"BENCH_ANSWER": answer_of(real)}) as bare,
            uvicorn("loadtest.baseline.plain:app", place, place.mine, peer_env(server, captured)) as plain,
        ):
            return _alternate(place, server, {"bare": bare, "plain": plain, "api": real}, repetitions, seconds)


def peer_env(server: Valkey, captured: Captured) -> dict[str, str]:
    """What the plain application is told."""
    call = json.dumps([part.decode() for part in captured.argv])
    tags = json.dumps([tag.decode() for tag in captured.tags])
    return {"BENCH_REDIS": server.url, "BENCH_CALL": call, "BENCH_TAGS": tags, "BENCH_SECRET": SECRET}


def answer_of(real: Web) -> str:
    """What the API answers to one of wrk's heartbeats, byte for byte as long."""
    player = Player(real.port)
    answer = player.beat(token("acct-bare"), heartbeat_json(SESSION % 1, DEVICE % 1, _FIRST_SEQ, 1000.5))
    player.close()
    return answer.decode()


def _alternate(
    place: Place, server: Valkey, webs: dict[str, Web], repetitions: int, seconds: float
) -> tuple[list[Row], dict[str, object]]:
    beats = Beats(place)
    series = {name: Series() for name in webs}
    redis_us: list[float] = []
    for repetition in range(-1, repetitions):
        for name, web in webs.items():
            server.empty_outboxes()
            server.reset()
            before, cpu = allowed(web) if name == "api" else 0, web.process.cpu_s()
            load = beats.send(web.port, WARM_UP_S if repetition < 0 else seconds, place.others)
            after, calls = web.process.cpu_s(), server.settled()
            if name == "api":
                check_count("allow decisions", allowed(web) - before, load)
            if repetition < 0:
                continue
            if name != "bare":
                check_count("events", server.empty_outboxes(), load)
                check_fast(calls)
                if name == "api":
                    redis_us.append(calls["evalsha"][1])
            series[name].add(load, None if cpu is None or after is None else after - cpu)
    return _rows(series, redis_us)


def allowed(web: Web) -> int:
    """Allow decisions so far. Raises BenchError if there were others."""
    counts: dict[bytes, int] = {}
    for outcome, count in _DECISIONS.findall(web.get("/metrics")[1]):
        counts[outcome] = counts.get(outcome, 0) + int(float(count))
    if counts.keys() - {b"allow"}:
        raise BenchError(f"decisions other than allow: {counts}")
    return counts.get(b"allow", 0)


def check_count(what: str, counted: int, load: Load) -> None:
    """wrk does not count the requests under way when it stops, one a connection at most."""
    if not load.requests <= counted <= load.requests + CONNECTIONS:
        raise BenchError(f"{counted} {what} for {load.requests} heartbeats")


def _rows(series: dict[str, Series], redis_us: list[float]) -> tuple[list[Row], dict[str, object]]:
    rate = {name: Spread(tuple(s.per_s)) for name, s in series.items()}
    ratio = rate["api"].over(rate["bare"])
    rows = [
        Row("bare ASGI, same answer (the ceiling)", rate["bare"].text(0), "req/s"),
        Row(
            "plain Starlette + redis-py (the peer)",
            rate["plain"].text(0),
            "req/s",
            ratio=rate["plain"].over(rate["bare"]).text(2),
        ),
        Row(
            "heartbeats/s, one API process, one core",
            rate["api"].text(0),
            "req/s",
            ratio=ratio.text(2),
            goal="≥ 0.50 of bare",
            met=ratio.median >= 0.5,
        ),
    ]
    if all(s.cpu_us for s in series.values()):
        cpu = {name: Spread(tuple(s.cpu_us)) for name, s in series.items()}
        rows += [
            Row(f"CPU per request, {name}", cpu[name].text(1), "µs", ratio=cpu["bare"].over(cpu[name]).text(2))
            for name in ("bare", "plain")
        ]
        ratio = cpu["bare"].over(cpu["api"])
        rows.append(
            Row("CPU per request, api", cpu["api"].text(1), "µs", ratio.text(2), "≥ 0.50 of bare", ratio.median >= 0.5)
        )
        rows += [Row(f"its core in use, {name}", Spread(tuple(s.busy)).text(2), "cores") for name, s in series.items()]
    rows += [
        Row(f"p99 at {CONNECTIONS} connections, {name}", Spread(tuple(s.p99_ms)).text(1), "ms")
        for name, s in series.items()
    ]
    rows.append(Row("Redis per heartbeat under this load", Spread(tuple(redis_us)).text(1), "µs"))
    return rows, {name: vars(s) for name, s in series.items()} | {"redis_us": redis_us}
