"""The measurements that the sizing table needs: the knee, the cost of a heartbeat everywhere, p99 at half of the knee's rate
beside bare ASGI, and what the workers spend. Where a part runs and what it shares its core with is said in docs/capacity.md.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field

from loadtest.bench_http import answer_of
from loadtest.bench_rig import DURABLE, BenchError, Place, Spread, Valkey, api, uvicorn, valkey
from loadtest.bench_workers import Workers, workers
from loadtest.capacity.crowd import INTERVAL_S, MIX, Crowd
from loadtest.capacity.generator import LATE_MS
from loadtest.capacity.knee import Found, Goal, find
from loadtest.capacity.rig import Measured, Stage, generator, net_bytes, used_memory
from loadtest.capacity.wire import bytes_a_heartbeat

Say = Callable[[str], None]
_JOIN_PER_S = 2_000.0
_SETTLE_S = 60.0


@dataclass(frozen=True)
class Options:
    """How much is asked. `start` and `most` are requests/s."""

    players: int = 20_000
    seconds: float = 4.0
    warm_up_s: float = 1.5
    rounds: int = 5
    goal: Goal = field(default_factory=Goal)
    start: float = 2_000.0
    most: float = 100_000.0
    factor: float = 1.5
    precision: float = 0.05
    attempts: int = 2
    late_ms: float = LATE_MS
    mix: Mapping[str, float] = field(default_factory=lambda: dict(MIX))
    background_processes: int = 7
    """Of the workers; the default of a deployment."""
    drains: int = 2
    much: int = 4
    """What gathers for the workers is that of so many steps: enough that batches are full."""


@dataclass(frozen=True)
class Half:
    """p50 and p99 (ms, from due) at half of the knee's rate: a pair for each round."""

    per_s: float
    ours: tuple[tuple[float, float], ...]
    bare: tuple[tuple[float, float], ...]

    @property
    def p99_ms(self) -> tuple[float, float]:
        """Medians: (ours, bare)."""
        return statistics.median(p99 for _, p99 in self.ours), statistics.median(p99 for _, p99 in self.bare)

    @property
    def ratio(self) -> Spread:
        """p99 of ours to bare, by rounds."""
        return Spread(
            tuple(mine / max(other, 1e-3) for (_, mine), (_, other) in zip(self.ours, self.bare, strict=True))
        )


@dataclass(frozen=True)
class Front:
    """What API and session Redis were measured to do."""

    knee: Found[Measured]
    half: Half
    session_bytes: float
    outbox_bytes: float
    http_bytes: tuple[float, float]
    heartbeat_share: float

    @property
    def knee_per_s(self) -> float:
        """Heartbeats/s."""
        return self.knee.per_s * self.heartbeat_share


@dataclass(frozen=True)
class Background:
    """What the workers and the log Redis spent on a heartbeat: medians over rounds."""

    worker_us: Spread
    log_us: Spread
    log_bytes: Spread
    work_bytes: Spread
    idle_cores: float
    """Workers and scheduler with nothing to do."""


# API and session Redis


def front(place: Place, options: Options, say: Say) -> Front:
    """No workers here: the API's core is its own, session Redis and generator share the other. Raises BenchError."""
    with ExitStack() as stack:
        session = stack.enter_context(valkey(place, place.others, DURABLE))
        web = stack.enter_context(api(place, place.mine, session.url))
        bare = stack.enter_context(
            uvicorn("loadtest.baseline.bare:app", place, place.mine, {"BENCH_ANSWER": answer_of(web)})
        )
        load = stack.enter_context(generator(place.others, options.players, options.mix, options.late_ms))
        stage = Stage(place, session, web, load, options.mix)
        session_bytes = _memory(stage, options)
        say(f"{options.players:,} viewers watch: {session_bytes:,.0f} B each")
        knee = find_knee(stage, options, say, after=stage.session.empty_outboxes)
        half, outbox_bytes = _half(stage, f"http://127.0.0.1:{bare.port}", knee.per_s / 2, options, say)
        http_bytes = bytes_a_heartbeat(
            web.port, Crowd(20, options.mix, name="wire"), 100 if options.players < 5_000 else 1_000
        )
        return Front(knee, half, session_bytes, outbox_bytes, http_bytes, stage.heartbeat_share)


