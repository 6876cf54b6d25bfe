"""The rules of concurrency (design section 6), one behaviour a test, on every backend. Time moves only by `wait`."""

from __future__ import annotations

from typing import Any

import pytest

from engine.embedded import Server
from tests.harness import START, World


def blocked(decision: dict[str, object], reason: str = "limit_reached") -> bool:
    return (decision["decision"], decision["reason"]) == ("block", reason)


def allowed(decision: dict[str, object]) -> bool:
    return decision["decision"] == "allow"


class TestLimit:
    def test_admits_up_to_the_limit_and_says_why_not_more(self, world: World) -> None:
        assert allowed(world.beat("s1", "d1", device_type="tv"))
        assert allowed(world.beat("s2", "d2"))
        world.wait(1)
        refused = world.beat("s3", "d3")
        assert blocked(refused)
        assert (refused["rule"], refused["limit"]) == ("streams", 2)
        assert {c["session"] for c in refused["conflicts"]} == {"s1", "s2"}
        first = next(c for c in refused["conflicts"] if c["session"] == "s1")
        assert first == {
            "session": "s1",
            "device": "d1",
            "device_type": "tv",
            "content": "film",
            "since_at": START,
            "last_evidence_at": START,
            "last_evidence": "heartbeat",
        }
        assert refused["retry_at"] == START + 15_000

    def test_a_refused_request_is_no_evidence(self, world: World) -> None:
        world.beat("s1", "d1", limit=1)
        before = world.leases()
        for _ in range(5):
            world.wait(1)
            assert blocked(world.beat("s2", "d2", limit=1))
        assert world.leases() == before
        assert [e["type"] for e in world.events()].count("block") == 1

    def test_the_token_limit_wins_over_the_plan(self, world: World) -> None:
        for n in range(4):
            assert allowed(world.beat(f"s{n}", f"d{n}", limit=4))
        assert blocked(world.beat("s9", "d9", limit=4))

    def test_zero_admits_nobody_and_promises_nothing(self, world: World) -> None:
        refused = world.beat(limit=0)
        assert blocked(refused)
        assert refused["retry_at"] is None

    def test_accounts_do_not_share_sessions(self, world: World) -> None:
        assert allowed(world.beat("same", "d1", account="a", limit=1))
        assert allowed(world.beat("same", "d2", account="b", limit=1))
        assert world.stop("same", account="b")
        assert world.running("a") == {"same"}

    def test_every_matching_rule_or_none(self, world: World) -> None:
        assert allowed(world.beat("s1", "d1", "news", kind="live", plan="live_one"))
        assert allowed(world.beat("s2", "d2", "film", plan="live_one"))
        refused = world.beat("s3", "d3", "sport", kind="live", plan="live_one")
        assert blocked(refused)
        assert refused["rule"] == "live"
        assert len(world.leases("streams")) == 2
        assert allowed(world.beat("s3", "d3", "film", plan="live_one"))

    def test_zapping_from_live_to_vod_frees_the_live_slot(self, world: World) -> None:
        world.beat("s1", "d1", "news", kind="live", plan="live_one")
        world.wait(5)
        assert allowed(world.beat("s1", "d1", "film", plan="live_one"))
        assert world.leases("live") == {}
        assert len(world.leases("streams")) == 1
        assert allowed(world.beat("s2", "d2", "news", kind="live", plan="live_one"))

    def test_a_refused_zap_changes_nothing(self, world: World) -> None:
        world.beat("s1", "d1", "news", kind="live", plan="live_one")
        world.beat("s2", "d2", "film", plan="live_one")
        refused = world.beat("s2", "d2", "news", kind="live", plan="live_one")
        assert blocked(refused)
        assert next(s for s in world.sessions() if s["session"] == "s2")["content"] == "film"

    @pytest.mark.parametrize("missing", ["provider", "device_type"])
    def test_leaving_a_field_out_gains_nothing(self, backend: str, prefix: str, missing: str) -> None:
        plans = f"""
default = "p"
[plans.p]
[[plans.p.rules]]
name = "streams"
limit = 5
[[plans.p.rules]]
name = "narrow"
limit = 1
{missing} = ["x"]
"""
        with World(backend, prefix, plans) as world:
            assert allowed(world.beat("s1", "d1", **{missing: "x"}))
            assert allowed(world.beat("s2", "d2", **{missing: "y"}))
            assert blocked(world.beat("s3", "d3"))

    def test_a_lowered_limit_spares_those_who_play(self, world: World) -> None:
        world.beat("s1", "d1", limit=2)
        world.beat("s2", "d2", limit=2)
        world.wait(10)
        assert allowed(world.beat("s1", "d1", limit=1))
        assert allowed(world.beat("s2", "d2", limit=1))
        assert blocked(world.beat("s3", "d3", limit=1))


class TestGhosts:
    def test_a_powered_off_device_yields_after_15_s_on_demand(self, world: World) -> None:
        world.beat("gone", "d1", limit=1)
        world.wait(14.9)
        assert blocked(world.beat("waits", "d2", limit=1))
        world.wait(0.2)
        assert allowed(world.beat("waits", "d2", limit=1))
        end = world.events("a", "view_end")[0]
        assert (end["session"], end["data"]["reason"], end["data"]["by"]) == ("gone", "displaced", "waits")

    def test_the_stalest_goes_first_and_others_are_untouched(self, world: World) -> None:
        world.beat("old", "d1")
        world.wait(3)
        world.beat("older", "d2")
        world.wait(2)
        world.beat("old", "d1")
        world.wait(16)
        assert allowed(world.beat("new", "d3"))
        assert world.running() == {"old", "new"}

    def test_without_demand_it_ends_after_30_s(self, world: World) -> None:
        world.beat()
        world.wait(29)
        assert world.sweep() == 0
        assert world.running() == {"s1"}
        world.wait(1.5)
        assert world.sweep() == 1
        end = world.events("a", "view_end")[0]["data"]
        assert (end["reason"], end["last_seen_at"], end["estimated_end_at"]) == ("timeout", START, START + 5_000)
        assert world.leases() == {}

    def test_displaced_learns_by_whom_and_comes_back_when_there_is_room(self, world: World) -> None:
        world.beat("lost", "d1", limit=1)
        world.wait(16)
        world.beat("new", "d2", limit=1)
        refused = world.beat("lost", "d1", limit=1)
        assert blocked(refused, "displaced")
        assert refused["by"] == "new"
        world.stop("new")
        assert allowed(world.beat("lost", "d1", limit=1))
        assert world.events("a", "view_reopen")[0]["session"] == "lost"

    def test_one_lost_heartbeat_that_is_retried_is_not_silence(self, world: World) -> None:
        world.beat("s1", "d1", limit=1)
        world.wait(14)  # the beat at 10 s was lost, its retries come at 12 s and 14 s
        assert blocked(world.beat("s2", "d2", limit=1))
        assert allowed(world.beat("s1", "d1", limit=1))


