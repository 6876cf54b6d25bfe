"""Trending: what is listed, how soon, and what is not. The populations are in tests/trending_truth.py."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest

from engine.errors import ConfigError
from engine.settings import Settings
from engine.trending import Detector, Item, Params, popular
from engine.trending.profile import HOURS, UNKNOWN, Profile, decode, encode
from tests.trending_truth import (
    DAY_MS,
    LIVE,
    MONDAY,
    TICK_MS,
    VOD,
    Outcome,
    Population,
    Summary,
    Title,
    catalogue,
    cost,
    nightly,
    run,
    surges,
)

HOUR_MS = 3_600_000
NOON = MONDAY + 12 * HOUR_MS


class Scope:
    """A detector, a clock, and counts set by hand; every view is of another account unless said."""

    def __init__(self, params: Params = LIVE, now: int = NOON) -> None:
        self.detector, self.now, self.counts = Detector(params), now, dict[str, int]()
        self.distinct: dict[str, int] | None = None
        self.asked: list[str] = []
        self.items: list[Item] = []

    def accounts(self, contents: list[str]) -> Mapping[str, int]:
        self.asked = contents
        known = self.counts if self.distinct is None else self.distinct
        return {content: known[content] for content in contents if content in known}

    def tick(self, seconds: float = 5.0, accounts: Mapping[str, int] | None = None) -> list[Item]:
        self.now += round(seconds * 1000)
        self.items = self.detector.observe(self.now, self.counts, self.accounts, accounts)
        return self.items

    def pass_(self, seconds: float, step: float = 5.0, **counts: int) -> list[Item]:
        self.counts.update(counts)
        for _ in range(round(seconds / step)):
            self.tick(step)
        return self.items

    def listed(self) -> set[str]:
        return {item.content for item in self.items}


def usual(params: Params = LIVE, **counts: int) -> Scope:
    """Has seen these counts for a day and an hour."""
    scope = Scope(params)
    scope.pass_(25 * 3600, 300, **counts)
    return scope


class TestSurges:
    """×3 planted on titles with 50 viewers or more, among 150 titles."""

    @staticmethod
    def check(outcomes: Iterable[Outcome], within_s: float) -> None:
        summary = Summary.of(list(outcomes))
        assert summary.precision >= 0.9
        assert summary.recall >= 0.95
        assert summary.delay_p95_s <= within_s

    def test_live(self) -> None:
        self.check((surges(seed, LIVE) for seed in range(6)), 30)

    def test_vod(self) -> None:
        self.check((surges(seed, VOD) for seed in range(6)), 120)

    def test_with_days_of_history(self) -> None:
        self.check((surges(seed, LIVE, history_days=1, size=100) for seed in range(100, 102)), 30)

    def test_the_measure_can_fail(self) -> None:
        deaf = Summary.of([surges(1, replace(LIVE, enter=60.0))])
        assert deaf.recall < 0.95
        nervous = Summary.of([surges(1, replace(LIVE, enter=0.5, leave=0.2, margin=0.0, softening=0.1))])
        assert nervous.precision < 0.9

    def test_an_item_s_parts_make_its_score(self) -> None:
        scope = usual(sport=100)
        scope.pass_(60, sport=400)
        (item,) = scope.items
        assert item.score == pytest.approx((item.observed - item.expected) / (item.expected + 10) ** 0.5, abs=0.01)
        assert (item.content, item.concurrent, item.distinct) == ("sport", 400, 400)
        assert scope.now - 60_000 < item.since < scope.now
        assert 100 <= item.expected < 150
        assert 390 < item.observed <= 400


class TestNotNews:
    def test_the_first_night_is_news(self) -> None:
        assert len(nightly(1, 0)) >= 15  # of 20: otherwise the nights below prove nothing

    @pytest.mark.parametrize("days", [1, 8, 22])
    def test_a_nightly_peak(self, days: int) -> None:
        assert nightly(days, days) == set()

    def test_a_nightly_peak_a_little_higher_or_lower(self) -> None:
        assert nightly(5, 8, moods=0.05) == set()

    def test_a_surge_within_the_peak(self) -> None:
        scope = Scope(now=MONDAY)
        for day in range(9):
            for hour in range(24):
                scope.now = MONDAY + day * DAY_MS + hour * HOUR_MS
                scope.pass_(1800, 300, news=1000 if hour == 20 else 100)
        scope.now = MONDAY + 9 * DAY_MS + 20 * HOUR_MS
        assert scope.pass_(300, news=1000) == []
        scope.pass_(30, news=3000)
        assert scope.listed() == {"news"}

    def test_what_all_contents_do_together(self) -> None:
        scope = usual(**{f"c{n}": 100 + n for n in range(40)})
        for step in range(60):
            scope.pass_(5, **{f"c{n}": round((100 + n) * (1 + step / 60)) for n in range(40)})
            assert scope.items == []
        scope.pass_(30, c7=900)
        assert scope.listed() == {"c7"}

    def test_noise(self) -> None:
        rng = random.Random(3)
        population = Population(catalogue(rng, 150, 5_000, 900), rng)
        population.start(NOON)
        for _, items in run(Detector(LIVE), population, NOON, NOON + HOUR_MS, 10_000):
            assert items == []


class TestExpectation:
    def test_a_title_past_its_premiere_can_surge_again(self) -> None:
        """Last week's premiere must not hide this week's surge: the profile is taken at the title's level of today."""
        scope = Scope(VOD)
        scope.pass_(2 * 86_400, 900, film=5_000)
        scope.pass_(6 * 86_400, 900, film=100)
        scope.pass_(120, film=300)
        assert scope.listed() == {"film"}

    def test_late_and_missed_ticks_weigh_what_they_last(self) -> None:
        often, seldom = Scope(), Scope()
        for scope, step in ((often, 5.0), (seldom, 60.0)):
            scope.pass_(600, step, sport=100)
            scope.pass_(600, step, sport=120)
        slot = often.detector.slots.index["sport"]
        assert often.detector.slow[slot] == pytest.approx(seldom.detector.slow[slot], rel=0.01)
        assert often.detector.fast[slot] == pytest.approx(seldom.detector.fast[slot], rel=0.01)

    def test_a_silence_of_hours_makes_no_surprise(self) -> None:
        scope = usual(sport=100)
        scope.counts["sport"] = 300
        assert scope.tick(6 * 3600) == []

    def test_a_clock_that_goes_back(self) -> None:
        scope = usual(sport=100)
        before = scope.detector.last
        assert scope.tick(-3600) == []
        assert scope.detector.last == before


