"""View records: one a view, opened, seen, ended, reopened, adopted; found by account, content, session and time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fakeredis
import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from api.openapi import document
from engine.embedded import Server
from engine.events import Event
from engine.keys import Keys
from engine.viewings import CHUNK, EXAMINED_MAX, Asked, Viewings
from tests.harness import PARTITIONS, START, World
from tests.projecting import Fed, Pump, event, outbox_of, run
from tests.servers import ApiProcess, player, service, wait_for
from workers.consumer import DeadLetter
from workers.views import DAY_MS, Views

HOUR = 3600.0


@pytest.fixture(params=["fake", "single"])
def client(request: pytest.FixtureRequest) -> Iterator[Redis]:
    if request.param == "fake":
        yield fakeredis.FakeRedis(version=(7, 2))
        return
    with Redis.from_url(request.getfixturevalue("single").url) as real:
        yield real


@pytest.fixture
def fed(client: Redis, prefix: str) -> Fed:
    return Fed(client, prefix, Views)


def begin(t: float = 0, **said: Any) -> Event:
    return event("view_start", t, **({"started": t} | said))


def beat(t: float, position: float | None = None, **said: Any) -> Event:
    said.setdefault("watched_ms", int(t * 1000))
    data = {"state": "playing"} | ({} if position is None else {"position": position})
    return event("heartbeat", t, data=data, **said)


def end(
    t: float, reason: str = "stopped", *, seen: float | None = None, more: dict[str, Any] | None = None, **said: Any
) -> Event:
    seen = t if seen is None else seen
    data = {
        "reason": reason, "started_at": START, "last_seen_at": START + int(seen * 1000), "watched_ms": int(seen * 1000),
        "max_position": seen, "completed": False, "duration": 5400, "origin": "p",
    } | (more or {})  # fmt: skip
    return event("view_end", t, data=data, **said)


def records(fed: Fed) -> list[dict[str, Any]]:
    return sorted(fed.dump().values(), key=lambda item: (item["started_at"], item["account"], item["session"]))


def record(fed: Fed) -> dict[str, Any]:
    (only,) = records(fed)
    return dict(only)


def check_indexes(fed: Fed) -> None:
    """Every record stands in its three indexes, every running one in `open`, and nothing else stands anywhere."""
    client, space = fed.client, fed.space
    found = fed.dump()
    starts = {name: item["started_at"] for name, item in found.items()}

    def zset(*parts: str) -> dict[str, int]:
        members: Any = client.zrange(space.key(*parts), 0, -1, withscores=True)
        return {member.decode(): int(score) for member, score in members}

    for account in {item["account"] for item in found.values()}:
        own = {name.partition("\t")[2]: at for name, at in starts.items() if found[name]["account"] == account}
        assert zset("account", account) == own
    for content in {item["content"] for item in found.values()} | {"film", "other"}:
        assert zset("content", content) == {n: at for n, at in starts.items() if found[n]["content"] == content}
    everything: dict[str, int] = {}
    for partition in range(PARTITIONS):
        everything |= zset("all", str(partition))
    assert everything == starts
    assert zset("open") == {n: item["last_seen_at"] for n, item in found.items() if item["running"]}


class TestOneView:
    def test_from_start_to_end(self, fed: Fed) -> None:
        fed.feed(begin(), beat(10, 10), beat(20, 20), batch=1)
        running = record(fed)
        assert running == {
            "account": "a", "profile": None, "device": "d1", "session": "s1", "view": 1, "content": "film", "kind": "vod",
            "running": True, "started_at": START, "last_seen_at": START + 20_000, "ended_at": None,
            "estimated_end_at": None, "reason": None, "by": None, "rule": None, "watched_ms": 20_000, "max_position": 20.0,
            "duration": None, "completed": None, "revision": 0,
        }  # fmt: skip
        check_indexes(fed)
        fed.feed(end(50, "timeout", seen=20, more={"estimated_end_at": START + 25_000}))
        assert record(fed) == running | {
            "running": False, "ended_at": START + 50_000, "estimated_end_at": START + 25_000, "reason": "timeout",
            "completed": False, "duration": 5400.0,
        }  # fmt: skip
        check_indexes(fed)

    def test_who_took_its_place(self, fed: Fed) -> None:
        fed.feed(begin(), end(5, "evicted", more={"by": "s2", "rule": "streams", "completed": True}))
        assert {k: record(fed)[k] for k in ("by", "rule", "completed")} == {
            "by": "s2",
            "rule": "streams",
            "completed": True,
        }
        check_indexes(fed)

    def test_opened_at_first_sight(self, fed: Fed) -> None:
        """Its start was lost, or lies before the log's beginning."""
        fed.feed(beat(100, 700, started=90))
        assert (record(fed)["started_at"], record(fed)["max_position"]) == (START + 90_000, 700)
        check_indexes(fed)
        fed.feed(end(50, session="s2", started=20))
        assert [item["running"] for item in records(fed)] == [False, True]
        check_indexes(fed)

    def test_the_furthest_position_counts(self, fed: Fed) -> None:
        fed.feed(begin(), beat(10, 500), beat(20, 30), batch=1)
        assert record(fed)["max_position"] == 500

    def test_a_batch_writes_a_view_once(self, client: Redis, prefix: str) -> None:
        fed = Fed(client, prefix, Views).feed(begin())
        with client.pipeline() as pipe:
            pipe.multi()
            fed.consumer.handle([beat(n, n) for n in range(100)], pipe)
            assert len(pipe.command_stack) == 2

    def test_content_by_content(self, fed: Fed) -> None:
        fed.feed(
            begin(),
            beat(10),
            end(20, "content_changed"),
            begin(20, view=2, content="other"),
            beat(30, view=2, started=20, content="other"),
        )
        assert [(i["view"], i["content"], i["reason"]) for i in records(fed)] == [
            (1, "film", "content_changed"),
            (2, "other", None),
        ]
        check_indexes(fed)

    def test_a_session_id_that_comes_back_counts_from_one_again(self, fed: Fed) -> None:
        fed.feed(begin(), end(10), begin(HOUR), beat(HOUR + 10, started=HOUR))
        assert [item["running"] for item in records(fed)] == [False, True]
        check_indexes(fed)


