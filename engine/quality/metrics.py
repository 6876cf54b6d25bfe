"""The figures of stream quality, as SQL over facts. Definitions: CTA-2066 draft, Mux (score).

A figure is a ratio of sums over all that was asked for, never a mean of ratios. The sums are made in two steps: first for each session of a group
(`SESSION`: the parts of a session), then over the group's sessions (`Metric`). So a group knows how many sessions are behind each
figure, and what only some players can tell is divided by the play of just those.

| figure                | is                                                             | over which sessions                   |
|-----------------------|----------------------------------------------------------------|---------------------------------------|
| sessions              | distinct sessions (of an account)                              | all                                   |
| attempts              | playback was asked for                                         | that attempted                        |
| plays                 | first frames                                                   | that started                          |
| startup_time          | ms from the request to the first frame, mean and percentiles   | whose start could be measured         |
| start_failure_rate    | fatal errors before the first frame ÷ attempts                 | that attempted                        |
| exit_before_start_rate| left before the first frame ÷ attempts                         | that attempted                        |
| rebuffer_ratio        | stall ÷ (play + stall)                                         | whose player tells when it stalls     |
| rebuffer_ratio_cta    | stall ÷ (play + stall + startup), as CTA-2066 has it           | the same                              |
| rebuffer_frequency    | stalls ÷ played minute                                         | the same                              |
| rebuffer_duration     | ms of a stall: stall ÷ stalls                                  | that stalled                          |
| bitrate               | bits/s: bits ÷ play whose bitrate is known                     | whose bitrate is known                |
| switches, degradations| changes of bitrate, downward ones ÷ minute of such play        | the same                              |
| playback_failure_rate | sessions with a fatal error after the start ÷ sessions         | that had started                      |
| business_refusal_rate | sessions with a meant refusal ÷ sessions                       | all                                   |
| dropped_frames        | frames dropped ÷ played minute                                 | that tell dropped frames              |
| live_latency          | ms behind live, mean and percentiles of what was reported      | that tell it                          |
| ad_breaks             | breaks begun                                                   | with a break                          |
| ad_impressions        | ads begun                                                      | with an ad                            |
| ad_completion         | ads seen to their end, not skipped ÷ ads begun                 | with an ad                            |
| ad_startup            | ms from an ad's request to its first frame                     | where it could be measured            |
| ad_failure_rate       | errors of ads ÷ (ads begun + errors)                           | with either                           |
| ad_stall_ratio        | the rebuffer ratio of play within ads                          | whose player tells when it stalls     |
| view_duration         | ms watched of a view, mean and percentiles                     | with a view that ended                |
| completion            | furthest position ÷ duration                                   | with such a view of known length      |
| quartiles             | share of those views that came to 25, 50, 75, 100 %            | the same                              |
| score                 | mean of the sessions' scores, see below                        | whose start and stalls are known      |
| beacon_loss           | reports missing ÷ reports sent                                 | that number their reports             |

The score (0 to 100) is a session's, because it is no ratio of sums: half its start's, 800 ÷ (8 + s); half its smoothness, the mean of
100 ÷ √(1 + (n/2)²) for n stalls and 100 · e^(−10 · rebuffer ratio). A group's score is the mean over its sessions, each counting once; so are the
two parts, each over the sessions that can tell it.

A session is one of the group and, in a series, of the interval. Play and stalls within ads are in: `where=ad_break=` leaves them out. A meant
refusal is no failure. A view that ended twice (it was reopened) counts by its last end.
"""

from __future__ import annotations

from dataclasses import dataclass, field

NOT_MEASURABLE = "not_measurable"
PERCENTILES = {"p50": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99}


def _count(test: str) -> str:
    return f"count(*) FILTER ({test})"


def _sum(column: str, test: str) -> str:
    return f"sum({column}) FILTER ({test})"


