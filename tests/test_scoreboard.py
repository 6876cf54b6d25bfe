"""The scoreboard's figures on small hand-made truths: each finds the mistake that was planted, and finds none where there is none."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loadtest.truth import blocks, conservation, counts, goals, positions, slots, trends, views
from loadtest.truth.__main__ import main
from loadtest.truth.figures import Case, Finding, added, percentile
from loadtest.truth.households import homes
from loadtest.truth.matching import sittings
from loadtest.truth.run import Job, Result, Size
from loadtest.truth.score import Answers, Position, score
from loadtest.truth.story import story as tell
from loadtest.truth.truth import (
    Household,
    Line,
    Observed,
    Plan,
    Play,
    Request,
    Run,
    Sample,
    Surge,
    Truth,
    TruthError,
    View,
)

START = 2_209_075_200_000
SECOND = 1_000


@dataclasses.dataclass
class Story:
    """A household's evening, told in seconds."""

    limit: int = 1
    mode: str = "deny_new"
    unit: str = "device"
    lines: list[Line] = dataclasses.field(default_factory=list)
    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    told: list[Position] = dataclasses.field(default_factory=list)
    metrics: str = ""
    n: int = 0

    def truth(self) -> Truth:
        head: list[Line] = [
            Run(seed=7, start=START, plans={"p": Plan(self.limit, self.unit, self.mode)}),
            Household(account="ann", plan="p", limit=self.limit, mode=self.mode),
        ]
        return Truth.of(head + self.lines)

    def ask(self, session: str, at: float, decision: str = "allow", **more: Any) -> None:
        self.n += 1
        fields = {
            "device": f"of-{session}", "content": "film", "state": "playing", "position": 1000 + at, "n": self.n,
        }  # fmt: skip
        self.lines.append(
            Request(at=START + int(at * SECOND), account="ann", decision=decision, session=session, **(fields | more))
        )

    def beats(self, session: str, start: float, until: float, decision: str = "allow", **more: Any) -> None:
        """Every 10 s, the end included."""
        at = start
        while at <= until:
            self.ask(session, at, decision, **more)
            at += 10

    def play(self, session: str, start: float, until: float, state: str = "playing", **more: Any) -> None:
        fields = {
            "device": f"of-{session}",
            "content": "film",
            "from_position": 1000 + start,
            "to_position": 1000 + until,
        }
        span = {"started_at": START + int(start * SECOND), "ended_at": START + int(until * SECOND)}
        self.lines.append(Play(account="ann", session=session, state=state, **span, **(fields | more)))

    def view(self, session: str, start: float, until: float, end: str, **more: Any) -> None:
        """The physical view, all of it played."""
        self.play(session, start, until)
        fields = {
            "device": f"of-{session}", "content": "film", "profile": "kid", "played_ms": (until - start) * SECOND, "last_position": 1000 + until, "duration": 5400.0,
        }  # fmt: skip
        span = {"started_at": START + int(start * SECOND), "ended_at": START + int(until * SECOND)}
        self.lines.append(View(account="ann", session=session, end=end, **span, **(fields | more)))

    def record(
        self, session: str, start: float, end: float | None, watched_s: float, reason: str = "stopped", **more: Any
    ) -> None:
        """The engine's."""
        self.records.append({
            "account": "ann", "session": session, "content": "film", "started_at": START + int(start * SECOND),
            "last_seen_at": START + int((end or start) * SECOND), "ended_at": None if end is None else START + int(end * SECOND),
            "estimated_end_at": None, "reason": None if end is None else reason, "watched_ms": int(watched_s * SECOND),
        } | more)  # fmt: skip

    def answers(self, differences: list[str] | None = None) -> Answers:
        return Answers(self.records, self.told, self.metrics, differences)

    def score(self) -> dict[str, Finding]:
        return score(self.truth(), self.answers(), "node")


def cases(found: Finding, figure: str) -> list[str]:
    return [case.what for case in found.cases if case.figure == figure]