class TestReopened:
    def test_is_the_same_view(self, fed: Fed) -> None:
        fed.feed(
            begin(),
            beat(10, 10),
            end(40, "timeout", seen=10),
            event("view_reopen", 60, revision=1, data={"reason": "timeout"}),
        )
        again = record(fed)
        assert (again["running"], again["revision"], again["reason"], again["ended_at"], again["completed"]) == (
            True,
            1,
            None,
            None,
            None,
        )
        check_indexes(fed)
        fed.feed(beat(70, 20), end(80, "stopped", seen=70, revision=1))
        assert {k: record(fed)[k] for k in ("revision", "reason", "watched_ms")} == {
            "revision": 1,
            "reason": "stopped",
            "watched_ms": 70_000,
        }
        check_indexes(fed)

    def test_an_end_of_before_changes_nothing(self, fed: Fed) -> None:
        reopened = event("view_reopen", 60, revision=1)
        fed.feed(begin(), end(40, "timeout", seen=10), reopened)
        before = record(fed)
        fed.feed(end(40, "timeout", seen=10))
        assert record(fed) == before
        fed.feed(reopened)
        assert record(fed) == before

    def test_without_anything_before(self, fed: Fed) -> None:
        fed.feed(event("view_reopen", 60, started=5, revision=2))
        assert (record(fed)["revision"], record(fed)["running"], record(fed)["started_at"]) == (2, True, START + 5_000)

    def test_history_after_the_end_is_history(self, fed: Fed) -> None:
        fed.feed(begin(), end(40, seen=30))
        before = record(fed)
        fed.feed(beat(35, 35), event("evidence", 36))
        assert record(fed) == before

    def test_ended_twice_the_fuller_end_counts(self, fed: Fed) -> None:
        """The session Redis had lost the first end, and the view went on."""
        fed.feed(begin(), end(40, "timeout", seen=10), end(100, "stopped", seen=100))
        assert record(fed)["reason"] == "stopped"
        fed.feed(end(120, "lost", seen=50))
        assert record(fed)["reason"] == "stopped"