class TestTrueEnd:
    """When a view ends that does not say so itself, and what it was played until then."""

    def end(self, world: World) -> dict[str, Any]:
        return dict(world.events("a", "view_end")[0]["data"])

    def test_a_displaced_ghost_ended_half_an_interval_after_its_last_word(self, world: World) -> None:
        world.beat("gone", "d1", limit=1)
        world.wait(17)
        assert allowed(world.beat("new", "d2", limit=1))
        end = self.end(world)
        assert (end["reason"], end["estimated_end_at"]) == ("displaced", START + 5_000)

    @pytest.mark.parametrize(("after", "estimated"), [(4, 2_000), (10, 5_000), (25, 5_000)])
    def test_a_device_that_starts_anew_has_left_in_between(self, world: World, after: float, estimated: int) -> None:
        world.beat("s1", "d1")
        world.wait(after)
        world.beat("s2", "d1")
        end = self.end(world)
        assert (end["reason"], end["estimated_end_at"]) == ("superseded", START + estimated)

    @pytest.mark.parametrize(("after", "estimated"), [(9, None), (12, 5_000)])
    def test_who_is_evicted_plays_on_unless_it_had_fallen_silent(
        self, world: World, after: float, estimated: int | None
    ) -> None:
        world.beat("s1", "d1", plan="oldest")
        world.wait(after)
        world.beat("s2", "d2", plan="oldest")
        end = self.end(world)
        assert (end["reason"], end.get("estimated_end_at")) == ("evicted", estimated and START + estimated)

    def test_a_stop_says_that_it_was_played_until_then(self, world: World) -> None:
        world.beat("s1", position=100.0)
        world.wait(10)
        world.beat("s1", position=110.0)
        world.wait(7)
        world.stop("s1")
        assert self.end(world)["watched_ms"] == 17_000

    def test_so_does_other_content(self, world: World) -> None:
        world.beat("s1", content="one", position=100.0)
        world.wait(7)
        world.beat("s1", content="two", position=0.0)
        end = self.end(world)
        assert (end["reason"], end["watched_ms"]) == ("content_changed", 7_000)

    def test_a_pause_is_not_played_on(self, world: World) -> None:
        world.beat("s1", position=100.0)
        world.wait(5)
        world.beat("s1", position=105.0, state="paused")
        world.wait(7)
        world.stop("s1")
        assert self.end(world)["watched_ms"] == 5_000

    @pytest.mark.parametrize("said", [107.0, 40.0, 900.0])
    def test_played_until_a_seek_whichever_position_it_names(self, world: World, said: float) -> None:
        """Players name where it leads as often as where it began."""
        world.beat("s1", position=100.0)
        world.wait(7)
        world.beat("s1", position=said, state="seeking")
        world.beat("s1", position=900.0)
        world.wait(10)
        world.beat("s1", position=910.0)
        world.stop("s1")
        assert self.end(world)["watched_ms"] == 17_000

    def test_a_heartbeat_that_was_sent_again_loses_nothing(self, world: World) -> None:
        """It says where it was, and arrives four seconds late."""
        world.beat("s1", position=100.0)
        for waited, position in ((14, 110.0), (6, 120.0), (10, 130.0)):
            world.wait(waited)
            world.beat("s1", position=position)
        world.stop("s1")
        assert self.end(world)["watched_ms"] == 30_000

    def test_what_moved_further_than_that_was_sought(self, world: World) -> None:
        world.beat("s1", position=100.0)
        world.wait(10)
        world.beat("s1", position=140.0)
        world.stop("s1")
        assert self.end(world)["watched_ms"] == 10_000

    @pytest.mark.parametrize(("after", "watched"), [(6, 13_000), (25, 15_000)])
    def test_a_live_player_that_starts_anew_had_played_for_half_an_interval(
        self, world: World, after: float, watched: int
    ) -> None:
        world.beat("s1", kind="live")
        world.wait(after)
        world.beat("s1", kind="live", state="starting", seq=0)
        world.wait(2)
        world.beat("s1", kind="live")
        world.wait(10)
        world.stop("s1")
        assert self.end(world)["watched_ms"] == watched

    def test_a_superseded_player_says_where_it_is_for_as_long_as_it_may_go_on(self, world: World) -> None:
        """Two tabs under one device id: the resume position is made of the heartbeats in the log."""
        world.beat("tab1", "d1", content="film", position=100.0)
        world.beat("tab2", "d1", content="show", position=0.0)
        world.wait(5)
        assert allowed(world.beat("tab1", "d1", content="film", position=105.0))
        told = [event["data"]["position"] for event in world.events("a", "heartbeat") if event["session"] == "tab1"]
        assert told == [100.0, 105.0]


