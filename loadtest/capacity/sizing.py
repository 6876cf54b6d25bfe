"""From what a heartbeat costs to what a deployment needs. Pure arithmetic, every step of which is printed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from loadtest.bench_table import Sheet

VIEWERS = (100_000, 1_000_000, 10_000_000, 60_000_000)
GB, GBIT = 1e9, 1e9 / 8


@dataclass(frozen=True)
class Costs:
    """What one heartbeat costs, measured. Whatever comes with heartbeats (stops, checks, zaps) is charged to them."""

    knee_per_s: float
    """Heartbeats/s of one API process on one core at which the percentiles still held."""
    api_us: float
    """CPU µs of the API at that rate."""
    redis_us: float
    """CPU µs of the session Redis, its append-only file included."""
    log_us: float
    """CPU µs of the log Redis."""
    worker_us: float
    """CPU µs of all workers together, from the outbox until mirror, projections and lake have it."""
    session_bytes: float
    """Of session Redis, for each viewer who watches."""
    outbox_bytes: float
    """Of session Redis, until the mirror has taken it."""
    log_bytes: float
    """Of log Redis, while the log keeps it."""
    http_bytes: float
    """Between player and API, both ways, headers of a browser included."""
    redis_bytes: float
    """Between API and session Redis, both ways."""
    work_bytes: float
    """Between workers and both Redis, both ways."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{field.name}: expected above 0, got {value}")


