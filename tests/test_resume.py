"""Resume positions: never ahead of what was seen, in the viewer's order, bounded, and the same after a replay."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fakeredis
import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from api.openapi import document
from engine.completion import Thresholds, completed_point, too_early_point
from engine.embedded import VOLATILE, Server
from engine.events import Event
from engine.keys import Keys
from engine.resume import SLACK_S, Entry, Rules, decode, fold
from engine.settings import Settings
from tests.harness import PARTITIONS, START, World
from tests.projecting import Fed, Pump, event, outbox_of
from tests.servers import ApiProcess, player, service, wait_for
from workers.consumer import DeadLetter
from workers.resume import Resume

HOUR = 3600.0
FILM = 5400.0
POINT = completed_point(FILM, None, Thresholds()) or 0.0
EARLY = too_early_point(FILM, Thresholds())
RULES = Rules.of(Settings())
_accounts = itertools.count(1)


@pytest.fixture(params=["fake", "single"])
def client(request: pytest.FixtureRequest) -> Iterator[Redis]:
    if request.param == "fake":
        yield fakeredis.FakeRedis(version=(7, 2))
        return
    with Redis.from_url(request.getfixturevalue("single").url) as real:
        yield real


def beat(position: float | None, t: float, **said: Any) -> Event:
    """A heartbeat of film `film`. What is no part of the envelope goes into its body."""
    body = {"position": position, "duration": FILM, "state": "playing"}
    for name in ("duration", "state", "credits", "rate", "start_over", "title", "provider"):
        if name in said:
            body[name] = said.pop(name)
    said.setdefault("seq", int(t / 10))
    return event("heartbeat", t, data={name: value for name, value in body.items() if value is not None}, **said)


def stored(fed: Fed, content: str = "film", profile: str = "") -> Entry | None:
    found: Any = fed.client.hget(fed.space.key("of", "a"), f"{profile}\t{content}")
    return None if found is None else decode(found)


@pytest.fixture
def fed(client: Redis, prefix: str) -> Fed:
    return Fed(client, prefix, Resume)


def after(fed: Fed, *events: Event) -> Entry:
    """The entry of `film` when these were fed one by one."""
    fed.feed(*events, batch=1)
    entry = stored(fed)
    assert entry is not None
    return entry


class TestMistakes:
    """The mistakes seen elsewhere, one by one."""

    def test_never_ahead_after_a_power_off(self, fed: Fed) -> None:
        """Extrapolated past what was seen, minutes ahead after a power-off."""
        end = event(
            "view_end", HOUR, data={"reason": "timeout", "max_position": 4000, "estimated_end_at": START + 3_600_000}
        )
        assert after(fed, beat(590, 590), beat(600, 600), end).position == 600

    def test_a_report_near_the_start_does_not_overwrite(self, fed: Fed) -> None:
        again = [beat(p, HOUR + p, session="s2", started=HOUR, device="tv") for p in (0, 10, 20, EARLY - 1)]
        assert after(fed, beat(1800, 1800), *again).position == 1800
        passed = beat(EARLY + 1, HOUR + 200, session="s2", started=HOUR)
        assert after(fed, passed).position == EARLY + 1

    def test_nor_does_the_same_view_that_goes_back_to_the_start(self, fed: Fed) -> None:
        assert after(fed, beat(1800, 1800), beat(5, 1810), beat(15, 1820)).position == 1800

    def test_an_unknown_runtime_is_not_completed(self, fed: Fed) -> None:
        entry = after(fed, beat(9_000, 9_000, duration=None), beat(9_010, 9_010, duration=None, state="ended"))
        assert (entry.position, entry.completed_at, entry.done, entry.in_progress) == (9_010, 0, False, True)

    def test_a_runtime_of_nothing_is_unknown(self, fed: Fed) -> None:
        entry = after(fed, beat(600, 600, duration=0))
        assert (entry.completed_at, entry.in_progress) == (0, True)

    def test_last_watched_wins_over_last_arrived(self, fed: Fed) -> None:
        """A spooled heartbeat of an older view arrives when a newer one has played on."""
        newer = beat(900, HOUR + 10, session="s2", started=HOUR)
        assert after(fed, beat(600, 600), newer, beat(700, 700), beat(710, 710)).position == 900

    def test_watching_again_does_not_clear_completed(self, fed: Fed) -> None:
        entry = after(fed, beat(POINT, POINT))
        assert (entry.done, entry.in_progress, entry.completed_at) == (True, False, START + int(POINT * 1000))
        again = after(fed, beat(600, 2 * HOUR, session="s2", started=HOUR + 3000))
        assert (again.position, again.in_progress, again.completed_at) == (600, True, entry.completed_at)

    def test_a_hidden_title_stays_hidden(self, fed: Fed) -> None:
        hidden = after(fed, beat(600, 600), event("resume_hide", 601, view=0, session=""))
        assert hidden.hidden
        assert after(fed, beat(610, 610), beat(620, 620)).hidden
        shown = after(fed, beat(EARLY + 10, HOUR + 130, session="s2", started=HOUR))
        assert (shown.hidden, shown.in_progress, shown.position) == (False, True, EARLY + 10)

    def test_completed_before_the_last_second(self, fed: Fed) -> None:
        """100 % is never reached."""
        assert POINT < 0.95 * FILM
        assert after(fed, beat(POINT - 1, POINT - 1)).completed_at == 0
        assert after(fed, beat(POINT, POINT + 1)).completed_at > 0


class TestCompleted:
    def test_the_credits_tell(self, fed: Fed) -> None:
        assert after(fed, beat(4000, 4000, credits=4010)).completed_at == 0
        assert after(fed, beat(4010, 4010, credits=4010)).done

    def test_credits_without_a_length(self, fed: Fed) -> None:
        assert after(fed, beat(4010, 4010, duration=None, credits=4000)).done

    def test_a_length_said_once_holds(self, fed: Fed) -> None:
        assert after(fed, beat(4000, 4000), beat(POINT, POINT, duration=None)).done

    @pytest.mark.parametrize("nonsense", ["soon", True, [], {}, -5, 0])
    def test_nonsense_for_credits_is_none(self, fed: Fed, nonsense: Any) -> None:
        entry = after(fed, beat(600, 600, credits=nonsense))
        assert (entry.position, entry.completed_at, entry.credits) == (600, 0, None)

    def test_ended_behind_the_point(self, fed: Fed) -> None:
        entry = after(fed, beat(4000, 4000), beat(FILM, 4005, state="ended"))
        assert (entry.position, entry.done, entry.completed_at > 0) == (4000, True, True)

    def test_ended_before_it_is_a_pause(self, fed: Fed) -> None:
        entry = after(fed, beat(4000, 4000), beat(4005, 4005, state="ended", seq=401))
        assert (entry.position, entry.done) == (4005, False)

    def test_a_seek_behind_the_point_is_not(self, fed: Fed) -> None:
        for state in ("seeking", "paused", "buffering", "starting", "error"):
            entry = after(fed, beat(4000, 4000), beat(5300, 4005, state=state, seq=500))
            assert (entry.position, entry.completed_at) == (4000, 0), state

    def test_late_it_is_a_fact_all_the_same(self, fed: Fed) -> None:
        """The older view was seen to its end; that is learned when the newer one is under way."""
        entry = after(fed, beat(900, 3 * HOUR, session="s2", started=2 * HOUR), beat(POINT, HOUR))
        assert (entry.position, entry.in_progress, entry.completed_at) == (900, True, START + 3_600_000)

    def test_the_first_time_counts(self, fed: Fed) -> None:
        entry = after(fed, beat(POINT, POINT), beat(POINT + 10, POINT + 10))
        assert entry.completed_at == START + int(POINT * 1000)


class TestNotResumable:
    def test_short_titles(self, fed: Fed) -> None:
        fed.feed(beat(200, 200, duration=299), beat(298, 298, duration=299, state="ended"))
        assert stored(fed) is None
        assert after(fed, beat(200, 200, duration=300)).in_progress

    def test_live(self, fed: Fed) -> None:
        fed.feed(
            beat(900, 900, kind="live"),
            beat(910, 910, kind="live", start_over=False),
            beat(920, 920, kind="live", start_over="yes"),
        )
        assert stored(fed) is None
        fed.feed(event("heartbeat", 930, kind="live", data={"state": "playing", "title": "start_over"}))
        assert stored(fed) is None

    def test_live_that_starts_over(self, fed: Fed) -> None:
        assert after(fed, beat(900, 900, kind="live", start_over=True)).in_progress

    def test_too_early(self, fed: Fed) -> None:
        fed.feed(beat(EARLY - 1, 200))
        assert stored(fed) is None
        assert after(fed, beat(EARLY, 210)).position == EARLY

    def test_evidence_is_no_position(self, fed: Fed) -> None:
        fed.feed(event("evidence", 600, data={"evidence": "segment", "position": 600}))
        assert stored(fed) is None


class TestNotPlaying:
    @pytest.mark.parametrize("state", ["seeking", "starting"])
    def test_never_moves_it(self, fed: Fed, state: str) -> None:
        fed.feed(beat(2000, 600, state=state))
        assert stored(fed) is None
        for position in (2000, 605, 100):
            assert after(fed, beat(600, 600), beat(position, 605, state=state, seq=61)).position == 600

    @pytest.mark.parametrize("state", ["paused", "buffering", "error"])
    def test_counts_as_far_as_playing_carried_it(self, fed: Fed, state: str) -> None:
        assert after(fed, beat(600, 600, seq=60), beat(607, 607, seq=61, state=state)).position == 607

    def test_at_the_player_s_rate(self, fed: Fed) -> None:
        assert (
            after(fed, beat(600, 600, seq=60, rate=2), beat(614, 607, seq=61, state="paused", rate=2)).position == 614
        )

    def test_not_to_where_it_was_moved(self, fed: Fed) -> None:
        assert after(fed, beat(600, 600, seq=60), beat(1500, 607, seq=61, state="paused")).position == 600

    def test_not_beyond_a_seek_in_between(self, fed: Fed) -> None:
        entry = after(
            fed, beat(600, 600, seq=60), beat(615, 601, seq=61, state="seeking"), beat(615, 620, seq=62, state="paused")
        )
        assert entry.position == 600

    def test_not_ahead_while_paused(self, fed: Fed) -> None:
        entry = after(
            fed, beat(600, 600, seq=60), beat(605, 605, seq=61, state="paused"), beat(610, 615, seq=62, state="paused")
        )
        assert entry.position == 605

    def test_back_while_paused(self, fed: Fed) -> None:
        assert after(fed, beat(600, 600, seq=60), beat(450, 605, seq=61, state="paused")).position == 450

    def test_not_of_a_view_that_has_not_played(self, fed: Fed) -> None:
        entry = after(fed, beat(600, 600), beat(450, HOUR + 5, session="s2", started=HOUR, state="paused"))
        assert (entry.position, entry.session) == (600, "s1")

    def test_a_seek_that_is_played_counts(self, fed: Fed) -> None:
        assert after(fed, beat(600, 600), beat(3000, 610)).position == 3000
        assert after(fed, beat(500, 620)).position == 500


class TestOrder:
    def test_by_seq_within_a_view(self, fed: Fed) -> None:
        assert after(fed, beat(620, 620, seq=3), beat(610, 621, seq=2), beat(600, 630, seq=1)).position == 620

    def test_at_breaks_the_tie(self, fed: Fed) -> None:
        assert after(fed, beat(600, 600, seq=3), beat(605, 605, seq=3)).position == 605

    def test_a_player_that_starts_anew_under_its_session(self, fed: Fed) -> None:
        """It counts from 0 again; what was spooled before that is older, whatever its seq."""
        fed.feed(beat(600, 600, seq=60))
        anew = after(fed, beat(600, 660, seq=0, state="starting"), beat(605, 665, seq=1))
        assert anew.position == 605
        assert after(fed, beat(590, 612, seq=61)).position == 605
        assert after(fed, beat(625, 685, seq=2)).position == 625

    def test_filed_under_a_view_that_began_later(self, fed: Fed) -> None:
        """Spooled while session Redis was away; its session watches it again by now."""
        fed.feed(beat(900, 900, seq=90))
        late = beat(850, 850, seq=85, view=2, started=2000)
        assert after(fed, late).position == 900
        assert after(fed, beat(910, 910, seq=91, view=2, started=2000)).position == 910
        assert after(fed, beat(300, 2300, seq=200, view=2, started=2000)).position == 300

    def test_a_server_that_forgot_its_last_second_goes_on_with_the_view_before(self, fed: Fed) -> None:
        """The player knows better: its heartbeats are in order, whatever their views."""
        fed.feed(beat(700, 700, seq=70, view=1, started=600), beat(650, 720, seq=72, view=3, started=710))
        assert after(fed, beat(655, 730, seq=73, view=1, started=600)).position == 655
        assert after(fed, beat(640, 715, seq=71, view=2, started=705)).position == 655

    def test_history_without_a_view_is_better_than_nothing(self, fed: Fed) -> None:
        assert after(fed, beat(850, 850, view=0)).position == 850
        assert after(fed, beat(600, 900, started=840)).position == 600
        assert after(fed, beat(990, 990, view=0, session="s0")).position == 600

    def test_profiles_and_titles_are_apart(self, fed: Fed) -> None:
        fed.feed(beat(600, 600), beat(700, 600, profile="kids"), beat(800, 600, content="show/1"))
        positions = [stored(fed), stored(fed, profile="kids"), stored(fed, "show/1")]
        assert [entry and entry.position for entry in positions] == [600, 700, 800]


TV: dict[str, Any] = {"session": "tv", "device": "tv", "started": 0}
PHONE: dict[str, Any] = {"session": "phone", "device": "phone", "started": 1000}


class TestTwoDevices:
    def test_the_later_view_wins(self, fed: Fed) -> None:
        """Both play on: one profile, two viewers. It does not jump to and fro."""
        fed.feed(beat(1000, 1000, **TV), beat(500, 1300, **PHONE))
        assert after(fed, beat(1310, 1310, **TV)).position == 500
        assert after(fed, beat(510, 1310, **PHONE), beat(1320, 1320, **TV)).position == 510

    def test_back_before_the_tv_after_a_pause(self, fed: Fed) -> None:
        fed.feed(beat(990, 990, **TV), event("pause", 1000, **TV), beat(1000, 1000, state="paused", **TV))
        assert after(fed, beat(1060, 1060, **PHONE), beat(1120, 1120, **PHONE)).position == 1120
        still = after(fed, beat(1000, 1130, state="paused", **TV))
        assert (still.position, still.device) == (1120, "phone")
        back = after(fed, event("resume", 1200, **TV), beat(1000, 1200, **TV), beat(1010, 1210, **TV))
        assert (back.position, back.device) == (1010, "tv")
        assert after(fed, beat(1130, 1130, **PHONE)).position == 1010
        again = after(fed, event("resume", 1300, **PHONE), beat(1140, 1300, **PHONE))
        assert (again.position, again.device) == (1140, "phone")

    def test_back_before_the_tv_after_it_had_lost_its_place(self, fed: Fed) -> None:
        fed.feed(beat(1000, 1000, **TV), beat(1060, 1060, **PHONE))
        reopened = event("view_reopen", 1200, revision=1, **TV)
        assert after(fed, reopened, beat(1010, 1210, **TV)).position == 1010

    def test_a_spooled_heartbeat_from_before_the_pause_does_not_count_as_after(self, fed: Fed) -> None:
        fed.feed(beat(1000, 1000, **TV), beat(1060, 1060, **PHONE), event("resume", 1200, **TV))
        assert after(fed, beat(1100, 1100, **TV)).position == 1060


class TestByHand:
    def put(self, t: float, **data: Any) -> Event:
        return event("resume_set", t, view=0, session="", data=data)

    def test_holds_until_something_later_is_seen(self, fed: Fed) -> None:
        assert after(fed, beat(600, 600), self.put(605, position=60)).position == 60
        assert after(fed, beat(602, 602)).position == 60
        assert after(fed, beat(612, 612)).position == 612

    def test_without_anything_before(self, fed: Fed) -> None:
        entry = after(fed, self.put(605, position=60, duration=FILM, title="A film"))
        assert (entry.position, entry.title, entry.in_progress) == (60, "A film", True)
        assert after(fed, beat(200, 900, started=700)).position == 200

    def test_older_than_what_was_seen(self, fed: Fed) -> None:
        assert after(fed, beat(600, 600), self.put(595, position=60)).position == 600

    def test_of_two_views_that_go_on_the_later_still_wins(self, fed: Fed) -> None:
        fed.feed(beat(1000, 1000, **TV), beat(500, 1300, **PHONE), self.put(1305, position=50))
        assert after(fed, beat(1310, 1310, **TV)).position == 50
        assert after(fed, beat(510, 1310, **PHONE)).position == 510

    def test_completed_and_not(self, fed: Fed) -> None:
        entry = after(fed, beat(600, 600), self.put(605, position=0, completed=True))
        assert (entry.position, entry.in_progress, entry.completed_at) == (0, False, START + 605_000)
        entry = after(fed, self.put(610, position=600, completed=False))
        assert (entry.in_progress, entry.completed_at) == (True, 0)
        late = after(fed, beat(POINT, 500, session="s0"))
        assert late.completed_at == 0

    def test_the_position_tells_where_nothing_is_said(self, fed: Fed) -> None:
        assert after(fed, beat(600, 600), self.put(605, position=POINT)).done

    def test_shows_what_was_hidden(self, fed: Fed) -> None:
        hide = event("resume_hide", 601, view=0, session="")
        assert after(fed, beat(600, 600), hide).hidden
        assert not after(fed, self.put(605, position=60)).hidden

    def test_hidden_before_it_was_known(self, fed: Fed) -> None:
        hide = event("resume_hide", 100, view=0, session="")
        assert after(fed, hide, beat(600, 600)).hidden


class TestBounded:
    def test_the_oldest_go(self, client: Redis, prefix: str) -> None:
        fed = Fed(client, prefix, Resume, resume_keep=10)
        fed.feed(*(beat(600, 600 + n, content=f"f{n}") for n in range(15)), batch=4)
        assert sorted(fed.dump()) == sorted(f"a\t\tf{n}" for n in range(5, 15))
        fed.feed(beat(610, 650, content="f5"), beat(600, 660, content="f15"))
        assert sorted(fed.dump()) == sorted(f"a\t\tf{n}" for n in (5, *range(7, 16)))
        fed.feed(beat(600, 300, content="older"))
        assert "a\t\tolder" not in fed.dump()

    @pytest.mark.parametrize("batch", [1, 3, 7, 1000])
    def test_whatever_the_batches(self, client: Redis, prefix: str, batch: int) -> None:
        """What is evicted and comes back has lost its past, in every cut alike."""
        events = [beat(POINT if n % 3 else 600, 600 + n, content=f"f{n * 7 % 17}") for n in range(120)]
        whole = Fed(client, prefix, Resume, resume_keep=10).feed(*events, batch=1).dump()
        cut = Fed(client, prefix, Resume, 2, resume_keep=10).feed(*events, batch=batch).dump()
        assert len(whole) == 10
        assert cut == whole


class TestConsumer:
    def test_reads_and_writes_once_a_title_and_batch(self, client: Redis, prefix: str) -> None:
        fed = Fed(client, prefix, Resume)
        with client.pipeline() as pipe:
            pipe.multi()
            fed.consumer.handle([beat(600 + n, 600 + n) for n in range(100)], pipe)
            assert len(pipe.command_stack) == 1

    def test_nothing_to_do_is_nothing_done(self, fed: Fed) -> None:
        fed.feed(
            event("custom", 1),
            event("view_start", 1),
            beat(10, 10),
            beat(600, 600, content=""),
            beat(900, 900, kind="live"),
        )
        assert fed.dump() == {}

    def test_what_is_no_heartbeat_is_a_dead_letter(self, fed: Fed) -> None:
        bad = event("heartbeat", 600, data={"position": "far"})
        with pytest.raises(DeadLetter) as caught:
            fed.feed(beat(600, 600), bad)
        assert caught.value.event is bad
        assert stored(fed) is None

    def test_twice_is_once(self, fed: Fed) -> None:
        events = [beat(600 + 10 * n, 600 + 10 * n) for n in range(5)]
        once = fed.feed(*events).dump()
        assert fed.feed(*events).dump() == once

    def test_erase(self, fed: Fed) -> None:
        fed.feed(beat(600, 600), beat(600, 600, content="other"), beat(600, 600, account="b"))
        assert fed.erase("a") == 2
        assert list(fed.dump()) == ["b\t\tfilm"]
        assert fed.erase("a") == 0

    def test_dump_has_this_generation_only(self, client: Redis, prefix: str) -> None:
        live, shadow = Fed(client, prefix, Resume, 1), Fed(client, prefix, Resume, 10)
        live.feed(beat(600, 600))
        assert (len(live.dump()), len(shadow.dump())) == (1, 0)

    def test_a_prefix_with_wild_cards(self, client: Redis, prefix: str) -> None:
        other, mine = Fed(client, f"{prefix}x", Resume), Fed(client, f"{prefix}?", Resume)
        other.feed(beat(600, 600))
        mine.feed(beat(610, 610, content="mine"))
        assert list(mine.dump()) == ["a\t\tmine"]


# Random histories. Device by device, sitting by sitting: each plays, seeks, pauses; then the power goes, or it is stopped.

ACTIONS = st.one_of(
    st.tuples(st.just("play"), st.integers(1, 60)), st.tuples(st.just("seek"), st.integers(0, int(POINT) - 1000)),
    st.tuples(st.just("pause"), st.integers(1, 40)), st.tuples(st.just("scrub"), st.integers(0, int(POINT) - 1000)),
)  # fmt: skip
SITTINGS = st.lists(
    st.tuples(st.sampled_from(["tv", "phone"]), st.integers(0, int(POINT) - 1000), st.lists(ACTIONS, min_size=1, max_size=8)),
    min_size=1, max_size=4,
)  # fmt: skip


class History:
    """What players did, and what really was on the screen."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.seen: list[tuple[float, float]] = []
        """Spans of the film that were played."""
        self.t = 0.0
        self.position = 0.0
        self.spent = 0.0
        """Where the viewer stood when the last sitting with anything to keep ended."""

    def sit(self, number: int, device: str, start: int, actions: list[tuple[str, int]]) -> None:
        self.position, began, seq = float(start), self.t, 0
        who = {"session": f"s{number}", "device": device, "started": began}
        last_seen = None

        def tell(state: str) -> None:
            nonlocal seq
            self.events.append(beat(self.position, self.t, state=state, seq=seq, **who))
            seq += 1

        tell("starting")
        tell("playing")
        self.seen.append((self.position, self.position))
        for action, amount in actions:
            if action == "play":
                tell("playing")
                start_at = self.position
                for second in range(1, amount + 1):
                    self.t, self.position = self.t + 1, self.position + 1
                    if second % 10 == 0:
                        tell("playing")
                self.seen.append((start_at, self.position))
            elif action == "seek":
                tell("seeking")
                self.position = float(amount)
                tell("playing")
                self.seen.append((self.position, self.position))
            else:
                tell("paused")
                stood, self.t = self.position, self.t + amount
                if action == "scrub":
                    # Moved while paused and looked at; then back, or that is where it would go on.
                    self.position = float(amount)
                    tell("paused")
                    self.position = stood
            last_seen = self.position
        # The power goes; nobody says anything more.
        self.t += 100
        if last_seen is not None and last_seen >= EARLY + 60:
            self.spent = last_seen


