"""Side by side: the same heartbeats for bare ASGI, an empty script call, the plain peer, and the API in each way it is run.

One run of wrk after the other, the things compared in turns, so every ratio is of neighbours in time. Each line stands
beside its ceiling: with one process bare ASGI with one, with two bare ASGI with two; and whatever asks Redis also
beside bare ASGI that makes one empty script call a request by the cheapest client there can be (baseline/empty.py).
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtest import plots
from loadtest.bench_cluster import Cluster, cluster
from loadtest.bench_http import ACCOUNTS, WARM_UP_S, Beats, allowed, answer_of, check_count, peer_env
from loadtest.bench_load import Load
from loadtest.bench_replay import LIFETIME_MS, capture
from loadtest.bench_rig import (
    DURABLE,
    UVICORN,
    BenchError,
    Place,
    Spread,
    Valkey,
    Web,
    api,
    check_fast,
    cpu_below,
    free_port,
    unpinned,
    uvicorn,
    valkey,
    web,
)
from loadtest.bench_steady import steady
from loadtest.bench_table import Row, Sheet
from loadtest.bench_workers import Workers, workers

BARE, EMPTY, PLAIN = "bare ASGI", "bare ASGI + empty EVALSHA", "plain Starlette + redis-py"
API, CLUSTER, WORKERS = "API, one node", "API, three-node cluster", "API, workers on"
BARE_2, API_2 = "bare ASGI, two processes", "API, two processes"
_EMPTY = "return 1"
_COUNTED_S = 10.0
_HALF_S = 3.0
_HALF_SEQ = 2_000_000_000
_SEQS_A_TURN = 1_000_000


@dataclass
class Subject:
    """One of the things compared."""

    title: str
    web: Web
    store: Valkey | Cluster | None = None
    """The Redis that it asks; None: none."""
    decides: bool = False
    """It counts its decisions (the API)."""
    events: bool = True
    """Every heartbeat is an event in an outbox."""
    background: Workers | None = None
    free: bool = False
    """It and its load may use all cores."""


@dataclass
class Line:
    """What the turns of one of them gave; a list has one figure for each turn."""

    per_s: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    redis_us: list[float] = field(default_factory=list)
    """Scripts, by commandstats."""
    redis_cpu_us: list[float] = field(default_factory=list)
    """CPU of the whole server process, its system calls and append-only file included."""
    workers_us: list[float] = field(default_factory=list)
    """CPU of workers and scheduler until all was handled."""
    half_p99_ms: list[float] = field(default_factory=list)


def measure(place: Place, *, quick: bool, plots_dir: Path | None = None) -> tuple[list[Row | Sheet], dict[str, object]]:
    """Raises BenchError for any answer but a fresh allow, and where decisions, events and wrk's count differ."""
    repetitions, seconds = (2, 2.0) if quick else (5, 3.0)
    lines: dict[str, Line] = {}
    with ExitStack() as stack:
        subjects = _subjects(place, stack.enter_context)
        beats = Beats(place)
        for repetition in range(-1, repetitions):
            for subject in subjects:
                line = Line() if repetition < 0 else lines.setdefault(subject.title, Line())
                _turn(place, subject, beats, WARM_UP_S if repetition < 0 else seconds, line, warm=repetition < 0)
        for repetition in range(repetitions):
            for subject in subjects:
                if subject.title in (BARE, API):
                    line = lines[subject.title]
                    line.half_p99_ms.append(_half(place, subject, lines[API], repetition))
    if plots_dir is not None:
        plots.side(figures(lines), plots_dir)
    return report(lines), {"lines": {title: vars(line) for title, line in lines.items()}, "figures": figures(lines)}