class TestStrays:
    def test_evidence_opens_nothing(self, fed: Fed) -> None:
        fed.feed(event("evidence", 10, session="~born"))
        assert records(fed) == []
        fed.feed(begin(), event("evidence", 10, watched_ms=9000))
        assert (record(fed)["last_seen_at"], record(fed)["watched_ms"]) == (START + 10_000, 9000)

    def test_spooled_before_the_view_it_is_filed_under(self, fed: Fed) -> None:
        fed.feed(beat(10, 10, started=60), beat(15, 10, view=0))
        assert records(fed) == []

    def test_of_another_content(self, fed: Fed) -> None:
        fed.feed(begin(), beat(10, 4000, content="other"))
        assert (record(fed)["content"], record(fed)["max_position"], record(fed)["last_seen_at"]) == (
            "film",
            None,
            START,
        )

    def test_other_events(self, fed: Fed) -> None:
        fed.feed(event("block", 5), event("evict", 6), event("custom", 7), event("resume_set", 8, view=0))
        assert records(fed) == []

    @pytest.mark.parametrize("kind_of", ["heartbeat", "view_end", "session_linked"])
    def test_garbage_is_a_dead_letter(self, fed: Fed, kind_of: str) -> None:
        bad = event(kind_of, 5, session="s2", data={"position": "x", "reason": 7, "from": 8})
        with pytest.raises(DeadLetter) as caught:
            fed.feed(begin(), bad)
        assert caught.value.event is bad
        assert records(fed) == []


class TestAdopted:
    BORN = "~0123"

    @pytest.mark.parametrize("batch", [1, 100])
    def test_goes_on_under_the_player_s_session(self, fed: Fed, batch: int) -> None:
        linked = event("session_linked", 30, started=0, session="tv", data={"from": self.BORN}, watched_ms=30_000)
        fed.feed(
            begin(session=self.BORN, view=4), event("evidence", 20, session=self.BORN, view=4, watched_ms=20_000),
            linked, beat(40, 40, session="tv"), batch=batch,
        )  # fmt: skip
        only = record(fed)
        assert (only["session"], only["view"], only["started_at"]) == ("tv", 1, START)
        assert (only["watched_ms"], only["last_seen_at"]) == (40_000, START + 40_000)
        check_indexes(fed)
        before = fed.dump()
        fed.feed(linked)
        assert fed.dump() == before

    def test_takes_only_the_view_that_goes_on(self, fed: Fed) -> None:
        ended = [begin(session=self.BORN), end(10, session=self.BORN)]
        other = begin(session=f"{self.BORN}4")
        fed.feed(*ended, other, event("session_linked", 30, session="tv", data={"from": self.BORN}))
        assert sorted(item["session"] for item in records(fed)) == sorted([self.BORN, f"{self.BORN}4", "tv"])
        check_indexes(fed)

    def test_without_anything_to_adopt(self, fed: Fed) -> None:
        fed.feed(event("session_linked", 30, session="tv", data={"from": self.BORN}))
        assert record(fed)["session"] == "tv"


