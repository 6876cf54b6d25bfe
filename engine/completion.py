"""From where on a title counts as completed, and up to where a position is too early to keep.

Used by the heartbeat (`completed` of a `view_end`) and by the resume projection, so that both say the same. Pure functions;
all positions and durations are seconds. Live content has neither point: callers ask for `vod` only.

Defaults by content length, and where they come from:

| length            | too early                      | completed from                                                     |
|-------------------|--------------------------------|--------------------------------------------------------------------|
| under 5 min       | always: never resumable (Jellyfin) | 90 %                                                           |
| 5 to 15 min       | 5 % (Jellyfin)                 | 80 %: three minutes would be too large a part of it                |
| 15 to 30 min      | 5 %                            | less than 3 min left (Android TV)                                  |
| 30 to 100 min     | 5 %, at most 2 min (Android TV) | 90 % (Jellyfin)                                                   |
| longer            | 2 min                          | 10 min left: 90 % of a long film may be its last act. 92 % of two hours, as Kodi has it |
| unknown           | 2 min                          | never by itself                                                    |

A credits marker from the player wins over all of these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from engine.settings import Settings


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The settings behind both points; `_s` are seconds, `_ratio` shares of the content's length."""

    short_s: float = 300.0
    early_ratio: float = 0.05
    early_s: float = 120.0
    completed_ratio: float = 0.9
    completed_least_ratio: float = 0.8
    completed_left_s: float = 180.0
    completed_left_max_s: float = 600.0

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(
            settings.resume_short_s, settings.resume_early_ratio, settings.resume_early_s, settings.completed_ratio,
            settings.completed_least_ratio, settings.completed_left_s, settings.completed_left_max_s,
        )  # fmt: skip


def completed_point(duration_s: float | None, credits_s: float | None, thresholds: Thresholds) -> float | None:
    """The position from which a title counts as completed; None if nothing tells (never completed by itself).

    `credits_s` is where the end credits start: it wins, unless it lies outside the title. Else 90 % or 3 min before the end,
    whichever is earlier, but neither before 80 % nor more than 10 min before the end; under 5 min 90 %.
    """
    length = duration_s if duration_s and duration_s > 0 else None
    if credits_s and credits_s > 0 and (length is None or credits_s <= length):
        return credits_s
    if length is None:
        return None
    t = thresholds
    point = t.completed_ratio * length
    if length < t.short_s:
        return point
    point = min(point, length - t.completed_left_s)
    return max(point, t.completed_least_ratio * length, length - t.completed_left_max_s)


def too_early_point(duration_s: float | None, thresholds: Thresholds) -> float:
    """A position before this is not kept. Infinite for titles too short to be resumed at all."""
    if not duration_s or duration_s <= 0:
        return thresholds.early_s
    if duration_s < thresholds.short_s:
        return math.inf
    return min(thresholds.early_ratio * duration_s, thresholds.early_s)
