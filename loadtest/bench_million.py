"""A million live sessions on one server, and a quarter of them gone at once while the others go on beating.

Session Redis, API and heartbeats share one core; workers, scheduler and log Redis have the other, so that what is seen is how
long the sweep keeps Redis from answering, not how many processes want a core. In production none of them share one.
"""

from __future__ import annotations

import random
import time
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson

from loadtest.bench_audience import CONTENTS, bytes_of, zipf
from loadtest.bench_replay import LIFETIME_MS, Captured, capture
from loadtest.bench_rig import DURABLE, BenchError, Place, Process, Spread, Valkey, api, valkey
from loadtest.bench_steady import Seen, steady
from loadtest.bench_sweep import Cost, Crowd, capture_sweep, script_name, sheet, sweep_cost
from loadtest.bench_table import Row, Sheet
from loadtest.bench_workers import Workers, workers

SESSIONS, QUICK_SESSIONS, LEAST = 1_000_000, 100_000, 40_000
PER_S = 2_000
"""Heartbeats of those that stay; each ten seconds, so ten times as many sessions."""
SPREAD_MS = 10_000
"""Power goes at once, but the last heartbeats were spread over an interval, and so are the deadlines."""
BEFORE_S, AFTER_S = 20.0, 10.0
GOAL_MS = 50.0
_SETTLE_S = 45.0
"""Workers start, and the audience's first changes are claimed."""
_ENDED_S = 300.0
_STAY_S, _USUAL_MS = 840.0, 30_000
_POLL_S = 0.2
_CHUNK = 25_000
_SEQ = 100_000
SLOW_US, _SLOW_MAX = 2_000, 2_000
"""The slow log is read while heartbeats arrive, so it is kept short."""
_LIMITS_MS = (10, 20, 50, 100)


@dataclass
class Exit:
    """How the views ended: (s of time.monotonic, views alive), polled."""

    from_: float
    """When the first deadline passed."""
    until: float
    """When the last view had ended."""
    alive: list[tuple[float, int]] = field(default_factory=list)
    slow: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    """'before' and 'during' → (script or command, µs) of the server's slow log."""
    latency: dict[str, int] = field(default_factory=dict)
    """The server's own latency events: name → longest, ms."""
    cores: dict[str, dict[str, Core]] = field(default_factory=dict)
    """'before' and 'during' → process → what it had of a core."""


@dataclass(frozen=True)
class Core:
    """Of a stretch of time: the share in which a process ran, and in which it was ready to run and had to wait for its core.
    What it waited is the machine's doing, not the sweep's; both are 0 where the kernel does not say."""

    ran: float
    waited: float


class Cores:
    """Watches processes from now on."""

    def __init__(self, processes: Mapping[str, Process]) -> None:
        self._processes = processes
        self._at, self._before = time.monotonic(), self._read()

    def _read(self) -> dict[str, tuple[float, float]]:
        return {name: (each.cpu_s() or 0.0, each.waited_s()) for name, each in self._processes.items()}

    def until_now(self) -> dict[str, Core]:
        took, now = max(time.monotonic() - self._at, 1e-9), self._read()
        return {
            name: Core((now[name][0] - ran) / took, (now[name][1] - waited) / took)
            for name, (ran, waited) in self._before.items()
        }