def shown(history: History, position: float) -> bool:
    return any(low - 0.001 <= position <= high + SLACK_S for low, high in history.seen)


def played(sittings: list[Any]) -> History:
    history = History()
    for number, (device, start, actions) in enumerate(sittings):
        history.sit(number, device, start, actions)
    return history


def folded(events: list[Event]) -> Entry | None:
    entry: Entry | None = None
    for each in events:
        entry = fold(entry, each, RULES)
    return entry


random_histories = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@random_histories
@given(SITTINGS, st.randoms(use_true_random=False), st.booleans())
def test_in_any_order_never_ahead_of_what_was_seen(sittings: list[Any], random: Any, lose: bool) -> None:
    """Shuffled, repeated, some lost: wherever it stands, that was on the screen, or the viewer paused going back there."""
    history = played(sittings)
    events = history.events + random.choices(history.events, k=5)
    random.shuffle(events)
    if lose:
        events = events[: len(events) // 2]
    entry, furthest = None, max(high for _, high in history.seen)
    for each in events:
        entry = fold(entry, each, RULES)
        if entry is not None and entry.position is not None:
            assert entry.position <= furthest + SLACK_S
            body = json.loads(each.payload)["data"]
            if body["state"] == "playing" and entry.position == body["position"]:
                assert shown(history, entry.position)


SIMPLE = st.lists(
    st.tuples(st.sampled_from(["tv", "phone"]), st.integers(int(EARLY), int(POINT) - 1000), st.lists(
        st.tuples(st.sampled_from(["play", "pause"]), st.integers(1, 60)), min_size=1, max_size=8,
    )), min_size=1, max_size=4,
)  # fmt: skip


@random_histories
@given(SIMPLE, st.randoms(use_true_random=False))
def test_in_any_order_at_most_one_heartbeat_behind(sittings: list[Any], random: Any) -> None:
    """Of the last sitting, whichever arrives last: two devices, power-offs, everything shuffled and repeated."""
    history = played(sittings)
    events = history.events * 2
    random.shuffle(events)
    entry = folded(events)
    assert entry is not None
    assert entry.position is not None
    assert history.position - 10 <= entry.position <= history.position


@random_histories
@given(SITTINGS, st.randoms(use_true_random=False))
def test_in_the_log_s_order_with_late_ones(sittings: list[Any], random: Any) -> None:
    """As it comes out of the log: in order, but what was spooled comes again or late. The last event is never late."""
    history = played(sittings)
    events = list(history.events)
    for each in random.sample(history.events, k=min(5, len(history.events))):
        events.insert(random.randrange(events.index(each) + 1, len(events) + 1), each)
    assert folded(events) == folded(history.events)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SITTINGS, st.integers(1, 50))
