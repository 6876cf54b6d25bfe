"""What each content's audience is at each hour of the week.

For every hour the profile keeps the busiest five minutes of it, averaged over the weeks. The mean of the hour would not do: a
news programme of twenty minutes is three times the mean of its own hour, every night.

168 arrays, one for each hour of the week (UTC, from the epoch), each with a 16-bit code for every slot: so only one array changes
in an hour. A code is 1 + 4000·ln(1 + viewers), exact to 0.03 %, up to 13 million viewers; 0 is unknown.

A slot is reused when its content is forgotten. Nothing is erased then: an array knows the hour (since the epoch) at which it was
written, and what was written before its slot's content came (`born`) is of somebody else.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

HOURS = 168
_DAYS = 7
_SCALE = 4000.0
_TOP = 65_535

UNKNOWN = -1.0


def encode(viewers: float) -> int:
    return min(_TOP, 1 + round(_SCALE * math.log1p(viewers)))


_DECODED = [UNKNOWN, *(math.expm1(code / _SCALE) for code in range(_TOP))]


def decode(code: int) -> float:
    """Viewers, or UNKNOWN."""
    return _DECODED[code]


class Profile:
    """`weight` is that of the newest week, 0 to 1."""

    def __init__(self, weight: float) -> None:
        self._weight = weight
        self.parts: list[array[int]] = [array("H") for _ in range(HOURS)]
        self.written = [-1] * HOURS

    def learn(self, hour: int, audience: Sequence[float], born: Sequence[int]) -> None:
        """The busiest five minutes of `hour` (since the epoch) of every slot; a slot with UNKNOWN has no content."""
        old = [_DECODED[code] for code in self._codes(hour, born)]
        weight = self._weight
        codes = [
            0 if seen == UNKNOWN else encode(seen if known == UNKNOWN else known + weight * (seen - known))
            for seen, known in zip(audience, old, strict=True)
        ]
        week = hour % HOURS
        self.parts[week], self.written[week] = array("H", codes), hour

    def at(self, hour: int, born: Sequence[int]) -> list[float]:
        """What is usual at `hour`, by slot: the same hour of the week, else of the latest day before that is known."""
        codes = self._codes(hour, born)
        missing = [slot for slot, code in enumerate(codes) if not code]
        for day in range(1, _DAYS):
            if not missing:
                break
            if self.written[(hour - 24 * day) % HOURS] < 0:
                continue
            earlier = self._codes(hour - 24 * day, born)
            for slot in missing:
                codes[slot] = earlier[slot]
            missing = [slot for slot in missing if not codes[slot]]
        return [_DECODED[code] for code in codes]

    def _codes(self, hour: int, born: Sequence[int]) -> list[int]:
        week = hour % HOURS
        part, written = self.parts[week], self.written[week]
        codes = [code if since <= written else 0 for code, since in zip(part, born, strict=False)]
        codes.extend([0] * (len(born) - len(codes)))
        return codes
