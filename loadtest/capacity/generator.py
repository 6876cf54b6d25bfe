"""An open loop: requests go out at the moments they are due, whatever the answers do.

    python -m loadtest.capacity.generator --viewers 10000 --mix plain=92,zap=3,join=2,stop=2,check=1

reads one step a line from its input, `{"base": "http://127.0.0.1:8080", "rate": 2000, "seconds": 4, "warm_up": 2}`, and prints what
came of it as a line of JSON. Latency counts from when a request was due, so what waits because the server is slow, or because
earlier answers are, is seen (no coordinated omission); from when it was sent stands beside it. A generator that was late itself
says so (`late`): such a step says nothing about the server.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import gc
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import uvloop

from loadtest.capacity.crowd import MIX, Crowd, Request, parse_mix
from loadtest.capacity.ticker import Ticker
from loadtest.http1 import Answer, Pool

CONNECTIONS = 128
LATE_MS = 5.0
_BUSY = 0.95


@dataclass(frozen=True)
class Step:
    """`warm_up_s` comes first and does not count. `poisson`: gaps as of independent viewers; else all alike."""

    rate: float
    seconds: float
    warm_up_s: float = 0.0
    poisson: bool = True
    seed: int = 1

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError(f"rate: expected requests a second above 0, got {self.rate}")
        if self.seconds <= 0 or self.warm_up_s < 0:
            raise ValueError(f"seconds: expected above 0, got {self.seconds} and {self.warm_up_s} of warm-up")

    def dues(self) -> Iterator[float]:
        """Seconds from the beginning, warm-up included, ascending."""
        end, at, gap = self.warm_up_s + self.seconds, 0.0, 1 / self.rate
        chance = random.Random(self.seed)
        while True:
            at += chance.expovariate(self.rate) if self.poisson else gap
            if at >= end:
                return
            yield at


@dataclass(frozen=True)
class Report:
    """One step. Rates are requests a second; `achieved_per_s` counts the good answers that came while it lasted. Latencies from when
    requests were due; `sent_…` from when they were sent. `late_…`: from due to sent, the generator's own doing."""

    target_per_s: float
    sent_per_s: float
    achieved_per_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    sent_p50_ms: float
    sent_p99_ms: float
    late_p99_ms: float
    late_max_ms: float
    busy: float
    """Share of a core that the generator needed."""
    late: bool
    requests: int
    """That were due in the measured time."""
    requests_in_all: int
    """With the warm-up."""
    failed: int
    kinds: dict[str, int]
    wrong: dict[str, int]
    """What failed → how often: `429`, `no answer`, `block`, `degraded` …"""
    said: str
    """The first wrong answer."""


class OpenLoop:
    """Runs steps against one server. Use it in one event loop."""

    def __init__(self, base: str, crowd: Crowd, *, connections: int = CONNECTIONS, timeout_s: float = 10.0) -> None:
        self._pool = Pool(base, most=connections, timeout_s=timeout_s)
        self._crowd = crowd
        self._timeout = timeout_s

    def close(self) -> None:
        self._pool.close()

    async def run(self, step: Step, late_ms: float = LATE_MS) -> Report:
        run = _Run(step, self._pool, self._crowd)
        cpu, wall = time.process_time(), time.perf_counter()
        try:
            await run.all_sent()
            busy = (time.process_time() - cpu) / (time.perf_counter() - wall)
            await run.all_answered(self._timeout)
        finally:
            run.close()
        return run.report(busy, late_ms)