def told_blocks(story: Story) -> Finding:
    return blocks.blocks(homes(story.truth()))


class TestMissedBlocks:
    def test_two_streams_with_confirmed_permission_are_one_too_many(self) -> None:
        story = Story()
        for session in ("tv", "phone"):
            story.play(session, 0, 60)
            story.beats(session, 0, 60)
        found = told_blocks(story)
        assert cases(found, blocks.MISSED) == ["2 streams with a limit of 1 for 60 s: phone, tv"]
        assert goals.rows(story.score())[0].met is False

    def test_within_the_limit_there_is_none(self) -> None:
        story = Story(limit=2)
        for session in ("tv", "phone"):
            story.play(session, 0, 60)
            story.beats(session, 0, 60)
        found = told_blocks(story)
        assert not found.cases
        assert found.counts["decisions"] == 14

    def test_one_after_the_other(self) -> None:
        story = Story()
        story.play("tv", 0, 35)
        story.beats("tv", 0, 30)
        story.play("phone", 50, 90)
        story.beats("phone", 50, 90)
        assert not told_blocks(story).cases

    @pytest.mark.parametrize("silent", [15.0, 40.0])
    def test_silence_in_which_the_slot_yields_confirms_nothing(self, silent: float) -> None:
        story = Story()
        story.play("tv", 0, silent)
        story.ask("tv", 0)
        story.ask("tv", silent)
        story.play("phone", 0, 14)
        story.beats("phone", 0, 14)
        assert not told_blocks(story).cases

    def test_a_paused_stream_has_let_go(self) -> None:
        story = Story()
        story.play("tv", 0, 60, "paused")
        story.beats("tv", 0, 60, state="paused")
        story.play("phone", 0, 60)
        story.beats("phone", 0, 60)
        assert not told_blocks(story).cases

    @pytest.mark.parametrize(
        ("unit", "until", "missed"), [("device", 30, False), ("device", 70, True), ("stream", 30, True)]
    )
    def test_two_tabs_share_a_slot_for_two_intervals_where_devices_are_counted(
        self, unit: str, until: int, missed: bool
    ) -> None:
        story = Story(unit=unit)
        story.play("a", 0, until, device="laptop")
        story.beats("a", 0, until, device="laptop")
        story.play("b", 11, until, device="laptop")
        story.beats("b", 11, until, device="laptop")
        assert bool(cases(told_blocks(story), blocks.MISSED)) is missed

    @pytest.mark.parametrize("flag", ["duplicate", "degraded", "late"])
    def test_what_is_no_fresh_decision_confirms_nothing(self, flag: str) -> None:
        story = Story()
        story.play("tv", 0, 20)
        story.beats("tv", 0, 20, **{flag: True})
        story.play("phone", 0, 20)
        story.beats("phone", 0, 20)
        assert not told_blocks(story).cases