class TestSameDevice:
    def test_a_restart_supersedes_and_keeps_the_place_in_line(self, world: World) -> None:
        world.beat("s1", "d1", plan="latest")
        world.wait(1)
        world.beat("s2", "d2", plan="latest")
        world.wait(1)
        assert allowed(world.beat("s1b", "d1", plan="latest"))
        assert world.running() == {"s1b", "s2"}
        assert allowed(world.beat("s3", "d3", plan="latest"))
        assert world.running() == {"s1b", "s3"}, "s2 was admitted last, the restarted device held its slot longer"

    def test_zapping_through_many_sessions_is_never_blocked(self, world: World) -> None:
        for n in range(40):
            world.wait(1)
            assert allowed(world.beat(f"zap{n}", "d1", f"channel{n % 7}", kind="live", limit=1))
        assert world.running() == {"zap39"}

    def test_a_superseded_session_rides_for_two_intervals_then_needs_a_slot(self, world: World) -> None:
        world.beat("tab1", "d1", limit=1)
        world.beat("tab2", "d1", limit=1)
        for _ in range(2):
            world.wait(10)
            assert allowed(world.beat("tab2", "d1", limit=1))
            assert allowed(world.beat("tab1", "d1", limit=1))
        world.wait(10)
        assert allowed(world.beat("tab2", "d1", limit=1))
        refused = world.beat("tab1", "d1", limit=1)
        assert blocked(refused, "superseded")
        assert refused["by"] == "tab2"
        assert world.running() == {"tab2"}

    def test_counted_by_stream_two_tabs_are_two_at_once(self, world: World) -> None:
        world.beat("tab1", "d1", plan="by_stream")
        assert allowed(world.beat("tab2", "d1", plan="by_stream"))
        assert blocked(world.beat("tab1", "d1", plan="by_stream"), "superseded")

    def test_two_tabs_within_the_limit_are_two_streams(self, world: World) -> None:
        world.beat("tab1", "d1")
        world.beat("tab2", "d1")
        world.play(40, ("tab1", "d1"), ("tab2", "d1"))
        assert world.running() == {"tab1", "tab2"}
        assert len(world.leases()) == 2
        assert blocked(world.beat("s3", "d3"))

    def test_superseded_never_supersedes_back(self, world: World) -> None:
        world.beat("tab1", "d1", plan="oldest")
        world.beat("tab2", "d1", plan="oldest")
        for _ in range(12):
            world.wait(10)
            world.beat("tab2", "d1", plan="oldest")
            world.beat("tab1", "d1", plan="oldest")
            assert "tab2" in world.running()

    def test_a_new_session_for_every_heartbeat_on_a_shared_device_runs_out(self, world: World) -> None:
        """Two players share a device id and name a new session each time: never two streams for long."""
        refusals = 0
        for n in range(400):
            world.wait(5)
            refusals += blocked(world.beat(f"n{n}", "shared", f"film{n % 2}", limit=1))
        assert refusals > 50

    def test_one_new_session_a_beat_on_one_device_is_fine(self, world: World) -> None:
        for n in range(200):
            world.wait(10)
            assert allowed(world.beat(f"n{n}", "d1", limit=1))


class TestEviction:
    def test_stop_oldest_is_sticky_and_says_by_whom(self, world: World) -> None:
        world.beat("s1", "d1", plan="oldest")
        assert allowed(world.beat("s2", "d2", plan="oldest"))
        for _ in range(3):
            refused = world.beat("s1", "d1", plan="oldest")
            assert blocked(refused, "evicted")
            assert refused["by"] == "s2"
            world.play(600, ("s2", "d2"), plan="oldest")
        world.wait(60)
        assert allowed(world.beat("s1", "d1", plan="oldest")), "30 minutes are over"
        assert [e["session"] for e in world.events("a", "evict")] == ["s1"]

    def test_no_ping_pong(self, world: World) -> None:
        """The evicted device restarts at once: it may not turn on its evictor for 60 s, nor the other way round."""
        world.beat("s1", "d1", plan="oldest")
        world.beat("s2", "d2", plan="oldest")
        world.wait(5)
        assert blocked(world.beat("s1b", "d1", plan="oldest"))
        world.play(60, ("s2", "d2"), plan="oldest")
        assert allowed(world.beat("s1c", "d1", plan="oldest"))
        assert blocked(world.beat("s2", "d2", plan="oldest"), "evicted")

    def test_a_restart_of_the_evictor_keeps_its_guard(self, world: World) -> None:
        world.beat("s1", "d1", plan="oldest")
        world.beat("s2", "d2", plan="oldest")
        world.beat("s2b", "d2", plan="oldest")
        assert blocked(world.beat("s1b", "d1", plan="oldest"))

    def test_stop_latest_takes_the_place_of_the_newest(self, world: World) -> None:
        for n in (1, 2):
            world.beat(f"s{n}", f"d{n}", plan="latest")
            world.wait(1)
        world.beat("s3", "d3", plan="latest")
        assert world.running() == {"s1", "s3"}

    def test_check_says_evicted_too(self, world: World) -> None:
        world.beat("s1", "d1", plan="oldest")
        world.beat("s2", "d2", plan="oldest")
        assert blocked(world.check("s1", plan="oldest"), "evicted")


class TestTakeover:
    def test_stops_the_chosen_one(self, world: World) -> None:
        world.beat("s1", "d1")
        world.beat("s2", "d2")
        assert blocked(world.beat("s3", "d3"))
        taken = world.takeover("s3", "s2")
        assert allowed(taken)
        assert taken["lease_expires_at"] == world.now + 30_000
        assert world.running() == {"s1", "s3"}
        assert blocked(world.beat("s2", "d2"), "takeover")
        assert allowed(world.beat("s3", "d3"))

    def test_one_that_would_not_free_every_full_rule_changes_nothing(self, world: World) -> None:
        world.beat("s1", "d1", "news", kind="live", plan="live_one")
        world.beat("s2", "d2", plan="live_one")
        world.beat("s3", "d3", plan="live_one")
        assert blocked(world.beat("s4", "d4", "sport", kind="live", plan="live_one"))
        assert blocked(world.takeover("s4", "s2", plan="live_one"))
        assert world.running() == {"s1", "s2", "s3"}
        assert allowed(world.takeover("s4", "oldest", plan="live_one"))
        assert world.running() == {"s2", "s3", "s4"}

    def test_is_rate_limited(self, backend: str, prefix: str) -> None:
        with World(backend, prefix, takeovers_max=2) as world:
            world.beat("s0", "d0", limit=1)
            for n in (1, 2):
                assert allowed(world.takeover(f"s{n}", "oldest", limit=1, device=f"d{n}", content="film", kind="vod"))
            refused = world.takeover("s3", "oldest", limit=1, device="d3", content="film", kind="vod")
            assert blocked(refused, "takeover_limited")
            assert refused["retry_at"] > world.now

    def test_only_those_that_stop_somebody_are_limited(self, backend: str, prefix: str) -> None:
        with World(backend, prefix, takeovers_max=1) as world:
            world.beat("s0", "d0", limit=1)
            assert allowed(world.takeover("s1", "s0", limit=1, device="d1", content="film", kind="vod"))
            world.stop("s1")
            assert allowed(world.takeover("s0", "oldest", limit=1))
            world.stop("s0")
            assert allowed(world.takeover("s2", "oldest", limit=1, device="d2", content="film", kind="vod"))
            assert blocked(
                world.takeover("s3", "s2", limit=1, device="d3", content="film", kind="vod"), "takeover_limited"
            )

    def test_a_request_id_is_answered_once(self, world: World) -> None:
        world.beat("s1", "d1", limit=1)
        first = world.takeover("s2", "s1", limit=1, device="d2", content="film", kind="vod", request_id="r")
        world.stop("s2")
        world.beat("s1b", "d1", limit=1)
        assert world.takeover("s2", "s1b", limit=1, device="d2", content="film", kind="vod", request_id="r") == first
        assert world.running() == {"s1b"}

    def test_nobody_is_stopped_when_there_is_room(self, world: World) -> None:
        world.beat("s1", "d1")
        assert allowed(world.takeover("s2", "s1", device="d2", content="film", kind="vod"))
        assert world.running() == {"s1", "s2"}


