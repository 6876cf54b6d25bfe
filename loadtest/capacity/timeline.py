"""What happened in each second around an outage, and when percentiles were as before. Pure: moments are given (s)."""

from __future__ import annotations

import math
import statistics
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from loadtest.bench_table import Sheet
from loadtest.capacity.generator import percentile

CALM_S = 5
"""So many seconds in a row must be normal."""
LEAST_MS = 10.0
"""p99 below this is normal whatever it was before, unless told otherwise."""


@dataclass
class Second:
    """Answers count where they came. Latencies are in s, from when the heartbeat was wanted."""

    wanted: int = 0
    """Heartbeats that were due; retries do not count."""
    attempts: int = 0
    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    blocked: int = 0
    """Falsely."""
    latencies: array[float] = field(default_factory=lambda: array("d"))

    def quantile_ms(self, share: float) -> float:
        return percentile(sorted(self.latencies), share) * 1000


@dataclass(frozen=True)
class Normal:
    """What was usual before, and when it was so again."""

    p50_ms: float
    p99_ms: float
    limit_ms: float
    """p99 up to which a second is as before."""
    after_s: float | None
    """From the return until it was so for `CALM_S` seconds in a row (their beginning counts); None: not yet."""


class Timeline:
    """Seconds counted from `zero`; before it they are negative."""

    def __init__(self, zero: float) -> None:
        self.zero = zero
        self.seconds: dict[int, Second] = {}

    def at(self, moment: float) -> Second:
        number = math.floor(moment - self.zero)
        found = self.seconds.get(number)
        if found is None:
            found = self.seconds[number] = Second()
        return found

    def normal(self, before: tuple[int, int], back: float, least_ms: float = LEAST_MS) -> Normal:
        """`before`: seconds from, to (exclusive) that were usual; `back`: when the API was there again (s after zero).

        A second is as before when its p99 is at most twice the median of theirs, or the worst but a tenth of theirs, or
        `least_ms`, whichever is most; when as many answers came in it as nine tenths of what was usual; and when nothing
        failed. Raises ValueError without any usual second.
        """
        usual = [s for number, s in self.seconds.items() if before[0] <= number < before[1] and s.answered]
        if not usual:
            raise ValueError(f"before: no answers in the seconds {before[0]} to {before[1]}")
        p50 = statistics.median(s.quantile_ms(0.5) for s in usual)
        p99s = sorted(s.quantile_ms(0.99) for s in usual)
        p99 = statistics.median(p99s)
        limit = max(2 * p99, percentile(p99s, 0.9), least_ms)
        least = 0.9 * statistics.median(s.answered for s in usual)
        # The last second may not have been whole.
        last, calm = max(self.seconds), 0
        for number in range(math.ceil(back), last):
            second = self.seconds.get(number, Second())
            good = second.answered >= least and not second.failed and second.quantile_ms(0.99) <= limit
            calm = calm + 1 if good else 0
            if calm == CALM_S:
                return Normal(p50, p99, limit, max(0.0, number + 1 - CALM_S - back))
        return Normal(p50, p99, limit, None)

    def sheet(self, marks: Sequence[tuple[float, str]] = ()) -> Sheet:
        """A line a second; stretches without any answer are folded. `marks`: (s after zero, what happened then)."""
        told = {math.floor(at): what for at, what in marks}
        lines: list[tuple[str, ...]] = []
        silent: list[int] = []

        def fold() -> None:
            if silent:
                failed = sum(self.seconds[n].failed.total() for n in silent if n in self.seconds)
                lines.append((f"{silent[0]}…{silent[-1]}", "", "", f"{failed:,}", "", "", "", "no answers"))
                silent.clear()

        for number in range(min(self.seconds, default=0), max(self.seconds, default=-1) + 1):
            second = self.seconds.get(number, Second())
            if not second.answered and number not in told:
                silent.append(number)
                continue
            fold()
            why = ", ".join(f"{why} {n:,}" for why, n in second.failed.most_common(2))
            latencies = [f"{second.quantile_ms(share):,.1f}" if second.answered else "" for share in (0.5, 0.99)]
            lines.append((
                f"{number}", f"{second.wanted:,}", f"{second.answered:,}", f"{second.failed.total():,}", *latencies,
                f"{second.blocked:,}", "; ".join(part for part in (told.get(number, ""), why) if part),
            ))  # fmt: skip
        fold()
        return Sheet(("s", "due", "answered", "failed", "p50 ms", "p99 ms", "false blocks", ""), tuple(lines))

    def to_json(self) -> list[dict[str, object]]:
        return [
            {
                "s": number, "due": s.wanted, "attempts": s.attempts, "answered": s.answered, "failed": dict(s.failed),
                "false_blocks": s.blocked, "p50_ms": s.quantile_ms(0.5), "p99_ms": s.quantile_ms(0.99),
            }
            for number, s in sorted(self.seconds.items())
        ]  # fmt: skip
