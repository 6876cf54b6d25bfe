"""The popular titles: hours viewed ÷ runtime, so that long titles gain nothing."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from statistics import median

from engine.trending.detector import Detector
from engine.trending.items import Distinct, Item


def popular(
    detector: Detector,
    counts: Mapping[str, int],
    runtimes: Mapping[str, float],
    *,
    limit: int = 100,
    distinct: Distinct | None = None,
) -> list[Item]:
    """The `limit` titles with the most viewings, best first.

    `runtimes` are seconds by content; one that is missing or not above 0 counts as the median of the known ones in this
    scope. In the items `observed` is the hours viewed (the last day counts most, see docs/trending.md), `expected` the hours
    that one viewing takes, `score` their ratio, and `since` when the content was first seen in this scope.
    """
    params, slots = detector.params, detector.slots
    known = {name: seconds for name, seconds in runtimes.items() if seconds > 0 and name in slots.index}
    usual = median(known.values()) if known else params.runtime_default_s
    rated = [
        (hours * 3600 / max(params.runtime_min_s, known.get(name, usual)), name, hours)
        for name, hours in zip(slots.names, detector.viewed, strict=True)
        if name is not None and hours > 0
    ]
    best = heapq.nlargest(limit, rated)
    heard = distinct([name for _, name, _ in best]) if distinct is not None and best else {}
    return [
        Item(
            content=name,
            observed=round(hours, 3),
            expected=round(max(params.runtime_min_s, known.get(name, usual)) / 3600, 4),
            score=round(score, 3),
            concurrent=max(0, counts.get(name, 0)),
            distinct=heard.get(name, 0),
            since=slots.born[slots.index[name]] * 3_600_000,
        )
        for score, name, hours in best
    ]
