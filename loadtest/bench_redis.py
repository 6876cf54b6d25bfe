"""What a heartbeat costs Redis: µs beside an empty script, bytes a session, and whether either grows with the sessions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import hiredis

from loadtest.bench_replay import DEVICE, LONG_DEVICE, Captured, Replay, capture, shuffled
from loadtest.bench_rig import DURABLE, MEMORY_ONLY, BenchError, Place, Spread, Valkey, check_fast, valkey
from loadtest.bench_table import Row

Found = tuple[list[Row], dict[str, object]]
FEW, SOME, MANY = 10_000, 100_000, 1_000_000
_EMPTY = "return 1"


@contextlib.contextmanager
def _filled(place: Place, options: dict[str, str], device: str = DEVICE) -> Iterator[tuple[Valkey, Captured, Replay]]:
    """A server that knows the script and holds nothing yet."""
    with valkey(place, place.mine, options) as server:
        captured = capture(server, place, place.others, device)
        server.know_outboxes(captured.outboxes())
        replay = Replay(server, captured, device)
        try:
            yield server, captured, replay
        finally:
            replay.close()


@contextlib.contextmanager
def _metered(server: Valkey, calls: int, into: list[float]) -> Iterator[None]:
    """Adds the µs per script call, as the server counts them. Raises BenchError if calls are missing or left the fast path."""
    server.reset()
    yield
    found = server.calls()
    count, micros = found["evalsha"]
    if count != calls:
        raise BenchError(f"the server counted {count} calls, not {calls}")
    check_fast(found)
    into.append(micros)
    server.empty_outboxes()


def _beat(server: Valkey, replay: Replay, sessions: int, beats: int, seed: int, into: list[float]) -> None:
    """`beats` heartbeats of random sessions below `sessions`, none twice in a row of `sessions`."""
    each = min(beats, sessions)
    rounds = [shuffled(each, sessions, seed * 1000 + n) for n in range(beats // each)]
    with _metered(server, each * len(rounds), into):
        for order in rounds:
            replay.beat(order)


def script_cost(place: Place, *, quick: bool) -> Found:
    """µs per heartbeat in steady state, beside an empty script and one that ignores the same keys and arguments."""
    rows: list[Row] = []
    raw: dict[str, object] = {}
    for label, options in (("append-only file on", DURABLE), ("append-only file off", MEMORY_ONLY)):
        found = {name: Spread(tuple(values)) for name, values in _compare(place, options, quick).items()}
        empty, idle, beat = found["empty"], found["idle"], found["heartbeat"]
        durable = options is DURABLE
        rows += [
            Row(f"empty EVALSHA, {label}", empty.text(2), "µs"),
            Row("the same keys and arguments, ignored", idle.text(2), "µs", ratio=idle.over(empty).text(1)),
            Row("heartbeat", beat.text(2), "µs", beat.over(empty).text(1), "≤ 12 µs, ceiling 18" if durable else "",
                beat.median <= 12 if durable else None),
        ]  # fmt: skip
        raw[label] = {name: spread.to_json() for name, spread in found.items()}
    return rows, raw


def _compare(place: Place, options: dict[str, str], quick: bool) -> dict[str, list[float]]:
    repetitions, beats = (5, FEW) if quick else (23, FEW)
    found: dict[str, list[float]] = {"empty": [], "heartbeat": [], "idle": []}
    with _filled(place, options) as (server, captured, replay):
        for _ in range(2):
            replay.beat(range(FEW))
        sha = server.client.script_load(_EMPTY)
        empty = hiredis.pack_command(("EVALSHA", sha, "0"))  # type: ignore[arg-type]
        idle = hiredis.pack_command(("EVALSHA", sha, *captured.argv[2:]))
        for repetition in range(repetitions):
            with _metered(server, beats, found["empty"]):
                replay.send(iter([empty] * beats))
            _beat(server, replay, FEW, beats, repetition, found["heartbeat"])
            with _metered(server, beats, found["idle"]):
                replay.send(iter([idle] * beats))
    return found


def growth(place: Place, *, quick: bool) -> Found:
    """Bytes a session at 100,000 and 1,000,000 sessions, and µs per heartbeat at 10,000 beside 1,000,000."""
    repetitions, beats = (5, FEW) if quick else (35, FEW)
    few_us: list[float] = []
    many_us: list[float] = []
    with _filled(place, MEMORY_ONLY, LONG_DEVICE) as (server, _, replay):
        long = _memory(server, replay, range(SOME), server.used_memory())
    with _filled(place, MEMORY_ONLY) as (few, _, few_replay), _filled(place, MEMORY_ONLY) as (many, _, many_replay):
        base = many.used_memory()
        sizes = {
            SOME: _memory(many, many_replay, range(SOME), base),
            MANY: _memory(many, many_replay, range(SOME, MANY), base),
        }
        _memory(few, few_replay, range(FEW), 0)
        for repetition in range(repetitions):
            _beat(few, few_replay, FEW, beats, repetition, few_us)
            _beat(many, many_replay, MANY, beats, repetition, many_us)
    small, large = Spread(tuple(few_us)), Spread(tuple(many_us))
    ratio = large.over(small)
    rows = [
        Row(f"bytes a live session at {count:,}", f"{size:,.0f}", "B", "", "≤ 350 B, ceiling 400", size <= 350)
        for count, size in sizes.items()
    ]
    rows += [
        Row(f"the same at {SOME:,}, device ids of 36 characters", f"{long:,.0f}", "B"),
        Row(f"heartbeat at {FEW:,} sessions", small.text(2), "µs"),
        Row(
            f"heartbeat at {MANY:,} sessions", large.text(2), "µs", ratio.text(2), "≤ 1.10 × that", ratio.median <= 1.1
        ),
    ]
    raw: dict[str, object] = {
        "bytes": {str(count): size for count, size in sizes.items()}, "bytes_long_device": long,
        "few_us": small.to_json(), "many_us": large.to_json(), "ratio": ratio.to_json(),
    }  # fmt: skip
    return rows, raw


def _memory(server: Valkey, replay: Replay, sessions: range, base: int) -> float:
    """Makes the sessions, lets each beat once more, and returns the bytes beyond `base` each session so far takes."""
    for start in range(sessions.start, sessions.stop, 50_000):
        part = range(start, min(start + 50_000, sessions.stop))
        replay.beat(part)
        replay.beat(part)
        server.empty_outboxes()
    return (server.used_memory() - base) / sessions.stop
