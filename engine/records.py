"""Reads what lua/lib/record.lua writes, for those who look from outside: maintenance, verification, tests."""

from __future__ import annotations

from dataclasses import dataclass

LIFE = (
    "ordinal", "rank", "blocked", "started", "origin", "beaten", "admitted", "revision", "run", "proven", "paused", "ended", "reason",
    "by", "rule", "debt", "debt_at", "left", "left_at", "signal_at", "signal_rank", "away", "spared", "shared",
)  # fmt: skip
"""The fields of the life line, in the script's order."""
IDENT = ("device", "content", "kind", "device_type", "provider", "profile", "rules", "duration")

RUNNING, TENTATIVE, ENDED, BLOCKED = "rteb"


@dataclass(frozen=True, slots=True)
class Record:
    """One session of an account. `life` and `ident` are text, '' for what is not written."""

    session: str
    status: str
    life: dict[str, str]
    ident: dict[str, str]

    @property
    def rules(self) -> tuple[str, ...]:
        return tuple(filter(None, self.ident["rules"].split(",")))

    @property
    def watched(self) -> str | None:
        """What it is counted under in the audience (`<kind>\\t<content>\\t<provider>`); None if it is not counted."""
        if self.status != RUNNING or self.life["away"]:
            return None
        return "\t".join(self.ident[name] for name in ("kind", "content", "provider"))


def read(text: bytes) -> Record:
    """Raises ValueError for what is no record."""
    session, _, life, ident = text.decode().split("\n")
    return Record(session, life[0], _fields(LIFE, life[1:]), _fields(IDENT, ident))


def _fields(names: tuple[str, ...], line: str) -> dict[str, str]:
    values = line.split("\t")
    return dict(zip(names, values + [""] * (len(names) - len(values)), strict=False))