class TestPaused:
    def test_beating_keeps_the_slot_five_minutes(self, world: World) -> None:
        world.beat(state="paused", limit=1, position=10)
        for _ in range(29):
            world.wait(10)
            assert allowed(world.beat(state="paused", limit=1, position=10))
            assert blocked(world.beat("s2", "d2", limit=1))
        world.wait(10)
        world.beat(state="paused", limit=1, position=10)
        assert allowed(world.beat("s2", "d2", limit=1))

    def test_silent_keeps_it_one_minute(self, world: World) -> None:
        world.beat(state="paused", limit=1)
        world.wait(59)
        assert blocked(world.beat("s2", "d2", limit=1))
        world.wait(1.1)
        assert allowed(world.beat("s2", "d2", limit=1))

    def test_ends_after_half_an_hour(self, world: World) -> None:
        world.beat(state="paused")
        for _ in range(29):
            world.wait(60)
            world.beat(state="paused", position=0)
            world.sweep()
        assert world.running() == {"s1"}
        world.wait(61)
        assert world.sweep() == 1
        assert world.events("a", "view_end")[0]["data"]["reason"] == "paused_timeout"
        assert allowed(world.beat(state="paused", position=0))
        assert world.running() == set(), "a paused player does not reopen its view"

    def test_paused_with_advancing_position_is_playing(self, world: World) -> None:
        for n in range(40):
            world.beat(state="paused", position=n * 10, limit=1)
            world.wait(10)
        world.wait(6)
        assert allowed(world.beat("s2", "d2", limit=1)), "a ghost after 15 s, like any player"

    def test_watched_time_ignores_pauses_and_seeks(self, world: World) -> None:
        world.beat(position=0)
        world.wait(10)
        world.beat(position=10)
        world.wait(10)
        world.beat(position=3000)  # a seek: at most the 10 s that passed
        world.wait(10)
        world.beat(state="paused", position=3000)
        world.wait(10)
        world.beat(state="playing", position=3000)
        world.wait(10)
        world.beat(position=3010)
        assert world.sessions()[0]["watched_ms"] == 30_000


class TestNoProgress:
    """Beats that say playing while the position stands still: a frozen player, a television nobody watches."""

    def stand(self, world: World, minutes: float, every: float = 10, **fields: Any) -> dict[str, Any]:
        last: dict[str, Any] = {}
        for _ in range(int(minutes * 60 / every)):
            world.wait(every)
            last = world.beat(position=600, **fields)
        return last

    def test_ends_after_half_an_hour_and_frees_the_slot(self, world: World) -> None:
        world.beat(position=590, limit=1)
        world.wait(10)
        world.beat(position=600, limit=1)
        moved_at = world.now
        self.stand(world, 29.9, limit=1)
        assert world.running() == {"s1"}
        assert blocked(world.beat("s2", "d2", limit=1))
        last = self.stand(world, 0.2, limit=1)
        assert world.now == moved_at + 1_800_000
        assert (last["decision"], last["lease_expires_at"], last["last_seq"]) == ("allow", None, 181)
        end = world.events("a", "view_end")[0]
        assert (end["at"], end["revision"], end["data"]["reason"]) == (world.now, 0, "no_progress")
        assert (end["data"]["last_seen_at"], end["data"]["watched_ms"]) == (world.now, 10_000)
        assert world.leases() == {}
        assert allowed(world.beat("s2", "d2", limit=1))

    def test_what_still_does_not_move_changes_nothing(self, backend: str, prefix: str) -> None:
        with World(backend, prefix, no_progress_ms=60_000) as world:
            world.beat(position=600)
            self.stand(world, 1)
            before = world.events()
            assert before[-1]["type"] == "view_end"
            last = self.stand(world, 3, limit=1)
            assert (last["decision"], last["lease_expires_at"]) == ("allow", None)
            assert allowed(self.stand(world, 1, state="paused"))
            after = world.events()[len(before) :]
            assert {event["type"] for event in after} == {"heartbeat"}, "they are in the log, and no more"
            assert world.running() == set()

    def test_movement_reopens_if_there_is_room(self, backend: str, prefix: str) -> None:
        with World(backend, prefix, no_progress_ms=60_000) as world:
            world.beat(position=600, limit=1)
            self.stand(world, 1, limit=1)
            world.beat("s2", "d2", limit=1)
            assert blocked(world.beat(position=610, limit=1))
            world.stop("s2")
            assert world.beat(position=610, limit=1)["lease_expires_at"] == world.now + 30_000
            reopened = world.events("a", "view_reopen")[0]
            assert (reopened["view"], reopened["revision"], reopened["started_at"]) == (1, 1, START)
            assert reopened["data"] == {"reason": "no_progress"}
            world.play(50, ("s1", "d1"), limit=1)
            assert world.running() == {"s1"}

    @pytest.mark.parametrize("state", ["starting", "playing", "buffering", "seeking"])
    def test_whatever_it_says_it_does(self, backend: str, prefix: str, state: str) -> None:
        with World(backend, prefix, no_progress_ms=60_000) as world:
            world.beat(position=600, state=state)
            self.stand(world, 1, state=state)
            assert [e["data"]["reason"] for e in world.events("a", "view_end")] == ["no_progress"]

    def test_any_movement_counts_back_too(self, backend: str, prefix: str) -> None:
        with World(backend, prefix, no_progress_ms=60_000) as world:
            world.beat(position=600)
            for n in range(5):
                self.stand(world, 0.9)
                world.wait(4)
                world.beat(position=500 + n)
                world.wait(1)
                world.beat(position=600)
            assert world.events("a", "view_end") == []

    def test_a_pause_has_its_own_time(self, backend: str, prefix: str) -> None:
        with World(backend, prefix, no_progress_ms=60_000) as world:
            world.beat(position=600)
            self.stand(world, 0.5)
            self.stand(world, 5, state="paused")
            self.stand(world, 0.9)
            assert world.events("a", "view_end") == []
            self.stand(world, 0.4)  # the time begins when it plays again
            assert [e["data"]["reason"] for e in world.events("a", "view_end")] == ["no_progress"]

    def test_segments_are_no_movement(self, backend: str, prefix: str) -> None:
        with World(backend, prefix, no_progress_ms=60_000) as world:
            world.beat(position=600)
            for _ in range(6):
                world.wait(4)
                world.signal()
                world.wait(6)
                world.beat(position=600)
            assert world.running() == {"s1"}
            world.wait(4)  # counted from the last sign of life before the first beat without movement
            world.beat(position=600)
            assert [e["data"]["reason"] for e in world.events("a", "view_end")] == ["no_progress"]
            assert world.running() == set()

    def test_segments_after_it_need_a_slot_again(self, backend: str, prefix: str) -> None:
        """A player that reports one position for ever must not stream on without a slot."""
        with World(backend, prefix, no_progress_ms=60_000) as world:
            world.beat(position=600, limit=1)
            self.stand(world, 1, limit=1)
            world.beat("s2", "d2", limit=1)
            assert blocked(world.signal("d1", limit=1))
            world.stop("s2")
            assert allowed(world.signal("d1", limit=1))
            assert [e["type"] for e in world.events()][-1] == "view_reopen"
            self.stand(world, 0.9, limit=1)
            assert world.running() == {"s1"}, "its time begins anew"

    def test_live_without_a_position_never(self, backend: str, prefix: str) -> None:
        with World(backend, prefix, no_progress_ms=60_000) as world:
            world.beat(kind="live")
            world.play(600, ("s1", "d1"), kind="live")
            assert world.events("a", "view_end") == []


