"""Trending lists, streams of them, audiences and the catalogue, as a caller meets them; planted data on real servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from api import streams
from api.streams import Reader, Streams
from engine import audience, catalogue
from engine.audience import MINUTES, RING_S, Audiences, Series, member, record, series
from engine.catalogue import Catalogue, Content
from engine.embedded import VOLATILE, Server
from engine.errors import BadRequest, Unavailable
from engine.keys import Keys
from engine.metrics import Metrics
from engine.published import ITEMS_MAX, LISTS_MAX, Listed, Published
from engine.router import connect
from engine.settings import Settings
from engine.viewers import COARSE_MS, FINE_MS
from tests.harness import PARTITIONS, START
from tests.servers import SECRET, ApiProcess, issue, player, service, wait_for

MINUTE = START // 60_000
FORMULA = {"name": "surprise", "k": 10}


SHARED = "audience"


@pytest.fixture
def keys(request: pytest.FixtureRequest, prefix: str) -> Keys:
    """The keys of the test's deployment: its own, or that of the API which most tests share."""
    return Keys(SHARED if "api" in request.fixturenames else prefix, PARTITIONS)


@pytest.fixture
def log(single: Server) -> Iterator[Redis]:
    """The log Redis."""
    with Redis.from_url(single.url) as client:
        yield client


