"""Seconds where milliseconds belong, and the other way round: refused by name, everywhere, and no revocation is ever undone."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import fakeredis
import pytest
from redis import Redis

from engine.cdnlog import formats
from engine.cdnlog.errors import BadLine
from engine.cmcd import parser
from engine.embedded import Server
from engine.errors import BadRequest, PulsegateError, Unauthorized
from engine.keys import Keys
from engine.revocations import KEEP_DEFAULT_S, KEEP_LEAST_S, Revocations
from engine.settings import Settings
from engine.tokens import Tokens
from engine.tracking import sift
from engine.wire import MS_LEAST, Revocation, check_ms, decode_events
from tests.harness import PARTITIONS
from tests.servers import SECRET, ApiProcess, player, service, wait_for
from workers import commands

PREFIX = "hostile-times"
NOW = 1_800_000_000
SECONDS = (1, NOW, MS_LEAST - 1)


@pytest.fixture(scope="module")
def api(single: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    with ApiProcess(single.url, tmp_path_factory.mktemp("times"), prefix=PREFIX) as process:
        yield process


def test_what_looks_like_seconds() -> None:
    for good in (None, 0, MS_LEAST, NOW * 1000):
        check_ms(good, "at")
    for bad in SECONDS:
        with pytest.raises(BadRequest, match=r"at must be ms since the epoch.*seconds") as caught:
            check_ms(bad, "at")
        assert caught.value.field == "at"


# the attack that was a mistake: revoking with seconds


@pytest.mark.parametrize("at", SECONDS)
def test_revoking_with_seconds_is_refused(api: ApiProcess, single: Server, at: int) -> None:
    """It was answered 204, and undone by the next trim 2.5 s later."""
    said = {"jti": f"seconds-{at}", "expires_at": at}
    answer = api.post("/v1/tokens/revoke", token=service("admin"), json=said)
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "expires_at"), answer.text
    with Redis.from_url(single.url) as client:
        assert client.zscore(Keys(PREFIX, PARTITIONS).revoked, f"seconds-{at}") is None


class Office:
    """Revocations over fakeredis, with a clock that the test moves (seconds)."""

    def __init__(self, **settings: Any) -> None:
        self.now = float(NOW)
        self.keys = Keys("p", PARTITIONS)
        self.runner = asyncio.Runner()
        self.client = fakeredis.FakeAsyncRedis(version=(7, 2))
        self.settings = Settings(jwt_secret=SECRET, **settings)
        self.tokens = Tokens(self.settings, lambda: self.now)
        self.revocations = Revocations(self.client, self.keys, self.tokens, lambda: self.now)

    def revoke(self, jti: str, expires_at: int | None) -> None:
        self.runner.run(self.revocations.revoke(Revocation(jti, expires_at)))

    def refresh(self) -> None:
        self.runner.run(self.revocations.refresh())

    def until(self, jti: str) -> float:
        """When it may be forgotten, in seconds from the beginning."""
        return float(self.runner.run(self.client.zscore(self.keys.revoked, jti)) or 0) - NOW

    def close(self) -> None:
        self.runner.run(self.client.aclose())
        self.runner.close()


@pytest.fixture
def office() -> Iterator[Office]:
    built = Office()
    yield built
    built.close()


def test_a_revocation_is_kept_long_enough(office: Office) -> None:
    grace = office.settings.token_grace_s
    for jti, expires_at, least in (
        ("unknown", None, KEEP_DEFAULT_S), ("past", (NOW - 3600) * 1000, KEEP_DEFAULT_S), ("never", 0, KEEP_DEFAULT_S),
        ("now", NOW * 1000, KEEP_DEFAULT_S), ("soon", (NOW + 1) * 1000, KEEP_LEAST_S), ("hour", (NOW + 3600) * 1000, KEEP_LEAST_S),
        ("week", (NOW + 7 * 86_400) * 1000, 7 * 86_400 + grace),
    ):  # fmt: skip
        office.revoke(jti, expires_at)
        assert office.until(jti) >= least, jti


def test_no_later_one_shortens_it(office: Office) -> None:
    office.revoke("j", (NOW + 40 * 86_400) * 1000)
    before = office.until("j")
    for expires_at in (None, 0, (NOW + 1) * 1000):
        office.revoke("j", expires_at)
        assert office.until("j") == before


def test_a_token_that_outlives_its_revocation_stays_revoked(office: Office) -> None:
    """Whoever revoked it was wrong about its end. It is shown, so its end is known."""
    token = player("ann", jti="long", ttl_s=90 * 86_400, now=NOW)
    office.tokens.verify(token)
    office.revoke("long", (NOW + 60) * 1000)
    assert office.until("long") < 90 * 86_400
    with pytest.raises(Unauthorized):
        office.tokens.verify(token)
    office.refresh()
    assert office.until("long") >= 90 * 86_400 + office.settings.token_grace_s
    for day in range(0, 90, 10):
        office.now = NOW + day * 86_400.0
        office.revoke(f"other-{day}", None)  # every revocation trims
        office.refresh()
        with pytest.raises(Unauthorized) as caught:
            office.tokens.verify(token)
        assert caught.value.code == "token_revoked"


def test_who_shows_revoked_tokens_fills_no_memory(office: Office) -> None:
    office.tokens.revoked = frozenset(f"j{n}" for n in range(12_000))
    for number in range(12_000):
        with pytest.raises(Unauthorized):
            office.tokens.verify(player("ann", jti=f"j{number}", now=NOW))
    assert len(office.tokens.outlived) <= 10_000
    office.refresh()
    assert office.tokens.outlived == {}
    assert office.tokens.revoked == frozenset()  # none of them was made again by having been shown


def test_grace_is_not_for_the_revoked(office: Office) -> None:
    """An admitted session passes for a while after its token's end, unless that was revoked."""
    grace = office.settings.token_grace_s
    token = player("ann", jti="j", ttl_s=60, now=NOW)
    office.revoke("j", (NOW + 60) * 1000)
    for later in (0, 61, 60 + grace):
        office.now = NOW + later
        office.revoke("other", None)
        office.refresh()
        with pytest.raises(Unauthorized) as caught:
            office.tokens.verify(token, grace_s=grace)
        assert caught.value.code == "token_revoked"