def measure(place: Place, *, quick: bool, sessions: int = 0) -> tuple[list[Row | Sheet], dict[str, object]]:
    """Raises BenchError if a heartbeat is refused, a view that lives is ended, or one that vanished is not."""
    count = sessions or (QUICK_SESSIONS if quick else SESSIONS)
    gone, rate = count // 4, min(PER_S, count // 40)
    settings = {"PULSEGATE_LIFETIME_MS": LIFETIME_MS, "PULSEGATE_REDIS_TIMEOUT_MS": "5000"}
    # What rewrites the append-only file is a process of its own.
    options = DURABLE if place.others is None else DURABLE | {"aof-rewrite-cpulist": str(place.others)}
    with valkey(place, place.mine, options) as session, valkey(place, place.others, DURABLE) as log:
        captured = capture(session, place, place.others)
        session.know_outboxes(captured.outboxes())
        with api(place, place.mine, session.url, PULSEGATE_LOG_REDIS_URL=log.url, **settings) as web:
            contents = zipf(count)
            memory, deadlines = _populate(session, captured, contents, gone)
            lake = place.directory / "lake"
            with workers(place, place.others, session, log, lake, **settings) as background:
                sweep, source = capture_sweep(session)
                order = {"port": web.port, "per_s": rate, "sessions": [0, 10 * rate], "seq": _SEQ}
                with steady(place.directory, place.mine, contents=contents[: 10 * rate], **order) as beating:
                    outages = session.client.hget("pg:{api}:outage", "ended")
                    measured = {"session Redis": session.process, "API": web.process}
                    left = _watch(session, captured, measured, deadlines, count - gone)
                    time.sleep(AFTER_S)
                    seen, said = beating.finish()
                if session.client.hget("pg:{api}:outage", "ended") != outages:
                    raise BenchError(
                        "the API was not heard of for 3 s, an outage in which no view ends: too busy a machine"
                    )
                _check_log(log, captured, background, gone)
    costs = sweep_cost(place, captured, sweep, source, each=125 if quick else 500)
    rows: list[Row | Sheet] = [
        *_memory_rows(memory, count),
        *_exit_rows(left, deadlines, gone),
        _beats(seen, left),
        *_stall_rows(seen, left),
        sheet(costs),
    ]
    return rows, _raw(memory, left, seen, said, costs)


# a million


def _populate(
    session: Valkey, captured: Captured, contents: Sequence[int], gone: int
) -> tuple[dict[str, int], tuple[float, array[float]]]:
    """Makes the sessions, the last `gone` of them such that their leases end together. Returns bytes, and the vanishing ones'
    deadlines: s of time.monotonic of the first, and each in s after it, in order."""
    count, chance = len(contents), random.Random(2)
    crowd = Crowd(session, captured, contents.__getitem__)
    memory = {"base": session.used_memory(), "base_rss": _rss(session)}
    began = time.monotonic()
    for start in range(0, count - gone, _CHUNK):
        part = range(start, min(start + _CHUNK, count - gone))
        # Those that stay live to see the end, and stand in as few ticks as sessions of the usual lifetime do.
        crowd.ttl_ms = partial(_staying_ms, int((began + _STAY_S - time.monotonic()) * 1000))
        crowd.beat(part)
        crowd.beat(part)
        session.empty_outboxes()
    took = (time.monotonic() - began) * gone / (count - gone)
    first = time.monotonic() + took * 1.5 + _SETTLE_S + BEFORE_S
    after = array("d", (chance.uniform(0, SPREAD_MS / 1000) for _ in range(gone)))
    crowd.ttl_ms = lambda n: int((first + after[n - count + gone] - time.monotonic()) * 1000)
    if (first - time.monotonic()) * 1000 + SPREAD_MS > 999_999:
        raise BenchError(f"making the sessions takes too long here: {took:.0f} s for a quarter of them")
    for start in range(count - gone, count, _CHUNK):
        crowd.beat(range(start, min(start + _CHUNK, count)))
        session.empty_outboxes()
    memory |= {
        "all": session.used_memory(),
        "rss": _rss(session),
        "counts": bytes_of(session, "pg:{p*}:audience", "pg:{p*}:deltas"),
    }
    crowd.close()
    if (alive := _alive(session, captured)) != count:
        raise BenchError(f"{alive} views alive of {count}")
    return memory, (first, array("d", sorted(after)))


def _staying_ms(least: int, n: int) -> int:
    return least + n * 7_919 % _USUAL_MS


def _rss(session: Valkey) -> int:
    return int(session.client.info("memory")["used_memory_rss"])


def _alive(session: Valkey, captured: Captured) -> int:
    """Leases held, as the scripts count them."""
    pipe = session.client.pipeline(transaction=False)
    for tag in captured.tags:
        pipe.hvals(b"pg:{%b}:held" % tag)
    return sum(int(n) for values in pipe.execute() for n in values)


# a quarter of them gone