class TestKept:
    def test_tidy_forgets_what_is_over(self, client: Redis, prefix: str) -> None:
        fed = Fed(client, prefix, Views, views_keep_days=1)
        day = DAY_MS / 1000
        fed.feed(
            begin(),
            end(10),
            begin(5, session="on"),
            begin(day, account="b", started=day),
            end(day + 5, account="b", started=day),
        )
        fed.consumer.tidy(START + DAY_MS - 1)
        assert len(records(fed)) == 3
        fed.consumer.tidy(START + DAY_MS)
        assert [item["session"] for item in records(fed)] == ["on", "s1"]
        check_indexes(fed)
        fed.feed(end(day, session="on", started=5))
        fed.consumer.tidy(START + 2 * DAY_MS)
        assert records(fed) == []
        assert list(client.scan_iter(match=f"{prefix}:*views*")) in ([], [fed.keys.cursor("views", 1).encode()])

    def test_more_than_one_batch(self, client: Redis, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("workers.views.TIDY_BATCH", 3)
        fed = Fed(client, prefix, Views, views_keep_days=1)
        for n in range(20):
            fed.feed(begin(n, session=f"s{n}"), *([end(n, session=f"s{n}", started=n)] if n % 4 else []))
        fed.consumer.tidy(START + 3 * DAY_MS)
        assert [item["session"] for item in records(fed)] == [f"s{n}" for n in range(0, 20, 4)]

    @pytest.mark.parametrize("batch", [1, 3, 1_000])
    def test_an_account_keeps_its_newest(self, client: Redis, prefix: str, batch: int) -> None:
        """Zaps without end push out that account's own views."""
        fed = Fed(client, prefix, Views, views_keep=10)
        zaps = [begin(n, session=f"s{n}", started=n, content=f"invented-{n}") for n in range(1, 40)]
        fed.feed(begin(account="b"), end(1, account="b"))
        fed.feed(*zaps, batch=batch)
        check_indexes(fed)
        assert {item["session"] for item in records(fed)} == {"s1"} | {f"s{n}" for n in range(30, 40)}
        # What is told of one that went, older than all there are, brings it back no more.
        fed.feed(beat(50, session="s2", started=2, content="invented-2"), batch=batch)
        check_indexes(fed)
        assert len(records(fed)) == 11
        assert not list(client.scan_iter(match=f"{prefix}:*content:invented-2"))

    def test_erase(self, fed: Fed) -> None:
        fed.feed(begin(), begin(session="s2", content="other"), end(5), begin(account="b"))
        assert fed.erase("a") == 2
        assert [item["account"] for item in records(fed)] == ["b"]
        check_indexes(fed)

    def test_open_before(self, fed: Fed) -> None:
        views: Any = fed.consumer
        fed.feed(
            begin(), begin(session="s2"), begin(session="s3"), beat(20, session="s2"), beat(10, session="s3"), end(30)
        )
        assert [(i["session"], i["last_seen_at"] - START) for i in views.open_before(START + 21_000, 10)] == [
            ("s3", 10_000),
            ("s2", 20_000),
        ]
        assert [i["session"] for i in views.open_before(START + 20_000, 10)] == ["s3"]
        assert [i["session"] for i in views.open_before(START + 60_000, 1)] == ["s3"]


STEPS = st.lists(
    st.tuples(st.sampled_from(["start", "beat", "end", "reopen", "link"]), st.sampled_from(["s1", "s2"]), st.integers(1, 40)),
    max_size=25,
)  # fmt: skip


def told(steps: list[Any]) -> list[Event]:
    """Any sequence of events, sensible or not."""
    events, t = [], 0.0
    started: dict[str, float] = {}
    for step, session, wait in steps:
        t += wait
        if step in ("start", "link"):
            started[session] = t if step == "start" else started.get("s2", t)
        who: dict[str, Any] = {"session": session, "started": started.get(session, 0), "revision": wait % 3}
        if step == "end":
            events.append(end(t, **who))
        elif step == "beat":
            events.append(beat(t, t, **who))
        else:
            kind_of = {"start": "view_start", "reopen": "view_reopen", "link": "session_linked"}[step]
            events.append(event(kind_of, t, data={"from": "s2"} if step == "link" else {}, **who))
    return events


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS, st.integers(1, 10), st.sampled_from([2, 3, 5_000]))
def test_live_equals_replayed_and_indexes_fit(prefix: str, steps: list[Any], batch: int, keep: int) -> None:
    """However many are kept."""
    events = told(steps)
    client = fakeredis.FakeRedis(version=(7, 2))
    live = Fed(client, prefix, Views, 1, views_keep=keep).feed(*events, batch=batch)
    check_indexes(live)
    assert len(records(live)) <= keep
    assert Fed(client, prefix, Views, 2, views_keep=keep).feed(*events).dump() == live.dump()