def _subjects(place: Place, enter: Callable[[AbstractContextManager[Any]], Any]) -> list[Subject]:
    """Everything started, at rest, in the order of the table."""
    server: Valkey = enter(valkey(place, place.others, DURABLE))
    captured = capture(server, place, place.mine)
    server.know_outboxes(captured.outboxes())
    settings = {"PULSEGATE_LIFETIME_MS": LIFETIME_MS}
    # Each has a turn only now and then: leases must live until the next.
    one: Web = enter(api(place, place.mine, server.url, **settings))
    answer = {"BENCH_ANSWER": answer_of(one)}
    bare = enter(uvicorn("loadtest.baseline.bare:app", place, place.mine, answer))
    sha = server.client.script_load(_EMPTY)
    asked = answer | {"BENCH_REDIS_PORT": str(server.port), "BENCH_SHA": sha}
    empty = enter(uvicorn("loadtest.baseline.empty:app", place, place.mine, asked))
    plain = enter(uvicorn("loadtest.baseline.plain:app", place, place.mine, peer_env(server, captured)))
    nodes: Cluster = enter(cluster(place, place.others, DURABLE))
    on_cluster = enter(api(place, place.mine, nodes.url, **settings))
    session, log = (enter(valkey(place, place.others, DURABLE)) for _ in range(2))
    worked = enter(api(place, place.mine, session.url, PULSEGATE_LOG_REDIS_URL=log.url, **settings))
    background = enter(workers(place, place.others, session, log, place.directory / "lake", **settings))
    background.hold()
    with unpinned(place) as both:
        port = free_port()
        command = [
            sys.executable,
            "-m",
            "uvicorn",
            "loadtest.baseline.bare:app",
            "--port",
            str(port),
            "--workers",
            "2",
            *UVICORN,
        ]
        bare_2 = enter(web(command, place.directory, None, answer, port, "/"))
        two = enter(api(both, None, server.url, PULSEGATE_PROCESSES="2", **settings))
    return [
        Subject(BARE, bare),
        Subject(EMPTY, empty, server, events=False),
        Subject(PLAIN, plain, server),
        Subject(API, one, server, decides=True),
        Subject(CLUSTER, on_cluster, nodes, decides=True),
        Subject(WORKERS, worked, session, decides=True, background=background),
        Subject(BARE_2, bare_2, free=True),
        Subject(API_2, two, server, decides=True, free=True),
    ]


def _turn(place: Place, subject: Subject, beats: Beats, seconds: float, line: Line, *, warm: bool) -> None:
    """One run of wrk, with every check, into `line`."""
    store, background, pid = subject.store, subject.background, subject.web.process.pid
    if background is not None:
        background.go()
    elif store is not None:
        store.empty_outboxes()
    if store is not None:
        store.reset()
    before = allowed(subject.web) if subject.decides else 0
    logged = background.mirrored().get("heartbeats", 0) if background else 0
    redis, worked = _cpu(store), background.cpu_s() if background else 0.0
    cpu = cpu_below(pid)
    with unpinned(place) if subject.free else nullcontext(place) as where:
        load = beats.send(subject.web.port, seconds, where.others)
    cpu = cpu_below(pid) - cpu
    calls = store.settled() if store is not None else {}
    redis = _cpu(store) - redis
    if subject.decides:
        check_count(f"allow decisions of {subject.title}", _counted(subject, before + load.requests) - before, load)
    if background is not None:
        background.wait_for("heartbeats", logged + load.requests)
        check_count("heartbeats in the event log", background.mirrored()["heartbeats"] - logged, load)
        line.workers_us.append((background.cpu_s() - worked) / load.requests * 1e6)
        background.hold()
    elif store is not None and subject.events:
        events = store.empty_outboxes()
        if not warm:
            check_count(f"events of {subject.title}", events, load)
    if store is not None and not warm:
        _check_calls(subject, calls, load)
        count, micros = calls["evalsha"]
        line.redis_us.append(count * micros / load.requests)
        line.redis_cpu_us.append(redis / load.requests * 1e6)
    line.per_s.append(load.per_s)
    line.cpu_us.append(cpu / load.requests * 1e6)
    line.p50_ms.append(load.p50_ms)
    line.p99_ms.append(load.p99_ms)


def _counted(subject: Subject, expected: int) -> int:
    """Its decisions. Of several processes each tells what it counted about once a second, so it is waited for."""
    deadline = time.monotonic() + _COUNTED_S
    while (found := allowed(subject.web)) < expected and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _check_calls(subject: Subject, calls: dict[str, tuple[int, float]], load: Load) -> None:
    """Raises BenchError unless every request was a script call, and every heartbeat on its fast path."""
    if calls["evalsha"][0] < load.requests:
        raise BenchError(f"{subject.title}: {calls['evalsha'][0]} script calls for {load.requests} requests")
    if subject.events:
        check_fast(calls)


def _cpu(store: Valkey | Cluster | None) -> float:
    """User and system CPU seconds so far of the Redis."""
    if store is None:
        return 0.0
    return (store.cpu_s() if isinstance(store, Cluster) else store.process.cpu_s()) or 0.0