class TestFalseBlocks:
    def test_with_nobody_else_there(self) -> None:
        story = Story()
        story.ask("tv", 5, "block", reason="limit_reached")
        found = told_blocks(story)
        assert "there: nobody of 1" in cases(found, blocks.FALSE)[0]
        assert found.cases[0].account == "ann"

    def test_at_the_limit(self) -> None:
        story = Story()
        story.play("tv", 0, 30)
        story.beats("tv", 0, 30)
        story.ask("phone", 25, "block", reason="limit_reached")
        found = told_blocks(story)
        assert not found.cases
        assert found.counts["at the limit"] == 1

    @pytest.mark.parametrize(("asks", "kind"), [(34.0, "in the ghost window"), (36.0, "without cause")])
    def test_a_silent_television_is_a_ghost_for_fifteen_seconds(self, asks: float, kind: str) -> None:
        story = Story()
        story.play("tv", 0, 22)
        story.beats("tv", 0, 20)
        story.ask("phone", asks, "block", reason="limit_reached")
        assert told_blocks(story).counts[kind] == 1

    def test_after_a_stop_there_is_no_ghost(self) -> None:
        story = Story()
        story.play("tv", 0, 22)
        story.beats("tv", 0, 20)
        story.ask("tv", 22, decision=None, call="stop")
        story.ask("phone", 25, "block", reason="limit_reached")
        assert told_blocks(story).counts["without cause"] == 1

    @pytest.mark.parametrize(("asks", "kind"), [(200, "at the limit"), (320, "without cause")])
    def test_a_pause_holds_its_slot_for_five_minutes(self, asks: float, kind: str) -> None:
        story = Story()
        story.play("tv", 0, 10)
        story.play("tv", 10, 600, "paused")
        story.beats("tv", 0, 0)
        story.beats("tv", 10, 600, state="paused")
        story.ask("phone", asks, "block", reason="limit_reached")
        assert told_blocks(story).counts[kind] == 1

    def test_who_was_refused_itself_holds_nothing(self) -> None:
        story = Story()
        story.play("tv", 0, 60)
        story.beats("tv", 0, 60, "block", reason="evicted")
        story.ask("phone", 31, "block", reason="limit_reached")
        assert "there: nobody" in cases(told_blocks(story), blocks.FALSE)[-1]

    def test_an_eviction_needs_a_full_household_and_is_told_for_half_an_hour(self) -> None:
        story = Story(mode="stop_oldest")
        story.play("tv", 0, 60)
        story.beats("tv", 0, 10)
        story.play("phone", 15, 60)
        story.beats("phone", 15, 60)
        story.beats("tv", 20, 40, "block", reason="evicted")
        found = told_blocks(story)
        assert not found.cases
        assert (found.counts["evicted"], found.counts["sticky: evicted"]) == (1, 2)

    def test_an_eviction_by_nobody(self) -> None:
        story = Story(mode="stop_oldest")
        story.play("tv", 0, 60)
        story.beats("tv", 0, 10)
        story.ask("tv", 20, "block", reason="evicted")
        assert len(cases(told_blocks(story), blocks.FALSE)) == 1

    def test_a_device_is_not_blocked_by_itself(self) -> None:
        story = Story()
        story.play("a", 0, 40, device="tv")
        story.beats("a", 0, 30, device="tv")
        story.play("b", 35, 40, device="tv")
        story.ask("b", 35, "block", reason="limit_reached", device="tv")
        assert len(cases(told_blocks(story), blocks.FALSE)) == 1


def told_slots(story: Story) -> Finding:
    truth = story.truth()
    households = homes(truth)
    return slots.slots(households, sittings(truth, households, story.records)[0])


class TestSlots:
    @pytest.mark.parametrize(("let_in", "wrong"), [(38.0, 0), (48.0, 1)])
    def test_under_demand(self, let_in: float, wrong: int) -> None:
        story = Story()
        story.view("tv", 0, 24, "power_off")
        story.beats("tv", 0, 20)
        story.beats("phone", let_in - 20, let_in - 10, "block", reason="limit_reached")
        story.ask("phone", let_in)
        found = told_slots(story)
        assert found.values[slots.DEMAND] == [let_in - 20]
        assert len(cases(found, slots.DEMAND)) == wrong

    def test_a_slot_that_was_stopped_is_no_ghost(self) -> None:
        story = Story()
        story.view("tv", 0, 24, "stop")
        story.beats("tv", 0, 20)
        story.ask("phone", 22, "block", reason="limit_reached")
        story.ask("tv", 24, decision=None, call="stop")
        story.ask("phone", 32)
        assert told_slots(story).values[slots.DEMAND] == []

    @pytest.mark.parametrize(("ended", "wrong"), [(50.7, 0), (52.0, 1)])
    def test_without_demand(self, ended: float, wrong: int) -> None:
        story = Story()
        story.view("tv", 0, 24, "power_off")
        story.beats("tv", 0, 20)
        story.record("tv", 0, ended, 20, "timeout")
        found = told_slots(story)
        assert found.values[slots.QUIET] == [pytest.approx(ended - 20)]
        assert len(cases(found, slots.QUIET)) == wrong


