"""What a figure finds in one seed, and how the findings of many seeds are added up. All of it can be kept as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from msgspec import Struct

CASES_MAX = 200
"""Cases kept of one figure and seed; the number of all of them is in `counts`."""


class Case(Struct):
    """One thing that is not as it should be, and where to look."""

    figure: str
    account: str
    at: int
    """Server's ms."""
    what: str
    seed: int = 0
    on: str = ""
    size: str = ""
    """Arguments that make the same population."""

    @property
    def replay(self) -> str:
        """The command that does it again and tells the story."""
        what = f"--first-seed {self.seed} --seeds 1" if self.account == "-" else f"--replay {self.seed} {self.account}"
        return f"python -m loadtest.truth --on {self.on or 'node'} {self.size} {what}".replace("  ", " ")


class Finding(Struct):
    """Of one figure: sums, single values, and cases. `seeds` that it is made of."""

    counts: dict[str, float] = {}
    values: dict[str, list[float]] = {}
    cases: list[Case] = []

    def count(self, name: str, more: float = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + more

    def value(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(round(value, 3))

    def case(self, figure: str, account: str, at: int, what: str) -> None:
        self.count(f"cases of {figure}")
        if len(self.cases) < CASES_MAX:
            self.cases.append(Case(figure, account, at, what))

    def add(self, other: Finding) -> None:
        for name, more in other.counts.items():
            self.count(name, more)
        for name, values in other.values.items():
            self.values.setdefault(name, []).extend(values)
        self.cases.extend(other.cases)


def added(findings: Iterable[Finding]) -> Finding:
    """All in one, in a finding of its own."""
    total = Finding(counts={}, values={}, cases=[])
    for finding in findings:
        total.add(finding)
    return total


def percentile(values: list[float], share: float) -> float:
    """The smallest value that `share` of all do not exceed; NaN of none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, -int(-share * len(ordered) // 1) - 1))]


@dataclass(frozen=True)
class Times:
    """The engine's promises the truth is judged by, ms: its settings' defaults."""

    interval: int = 10_000
    lifetime: int = 30_000
    stale: int = 15_000
    paused_keep: int = 300_000
    paused_silent: int = 60_000
    sweep: int = 750
    claim: int = 2_500
    retry: int = 2_000
    reopen: int = 1_800_000
    tick: int = 250
    evidence: dict[str, int] = field(
        default_factory=lambda: {"segment": 30_000, "manifest": 30_000, "licence": 600_000, "token": 600_000}
    )


TIMES = Times()
