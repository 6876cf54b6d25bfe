"""The figures of stream quality in plain Python, straight from the domain's definitions: what SQL must agree with. And seeded facts."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from msgspec.structs import replace

from engine.lake import Lake
from engine.lake.layout import folder
from engine.partitions import partition_of
from engine.quality.columns import table
from engine.quality.facts import FACTS, Fact
from engine.quality.files import TOPIC
from tests.harness import PARTITIONS, START

NONE = "not_measurable"
HOUR = 3_600_000


def seeded(seed: int, count: int = 3_000, hours: float = 2.5) -> list[Fact]:
    """Facts of some sessions of some accounts; players differ in what they can tell, and some facts are odd."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        account = f"account-{rng.randrange(12)}"
        session = f"session-{rng.randrange(40)}"
        player = rng.choice(["hls.js", "dash.js", "shaka", 'it\'s "odd"; --'])
        fact = rng.choice([*FACTS, "play", "play", "play", "stall"])
        at = START - 90 * 60_000 + rng.randrange(int(hours * HOUR))
        more: dict[str, Any] = {}
        if fact in ("start", "ad_start", "ad_end", "end", "play", "stall"):
            more["ms"] = (
                None if fact in ("start", "ad_start", "ad_end") and rng.random() < 0.2 else rng.randrange(60_000)
            )
        if fact == "play":
            more["stalls_known"] = player != "shaka"
            if player != "dash.js":
                more |= {"bits": rng.random() * 1e9, "bits_ms": rng.randrange(60_000)}
        if fact == "stall":
            more |= {"count": rng.randrange(2), "stalls_known": True}
        if fact in ("switch", "dropped", "latency", "start"):
            more["value"] = float(rng.randrange(10_000))
        if fact == "switch":
            more["before"] = float(rng.randrange(10_000))
        if fact == "beacon":
            more |= {"count": rng.randrange(1, 10), "value": float(rng.choice([0, 0, 3]))}
        if fact == "end":
            more |= {"value": rng.choice([None, rng.random() * 6_000]), "before": rng.choice([None, 0.0, 5_400.0]),
                     "completed": rng.random() < 0.2, "silent": rng.random() < 0.3}  # fmt: skip
        if fact in ("error", "start_failure", "ad_error"):
            more |= {"fatal": rng.random() < 0.5, "business": rng.random() < 0.2, "started": rng.random() < 0.7,
                     "code": rng.choice(["", "404"])}  # fmt: skip
        if fact in ("play", "stall", "ad_end"):
            more["ad"] = rng.random() < 0.2
        made.append(Fact(
            fact=fact, at=at, account=account, session=session, partition=partition_of(account, PARTITIONS),
            stream_ms=START + number // 7, stream_seq=number % 7, part=0, view=1 + rng.randrange(2),
            started_at=START, player=player, cdn=rng.choice(["a", "b"]), country=rng.choice(["PT", "ES", "FR", ""]),
            skipped=rng.random() < 0.3, labels=rng.choice([{}, {"plan": "gold"}, {"plan": "free", "o'k\"": "x"}]),
            source=rng.choice(["cmcd", "heartbeat"]), **more,
        ))  # fmt: skip
    return made


def write(root: Path, facts: Sequence[Fact], parts: int = 2) -> list[Path]:
    """Parquet files as the lake lays them, `parts` for each hour."""
    by_hour = defaultdict(list)
    for fact in facts:
        by_hour[folder("facts", fact.at)].append(fact)
    paths = []
    for where, group in by_hour.items():
        (root / where).mkdir(parents=True, exist_ok=True)
        for n in range(parts):
            chosen = sorted(group[n::parts], key=lambda f: (f.partition, f.stream_ms, f.stream_seq, f.part))
            if chosen:
                paths.append(root / where / f"{n}.parquet")
                pq.write_table(table(chosen), paths[-1], compression="zstd", row_group_size=500)
    return paths