def test_the_engine_s_own_events(world: World, prefix: str) -> None:
    """The backend first, then the player (one view); a time-out, reopened; a zap; a stop. As the scripts write it."""
    fed = Fed(fakeredis.FakeRedis(version=(7, 2)), prefix, Views)

    def rows() -> list[tuple[Any, ...]]:
        fed.feed(*outbox_of(world))
        check_indexes(fed)
        return [(i["session"], i["content"], i["running"], i["reason"], i["revision"]) for i in records(fed)]

    world.signal("d1", "film", "token")
    assert [row[1:] for row in rows()] == [("film", True, None, 0)]
    world.wait(5)
    world.beat("s1", "d1", "film", position=0)
    assert rows() == [("s1", "film", True, None, 0)]
    assert records(fed)[0]["started_at"] == START
    world.play(100, ("s1", "d1"))
    world.wait(601)
    world.sweep()
    assert rows() == [("s1", "film", False, "timeout", 0)]
    ended = records(fed)[0]
    assert ended["last_seen_at"] <= ended["estimated_end_at"] <= ended["ended_at"]
    world.beat("s1", "d1", "film")
    assert rows() == [("s1", "film", True, None, 1)]
    world.wait(10)
    world.beat("s1", "d1", "next", position=0)
    world.wait(10)
    world.stop("s1")
    assert rows() == [("s1", "film", False, "content_changed", 1), ("s1", "next", False, "stopped", 0)]


# Looking for them


class Found:
    """Pages of one search, each as the sessions found."""

    def __init__(self, url: str, prefix: str) -> None:
        self._url, self._keys = url, Keys(prefix, PARTITIONS)

    def pages(self, **asked: Any) -> list[list[str]]:
        return run(self._pages(asked))  # type: ignore[no-any-return]

    async def _pages(self, asked: dict[str, Any]) -> list[list[str]]:
        from redis.asyncio import Redis as Async

        async with Async.from_url(self._url) as log:
            found, cursor = [], ""
            while True:
                question = Asked(**({"end": START + 10 * DAY_MS, "limit": 3} | asked), cursor=cursor)
                items, more = await Viewings(log, self._keys).find(question)
                found.append([item["session"] for item in items])
                if more is None:
                    return found
                cursor = more


@pytest.fixture
def found(single: Server, prefix: str) -> Found:
    return Found(single.url, prefix)


@pytest.fixture
def real(single: Server, prefix: str) -> Iterator[Fed]:
    with Redis.from_url(single.url) as client:
        yield Fed(client, prefix, Views)


