"""When people watch: by the hour of the day and the day of the week, UTC."""

from __future__ import annotations

import math

DAY_MS = 86_400_000
WEEK_MS = 7 * DAY_MS
BUSY = 0.5
"""Share of the people who watch at an average hour."""
BUSY_MAX = 0.85


def level(now: int) -> float:
    """1 on average: 0.4 in the early morning, 1.6 in the evening, a fifth more at the weekend."""
    hour, day = now % DAY_MS / 3_600_000, now // DAY_MS % 7
    weekend = 1.2 if day in (2, 3) else 1.0  # the epoch was a Thursday
    return weekend * (1.0 + 0.6 * math.sin((hour - 14) / 24 * 2 * math.pi))


def watching(now: int) -> float:
    """The share of the people who watch at that moment."""
    return min(BUSY_MAX, BUSY * level(now))
