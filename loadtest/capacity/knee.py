"""The search for the knee: the highest rate that is still answered well. Pure: what measures a rate is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Point(Protocol):
    """What a step must tell (generator.Report does)."""

    @property
    def target_per_s(self) -> float: ...
    @property
    def achieved_per_s(self) -> float: ...
    @property
    def p99_ms(self) -> float: ...
    @property
    def requests(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def late(self) -> bool: ...


P = TypeVar("P", bound=Point)


@dataclass(frozen=True)
class Goal:
    """What an answered-well rate keeps: p99 (ms, from due), share of the target achieved, share of failures."""

    p99_ms: float = 50.0
    achieved: float = 0.97
    failed: float = 0.001

    def broken(self, point: Point) -> str:
        """'' if the point keeps it, else which part it breaks."""
        if point.failed > self.failed * point.requests:
            return f"{point.failed} of {point.requests} failed"
        if point.achieved_per_s < self.achieved * point.target_per_s:
            return f"achieved {point.achieved_per_s:,.0f}/s of {point.target_per_s:,.0f}/s"
        if point.p99_ms > self.p99_ms:
            return f"p99 {point.p99_ms:.1f} ms"
        return ""


@dataclass(frozen=True)
class Tried(Generic[P]):
    point: P
    broken: str
    """'' kept the goal; `generator late` did not count."""


@dataclass
class Found(Generic[P]):
    """`at`: the step at the knee. `why`: what broke above it. `at_least`: the search ended because the generator could do no more or the most
    asked for was reached, so the knee may lie higher."""

    at: P | None = None
    why: str = ""
    at_least: bool = False
    tried: list[Tried[P]] = field(default_factory=list)

    @property
    def per_s(self) -> float:
        return self.at.target_per_s if self.at is not None else 0.0


LATE = "generator late"


def find(
    measure: Callable[[float], P], goal: Goal, *, start: float = 1_000.0, most: float = 100_000.0, factor: float = 1.5,
    precision: float = 0.05, attempts: int = 2,
) -> Found[P]:  # fmt: skip
    """Steps up by `factor` until the goal is broken, then bisects until the bounds are within `precision`.

    A rate counts as broken only if it breaks `attempts` times in a row: a neighbour's burst is no knee. Steps in which the generator
    was late count for nothing and are measured again, twice as often at most.
    """
    if not (0 < start <= most and factor > 1 and 0 < precision < 1 and attempts >= 1):
        raise ValueError(
            "start, most, factor, precision, attempts: expected 0 < start ≤ most, factor > 1, 0 < precision < 1, attempts ≥ 1"
        )
    found: Found[P] = Found()
    bad: float | None = None
    rate = start
    while True:
        good, why = _judge(measure, goal, rate, attempts, found)
        if good is not None:
            found.at = good
            if bad is None and rate >= most:
                found.at_least, found.why = True, f"no more than {most:,.0f}/s was asked for"
                return found
        else:
            bad, found.why, found.at_least = rate, why, why == LATE
        if bad is None:
            rate = min(rate * factor, most)
            continue
        low = found.per_s
        if bad - low <= precision * bad or bad < start / 64:
            return found
        # Below the first step nothing is known to be good: halve until something is.
        rate = (low + bad) / 2 if low else bad / 2


def _judge(
    measure: Callable[[float], P], goal: Goal, rate: float, attempts: int, found: Found[P]
) -> tuple[P | None, str]:
    """(the point that kept the goal, '') or (None, why not)."""
    why, broken, late = LATE, 0, 0
    while broken < attempts and late < 2 * attempts:
        point = measure(rate)
        said = LATE if point.late else goal.broken(point)
        found.tried.append(Tried(point, said))
        if not said:
            return point, ""
        if said == LATE:
            late += 1
        else:
            broken, why = broken + 1, said
    return None, why if broken == attempts else LATE