def told_positions(story: Story, position: float | None) -> Finding:
    truth = story.truth()
    households = homes(truth)
    answer = None if position is None else {"position": position}
    return positions.positions(sittings(truth, households, [])[0], START, {("ann", "kid", "film"): answer})


class TestResume:
    def story(self, heard_until: float = 40) -> Story:
        story = Story()
        story.view("tv", 0, 44, "power_off")
        story.beats("tv", 0, heard_until)
        return story

    def test_the_last_heartbeat(self) -> None:
        found = told_positions(self.story(), 1040)
        assert found.values[positions.RESUME] == [-4]
        assert not found.cases

    @pytest.mark.parametrize("position", [1045.0, 1030.0, None])
    def test_ahead_of_the_screen_too_far_behind_or_forgotten(self, position: float | None) -> None:
        assert len(told_positions(self.story(), position).cases) == 1

    def test_nobody_could_know_what_was_lost(self) -> None:
        found = told_positions(self.story(heard_until=20), 1020)
        assert not found.cases
        assert found.values["lost on the way"] == [-24]

    def test_a_place_only_moved_to_was_not_watched(self) -> None:
        story = Story()
        story.view("tv", 0, 44, "power_off", last_position=3000)
        story.play("tv", 44, 45, "seeking", from_position=1044, to_position=3000)
        story.beats("tv", 0, 40)
        assert not told_positions(story, 1040).cases

    def test_the_later_sitting_counts(self) -> None:
        story = self.story()
        story.view("phone", 100, 124, "stop")
        story.beats("phone", 100, 120)
        assert told_positions(story, 1120).values[positions.RESUME] == [-4]
        assert len(told_positions(story, 1040).cases) == 1

    def test_too_early_to_be_kept(self) -> None:
        story = Story()
        story.view("tv", 0, 44, "power_off", last_position=54)
        story.beats("tv", 0, 40, position=10)
        assert not told_positions(story, None).cases
        assert len(told_positions(story, 50).cases) == 1


def told_views(story: Story) -> Finding:
    truth = story.truth()
    return views.views(*sittings(truth, homes(truth), story.records))