class TestHouseholds:
    """Twenty devices of one account are one viewer."""

    def test_with_accounts_it_is_exact(self) -> None:
        alone, beside = Scope(), Scope()
        for scope, more in ((alone, 0), (beside, 1)):
            scope.distinct = {"sport": 300 + more}
            for viewers, times in ((50, 60), (200, 12)):
                scope.counts["sport"] = viewers + 20 * more
                for _ in range(times):
                    scope.tick(accounts={"sport": viewers + more})
        (one,), (other,) = alone.items, beside.items
        assert other.concurrent - one.concurrent == 20
        assert abs(other.observed - one.observed) <= 1
        assert abs(other.score - one.score) <= 1 / (one.expected + 10) ** 0.5

    def test_views_alone_are_bounded_by_the_accounts(self) -> None:
        scope = usual(sport=50)
        scope.distinct = {"sport": 201}
        scope.pass_(60, sport=200 + 20)
        (item,) = scope.items
        assert (item.concurrent, item.observed) == (220, 201)

    @pytest.mark.parametrize("watching", [0, 3, 5, 50])
    def test_a_household_is_no_news(self, watching: int) -> None:
        scope = usual(**({"sport": watching} if watching else {"other": 5}))
        scope.distinct = {"sport": watching * 2 + 1}
        scope.pass_(60, sport=watching + 20)
        assert scope.items == []

    def test_few_accounts_are_no_news(self) -> None:
        scope = usual(replace(LIVE, accounts_min=100), sport=5)
        scope.distinct = {"sport": 99}
        scope.pass_(60, sport=500)
        assert scope.asked == ["sport"]
        assert scope.items == []
        scope.distinct = {"sport": 100}
        scope.tick()
        assert scope.listed() == {"sport"}
        scope.distinct = {"sport": 50}
        scope.tick()
        assert scope.listed() == {"sport"}
        scope.distinct = {"sport": 49}
        scope.tick()
        assert scope.items == []

    def test_only_candidates_are_asked_for(self) -> None:
        scope = usual(**{f"c{n}": 50 for n in range(30)})
        scope.asked = []
        scope.pass_(60)
        assert scope.asked == []
        scope.pass_(60, c3=200)
        assert scope.asked == ["c3"]

    def test_accounts_that_cannot_be_had(self) -> None:
        scope = usual(sport=50, film=50)
        scope.pass_(60, sport=200)
        scope.distinct = {}
        scope.pass_(60, film=200)
        assert [(item.content, item.distinct) for item in scope.items] == [("sport", 200)]