def test_live_equals_replayed(prefix: str, sittings: list[Any], batch: int) -> None:
    events = played(sittings).events
    client = fakeredis.FakeRedis(version=(7, 2))
    live = Fed(client, prefix, Resume, 1).feed(*events, batch=batch).dump()
    assert Fed(client, prefix, Resume, 2).feed(*events).dump() == live


def test_the_engine_s_own_events(world: World, prefix: str) -> None:
    """The TV, paused, then the phone, then the TV again; each as far as it was watched, by what the scripts write."""
    fed = Fed(fakeredis.FakeRedis(version=(7, 2)), prefix, Resume)

    def stands() -> tuple[Any, str]:
        fed.feed(*outbox_of(world))
        entry = stored(fed)
        assert entry is not None
        return entry.position, entry.device

    tv, phone = (
        {"session": "s1", "device": "tv", "duration": FILM},
        {"session": "s2", "device": "phone", "duration": FILM},
    )
    for _ in range(60):
        world.wait(10)
        world.beat(**tv)
    world.wait(5)
    world.beat(state="paused", **tv)
    assert stands() == (605, "tv")
    for n in range(30):
        world.wait(10)
        world.beat(position=600 + 10 * n, **phone)
        world.beat(state="paused", position=605, **tv)
    assert stands() == (890, "phone")
    world.wait(10)
    world.beat(position=605, **tv)
    world.wait(10)
    world.beat(position=615, **tv)
    world.beat(position=900, **phone)
    assert stands() == (615, "tv")
    world.wait(40)
    world.sweep()
    assert stands() == (615, "tv")
    assert {each.type for each in outbox_of(world)} > {"heartbeat", "pause", "resume", "view_end"}


