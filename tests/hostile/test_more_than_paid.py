"""Watching more than was paid for: what viewers do who know the rules. Each account has paid for one stream.

`streams` counts what an attack gets: of all that was fetched for the devices that hold no slot, how much passed. A little always does: the
stragglers of a view that was really watched, once a minute, and what a shared device id may share.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness import World

MINUTE = 60


def passes(world: World, device: str, content: str, **fields: str) -> bool:
    return world.signal(device, content, limit=1, **fields)["decision"] == "allow"


def start(world: World, session: str, device: str, content: str = "film") -> bool:
    return world.beat(session, device, content, limit=1, seq=0)["decision"] == "allow"


def end_by_stop(world: World, session: str, device: str, content: str) -> None:
    world.stop(session)


def end_by_state(state: str) -> Callable[[World, str, str, str], None]:
    def end(world: World, session: str, device: str, content: str) -> None:
        world.beat(session, device, content, limit=1, state=state)

    return end


ENDS = [
    pytest.param(end_by_stop, id="stop"),
    pytest.param(end_by_state("ended"), id="ended"),
    pytest.param(end_by_state("error"), id="error"),
]
End = Callable[[World, str, str, str], None]


class TestStartStopFetch:
    @pytest.mark.parametrize("end", ENDS)
    @pytest.mark.parametrize("fresh", [False, True], ids=["same ids", "new ids each time"])
    def test_three_devices_that_stop_at_once_get_one_stream(self, world: World, end: End, fresh: bool) -> None:
        got = dict.fromkeys(range(3), 0)
        for turn in range(10):
            for n in got:
                name = f"{n}-{turn}" if fresh else str(n)
                if start(world, f"s{name}", f"d{name}"):
                    end(world, f"s{name}", f"d{name}", "film")
            for _ in range(5):
                world.wait(6)
                passed = [n for n in got if passes(world, f"d{n}-{turn}" if fresh else f"d{n}", "film")]
                assert len(passed) <= 1, "more streams than were paid for"
                for n in passed:
                    got[n] += 1
        assert sum(got.values()) <= 50, "at most one stream's worth"

    def test_a_view_that_was_not_watched_has_no_stragglers(self, world: World) -> None:
        start(world, "s1", "d1")
        world.stop("s1")
        start(world, "s2", "d2")
        world.wait(0.1)
        assert not passes(world, "d1", "film")

    def test_a_view_that_was_watched_has_them_for_some_seconds(self, world: World) -> None:
        start(world, "s1", "d1")
        world.wait(8)
        world.stop("s1")
        start(world, "s2", "d2")
        for _ in range(4):
            world.wait(1)
            assert passes(world, "d1", "film")
        world.wait(1)
        assert not passes(world, "d1", "film")
        assert world.running() == {"s2"}

    def test_no_longer_than_the_view_has_lasted(self, world: World) -> None:
        start(world, "s1", "d1")
        world.wait(2)
        world.stop("s1")
        start(world, "s2", "d2")
        world.wait(1)
        assert passes(world, "d1", "film")
        world.wait(1)
        assert not passes(world, "d1", "film")

    @pytest.mark.parametrize("fresh", [False, True], ids=["same ids", "new ids each time"])
    def test_once_and_not_again_after_another_start_and_stop(self, world: World, fresh: bool) -> None:
        for turn in range(6):
            name = str(turn) if fresh else ""
            start(world, f"s1{name}", f"d1{name}")
            world.wait(6)
            world.stop(f"s1{name}")
            start(world, f"s2{name}", f"d2{name}")
            world.wait(1)
            assert passes(world, f"d1{name}", "film") == (turn == 0)
            world.stop(f"s2{name}")
            world.wait(1)

    def test_not_again_after_a_hundred_sessions_that_push_the_first_out_of_memory(self, world: World) -> None:
        start(world, "s1", "d1")
        world.wait(6)
        world.stop("s1")
        for n in range(100):
            start(world, f"x{n}", f"y{n}")
            world.stop(f"x{n}")
        start(world, "s1", "d1")
        world.wait(10)
        world.stop("s1")
        start(world, "s2", "d2")
        world.wait(0.1)
        assert not passes(world, "d1", "film")

    def test_a_household_that_stops_in_order_is_refused_nothing(self, world: World) -> None:
        """Two people after one another, each with the last segments of what they left: no ghost holds the slot."""
        for n in range(6):
            device = f"d{n % 2}"
            assert start(world, f"s{n}", device)
            for _ in range(4):
                world.wait(10)
                assert world.beat(f"s{n}", device, limit=1)["decision"] == "allow"
            world.stop(f"s{n}")
            world.wait(1)
            assert passes(world, device, "film")
            world.wait(30)


class TestZapping:
    def test_a_session_that_zaps_to_and_fro_does_not_pay_for_both(self, world: World) -> None:
        """The player names one title and the other in turn; a second machine behind its device id fetches the one just left."""
        got = 0
        for turn in range(120):
            here, left = ("one", "two") if turn % 2 else ("two", "one")
            world.beat("s1", "d1", here, limit=1)
            for _ in range(2):
                world.wait(10)
                world.beat("s1", "d1", here, limit=1)
                got += passes(world, "d1", left)
        assert got < 120, "ten minutes or so of sharing, not for ever"

    def test_whoever_starts_anew_under_another_device_id_shares_no_more_than_one_device(self, world: World) -> None:
        got = 0
        for turn in range(120):
            device = f"d{turn}"
            start(world, f"s{turn}", device, "one")
            for _ in range(2):
                world.wait(9)
                world.beat(f"s{turn}", device, "one", limit=1)
                got += passes(world, device, "two")
            world.stop(f"s{turn}")
        assert got < 120

    def test_two_players_that_take_a_new_device_id_each_time_do_not_share_for_ever(self, world: World) -> None:
        got = 0
        for turn in range(120):
            device = f"d{turn}"
            start(world, f"a{turn}", device, "one")
            start(world, f"b{turn}", device, "two")
            for _ in range(2):
                world.wait(9)
                world.beat(f"b{turn}", device, "two", limit=1)
                got += world.beat(f"a{turn}", device, "one", limit=1)["decision"] == "allow"
            for session in ("a", "b"):
                world.stop(f"{session}{turn}")
        assert got < 120

    def test_two_boxes_behind_one_device_id_do_not_share_for_ever(self, world: World) -> None:
        """Each keeps a buffer, and pauses its fetching long enough to look like a zap back."""
        got = {"one": 0, "two": 0}
        for second in range(0, 3600, 5):
            for content, pause in (("one", 0), ("two", 40)):
                if (second + pause) % 80 >= 20:
                    got[content] += passes(world, "box", content)
            world.wait(5)
        assert min(got.values()) < 0.75 * max(got.values())

    def test_a_viewer_who_zaps_through_all_channels_is_never_refused(self, world: World) -> None:
        """With a prefetch, and the last segments of what was left, at each."""
        for n in range(60):
            assert world.beat("s1", "d1", f"channel-{n}", kind="live", limit=1)["decision"] == "allow"
            assert passes(world, "d1", f"channel-{n}", kind="live")
            if n:
                assert passes(world, "d1", f"channel-{n - 1}", kind="live")
            world.wait(2)
            assert passes(world, "d1", f"channel-{n}", kind="live")
            world.wait(1)

    def test_a_series_with_the_next_episode_prefetched_is_never_refused(self, world: World) -> None:
        for n in range(8):
            for beat in range(120):
                assert world.beat("s1", "d1", f"episode-{n}", limit=1)["decision"] == "allow"
                assert passes(world, "d1", f"episode-{n + (beat > 117)}")
                world.wait(10)