def _memory(stage: Stage, options: Options) -> float:
    """Every viewer comes: bytes of session Redis for each."""
    before = stage.session.used_memory()
    all_come(stage, options)
    if options.players >= 5_000:
        # Each partition has its outbox by now.
        stage.session.know_outboxes(sorted(stage.session.client.scan_iter("pg:{*}:outbox", count=10_000)))
    return (stage.session.used_memory() - before) / options.players


def all_come(stage: Stage, options: Options) -> Measured:
    """A whole turn of all viewers at a rate that is no trouble. Raises BenchError for a wrong answer."""
    # Those who have a turn are as many as beat within an interval: more viewers need a higher rate.
    rate = max(min(_JOIN_PER_S, options.players), options.players / INTERVAL_S)
    came = stage.step(rate, min(1.0, options.seconds), whole_round=True, warm_up=options.players / rate)
    _check(came)
    return came


def find_knee(stage: Stage, options: Options, say: Say, after: Callable[[], object] = lambda: None) -> Found[Measured]:
    """`after` is called after each step. Raises BenchError if even a trickle is too much."""
    seeds = iter(range(1, 1_000_000))

    def measure(rate: float) -> Measured:
        step = stage.step(rate, options.seconds, warm_up=options.warm_up_s, seed=next(seeds))
        after()
        said = options.goal.broken(step)
        say(
            f"{rate:>9,.0f}/s  achieved {step.achieved_per_s:>9,.0f}/s  p50 {step.report.p50_ms:>7.1f}  p99 {step.p99_ms:>8.1f} ms"
            f"  API {step.api_us:5.1f} µs  Redis {step.redis_us:5.1f} µs  {'generator late' if step.late else said or 'good'}"
        )
        return step

    found = find(
        measure, options.goal, start=options.start, most=options.most, factor=options.factor, precision=options.precision,
        attempts=options.attempts,
    )  # fmt: skip
    if found.at is None:
        raise BenchError(f"no rate keeps p99 ≤ {options.goal.p99_ms:g} ms here: {found.why}")
    return found


def _half(stage: Stage, bare: str, rate: float, options: Options, say: Say) -> tuple[Half, float]:
    """In turns, with the same schedule in each round. Also the bytes of outbox for each heartbeat."""
    ours: list[tuple[float, float]] = []
    ceiling: list[tuple[float, float]] = []
    outbox: list[float] = []
    for number in range(options.rounds):
        other = stage.load.step(bare, rate, options.seconds, warm_up=options.warm_up_s, seed=number)
        mine = stage.step(rate, options.seconds, warm_up=options.warm_up_s, seed=number)
        full = used_memory(stage.session)
        outbox.append((full - stage.session.used_memory()) / mine.heartbeats)
        _check(mine)
        ceiling.append((other.p50_ms, other.p99_ms))
        ours.append((mine.report.p50_ms, mine.p99_ms))
        say(
            f"half of it, {rate:,.0f}/s, round {number + 1}: bare p99 {other.p99_ms:.2f} ms, API p99 {mine.p99_ms:.2f} ms"
        )
    return Half(rate, tuple(ours), tuple(ceiling)), statistics.median(outbox)


