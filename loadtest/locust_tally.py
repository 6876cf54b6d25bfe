"""What heartbeats were due, and what became of them: the target rate, the achieved rate, and latency from when each was due.

A generator that waits for an answer before it sends the next request asks less of a slow server than its users would
(coordinated omission), and its percentiles look better than what users see. So a heartbeat is counted as due at the moment
its player had promised it, by the clock, whether or not the generator or the server kept up: `plan` notes it ahead, and
each second that passes moves its notes to `due`. Target = due a second; achieved = answered a second.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

END = "end"
"""The phase after the shape's last: users are being stopped, and nothing of it counts."""


def bucket(ms: float) -> float:
    """The latency to two significant digits, of which histograms are made."""
    return float(f"{ms:.2g}")


def percentile(histogram: Counter[float], percent: float) -> float | None:
    """ms; None if there is nothing."""
    total = sum(histogram.values())
    passed = 0
    for value in sorted(histogram):
        passed += histogram[value]
        if passed >= total * percent / 100:
            return value
    return None


@dataclass
class Counts:
    """Heartbeats that were due in one phase."""

    due: int = 0
    answered: int = 0
    false_blocks: int = 0
    degraded: int = 0
    attempts_failed: int = 0
    """Sent, and not answered in time or with an error; retries count each."""
    from_send: Counter[float] = field(default_factory=Counter)
    """ms → answers, counted from when the answered attempt was sent."""
    from_due: Counter[float] = field(default_factory=Counter)
    """ms → answers, counted from when the heartbeat was due."""

    def add(self, other: Counts) -> None:
        self.due += other.due
        self.answered += other.answered
        self.false_blocks += other.false_blocks
        self.degraded += other.degraded
        self.attempts_failed += other.attempts_failed
        self.from_send.update(other.from_send)
        self.from_due.update(other.from_due)

    def to_wire(self) -> list[Any]:
        return [self.due, self.answered, self.false_blocks, self.degraded, self.attempts_failed,
                list(self.from_send.items()), list(self.from_due.items())]  # fmt: skip

    @classmethod
    def from_wire(cls, told: list[Any]) -> Counts:
        due, answered, false_blocks, degraded, failed, from_send, from_due = told
        return cls(due, answered, false_blocks, degraded, failed, Counter(dict(from_send)), Counter(dict(from_due)))


class Tally:
    """One process's count; the master's is the sum of its workers'. Times are of the monotonic clock."""

    def __init__(self) -> None:
        self.phases: dict[str, Counts] = {}
        """In the order in which they came."""
        self.seconds: dict[int, list[int]] = {}
        """Second since the epoch → [due, answered]."""
        self.live: dict[str, int] = {}
        """Generator process → players it drives now."""
        self._began: list[tuple[float, str]] = [(0.0, "")]
        """When each phase began, in order."""
        self._planned: dict[int, Counter[float]] = {}
        """Second → when in it → heartbeats."""
        self._until = time.monotonic()
        """What was planned until then has been counted as due."""
        self._offset = time.time() - time.monotonic()

    def reset(self) -> None:
        """Forgets all; a run begins."""
        self.__init__()  # type: ignore[misc]

    @property
    def phase(self) -> str:
        return self._began[-1][1]

    def phase_at(self, at: float) -> str:
        return next(name for began, name in reversed(self._began) if began <= at)

    def _second(self, at: float) -> int:
        return int(at + self._offset)

    # the generator

    def plan(self, at: float) -> None:
        """A heartbeat will be due then."""
        if at <= self._until:
            self._due(at, 1)
        else:
            self._planned.setdefault(self._second(at), Counter())[at] += 1

    def unplan(self, at: float) -> None:
        """It will not: its player left, or sends one earlier. One whose moment has passed was due all the same."""
        if at > self._until:
            self._planned[self._second(at)][at] -= 1

    def advance(self, now: float, phase: str | None = None) -> None:
        """What was planned until `now` was due; from then on the phase is `phase`."""
        for second in range(self._second(self._until), self._second(now) + 1):
            planned = self._planned.get(second, Counter())
            for at in [at for at in planned if at <= now]:
                self._due(at, planned.pop(at))
            if second < self._second(now):
                self._planned.pop(second, None)
        self._until = max(now, self._until)
        if phase is not None and phase != self.phase:
            self._began.append((now, phase))
            self.counts(phase)

    def _due(self, at: float, count: int) -> None:
        self.counts(self.phase_at(at)).due += count
        self.seconds.setdefault(self._second(at), [0, 0])[0] += count

    def counts(self, phase: str) -> Counts:
        return self.phases.setdefault(phase, Counts())

    def answered(self, due: float, sent: float, now: float) -> None:
        """A heartbeat that was due then was answered."""
        counts = self.counts(self.phase_at(due))
        counts.answered += 1
        counts.from_send[bucket(1000 * (now - sent))] += 1
        counts.from_due[bucket(1000 * (now - due))] += 1
        self.seconds.setdefault(self._second(now), [0, 0])[1] += 1

    # between processes

    def drain(self) -> dict[str, Any]:
        """All counted since the last call, for `merge` elsewhere."""
        told = {
            "phases": [[name, counts.to_wire()] for name, counts in self.phases.items()],
            "seconds": [[second, *counts] for second, counts in self.seconds.items()],
            "live": dict(self.live),
        }
        self.phases, self.seconds = {}, {}
        return told

    def merge(self, told: dict[str, Any]) -> None:
        for name, counts in told["phases"]:
            self.counts(name).add(Counts.from_wire(counts))
        for second, due, answered in told["seconds"]:
            known = self.seconds.setdefault(second, [0, 0])
            known[0] += due
            known[1] += answered
        self.live.update(told["live"])

    # what it comes to

    @property
    def players(self) -> int:
        return sum(self.live.values())

    def total(self, without: Collection[str] = ()) -> Counts:
        """The sum of all phases but these, the end, and what was before the first."""
        total = Counts()
        for name, counts in self.phases.items():
            if name and name != END and name not in without:
                total.add(counts)
        return total

    def rates(self, behind_s: int, over_s: int = 5) -> tuple[float, float]:
        """Due and answered a second, over the last whole seconds; `behind_s` is how late generators report."""
        until = int(time.time()) + 1 - behind_s
        rows = [self.seconds.get(second, (0, 0)) for second in range(until - over_s, until)]
        return sum(row[0] for row in rows) / over_s, sum(row[1] for row in rows) / over_s