class TestTheList:
    def test_a_surge_that_becomes_normal_leaves(self) -> None:
        scope = usual(sport=50)
        scope.pass_(60, sport=150)
        assert scope.listed() == {"sport"}
        since = scope.items[0].since
        scope.pass_(600)
        assert scope.items[0].since == since
        scope.pass_(3600)
        assert scope.items == []

    def test_a_surge_that_ends_leaves(self) -> None:
        scope = usual(sport=50)
        scope.pass_(60, sport=150)
        scope.pass_(30, sport=50)
        assert scope.items == []

    def test_nothing_flaps(self) -> None:
        """Audiences that settle around the entry: with one threshold they come and go all the time."""

        def changes(params: Params) -> int:
            rng, detector, count, before = random.Random(5), Detector(params), 0, set[str]()
            titles = [Title(f"t{n}", 60, 120, surge_at=NOON + HOUR_MS, surge=1.9 + n / 50) for n in range(30)]
            population = Population([*titles, *(Title(f"u{n}", 60, 120) for n in range(40))], rng)
            population.start(NOON)
            for _, items in run(detector, population, NOON, NOON + HOUR_MS + 600_000, 10_000):
                listed = {item.content for item in items}
                count += len(listed ^ before)
                before = listed
            return count

        assert changes(LIVE) <= 60  # thirty that enter once, and leave at most once
        assert changes(replace(LIVE, leave=LIVE.enter - 0.001)) > 100

    def test_best_first(self) -> None:
        scope = usual(a=100, b=100, c=100)
        scope.pass_(60, a=300, b=900, c=100)
        assert [item.content for item in scope.items] == ["b", "a"]

    def test_candidates_are_bounded(self) -> None:
        scope = usual(replace(LIVE, candidates_max=3), **{f"c{n}": 50 for n in range(10)})
        scope.pass_(30, **{f"c{n}": 200 + n for n in range(10)})
        assert scope.listed() <= {"c7", "c8", "c9"}
        assert len(scope.asked) == 3