class TestCompleted:
    def ends(self, world: World) -> list[tuple[Any, ...]]:
        found = world.events("a", "view_end")
        return [(e["view"], e["revision"], e["data"]["completed"], e["data"].get("duration")) for e in found]

    @pytest.mark.parametrize(
        ("position", "fields", "completed"),
        [
            (3239, {"duration": 3600}, False),
            (3240, {"duration": 3600}, True),
            (1139, {"duration": 1320}, False),
            (1140, {"duration": 1320}, True),
            (2000, {"duration": 3600, "credits": 2000}, True),
            (3500, {"duration": 3600, "credits": 3550}, False),
            (3300, {"duration": 3600, "credits": 4000}, True),
            (2000, {"credits": 2000}, True),
            (99_999, {}, False),
            (99_999, {"duration": 0}, False),
        ],
    )
    def test_by_length_or_credits(
        self, world: World, position: float, fields: dict[str, float], completed: bool
    ) -> None:
        world.beat(position=position - 1, **fields)
        world.wait(1)
        world.beat(position=position, **fields)
        world.wait(31)
        world.sweep()
        assert self.ends(world) == [(1, 0, completed, fields.get("duration") or None)]

    @pytest.mark.parametrize("end", ["stop", "ended", "timeout", "content_changed", "superseded"])
    def test_once_reached_it_stays_whatever_ends_the_view(self, world: World, end: str) -> None:
        world.beat(position=3000, duration=3600)
        world.wait(10)
        world.beat(position=3300, duration=3600)
        world.play(30, ("s1", "d1"), position=12, duration=3600)
        if end == "stop":
            world.stop()
        elif end == "ended":
            world.beat(position=13, duration=3600, state="ended")
        elif end == "timeout":
            world.wait(31)
            world.sweep()
        elif end == "content_changed":
            world.beat(content="other", position=0)
        else:
            world.beat("s2", "d1")
        assert self.ends(world) == [(1, 0, True, 3600)]
        assert world.events("a", "view_end")[0]["data"]["max_position"] == 3300

    def test_the_last_word_may_complete(self, world: World) -> None:
        world.beat(position=3000, duration=3600)
        world.wait(10)
        world.beat(position=3590, duration=3600, state="ended")
        assert self.ends(world) == [(1, 0, True, 3600)]

    def test_a_last_word_about_something_else_does_not(self, world: World) -> None:
        world.beat(position=3000, duration=3600)
        world.wait(10)
        world.beat(content="other", position=3590, duration=3600, state="ended")
        assert self.ends(world) == [(1, 0, False, 3600)]
        assert world.events("a", "view_end")[0]["data"]["max_position"] == 3000

    def test_the_next_view_begins_anew_and_a_reopened_one_remembers(self, world: World) -> None:
        world.beat(position=3590, duration=3600)
        world.wait(31)
        world.sweep()
        world.beat(position=10, duration=3600)
        world.wait(10)
        world.beat(content="next", position=5, duration=3600)
        world.stop()
        assert self.ends(world) == [(1, 0, True, 3600), (1, 1, True, 3600), (2, 0, False, 3600)]

    def test_live_never_completes(self, world: World) -> None:
        world.beat(kind="live", position=3600, duration=3600, credits=1)
        world.stop()
        assert self.ends(world) == [(1, 0, False, None)]

    def test_a_duration_learnt_later_is_no_other_stream(self, world: World) -> None:
        world.beat("s1", "d1", limit=1)
        assert blocked(world.beat("s2", "d2", limit=1))
        assert blocked(world.beat("s2", "d2", limit=1, duration=3600))
        assert len(world.events("a", "block")) == 1
        world.wait(10)
        lease = world.beat("s1", "d1", limit=1, duration=3600)["lease_expires_at"]
        assert lease == world.now + 30_000
        world.stop()
        assert self.ends(world) == [(1, 0, False, 3600)]
        assert len(world.events("a", "view_start")) == 1


class TestStartedAt:
    def test_every_event_of_a_view_says_when_it_began(self, world: World) -> None:
        world.signal("d1", "film")
        world.wait(3)
        world.beat(events=[{"type": "seek"}])
        world.wait(10)
        world.beat(events=[{"type": "ad_start"}])
        world.beat(state="paused")
        world.wait(1)
        zapped_at = world.now
        world.beat(content="other", limit=1)
        world.stop()
        film, other = [[e for e in world.events() if e["content"] == content] for content in ("film", "other")]
        # The backend's first sight comes before there is a view.
        assert [(e["view"], e["started_at"]) for e in film] == [(0, 0)] + [(1, START)] * (len(film) - 1)
        kinds = {e["type"] for e in film}
        assert kinds >= {"evidence", "session_linked", "heartbeat", "seek", "ad_start", "pause", "view_end"}
        assert {(e["view"], e["started_at"]) for e in other} == {(2, zapped_at)}

    def test_evidence_names_the_session_it_is_about(self, world: World) -> None:
        world.beat("s1", "d1")
        world.wait(5)
        world.signal("d1")
        evidence = world.events("a", "evidence")[0]
        assert (evidence["session"], evidence["view"], evidence["started_at"]) == ("s1", 1, START)
        assert list(evidence)[6:13] == ["account", "profile", "device", "session", "content", "kind", "v"]

    def test_zero_where_there_is_no_view(self, world: World) -> None:
        world.beat("s1", "d1", limit=1)
        world.wait(5)
        world.beat("s2", "d2", limit=1)
        block = world.events("a", "block")[0]
        assert (block["view"], block["started_at"]) == (0, 0)
        assert list(block)[:4] == ["type", "at", "view", "started_at"]


