"""What came of an attack: a row of the table, and the lines below it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from loadtest.attack.attacker import Done
from loadtest.attack.base import Attack
from loadtest.attack.bystander import Seen
from loadtest.bench_table import Sheet, table

P99_RATIO = 3.0
COLUMNS = (
    "attack", "line", "answers/s", "statuses", "degraded", "wrong", "unanswered", "p50 without, with", "p99 without, with", "ratio",
    "stall", "API MB", "Redis MB", "held",
)  # fmt: skip


@dataclass(frozen=True)
class Grown:
    """Bytes: before, and at most while it was attacked."""

    before: int
    most: int

    @property
    def mb(self) -> float:
        return (self.most - self.before) / 1e6


@dataclass(frozen=True)
class Result:
    attack: type[Attack]
    without: Seen
    with_: Seen
    done: Done
    api: Grown
    redis: Grown
    trouble: str = ""
    """Why it could not be measured to its end; '' if it was."""

    @property
    def ratio(self) -> float:
        """p99 with the attack to p99 without."""
        return self.with_.p99_ms / max(self.without.p99_ms, 0.01)

    @property
    def missed(self) -> list[str]:
        """Goals that were not met, in words."""
        seen = self.with_
        found = [
            f"{what} {count}" for what, count in (
                ("degraded", seen.degraded), ("wrong", seen.wrong), ("unanswered", seen.unanswered), ("5xx", self.done.server_errors),
                ("without an end", self.done.hung),
            ) if count
        ]  # fmt: skip
        if self.ratio > P99_RATIO:
            found.append(f"p99 × {self.ratio:.1f}")
        found += [finding.text() for finding in self.done.found if finding.missed]
        return found + ([self.trouble] if self.trouble else [])

    def line(self) -> tuple[str, ...]:
        seen, before = self.with_, self.without
        return (
            self.attack.name, self.attack.line, f"{self.done.answered_per_s:,.0f}", classes(self.done.statuses), f"{seen.degraded:,}",
            f"{seen.wrong:,}", f"{seen.unanswered:,}", f"{before.p50_ms:.1f}, {seen.p50_ms:.1f}", f"{before.p99_ms:.1f}, {seen.p99_ms:.1f}",
            f"{self.ratio:.1f}", f"{seen.stall_ms:.0f}", f"{self.api.mb:+,.0f}", f"{self.redis.mb:+,.1f}", "no" if self.missed else "yes",
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        return {
            "attack": self.attack.name, "line": self.attack.line, "what": self.attack.what, "holds": self.attack.holds,
            "without": asdict(self.without), "with": asdict(self.with_), "done": asdict(self.done), "api_bytes": asdict(self.api),
            "redis_bytes": asdict(self.redis), "p99_ratio": round(self.ratio, 2), "missed": self.missed,
        }  # fmt: skip


def classes(statuses: dict[str, int]) -> str:
    """`2xx 310, 429 12, reset 3`: successes together, the rest by status."""
    counted: Counter[str] = Counter()
    for status, count in statuses.items():
        counted["2xx" if status.startswith("2") and status.isdigit() else status] += count
    return ", ".join(f"{status} {count:,}" for status, count in sorted(counted.items()))


def summary(results: Sequence[Result]) -> str:
    """The table, then what each attack is about."""
    title = "The bystander beside each attack (ms; memory: growth)"
    lines = [table(title, [Sheet(COLUMNS, tuple(result.line() for result in results))])]
    for result in results:
        found = [finding.text() for finding in result.done.found]
        if result.done.not_sent:
            found.append(f"not sent, because too many were under way: {result.done.not_sent:,}")
        found += [f"fault of the attacker: {what} ({count:,})" for what, count in result.done.errors.items()]
        missed = "; ".join(result.missed)
        lines.append(f"{result.attack.name}: {result.attack.what}")
        lines += [f"    {each}" for each in found]
        lines.append(f"    {'NOT HELD: ' + missed if missed else 'held'}")
    return "\n".join(lines)