class TestSearch:
    def test_newest_first_page_by_page(self, real: Fed, found: Found) -> None:
        real.feed(*(begin(n, session=f"s{n}") for n in range(7)), begin(3, account="b", session="other"))
        assert found.pages(account="a") == [["s6", "s5", "s4"], ["s3", "s2", "s1"], ["s0"]]
        assert found.pages(account="nobody") == [[]]

    def test_exactly_full_pages(self, real: Fed, found: Found) -> None:
        real.feed(*(begin(n, session=f"s{n}") for n in range(6)))
        assert found.pages(account="a") == [["s5", "s4", "s3"], ["s2", "s1", "s0"]]

    def test_the_same_moment(self, real: Fed, found: Found) -> None:
        real.feed(*(begin(5, session=f"s{n:04}") for n in range(2 * CHUNK + 7)))
        sessions = [session for page in found.pages(account="a", limit=60) for session in page]
        assert sessions == [f"s{n:04}" for n in reversed(range(2 * CHUNK + 7))]
        assert [s for page in found.pages(limit=60) for s in page] == sessions

    def test_over_all_partitions(self, real: Fed, found: Found) -> None:
        real.feed(*(begin(n // 5, account=f"a{n}", session=f"s{n}") for n in range(100)))
        sessions = [session for page in found.pages(limit=7) for session in page]
        assert sorted(sessions) == sorted(f"s{n}" for n in range(100))
        starts = [int(session[1:]) // 5 for session in sessions]
        assert starts == sorted(starts, reverse=True)
        assert found.pages(content="film", limit=100) == [sessions]

    def test_a_span_of_time(self, real: Fed, found: Found) -> None:
        real.feed(*(begin(n, session=f"s{n}") for n in range(7)))
        for source in ({}, {"account": "a"}, {"content": "film"}):
            assert found.pages(start=START + 2000, end=START + 5000, **source) == [["s4", "s3", "s2"]]

    def test_by_session_and_content(self, real: Fed, found: Found) -> None:
        for n in range(4):
            real.feed(begin(10 * n, session=f"s{n % 2}", view=n + 1, content=("film", "other")[n // 2]))
        assert found.pages(account="a", session="s1") == [["s1", "s1"]]
        assert found.pages(account="a", content="other") == [["s1", "s0"]]
        assert found.pages(account="a", session="s") == [[]]

    def test_looks_at_so_many_and_no_more(self, real: Fed, found: Found) -> None:
        real.feed(*(begin(n / 1000, session=f"s{n}") for n in range(EXAMINED_MAX + 2 * CHUNK)))
        assert found.pages(account="a", session="s3") == [[], ["s3"]]


@pytest.fixture
def api(single: Server, tmp_path: Path, prefix: str) -> Iterator[ApiProcess]:
    with ApiProcess(single.url, tmp_path, prefix=prefix) as process:
        yield process


def validate(value: Any) -> None:
    schema = {"$ref": "#/components/schemas/Views", "components": document()["components"]}
    jsonschema_rs.Draft202012Validator(schema).validate(value)


class TestRoute:
    def test_from_heartbeat_to_record(self, api: ApiProcess, real: Fed) -> None:
        token = player("ann")
        with Pump(real):
            api.beat(token, "s1", "tv", position=100, seq=0)
            api.beat(token, "s1", "tv", position=101, seq=1)
            api.beat(token, "s1", "tv", "next", position=0, seq=2)
            assert api.post("/v1/sessions/s1/stop", token=token).status_code == 204

            def over() -> Any:
                said = api.get("/v1/views", token=token).json()
                return said if [i["running"] for i in said["items"]] == [False, False] else None

            said = wait_for(over, "both views are over")
        validate(said)
        assert [(i["view"], i["content"], i["reason"]) for i in said["items"]] == [
            (2, "next", "stopped"),
            (1, "film", "content_changed"),
        ]
        assert api.get("/v1/views?session=s1&content=film", token=token).json()["items"] == said["items"][1:]
        check_indexes(real)

    def test_who_may_ask_for_what(self, api: ApiProcess, real: Fed) -> None:
        real.feed(begin(account="ann"), begin(account="ben", session="s2"))

        def sessions(query: str, token: str) -> Any:
            answer = api.get(f"/v1/views{query}", token=token)
            if answer.status_code != 200:
                return answer.status_code, answer.json()["error"]["field"]
            validate(answer.json())
            return sorted(item["session"] for item in answer.json()["items"])

        reader = service("read")
        assert sessions("", player("ann")) == ["s1"]
        assert sessions("?content=film", player("ann")) == ["s1"]
        assert sessions("?account=ben", player("ann")) == (403, "account")
        assert sessions("?account=ben", reader) == ["s2"]
        assert sessions("?content=film", reader) == ["s1", "s2"]
        assert sessions("?account=ben", service("signals")) == (403, "authorization")
        assert sessions("", reader) == (400, "from")
        assert sessions(f"?from={START - 1000}&to={START - 1000 + DAY_MS}", reader) == ["s1", "s2"]
        assert sessions(f"?from={START}&to={START + DAY_MS + 1}", reader) == (400, "from")
        assert sessions(f"?from={START + 1}", player("ann")) == []

    @pytest.mark.parametrize(
        "query", ["limit=0", "limit=501", "from=-1", "to=x", "cursor=YQ", "session=%0a", "content=%00"]
    )
    def test_bad_queries(self, api: ApiProcess, query: str) -> None:
        answer = api.get(f"/v1/views?{query}", token=player("ann"))
        assert (answer.status_code, answer.json()["error"]["field"]) == (400, query.partition("=")[0])