class TestFastPath:
    """What most heartbeats are must not read the whole account, whatever the view has been through."""

    @pytest.mark.parametrize("case", ["moving", "standing", "completed", "completed standing", "live"])
    def test_is_taken(self, single: Server, prefix: str, case: str) -> None:
        with World(str(single.url), prefix) as world:
            fields: dict[str, Any] = {"kind": "live"} if case == "live" else {"position": 3000.0, "duration": 3600}
            for _ in range(2):
                world.beat(**fields)
                world.wait(10)
            before = self.reads(world)
            for _ in range(5):
                if case.startswith("completed"):
                    fields["position"] = max(fields["position"], 3300)
                if "position" in fields and "standing" not in case:
                    fields["position"] += 10
                assert world.beat(**fields)["lease_expires_at"] == world.now + 30_000
                world.wait(10)
            assert self.reads(world) == before
            world.stop()
            assert world.events("a", "view_end")[0]["data"]["completed"] == case.startswith("completed")

    def reads(self, world: World) -> int:
        stats = world.run(world.client.info("commandstats"))
        return int(stats["cmdstat_zrange"]["calls"])


class TestOrder:
    def test_a_repeat_changes_nothing_and_says_so(self, world: World) -> None:
        world.beat(seq=0)
        world.wait(5)
        before = (world.leases(), len(world.events()))
        again = world.beat(seq=0)
        assert (again["decision"], again["duplicate"], again["last_seq"]) == ("allow", True, 0)
        assert (world.leases(), len(world.events())) == before

    def test_a_shuffled_pair(self, world: World) -> None:
        world.beat(seq=0)
        world.wait(10)
        assert not world.beat(seq=2)["duplicate"]
        assert world.beat(seq=1)["duplicate"]

    def test_seq_0_after_half_an_interval_starts_a_new_run(self, world: World) -> None:
        world.beat(seq=0)
        world.wait(10)
        world.beat(seq=1)
        world.wait(6)
        assert not world.beat(seq=0)["duplicate"]
        assert world.running() == {"s1"}
        world.wait(4)
        assert not world.beat(seq=1)["duplicate"]

    def test_a_retry_of_a_refused_heartbeat_is_judged_anew(self, world: World) -> None:
        world.beat("s1", "d1", limit=1)
        refused = world.beat("s2", "d2", seq=0, limit=1)
        assert (refused["duplicate"], refused["last_seq"]) == (False, None)
        world.stop("s1")
        assert allowed(world.beat("s2", "d2", seq=0, limit=1))

    def test_a_late_heartbeat_reopens_its_view(self, world: World) -> None:
        world.beat()
        world.wait(60)
        world.sweep()
        assert allowed(world.beat())
        reopened = world.events("a", "view_reopen")[0]
        assert (reopened["view"], reopened["revision"]) == (1, 1)
        world.wait(31 * 60)
        world.sweep()
        world.wait(31 * 60)
        world.sweep()
        world.beat(seq=100)
        assert world.events("a", "view_start")[-1]["view"] > world.now / 1000, "forgotten: a number of its own"

    def test_a_content_change_ends_one_view_and_starts_the_next(self, world: World) -> None:
        world.beat("s1", "d1", "one")
        world.wait(10)
        world.beat("s1", "d1", "two")
        assert [(e["view"], e["content"]) for e in world.events("a", "view_start")] == [(1, "one"), (2, "two")]
        end = world.events("a", "view_end")[0]
        assert (end["view"], end["content"], end["data"]["reason"]) == (1, "one", "content_changed")

    def test_ended_and_error_free_the_slot(self, world: World) -> None:
        world.beat(limit=1)
        assert allowed(world.beat(state="ended", limit=1))
        assert allowed(world.beat("s2", "d2", limit=1))
        world.beat("s2", "d2", state="error", limit=1)
        assert [e["data"]["reason"] for e in world.events("a", "view_end")] == ["stopped", "error"]

    def test_a_spooled_heartbeat_is_history(self, world: World) -> None:
        world.wait(120)
        late = world.beat(at=world.now - 60_000)
        assert allowed(late)
        assert late["lease_expires_at"] is None
        assert world.running() == set()
        assert [e["type"] for e in world.events()] == ["heartbeat"]
        world.beat("s2", "d2", at=world.now - 10_000, limit=1)
        assert world.leases() == {"s2": world.now + 20_000}