def _check(step: Measured) -> None:
    """More wrong answers than one in a thousand are no measurement."""
    if step.failed > max(1, step.requests // 1000):
        raise BenchError(f"{step.failed} of {step.requests} requests failed: {step.report.wrong}; {step.report.said}")


# workers and log Redis


def background(place: Place, options: Options, per_s: float, say: Say) -> Background:
    """Workers held still while a little, and then a lot, gathers in the outboxes; then let go. What they spend more on more
    is what a heartbeat costs them, and what they spend anyway falls out. Raises BenchError."""
    settings = {"PULSEGATE_WORKER_PROCESSES": str(options.background_processes), "PULSEGATE_REDIS_TIMEOUT_MS": "5000"}
    with ExitStack() as stack:
        session, log = (stack.enter_context(valkey(place, place.others, DURABLE)) for _ in range(2))
        web = stack.enter_context(api(place, place.mine, session.url, PULSEGATE_LOG_REDIS_URL=log.url, **settings))
        load = stack.enter_context(generator(place.others, options.players, options.mix, options.late_ms))
        staff = stack.enter_context(workers(place, place.others, session, log, place.directory / "lake", **settings))
        stage = Stage(place, session, web, load, options.mix)
        all_come(stage, options)
        _handled(staff, session)
        idle = _idle(staff, min(2.0, options.seconds))
        rounds = []
        for number in range(options.drains):
            # A quick look does without the difference.
            quick = options.much == 1
            little = _NOTHING if quick else _drained(stage, staff, log, per_s, options.seconds / 2, number)
            much = _drained(stage, staff, log, per_s, options.seconds * options.much, number)
            rounds.append(_slope(little, much))
            say(f"workers, round {number + 1}: {rounds[-1].worker_s * 1e6:,.1f} µs of CPU a heartbeat")

    def over(name: str, scale: float = 1.0) -> Spread:
        return Spread(tuple(getattr(each, name) * scale for each in rounds))

    return Background(over("worker_s", 1e6), over("log_s", 1e6), over("log_bytes"), over("moved"), idle)


@dataclass(frozen=True)
class Spent:
    """On so many heartbeats: CPU seconds, bytes of memory, bytes moved. `_slope` gives the same for one heartbeat."""

    heartbeats: float
    worker_s: float
    log_s: float
    log_bytes: float
    moved: float


_NOTHING = Spent(0, 0, 0, 0, 0)


def _slope(little: Spent, much: Spent) -> Spent:
    """Of one heartbeat. Where noise is greater than the difference, all of `much` is charged to its heartbeats."""
    more = much.heartbeats - little.heartbeats

    def each(name: str) -> float:
        total, least = float(getattr(much, name)), float(getattr(little, name))
        return max(1e-9, (total - least) / more if more > 0 and total > least else total / much.heartbeats)

    return Spent(1, each("worker_s"), each("log_s"), each("log_bytes"), each("moved"))


def _drained(stage: Stage, staff: Workers, log: Valkey, per_s: float, seconds: float, seed: int) -> Spent:
    staff.hold()
    step = stage.step(per_s, max(0.3, seconds), warm_up=0.2, seed=seed)
    _check(step)
    worker, log_cpu, memory = staff.cpu_s(), log.process.cpu_s() or 0.0, used_memory(log)
    moved = net_bytes(log) + net_bytes(stage.session)
    staff.go()
    _handled(staff, stage.session)
    return Spent(
        step.heartbeats, staff.cpu_s() - worker, (log.process.cpu_s() or 0.0) - log_cpu, used_memory(log) - memory,
        net_bytes(log) + net_bytes(stage.session) - moved,
    )  # fmt: skip


def _handled(staff: Workers, session: Valkey) -> None:
    """Until the mirror has nothing new and all consumers are through. Raises BenchError if that takes too long."""
    deadline = time.monotonic() + 4 * _SETTLE_S
    wanted = _appended(session)
    while staff.mirrored().get("heartbeats", 0) + staff.mirrored().get("events", 0) < wanted or any(
        staff.lags().values()
    ):
        if time.monotonic() > deadline:
            raise BenchError(f"workers are still behind after {4 * _SETTLE_S:g} s: {staff.lags()}")
        time.sleep(0.05)


def _appended(session: Valkey) -> int:
    """Events ever put into the outboxes."""
    pipe = session.client.pipeline(transaction=False)
    for key in session.client.scan_iter("pg:{*}:outbox", count=10_000):
        pipe.xinfo_stream(key)
    return sum(int(info["entries-added"]) for info in pipe.execute())


def _idle(staff: Workers, seconds: float) -> float:
    """Cores that workers and scheduler take with nothing to do."""
    before, began = staff.cpu_s(), time.monotonic()
    time.sleep(seconds)
    return (staff.cpu_s() - before) / (time.monotonic() - began)


# as JSON


def to_json(front: Front, back: Background) -> dict[str, object]:
    def steps(tried: Sequence[Measured]) -> list[dict[str, object]]:
        return [asdict(each) for each in tried]

    knee = front.knee
    return {
        "knee": {
            "heartbeats_per_s": front.knee_per_s, "requests_per_s": knee.per_s, "why": knee.why, "at_least": knee.at_least,
            "steps": [step | {"broken": tried.broken} for step, tried in zip(steps([t.point for t in knee.tried]), knee.tried, strict=True)],
        },
        "half": {"requests_per_s": front.half.per_s, "ours_ms": front.half.ours, "bare_ms": front.half.bare, "ratio": front.half.ratio.to_json()},
        "session_bytes": front.session_bytes, "outbox_bytes": front.outbox_bytes, "http_bytes": front.http_bytes,
        "heartbeat_share": front.heartbeat_share,
        "background": {name: getattr(back, name).to_json() for name in ("worker_us", "log_us", "log_bytes", "work_bytes")}
        | {"idle_cores": back.idle_cores},
    }  # fmt: skip