# The API


@pytest.fixture(scope="module")
def pumped(single: Server) -> Iterator[Fed]:
    with Redis.from_url(single.url) as client:
        yield Fed(client, "resume-routes", Resume)


@pytest.fixture(scope="module")
def worked(single: Server, tmp_path_factory: pytest.TempPathFactory, pumped: Fed) -> Iterator[ApiProcess]:
    """The API, and workers that follow it."""
    directory = tmp_path_factory.mktemp("api")
    with ApiProcess(single.url, directory, prefix="resume-routes", resume_wait_ms=5000) as process, Pump(pumped):
        yield process


@pytest.fixture
def account() -> str:
    """One that no other test uses."""
    return f"ann-{next(_accounts)}"


def validate(name: str, value: Any) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": document()["components"]}
    jsonschema_rs.Draft202012Validator(schema).validate(value)


def put(api: ApiProcess, content: str, token: str, query: str = "", **body: Any) -> Any:
    answer = api.request("PUT", f"/v1/resume/{content}{query}", token=token, content=json.dumps(body))
    assert answer.status_code == 200, answer.text
    validate("Position", answer.json())
    return answer.json()


class TestRoutes:
    def test_from_heartbeat_to_list(self, worked: ApiProcess, account: str) -> None:
        token = player(account)
        for n, content in enumerate(("film-1", "film-2")):
            for seq in range(2):
                worked.beat(
                    token,
                    f"s{n}",
                    "tv",
                    content,
                    position=600 + n + seq,
                    seq=seq,
                    duration=FILM,
                    title=f"Film {n}",
                    provider="p",
                )

        def both() -> Any:
            said = worked.get("/v1/resume", token=token).json()
            return said if [i["position"] for i in said["items"]] == [602, 601] else None

        listed = wait_for(both, "both positions")
        validate("Positions", listed)
        assert [item["content"] for item in listed["items"]] == ["film-2", "film-1"]
        first = worked.get("/v1/resume/film-1", token=token).json()
        assert first == listed["items"][1]
        assert (first["title"], first["provider"], first["device"], first["completed"]) == ("Film 0", "p", "tv", False)

    def test_reads_its_own_write(self, worked: ApiProcess, account: str) -> None:
        token = player(account)
        for position in (600, 700, 800):
            assert put(worked, "show/1", token, position=position, duration=FILM)["position"] == position
            assert worked.get("/v1/resume", token=token).json()["items"][0]["position"] == position

    def test_hide(self, worked: ApiProcess, account: str) -> None:
        token = player(account)
        put(worked, "film", token, position=600)
        assert worked.request("DELETE", "/v1/resume/film", token=token).status_code == 204
        assert worked.get("/v1/resume/film", token=token).status_code == 404
        assert worked.get("/v1/resume", token=token).json() == {"items": [], "next": None}
        assert worked.request("DELETE", "/v1/resume/never-seen", token=token).status_code == 204

    def test_completed_is_left_out_and_a_fact(self, worked: ApiProcess, account: str) -> None:
        token = player(account)
        done = put(worked, "film", token, position=5300, duration=FILM)
        assert (done["completed"], done["in_progress"], done["completed_at"]) == (True, False, done["updated_at"])
        assert worked.get("/v1/resume", token=token).json()["items"] == []
        again = put(worked, "film", token, position=600, duration=FILM)
        assert (again["completed"], again["in_progress"]) == (True, True)
        assert worked.get("/v1/resume", token=token).json()["items"] == [again]

    def test_pages(self, worked: ApiProcess, account: str) -> None:
        token = player(account)
        for n in range(7):
            put(worked, f"f{n}", token, position=600 + n)
        found: list[str] = []
        cursor, pages = "", 0
        while cursor is not None:
            said = worked.get("/v1/resume", token=token, params={"limit": "3", "cursor": cursor}).json()
            found += [item["content"] for item in said["items"]]
            cursor, pages = said["next"], pages + 1
        assert (found, pages) == ([f"f{n}" for n in reversed(range(7))], 3)

    def test_profiles(self, worked: ApiProcess, account: str) -> None:
        token = player(account, profiles=["kids"])
        put(worked, "film", token, "?profile=kids", position=600)
        assert worked.get("/v1/resume/film", token=player(account)).status_code == 404
        for query in ("", "?profile=kids"):  # left out, it is the token's only one
            assert worked.get(f"/v1/resume/film{query}", token=token).json()["profile"] == "kids"
        refused = worked.get("/v1/resume?profile=parents", token=token)
        assert (refused.status_code, refused.json()["error"]["field"]) == (403, "profile")

    def test_services(self, worked: ApiProcess, account: str) -> None:
        put(worked, "film", service("admin"), f"?account={account}", position=600)
        assert worked.get(f"/v1/resume/film?account={account}", token=service("read")).json()["position"] == 600
        assert worked.get(f"/v1/resume?account={account}", token=service("signals")).status_code == 403
        assert worked.get("/v1/resume", token=service("read")).json()["error"]["field"] == "account"
        assert worked.request("DELETE", f"/v1/resume/film?account={account}", token=service("read")).status_code == 403
        assert worked.get(f"/v1/resume?account={account}", token=player("ben")).status_code == 403

    def test_a_replay_swaps_the_generation(self, worked: ApiProcess, account: str, pumped: Fed) -> None:
        token = player(account)
        put(worked, "film", token, position=600)
        shadow = Fed(pumped.client, pumped.settings.prefix, Resume, 2)
        shadow.feed(event("resume_set", 5, account=account, view=0, session="", data={"position": 50}))
        pumped.client.hset(pumped.keys.generations, "resume", 2)
        try:
            assert worked.get("/v1/resume/film", token=token).json()["position"] == 50
        finally:
            pumped.client.hdel(pumped.keys.generations, "resume")

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ("{}", "position"), ('{"position": -1}', "position"), ('{"position": "1"}', "position"), ("[]", "body"),
            ('{"position": 1, "kind": "live"}', "kind"), ('{"position": 1, "completed": "yes"}', "completed"),
            ('{"position": 1, "title": "\\u0000"}', "title"), ("{", "body"),
        ],
    )  # fmt: skip
    def test_bad_bodies(self, worked: ApiProcess, account: str, pumped: Fed, body: str, field: str) -> None:
        outbox = pumped.keys.account(account).outbox
        before = pumped.client.xlen(outbox)
        answer = worked.request("PUT", "/v1/resume/film", token=player(account), content=body)
        assert (answer.status_code, answer.json()["error"]["field"]) == (400, field)
        assert pumped.client.xlen(outbox) == before

    @pytest.mark.parametrize(
        ("query", "field"),
        [("limit=0", "limit"), ("limit=101", "limit"), ("limit=1e3", "limit"), ("limit=", "limit"), ("cursor=!", "cursor"),
         ("cursor=YQ", "cursor"), ("profile=%00", "profile")],
    )  # fmt: skip
    def test_bad_queries(self, worked: ApiProcess, account: str, query: str, field: str) -> None:
        answer = worked.get(f"/v1/resume?{query}", token=player(account))
        assert (answer.status_code, answer.json()["error"]["field"]) == (400, field)

    def test_methods(self, worked: ApiProcess, account: str) -> None:
        answer = worked.post("/v1/resume/film", token=player(account))
        assert answer.status_code == 405
        assert {"GET", "PUT", "DELETE"} <= set(answer.headers["allow"].split(", "))
        preflight = worked.request("OPTIONS", "/v1/resume/film", headers={"Origin": "https://tv.example"})
        assert "PUT" in preflight.headers["access-control-allow-methods"]


