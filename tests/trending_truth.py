"""Seeded populations whose surges are known: what the detector of trending is measured against.

A population is a catalogue with Zipf's popularity. Every viewer of a content joins at random and stays for an exponential time,
so that counts are a birth-death process whose mean follows the hour of the day and the planted events; nothing is smoothed.

    python -m tests.trending_truth [--seeds 200] [--nab DIRECTORY]

prints precision, recall and delay over many seeds, the cost of a tick, and, for a directory with the Twitter volumes and
`combined_windows.json` of the Numenta Anomaly Benchmark, what the detector finds in them.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from engine.trending import Detector, Item, Params

TICK_MS = 5_000
DAY_MS = 86_400_000
MONDAY = 1_767_571_200_000  # 2026-01-05 00:00 UTC

LIVE = Params()
VOD = Params(fast_half_life_s=20.0)


def poisson(rng: random.Random, mean: float) -> int:
    if mean <= 0:
        return 0
    if mean > 30:
        return max(0, round(rng.gauss(mean, math.sqrt(mean))))
    limit, product, count = math.exp(-mean), rng.random(), 0
    while product > limit:
        product *= rng.random()
        count += 1
    return count


@dataclass
class Title:
    """One content: its usual audience, how long a viewer stays (s), and what else moves it."""

    name: str
    audience: float
    stay_s: float
    nightly: tuple[float, float, float] | None = None  # from hour, to hour of the day, factor
    surge_at: int | None = None  # ms
    surge: float = 3.0
    surge_joins_s: float = 20.0  # so long the surplus takes to join
    watching: int = 0

    def mean(self, now: int, curve: Callable[[int], float]) -> float:
        value = self.audience * curve(now)
        if self.nightly:
            begin, end, factor = self.nightly
            hour = now % DAY_MS / 3_600_000
            if begin <= hour < end:
                value *= factor
        return value


@dataclass
class Population:
    """Moves in ticks; `counts()` are the concurrent views. One account has one view, unless a household is set."""

    titles: list[Title]
    rng: random.Random
    curve: Callable[[int], float] = field(default=lambda now: 1.0)
    households: dict[str, int] = field(default_factory=dict)  # content -> devices of one account

    def start(self, now: int) -> None:
        for title in self.titles:
            title.watching = poisson(self.rng, title.mean(now, self.curve))

    def step(self, now: int, elapsed_s: float) -> None:
        """Those who stay, and those who join and are still there: exact for any length of tick."""
        for title in self.titles:
            mean = title.mean(now, self.curve)
            # a programme that begins or ends moves its audience within a minute or two, not over a whole stay
            pace = 60.0 if title.nightly else title.stay_s
            left = 1.0 - math.exp(-elapsed_s / pace)
            gone = min(title.watching, poisson(self.rng, title.watching * left))
            title.watching += poisson(self.rng, mean * left) - gone
            if title.surge_at is not None and now >= title.surge_at:
                since = (now - title.surge_at) / 1000
                joining = min(elapsed_s, max(0.0, title.surge_joins_s - (since - elapsed_s)), since)
                surplus = mean * (title.surge - 1)
                kept = surplus * left if since > title.surge_joins_s else 0.0
                rate = surplus / title.surge_joins_s * max(0.0, joining)
                title.watching += poisson(self.rng, rate + kept)

    def counts(self) -> dict[str, int]:
        counts = {title.name: title.watching for title in self.titles if title.watching}
        for content, devices in self.households.items():
            counts[content] = counts.get(content, 0) + devices
        return counts

    def accounts(self) -> dict[str, int]:
        counts = {title.name: title.watching for title in self.titles if title.watching}
        for content in self.households:
            counts[content] = counts.get(content, 0) + 1
        return counts

    def distinct(self, contents: list[str]) -> dict[str, int]:
        """Those who watch, and a third more who did in these five minutes and left."""
        now = self.accounts()
        return {content: round(now.get(content, 0) * 1.33) for content in contents}


def daily(now: int) -> float:
    """0.4 in the early morning, 1.6 in the evening, more at the weekend."""
    hour, day = now % DAY_MS / 3_600_000, now // DAY_MS % 7
    weekend = 1.2 if day in (2, 3) else 1.0  # the epoch was a Thursday
    return weekend * (1.0 + 0.6 * math.sin((hour - 14) / 24 * 2 * math.pi))


def catalogue(rng: random.Random, size: int, top: float, stay_s: float) -> list[Title]:
    return [Title(f"t{rank}", top / rank**0.8, stay_s * rng.uniform(0.5, 2.0)) for rank in range(1, size + 1)]


def run(
    detector: Detector, population: Population, begin: int, end: int, tick_ms: int
) -> Iterator[tuple[int, list[Item]]]:
    now = begin
    while now < end:
        now += tick_ms
        population.step(now, tick_ms / 1000)
        yield now, detector.observe(now, population.counts(), population.distinct)


@dataclass
class Outcome:
    """Of one seed: planted titles, those found, seconds until each was found, and the list's first ten as they were."""

    planted: int
    found: int
    delays: list[float]
    shown: int
    right: int
    false: set[str]