@pytest.fixture(scope="module")
def shared(single: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    with ApiProcess(single.url, tmp_path_factory.mktemp("shared"), prefix=SHARED, log_level="debug") as process:
        yield process


@pytest.fixture
def api(shared: ApiProcess, log: Redis) -> ApiProcess:
    """The shared one, before the first list and knowing nothing of any content."""
    keys = Keys(SHARED, PARTITIONS)
    log.delete(*(list(log.scan_iter(f"{SHARED}:{{trending}}:*")) or ["none"]))
    log.publish(keys.published, 0)

    def published(query: str) -> int | None:
        answer = shared.get(f"/v1/trending?{query}", token=player("ann"))
        at: int | None = answer.json()["published_at"]
        return at

    queries = ("kind=live", "kind=vod", "kind=vod&rank=popular")
    wait_for(lambda: {published(query) for query in queries} == {None}, "it has forgotten", every_s=0.01)
    return shared


@pytest.fixture(scope="module")
def on_cluster(single: Server, cluster: list[Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    """One whose sessions are on a cluster."""
    directory = tmp_path_factory.mktemp("contents")
    with ApiProcess(cluster[0].url, directory, prefix="contents", log_redis_url=single.url) as process:
        yield process


def item(content: str, score: float = 5.0, **more: Any) -> dict[str, Any]:
    return {
        "content": content, "observed": 60.0, "expected": 20.0, "score": score, "concurrent": 61, "distinct": 70, "since": START,
    } | more  # fmt: skip


def document(name: tuple[str, str, str], at: int, *items: dict[str, Any]) -> dict[str, Any]:
    kind, rank, provider = name
    head = {"kind": kind, "rank": rank, "provider": provider or None}
    return head | {"published_at": at, "formula": FORMULA, "items": list(items)}


def publish(log: Redis, keys: Keys, at: int, lists: dict[tuple[str, str, str], list[dict[str, Any]]]) -> None:
    """As the tenure does it: all lists at once."""
    with log.pipeline() as pipe:
        for name, items in lists.items():
            pipe.set(keys.trending_list(*name), json.dumps(document(name, at, *items)))
        pipe.publish(keys.published, at)
        pipe.execute()


LIVE, VOD, POPULAR = ("live", "trending", ""), ("vod", "trending", ""), ("vod", "popular", "")


class TestSeries:
    """The ring of minutes."""

    def test_a_ring_gives_back_what_was_written_and_knows_a_slot_of_an_earlier_turn(
        self, log: Redis, keys: Keys
    ) -> None:
        for minute, count in ((MINUTE - 400, 9), (MINUTE - 3, 7), (MINUTE - 1, 5)):
            record(log, keys, minute, {member("live", "a"): count})
        stored = log.get(keys.series("live", "a"))
        assert isinstance(stored, bytes)
        assert len(stored) <= MINUTES * 6
        ring = Series(stored)
        # The slot of 400 minutes ago is that of 40 minutes ago, which nobody wrote.
        assert [ring.at(MINUTE - back) for back in (3, 2, 1, 0, 40, 400)] == [7, None, 5, None, None, 9]
        assert RING_S - 400 < int(log.ttl(keys.series("live", "a"))) <= RING_S  # type: ignore[arg-type]
        assert 86_000 < int(log.ttl(keys.series())) <= 86_400  # type: ignore[arg-type]

    def test_a_whole_turn_overwrites_the_one_before(self, log: Redis, keys: Keys) -> None:
        for minute in range(MINUTE - MINUTES - 5, MINUTE + 1):
            record(log, keys, minute, {member("vod", "a"): minute % 1000 + 1})
        ring = Series(log.get(keys.series("vod", "a")))  # type: ignore[arg-type]
        assert [ring.at(MINUTE - back) for back in range(MINUTES)] == [
            (MINUTE - back) % 1000 + 1 for back in range(MINUTES)
        ]
        assert ring.at(MINUTE - MINUTES) is None

    def test_the_format_is_what_it_is_said_to_be(self, log: Redis, keys: Keys) -> None:
        record(log, keys, MINUTE, {member("vod", "a", "p"): 2**33})
        stored = log.get(keys.series("vod", "a"))
        begin = MINUTE % 360 * 6
        assert stored[begin:] == struct.pack(">HI", MINUTE % 65_536, 2**32 - 1)  # type: ignore[index]

    def test_providers_are_added_up_and_zeros_are_not_written(self, log: Redis, keys: Keys) -> None:
        totals = {member("vod", "a"): 1, member("vod", "a", "p"): 2, member("live", "a"): 4, member("vod", "b"): 0}
        assert record(log, keys, MINUTE, totals) == 3
        found = [
            Series(log.get(keys.series(*of))).at(MINUTE) for of in (("vod", "a"), ("live", "a"), ("vod", "b"), ("", ""))
        ]  # type: ignore[arg-type]
        assert found == [3, 4, None, 7]

    def test_more_rings_than_one_call_takes(self, log: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(audience, "_RINGS_A_CALL", 3)
        assert record(log, keys, MINUTE, {member("live", f"c{n}"): n for n in range(1, 8)}) == 8
        assert [Series(log.get(keys.series("live", f"c{n}"))).at(MINUTE) for n in range(1, 8)] == list(range(1, 8))  # type: ignore[arg-type]

    def test_nobody_is_zero_and_not_measured_is_null(self) -> None:
        def ring(*minutes: tuple[int, int]) -> Series:
            slots = bytearray(MINUTES * 6)
            for minute, count in minutes:
                slots[audience.offset(minute) : audience.offset(minute) + 6] = audience.slot(minute, count)
            return Series(bytes(slots))

        def last(found: list[dict[str, int | None]], n: int) -> list[int | None]:
            return [each["concurrent"] for each in found[-n:]]

        now = MINUTE * 60_000 + 30_000
        of, every = ring((MINUTE - 1, 8)), ring((MINUTE - 3, 1), (MINUTE - 1, 20))
        found = series([of, Series(None)], every, now)
        # The current minute is not written yet.
        assert (len(found), found[0]["at"], found[-1]["at"]) == (359, (MINUTE - 359) * 60_000, (MINUTE - 1) * 60_000)
        assert last(found, 4) == [None, 0, None, 8]
        assert last(series([of, of], ring((MINUTE, 20), (MINUTE - 1, 20)), now), 2) == [16, 0]
        # Nobody writes the sum: what is not there is nobody.
        assert last(series([of], Series(None), now), 3) == [0, 0, 8]
        assert Series(b"short").at(MINUTE) is None


class TestCatalogue:
    def told(self, single: Server, keys: Keys, *contents: Content) -> tuple[int, dict[str, catalogue.Entry | None]]:
        async def go() -> tuple[int, dict[str, catalogue.Entry | None]]:
            client: Any = await connect(single.url)
            known = Catalogue(client, keys)
            changed = await known.say(contents)
            found = {each.content: await known.get(each.content) for each in contents}
            await client.aclose()
            return changed, found

        return asyncio.run(go())

    def test_what_is_left_out_stays_and_null_forgets(self, single: Server, keys: Keys, log: Redis) -> None:
        first = Content("a", kind="vod", title='Über "A" / 1', runtime=5400.5, provider="p", hidden=True)
        full = catalogue.Entry("vod", 'Über "A" / 1', 5400.5, "p", True)
        assert self.told(single, keys, first) == (1, {"a": full})
        assert self.told(single, keys, first)[0] == 0
        changed = catalogue.Entry("vod", "B", 0.0, "p", False)
        assert self.told(single, keys, Content("a", title="B", runtime=None, hidden=False)) == (1, {"a": changed})
        assert log.get(keys.contents_version) == b"2"
        assert self.told(single, keys, Content("a", remove=True), Content("b")) == (
            2,
            {"a": None, "b": catalogue.Entry()},
        )

    def test_in_a_list_the_later_counts(self, single: Server, keys: Keys) -> None:
        said = [Content("a", title="1"), Content("a", remove=True), Content("a", runtime=60), Content("a", title="2")]
        assert self.told(single, keys, *said)[1] == {"a": catalogue.Entry(title="2", runtime=60.0)}

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({}, "content"),
            ({"content": ""}, "content"),
            ({"content": "a\n"}, "content"),
            ({"content": "a", "kind": "film"}, "kind"),
            ({"content": "a", "title": "x" * 513}, "title"),
            ({"content": "a", "runtime": 0}, "runtime"),
            ({"content": "a", "runtime": "90 min"}, "runtime"),
            ({"content": "a", "provider": "p\t"}, "provider"),
            ({"content": "a", "hidden": 1}, "hidden"),
            ({"content": "a", "remove": "yes"}, "remove"),
            ([{"content": "a"}, {"content": "b", "runtime": -1}], "[1].runtime"),
            ([{"content": "a"}, {"title": "b"}], "[1].content"),
            ([{"content": "a"}, {"content": "b\x7f"}], "[1].content"),
            ([{"content": "a"}, 7], "[1]"),
            ([{"content": str(n)} for n in range(1_001)], "body"),
            ("a", "body"),
        ],
    )
    def test_a_bad_item_is_named_by_field_and_index(self, body: Any, field: str) -> None:
        with pytest.raises(BadRequest) as caught:
            catalogue.read(json.dumps(body).encode())
        assert caught.value.field == field

    def test_the_most_and_odd_but_good_ones_are_read(self) -> None:
        assert len(catalogue.read(json.dumps([{"content": str(n)} for n in range(1_000)]).encode())) == 1_000
        title = "family \U0001f468\u200d\U0001f469\u200d\U0001f467, \u200fעברית"
        assert catalogue.read(json.dumps({"content": "a", "title": title, "season": 3}).encode())[0].title == title
        assert catalogue.read(b"[]") == []


class TestAudience:
    """Counts, from planted totals, rings and HyperLogLogs; the session Redis may be a cluster."""

    @pytest.fixture(params=["single", "cluster"])
    def session(self, request: pytest.FixtureRequest) -> str:
        servers = request.getfixturevalue(request.param)
        return str((servers if request.param == "single" else servers[0]).url)

    def asked(self, session: str, single: Server, keys: Keys, *asks: tuple[str, str], **plant: list[str]) -> list[Any]:
        """What is answered, after these accounts were counted: HyperLogLog → accounts."""

        async def go() -> list[Any]:
            client: Any = await connect(session)
            log: Any = await connect(single.url)
            for name, accounts in plant.items():
                await client.pfadd(name, *accounts)
            audiences = Audiences(client, log, keys, clock=lambda: START / 1000)
            found = [await audiences.of(*ask) for ask in asks]
            await client.aclose()
            await log.aclose()
            return found

        return asyncio.run(go())

    def test_now_is_the_sum_over_kinds_and_providers(
        self, session: str, single: Server, keys: Keys, log: Redis
    ) -> None:
        counts = {
            member("live", "a"): 3, member("live", "a", "p:1"): 4, member("vod", "a", "p:2"): 5, member("", "a"): 1, member("live", "b"): 9,
            member("vod", "a", "p:1"): -1,
        }  # fmt: skip
        log.hset(keys.totals, mapping=counts)  # type: ignore[arg-type]
        log.sadd(keys.providers, "", "p:1", "p:2")
        log.hset(keys.contents, "a", json.dumps({"title": "A"}))
        every, live, b = self.asked(session, single, keys, ("a", ""), ("a", "live"), ("b", ""))
        assert (every["concurrent"], every["by_kind"]) == (12, {"live": 7, "vod": 4, "unknown": 1})
        assert (every["content"], every["title"], every["kind"]) == ("a", "A", None)
        assert (live["concurrent"], live["by_kind"], live["kind"]) == (7, {"live": 7}, "live")
        assert (b["concurrent"], b["title"]) == (9, None)

    def test_distinct_viewers_are_the_union_of_a_windows_buckets(
        self, session: str, single: Server, keys: Keys
    ) -> None:
        fine, coarse = START // FINE_MS, START // COARSE_MS
        plant = {
            keys.viewers("a", "5m", fine): ["ann", "bob"],
            keys.viewers("a", "5m", fine - 1): ["bob", "cid"],
            keys.viewers("a", "5m", fine - 2): ["dan"],
            keys.viewers("a", "5m", fine - 12): ["eve"],
            keys.viewers("a", "5m", fine - 13): ["late"],
            keys.viewers("a", "1h", coarse): ["ann", "bob", "cid", "dan"],
            keys.viewers("a", "1h", coarse - 24): ["fay"],
            keys.viewers("a", "1h", coarse - 25): ["late"],
            keys.viewers("b", "5m", fine): ["other"],
        }
        found = self.asked(session, single, keys, ("a", ""), **plant)[0]
        assert found["distinct"] == {"5m": 3, "1h": 5, "24h": 5}

    def test_the_series_adds_up_the_kinds(self, session: str, single: Server, keys: Keys, log: Redis) -> None:
        record(log, keys, MINUTE - 1, {member("live", "a"): 3, member("vod", "a", "p"): 4, member("vod", "b"): 5})
        record(log, keys, MINUTE, {member("vod", "b"): 5})
        every, live = self.asked(session, single, keys, ("a", ""), ("a", "live"))
        assert len(every["series"]) == MINUTES
        assert every["series"][-3:] == [
            {"at": (MINUTE - 2) * 60_000, "concurrent": None},
            {"at": (MINUTE - 1) * 60_000, "concurrent": 7},
            {"at": MINUTE * 60_000, "concurrent": 0},
        ]
        assert [each["concurrent"] for each in live["series"][-2:]] == [3, 0]

    def test_of_what_nobody_watches_there_are_zeros(self, session: str, single: Server, keys: Keys) -> None:
        found = self.asked(session, single, keys, ("nothing {of} it", ""))[0]
        assert (found["concurrent"], found["distinct"]) == (0, {"5m": 0, "1h": 0, "24h": 0})
        assert {each["concurrent"] for each in found["series"]} == {0}

    def test_distinct_viewers_are_counted_seldom_however_many_ask(self, single: Server, keys: Keys) -> None:
        async def go() -> tuple[list[int], int]:
            client: Any = await connect(single.url)
            moment = 0.0
            asked = Audiences(client, client, keys, lambda: START / 1000, lambda: moment)
            key, found = keys.viewers("a", "5m", START // FINE_MS), []
            calls = (await client.info("commandstats")).get("cmdstat_pfcount", {"calls": 0})["calls"]
            for account in ("ann", "bob"):
                await client.pfadd(key, account)
                answers = await asyncio.gather(*(asked.of("a") for _ in range(20)))
                found.append(answers[-1]["distinct"]["5m"])
            moment = audience.DISTINCT_S + 0.1
            found.append((await asked.of("a"))["distinct"]["5m"])
            after = (await client.info("commandstats"))["cmdstat_pfcount"]["calls"]
            await client.aclose()
            return found, after - calls

        assert asyncio.run(go()) == ([1, 1, 2], 6)

    def test_without_a_log_redis_nothing_is_known(self, single: Server, keys: Keys) -> None:
        async def go() -> None:
            client: Any = await connect(single.url)
            try:
                for call in (
                    Audiences(client, None, keys).of("a"),
                    Published(None, keys).get(*LIVE),
                    Catalogue(None, keys).get("a"),
                ):
                    with pytest.raises(Unavailable, match="LOG_REDIS_URL"):
                        await call
            finally:
                await client.aclose()

        asyncio.run(go())


class TestPublished:
    def test_providers_lists_come_and_go_and_are_bounded(self, single: Server, keys: Keys, log: Redis) -> None:
        async def go() -> None:
            client: Any = await connect(single.url)
            now = 0.0
            published = Published(client, keys, lambda: now)
            publish(log, keys, 1, {("vod", "trending", "p"): [item("a")]})
            one = await published.get("vod", "trending", "p")
            assert [each["content"] for each in json.loads(one.encoded())["items"]] == ["a"]
            heard: list[int] = []
            kept = published.listen(await published.get("vod", "trending", "heard"), lambda: heard.append(1))
            for n in range(LISTS_MAX + 50):
                now += 0.1
                await published.get("vod", "trending", f"p{n}")
            assert len(published._lists) == LISTS_MAX
            assert await published.get("vod", "trending", "heard") is kept
            # Asked for again, it is read anew.
            assert (await published.get("vod", "trending", "p")).published_at == 1
            publish(log, keys, 2, {("vod", "trending", "p"): [item("b")], kept.name: [item("c")]})
            now += 1000
            await published.refresh()
            assert set(published._lists) == {LIVE, VOD, POPULAR, kept.name}
            assert (len(heard), kept.published_at) == (1, 2)
            await client.aclose()

        asyncio.run(go())

    def test_a_list_that_cannot_be_read_leaves_the_one_before(self, single: Server, keys: Keys, log: Redis) -> None:
        async def go() -> list[Any]:
            client: Any = await connect(single.url)
            published, found = Published(client, keys), []
            publish(log, keys, 1, {LIVE: [item("a")]})
            for broken in (None, "{", "[]", '{"items":[7]}', '{"items":[{}]}'):
                if broken is not None:
                    log.set(keys.trending_list(*LIVE), broken)
                await published.refresh()
                found.append(json.loads((await published.get(*LIVE)).encoded())["published_at"])
            await client.aclose()
            return found

        assert asyncio.run(go()) == [1, 1, 1, 1, 1]


class TestLists:
    """`GET /v1/trending`."""

    def listed(self, api: ApiProcess, query: str = "kind=live", **kwargs: Any) -> dict[str, Any]:
        answer = api.get(f"/v1/trending?{query}", token=player("ann"), **kwargs)
        assert answer.status_code == 200, answer.text
        assert answer.headers["cache-control"] == "no-store"
        return dict(answer.json())

    def contents(self, api: ApiProcess, query: str = "kind=live") -> list[str]:
        return [each["content"] for each in self.listed(api, query)["items"]]

    def test_a_published_list_with_titles_and_its_formula(self, api: ApiProcess, keys: Keys, log: Redis) -> None:
        empty = self.listed(api, "kind=vod&rank=popular")
        assert empty == {
            "kind": "vod", "rank": "popular", "provider": None, "published_at": None, "formula": None, "items": [], "next": None,
        }  # fmt: skip
        said = [{"content": "a", "title": "The A"}, {"content": "b", "runtime": 60}]
        assert api.post("/v1/contents", token=service("admin"), json=said).json() == {"accepted": 2}
        publish(log, keys, START, {LIVE: [item("a", 9.0), item("b", 4.0)], VOD: [item("c")], POPULAR: [item("d")]})
        wait_for(lambda: self.contents(api) == ["a", "b"], "the list is there", every_s=0.01)
        found = self.listed(api)
        assert found == document(LIVE, START, item("a", 9.0) | {"title": "The A"}, item("b", 4.0) | {"title": None}) | {
            "next": None
        }
        assert [self.contents(api, query) for query in ("kind=vod", "kind=vod&rank=popular")] == [["c"], ["d"]]

    def test_as_many_as_asked_for(self, api: ApiProcess, keys: Keys, log: Redis) -> None:
        publish(log, keys, START, {LIVE: [item(f"c{n}") for n in range(150)]})
        wait_for(lambda: self.contents(api), "the list is there")
        lengths = [len(self.contents(api, f"kind=live{more}")) for more in ("", "&limit=1", "&limit=100")]
        assert lengths == [20, 1, ITEMS_MAX]

    def test_hidden_content_never_shows(self, api: ApiProcess, keys: Keys, log: Redis) -> None:
        publish(log, keys, START, {LIVE: [item("a"), item("b")], ("live", "trending", "p"): [item("a")]})
        wait_for(lambda: self.contents(api) == ["a", "b"], "the list is there")
        assert self.contents(api, "kind=live&provider=p") == ["a"]
        for hidden, left in ((True, ["b"]), (False, ["a", "b"])):
            api.post("/v1/contents", token=service("admin"), json={"content": "a", "hidden": hidden})
            # At once where it was said.
            assert self.contents(api) == left
            assert self.contents(api, "kind=live&provider=p") == ["a"] * (not hidden)

    def test_a_change_said_elsewhere_is_heard(self, api: ApiProcess, single: Server, tmp_path: Path, keys: Keys, log: Redis) -> None:  # fmt: skip
        publish(log, keys, START, {LIVE: [item("a"), item("b")]})
        with ApiProcess(single.url, tmp_path, prefix=SHARED) as other:
            wait_for(lambda: self.contents(api) == ["a", "b"], "the list is there")
            other.post("/v1/contents", token=service("admin"), json={"content": "b", "hidden": True})
            wait_for(lambda: self.contents(api) == ["a"], "the other process has heard", 3, every_s=0.01)

    def test_by_provider(self, api: ApiProcess, keys: Keys, log: Redis) -> None:
        publish(log, keys, START, {LIVE: [item("a"), item("b")], ("live", "trending", "a:b"): [item("b")]})
        one = self.listed(api, "kind=live&provider=a:b")
        assert (one["provider"], [each["content"] for each in one["items"]]) == ("a:b", ["b"])
        publish(log, keys, START + 1, {("live", "trending", "a:b"): [item("c")]})
        wait_for(lambda: self.contents(api, "kind=live&provider=a:b") == ["c"], "it is kept up to date", 3)
        nothing = self.listed(api, "kind=live&provider=nobody")
        assert (nothing["items"], nothing["published_at"], nothing["provider"]) == ([], None, "nobody")

    @pytest.mark.parametrize(
        ("query", "field"),
        [
            ("", "kind"), ("kind=", "kind"), ("kind=film", "kind"), ("kind=live&rank=best", "rank"), ("kind=live&rank=popular", "rank"),
            ("kind=vod&limit=0", "limit"), ("kind=vod&limit=101", "limit"), ("kind=vod&limit=x", "limit"),
            ("kind=vod&provider=%0A", "provider"), (f"kind=vod&provider={'p' * 129}", "provider"),
        ],
    )  # fmt: skip
    def test_bad_questions_name_the_field(self, shared: ApiProcess, query: str, field: str) -> None:
        for path in ("/v1/trending", "/v1/trending/stream"):
            answer = shared.get(f"{path}?{query}", token=player("ann"))
            assert (answer.status_code, answer.json()["error"]["field"]) == (400, field)

    def test_who_may_ask(self, shared: ApiProcess) -> None:
        reads = ["/v1/trending?kind=live", "/v1/contents/a/audience", "/v1/contents/a"]
        for path in reads:
            codes = [shared.get(path, token=token).status_code for token in ("", "x", service("signals"))]
            assert codes == [401, 401, 403]
            for token in (player("ann"), service("read"), service("admin")):
                assert shared.get(path, token=token).status_code in (200, 404)
        for token, code in (
            ("", 401),
            (player("ann"), 403),
            (service("read", "signals"), 403),
            (service("admin"), 200),
        ):
            assert shared.post("/v1/contents", token=token, json=[]).status_code == code

    def test_the_last_list_stays_while_the_log_redis_is_away(self, single: Server, tmp_path: Path, prefix: str, keys: Keys) -> None:  # fmt: skip
        server = Server(tmp_path / "log", VOLATILE)
        url = server.url
        with ApiProcess(single.url, tmp_path, prefix=prefix, log_redis_url=url) as api:
            # It was never there.
            never = api.get("/v1/trending?kind=live", token=player("ann"))
            assert (never.status_code, never.json()["error"]["code"]) == (503, "unavailable")
            assert int(never.headers["retry-after"]) >= 1
            assert api.get("/v1/trending/stream?kind=live", token=player("ann")).status_code == 503
            server.start()
            with Redis.from_url(url) as log:
                publish(log, keys, START, {LIVE: [item("a")]})
            wait_for(
                lambda: api.get("/v1/trending?kind=live", token=player("ann")).status_code == 200, "it has come back"
            )
            wait_for(lambda: self.listed(api)["published_at"] == START, "it was read")
            server.kill()
            for _ in range(3):
                assert (self.listed(api)["published_at"], self.contents(api)) == (START, ["a"])
            assert api.get("/v1/trending?kind=live&provider=new", token=player("ann")).status_code == 503
            assert api.get("/v1/contents/a/audience", token=player("ann")).status_code == 503
            server.start()
            with Redis.from_url(url) as log:
                publish(log, keys, START + 1, {LIVE: [item("b")]})
                wait_for(lambda: self.contents(api) == ["b"], "it is followed again")
                # By the channel, not by looking every few seconds.
                wait_for(lambda: log.pubsub_numsub(keys.published)[0][1] == 1, "it listens")
            server.stop()


class Events:
    """A reader of a stream, as a browser's."""

    def __init__(self, api: ApiProcess, query: str, **kwargs: Any) -> None:
        self._client = httpx.Client(base_url=api.base, timeout=10, trust_env=False)
        self.answer = self._client.send(
            self._client.build_request("GET", f"/v1/trending/stream?{query}", **kwargs), stream=True
        )
        self._lines = self.answer.iter_lines()

    def next(self) -> dict[str, str]:
        """The fields of the next event. Raises StopIteration at the end of the stream."""
        found: dict[str, str] = {}
        while "data" not in found:
            line = next(self._lines)
            name, _, value = line.partition(": ")
            if name in ("event", "id", "data"):
                found[name] = value
        return found

    def contents(self) -> list[str]:
        return [each["content"] for each in json.loads(self.next()["data"])["items"]]

    def rest(self) -> list[str]:
        return [line for line in self._lines if line.startswith("data")]

    def close(self) -> None:
        self.answer.close()
        self._client.close()

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *why: object) -> None:
        self.close()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def counted(api: ApiProcess, name: str) -> float:
    samples = [s for f in text_string_to_metric_families(api.get("/metrics").text) for s in f.samples]
    return sum(sample.value for sample in samples if sample.name == name)


class TestStream:
    """`GET /v1/trending/stream`."""

    def test_each_list_as_it_is_published(self, api: ApiProcess, keys: Keys, log: Redis) -> None:
        publish(log, keys, START, {LIVE: [item("a")], VOD: [item("x")]})
        wait_for(lambda: api.get("/v1/trending?kind=live", token=player("ann")).json()["items"], "the list is there")
        with Events(api, "kind=live", headers=bearer(player("ann"))) as events:
            assert events.answer.headers["content-type"].startswith("text/event-stream")
            assert events.answer.headers["x-accel-buffering"] == "no"
            first = events.next()
            assert (first["event"], first["id"]) == ("trending", str(START))
            assert json.loads(first["data"]) == api.get("/v1/trending?kind=live", token=player("ann")).json()
            for n in (1, 2):
                publish(log, keys, START + n, {LIVE: [item(f"a{n}")], VOD: [item("x")]})
                event = events.next()
                assert (event["id"], json.loads(event["data"])["items"][0]["content"]) == (str(START + n), f"a{n}")
            # A content is hidden after the list was made: the same list again, without it.
            api.post("/v1/contents", token=service("admin"), json={"content": "a2", "hidden": True})
            event = events.next()
            assert (event["id"], json.loads(event["data"])["items"]) == (str(START + 2), [])
            assert counted(api, "pulsegate_stream_readers") == 1
        wait_for(lambda: counted(api, "pulsegate_stream_readers") == 0, "it has left")
        assert counted(api, "pulsegate_slow_readers_total") == 0

    def test_before_the_first_list_and_of_one_provider(self, api: ApiProcess, keys: Keys, log: Redis) -> None:
        with Events(api, "kind=vod&rank=popular&provider=p&limit=1", headers=bearer(service("read"))) as events:
            assert events.answer.status_code == 200
            publish(log, keys, START, {POPULAR: [item("a")], ("vod", "popular", "p"): [item("b"), item("c")]})
            assert events.contents() == ["b"]

    def test_who_connects_again_is_not_told_twice(self, api: ApiProcess, keys: Keys, log: Redis) -> None:
        publish(log, keys, START, {LIVE: [item("a")]})
        wait_for(lambda: api.get("/v1/trending?kind=live", token=player("ann")).json()["items"], "the list is there")
        headers = bearer(player("ann"))
        with (
            Events(api, "kind=live", headers=headers | {"Last-Event-ID": str(START)}) as known,
            Events(api, "kind=live", headers=headers | {"Last-Event-ID": "7x"}) as strange,
        ):
            assert strange.contents() == ["a"]
            publish(log, keys, START + 1, {LIVE: [item("b")]})
            assert known.contents() == ["b"]

    def test_the_token_may_be_in_the_query_and_no_log_has_it(self, api: ApiProcess, keys: Keys, log: Redis) -> None:
        token = player("ann")
        publish(log, keys, START, {LIVE: [item("a")]})
        with Events(api, f"kind=live&token={token}", headers={"Origin": "https://app.example"}) as events:
            assert events.answer.headers["access-control-allow-origin"] == "*"
            assert events.contents() == ["a"]
        wait_for(lambda: '"/v1/trending/stream"' in api.said(), "it was logged")
        assert token not in api.said()
        assert token.rsplit(".", 1)[1] not in api.said()
        assert api.get("/v1/trending/stream?kind=live&token=wrong").status_code == 401
        assert api.get("/v1/trending/stream?kind=live").status_code == 401
        # Elsewhere it must be in the header.
        assert api.get(f"/v1/trending?kind=live&token={token}").status_code == 401

    def test_head_and_preflight(self, api: ApiProcess) -> None:
        head = api.request("HEAD", "/v1/trending/stream?kind=live", token=player("ann"))
        assert (head.status_code, head.headers["content-type"].split(";")[0]) == (200, "text/event-stream")
        for path in ("/v1/trending", "/v1/trending/stream", "/v1/contents/a/audience"):
            headers = {"Origin": "https://app.example", "Access-Control-Request-Method": "GET"}
            answer = api.request("OPTIONS", path, headers=headers)
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (204, "*")

    def test_a_stream_ends_with_its_token(self, api: ApiProcess, keys: Keys, log: Redis) -> None:
        publish(log, keys, START, {LIVE: [item("a")]})
        short = issue(SECRET, {"sub": "ann", "jti": "short"}, 60, settings=Settings())
        with Events(api, "kind=live", headers=bearer(short)) as events:
            assert events.contents() == ["a"]
            assert api.post("/v1/tokens/revoke", token=service("admin"), json={"jti": "short"}).status_code == 204
            publish(log, keys, START + 1, {LIVE: [item("b")]})
            assert events.rest() == []

    def test_no_more_readers_than_may_be(self, single: Server, tmp_path: Path, prefix: str) -> None:
        with ApiProcess(single.url, tmp_path, prefix=prefix, streams_max=2) as api, contextlib.ExitStack() as stack:
            token = player("ann")
            open_ = [stack.enter_context(Events(api, "kind=live", headers=bearer(token))) for _ in range(2)]
            assert [events.answer.status_code for events in open_] == [200, 200]
            full = api.get("/v1/trending/stream?kind=live", token=token)
            assert (full.status_code, full.json()["error"]["code"]) == (503, "streams_full")
            assert int(full.headers["retry-after"]) >= 1
            open_[0].close()
            # Another may come as soon as one has left.
            wait_for(lambda: counted(api, "pulsegate_stream_readers") == 1, "it has left")
            with Events(api, "kind=live", headers=bearer(token)) as events:
                assert events.answer.status_code == 200

    def test_a_stream_ends_after_a_while(self, single: Server, tmp_path: Path, prefix: str, keys: Keys, log: Redis) -> None:  # fmt: skip
        publish(log, keys, START, {LIVE: [item("a")]})
        with ApiProcess(single.url, tmp_path, prefix=prefix, stream_max_s=0.3) as api:
            with Events(api, "kind=live", headers=bearer(player("ann"))) as events:
                assert events.contents() == ["a"]
                assert events.rest() == []
            assert '"level":"error"' not in api.said()

    def test_a_slow_reader_is_dropped_and_costs_the_others_nothing(
        self, single: Server, tmp_path: Path, prefix: str, keys: Keys, log: Redis
    ) -> None:
        def bulky(n: int) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
            return {LIVE: [item(f"c{n}", note="x" * 2_000) for _ in range(ITEMS_MAX)]}

        with ApiProcess(single.url, tmp_path, prefix=prefix, stream_slow_s=0.5) as api:
            with socket.socket() as slow:
                slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
                slow.connect(("127.0.0.1", api.port))
                path = f"/v1/trending/stream?kind=live&limit=100&token={player('ann')}"
                slow.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                wait_for(lambda: counted(api, "pulsegate_stream_readers") == 1, "it is there")
                with Events(api, "kind=live&limit=100", headers=bearer(player("bob"))) as quick:
                    published = 0

                    def dropped() -> bool:
                        nonlocal published
                        published += 1
                        publish(log, keys, START + published, bulky(published))
                        assert quick.contents()[0] == f"c{published}"
                        return counted(api, "pulsegate_slow_readers_total") == 1

                    wait_for(dropped, "the slow one is dropped")
                    assert counted(api, "pulsegate_stream_readers") == 1
                # What had left the process is all it can still get: some of the lists, and no end.
                received = b""
                slow.settimeout(5)
                with contextlib.suppress(ConnectionResetError):
                    while part := slow.recv(65_536):
                        received += part
                assert len(re.findall(rb"id: ", received)) < published
                assert not received.endswith(b"0\r\n\r\n")
            assert '"level":"error"' not in api.said()

    def test_streams_end_when_the_process_stops(self, single: Server, tmp_path: Path, prefix: str, keys: Keys, log: Redis) -> None:  # fmt: skip
        publish(log, keys, START, {LIVE: [item("a", note="x" * 2_000) for _ in range(ITEMS_MAX)]})
        with (
            ApiProcess(single.url, tmp_path, prefix=prefix, stream_slow_s=60) as api,
            contextlib.ExitStack() as stack,
            socket.socket() as stuck,
        ):
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            stuck.connect(("127.0.0.1", api.port))
            path = f"/v1/trending/stream?kind=live&limit=100&token={player('ann')}"
            stuck.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            open_ = [stack.enter_context(Events(api, "kind=live", headers=bearer(player("ann")))) for _ in range(5)]
            assert {events.contents()[0] for events in open_} == {"a"}
            wait_for(lambda: counted(api, "pulsegate_stream_readers") == 6, "all are there")
            for n in range(1, 6):  # the one that does not read is stuck in the middle of a list
                publish(log, keys, START + n, {LIVE: [item(f"c{n}", note="x" * 2_000) for _ in range(ITEMS_MAX)]})
                assert {events.contents()[0] for events in open_} == {f"c{n}"}
            began = time.monotonic()
            assert api.stop() == 0
            # Not after uvicorn's patience of 10 s.
            assert time.monotonic() - began < 5
            assert [events.rest() for events in open_] == [[]] * 5
            assert '"level":"error"' not in api.said()


class TestReader:
    """A stream without a server: what it sends, and when."""

    def run(self, steps: Any, **settings: Any) -> list[bytes]:
        async def go() -> list[bytes]:
            sent: list[bytes] = []
            published = Published(None, Keys("none", PARTITIONS))
            hub, listed = Streams(Settings(**settings), published, Metrics()), published._lists[LIVE]
            left = asyncio.Event()

            async def receive() -> Any:
                await left.wait()
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                if message.get("body"):
                    sent.append(message["body"])

            reader = Reader(hub, "reader", listed, 10, lambda: None)
            task = asyncio.create_task(reader({"type": "http", "method": "GET"}, receive, send))
            await steps(hub, listed, sent, left)
            await asyncio.wait_for(task, 5)
            assert not hub._readers
            assert not reader.listed.listeners
            return sent

        return asyncio.run(go())

    def test_a_comment_keeps_it_alive(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(streams, "KEEP_ALIVE_S", 0.01)

        async def steps(hub: Streams, listed: Listed, sent: list[bytes], left: asyncio.Event) -> None:
            async with asyncio.timeout(5):
                while sent.count(b":\n\n") < 3:
                    await asyncio.sleep(0.005)
            hub.close()

        sent = self.run(steps)
        assert sent[0] == b"retry: 2000\n\n"
        assert set(sent[1:]) == {b":\n\n"}

    def test_a_reader_that_leaves_is_let_go_at_once(self) -> None:
        async def steps(hub: Streams, listed: Listed, sent: list[bytes], left: asyncio.Event) -> None:
            left.set()

        assert self.run(steps) == [b"retry: 2000\n\n"]

    def test_a_process_that_stops_takes_no_more(self) -> None:
        async def steps(hub: Streams, listed: Listed, sent: list[bytes], left: asyncio.Event) -> None:
            await asyncio.sleep(0)
            hub.close()
            with pytest.raises(Unavailable):
                await Reader(hub, "reader", listed, 10, lambda: None)({"type": "http"}, None, None)  # type: ignore[arg-type]

        self.run(steps)

    def test_one_that_takes_nothing_is_cut_off(self) -> None:
        """Nothing is held for it in this process, and it does not get the end of the list either."""
        done: list[Any] = []

        class Transport:
            def __init__(self) -> None:
                self.left = asyncio.Event()

            def set_write_buffer_limits(self, high: int) -> None:
                done.append(high)

            def get_extra_info(self, name: str) -> None:
                return None

            def abort(self) -> None:
                done.append("abort")
                self.left.set()

        async def go() -> None:
            metrics, transport = Metrics(), Transport()
            hub = Streams(Settings(stream_slow_s=0.05), Published(None, Keys("none", PARTITIONS)), metrics)

            async def receive() -> Any:
                await transport.left.wait()
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                done.append(message["type"])
                if message["type"] == "http.response.body":
                    await asyncio.Event().wait()

            scope = {"type": "http", "method": "GET", "state": {"transport": transport}}
            reader = Reader(hub, "reader", Listed(LIVE), 10, lambda: None)
            await asyncio.wait_for(reader(scope, receive, send), 5)
            assert (hub._readers, metrics.registry.get_sample_value("pulsegate_slow_readers_total")) == (set(), 1.0)

        asyncio.run(go())
        assert done == ["http.response.start", 0, "http.response.body", "abort"]

    def test_of_many_lists_only_the_newest_waits(self) -> None:
        """A reader that takes one document while five are published gets the first and the last."""

        async def go() -> list[bytes]:
            sent: list[bytes] = []
            ready = asyncio.Event()
            ready.set()
            published = Published(None, Keys("none", PARTITIONS))
            hub, listed = Streams(Settings(), published, Metrics()), published._lists[LIVE]

            async def receive() -> Any:
                await asyncio.Event().wait()

            async def send(message: Any) -> None:
                await ready.wait()
                if message.get("body"):
                    sent.append(message["body"])

            reader = Reader(hub, "reader", listed, 10, lambda: None)
            task = asyncio.create_task(reader({"type": "http", "method": "GET"}, receive, send))

            async def tell(n: int) -> None:
                listed.read(json.dumps(document(LIVE, n, item(f"c{n}"))).encode())
                listed.show({})
                reader.wake()
                for _ in range(5):
                    await asyncio.sleep(0)

            await asyncio.sleep(0)
            await tell(1)
            ready.clear()
            for n in range(2, 7):
                await tell(n)
            ready.set()
            async with asyncio.timeout(5):
                while not sent[-1].startswith(b"event: trending\nid: 6\n"):
                    await asyncio.sleep(0)
            hub.close()
            await asyncio.wait_for(task, 5)
            return sent

        sent = asyncio.run(go())
        assert [text.split(b"\n")[1] for text in sent[1:]] == [b"id: 1", b"id: 2", b"id: 6"]


class TestContents:
    """`POST /v1/contents` and what it says, over HTTP; the sessions are on a cluster."""

    @pytest.fixture
    def api(self, on_cluster: ApiProcess) -> ApiProcess:
        return on_cluster

    def say(self, api: ApiProcess, body: Any) -> httpx.Response:
        return api.post("/v1/contents", token=service("admin"), content=json.dumps(body))

    def test_said_merged_read_and_removed(self, api: ApiProcess) -> None:
        assert self.say(api, {"content": "a/b", "kind": "vod", "title": "A", "runtime": 5400}).json() == {"accepted": 1}
        assert self.say(api, [{"content": "a/b", "provider": "p"}]).json() == {"accepted": 1}
        known = {"content": "a/b", "kind": "vod", "title": "A", "runtime": 5400.0, "provider": "p", "hidden": False}
        assert api.get("/v1/contents/a%2Fb", token=player("ann")).json() == known
        assert self.say(api, {"content": "a/b", "remove": True}).json() == {"accepted": 1}
        gone = api.get("/v1/contents/a%2Fb", token=service("read"))
        assert (gone.status_code, gone.json()["error"]["field"]) == (404, "content")

    def test_one_bad_item_and_nothing_is_written(self, api: ApiProcess) -> None:
        bad = self.say(api, [{"content": "good", "title": "x"}, {"content": "bad", "runtime": 0}])
        assert (bad.status_code, bad.json()["error"]["field"]) == (400, "[1].runtime")
        assert api.get("/v1/contents/good", token=player("ann")).status_code == 404

    def test_a_full_batch_of_long_titles_fits(self, api: ApiProcess) -> None:
        batch = [{"content": f"long-{n}", "title": "t" * 512, "runtime": 60} for n in range(1_000)]
        assert self.say(api, batch).json() == {"accepted": 1_000}
        assert api.get("/v1/contents/long-999", token=player("ann")).json()["title"] == "t" * 512
        assert self.say(api, [{"content": "x", "note": "n" * 2**20}]).status_code == 413

    def test_the_audience_of_what_a_player_watches(
        self, api: ApiProcess, cluster: list[Server], single: Server
    ) -> None:
        """Titles and totals from the log Redis, distinct viewers from the cluster."""
        self.say(api, {"content": "film", "title": "The film"})
        keys = Keys("contents", PARTITIONS)
        with Redis.from_url(single.url) as log:
            log.hset(keys.totals, member("vod", "film"), 2)
        for name in ("ann", "bob"):
            api.beat(player(name), f"s-{name}", "d")

        def said() -> dict[str, Any]:
            return dict(api.get("/v1/contents/film/audience", token=player("cid")).json())

        found = wait_for(
            lambda: (it := said())["distinct"]["5m"] == 2 and it, "both were counted", audience.DISTINCT_S + 10
        )
        assert (found["title"], found["concurrent"], found["distinct"]["24h"]) == ("The film", 2, 2)
        bad = api.get("/v1/contents/film/audience?kind=film", token=player("cid"))
        assert (bad.status_code, bad.json()["error"]["field"]) == (400, "kind")