def _watch(
    session: Valkey,
    captured: Captured,
    measured: Mapping[str, Process],
    deadlines: tuple[float, array[float]],
    stay: int,
) -> Exit:
    """From now until all that vanished have ended."""
    first, _ = deadlines
    if time.monotonic() > first - BEFORE_S / 2:
        raise BenchError("workers took too long to start: there is no time left to measure before the exit")
    time.sleep(max(0.0, first - BEFORE_S - time.monotonic()))
    before = Cores(measured)
    client = session.client
    for name, value in (
        ("slowlog-log-slower-than", SLOW_US),
        ("slowlog-max-len", _SLOW_MAX),
        ("latency-monitor-threshold", 5),
    ):
        client.config_set(name, value)
    client.slowlog_reset()
    # The log is read some time before, because that takes a busy machine long.
    time.sleep(max(0.0, first - 5 - time.monotonic()))
    left = Exit(first, first, slow={"before": _slow(session)})
    client.execute_command("LATENCY", "RESET")
    time.sleep(max(0.0, first - time.monotonic()))
    left.cores["before"], during = before.until_now(), Cores(measured)
    while True:
        now, alive = time.monotonic(), _alive(session, captured)
        left.alive.append((now, alive))
        if alive <= stay:
            break
        if now > first + _ENDED_S:
            raise BenchError(f"{alive - stay} views have not ended after {_ENDED_S:g} s")
        time.sleep(_POLL_S)
    left.until = time.monotonic()
    left.cores["during"] = during.until_now()
    left.slow["during"] = _slow(session)
    left.latency = {str(each[0], "ascii"): int(each[3]) for each in client.execute_command("LATENCY", "LATEST")}
    if alive < stay:
        raise BenchError(f"{stay - alive} views were ended that live")
    return left


def _slow(session: Valkey) -> list[tuple[str, int]]:
    """The latest of what took `SLOW_US` or more since the last look: (script or command, µs)."""
    found = session.client.slowlog_get(_SLOW_MAX)
    session.client.slowlog_reset()
    names: dict[str, str] = {}
    said = []
    for entry in found:
        words = entry["command"].decode(errors="replace").split()
        name = words[0].lower()
        if name == "evalsha":
            name = names.setdefault(words[1], script_name(session, words[1]))
        said.append((name, int(entry["duration"])))
    return said


def _check_log(log: Valkey, captured: Captured, background: Workers, gone: int) -> None:
    """Every view that vanished ended once in the event log, and no other did. Raises BenchError."""
    deadline = time.monotonic() + _ENDED_S
    while True:
        before = background.mirrored().get("events", 0)
        ended = Counter(reason for tag in captured.tags for reason in _ends(log, b"pg:{%b}:log:events" % tag))
        if ended.total() >= gone and background.mirrored()["events"] == before:
            break
        if time.monotonic() > deadline:
            raise BenchError(f"{ended.total()} views ended in the log, not {gone}")
        time.sleep(0.5)
    if ended != {"timeout": gone}:
        raise BenchError(f"views ended in the log: {dict(ended)}, not {gone} by timeout")


def _ends(log: Valkey, stream: bytes) -> Iterator[str]:
    """Why the views of a partition ended."""
    for _, fields in log.client.xrange(stream):
        event = orjson.loads(fields[b"e"])
        if event["type"] == "view_end":
            yield event["data"]["reason"]


# the report


def _memory_rows(memory: dict[str, int], count: int) -> list[Row]:
    each, rss, counts = (
        n / count for n in (memory["all"] - memory["base"], memory["rss"] - memory["base_rss"], memory["counts"])
    )
    # Fewer sessions share the counts of as many contents.
    goal, met = ("≤ 400 B", each <= 400) if count >= SESSIONS else ("", None)
    return [
        Row(f"{count:,} sessions held, {CONTENTS:,} contents: bytes each", f"{each:,.0f}", "B", "", goal, met),
        Row("  of it: counts of views and accounts by content", f"{counts:,.0f}", "B"),
        Row("  the same by resident memory", f"{rss:,.0f}", "B"),
        Row("  used memory in all; resident", f"{memory['all'] / 1e6:,.0f}; {memory['rss'] / 1e6:,.0f}", "MB"),
    ]


def _exit_rows(left: Exit, deadlines: tuple[float, array[float]], gone: int) -> list[Row]:
    first, after = deadlines
    alive_at_end = left.alive[-1][1]
    ended = [(at, gone + alive_at_end - alive) for at, alive in left.alive]
    overdue = max(bisect_right(after, at - first) - done for at, done in ended)
    low, high = (next(each for each in ended if each[1] >= share * gone) for share in (0.1, 0.9))
    rate = (high[1] - low[1]) / max(high[0] - low[0], _POLL_S)
    return [
        Row(f"{gone:,} vanish: all their views have ended after", f"{left.until - first:,.1f}", "s", "of the first deadline"),
        Row("  after the last deadline", f"{left.until - first - after[-1]:,.1f}", "s"),
        Row("  views ended", f"{rate:,.0f}", "/s", "10 % to 90 % of them"),
        Row("  most of them overdue at once", f"{overdue:,}", "views"),
    ]  # fmt: skip


