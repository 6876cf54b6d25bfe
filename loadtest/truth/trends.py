"""Trending: how soon planted surges are listed, and how right the lists are.

As in docs/trending.md: a surge is judged if it is of ×3 or more on a content with 50 viewers or more; its delay is from its first
new viewer to the list; a listed content is right from then on (a surge stays news until it is the new normal). The first ten of
every list that was looked at make the precision.
"""

from __future__ import annotations

from collections import defaultdict

from loadtest.truth.figures import Finding
from loadtest.truth.truth import Observed, Surge, Truth

TRENDING = "trending"
MOST_S = {"live": 30.0, "vod": 120.0}
FACTOR_MIN, VIEWERS_MIN = 3.0, 50.0
FIRST = 10
NEVER_S = 86_400.0
"""Stands for a delay that has no end: JSON knows no infinity."""


def judged(surge: Surge) -> bool:
    return not surge.decoy and surge.factor >= FACTOR_MIN and surge.viewers_before >= VIEWERS_MIN


def trends(truth: Truth) -> Finding:
    """Values: `live delay`, `vod delay`, s."""
    found = Finding(counts={}, values={"live delay": [], "vod delay": []}, cases=[])
    for name in ("planted", "found", "shown", "right", "decoys", "decoys listed"):
        found.count(name, 0)
    seen = [each for each in truth.observed if each.trending is not None and each.at >= truth.run.start]
    for surge in truth.surges:
        if surge.decoy:
            _decoy(surge, seen, found)
        elif judged(surge):
            _planted(surge, seen, found)
        else:
            found.count("too small to be judged")
    _precision(truth.surges, seen, found)
    return found


def _first_listed(surge: Surge, seen: list[Observed]) -> int | None:
    """When it was listed for the first time while it lasted, ms."""
    for each in seen:
        if surge.from_ <= each.at <= surge.to and surge.content in (each.trending or {}).get(surge.kind, []):
            return each.at
    return None


def _planted(surge: Surge, seen: list[Observed], found: Finding) -> None:
    listed = _first_listed(surge, seen)
    found.count("planted")
    found.count("found", listed is not None)
    delay = NEVER_S if listed is None else (listed - surge.from_) / 1000
    found.value(f"{surge.kind} delay", delay)
    if delay > MOST_S[surge.kind]:
        how = "never listed" if listed is None else f"listed after {delay:g} s"
        found.case(
            TRENDING, "-", surge.from_,
            f"{surge.kind} {surge.content}: ×{surge.factor:g} on {surge.viewers_before:g} viewers, {how}",
        )  # fmt: skip


def _decoy(surge: Surge, seen: list[Observed], found: Finding) -> None:
    listed = _first_listed(surge, seen)
    found.count("decoys")
    if listed is not None:
        found.count("decoys listed")
        found.case(TRENDING, "-", listed, f"{surge.kind} {surge.content}: a decoy was listed")


def _precision(surges: list[Surge], seen: list[Observed], found: Finding) -> None:
    begun: dict[tuple[str, str], int] = {}
    for surge in surges:
        if not surge.decoy:
            key = surge.kind, surge.content
            begun[key] = min(begun.get(key, surge.from_), surge.from_)
    wrong: dict[tuple[str, str], int] = defaultdict(int)
    for each in seen:
        for kind, listed in (each.trending or {}).items():
            for content in listed[:FIRST]:
                right = begun.get((kind, content), each.at + 1) <= each.at
                found.count("shown")
                found.count("right", right)
                if not right and not wrong[kind, content]:
                    found.case(
                        "trending: false alarm",
                        "-",
                        each.at,
                        f"{kind} {content} was listed, and nothing was planted there",
                    )
                wrong[kind, content] += not right