class TestViews:
    @pytest.mark.parametrize(("estimated", "wrong"), [(45.0, 0), (51.0, 1)])
    def test_end_of_one_switched_off(self, estimated: float, wrong: int) -> None:
        story = Story()
        story.view("tv", 0, 44, "power_off")
        story.beats("tv", 0, 40)
        story.record("tv", 0, 70, 40, "timeout", estimated_end_at=START + int(estimated * SECOND))
        found = told_views(story)
        assert found.values[views.END] == [estimated - 44]
        assert len(cases(found, views.END)) == wrong

    @pytest.mark.parametrize(("watched", "wrong"), [(40.0, 0), (30.0, 1), (60.0, 1)])
    def test_watched(self, watched: float, wrong: int) -> None:
        story = Story()
        story.view("tv", 0, 44, "stop")
        story.beats("tv", 0, 40)
        story.ask("tv", 44, None, call="stop")
        story.record("tv", 0, 44, watched)
        found = told_views(story)
        assert len(cases(found, views.WATCHED)) == wrong
        assert not cases(found, views.END)

    def test_a_reopened_record_covers_both_parts(self) -> None:
        story = Story()
        for start in (0, 600):
            story.view("tv", start, start + 44, "sleep")
            story.beats("tv", start, start + 40)
        story.record("tv", 0, 670, 80, "timeout", estimated_end_at=START + 645 * SECOND)
        found = told_views(story)
        assert not cases(found, views.END)
        assert found.values[views.WATCHED] == [-8]

    @pytest.mark.parametrize(("estimated", "apart"), [(None, 1), (45.0, 0)])
    def test_removed_before_anybody_could_notice_its_silence(self, estimated: float | None, apart: int) -> None:
        story = Story()
        story.view("tv", 0, 41, "power_off")
        story.beats("tv", 0, 40)
        at = None if estimated is None else START + int(estimated * SECOND)
        story.record("tv", 0, 49, 40, "evicted", estimated_end_at=at)
        found = told_views(story)
        assert len(found.values.get("end: removed before its silence could be noticed", [])) == apart
        assert len(found.values[views.END]) == 1 - apart

    def test_never_ended_never_recorded_never_watched(self) -> None:
        story = Story(limit=3)
        for session in ("a", "b"):
            story.view(session, 0, 44, "power_off")
            story.beats(session, 0, 40)
        story.record("a", 0, None, 40)
        story.record("c", 0, 44, 40)
        wrong = cases(told_views(story), views.END)
        assert [text.split(": ")[-1] for text in wrong] == [
            "has not ended",
            "admitted, and no record",
            "a record of what nobody watched",
        ]

    def test_a_backend_only_view_is_told_by_device_and_content(self) -> None:
        story = Story()
        story.view("box", 0, 44, "power_off")
        story.beats("", 0, 40, call="signal", evidence="segment", device="of-box", state=None, position=None)
        story.record("s-1f2e", 0, 70, 40, "timeout", device="of-box", estimated_end_at=START + 45 * SECOND)
        found = told_views(story)
        assert not found.cases
        assert found.values[views.END] == [1]

    def test_removed_while_it_played_is_shown_apart(self) -> None:
        story = Story(mode="stop_oldest")
        story.view("tv", 0, 44, "blocked")
        story.beats("tv", 0, 30)
        story.ask("tv", 40, "block", reason="evicted")
        story.record("tv", 0, 31, 30, "evicted")
        found = told_views(story)
        assert not found.cases
        assert found.values["end: removed while it played"] == [-13]


class TestCounts:
    def told(self, at: float, concurrent: int, *, session_until: float = 40) -> Finding:
        story = Story()
        story.play("tv", 0, 44)
        story.beats("tv", 0, session_until)
        story.lines += [
            Sample(at=START + int(at * SECOND), viewers={"film": 1}),
            Observed(at=START + int(at * SECOND), concurrent={"film": concurrent}),
        ]
        return counts.counts(story.truth(), homes(story.truth()))

    @pytest.mark.parametrize(
        ("at", "low", "high"),
        [(1, 0, 1), (4, 1, 1), (35, 1, 1), (54, 1, 1), (56, 0, 1), (73, 0, 1), (75, 0, 0)],
    )
    def test_must_be_and_may_be(self, at: float, low: int, high: int) -> None:
        for engine in (0, 1, 2):
            off = max(0, low - engine, engine - high)
            found = self.told(at, engine)
            assert found.counts["unexplained"] == off
            assert len(cases(found, counts.COUNTS)) == (off > 0)
            assert found.values["raw error"] == [engine - 1]


class TestTrends:
    def told(self, listed_at: int | None, *, decoy: bool = False, other: bool = False) -> Finding:
        story = Story()
        span = {"from_": START + 100 * SECOND, "to": START + 700 * SECOND}
        story.lines.append(Surge(content="final", kind="live", factor=3, viewers_before=60, decoy=decoy, **span))
        for at in range(0, 600, 5):
            items = ["final"] if listed_at is not None and at >= listed_at else []
            items += ["noise"] if other else []
            story.lines.append(Observed(at=START + at * SECOND, trending={"live": items}))
        return trends.trends(story.truth())

    def test_found_in_time(self) -> None:
        found = self.told(115)
        assert found.values["live delay"] == [15]
        assert not found.cases
        assert found.counts["shown"] == found.counts["right"] > 0

    @pytest.mark.parametrize("at", [145, None])
    def test_late_or_never(self, at: int | None) -> None:
        assert len(cases(self.told(at), trends.TRENDING)) == 1

    def test_before_it_began_is_a_false_alarm(self) -> None:
        assert len(cases(self.told(50), "trending: false alarm")) == 1
        assert self.told(115, other=True).counts["right"] < self.told(115, other=True).counts["shown"]

    def test_a_decoy(self) -> None:
        assert self.told(None, decoy=True).counts["decoys listed"] == 0
        assert self.told(120, decoy=True).counts["decoys listed"] == 1