def surges(seed: int, params: Params, *, size: int = 150, planted: int = 6, history_days: int = 0) -> Outcome:
    """Plants surges ×3 on titles with 50 viewers or more at that hour, one after the other, and looks for 10 minutes."""
    rng = random.Random(seed)
    live = params.fast_half_life_s < 10
    begin = MONDAY + rng.randrange(7 * 24 * 60) * 60_000
    titles = catalogue(rng, size, rng.uniform(3_000, 8_000), 900 if live else 2400)
    population, detector = Population(titles, rng, daily), Detector(params)
    population.start(begin - 3_600_000 - history_days * DAY_MS)
    for start, stop, tick in (
        (begin - 3_600_000 - history_days * DAY_MS, begin - 3_600_000, 300_000),
        (begin - 3_600_000, begin - 300_000, 30_000),
        (begin - 300_000, begin, TICK_MS),
    ):
        for _ in run(detector, population, start, stop, tick):
            pass
    fit = [title for title in titles if title.mean(begin, daily) >= 50]
    for title in rng.sample(fit, planted):
        title.surge_at = begin + rng.randrange(24) * TICK_MS
        title.surge_joins_s = rng.uniform(5, 20) if live else rng.uniform(10, 60)
    hit: dict[str, float] = {}
    shown = right = 0
    false: set[str] = set()
    for now, items in run(detector, population, begin, begin + 600_000, TICK_MS):
        true = {t.name: t.surge_at for t in titles if t.surge_at is not None and t.surge_at < now}
        for item in items:
            if item.content in true:
                hit.setdefault(item.content, (now - true[item.content]) / 1000)
            else:
                false.add(item.content)
        shown += len(items[:10])
        right += sum(item.content in true for item in items[:10])
    return Outcome(planted, len(hit), list(hit.values()), shown, right, false)