class TestEvidence:
    def test_blocks_where_nobody_beats(self, world: World) -> None:
        assert allowed(world.signal("d1", limit=1))
        assert blocked(world.signal("d2", limit=1))
        world.wait(31)
        assert allowed(world.signal("d2", limit=1))

    def test_player_and_backend_count_once(self, world: World) -> None:
        world.signal("d1", limit=1)
        assert allowed(world.beat("s1", "d1", limit=1))
        assert allowed(world.signal("d1", limit=1))
        assert world.running() == {"s1"}
        linked = world.events("a", "session_linked")
        assert [e["session"] for e in linked] == ["s1"]
        assert len(world.events("a", "view_start")) == 1

    def test_segments_keep_a_silent_player_alive(self, world: World) -> None:
        world.beat(limit=1)
        for _ in range(10):
            world.wait(6)
            assert allowed(world.signal("d1", limit=1))
            assert blocked(world.beat("s2", "d2", limit=1))

    def test_coarser_evidence_no_longer_extends(self, world: World) -> None:
        world.signal("d1", evidence="licence", limit=1)
        world.wait(100)
        assert blocked(world.signal("d2", limit=1)), "a licence lives 10 min"
        world.signal("d1", evidence="segment", limit=1)
        world.wait(20)
        world.signal("d1", evidence="licence", limit=1)
        world.wait(11)
        assert allowed(world.signal("d2", limit=1)), "once segments were seen they decide"

    def test_late_log_lines_create_extend_and_reopen_nothing(self, world: World) -> None:
        world.wait(1200)
        assert allowed(world.signal("d1", at=world.now - 600_000))
        assert world.running() == set()
        world.beat()
        lease = world.leases()
        world.signal("d1", at=world.now - 600_000)
        assert world.leases() == lease
        world.wait(31)
        world.sweep()
        world.signal("d1", at=world.now - 600_000)
        assert world.running() == set()

    def test_evidence_never_evicts(self, world: World) -> None:
        world.beat("s1", "d1", plan="oldest")
        assert blocked(world.signal("d2", plan="oldest"))
        assert world.running() == {"s1"}

    def test_an_evicted_player_is_cut_at_the_edge(self, world: World) -> None:
        world.beat("s1", "d1", plan="oldest")
        world.beat("s2", "d2", plan="oldest")
        assert blocked(world.signal("d1", plan="oldest"), "evicted")

    def test_a_stop_voids_earlier_evidence(self, world: World) -> None:
        world.beat()
        world.wait(5)
        world.stop()
        world.wait(1)
        assert allowed(world.signal("d1", at=world.now - 3_000))
        assert allowed(world.signal("d1"))
        assert world.running() == set()
        world.wait(61)
        world.signal("d1")
        assert len(world.running()) == 1

    def test_evidence_for_content_just_left_belongs_to_the_ended_view(self, world: World) -> None:
        world.beat("s1", "d1", "one", limit=1)
        world.wait(2)
        world.beat("s1", "d1", "two", limit=1)
        world.wait(2)
        assert allowed(world.signal("d1", "one", limit=1))
        assert world.sessions()[0]["content"] == "two"

    def test_prefetching_the_next_episode_costs_nothing(self, world: World) -> None:
        world.beat("s1", "d1", "e1", limit=1)
        for _ in range(3):
            world.wait(5)
            assert allowed(world.signal("d1", "e2", limit=1))
            world.beat("s1", "d1", "e1", limit=1)
        assert world.running() == {"s1"}

    def test_a_second_stream_behind_the_same_device_id_needs_its_own_slot(self, world: World) -> None:
        answers = []
        for _ in range(6):
            world.beat("s1", "d1", "one", limit=1)
            answers.append(world.signal("d1", "two", limit=1)["decision"])
            world.wait(10)
        assert answers[:2] == ["allow", "allow"]
        assert answers[-1] == "block"
        assert world.running() == {"s1"}

    def test_a_signal_without_content_refreshes_and_never_creates(self, world: World) -> None:
        world.signal("d1", "")
        assert world.running() == set()
        world.beat(limit=1)
        world.wait(20)
        world.signal("d1", "", limit=1)
        assert blocked(world.beat("s2", "d2", limit=1))

    def test_observing_counts_nothing(self, backend: str, prefix: str) -> None:
        with World(backend, prefix, unmatched="observe") as world:
            assert allowed(world.signal("d1", limit=1))
            assert allowed(world.signal("d2", limit=1))
            assert world.running() == set()
            world.beat("s1", "d1", limit=1)
            world.wait(14)
            world.signal("d1", limit=1)
            world.wait(10)
            assert blocked(world.beat("s2", "d2", limit=1)), "evidence for a known session counts"

    def test_linked_by_the_token_session(self, world: World) -> None:
        world.signal("edge-device", session="s1", limit=1)
        assert allowed(world.beat("s1", "edge-device", limit=1))
        assert world.running() == {"s1"}
        assert len(world.events("a", "view_start")) == 1

    def test_a_phantom_player_never_evicts_a_real_viewer(self, world: World) -> None:
        """The phantom beats but fetches nothing any more; the real viewer plays (Silo #306)."""
        world.beat("phantom", "d1", plan="oldest")
        world.signal("d1", plan="oldest")
        world.play(130, ("phantom", "d1"), plan="oldest")
        assert allowed(world.beat("real", "d2", plan="oldest"))
        world.signal("d2", plan="oldest")
        for n in range(6):
            world.wait(61)
            world.beat("real", "d2", plan="oldest", seq=n + 1)
            world.signal("d2", plan="oldest")
            assert world.beat("phantom", "d1", plan="oldest")["decision"] == "block"
            assert "real" in world.running()

    def test_require_evidence_makes_never_seen_unproven(self, world: World) -> None:
        world.beat("s1", "d1", plan="evidence")
        world.signal("d1", plan="evidence")
        assert blocked(world.beat("s2", "d2", plan="evidence"))
        world.signal("d2", plan="evidence")
        world.wait(1)
        assert blocked(world.signal("d2", plan="evidence"))
        assert world.running() == {"s1"}

    def test_a_box_that_zaps_back_begins_another_view_at_once(self, world: World) -> None:
        """Nobody speaks for it: what it left, and fetches again after a silence, is watched again."""
        for content in ("one", "two"):
            for _ in range(3):
                world.signal("box", content, limit=1)
                world.wait(6)
        world.signal("box", "one", limit=1)
        begun = [(event["content"], event["view"]) for event in world.events("a", "view_start")]
        assert begun == [("one", 1), ("two", 1), ("one", 2)]
        assert [event["content"] for event in world.events("a", "view_end")] == ["one", "two"]

    def test_a_box_that_only_looked_elsewhere_is_back_when_the_other_falls_silent(self, world: World) -> None:
        for content, times in (("one", 3), ("two", 1), ("one", 4)):
            for _ in range(times):
                world.signal("box", content, limit=1)
                world.wait(3)
        begun = [(event["content"], event["view"], event["started_at"]) for event in world.events("a", "view_start")]
        assert begun == [("one", 1, START), ("two", 1, START + 9_000), ("one", 2, START + 9_000)]

    def test_two_boxes_under_one_id_are_no_zapping(self, world: World) -> None:
        """Both fetch all the time: after a while the second needs a slot of its own."""
        answers = []
        for _ in range(30):
            for content in ("one", "two"):
                answers.append(world.signal("box", content, limit=1))
                world.wait(3)
        assert any(blocked(answer, "superseded") or blocked(answer) for answer in answers)
        assert len(world.events("a", "view_start")) == 2