class TestColdStart:
    def test_a_new_deployment_lists_nothing_of_what_it_finds(self) -> None:
        scope = Scope()
        for _ in range(240):
            scope.pass_(5, **{f"c{n}": 1000 // n for n in range(1, 40)})
            assert scope.items == []

    def test_nor_while_its_viewers_come(self) -> None:
        scope = Scope()
        for step in range(1, 121):
            scope.pass_(5, **{f"c{n}": 20 * step // n for n in range(1, 60)})
            assert scope.items == []

    def test_a_new_title_with_500_in_a_minute_is_news(self) -> None:
        scope = usual(other=100)
        for step in range(1, 13):
            scope.pass_(5, premiere=step * 500 // 12)
        (item,) = scope.items
        assert item.content == "premiere"
        assert item.expected >= LIVE.newcomer  # no history is no expectation of nothing

    def test_a_new_title_with_a_few_is_not(self) -> None:
        scope = usual(other=100)
        for step in range(1, 61):
            scope.pass_(5, premiere=step * 40 // 60)
            assert scope.items == []


class TestKeeping:
    def test_what_is_loaded_goes_on_as_if_never_stopped(self) -> None:
        scope = usual(sport=100, film=60)
        stored = scope.detector.dump()
        scope.pass_(60, sport=300, new=80)
        stored |= scope.detector.dump()
        other = Scope(now=scope.now)
        other.detector.load(stored)
        other.counts = dict(scope.counts)
        for _ in range(800):  # into the next hour
            assert other.tick() == _near(scope.tick())
        assert scope.detector.slots.index == other.detector.slots.index

    def test_only_what_changed_is_dumped(self) -> None:
        scope = usual(sport=100)
        assert {"meta", "names:0", "fast", "slow", "viewed"} < scope.detector.dump().keys()
        assert scope.detector.dump() == {}
        scope.pass_(30)
        assert scope.detector.dump().keys() == {"meta", "fast", "slow", "viewed", "peak"}
        scope.pass_(30)
        assert scope.detector.dump().keys() == {"meta", "fast", "slow", "viewed"}
        scope.now = scope.now // HOUR_MS * HOUR_MS + HOUR_MS  # another hour: one of the 168 parts
        scope.tick()
        assert len([part for part in scope.detector.dump() if part.startswith("hour:")]) == 1

    def test_all_of_it_after_a_dump_that_was_not_stored(self) -> None:
        scope = usual(sport=100, film=60)
        first = scope.detector.dump()
        scope.pass_(60, sport=300)
        scope.detector.dump()
        whole = scope.detector.dump(whole=True)
        assert whole.keys() >= first.keys()
        again = Scope(now=scope.now)
        again.detector.load(whole)
        again.counts = scope.counts
        assert again.tick() == _near(scope.tick())

    @pytest.mark.parametrize(
        "part", ["meta", "names:0", "fast", "seen", "level", "members", f"hour:{NOON // HOUR_MS % HOURS}"]
    )
    @pytest.mark.parametrize("damage", ["version", "content", "short", "nonsense"])
    def test_a_part_that_cannot_be_read_is_left_out(
        self, part: str, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        scope = usual(sport=100)
        scope.pass_(60, sport=300)
        stored = scope.detector.dump()
        good = stored[part]
        stored[part] = {
            "version": b"PGT\x09" + good[4:],
            "content": good[:-1] + bytes([good[-1] ^ 1]),
            "short": good[:5],
            "nonsense": b"",
        }[damage]
        again = Scope(now=scope.now)
        with caplog.at_level(logging.WARNING):
            again.detector.load(stored)
        assert [record.__dict__["part"] for record in caplog.records] == [part]
        again.pass_(300, sport=300)
        again.pass_(30, sport=2000)
        assert again.listed() == {"sport"}

    def test_nothing_stored(self) -> None:
        scope = Scope()
        scope.detector.load({})
        assert scope.pass_(300, sport=100) == []

    def test_lost_averages_are_no_surprise(self) -> None:
        scope = usual(sport=100, film=500)
        stored = {name: data for name, data in scope.detector.dump().items() if name not in ("slow", "fast")}
        again = Scope(now=scope.now)
        again.detector.load(stored)
        assert again.pass_(60, sport=120, film=500) == []


class TestBounds:
    def test_contents_gone_for_long_are_forgotten(self) -> None:
        scope = usual(sport=100, old=100)
        scope.counts.pop("old")
        scope.pass_(14 * 86_400, 3600)
        assert "old" in scope.detector.slots.index
        scope.pass_(2 * 86_400, 3600)
        assert "old" not in scope.detector.slots.index
        assert "sport" in scope.detector.slots.index

    def test_the_next_content_of_a_slot_inherits_nothing(self) -> None:
        scope = usual(sport=100, old=5_000)
        scope.counts.pop("old")
        scope.pass_(16 * 86_400, 3600)
        stored = scope.detector.dump()
        scope.pass_(60, new=500)
        assert scope.detector.slots.index["new"] == 1
        assert scope.listed() == {"new"}
        again = Scope(now=scope.now)
        again.detector.load(stored | scope.detector.dump())
        again.counts = scope.counts
        assert again.pass_(5) == _near(scope.items, rel=0.1)

    def test_nor_after_loading(self) -> None:
        scope = usual(replace(LIVE, contents_max=1), old=5_000)
        scope.pass_(26 * 3600, 300)
        stored = scope.detector.dump()
        scope.pass_(60, old=0)
        scope.pass_(5, new=500)
        again = Scope(now=scope.now)
        again.detector.load(stored | scope.detector.dump())
        assert again.detector.slots.names == ["new"]
        assert (again.detector.level, again.detector.foreseen, again.detector.peak) == ([0.0], [0.0], [0.0])

    def test_too_many_contents(self) -> None:
        scope = Scope(replace(LIVE, contents_max=64))
        scope.pass_(120, **{f"c{n}": 100 + n for n in range(60)})
        scope.counts.pop("c59")
        scope.pass_(60)
        scope.pass_(60, **{f"junk{n}": 1 for n in range(500)})
        index = scope.detector.slots.index
        assert len(index) <= 64 == len(scope.detector.slots)
        assert "c59" not in index  # nobody watches it, so junk that somebody watches takes its place
        assert all(f"c{n}" in index for n in range(59))
        scope.pass_(60, premiere=900)
        assert scope.listed() == {"premiere"}
        assert "premiere" in index

    def test_a_tick_is_cheap(self) -> None:
        """Twenty thousand contents in far less than 500 ms, the tick that closes an hour too."""
        usually, slowest, _ = cost(20_000, ticks=15, hours=2)
        assert usually < 150
        assert slowest < 400


class TestProfile:
    @pytest.mark.parametrize("viewers", [0.0, 1.0, 2.5, 60.0, 5_000.0, 10_000_000.0])
    def test_codes(self, viewers: float) -> None:
        assert decode(encode(viewers)) == pytest.approx(viewers, rel=0.001, abs=0.001)
        assert encode(viewers) > 0

    def test_beyond_the_top(self) -> None:
        assert decode(encode(1e12)) == pytest.approx(13e6, rel=0.05)

    def test_the_same_hour_of_the_week_else_of_the_latest_day(self) -> None:
        profile, born = Profile(0.5), [0]
        hour = MONDAY // HOUR_MS + 20
        assert profile.at(hour, born) == [UNKNOWN]
        profile.learn(hour, [100.0], born)
        profile.learn(hour + 24, [300.0], born)
        assert profile.at(hour + 48, born) == [pytest.approx(300, rel=0.001)]
        assert profile.at(hour + 168, born) == [pytest.approx(100, rel=0.001)]
        profile.learn(hour + 168, [200.0], born)
        assert profile.at(hour + 336, born) == [pytest.approx(150, rel=0.001)]
        assert profile.at(hour + 336, [hour + 169]) == [UNKNOWN]  # written before this content came


class TestPopular:
    @staticmethod
    def scope(**counts: int) -> Scope:
        scope = Scope(VOD)
        scope.pass_(3600, 60, **counts)
        return scope

    def test_long_titles_gain_nothing(self) -> None:
        scope = self.scope(epic=300, short=120)
        runtimes = {"epic": 4 * 3600.0, "short": 3600.0}
        first, second = popular(scope.detector, scope.counts, runtimes, distinct=lambda asked: dict.fromkeys(asked, 7))
        assert (first.content, second.content) == ("short", "epic")
        assert first.observed == pytest.approx(120, rel=0.05)  # viewer hours, faded for an hour
        assert (first.expected, first.concurrent, first.distinct) == (1.0, 120, 7)
        assert second.score == pytest.approx(second.observed / 4, rel=0.001)
        assert first.since == NOON

    def test_unknown_runtimes(self) -> None:
        scope = self.scope(a=100, b=100, c=100, d=100)
        runtimes = {"a": 1800.0, "b": 7200.0, "c": 5400.0, "d": 0.0, "elsewhere": 60.0}
        assert {i.content: i.expected for i in popular(scope.detector, scope.counts, runtimes)}["d"] == 1.5
        assert {i.expected for i in popular(scope.detector, scope.counts, {})} == {1.0}

    def test_a_looped_clip_is_no_favourite(self) -> None:
        scope = self.scope(clip=10, film=100)
        ranked = popular(scope.detector, scope.counts, {"clip": 1.0, "film": 3600.0}, limit=1)
        assert [item.content for item in ranked] == ["clip"]
        assert ranked[0].expected == pytest.approx(300 / 3600, abs=0.001)

    def test_hours_fade(self) -> None:
        scope = self.scope(film=100)
        (before,) = popular(scope.detector, scope.counts, {})
        scope.counts.clear()
        scope.pass_(86_400, 600)
        (after,) = popular(scope.detector, scope.counts, {})
        assert after.observed == pytest.approx(before.observed * 0.368, rel=0.01)


class TestParams:
    def test_from_settings(self) -> None:
        settings = Settings.from_env({"PULSEGATE_TRENDING_ENTER": "7", "PULSEGATE_TRENDING_FORGET_DAYS": "20"})
        live, vod = Params.of(settings, "live"), Params.of(settings, "vod")
        assert (live.enter, live.forget_s) == (7.0, 20 * 86_400.0)
        assert (live.fast_half_life_s, vod.fast_half_life_s) == (5.0, 20.0)
        assert Params.of(Settings(), "live") == LIVE
        assert Params.of(Settings(), "vod") == VOD
        assert live.formula()["enter"] == 7.0

    def test_thresholds_the_wrong_way_round(self) -> None:
        with pytest.raises(ConfigError, match="PULSEGATE_TRENDING_LEAVE"):
            Settings.from_env({"PULSEGATE_TRENDING_LEAVE": "6"})


def test_a_planted_population_is_what_it_says() -> None:
    """The mean of a population of one title is its audience, and three times that after the surge."""
    rng = random.Random(9)
    title = Title("t", 400, 600, surge_at=NOON + 2 * HOUR_MS)
    population = Population([title], rng)
    population.start(NOON)
    before, after = [], []
    for now in range(NOON, NOON + 4 * HOUR_MS, TICK_MS):
        population.step(now, TICK_MS / 1000)
        (before if now < NOON + 2 * HOUR_MS else after).append(title.watching)
    assert sum(before) / len(before) == pytest.approx(400, rel=0.06)
    assert sum(after[12:]) / len(after[12:]) == pytest.approx(1200, rel=0.06)


def _near(items: list[Item], rel: float = 1e-4) -> list[Item]:
    """The same items to the precision of what is stored."""
    return [
        replace(
            item,
            observed=pytest.approx(item.observed, rel=rel, abs=0.02),
            expected=pytest.approx(item.expected, rel=rel, abs=0.02),
            score=pytest.approx(item.score, rel=rel, abs=0.02),
        )
        for item in items
    ]