def test_workers_that_are_behind(single: Server, tmp_path: Path, prefix: str) -> None:
    with ApiProcess(single.url, tmp_path, prefix=prefix, resume_wait_ms=50) as api:
        token = player("ann")
        said = api.request("PUT", "/v1/resume/film", token=token, content='{"position": 600}')
        assert (said.status_code, said.json()) == (202, {"accepted": True})
        assert api.request("DELETE", "/v1/resume/film", token=token).status_code == 202
        assert api.get("/v1/resume/film", token=token).status_code == 404


@pytest.mark.parametrize(
    "fail", [Server.kill, lambda server: os.kill(server.pid, signal.SIGSTOP)], ids=["away", "stuck"]
)
def test_log_redis_away(single: Server, tmp_path: Path, prefix: str, fail: Callable[[Server], None]) -> None:
    """Reading is 503, soon; what is written is recorded all the same; decisions never notice."""
    log = Server(tmp_path / "log", VOLATILE)
    log.start()
    try:
        with ApiProcess(single.url, tmp_path, prefix=prefix, log_redis_url=log.url) as api:
            token = player("ann")
            assert api.get("/v1/resume", token=token).status_code == 200
            fail(log)
            for path in ("/v1/resume", "/v1/resume/f", "/v1/views"):
                began = time.monotonic()
                answer = api.get(path, token=token)
                assert time.monotonic() - began < 3
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable"), path
                assert "retry-after" in answer.headers
            for method, body in (("PUT", '{"position": 1}'), ("DELETE", "")):
                began = time.monotonic()
                answer = api.request(method, "/v1/resume/f", token=token, content=body)
                assert time.monotonic() - began < 4
                assert (answer.status_code, answer.json()) == (202, {"accepted": True})
            assert api.beat(token, "s", "d")["degraded"] is False
            with Redis.from_url(single.url) as client:
                assert client.xlen(Keys(prefix, PARTITIONS).account("ann").outbox) >= 2
    finally:
        if log.running:
            log.kill()


def test_a_cluster_without_a_log_redis(cluster: list[Server], tmp_path: Path, prefix: str) -> None:
    with ApiProcess(cluster[0].url, tmp_path, prefix=prefix) as api:
        for method, path, body in (
            ("GET", "/v1/resume", ""),
            ("PUT", "/v1/resume/f", '{"position": 1}'),
            ("GET", "/v1/views", ""),
        ):
            answer = api.request(method, path, token=player("ann"), content=body)
            assert answer.status_code == 503
            assert "PULSEGATE_LOG_REDIS_URL" in answer.json()["error"]["message"]