METRICS = """# HELP pulsegate_requests_total Answers by route and status.
pulsegate_requests_total{route="/v1/heartbeats",status="200"} 5.0
pulsegate_decisions_total{outcome="allow",reason="",rule=""} 5.0
pulsegate_mirrored_events{topic="heartbeats"} 5.0
pulsegate_mirrored_events{topic="events"} 2.0
pulsegate_handled_events{consumer="lake"} 7.0
"""


class TestConservation:
    def told(self, text: str = METRICS, ended: float | None = 44, differences: list[str] | None = None) -> Finding:
        story = Story()
        story.beats("tv", 0, 40)
        story.record("tv", 0, ended, 40)
        truth = story.truth()
        return conservation.conservation(truth, homes(truth), story.records, text, differences)

    def test_nothing_is_lost(self) -> None:
        assert not self.told(differences=[]).cases

    @pytest.mark.parametrize(
        ("line", "instead"),
        [('"200"} 5', '"200"} 4'), ('"allow",reason="",rule=""} 5', '"allow",reason="",rule=""} 6'),
         ('"heartbeats"} 5', '"heartbeats"} 4'), ('"lake"} 7', '"lake"} 6')],
    )  # fmt: skip
    def test_something_is(self, line: str, instead: str) -> None:
        found = self.told(METRICS.replace(line, instead))
        assert found.cases
        assert found.counts["difference"] > 0

    def test_a_view_that_does_not_end_and_a_count_that_drifts(self) -> None:
        assert len(self.told(ended=None).cases) == 1
        assert len(self.told(differences=["live/final: 3, 2, 3"]).cases) == 1


class TestWhole:
    def test_a_quiet_evening_meets_every_goal_it_can_be_judged_by(self) -> None:
        story = Story()
        story.view("tv", 0, 44, "power_off")
        story.beats("tv", 0, 40)
        story.record("tv", 0, 70.5, 40, "timeout", estimated_end_at=START + 45 * SECOND)
        story.told = [Position("ann", "kid", "film", {"position": 1040.0})]
        story.metrics = METRICS
        found = story.score()
        assert goals.missed(found) == []
        judged = {row.figure for row in goals.rows(found) if row.met}
        assert {blocks.MISSED, slots.QUIET, positions.RESUME, views.END, views.WATCHED} <= judged

    def test_nothing_judged_is_not_a_goal_met(self) -> None:
        assert all(row.met is None for row in goals.rows({topic: Finding() for topic in Story().score()}))

    def test_seeds_are_added_up_and_cases_say_how_to_repeat_them(self) -> None:
        story = Story()
        story.ask("tv", 5, "block", reason="limit_reached")
        one = story.score()["blocks"]
        both = added([one, one])
        assert both.counts["blocks"] == 2
        assert one.counts["blocks"] == 1
        assert both.cases[0].replay == "python -m loadtest.truth --on node --replay 7 ann"

    def test_a_case_may_be_of_no_account(self) -> None:
        assert (
            Case("f", "-", 0, "w", seed=3, on="cluster").replay
            == "python -m loadtest.truth --on cluster --first-seed 3 --seeds 1"
        )

    def test_percentiles(self) -> None:
        assert percentile([float(n) for n in range(1, 101)], 0.95) == 95
        assert percentile([3.0], 0.95) == 3


