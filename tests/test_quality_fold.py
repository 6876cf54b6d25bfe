"""The fold: facts add up to what a session did, whoever tells of it and in whatever order; and it bears anything."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cmcd.parser import parse_body
from engine.events import Event, read
from engine.quality.dims import agent_of
from engine.quality.facts import Fact
from engine.quality.fold import TYPES, Playback, decode, encode, fold
from engine.quality.state import VERSION
from tests.quality_truth import STYLES, Session, Told, Truth

SEEDS = range(200)


def folded(events: Iterable[Event]) -> list[Fact]:
    """The facts; the state goes through its stored form at every step."""
    state: Playback | None = None
    facts: list[Fact] = []
    for event in events:
        state, made = fold(state, event)
        facts += made
        state = decode(encode(state)) if state is not None else None
    return facts


def summed(facts: list[Fact]) -> Truth:
    """What the facts add up to."""

    def of(name: str) -> list[Fact]:
        return [fact for fact in facts if fact.fact == name]

    plays, stalls, errors, switches = of("play"), of("stall"), of("error"), of("switch")
    return Truth(
        attempts=len(of("attempt")), starts=len(of("start")), start_ms=[f.ms for f in of("start")],  # type: ignore[misc]
        start_failures=len(of("start_failure")), exits=len(of("exit")), play_ms=sum(f.ms or 0 for f in plays),
        ad_play_ms=sum(f.ms or 0 for f in plays if f.ad), bits=sum(f.bits or 0 for f in plays),
        stall_ms=sum(f.ms or 0 for f in stalls), stalls=sum(f.count or 0 for f in stalls), switches=len(switches),
        down=sum((f.value or 0) < (f.before or 0) for f in switches), errors=len(errors), fatal=sum(f.fatal for f in errors),
        codes=[f.code for f in errors], ad_breaks=len(of("ad_break")), ad_starts=len(of("ad_start")), ad_ends=len(of("ad_end")),
        skipped=sum(f.skipped for f in of("ad_end")), dropped=int(sum(f.value or 0 for f in of("dropped"))),
        latencies=sorted(int(f.value or 0) for f in of("latency")), ends=len(of("end")), silent=sum(f.silent for f in of("end")),
    )  # fmt: skip


def same(told: Told, facts: list[Fact], *, within: dict[str, float] | None = None, but: Iterable[str] = ()) -> None:
    """`within`: by how much a sum may differ; all others are exact (bits to a rounding error)."""
    found, allowed = summed(facts), {"bits": 1.0} | (within or {})
    for name in Truth.__dataclass_fields__:
        if name not in but:
            is_, should = getattr(found, name), getattr(told.truth, name)
            near = pytest.approx(should, rel=0 if within else 1e-6, abs=allowed[name]) if name in allowed else should
            assert is_ == near, name


def beacons(facts: list[Fact]) -> tuple[int, float]:
    """(came, missing)."""
    told = [fact for fact in facts if fact.fact == "beacon"]
    return sum(f.count or 0 for f in told), sum(f.value or 0 for f in told)


@contextmanager
def naming(seed: int) -> Iterator[None]:
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}") from None


class TestTruth:
    @pytest.mark.parametrize("style", STYLES)
    def test_reports_are_exact(self, style: str) -> None:
        for seed in SEEDS:
            told = Session(seed, "cmcd").cmcd(style)
            facts = folded(told.events)
            with naming(seed):
                same(told, facts)
                assert beacons(facts) == (told.reports, 0)

    @pytest.mark.parametrize("style", STYLES)
    def test_reports_that_overtake_one_another(self, style: str) -> None:
        """Only where two of the same moment change places is a sum off, by no more than they lie apart."""
        for seed in SEEDS:
            told = Session(seed, "cmcd").cmcd(style, jitter_ms=150)
            facts = folded(told.events)
            bits = 6e6 * 0.15 * (1 + told.truth.switches)
            with naming(seed):
                same(told, facts, within={"play_ms": 300, "stall_ms": 300, "bits": bits}, but=["ad_play_ms", "skipped"])
                assert beacons(facts) == (told.reports, 0)

    @pytest.mark.parametrize("style", STYLES)
    def test_lost_reports(self, style: str) -> None:
        """What is missing is counted, and no sum is off by more than the time that nobody told of."""
        lost = 0
        for seed in SEEDS:
            told = Session(seed, "cmcd").cmcd(style, lost=0.1)
            facts, truth = folded(told.events), told.truth
            found = summed(facts)
            lost += told.lost
            with naming(seed):
                assert beacons(facts) == (told.reports, told.missing)
                assert abs(found.play_ms - truth.play_ms) <= told.lost_ms
                assert abs(found.stall_ms - truth.stall_ms) <= told.lost_ms
                assert found.stalls <= truth.stalls + told.lost  # a seek that was not told of looks like a stall
                assert found.starts + found.start_failures + found.exits == found.attempts <= truth.attempts
                assert found.ad_starts <= truth.ad_starts
                assert found.ad_ends <= truth.ad_ends
                assert found.errors <= truth.errors
                assert found.dropped <= truth.dropped
        assert lost > 1_000

    @pytest.mark.parametrize("inside", [True, False], ids=["inside heartbeats", "posted"])
    def test_heartbeats(self, inside: bool) -> None:
        """Durations and counts are exact. Which of them was played within an ad, or at which bitrate, is known to an interval; so is
        what was played around a stall of a live stream without a position, and when a stall began whose player fell silent within it."""
        exact = 0
        for seed in SEEDS:
            told = Session(seed, "own").own(inside)
            truth = told.truth
            blur = 10_000.0 * truth.stalls if told.blurred else 0.0
            within = {
                "bits": 6e6 * (10.0 * truth.switches + blur / 1000) + 1, "play_ms": blur,
                "stall_ms": 10_000.0 * told.cut * inside,
                "ad_play_ms": 10_000.0 * (truth.ad_starts + truth.ad_ends),
            }  # fmt: skip
            exact += not (blur or told.cut)
            with naming(seed):
                same(told, folded(told.events), within=within)
        assert exact > 150


START = 1_795_402_000_000


class Player:
    """One session, told by hand: times are ms since START, of both clocks."""

    def __init__(self) -> None:
        self.state: Playback | None = None
        self.facts: list[Fact] = []
        self.ids = self.sn = 0

    def tell(self, type_: str, at: int, data: Any = None, **more: Any) -> list[Fact]:
        """One event; what it made."""
        self.ids += 1
        envelope = {
            "type": type_, "at": START + at, "view": 1, "started_at": START, "account": "ann", "session": "s1", "device": "tv",
            "content": "film", "kind": "vod", "data": {} if data is None else data,
        }  # fmt: skip
        event = read(5, f"{START}-{self.ids}", json.dumps(envelope | more).encode())
        old, before = self.state, copy.deepcopy(self.state)
        self.state, made = fold(old, event)
        assert old == before, "the fold is pure"
        self.facts += made
        return made

    def cmcd(
        self, ts: int, e: str = "ps", sta: str = "", sn: int | None = None, at: int | None = None, **keys: Any
    ) -> list[Fact]:
        self.sn, sn = (self.sn + 1, self.sn) if sn is None else (max(self.sn, sn + 1), sn)
        keys = (
            {"e": e, "ts": START + ts, "sn": sn, "sid": "s1", "cid": "film", "v": 2}
            | ({"sta": sta} if sta else {})
            | keys
        )
        return self.tell("cmcd", ts if at is None else at, {"type": "cmcd", "target": "", "keys": keys, "raw": ""})

    def lines(self, *lines: str) -> None:
        """Reports as they came off the wire."""
        for report in parse_body("\n".join(lines).encode()).reports:
            ts = report.keys["ts"]
            assert isinstance(ts, int)
            self.tell("cmcd", ts - START, {"type": "cmcd", "target": "", "keys": report.keys, "raw": report.raw})

    def beat(self, at: int, state: str = "playing", watched: int = 0, **more: Any) -> list[Fact]:
        self.sn += 1
        quality = {"quality": more.pop("quality")} if "quality" in more else {}
        return self.tell(
            "heartbeat", at, {"state": state, "position": 1.0} | quality, seq=self.sn, watched_ms=watched, **more
        )

    def end(
        self, at: int, reason: str = "stopped", watched: int = 0, seen: int | None = None, **more: Any
    ) -> list[Fact]:
        data = {"reason": reason, "watched_ms": watched, "last_seen_at": START + (at if seen is None else seen)}
        return self.tell("view_end", at, data, **more)

    def of(self, *names: str) -> list[Fact]:
        return [fact for fact in self.facts if fact.fact in names]

    def sum(self, name: str) -> int:
        return sum(fact.ms or 0 for fact in self.of(name))


@pytest.fixture
def player() -> Player:
    return Player()


class TestCaptured:
    """Reports as three players sent them."""

    def test_hls_tells_nothing_first(self, player: Player) -> None:
        player.lines(
            'cid="film",e=t,sf=h,sid="h1",sn=0,ts=1795402553242,v=2',
            'cid="film",e=ps,sf=h,sid="h1",sn=1,sta=s,ts=1795402553290,v=2',
            'br=(273),cid="film",e=bc,mtp=(500),sf=h,sid="h1",sn=2,sta=s,ts=1795402553293,v=2',
            'br=(273),cid="film",e=ps,sf=h,sid="h1",sn=3,sta=p,ts=1795402553700,v=2',
            'br=(980),cid="film",e=bc,sf=h,sid="h1",sn=4,sta=p,ts=1795402555000,v=2',
        )
        assert [(f.ms, f.value) for f in player.of("start")] == [(410, None)]
        assert [(f.before, f.value) for f in player.of("switch")] == [(273_000, 980_000)], (
            "not the first one, while starting"
        )

    def test_dash_claims_before_it_plays(self, player: Player) -> None:
        player.lines(
            'bl=(0;v 0;a),cid="film",e=ps,msd=1,sid="d1",sn=1,sta=s,ts=1795402567215,v=2',
            'bl=(0;v 0;a),br=(300;v 48;a),cid="film",e=rr,msd=72,rc=200,sid="d1",sn=2,sta=s,ts=1795402567287,v=2',
            'bl=(0;v 0;a),br=(300;v 48;a),cid="film",e=ps,sf=d,sid="d1",sn=4,st=v,sta=r,ts=1795402567300,v=2',
            'bl=(2000;v 2000;a),br=(300;v 48;a),cid="film",e=ps,sid="d1",sn=5,sta=p,ts=1795402567376,v=2',
            'br=(300;v 48;a),cid="film",e=t,sid="d1",sn=6,sta=p,ts=1795402577376,v=2',
        )
        player.end(600_000)
        assert [(f.ms, f.value) for f in player.of("start")] == [(161, 72)]
        assert not player.of("stall"), "starting is no stall"
        assert [(f.ms, f.bits) for f in player.of("play")] == [(10_000, 3_480_000)], "both tracks"
        assert sum(f.value or 0 for f in player.of("beacon")) == 2, "sn 0 and 3"

    def test_shaka_starts_rebuffering_and_is_in_no_order(self, player: Player) -> None:
        player.lines(
            'cid="film",e=ps,sid="s1",sn=1,sta=r,ts=1795402812000,v=2',
            'cid="film",e=ps,sid="s1",sn=10,sta=p,ts=1795402812600,v=2',
            'br=(348),cid="film",e=rr,msd=234,rc=200,sid="s1",sn=11,st=v,sta=p,ts=1795402812578,v=2',
            'bg,br=(348),cid="film",e=b,sf=d,sid="s1",sn=51,st=v,sta=p,ts=1795402822600,v=2',
        )
        player.end(900_000, "timeout")
        assert [f.ms for f in player.of("start")] == [600]
        assert player.sum("play") == 10_000
        assert beacons(player.facts) == (4, 48)


class TestStates:
    def test_a_late_report_turns_no_time_back(self, player: Player) -> None:
        player.cmcd(0, sta="s")
        player.cmcd(1_000, sta="p")
        player.cmcd(9_000, sta="a", sn=3)
        player.cmcd(8_000, "t", "p", sn=2)
        player.end(20_000)
        assert player.sum("play") == 8_000
        assert [f.value for f in player.of("beacon") if f.value] == [1, -1]

    def test_a_late_first_frame_is_still_one(self, player: Player) -> None:
        player.cmcd(0, sta="s", sn=0)
        player.cmcd(5_000, sta="a", sn=2)
        player.cmcd(1_000, sta="p", sn=1)
        assert [f.ms for f in player.of("start")] == [1_000]

    def test_a_stall_is_after_playing(self, player: Player) -> None:
        for ts, sta in [
            (0, "s"),
            (500, "r"),
            (1_000, "p"),
            (9_000, "a"),
            (12_000, "r"),
            (12_500, "p"),
            (20_000, "r"),
            (21_500, "p"),
        ]:
            player.cmcd(ts, sta=sta)
        assert [(f.ms, f.count) for f in player.of("stall")] == [(1_500, 1)]

    @pytest.mark.parametrize("after", ["k", "a", "e", "f", "q"])
    def test_a_stall_ends_with_any_other_state(self, player: Player, after: str) -> None:
        for ts, sta in [(0, "s"), (1_000, "p"), (9_000, "r"), (11_000, after), (15_000, "r"), (17_000, "p")]:
            player.cmcd(ts, sta=sta)
        assert [(f.ms, f.count) for f in player.of("stall")] == [(2_000, 1)]

    def test_loading_after_a_seek_is_no_stall(self, player: Player) -> None:
        for ts, sta, bl in [
            (0, "s", 0),
            (1_000, "p", 900),
            (9_000, "k", 0),
            (9_300, "p", 100),
            (9_400, "r", 0),
            (10_900, "p", 900),
        ]:
            player.cmcd(ts, sta=sta, bl=[bl])
        assert not player.of("stall")
        player.cmcd(14_000, sta="r", bl=[0])
        player.cmcd(14_600, sta="p")
        assert player.sum("stall") == 600, "that seek is long over"

    def test_a_long_stall_comes_in_pieces(self, player: Player) -> None:
        for ts, sta in [(0, "s"), (1_000, "p"), (5_000, "r")]:
            player.cmcd(ts, sta=sta)
        for ts in range(15_000, 145_000, 10_000):
            player.cmcd(ts, "t", "r")
        player.cmcd(150_000, sta="p")
        assert [(f.ms, f.count) for f in player.of("stall")] == [(60_000, 1), (60_000, 0), (25_000, 0)]

    def test_silence_is_not_played(self, player: Player) -> None:
        player.cmcd(0, sta="s")
        player.cmcd(1_000, sta="p")
        player.cmcd(11_000, "t", "p")
        player.cmcd(80_000, "t", "p")
        player.cmcd(90_000, "t", "p")
        player.end(130_000, "timeout", seen=90_000)
        assert player.sum("play") == 20_000

    def test_a_stall_in_which_nothing_could_be_sent(self, player: Player) -> None:
        for ts, sta in [(0, "s"), (1_000, "p"), (5_000, "r"), (55_000, "p")]:
            player.cmcd(ts, sta=sta)
        assert player.sum("stall") == 50_000, "the player told of both its ends"

    def test_a_clock_that_was_set_back(self, player: Player) -> None:
        player.cmcd(0, sta="s")
        player.cmcd(1_000, sta="p")
        player.cmcd(11_000, "t", "p")
        player.cmcd(-3_600_000, "t", "p", at=21_000)
        player.cmcd(-3_590_000, "t", "p", at=31_000)
        player.end(40_000)
        assert player.sum("play") == 20_000

    def test_a_change_overtaken_by_a_report_without_a_state(self, player: Player) -> None:
        player.cmcd(0, sta="s")
        player.cmcd(1_000, sta="p")
        player.cmcd(9_000, "m", sn=3)
        player.cmcd(8_000, sta="r", sn=2)
        player.cmcd(10_000, sta="p", sn=4)
        assert (player.sum("play"), player.sum("stall")) == (7_000, 2_000)

    def test_what_is_shown_is_told_better_than_what_is_loaded(self, player: Player) -> None:
        player.cmcd(0, sta="s", br=[900])
        player.cmcd(1_000, sta="p", br=[900], pb=[400])
        player.cmcd(2_000, "bc", "p", br=[1_800])
        player.cmcd(3_000, "bc", "p", pb=[900, 64])
        player.end(4_000)
        assert [(f.before, f.value) for f in player.of("switch")] == [(400_000, 964_000)]
        assert [(f.bits, f.bits_ms) for f in player.of("play")] == [(800_000, 2_000)]

    def test_another_content_is_another_attempt(self, player: Player) -> None:
        player.cmcd(0, sta="s")
        player.cmcd(1_000, sta="p")
        player.cmcd(11_000, sta="s", cid="next")
        player.end(11_050, "content_changed")
        player.tell("view_start", 11_050, view=2, started_at=START + 11_050, content="next")
        player.cmcd(12_000, sta="p", cid="next")
        assert [(f.fact, f.content) for f in player.of("attempt", "start", "exit")] == [
            ("attempt", "film"), ("start", "film"), ("attempt", "next"), ("start", "next"),
        ]  # fmt: skip
        assert player.sum("play") == 0, "nobody told of the first film after its first frame"
        assert [f.view for f in player.of("end", "start")] == [1, 1, 2]

    def test_a_straggler_of_the_content_before(self, player: Player) -> None:
        player.cmcd(0, sta="s")
        player.cmcd(1_000, sta="p")
        player.end(11_050, "content_changed")
        player.tell("view_start", 11_050, view=2, started_at=START + 11_050, content="next")
        player.cmcd(10_900, "t", "p", sn=2, at=11_060)
        player.cmcd(11_000, sta="s", cid="next", sn=3, at=11_070)
        player.cmcd(12_000, sta="p", cid="next", sn=4)
        assert [(f.content, f.ms) for f in player.of("start")] == [("film", 1_000), ("next", 1_000)]
        assert len(player.of("attempt")) == 2

    def test_heartbeats_add_nothing_but_dimensions(self, player: Player) -> None:
        player.cmcd(0, sta="s")
        player.beat(0, "starting", provider="x")
        player.cmcd(1_000, sta="p")
        player.beat(
            1_000,
            quality={"bitrate": 9e6, "dropped_frames": 5, "startup_ms": 3, "cdn": "c1", "labels": {"plan": "gold"}},
        )
        player.tell("buffer_start", 4_000)
        player.tell("buffer_end", 9_000)
        player.cmcd(11_000, "t", "p")
        player.beat(11_000, watched=10_000)
        player.end(12_000, watched=10_000)
        assert player.sum("play") == 10_000
        assert not player.of("stall", "dropped", "switch")
        assert {(f.cdn, tuple(f.labels.items())) for f in player.of("play")} == {("c1", (("plan", "gold"),))}

    def test_from_heartbeats_to_reports_nothing_counts_twice(self, player: Player) -> None:
        player.beat(0)
        player.beat(10_000, watched=10_000)
        player.cmcd(10_500, "t", "p")
        player.beat(20_000, watched=20_000)
        player.cmcd(20_500, "t", "p")
        player.end(21_000, watched=21_000)
        assert len(player.of("attempt")) == len(player.of("start")) == 1
        assert [(f.source, f.ms) for f in player.of("play")] == [("heartbeat", 10_000), ("cmcd", 10_000)]

    def test_reports_to_two_targets_count_once(self, player: Player) -> None:
        said = [
            (0, "ps", "s"),
            (1_000, "ps", "p"),
            (5_000, "as", "p"),
            (9_000, "ae", "p"),
            (10_000, "t", "p"),
            (11_000, "e", "f"),
        ]
        for sn, (ts, e, sta) in enumerate(said):
            for target in ("a", "b"):
                keys = {"e": e, "ts": START + ts, "sn": sn, "sta": sta, "cid": "film"}
                player.tell("cmcd", ts, {"target": target, "keys": keys})
        assert [len(player.of(name)) for name in ("attempt", "start", "ad_start", "ad_end", "error")] == [1] * 5
        assert player.sum("play") == 10_000
        assert sum(f.count or 0 for f in player.of("beacon")) == 12


class TestOutcome:
    def test_an_error_before_the_first_frame(self, player: Player) -> None:
        player.cmcd(0, sta="s")
        player.cmcd(900, "e", "f", ec=["manifestLoadError"])
        player.cmcd(900, "ps", "f")
        player.end(1_000, "error")
        assert [(f.code, f.fatal, f.started) for f in player.of("error")] == [("manifestLoadError", True, False)]
        assert [f.code for f in player.of("start_failure")] == ["manifestLoadError"]
        assert not player.of("exit", "start")

    def test_an_error_that_it_recovers_from(self, player: Player) -> None:
        player.cmcd(0, sta="s")
        player.cmcd(900, "e", "s", ec=["fragLoadError"])
        player.cmcd(2_000, sta="p")
        player.end(3_000)
        assert [f.fact for f in player.of("start", "start_failure", "exit")] == ["start"]

    def test_a_failure_that_says_no_more(self, player: Player) -> None:
        player.cmcd(0, sta="s")
        player.cmcd(900, sta="f")
        player.end(1_000, "error")
        player.cmcd(900, "e", "f", ec=["late"])
        assert [(f.code, f.fatal) for f in player.of("error")] == [("", True)], "told once"
        assert len(player.of("start_failure")) == 1

    @pytest.mark.parametrize("sta", ["e", "q"])
    def test_left_before_the_first_frame(self, player: Player, sta: str) -> None:
        player.cmcd(0, sta="s")
        player.cmcd(900, sta=sta)
        player.end(1_000)
        assert len(player.of("exit")) == 1

    def test_a_player_that_waits_was_not_asked(self, player: Player) -> None:
        player.cmcd(0, "t")
        player.cmcd(100, sta="d")
        player.cmcd(90_000, sta="s")
        player.cmcd(91_000, sta="p")
        assert [f.ms for f in player.of("start")] == [1_000]
        other = Player()
        other.cmcd(0, "t")
        other.end(40_000, "timeout")
        assert not other.of("attempt", "exit")

    def test_playing_again_after_the_end(self, player: Player) -> None:
        for ts, sta in [(0, "s"), (1_000, "p"), (9_000, "e"), (20_000, "s"), (20_400, "p")]:
            player.cmcd(ts, sta=sta)
        assert [f.ms for f in player.of("start")] == [1_000, 400]

    def test_a_refused_stream_fails_on_purpose(self, player: Player) -> None:
        player.cmcd(0, sta="s")
        player.tell("block", 100, {"reason": "limit_reached", "rule": "streams"})
        player.cmcd(900, "e", "f", ec=["fragLoadError"])
        assert [(f.code, f.business) for f in player.of("error")] == [("limit_reached", True), ("fragLoadError", True)]
        assert [f.business for f in player.of("start_failure")] == [True]

    @pytest.mark.parametrize(
        "code", ["GEO_BLOCKED", "concurrent_limit", "drm-denied", "NOT_ENTITLED", "too many streams"]
    )
    def test_refusals_by_their_code(self, player: Player, code: str) -> None:
        player.tell("error", 0, {"type": "error", "code": code, "fatal": True})
        assert [(f.fact, f.business) for f in player.of("error", "start_failure")] == [
            ("error", True),
            ("start_failure", True),
        ]
        assert player.of("attempt"), "an error alone shows that playback was asked for"

    def test_admitted_after_all(self, player: Player) -> None:
        player.tell("block", 0, {"reason": "limit_reached"}, view=0)
        player.tell("view_start", 5_000, started_at=START + 5_000)
        player.cmcd(5_000, sta="s")
        player.cmcd(5_900, "e", "f", ec=["fragLoadError"])
        assert [f.business for f in player.of("error")] == [True, False]

    def test_reopened_after_silence(self, player: Player) -> None:
        player.cmcd(0, sta="s")
        player.cmcd(1_000, sta="p")
        player.cmcd(11_000, "t", "p")
        player.end(41_000, "timeout", seen=11_000)
        player.tell("view_reopen", 60_000, {"reason": "timeout"})
        player.cmcd(60_000, "t", "p")
        player.cmcd(70_000, "t", "p")
        player.end(71_000)
        assert [len(player.of(name)) for name in ("attempt", "start", "end")] == [1, 1, 2]
        assert player.sum("play") == 20_000


class TestOwn:
    def test_a_start_by_the_servers_clock(self, player: Player) -> None:
        player.beat(0, "starting")
        player.beat(1_800, "playing")
        assert [f.ms for f in player.of("start")] == [1_800]

    def test_nobody_can_say_how_long_it_took(self, player: Player) -> None:
        player.beat(0, "playing")
        assert [f.ms for f in player.of("start")] == [None]

    def test_stalls_are_unknown_without_quality(self, player: Player) -> None:
        player.beat(0)
        player.beat(10_000, watched=10_000)
        player.end(10_000, watched=10_000)
        assert [f.stalls_known for f in player.of("play")] == [False]

    def test_a_stall_without_its_end(self, player: Player) -> None:
        player.beat(0)
        player.tell("buffer_start", 4_000)
        player.beat(10_000, "playing", watched=9_000)
        player.beat(20_000, "playing", watched=19_000)
        player.beat(30_000, "playing", watched=29_000)
        assert [(f.ms, f.count) for f in player.of("stall")] == [(6_000, 1)], "at most till it said that it plays"

    def test_no_stall_is_longer_than_the_session(self, player: Player) -> None:
        player.beat(0)
        player.beat(10_000, watched=10_000)
        player.tell("buffer_end", 15_000, {"type": "buffer_end", "duration_ms": 1e9})
        player.end(20_000, watched=10_000)
        assert player.sum("stall") + player.sum("play") <= 20_000

    def test_bitrate_by_heartbeats_alone(self, player: Player) -> None:
        for at, rate in [(0, 1e6), (10_000, 1e6), (20_000, 3e6), (30_000, 3e6)]:
            player.beat(at, watched=at, quality={"bitrate": rate})
        player.end(30_000, watched=30_000)
        assert [(f.before, f.value) for f in player.of("switch")] == [(1e6, 3e6)]
        assert sum(f.bits or 0 for f in player.of("play")) == 1e6 * 20 + 3e6 * 10

    def test_dropped_frames_count_up(self, player: Player) -> None:
        for at, count in enumerate([0, 4, 4, 9, 2]):
            player.beat(at * 10_000, quality={"dropped_frames": count})
        assert [f.value for f in player.of("dropped")] == [0, 4, 5, 2], "the last began anew"

    def test_power_off(self, player: Player) -> None:
        player.beat(0, "starting")
        player.end(30_000, "timeout", seen=0)
        assert [f.fact for f in player.of("attempt", "exit", "end")] == ["attempt", "exit", "end"]
        assert [f.silent for f in player.of("end")] == [True]

    def test_ads(self, player: Player) -> None:
        player.beat(0, quality={})
        player.tell("ad_break_start", 1_000, {"type": "ad_break_start", "break": "b1", "at": START + 900})
        player.tell(
            "ad_start", 2_000, {"type": "ad_start", "data": {"ad": "x", "ad_type": "mid-roll", "startup_ms": 700}}
        )
        player.tell("ad_error", 2_500, {"type": "ad_error", "code": "vast_303"})
        player.tell("ad_end", 9_000, {"type": "ad_end", "skipped": True, "watched_ms": 6_500})
        player.tell("ad_break_end", 9_100)
        assert [(f.fact, f.ad_break, f.ms) for f in player.of("ad_break", "ad_start", "ad_error", "ad_end")] == [
            ("ad_break", "b1", None), ("ad_start", "mid-roll", 700), ("ad_error", "mid-roll", None), ("ad_end", "mid-roll", 6_500),
        ]  # fmt: skip
        assert player.of("ad_end")[0].skipped
        assert player.state is not None
        assert player.state.ads.part == ""


class TestDimensions:
    def test_of_the_client(self, player: Player) -> None:
        agent = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36"
        player.tell("client", 0, {"user_agent": agent, "country": "PT", "asn": "AS2860 NOS"})
        player.cmcd(0, sta="s", cdn="cdn-b", h="edge1", **{"com.example-player": "hls.js", "com.example-plan": "gold"})
        assert player.of("attempt") == [], "it is told with its outcome"
        player.cmcd(500, sta="p")
        (attempt,) = player.of("attempt")
        assert (attempt.os, attempt.browser, attempt.country, attempt.asn) == (
            "Windows",
            "Chrome 140",
            "PT",
            "AS2860 NOS",
        )
        assert (attempt.cdn, attempt.edge, attempt.player, attempt.labels) == (
            "cdn-b",
            "edge1",
            "hls.js",
            {"plan": "gold"},
        )
        assert (attempt.partition, attempt.stream_ms, attempt.stream_seq, attempt.part) == (5, START, 3, 0)

    @pytest.mark.parametrize(
        ("user_agent", "expected"),
        [
            ("", ("", "", "", "")),
            ("nonsense", ("", "", "", "")),
            (
                "AppleCoreMedia/1.0.0.20H350 (Apple TV; U; CPU OS 16_6 like Mac OS X; en_us)",
                ("tvOS", "", "AVPlayer", "1.0.0.20H350"),
            ),
            ("MyApp/1.2 (Linux;Android 11) ExoPlayerLib/2.18.1", ("Android", "", "ExoPlayer", "2.18.1")),
            ("Roku/DVP-12.5 (12.5.0.4178-88)", ("Roku", "", "Roku", "12.5")),
            (
                "Mozilla/5.0 (Web0S; Linux/SmartTV) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/79.0.3945.79 Safari/537.36",
                ("webOS", "Chrome 79", "", ""),
            ),
        ],
    )
    def test_agents(self, user_agent: str, expected: tuple[str, ...]) -> None:
        assert tuple(agent_of(user_agent)) == expected

    def test_labels_are_bounded(self, player: Player) -> None:
        player.beat(0, quality={"labels": {f"l{i}": "x" * 100 for i in range(30)} | {"y" * 65: "no", "n": 4}})
        labels = player.of("attempt")[0].labels
        assert len(labels) == 10
        assert {len(value) for value in labels.values()} == {64}

    def test_what_is_played_keeps_its_own(self, player: Player) -> None:
        player.cmcd(0, sta="s", cdn="a")
        player.cmcd(1_000, sta="p", cdn="a")
        player.cmcd(9_000, "t", "p", cdn="a")
        player.cmcd(19_000, "t", "p", cdn="b")
        player.end(20_000)
        assert [(f.cdn, f.ms) for f in player.of("play")] == [("a", 8_000), ("b", 10_000)]


class TestState:
    def test_is_small(self) -> None:
        sizes = []
        for seed in SEEDS:
            state = None
            for event in Session(seed, "cmcd").cmcd("dash").events:
                state, _ = fold(state, event)
                if state is not None:
                    sizes.append(len(encode(state)))
        assert sorted(sizes)[len(sizes) // 2] <= 400
        assert max(sizes) <= 600

    def test_another_version_is_nothing_known(self) -> None:
        stored = msgspec.msgpack.encode([VERSION + 1, "whatever"])
        assert decode(stored) is None

    def test_unknown_events_change_nothing(self, player: Player) -> None:
        assert player.tell("custom", 0) == []
        assert player.state is None
        player.end(0)
        assert player.state is None
        assert [f.source for f in player.of("end")] == ["event"]


junk = (
    st.none()
    | st.booleans()
    | st.integers(-5, 10**19)
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.integers(-1, 9), max_size=3)
)
whole_ms = st.integers(0, 200_000)
ts = st.integers(START, START + 400_000) | st.sampled_from([0, START - 10**7, START + 10**9, 10**14])
keys = st.fixed_dictionaries(
    {"e": st.sampled_from(["ps", "ps", "t", "bc", "e", "rr", "as", "ae", "abs", "abe", "sk", "ce", "c", "b", ""]), "ts": ts},
    optional={
        "sta": st.sampled_from("spkraefqdwx"), "sn": st.integers(0, 40), "cid": st.sampled_from(["a", "b"]), "br": junk, "bl": junk, "msd": junk,
        "ltc": junk, "dfa": junk, "ec": junk, "cen": st.sampled_from(["ad_start", "ad-end", "skip", "?"]), "cdn": junk, "x-plan": junk,
    },
)  # fmt: skip
quality = st.dictionaries(
    st.sampled_from(["bitrate", "dropped_frames", "latency_ms", "startup_ms", "cdn", "labels"]), junk | whole_ms | st.dictionaries(st.text(max_size=3), junk)
)  # fmt: skip
states = st.sampled_from(["starting", "playing", "playing", "buffering", "seeking", "paused", "ended", "error"])
beats = st.fixed_dictionaries(
    {"state": states}, optional={"quality": quality | junk, "position": whole_ms, "cmcd": st.just(1)}
)
fields = st.dictionaries(
    st.sampled_from(["at", "duration_ms", "to", "from", "code", "message", "fatal", "skipped", "watched_ms", "ad_type", "data", "break"]),
    junk | whole_ms,
)  # fmt: skip
ended = st.fixed_dictionaries(
    {"reason": st.sampled_from(["stopped", "timeout"]), "watched_ms": whole_ms | junk, "last_seen_at": ts | junk}
)
told = sorted(TYPES - {"cmcd", "heartbeat", "view_end"})
said = (
    st.tuples(
        st.just("cmcd"), st.fixed_dictionaries({"keys": keys | junk}, optional={"target": st.sampled_from(["", "t2"])})
    )
    | st.tuples(st.just("heartbeat"), beats)
    | st.tuples(st.sampled_from(told), fields | junk)
    | st.tuples(st.just("view_end"), ended)
)
steps = st.tuples(
    said, st.integers(-5_000, 40_000), st.sampled_from([0, 1, 1, 1, 1, 2]), st.integers(0, 8), st.integers(0, 60_000)
)  # fmt: skip


JUNK: list[Any] = [None, True, -5, 10**19, 1.5, "x", [0, 5], {}]


def scramble(rng: random.Random) -> list[Any]:
    """A long sequence, of which most is likely and some is junk: it comes deeper than what is drawn."""

    def any_of(names: str, share: float) -> dict[str, Any]:
        return {
            name: rng.choice([rng.randrange(200_000)] * 2 + [rng.choice(JUNK)])
            for name in names.split()
            if rng.random() < share
        }

    sequence, at, sn = [], START, 0
    both = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0])
    for number in range(rng.randrange(5, 90)):
        step = rng.choice([rng.randrange(12_000)] * 8 + [rng.randrange(-5_000, 40_000)])
        at += step
        kind = rng.random()
        if kind < 0.03:
            seen = at + rng.randrange(-5_000, 40_000)
            item: Any = ("view_end", {"reason": "timeout", "watched_ms": rng.randrange(200_000), "last_seen_at": seen})
        elif rng.random() < both:
            sn += rng.choice([1, 1, 1, 1, 2, -1])
            when = rng.choice([at] * 12 + [at - rng.randrange(3_000), at + 10**8, at - 10**7, 0])
            said = {
                "e": rng.choice(["ps", "ps", "ps", "t", "t", "bc", "e", "rr", "as", "ae", "abs", "abe", "sk", "c"]),
                "ts": when,
                "sta": rng.choice("sppppprrkaefq"),
            }
            said |= any_of("br bl msd ltc dfa ec", 0.2) | ({"sn": max(0, sn)} if rng.random() < 0.9 else {})
            item = ("cmcd", {"keys": said | ({"cid": rng.choice("ab")} if rng.random() < 0.2 else {})})
        elif kind < 0.5:
            state = rng.choice(["starting", "buffering", "seeking", "paused", "ended", "error"] + ["playing"] * 6)
            body = {"state": state, "quality": any_of("bitrate dropped_frames latency_ms startup_ms", 0.3)}
            item = ("heartbeat", body | ({"position": 1} if rng.random() < 0.5 else {}))
        else:
            happened = any_of("duration_ms to from code fatal skipped watched_ms", 0.3)
            clock = {"at": at + rng.randrange(5_000)} if rng.random() < 0.4 else {}
            item = (rng.choice(["buffer_start", "buffer_end"] * 4 + told), happened | clock)
        sequence.append((item, step, rng.choice([0, 1, 1, 1, 1, 1, 1, 2, 3]), number // 2, rng.randrange(13_000)))
    return sequence


class TestAnything:
    """Whatever comes: nothing raises, no more is told than time has passed, each attempt has one outcome, and the stored state is the state."""

    @settings(max_examples=200, deadline=None)
    @given(st.lists(steps, max_size=40))
    def test_drawn(self, sequence: list[Any]) -> None:
        self._bears(sequence)

    def test_scrambled(self) -> None:
        for seed in range(1_500):
            with naming(seed):
                self._bears(scramble(random.Random(seed)))

    def _bears(self, sequence: list[Any]) -> None:
        state: Playback | None = None
        facts: list[Fact] = []
        now, passed, last_ts, watched = START, 0, 0, 0
        for number, ((type_, data), step, view, seq, more) in enumerate(sequence):
            passed += max(0, step)
            now, watched = now + step, watched + more
            found = data.get("keys") if isinstance(data, dict) else None
            if isinstance(found, dict):
                passed += max(0, found["ts"] - last_ts) if last_ts else 0
                last_ts = found["ts"]
            envelope = {
                "type": type_, "at": now, "view": view, "started_at": START + view * 1_000 if view else 0, "account": "ann", "session": "s",
                "seq": seq - 1, "watched_ms": watched, "data": data,
            }  # fmt: skip
            event = read(
                1, f"{START}-{number}", json.dumps(envelope).replace("NaN", "7").replace("Infinity", "8").encode()
            )
            again = decode(encode(state)) if state is not None else None
            assert again == state
            kept, (state, made) = fold(again, event), fold(state, event)
            assert kept == (state, made)
            facts += made
        if state is not None:
            _, made = fold(state, _last(state, now))
            facts += made
        self._holds(facts, passed)

    @staticmethod
    def _holds(facts: list[Fact], passed: int) -> None:
        lasting = [fact for fact in facts if fact.fact in ("play", "stall")]
        assert all(0 <= (fact.ms or 0) <= 60_000 for fact in lasting)
        assert sum(fact.ms or 0 for fact in lasting) <= passed
        attempts = [fact.fact for fact in facts if fact.fact in ("attempt", "start", "start_failure", "exit")]
        assert all(fact == "attempt" for fact in attempts[::2])
        assert all(fact != "attempt" for fact in attempts[1::2])
        assert len(attempts) % 2 == 0
        assert sum(fact.value or 0 for fact in facts if fact.fact == "beacon") >= 0
        assert all(fact.count is not None for fact in facts if fact.fact == "stall")


def _last(state: Playback, now: int) -> Event:
    """The end of the view that plays."""
    view, begun = (state.now.view, state.now.begun) if state.now.view else (9, now)
    envelope = {
        "type": "view_end",
        "at": now + 1,
        "view": view,
        "started_at": begun,
        "account": "ann",
        "session": "s",
        "data": {},
    }
    return read(1, f"{START}-999", json.dumps(envelope).encode())