def _windows(seen: Seen, left: Exit) -> dict[str, Seen]:
    return {
        "before": seen.between(max(seen.due[0] + 2, left.from_ - BEFORE_S), left.from_),
        "while the sweep works": seen.between(left.from_, left.until),
        "after": seen.between(left.until + 1, left.until + AFTER_S),
    }


def _beats(seen: Seen, left: Exit) -> Sheet:
    """Latencies of the same sessions' heartbeats, from when they were due."""
    columns = (
        "heartbeats",
        "of them",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "longest ms",
        "longest gap ms",
        "sent late, most ms",
    )
    return Sheet(
        columns + tuple(f"> {limit} ms" for limit in _LIMITS_MS),
        tuple(
            (
                name, f"{len(part.due):,}", *(f"{part.quantile(share):.1f}" for share in (0.5, 0.99, 0.999, 1.0)),
                f"{part.gap_ms():.1f}", f"{max(part.sent_ms, default=0.0):.1f}",
                *(f"{sum(1 for ms in part.answered_ms if ms > limit):,}" for limit in _LIMITS_MS),
            )
            for name, part in _windows(seen, left).items()
        ),
    )  # fmt: skip


def _stall_rows(seen: Seen, left: Exit) -> list[Row]:
    before, during, _ = _windows(seen, left).values()
    rows = [
        Row("longest time without any answer while the sweep works", f"{during.gap_ms():.1f}", "ms", f"before: {before.gap_ms():.1f}",
            f"≤ {GOAL_MS:g} ms", during.gap_ms() <= GOAL_MS),
    ]  # fmt: skip
    most_before, most = before.quantile(1.0), during.quantile(1.0)
    rows.append(
        Row("longest wait of a heartbeat, from when it was due", f"{most:.1f}", "ms", f"before: {most_before:.1f}", f"≤ {GOAL_MS:g} ms",
            most <= GOAL_MS)
    )  # fmt: skip
    longest = {when: max((micros for _, micros in slow), default=0) / 1000 for when, slow in left.slow.items()}
    rows.append(
        Row("longest command of the session Redis", f"{longest['during']:.1f}", "ms", f"before: {longest['before']:.1f}",
            f"≤ {GOAL_MS:g} ms", longest["during"] <= GOAL_MS)
    )  # fmt: skip
    by_name: dict[str, list[float]] = {}
    for name, micros in left.slow["during"]:
        by_name.setdefault(name, []).append(micros / 1000)
    rows += [
        Row(f"  {name}: {len(values):,} calls of {SLOW_US / 1000:g} ms or more", Spread(tuple(values)).text(1), "ms")
        for name, values in sorted(by_name.items(), key=lambda each: -max(each[1]))[:5]
    ]
    for name, core in left.cores["during"].items():
        then = left.cores["before"][name]
        rows.append(
            Row(f"  {name}: ran; waited for its core", f"{core.ran:.0%}; {core.waited:.0%}", "", f"before: {then.ran:.0%}; {then.waited:.0%}")
        )  # fmt: skip
    events = ", ".join(f"{name} {ms}" for name, ms in sorted(left.latency.items(), key=lambda each: -each[1]))
    return [*rows, Row("  the server's own latency events, longest", events or "none", "ms")]


def _raw(
    memory: dict[str, int], left: Exit, seen: Seen, said: dict[str, Any], costs: dict[str, dict[int, Cost]]
) -> dict[str, object]:
    histograms = {
        name: dict(sorted(Counter(min(1 << 12, 1 << max(0, int(ms)).bit_length()) for ms in part.answered_ms).items()))
        for name, part in _windows(seen, left).items()
    }
    return {
        "memory": memory, "alive": [(round(at - left.from_, 3), alive) for at, alive in left.alive], "heartbeats": said,
        "below_ms": histograms, "latency_events_ms": left.latency,
        "cores": {when: {name: vars(core) for name, core in each.items()} for when, each in left.cores.items()},
        "slow_us": {when: sorted(slow, key=lambda each: -each[1])[:200] for when, slow in left.slow.items()},
        "sweep": {kind: {str(batch): vars(cost) for batch, cost in each.items()} for kind, each in costs.items()},
    }  # fmt: skip