_PLAY, _STALL, _AD = "fact = 'play'", "fact = 'stall'", "ad AND "
SESSION = {
    "attempt": _count("fact = 'attempt'"),
    "start": _count("fact = 'start'"),
    "start_n": "count(ms) FILTER (fact = 'start')",
    "start_ms": _sum("ms", "fact = 'start'"),
    "failure": _count("fact = 'start_failure' AND NOT business"),
    "gone": _count("fact = 'exit'"),
    "play_ms": _sum("ms", _PLAY),
    "known_ms": _sum("ms", f"{_PLAY} AND stalls_known"),
    "stall_ms": _sum("ms", _STALL),
    "stalls": _sum('"count"', _STALL),
    "bits": _sum("bits", f"{_PLAY} AND bits_ms > 0"),
    "bits_ms": _sum("bits_ms", f"{_PLAY} AND bits_ms > 0"),
    "switch": _count("fact = 'switch'"),
    "down": _count("fact = 'switch' AND value < before"),
    "failed": _count("fact = 'error' AND fatal AND started AND NOT business"),
    "refused": _count("fact IN ('error', 'start_failure') AND business"),
    "dropped_n": _count("fact = 'dropped'"),
    "dropped": _sum("value", "fact = 'dropped'"),
    "latency_n": "count(value) FILTER (fact = 'latency')",
    "latency": _sum("value", "fact = 'latency'"),
    "breaks": _count("fact = 'ad_break'"),
    "ads": _count("fact = 'ad_start'"),
    "ad_n": "count(ms) FILTER (fact = 'ad_start')",
    "ad_ms": _sum("ms", "fact = 'ad_start'"),
    "ad_seen": _count("fact = 'ad_end' AND NOT skipped"),
    "ad_errors": _count("fact = 'ad_error'"),
    "ad_known_ms": _sum("ms", f"{_AD}{_PLAY} AND stalls_known"),
    "ad_stall_ms": _sum("ms", f"{_AD}{_STALL}"),
    "beacons": _sum('"count"', "fact = 'beacon'"),
    "missing": _sum("value", "fact = 'beacon'"),
}  # fmt: skip
"""Part of a session → SQL over its facts. Sums are null where there is no such fact."""

END = {
    "view_ms": "ms",
    "reached": "CASE WHEN before > 0 THEN least(greatest(value, 0), before) END",
    "length": "CASE WHEN before > 0 AND value IS NOT NULL THEN before END",
    **{f"q{share}": f"CASE WHEN before > 0 AND value IS NOT NULL THEN value >= before * {share / 100} OR completed END"
       for share in (25, 50, 75)},
    "q100": "CASE WHEN before > 0 AND value IS NOT NULL THEN value >= before OR completed END",
}  # fmt: skip
"""Part of a view → SQL over its last `end`."""


@dataclass(frozen=True, slots=True)
class Metric:
    """`top` ÷ `under`, SQL over sessions (`ends`: over views that ended); without `under` a count. `behind` picks the sessions that are
    behind it, `parts` are those it is made of. `bad`: +1 if more is worse, −1 if less is, 0 if neither. `spread`: the fact and the column whose
    percentiles are given, too. `extra`: further figures → (top, under)."""

    unit: str
    top: str
    under: str
    behind: str
    parts: tuple[str, ...]
    bad: int = 0
    spread: tuple[str, str] | None = None
    extra: dict[str, tuple[str, str]] = field(default_factory=dict)
    ends: bool = False
    zero: bool = True
    """Of a count: none seen is 0. Where False, it cannot be told from players that do not report it."""


def _minutes(ms: str) -> str:
    return f"({ms}) / 60000.0"


_KNOWN = "known_ms IS NOT NULL OR stall_ms IS NOT NULL"
_WATCHED = "coalesce(known_ms, 0) + coalesce(stall_ms, 0)"
_RATED = f"({_WATCHED}) > 0"
_STALLING = ("known_ms", "stall_ms", "stalls")
_AD_WATCHED = "coalesce(ad_known_ms, 0) + coalesce(ad_stall_ms, 0)"
_BEGUN = "start > 0 OR play_ms IS NOT NULL OR failed > 0"
_START_SCORE = "800 / (8 + start_ms / start_n / 1000.0)"
_SMOOTH = (
    "(100 / sqrt(1 + pow(coalesce(stalls, 0) / 2.0, 2)) "
    f"+ 100 * exp(-10.0 * coalesce(stall_ms, 0) / nullif({_WATCHED}, 0))) / 2"
)


def _on(test: str, what: str) -> str:
    return f"sum({what}) FILTER ({test})"