def fill(root: Path, facts: Sequence[Fact]) -> None:
    """The lake at `root`, as the consumer fills it; in two goes, so that there are several files in an hour."""
    lake = Lake(root / "quality", partitions=PARTITIONS)
    middle = sorted(f.stream_ms for f in facts)[len(facts) // 2]
    for end in (middle, max(f.stream_ms for f in facts) + 1):
        part = [f for f in facts if f.stream_ms < end and (f.stream_ms >= middle) == (end > middle)]
        lake.add(TOPIC, table(part), dict.fromkeys(range(PARTITIONS), f"{end - 1}-99"))


def percentile(values: Iterable[float], share: float) -> float:
    """Between the two values next to it, by distance."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def figures(facts: Sequence[Fact]) -> dict[str, dict[str, Any]]:
    """Every metric over these facts."""
    who = lambda group: len({(f.account, f.session) for f in group})  # noqa: E731
    of = lambda name, test=lambda f: True: [f for f in facts if f.fact == name and test(f)]  # noqa: E731
    sessions: dict[tuple[str, str], list[Fact]] = defaultdict(list)
    for fact in facts:
        sessions[fact.account, fact.session].append(fact)
    found: dict[str, dict[str, Any]] = {"sessions": {"value": len(sessions), "sessions": len(sessions)}}

    def say(name: str, value: Any, behind: int, values: list[float] | None = None) -> None:
        found[name] = {"value": value, "sessions": behind}
        if values is not None:
            for percent in (50, 75, 95, 99):
                found[name][f"p{percent}"] = percentile(values, percent / 100) if values else NONE

    attempts, starts = of("attempt"), of("start")
    measured = of("start", lambda f: f.ms is not None)
    say("attempts", len(attempts), who(attempts))
    say("plays", len(starts), who(starts))
    say("startup_time", over(total(measured, "ms"), len(measured)), who(measured), [f.ms for f in measured])
    failures = of("start_failure", lambda f: not f.business)
    say("start_failure_rate", over(len(failures), len(attempts)), who(attempts))
    say("exit_before_start_rate", over(len(of("exit")), len(attempts)), who(attempts))
    _stalling(facts, sessions, say)
    known = of("play", lambda f: (f.bits_ms or 0) > 0)
    rated, minutes = total(known, "bits_ms"), total(known, "bits_ms") / 60_000
    say("bitrate", over(total(known, "bits") * 1000, rated), who(known))
    say("switches", over(len(of("switch")), minutes), who(known))
    say("degradations", over(len(of("switch", lambda f: f.value < f.before)), minutes), who(known))
    failed = of("error", lambda f: f.fatal and f.started and not f.business)
    begun = who([*starts, *of("play"), *failed])
    say("playback_failure_rate", over(who(failed), begun), begun)
    refused = [f for f in facts if f.fact in ("error", "start_failure") and f.business]
    say("business_refusal_rate", over(who(refused), len(sessions)), len(sessions))
    able = {(f.account, f.session) for f in of("dropped")}
    played = total(of("play", lambda f: (f.account, f.session) in able), "ms") / 60_000
    say("dropped_frames", over(total(of("dropped"), "value"), played), len(able))
    late = of("latency")
    say("live_latency", over(total(late, "value"), len(late)), who(late), [f.value for f in late])
    ads, errors = of("ad_start"), of("ad_error")
    quick = of("ad_start", lambda f: f.ms is not None)
    say("ad_breaks", len(of("ad_break")) or NONE, who(of("ad_break")))
    say("ad_impressions", len(ads) or NONE, who(ads))
    say("ad_completion", over(len(of("ad_end", lambda f: not f.skipped)), len(ads)), who(ads))
    say("ad_startup", over(total(quick, "ms"), len(quick)), who(quick), [f.ms for f in quick])
    say("ad_failure_rate", over(len(errors), len(ads) + len(errors)), who([*ads, *errors]))
    beacons = of("beacon")
    lost = total(beacons, "value")
    say("beacon_loss", over(lost, lost + total(beacons, "count")), who(beacons))
    _views(of("end"), who, say, found)
    _score(sessions, found)
    return found


def last_ends(facts: Iterable[Fact]) -> list[Fact]:
    """The ends of views that ended again later are none: a view is counted once in all that is asked about."""
    last: dict[Any, Fact] = {}
    ordered = sorted(facts, key=lambda f: (f.stream_ms, f.stream_seq, f.part))
    for fact in ordered:
        if fact.fact == "end":
            last[fact.account, fact.session, fact.view, fact.started_at] = fact
    kept = {id(fact) for fact in last.values()}
    return [f if f.fact != "end" or id(f) in kept else replace(f, fact="reopened") for f in ordered]


def total(group: Iterable[Fact], name: str) -> float:
    return sum(getattr(fact, name) or 0 for fact in group)


def over(top: float, under: float) -> Any:
    return top / under if under else NONE


def _stalling(facts: Sequence[Fact], sessions: dict[Any, list[Fact]], say: Callable[..., None]) -> None:
    known = [f for f in facts if f.fact == "play" and f.stalls_known]
    stalls = [f for f in facts if f.fact == "stall"]
    stood, played, count = total(stalls, "ms"), total(known, "ms"), total(stalls, "count")
    able = {(f.account, f.session) for f in [*known, *stalls]}
    watched = {key: sum(f.ms or 0 for f in [*known, *stalls] if (f.account, f.session) == key) for key in able}
    startup = {key: sum(f.ms or 0 for f in sessions[key] if f.fact == "start") for key in able}
    say("rebuffer_ratio", over(stood, stood + played), sum(ms > 0 for ms in watched.values()))
    say("rebuffer_ratio_cta", over(stood, stood + played + sum(startup.values())),
        sum(watched[key] + startup[key] > 0 for key in able))  # fmt: skip
    playing = {(f.account, f.session) for f in known if f.ms}
    say("rebuffer_frequency", over(count, played / 60_000), len(playing))
    say("rebuffer_duration", over(stood, count), len({(f.account, f.session) for f in stalls}))
    ads = [f for f in known if f.ad]
    ad_stalls = [f for f in stalls if f.ad]
    behind = {(f.account, f.session) for f in [*ads, *ad_stalls] if f.ms}
    say("ad_stall_ratio", over(total(ad_stalls, "ms"), total([*ads, *ad_stalls], "ms")), len(behind))


def _views(ends: Sequence[Fact], who: Callable[..., int], say: Callable[..., None], found: dict[str, Any]) -> None:
    views = [f for f in last_ends(ends) if f.fact == "end"]
    timed = [f for f in views if f.ms is not None]
    say("view_duration", over(total(timed, "ms"), len(timed)), who(timed), [f.ms for f in timed])
    long = [f for f in views if f.before and f.value is not None]
    reached = sum(min(f.value or 0, f.before or 0) for f in long)
    say("completion", over(reached, total(long, "before")), who(long))
    shares = {
        f"q{q}": over(sum(f.completed or (f.value or 0) >= (f.before or 0) * q / 100 for f in long), len(long))
        for q in (25, 50, 75, 100)
    }
    found["quartiles"] = {"value": shares["q100"], "sessions": who(long)} | shares


def _score(sessions: dict[Any, list[Fact]], found: dict[str, Any]) -> None:
    starts, smooths, both = [], [], []
    for facts in sessions.values():
        measured = [f.ms for f in facts if f.fact == "start" and f.ms is not None]
        stalls = [f for f in facts if f.fact == "stall"]
        watched = total(stalls, "ms") + total([f for f in facts if f.fact == "play" and f.stalls_known], "ms")
        if measured:
            starts.append(800 / (8 + sum(measured) / len(measured) / 1000))
        if watched:
            steady = 100 / math.sqrt(1 + (total(stalls, "count") / 2) ** 2)
            smooths.append((steady + 100 * math.exp(-10 * total(stalls, "ms") / watched)) / 2)
        if measured and watched:
            both.append((starts[-1] + smooths[-1]) / 2)
    found["score"] = {
        "value": over(sum(both), len(both)), "startup": over(sum(starts), len(starts)),
        "smoothness": over(sum(smooths), len(smooths)), "sessions": len(both),
    }  # fmt: skip
