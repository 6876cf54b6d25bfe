"""The parameters of trending, of one kind of content. docs/trending.md says what each is for and what was measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Self

from engine.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """Defaults are those of live channels. `_s` are seconds; viewers and accounts are counts; the rest has no unit."""

    # the score
    fast_half_life_s: float = 5.0  # of the fast average: what is observed
    slow_half_life_s: float = 1800.0  # of the slow average: so long a surge is news
    margin: float = 0.2  # an audience this share above its usual one is as expected
    growth_max: float = 2.0  # the expectation follows what all contents do together up to this factor
    softening: float = 10.0  # viewers; k under the root: what keeps handfuls of viewers from being surprises
    # the list
    enter: float = 5.0
    leave: float = 2.5
    accounts_min: int = 10  # distinct accounts in five minutes; below half of it a listed content leaves
    candidates_max: int = 500  # contents whose distinct accounts are asked for in one tick, best first
    # no history
    newcomer: float = 20.0  # viewers expected of a content known for less than newcomer_s
    newcomer_s: float = 86_400.0
    warmup_s: float = 60.0  # a scope observed for less than this lists nothing
    # the profile by hour of the week
    week_weight: float = 0.4  # of the newest week
    edge_s: float = 600.0  # a programme may begin so much before its hour, or end so much after it
    level_half_life_s: float = 43_200.0  # of what tells whether a content is below its profile for good
    # popular
    popular_window_s: float = 86_400.0
    runtime_default_s: float = 3600.0  # where no content's runtime is known
    runtime_min_s: float = 300.0  # shorter ones count as this long: a looped clip is no favourite
    # bounds
    forget_s: float = 15 * 86_400.0  # must be more than a week, or weekly contents would always be new
    contents_max: int = 50_000

    @classmethod
    def of(cls, settings: Settings, kind: str) -> Self:
        """`kind` is `live` or `vod`: they differ in how fast an audience is believed."""
        return cls(
            fast_half_life_s=settings.trending_live_fast_s if kind == "live" else settings.trending_vod_fast_s,
            slow_half_life_s=settings.trending_slow_s,
            margin=settings.trending_margin,
            softening=settings.trending_softening,
            enter=settings.trending_enter,
            leave=settings.trending_leave,
            accounts_min=settings.trending_accounts_min,
            newcomer=settings.trending_newcomer,
            warmup_s=settings.trending_warmup_s,
            week_weight=settings.trending_week_weight,
            popular_window_s=settings.trending_popular_s,
            forget_s=settings.trending_forget_days * 86_400.0,
            contents_max=settings.trending_contents_max,
        )

    def formula(self) -> dict[str, str | float | int]:
        """What a published list of trending contents says about its scores."""
        return {
            "name": "surprise",
            "score": "(observed - expected) / sqrt(expected + softening)",
            "observed": "min(fast average of viewers, distinct accounts in 5 min)",
            "expected": "(1 + margin) * growth * max(slow average, same hour of the week)",
            **asdict(self),
        }

    def popular_formula(self) -> dict[str, str | float | int]:
        """The same for a list of popular titles."""
        return {
            "name": "viewings",
            "score": "observed / expected",
            "observed": "hours viewed, an hour ago counting exp(-1 h / window)",
            "expected": "runtime in hours; where unknown the median of the known ones",
            "popular_window_s": self.popular_window_s,
            "runtime_default_s": self.runtime_default_s,
            "runtime_min_s": self.runtime_min_s,
        }