METRICS: dict[str, Metric] = {
    "sessions": Metric("sessions", "count(*)", "", "true", ()),
    "attempts": Metric("attempts", "sum(attempt)", "", "attempt > 0", ("attempt",)),
    "plays": Metric("plays", "sum(start)", "", "start > 0", ("start",)),
    "startup_time": Metric(
        "ms", "sum(start_ms)", "sum(start_n)", "start_n > 0", ("start_ms", "start_n"), 1, ("start", "ms")
    ),
    "start_failure_rate": Metric("ratio", "sum(failure)", "sum(attempt)", "attempt > 0", ("failure", "attempt"), 1),
    "exit_before_start_rate": Metric("ratio", "sum(gone)", "sum(attempt)", "attempt > 0", ("gone", "attempt"), 1),
    "rebuffer_ratio": Metric("ratio", "coalesce(sum(stall_ms), 0)", f"sum({_WATCHED})", _RATED, _STALLING, 1),
    "rebuffer_ratio_cta": Metric(
        "ratio", "coalesce(sum(stall_ms), 0)", _on(_KNOWN, f"{_WATCHED} + coalesce(start_ms, 0)"),
        f"({_KNOWN}) AND {_WATCHED} + coalesce(start_ms, 0) > 0", (*_STALLING, "start_ms"), 1,
    ),
    "rebuffer_frequency": Metric(
        "1/min", "coalesce(sum(stalls), 0)", _minutes("sum(known_ms)"), "known_ms > 0", _STALLING, 1
    ),
    "rebuffer_duration": Metric("ms", "sum(stall_ms)", "sum(stalls)", "stall_ms IS NOT NULL", _STALLING, 1),
    "bitrate": Metric("bit/s", "sum(bits) * 1000", "sum(bits_ms)", "bits_ms > 0", ("bits", "bits_ms"), -1),
    "switches": Metric(
        "1/min", "sum(switch)", _minutes("sum(bits_ms)"), "bits_ms > 0", ("switch", "bits_ms"), 1
    ),
    "degradations": Metric("1/min", "sum(down)", _minutes("sum(bits_ms)"), "bits_ms > 0", ("down", "bits_ms"), 1),
    "playback_failure_rate": Metric(
        "ratio", _count("failed > 0"), _count(_BEGUN), _BEGUN, ("failed", "start", "play_ms"), 1
    ),
    "business_refusal_rate": Metric("ratio", _count("refused > 0"), "count(*)", "true", ("refused",), 1),
    "dropped_frames": Metric(
        "1/min", "sum(dropped)", _minutes(_on("dropped_n > 0", "play_ms")), "dropped_n > 0",
        ("dropped", "dropped_n", "play_ms"), 1,
    ),
    "live_latency": Metric(
        "ms", "sum(latency)", "sum(latency_n)", "latency_n > 0", ("latency", "latency_n"), 1, ("latency", "value")
    ),
    "ad_breaks": Metric("breaks", "sum(breaks)", "", "breaks > 0", ("breaks",), zero=False),
    "ad_impressions": Metric("ads", "sum(ads)", "", "ads > 0", ("ads",), zero=False),
    "ad_completion": Metric("ratio", "sum(ad_seen)", "sum(ads)", "ads > 0", ("ad_seen", "ads"), -1),
    "ad_startup": Metric("ms", "sum(ad_ms)", "sum(ad_n)", "ad_n > 0", ("ad_ms", "ad_n"), 1, ("ad_start", "ms")),
    "ad_failure_rate": Metric(
        "ratio", "sum(ad_errors)", "sum(ads + ad_errors)", "ads + ad_errors > 0", ("ad_errors", "ads"), 1
    ),
    "ad_stall_ratio": Metric(
        "ratio", "coalesce(sum(ad_stall_ms), 0)", f"sum({_AD_WATCHED})", f"({_AD_WATCHED}) > 0",
        ("ad_stall_ms", "ad_known_ms"), 1,
    ),
    "view_duration": Metric(
        "ms", "sum(view_ms)", "count(view_ms)", "view_ms IS NOT NULL", ("view_ms",), -1, ("end", "ms"), ends=True
    ),
    "completion": Metric(
        "ratio", "sum(reached)", "sum(length)", "length IS NOT NULL", ("reached", "length"), -1, ends=True
    ),
    "quartiles": Metric(
        "ratio", _count("q100"), "count(length)", "length IS NOT NULL", ("length", "q25", "q50", "q75", "q100"), ends=True,
        extra={f"q{share}": (_count(f"q{share}"), "count(length)") for share in (25, 50, 75, 100)},
    ),
    "score": Metric(
        "0–100", _on(f"start_n > 0 AND {_RATED}", f"({_START_SCORE} + {_SMOOTH}) / 2"), _count(f"start_n > 0 AND {_RATED}"),
        f"start_n > 0 AND {_RATED}", ("start_ms", "start_n", *_STALLING), -1,
        extra={
            "startup": (_on("start_n > 0", _START_SCORE), _count("start_n > 0")),
            "smoothness": (_on(_RATED, _SMOOTH), _count(_RATED)),
        },
    ),
    "beacon_loss": Metric(
        "ratio", "coalesce(sum(missing), 0)", "sum(coalesce(missing, 0) + coalesce(beacons, 0))", "beacons IS NOT NULL",
        ("missing", "beacons"), 1,
    ),
}  # fmt: skip
"""Name → definition, as the domain has them."""