@dataclass(frozen=True)
class Assumed:
    """What is not measured but chosen."""

    interval_s: float = 10.0
    """PULSEGATE_INTERVAL_MS."""
    headroom: float = 2.0
    """Everything is given so many times what it needs."""
    log_keep_s: float = 600.0
    """PULSEGATE_LOG_KEEP_S: events stay in the log Redis so long at least."""
    away_s: float = 60.0
    """Workers may be away so long: what gathers in the outboxes meanwhile has room."""
    packets: float = 3.0
    """Of a heartbeat on a kept connection: request, answer, and an acknowledgement."""
    packet_bytes: float = 66.0
    """Ethernet, IP and TCP headers of each."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 1.0 if field.name == "headroom" else 0.0
            if not (math.isfinite(value) and value >= least and (value > 0 or field.name != "interval_s")):
                raise ValueError(f"{field.name}: expected {least:g} or more, got {value}")


@dataclass(frozen=True)
class Size:
    """What so many viewers at one time need. Cores and servers are whole numbers; memory in bytes; network in bytes/s."""

    viewers: int
    heartbeats_per_s: float
    api_cores: int
    session_shards: int
    worker_cores: int
    log_servers: int
    session_memory: float
    log_memory: float
    http_per_s: float
    redis_per_s: float
    work_per_s: float


def size(viewers: int, costs: Costs, assumed: Assumed) -> Size:
    """Raises ValueError for less than one viewer."""
    if viewers < 1:
        raise ValueError(f"viewers: expected 1 or more, got {viewers}")
    per_s, room = viewers / assumed.interval_s, assumed.headroom
    wire = costs.http_bytes + assumed.packets * assumed.packet_bytes
    return Size(
        viewers, per_s,
        api_cores=_whole(per_s / costs.knee_per_s * room),
        session_shards=_whole(per_s * costs.redis_us / 1e6 * room),
        worker_cores=_whole(per_s * costs.worker_us / 1e6 * room),
        log_servers=_whole(per_s * costs.log_us / 1e6 * room),
        session_memory=(viewers * costs.session_bytes + per_s * costs.outbox_bytes * assumed.away_s) * room,
        log_memory=per_s * costs.log_bytes * assumed.log_keep_s * room,
        http_per_s=per_s * wire, redis_per_s=per_s * costs.redis_bytes, work_per_s=per_s * costs.work_bytes,
    )  # fmt: skip


def _whole(value: float) -> int:
    """Rounded up; what is above a whole number by less than a millionth is only how floats add up."""
    return max(1, math.ceil(value - 1e-6))


def arithmetic(costs: Costs, assumed: Assumed, viewers: int = 1_000_000, *, at_least: bool = False) -> str:
    """Every input, every formula, and one row of the table by hand. `at_least`: the knee may lie higher than was seen."""
    a, c, s = assumed, costs, size(viewers, costs, assumed)
    h, room = s.heartbeats_per_s, a.headroom
    wire = c.http_bytes + a.packets * a.packet_bytes
    knee = f"{'≥ ' if at_least else ''}{c.knee_per_s:,.0f}"
    lines = [
        "Measured, of one heartbeat with all that comes with it",
        f"  knee            {knee} heartbeats/s of one API core, percentiles in order",
        f"  api_us          {c.api_us:,.1f} µs of CPU of the API: {1e6 / c.api_us:,.0f} heartbeats a core-second",
        f"  redis_us        {c.redis_us:,.1f} µs of CPU of the session Redis: {1e6 / c.redis_us:,.0f} heartbeats a core-second",
        f"  worker_us       {c.worker_us:,.1f} µs of CPU of all workers: {1e6 / c.worker_us:,.0f} heartbeats a core-second",
        f"  log_us          {c.log_us:,.1f} µs of CPU of the log Redis: {1e6 / c.log_us:,.0f} heartbeats a core-second",
        f"  session_bytes   {c.session_bytes:,.0f} B of session Redis a viewer",
        f"  outbox_bytes    {c.outbox_bytes:,.0f} B of session Redis a heartbeat, until it is mirrored",
        f"  log_bytes       {c.log_bytes:,.0f} B of log Redis a heartbeat",
        f"  http_bytes      {c.http_bytes:,.0f} B between player and API, both ways",
        f"  redis_bytes     {c.redis_bytes:,.0f} B between API and session Redis, both ways",
        f"  work_bytes      {c.work_bytes:,.0f} B between workers and both Redis, both ways",
        "Chosen",
        f"  headroom        {room:g}: everything is given {room:g} times what it needs, so it runs at {1 / room:.0%} of what it can",
        f"  interval        {a.interval_s:g} s between two heartbeats of a viewer",
        f"  log_keep        {a.log_keep_s:g} s for which the log Redis keeps an event",
        f"  away            {a.away_s:g} s for which workers may be away",
        f"  wire            http_bytes + {a.packets:g} packets × {a.packet_bytes:g} B = {wire:,.0f} B",
        f"For {viewers:,} viewers (shares of a core are rounded up)",
        f"  H heartbeats/s  viewers ÷ interval                    = {viewers:,} ÷ {a.interval_s:g} = {h:,.0f}",
        f"  API cores       H ÷ knee × headroom                   = {h:,.0f} ÷ {c.knee_per_s:,.0f} × {room:g} = {h / c.knee_per_s * room:,.2f} → {s.api_cores:,}",
        f"  session shards  H × redis_us ÷ 10⁶ × headroom         = {h:,.0f} × {c.redis_us:,.1f} ÷ 10⁶ × {room:g} = {h * c.redis_us / 1e6 * room:,.2f} → {s.session_shards:,}",
        f"  worker cores    H × worker_us ÷ 10⁶ × headroom        = {h:,.0f} × {c.worker_us:,.1f} ÷ 10⁶ × {room:g} = {h * c.worker_us / 1e6 * room:,.2f} → {s.worker_cores:,}",
        f"  log servers     H × log_us ÷ 10⁶ × headroom           = {h:,.0f} × {c.log_us:,.1f} ÷ 10⁶ × {room:g} = {h * c.log_us / 1e6 * room:,.2f} → {s.log_servers:,}",
        f"  session memory  (viewers × session_bytes + H × outbox_bytes × away) × headroom = ({viewers * c.session_bytes / GB:,.2f} + {h * c.outbox_bytes * a.away_s / GB:,.2f}) GB × {room:g} = {s.session_memory / GB:,.1f} GB",
        f"  log memory      H × log_bytes × log_keep × headroom   = {h:,.0f} × {c.log_bytes:,.0f} × {a.log_keep_s:g} × {room:g} = {s.log_memory / GB:,.1f} GB",
        f"  players' net    H × wire                              = {h:,.0f} × {wire:,.0f} B = {s.http_per_s / GBIT:,.2f} Gbit/s",
        f"  Redis net       H × redis_bytes                       = {h:,.0f} × {c.redis_bytes:,.0f} B = {s.redis_per_s / GBIT:,.2f} Gbit/s",
        f"  workers' net    H × work_bytes                        = {h:,.0f} × {c.work_bytes:,.0f} B = {s.work_per_s / GBIT:,.2f} Gbit/s",
    ]
    return "\n".join(lines)


COLUMNS = (
    "viewers", "heartbeats/s", "API cores", "session Redis shards", "worker cores", "log Redis servers", "session memory GB",
    "log memory GB", "players' net Gbit/s", "Redis net Gbit/s", "workers' net Gbit/s",
)  # fmt: skip


def sheet(sizes: Sequence[Size]) -> Sheet:
    return Sheet(
        COLUMNS,
        tuple(
            (
                f"{s.viewers:,}", f"{s.heartbeats_per_s:,.0f}",
                *(f"{n:,}" for n in (s.api_cores, s.session_shards, s.worker_cores, s.log_servers)),
                *(f"{n / GB:,.1f}" for n in (s.session_memory, s.log_memory)),
                *(f"{n / GBIT:,.2f}" for n in (s.http_per_s, s.redis_per_s, s.work_per_s)),
            )
            for s in sizes
        ),
    )  # fmt: skip


def to_json(costs: Costs, assumed: Assumed, sizes: Sequence[Size]) -> dict[str, object]:
    return {"costs": asdict(costs), "assumed": asdict(assumed), "sizes": [asdict(each) for each in sizes]}