def _half(place: Place, subject: Subject, api_line: Line, repetition: int) -> float:
    """p99, ms from when a heartbeat was due, at half of the requests/s the API managed: an open loop."""
    rate = statistics.median(api_line.per_s) / 2
    first = _HALF_SEQ + repetition * _SEQS_A_TURN
    order = {"port": subject.web.port, "per_s": rate, "sessions": [0, ACCOUNTS], "seq": first, "seconds": _HALF_S}
    with steady(place.directory, place.others, **order) as beating:
        seen, _ = beating.join()
    # The first second makes connections.
    return seen.between(seen.due[0] + 1, math.inf).quantile(0.99)


def figures(lines: Mapping[str, Line]) -> dict[str, dict[str, float | None]]:
    """What the plots show: medians."""
    bare = Spread(tuple(lines[BARE].per_s))

    def middle(values: list[float]) -> float | None:
        return statistics.median(values) if values else None

    return {
        title: {
            "share": Spread(tuple(line.per_s)).over(bare).median, "cpu_us": middle(line.cpu_us), "redis_us": middle(line.redis_us),
        }
        for title, line in lines.items()
    }  # fmt: skip


COLUMNS = (
    "", "req/s", "rate to bare", "to empty", "CPU µs/request", "CPU to bare", "CPU to empty", "p50 ms", "p99 ms", "Redis µs",
    "Redis CPU µs",
)  # fmt: skip


def report(lines: Mapping[str, Line]) -> list[Row | Sheet]:
    """The table, and what of it has a goal."""
    rows: list[Row | Sheet] = [Sheet(COLUMNS, tuple(_cells(title, lines) for title in lines))]
    api_line, bare, worked = lines[API], lines[BARE], lines[WORKERS]
    by_rate, by_cpu = _over(api_line.per_s, bare.per_s), _over(bare.cpu_us, api_line.cpu_us)
    redis = Spread(tuple(api_line.redis_us))
    rows += [
        Row("requests/s of the API, one node, to bare", by_rate.text(2), "", goal="≥ 0.50", met=by_rate.median >= 0.5),
        Row("CPU a request: bare to the API, one node", by_cpu.text(2), "", goal="≥ 0.50", met=by_cpu.median >= 0.5),
        Row("Redis per heartbeat, by commandstats", redis.text(1), "µs", goal="≤ 12 µs", met=redis.median <= 12),
        Row("workers on: requests/s to workers off", _over(worked.per_s, api_line.per_s).text(2), ""),
        Row("workers on: the API's CPU a request to workers off", _over(worked.cpu_us, api_line.cpu_us).text(2), ""),
        Row("workers on: their own CPU a heartbeat, until all was handled", Spread(tuple(worked.workers_us)).text(1), "µs"),
    ]  # fmt: skip
    if bare.half_p99_ms:
        mine, theirs = Spread(tuple(api_line.half_p99_ms)), Spread(tuple(bare.half_p99_ms))
        ratio = mine.over(theirs)
        rows += [
            Row("p99 at half of the API's rate, open loop: bare", theirs.text(1), "ms"),
            Row("  the API, one node", mine.text(1), "ms", ratio.text(2), "≤ 3 × bare", ratio.median <= 3),
        ]  # fmt: skip
    return rows


def _over(a: Sequence[float], b: Sequence[float]) -> Spread:
    return Spread(tuple(a)).over(Spread(tuple(b)))


def _cells(title: str, lines: Mapping[str, Line]) -> tuple[str, ...]:
    line = lines[title]
    bare = lines[BARE_2 if title in (BARE_2, API_2) else BARE]
    # The empty call's ceiling is one process on one core.
    empty = lines[EMPTY] if line.redis_us and title != API_2 else None

    def shown(values: list[float], digits: int) -> str:
        return Spread(tuple(values)).text(digits) if values else ""

    return (
        title, shown(line.per_s, 0), _over(line.per_s, bare.per_s).text(2), _over(line.per_s, empty.per_s).text(2) if empty else "",
        shown(line.cpu_us, 1), _over(bare.cpu_us, line.cpu_us).text(2), _over(empty.cpu_us, line.cpu_us).text(2) if empty else "",
        shown(line.p50_ms, 1), shown(line.p99_ms, 1), shown(line.redis_us, 1), shown(line.redis_cpu_us, 1),
    )  # fmt: skip