class _Run:
    """One step under way."""

    def __init__(self, step: Step, pool: Pool, crowd: Crowd) -> None:
        self._step, self._pool, self._crowd = step, pool, crowd
        self._dues = step.dues()
        self._next: float | None = next(self._dues, None)
        self._pending = 0
        self._in_all = 0
        self._latencies: list[float] = []
        self._since_sent: list[float] = []
        self._lateness: list[float] = []
        self._kinds: Counter[str] = Counter()
        self._wrong: Counter[str] = Counter()
        self._said = ""
        self._in_time = 0
        self._closed = False
        self._idle = asyncio.Event()
        self._began = time.perf_counter()
        self._counts_from = self._began + step.warm_up_s
        self._ends = self._counts_from + step.seconds
        self._ticker = Ticker(self._send_due)

    async def all_sent(self) -> None:
        await self._ticker.done
        await asyncio.sleep(max(0.0, self._ends - time.perf_counter()))

    async def all_answered(self, timeout_s: float) -> None:
        if self._pending:
            self._idle.clear()
            try:
                await asyncio.wait_for(self._idle.wait(), timeout_s)
            except TimeoutError:
                self._wrong["no answer"] += self._pending

    def close(self) -> None:
        self._closed = True
        self._ticker.close()

    def _send_due(self) -> float | None:
        due = self._next
        while due is not None:
            at, now = self._began + due, time.perf_counter()
            if at > now:
                return at
            self._send(self._crowd.next(), at, now)
            due = self._next = next(self._dues, None)
        return None

    def _send(self, request: Request, due: float, now: float) -> None:
        kind, method, path, body, token = request
        self._in_all += 1
        self._pending += 1
        if due >= self._counts_from:
            self._lateness.append(now - due)
            self._kinds[kind] += 1
        future = self._pool.send(method, path, body, token=token)
        future.add_done_callback(functools.partial(self._answered, due, now))

    def _answered(self, due: float, sent: float, future: asyncio.Future[Answer]) -> None:
        now = time.perf_counter()
        self._pending -= 1
        if not self._pending:
            self._idle.set()
        if self._closed:
            return
        answer = future.result()
        wrong = wrong_with(answer)
        if not wrong and self._counts_from <= now < self._ends:
            self._in_time += 1
        if due < self._counts_from:
            return
        self._latencies.append(now - due)
        self._since_sent.append(now - sent)
        if wrong:
            self._wrong[wrong] += 1
            self._said = self._said or f"{answer.status} {answer.body.decode(errors='replace')[:500]}"

    def report(self, busy: float, late_ms: float) -> Report:
        seconds = self._step.seconds
        due, sent, lateness = sorted(self._latencies), sorted(self._since_sent), sorted(self._lateness)
        late_p99 = _ms(lateness, 0.99)
        # What was due and is not answered yet has waited at least so long.
        waited = time.perf_counter() - self._ends
        due += [max(waited, due[-1] if due else 0.0)] * (len(lateness) - len(due))
        return Report(
            self._step.rate, len(lateness) / seconds, self._in_time / seconds,
            _ms(due, 0.5), _ms(due, 0.9), _ms(due, 0.99), _ms(due, 0.999), _ms(due, 1.0),
            _ms(sent, 0.5), _ms(sent, 0.99), late_p99, _ms(lateness, 1.0),
            busy, late_p99 > late_ms or busy > _BUSY, len(lateness), self._in_all, sum(self._wrong.values()),
            dict(self._kinds), dict(self._wrong), self._said,
        )  # fmt: skip


def wrong_with(answer: Answer) -> str:
    """'' for a good answer; what is wrong with it otherwise. All viewers are within their plan: a block is wrong."""
    if answer.status not in (200, 204):
        return str(answer.status) if answer.status else "no answer"
    if b'"decision":"block"' in answer.body:
        return "block"
    return "degraded" if b'"degraded":true' in answer.body else ""


def _ms(ordered: Sequence[float], share: float) -> float:
    """A percentile in ms, rounded to µs; 0 of nothing."""
    return round(percentile(ordered, share) * 1000, 3)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest rank: the smallest value that at least `share` of all are not above. 0 of nothing."""
    if not ordered:
        return 0.0
    return ordered[max(0, min(len(ordered) - 1, -int(-share * len(ordered) // 1) - 1))]


async def _serve(viewers: int, mix: dict[str, float], late_ms: float) -> None:
    """Steps from the input until it ends. Each server has a crowd of its own, whose sessions it knows."""
    loops: dict[str, OpenLoop] = {}
    crowds: dict[str, Crowd] = {}
    lines: asyncio.Queue[str] = asyncio.Queue()
    reader = asyncio.get_running_loop().run_in_executor(None, _read, lines, asyncio.get_running_loop())
    while line := await lines.get():
        asked: dict[str, Any] = json.loads(line)
        base = asked["base"]
        if base not in loops:
            crowds[base] = Crowd(viewers, mix)
            loops[base] = OpenLoop(base, crowds[base])
            gc.collect()
            gc.freeze()
        round_s = crowds[base].activate(asked["rate"])
        warm_up = max(asked.get("warm_up", 1.0), round_s if asked.get("whole_round") else 0.0)
        step = Step(asked["rate"], asked["seconds"], warm_up, asked.get("poisson", True), asked.get("seed", 1))
        print(json.dumps(asdict(await loops[base].run(step, late_ms))), flush=True)
    for loop in loops.values():
        loop.close()
    await reader


def _read(lines: asyncio.Queue[str], loop: asyncio.AbstractEventLoop) -> None:
    for line in sys.stdin:
        loop.call_soon_threadsafe(lines.put_nowait, line)
    loop.call_soon_threadsafe(lines.put_nowait, "")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.capacity.generator", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--viewers", type=int, default=10_000)
    parser.add_argument(
        "--mix", type=parse_mix, default=dict(MIX), help="default: plain=92,zap=3,join=2,stop=2,check=1"
    )
    parser.add_argument(
        "--late-ms", type=float, default=LATE_MS, help="p99 of its own lateness from which it says it was late"
    )
    args = parser.parse_args(argv)
    if args.viewers < 1:
        parser.error(f"--viewers: expected 1 or more, got {args.viewers}")
    uvloop.run(_serve(args.viewers, args.mix, args.late_ms))
    return 0


if __name__ == "__main__":
    sys.exit(main())