def test_a_process_that_starts_knows_what_was_revoked(api: ApiProcess, single: Server, tmp_path: Any) -> None:
    token = player("ann", jti="before")
    assert api.post("/v1/tokens/revoke", token=service("admin"), json={"jti": "before"}).status_code == 204
    with ApiProcess(single.url, tmp_path, prefix=PREFIX) as other:
        assert other.get("/v1/accounts/ann/sessions", token=token).status_code == 401


# all other times


@pytest.mark.parametrize("at", SECONDS)
def test_queries(api: ApiProcess, at: int) -> None:
    token, late = service("read", "admin"), NOW * 1000
    paths = [
        "/v1/views?account=a&", "/v1/audit/blocks?", "/v1/quality?metrics=plays&", "/v1/quality/worst?metric=startup_time&",
        "/v1/quality/players?", "/v1/quality/sessions/s?account=a&", "/v1/behaviour?", "/v1/behaviour/dropoff?content=c&",
    ]  # fmt: skip
    for path in paths:
        for name, query in (("from", f"from={at}&to={late}"), ("to", f"from=0&to={at}")):
            answer = api.get(path + query, token=token)
            assert (answer.status_code, answer.json()["error"]["field"]) == (400, name), answer.text
            assert "seconds" in answer.json()["error"]["message"]
    answer = api.get(f"/v1/alerts/history?before={at}", token=token)
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "before")
    assert api.get("/v1/views?account=a&from=0", token=token).status_code in (200, 503)


@pytest.mark.parametrize("at", SECONDS)
def test_signals(api: ApiProcess, at: int) -> None:
    signal = {"account": "a", "device": "d", "content": "c", "kind": "vod", "evidence": "segment"}
    for body, field in ((signal | {"at": at}, "at"), ([signal, signal | {"at": at}], "[1].at")):
        answer = api.post("/v1/signals", token=service("signals"), json=body)
        assert (answer.status_code, answer.json()["error"]["field"]) == (400, field)


def test_an_event_alone_is_rejected(api: ApiProcess) -> None:
    token = player("events")
    events = [{"type": "x", "at": NOW}, {"type": "x", "at": NOW * 1000}, {"type": "x", "at": 0}, {"type": "x"}]
    said = api.post("/v1/events", token=token, json={"session": "s", "events": events}).json()
    assert said["accepted"] == 3
    assert [(bad["index"], bad["error"]["field"]) for bad in said["rejected"]] == [(0, "events[0].at")]
    good, bad = sift(decode_events([json.dumps(event).encode() for event in events]))  # type: ignore[misc]
    assert (len(good), [(item.index, item.field) for item in bad]) == (3, [(0, "event.at")])
    assert api.beat(token, "s", "d", events=events)["decision"] == "allow"  # which costs the viewer nothing


def test_reports_of_stock_players() -> None:
    """A clock in seconds would order the session's reports before all others'. The key is dropped, the report stays."""
    parsed = parser.parse_body(f'sid="s",e=t,ts={NOW}\nsid="s",e=t,ts={NOW * 1000}\nsid="s",e=t,ts=0'.encode())
    assert [report.number("ts") for report in parsed.reports] == [None, NOW * 1000, 0]
    assert parsed.dropped["ts"] == 1


def test_log_lines() -> None:
    """Seconds and ms are told apart; a clock that was never set costs its line, not the batch."""
    for good, ms in ((0, 0), (NOW, NOW * 1000), (NOW * 1000, NOW * 1000), ("2027-01-15T08:00:00", NOW * 1000)):
        assert formats.parse_time(good) == ms
    for bad in (12_345, "5", "1970-01-01T00:00:05", 10**15, -1):
        with pytest.raises(BadLine) as caught:
            formats.parse_time(bad)
        assert caught.value.code == "bad_time"


def test_commands() -> None:
    assert (commands._ms(None), commands._ms("0"), commands._ms(str(NOW * 1000))) == (0, 0, NOW * 1000)
    assert commands._ms("2026-11-23") == 1_795_392_000_000
    for bad in (str(NOW), "20261123", "9" * 15, "٣", "yesterday"):
        with pytest.raises(PulsegateError, match="--from"):
            commands._ms(bad)


def test_a_revocation_in_ms_works_at_once(api: ApiProcess) -> None:
    token = player("ann", jti="right")
    assert api.get("/v1/accounts/ann/sessions", token=token).status_code == 200
    said = {"jti": "right", "expires_at": int(time.time() * 1000) + 3_600_000}
    assert api.post("/v1/tokens/revoke", token=service("admin"), json=said).status_code == 204
    for _ in range(2):
        wait_for(lambda: api.get("/v1/accounts/ann/sessions", token=token).status_code == 401, "revoked")