class TestOutage:
    def announce(self, world: World, *announcers: object) -> None:
        for announcer in announcers:
            world.run(announcer.announce())  # type: ignore[attr-defined]

    def test_sixty_seconds_without_any_api_process(self, world: World) -> None:
        api = world.announcer()
        self.announce(world, api)
        world.beat("s1", "d1", limit=1)
        world.wait(60)
        api = world.announcer()
        self.announce(world, api)
        assert world.outage.ended == world.now
        assert world.sweep() == 0
        assert blocked(world.beat("s2", "d2", limit=1)), "the viewer of before the outage is still reconnecting"
        world.wait(10)
        assert allowed(world.beat("s1", "d1", limit=1))
        assert world.events("a", "view_end") == []

    def test_a_ghost_of_before_the_outage_goes_one_lifetime_after_it(self, world: World) -> None:
        api = world.announcer()
        self.announce(world, api)
        world.beat("s1", "d1", limit=1)
        world.wait(60)
        self.announce(world, world.announcer())
        world.wait(30.1)
        assert world.sweep() == 1
        assert allowed(world.beat("s2", "d2", limit=1))

    def test_signing_off_in_order_with_another_alive_is_no_outage(self, world: World) -> None:
        one, two = world.announcer(), world.announcer()
        self.announce(world, one, two)
        world.run(one.announce(leaving=True))
        for _ in range(10):
            world.wait(1)
            self.announce(world, two)
        assert world.outage.ended == 0

    def test_one_that_vanishes_is(self, world: World) -> None:
        one, two = world.announcer(), world.announcer()
        self.announce(world, one, two)
        for _ in range(5):
            world.wait(1)
            self.announce(world, two)
        assert world.outage.began == START
        assert world.outage.ended > 0

    def test_a_jump_of_the_clock_is(self, world: World) -> None:
        clock = [0.0]
        api = world.announcer()
        api._monotonic = lambda: clock[0]
        self.announce(world, api)
        world.beat(limit=1)
        world.wait(1)
        clock[0] += 1
        self.announce(world, api)
        assert world.outage.ended == 0
        world.wait(3600)
        clock[0] += 1
        self.announce(world, api)
        assert world.sweep() == 0
        assert blocked(world.beat("s2", "d2", limit=1))
        assert allowed(world.beat(limit=1))

    def test_a_single_viewer_who_leaves_still_ends_on_time(self, world: World) -> None:
        api = world.announcer()
        self.announce(world, api)
        world.beat()
        for _ in range(31):
            world.wait(1)
            self.announce(world, api)
        assert world.sweep() == 1

    def test_time_never_goes_backwards(self, world: World) -> None:
        world.beat(limit=1)
        world.wait(20)
        world.beat(limit=1)
        lease = world.leases()
        world.wait(-3600)
        assert allowed(world.beat(limit=1, position=30))
        assert world.leases() == lease
        assert blocked(world.beat("s2", "d2", limit=1, position=0))


class TestBookkeeping:
    def test_records_are_bounded_and_forgotten(self, world: World) -> None:
        for n in range(100):
            world.wait(0.1)
            world.beat(f"s{n}", "d1", f"c{n}", limit=1)
        size = world.run(world.client.zcard(world.keys.account("a").leases))
        assert size <= 65
        world.wait(31)
        world.sweep()
        world.wait(30 * 60 + 1)
        world.sweep()
        assert world.run(world.client.exists(world.keys.account("a").leases)) == 0
        assert world.deadlines() == {}

    def test_a_deadline_is_never_later_than_needed(self, world: World) -> None:
        world.beat("s1", "d1")
        world.play(100, ("s1", "d1"))
        world.wait(30.1)
        while world.sweep() == 0:
            pytest.fail("the view's deadline has passed and the sweep did not see it")
        assert world.running() == set()

    def test_leases_are_counted_by_rule(self, world: World) -> None:
        world.beat("s1", "d1", "news", kind="live", plan="live_one")
        world.beat("s2", "d2", plan="live_one")
        base = world.keys.account("a").base
        assert world.run(world.client.hgetall(f"{base}:held")) == {b"streams": b"2", b"live": b"1"}
        world.stop("s1")
        assert world.run(world.client.hgetall(f"{base}:held")) == {b"streams": b"1", b"live": b"0"}

    def test_player_events_are_kept_byte_for_byte(self, world: World) -> None:
        world.beat(events=[{"type": "seek", "odd": {"n": 1.50}}])
        world.wait(10)
        world.beat(events=[{"type": "ad_start", "ad": "x"}])
        assert [e["type"] for e in world.events()] == ["view_start", "heartbeat", "seek", "heartbeat", "ad_start"]
        assert world.events("a", "seek")[0]["data"] == {"type": "seek", "odd": {"n": 1.50}}

    def test_a_stop_with_a_request_id_stops_once(self, world: World) -> None:
        world.beat()
        assert world.stop(request_id="r")
        world.beat()
        assert not world.stop(request_id="r")
        assert world.running() == {"s1"}


class TestOverload:
    def test_a_stretched_promise_stretches_the_silence_allowed(self, world: World) -> None:
        world.beat(limit=1)
        world.wait(10)
        world.decisions._stretch = lambda: 2.0  # type: ignore[method-assign]
        promised = world.beat(limit=1)
        assert promised["next_heartbeat_ms"] == 20_000
        assert promised["lease_expires_at"] == world.now + 60_000
        world.wait(29)
        assert blocked(world.beat("s2", "d2", limit=1))
        world.wait(1.5)
        assert allowed(world.beat("s2", "d2", limit=1))


class TestFewest:
    def test_one_stream_leaves_where_one_is_enough(self, backend: str, prefix: str) -> None:
        """Both rules are full; the oldest live stream holds both, the oldest of all only one."""
        plans = """
default = "p"
[plans.p]
at_limit = "stop_oldest"
[[plans.p.rules]]
name = "streams"
limit = 2
[[plans.p.rules]]
name = "live"
limit = 1
kind = "live"
"""
        with World(backend, prefix, plans) as world:
            world.beat("film", "d1")
            world.wait(1)
            world.beat("news", "d2", "news", kind="live")
            assert allowed(world.beat("sport", "d3", "sport", kind="live"))
            assert world.running() == {"film", "sport"}

    def test_evidence_from_before_what_the_device_runs_now_is_history(self, world: World) -> None:
        world.wait(20)
        world.signal("d1", "two", limit=1)
        assert allowed(world.signal("d1", "one", at=world.now - 5_000, limit=1))
        assert [s["content"] for s in world.sessions()] == ["two"]

    def test_a_token_session_that_zaps_to_what_the_player_runs_counts_once(self, world: World) -> None:
        world.signal("d1", "one", session="sid")
        world.wait(1)
        world.beat("s1", "d1", "two")
        world.signal("d1", "two", session="sid")
        assert len(world.leases()) == 1

    def test_a_second_refusal_after_an_admission_is_a_transition_again(self, world: World) -> None:
        """The note of a refusal is cleared even when the fast path would be open."""
        world.beat("s1", "d1", "news", kind="live", plan="live_one")
        world.beat("s2", "d2", "film", plan="live_one")
        for n in (1, 2):
            world.wait(1)
            assert blocked(world.beat("s2", "d2", "news", kind="live", plan="live_one"))
            world.wait(1)
            assert allowed(world.beat("s2", "d2", "film", plan="live_one"))
            assert len(world.events("a", "block")) == n