class TestReport:
    def job(self, tmp_path: Path, seed: int) -> Job:
        return Job(seed, "node", Size(10, 40), tmp_path)

    def result(self, seed: int, *, wrong: bool) -> Result:
        story = Story()
        story.view("tv", 0, 44, "power_off")
        story.beats("tv", 0, 40)
        story.record("tv", 0, 70.5, 40, "timeout", estimated_end_at=START + (90 if wrong else 45) * SECOND)
        story.told = [Position("ann", "kid", "film", {"position": 1040.0})]
        story.metrics = METRICS
        story.lines.append(Observed(at=START + 20 * SECOND, concurrent={"film": 1}))
        return Result(seed, "node", Size(10, 40).name, 1.0, story.score())

    @pytest.mark.parametrize("wrong", [False, True])
    def test_kept_results_make_the_reports_and_the_exit_status(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: bool
    ) -> None:
        for seed in (1, 2):
            self.job(tmp_path, seed).path.write_bytes(msgspec.json.encode(self.result(seed, wrong=wrong and seed == 2)))
        words = ["--minutes", "10", "--households", "40", "--on", "node", "--resume", "--out", str(tmp_path)]
        files = ["--json", str(tmp_path / "new" / "a.json"), "--html", str(tmp_path / "new" / "a.html")]
        assert main([*words, *files]) == int(wrong)
        assert ("--replay 7 ann" in capsys.readouterr().out) is wrong
        told = json.loads((tmp_path / "new" / "a.json").read_text())
        assert sorted(told["deployments"]["node"]["seeds"]) == ["1", "2"]
        page = (tmp_path / "new" / "a.html").read_text()
        assert page.count("<svg") >= 5
        assert not re.search(r"(src|href)=|<script|@import|url\(", page)

    def test_a_broken_result_is_made_anew(self, tmp_path: Path) -> None:
        job = self.job(tmp_path, 1)
        job.path.write_text("{")
        assert job.kept() is None

    @pytest.mark.parametrize(
        "words", [["--seeds", "0"], ["--minutes", "-1"], ["--households", "-1"], ["--on", "moon"], ["--parallel", "0"]]
    )
    def test_wrong_use(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
        assert words[0] in capsys.readouterr().err

    def test_a_story_is_told_in_order(self) -> None:
        story = Story()
        story.view("tv", 0, 44, "power_off")
        story.beats("tv", 0, 20)
        story.record("tv", 0, 51, 20, "timeout", view=1, revision=0)
        told = tell(story.truth(), "ann", story.records, story.score()).splitlines()
        assert told[1].startswith("00:00:00.000")
        assert told == [told[0], *sorted(told[1:], key=lambda line: line[:12])]
        assert any("timeout" in line for line in told)


class TestReading:
    def test_lines(self, tmp_path: Path) -> None:
        lines = [
            {"type": "run", "seed": 3, "start": START, "plans": {"p": {"limit": 2, "unit": "device", "mode": "deny_new"}}},
            {"type": "household", "account": "ann", "plan": "p", "limit": 2, "mode": "deny_new", "honest": True},
            {"type": "request", "at": START, "account": "ann", "call": "heartbeat", "session": "s", "decision": "allow"},
            {"type": "surge", "content": "c", "kind": "live", "from": 1, "to": 2},
            {"type": "end", "at": START},
        ]  # fmt: skip
        path = tmp_path / "truth.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        truth = Truth.read(path)
        assert (truth.seed, len(truth.requests["ann"]), truth.surges[0].from_) == (3, 1, 1)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "empty"),
            ('{"type":"end","at":1}\n', "begin with"),
            ('{"type":"run","seed":1}\n{"type":"view"}\n', "line 2"),
        ],
    )
    def test_what_is_no_truth_is_refused(self, tmp_path: Path, text: str, says: str) -> None:
        path = tmp_path / "truth.jsonl"
        path.write_text(text)
        with pytest.raises(TruthError, match=says):
            Truth.read(path)