@dataclass(frozen=True)
class Summary:
    precision: float
    recall: float
    delay_p50_s: float
    delay_p95_s: float
    false: int

    @classmethod
    def of(cls, outcomes: list[Outcome]) -> Summary:
        """A surge that was never found has an infinite delay."""
        delays = sorted(d for o in outcomes for d in o.delays + [math.inf] * (o.planted - o.found))
        return cls(
            sum(o.right for o in outcomes) / max(1, sum(o.shown for o in outcomes)),
            sum(o.found for o in outcomes) / sum(o.planted for o in outcomes),
            delays[len(delays) // 2],
            delays[math.ceil(0.95 * len(delays)) - 1],
            sum(len(o.false) for o in outcomes),
        )


def nightly(
    seed: int, days: int, *, channels: int = 40, watch: tuple[float, float] = (18.5, 22.5), moods: float = 0.0
) -> set[str]:
    """Programmes every night for so many days, then one night in ticks of 5 s: what is listed in that night.

    With `moods` each programme has more or fewer viewers than usual in that night: its share, as a standard deviation.
    """
    rng = random.Random(seed)
    titles = catalogue(rng, channels, 4_000, 900)
    for title in titles[: channels // 2]:
        start = rng.choice((19.0, 20.0, 20.25, 20.5, 21.0))
        title.nightly = (start, start + rng.choice((0.25, 0.5, 1.0, 2.0)), rng.uniform(3, 10))
    population, detector = Population(titles, rng, daily), Detector(LIVE)
    end = MONDAY + days * DAY_MS + round(watch[0] * 3_600_000)
    population.start(MONDAY)
    for _ in run(detector, population, MONDAY, end, 600_000 if days > 3 else 300_000):
        pass
    for title in titles:
        if title.nightly:
            title.nightly = (*title.nightly[:2], max(1.0, title.nightly[2] * rng.gauss(1, moods)))
    listed: set[str] = set()
    for _, items in run(detector, population, end, end + round((watch[1] - watch[0]) * 3_600_000), TICK_MS):
        listed.update(item.content for item in items)
    return listed


def cost(contents: int = 20_000, ticks: int = 20, hours: int = 169) -> tuple[float, float, int]:
    """(CPU ms of a tick, of the slowest one, which closes an hour; bytes of a full dump) after so many hours, a tick each."""
    rng = random.Random(1)
    detector = Detector(VOD)
    counts = {f"content-{n:06d}": 1 + poisson(rng, 200_000 / n) for n in range(1, contents + 1)}
    for hour in range(hours):
        detector.observe(MONDAY + hour * 3_600_000, counts, lambda c: {})
    dumped = sum(map(len, detector.dump().values()))
    spent, now = [], MONDAY + hours * 3_600_000 - 60_000
    for _ in range(ticks):
        now += TICK_MS
        counts = {name: max(0, count + rng.randrange(-2, 3)) for name, count in counts.items()}
        began = time.process_time()
        detector.observe(now, counts, lambda asked, counts=counts: {name: counts[name] for name in asked})
        spent.append((time.process_time() - began) * 1000)
    spent.sort()
    return spent[len(spent) // 2], spent[-1], dumped


@dataclass(frozen=True)
class Volumes:
    """Of real series with labelled windows. An episode is listed time with gaps of less than four hours."""

    windows: int
    found: int  # windows in which the series was listed
    episodes: int
    right: int  # episodes that touch a window
    strongest: int  # of each series as many episodes as it has windows, by score …
    strongest_right: int  # … and of them those that touch one
    covered: float  # share of the judged time that lies in windows: what chance would find


def volumes(directory: Path, params: Params, stay: int = 6) -> Volumes:
    """What the detector finds in the benchmark's Twitter volumes.

    A series counts tweets in five minutes: each is a tick, and each tweet a viewer, with an account, who stays for `stay` ticks.
    The first 15 %, in which the benchmark lets every detector learn, are not judged.
    """
    labels = json.loads((directory / "combined_windows.json").read_text())
    windows = found = episodes = right = strongest = strongest_right = inside = judged = 0
    for path in sorted(directory.glob("Twitter_volume_*.csv")):
        with path.open() as lines:
            rows = [(_at(row["timestamp"]), int(float(row["value"]))) for row in csv.DictReader(lines)]
        spans = [(_at(first), _at(last)) for first, last in labels[f"realTweets/{path.name}"]]
        seen = _episodes(rows, params, stay)
        best = sorted(seen, key=lambda episode: -episode[2])[: len(spans)]
        windows, episodes, strongest = windows + len(spans), episodes + len(seen), strongest + len(best)
        found += sum(any(_touch(span, episode) for episode in seen) for span in spans)
        right += sum(any(_touch(span, episode) for span in spans) for episode in seen)
        strongest_right += sum(any(_touch(span, episode) for span in spans) for episode in best)
        inside += sum(last - first for first, last in spans)
        judged += rows[-1][0] - rows[int(len(rows) * 0.15)][0]
    return Volumes(windows, found, episodes, right, strongest, strongest_right, round(inside / judged, 3))


def _episodes(rows: list[tuple[int, int]], params: Params, stay: int) -> list[tuple[int, int, float]]:
    detector, judged = Detector(params), rows[int(len(rows) * 0.15)][0]
    seen: list[tuple[int, int, float]] = []
    for place, (now, _) in enumerate(rows):
        value = sum(tweets for _, tweets in rows[max(0, place - stay + 1) : place + 1])
        items = detector.observe(now, {"x": value}, lambda asked, value=value: dict.fromkeys(asked, value))
        if items and now >= judged:
            first, _, score = seen.pop() if seen and now - seen[-1][1] < 4 * 3_600_000 else (now, now, 0.0)
            seen.append((first, now, max(score, items[0].score)))
    return seen


def _touch(span: tuple[int, int], episode: tuple[int, int, float]) -> bool:
    return span[0] <= episode[1] and episode[0] <= span[1]


def _at(stamp: str) -> int:
    return int(datetime.fromisoformat(stamp).replace(tzinfo=UTC).timestamp() * 1000)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--nab", type=Path)
    args = parser.parse_args()
    for name, params in (("live", LIVE), ("vod", VOD)):
        for days in (0, 2):
            outcomes = [surges(seed, params, history_days=days) for seed in range(args.seeds // (1 + 4 * (days > 0)))]
            print(f"{name}, {days} days of history, {len(outcomes)} seeds: {Summary.of(outcomes)}")
    for days, moods in ((0, 0.0), (1, 0.0), (9, 0.0), (23, 0.0), (23, 0.1), (23, 0.2)):
        nights = [len(nightly(seed, days, moods=moods)) for seed in range(max(1, args.seeds // 20))]
        print(f"20 of 40 channels peak nightly, night {days + 1}, moods {moods}: listed, by seed: {nights}")
    print("a tick of 20,000 contents: {:.1f} ms, slowest {:.1f} ms, full dump {:,} bytes".format(*cost()))
    if args.nab:
        for enter in (5.0, 10.0, 20.0):
            params = Params(enter=enter, leave=enter / 2, warmup_s=0, newcomer=0)
            print(f"enter {enter}: {volumes(args.nab, params)}")


if __name__ == "__main__":
    main()
