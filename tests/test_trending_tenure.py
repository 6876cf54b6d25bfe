"""The trending tenure: totals to lists, what was learned to the next worker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from engine import audience, lag, viewers
from engine.embedded import Server
from engine.keys import Keys
from tests.pipeline import look, owner, plant
from workers.runtime import Runtime
from workers.trending import Lists, Trending

NOW = 1_800_000_000_000
TICK_MS = 5_000


@pytest.fixture(params=["single", "cluster"])
def run(request: pytest.FixtureRequest, single: Server, prefix: str) -> Iterator[Runtime]:
    servers = request.getfixturevalue(request.param)
    session = (servers if request.param == "single" else servers[0]).url
    run = plant(session, single.url, prefix, trending_warmup_s=10, trending_providers_max=2)
    yield run
    run.close()


class Night:
    """Contents with as many viewers as are said, one account each, and the ticks that go by."""

    def __init__(self, run: Runtime) -> None:
        self.run, self.now = run, NOW
        self.lists = Lists(run)

    def watched(self, **contents: int) -> None:
        self.say({f"live\t{content}\t": count for content, count in contents.items()})

    def say(self, totals: dict[str, int]) -> None:
        keys: Keys = self.run.keys
        for key in (keys.totals, keys.accounts):
            self.run.log.delete(key)
            if totals:
                self.run.log.hset(key, mapping=totals)  # type: ignore[arg-type]
        self.heads = {what.split("\t")[1]: count for what, count in totals.items()}

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            for content, count in self.heads.items():
                fine, _ = viewers.marked(self.run.keys, content, self.now)
                if not self.run.session.exists(fine):
                    self.run.session.pfadd(fine, *(f"account-{n}" for n in range(count)))
            self.lists.publish(self.now)
            self.now += TICK_MS

    def listed(self, kind: str = "live", rank: str = "trending", provider: str = "") -> list[str]:
        return [item["content"] for item in self.document(kind, rank, provider)["items"]]

    def document(self, kind: str = "live", rank: str = "trending", provider: str = "") -> dict[str, Any]:
        stored: Any = self.run.log.get(self.run.keys.trending_list(kind, rank, provider))
        return dict(json.loads(stored))


@pytest.fixture
def night(run: Runtime) -> Night:
    return Night(run)


def test_a_surge_is_listed_with_its_parts_and_what_is_steady_is_not(night: Night) -> None:
    night.watched(news=200, sport=100, film=80)
    night.tick(60)
    assert night.listed() == []
    night.watched(news=200, sport=400, film=80)
    # New accounts since the five minutes began: the sets of distinct viewers know them.
    fine, _ = viewers.marked(night.run.keys, "sport", night.now)
    night.run.session.pfadd(fine, *(f"account-{n}" for n in range(400)))
    night.tick(6)
    assert night.listed() == ["sport"]
    (item,) = night.document()["items"]
    assert item["concurrent"] == 400
    assert item["score"] > 5
    assert item["observed"] > item["expected"]
    assert abs(item["distinct"] - 400) < 20
    assert NOW < item["since"] < night.now
    assert night.document()["formula"]["name"] == "surprise"
    assert night.document()["published_at"] == night.now - TICK_MS


def test_popular_is_hours_viewed_by_runtime(night: Night) -> None:
    contents = {"short": {"runtime": 1_800}, "long": {"runtime": 7_200}, "secret": {"hidden": True}}
    night.run.log.hset(night.run.keys.contents, mapping={name: json.dumps(entry) for name, entry in contents.items()})
    night.run.log.incr(night.run.keys.contents_version)
    night.say({f"vod\t{name}\t": 50 for name in contents})
    night.tick(10)
    assert night.listed("vod", "popular") == ["short", "long"]
    parts = {item["content"]: item for item in night.document("vod", "popular")["items"]}
    assert parts["short"]["observed"] == pytest.approx(parts["long"]["observed"])
    assert parts["short"]["score"] == pytest.approx(4 * parts["long"]["score"], rel=0.01)


def test_a_hidden_content_is_listed_until_it_is_hidden_and_again_afterwards(night: Night) -> None:
    night.say({"vod\tfilm\t": 50})
    night.tick(5)
    for hidden in (False, True, False):
        night.run.log.hset(night.run.keys.contents, "film", json.dumps({"hidden": hidden}))
        night.run.log.incr(night.run.keys.contents_version)
        night.tick()
        assert night.listed("vod", "popular") == ([] if hidden else ["film"])


def test_the_most_watched_providers_have_lists_of_their_own(night: Night) -> None:
    night.say({"vod\ta\tbig": 50, "vod\tb\tmiddle": 20, "vod\tc\tjunk": 1, "vod\td\t": 5})
    night.tick(5)
    assert night.listed("vod", "popular", "big") == ["a"]
    assert night.listed("vod", "popular", "middle") == ["b"]
    assert night.run.log.exists(night.run.keys.trending_list("vod", "popular", "junk")) == 0
    assert set(night.listed("vod", "popular")) == {"a", "b", "c", "d"}
    assert {name.decode() for name in night.run.log.smembers(night.run.keys.providers)} == {"big", "middle", "junk", ""}


def test_what_was_learned_of_a_provider_that_nobody_watches_any_more_is_forgotten(night: Night) -> None:
    night.say({"vod\ta\told": 1, "vod\tb\tbig": 900})
    night.tick(2)
    night.lists.save()
    state = night.run.keys.trending_state
    assert any(name.startswith(b"vod\told\t") for name in night.run.log.hkeys(state))
    night.say({"vod\ta\tnew": 800, "vod\tb\tbig": 900})
    night.tick(2)
    night.lists.save()
    kept = {name.split(b"\t")[1] for name in night.run.log.hkeys(state) if name != b"version"}
    assert kept == {b"", b"big", b"new"}


def test_another_worker_goes_on_with_what_was_learned(night: Night) -> None:
    night.watched(news=200)
    night.tick(60)
    night.lists.save()
    night.lists = Lists(night.run)
    night.lists.resume()
    night.tick(3)
    assert night.listed() == [], "what is steady is no surprise to the next one"
    before = night.lists._detectors
    night.lists.save()
    night.lists.resume()
    assert night.lists._detectors is before, "its own state is not read again"


def test_a_minute_is_recorded_once(night: Night) -> None:
    night.watched(news=7)
    night.tick(13)
    ring = audience.Series(night.run.log.get(night.run.keys.series("live", "news")))
    assert [ring.at(NOW // 60_000 + n) for n in range(3)] == [7, 7, None]


def test_all_lists_of_a_tick_are_of_one_moment_and_told_of(night: Night) -> None:
    channel = night.run.log.pubsub()
    channel.subscribe(night.run.keys.published)
    channel.get_message(timeout=5)
    night.say({"vod\ta\tbig": 50, "live\tnews\t": 20})
    night.tick(2)
    moments = {
        night.document(*name)["published_at"]
        for name in (("live",), ("vod",), ("vod", "popular"), ("vod", "trending", "big"), ("vod", "popular", "big"))
    }
    assert moments == {NOW + TICK_MS}
    message = channel.get_message(timeout=5)
    channel.close()
    assert message is not None
    assert message["data"] == str(NOW).encode()


def test_a_tenure_claims_and_publishes(run: Runtime) -> None:
    run.session.zadd(run.keys.audience(0), {"live\tnews\t": 3, "live\tnews\t\t@": 2})
    run.session.hset(run.keys.deltas(0), mapping={"live\tnews\t": 3, "live\tnews\t\t@": 2})
    work = Trending(run, owner(run, "trending"))
    assert work.step(0.0) == 2
    assert run.log.hgetall(run.keys.totals) == {b"live\tnews\t": b"3"}
    assert run.log.hgetall(run.keys.accounts) == {b"live\tnews\t": b"2"}
    assert run.log.exists(run.keys.trending_list("live", "trending")) == 1
    took = run.log.hgetall(run.keys.trending_took)
    assert sorted(took) == [b"at", b"claims_ms", b"publication_ms"]
    flow = look(run)
    assert flow.trending_s == (int(took[b"claims_ms"]) + int(took[b"publication_ms"])) / 1000
    assert f"lists took {flow.trending_s:.2f} s" in lag.table(flow)
    assert work.step(0.0) == 0, "it waits for the next round"
    work.close()
    assert run.log.hexists(run.keys.trending_state, "version")
