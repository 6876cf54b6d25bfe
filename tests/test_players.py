"""Stock hls.js and dash.js in headless Chromium, with no code of ours, report to `POST /v1/cmcd` across origins: counted, measured, blocked.

What a player reports is held against what its page saw by itself: `load` and `loading` are told just before and after the player is given
the address of the film, `playing` and `waiting` are the video element's own events. Nothing leaves loopback.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from engine.embedded import Server, free_port
from tests.conftest import tool
from tests.pipeline import plant
from tests.players import MANIFESTS, SCRIPTS
from tests.players.browser import Browser
from tests.players.origin import Origin
from tests.players.stream import VIDEO, make
from tests.servers import ApiProcess, player, service, wait_for
from tests.test_nginx import PLANS, listening, start_nginx
from tests.test_processes import events
from workers.consume import Consume
from workers.drain import drain
from workers.quality import Quality
from workers.runtime import Runtime
from workers.tenure import Ownership

PLAYERS = ("hls", "dash")
SHORT = {"interval_ms": 1000, "lifetime_ms": 4000, "gone_after_ms": 2000}
"""Players report every second, and four of silence end a view."""
CLOSE_MS = 100
"""How far a player's word and its page's may lie apart. Both have the same clock."""


@pytest.fixture(scope="module")
def chromium() -> str:
    """Where it is. Skips, or in CI fails, when it or a player is not installed."""
    if not all(path.exists() for path in SCRIPTS.values()):
        message = "hls.js and dash.js are not installed; scripts/install-test-tools installs them with npm"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return tool("chromium")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`vod/film` under a document root."""
    directory = tmp_path_factory.mktemp("media") / "vod" / "film"
    make(tool("ffmpeg"), directory)
    return directory


@dataclass
class Stage:
    """A collector, an origin, and the background work, done when it is asked for."""

    server: Server
    prefix: str
    directory: Path
    chromium: str
    origin: Origin
    api: ApiProcess
    run: Runtime

    @contextmanager
    def watch(self, name: str, sid: str, token: str, source: str = "", **more: str) -> Iterator[Browser]:
        """One browser whose player (hls or dash) plays the film and reports with this token; `more` goes to the page."""
        with Browser(
            self.chromium,
            self.directory / f"{sid}.log",
            self.origin.page,
            player=name,
            source=source or f"{self.origin.base}/media/{MANIFESTS[name]}",
            sid=sid,
            cid="film",
            collector=f"{self.api.base}/v1/cmcd?token={token}",
            **more,
        ) as browser:
            yield browser
            assert not self.origin.told(sid, "broken"), self.origin.told(sid)

    def reports(self, sid: str) -> list[dict[str, Any]]:
        """The keys of the session's reports that were taken, by `sn`."""
        found = [event["data"]["keys"] for event in events(self.server, self.prefix, "cmcd") if event["session"] == sid]
        return sorted(found, key=lambda keys: int(keys["sn"]))

    def said(self, sid: str, **keys: str) -> list[dict[str, Any]]:
        return [report for report in self.reports(sid) if keys.items() <= report.items()]

    def ended(self, sid: str) -> list[dict[str, Any]]:
        """The ends of the session's views, of those that are overdue by now, too."""
        drain(self.run, "sweep")
        return [event for event in events(self.server, self.prefix, "view_end") if event["session"] == sid]

    def stop(self, sid: str, token: str) -> None:
        """Ends the session's view now: what lasts till its end is told then. Its browser must be gone."""
        assert self.api.post(f"/v1/sessions/{sid}/stop", token=token).status_code == 204

    def timeline(self, account: str, sid: str) -> dict[str, Any]:
        """`GET /v1/quality/sessions/{session}` when all that has happened is known there."""
        drain(self.run, "mirror")
        drain(self.run, "export-lake")
        for group in range(self.run.settings.groups):
            ownership = Ownership(self.run, "consume-quality", group)
            assert ownership.acquire()
            work = Consume(self.run, group, ownership, Quality)
            work.gathers = False
            while work.step(0.0):
                pass
            work.close()
            ownership.release()
        answer = self.api.get(f"/v1/quality/sessions/{sid}", params={"account": account}, token=service("read"))
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


@contextmanager
def stage(
    server: Server, prefix: str, directory: Path, chromium: str, film: Path, allowed: str = ""
) -> Iterator[Stage]:
    """`allowed` is the origin whose pages may report: the stage's own unless given."""
    settings: dict[str, Any] = SHORT | {"lake_dir": str(directory / "lake")}
    run = plant(server.url, server.url, prefix, **settings)
    with (
        Origin(film) as origin,
        ApiProcess(
            server.url, directory, prefix=prefix, plans=PLANS, cors_origins=allowed or origin.base, **settings
        ) as api,
    ):
        yield Stage(server, prefix, directory, chromium, origin, api, run)
    run.log.close()
    run.session.close()


@pytest.fixture
def place(single: Server, prefix: str, tmp_path: Path, chromium: str, film: Path) -> Iterator[Stage]:
    with stage(single, prefix, tmp_path, chromium, film) as found:
        yield found


@dataclass
class Journey:
    """One session: it plays, starves, goes on, and its browser is killed."""

    name: str
    sessions: list[dict[str, Any]] = field(default_factory=list)
    page: list[dict[str, Any]] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)
    timeline: dict[str, Any] = field(default_factory=dict)

    def facts(self, *names: str) -> list[dict[str, Any]]:
        return [fact for fact in self.timeline["facts"] if fact["fact"] in names]


@pytest.fixture(scope="module", params=PLAYERS)
def journey(
    request: pytest.FixtureRequest, single: Server, tmp_path_factory: pytest.TempPathFactory, chromium: str, film: Path
) -> Journey:
    name = request.param
    found, sid = Journey(name), f"sid-{name}"
    with stage(single, f"players-{name}", tmp_path_factory.mktemp(name), chromium, film) as place:
        origin = place.origin
        with place.watch(name, sid, player("ann", device="tv", max_streams=1)) as browser:
            with origin.hold("chunk-stream.-00003"):
                wait_for(lambda: origin.told(sid, "playing"), "it plays")
                found.sessions = wait_for(lambda: place.api.sessions("ann"), "the session is counted")
                plays = len(origin.told(sid, "playing"))
                starved = wait_for(lambda: place.said(sid, e="t", sta="r"), "it has starved for a second")
                assert len(origin.told(sid, "playing")) == plays
            wait_for(lambda: len(origin.told(sid, "playing")) > plays, "it plays again")
            wait_for(lambda: [r for r in place.said(sid, e="t", sta="p") if r["sn"] > starved[-1]["sn"]], "and says so")
            browser.kill()
        found.page = origin.told(sid)
        found.ends = wait_for(lambda: place.ended(sid), "its view has ended")
        found.reports = place.reports(sid)
        found.timeline = place.timeline("ann", sid)
    return found


def between(moments: list[dict[str, Any]], first: str, then: str, after: float = 0.0) -> tuple[float, float]:
    """Two of the page's moments, ms of its clock: the first of the one name, and of the other after it."""
    start = next(moment["at"] for moment in moments if moment["what"] == first and moment["at"] > after)
    return start, next(moment["at"] for moment in moments if moment["what"] == then and moment["at"] > start)


def near(ms: float) -> Any:
    return pytest.approx(ms, abs=CLOSE_MS)


class TestJourney:
    def test_reports_alone_make_it_count(self, journey: Journey) -> None:
        (session,) = journey.sessions
        wanted = {"session": f"sid-{journey.name}", "device": "tv", "content": "film", "origin": "player"}
        assert wanted.items() <= session.items()
        assert session["rules"] == ["streams"]

    def test_nothing_is_lost_on_the_way(self, journey: Journey) -> None:
        numbers = [report["sn"] for report in journey.reports]
        assert numbers == list(range(len(numbers)))
        beacons = journey.facts("beacon")
        assert sum(fact["count"] for fact in beacons) == len(numbers)
        assert sum(fact.get("value", 0) for fact in beacons) == 0

    def test_the_start_up_time_is_what_the_page_saw(self, journey: Journey) -> None:
        _, playing = between(journey.page, "load", "playing")
        # The request is somewhere within the call that gives the player the address; some ms, on a busy machine more.
        call, called = between(journey.page, "load", "loading")
        (start,) = journey.facts("start")
        assert playing - called - CLOSE_MS < start["ms"] < playing - call + CLOSE_MS
        # `ts` is that moment itself. dash.js claims with `msd` that it took a few ms, hls.js claims nothing.
        epoch = journey.page[0]["epoch"]
        first = next(report for report in journey.reports if report.get("sta") == "p")
        assert first["ts"] == near(epoch + playing)
        if journey.name == "dash":
            assert start["value"] < start["ms"]
        else:
            assert not any("msd" in report for report in journey.reports)

    def test_a_starved_buffer_is_one_stall(self, journey: Journey) -> None:
        _, playing = between(journey.page, "load", "playing")
        waiting, again = between(journey.page, "waiting", "playing", after=playing)
        (stall,) = journey.facts("stall")
        assert stall["count"] == 1
        assert stall["ms"] == near(again - waiting)
        assert sum(fact["ms"] for fact in journey.facts("play") if fact["at"] <= stall["at"]) == near(waiting - playing)

    def test_the_states_are_in_the_timeline(self, journey: Journey) -> None:
        states = [state["state"] for state in journey.timeline["states"] if state["state"] != "idle"]
        assert states == ["starting", "playing", "stalled", "playing"]
        assert journey.timeline["dimensions"]["browser"].startswith("Chrome ")
        raw = [event["data"]["raw"] for event in journey.timeline["events"] if event["type"] == "cmcd"]
        assert len(raw) == len(journey.reports)
        assert all(f'sid="sid-{journey.name}"' in line for line in raw)

    def test_a_killed_browser_ends_the_view_by_time_out(self, journey: Journey) -> None:
        (end,) = journey.ends
        assert end["data"]["reason"] == "timeout"
        assert not any(report.get("sta") in ("e", "q", "f") for report in journey.reports)
        (told,) = journey.facts("end")
        assert (told["code"], told["silent"]) == ("timeout", True)
        played = sum(fact["ms"] for fact in journey.facts("play"))
        assert end["data"]["watched_ms"] == pytest.approx(played, abs=1000)


class TestMissing:
    """A 404 for what the player cannot do without."""

    @pytest.mark.parametrize(("name", "code"), [("hls", "manifestLoadError"), ("dash", "25")])
    def test_manifest_is_a_start_failure(self, place: Stage, name: str, code: str) -> None:
        place.origin.fail(MANIFESTS[name], 404)
        token = player("ann", device="tv")
        with place.watch(name, "sid", token):
            wait_for(lambda: place.origin.told("sid", "fatal"), "the player gives up")
            wait_for(lambda: place.said("sid", e="e"), "and says so")
        place.stop("sid", token)
        facts = place.timeline("ann", "sid")["facts"]
        assert [fact["code"] for fact in facts if fact["fact"] == "error"] == [code]
        assert [fact["code"] for fact in facts if fact["fact"] == "start_failure"] == [code]
        assert not [fact for fact in facts if fact["fact"] in ("start", "exit", "play", "stall")]

    def test_segment_is_an_error_of_what_plays_in_dash_js(self, place: Stage) -> None:
        place.origin.fail(f"{VIDEO}00003", 404)
        with place.watch("dash", "sid", player("ann", device="tv")):
            wait_for(lambda: place.origin.told("sid", "fatal"), "the player gives up")
            wait_for(lambda: place.said("sid", e="e"), "and says so")
        facts = place.timeline("ann", "sid")["facts"]
        (error,) = [fact for fact in facts if fact["fact"] == "error"]
        assert (error["code"], error.get("fatal"), error.get("started")) == ("27", True, True)
        assert not [fact for fact in facts if fact["fact"] == "start_failure"]

    def test_segment_is_an_endless_stall_in_hls_js(self, place: Stage) -> None:
        """It looks for the segment in one rendition after the other, for ever, and calls none of it fatal."""
        place.origin.fail(f"{VIDEO}00003", 404)
        token = player("ann", device="tv")
        with place.watch("hls", "sid", token):
            wait_for(lambda: len(place.said("sid", e="t", sta="r")) >= 2, "it starves")
            assert not place.origin.told("sid", "fatal")
        place.stop("sid", token)
        facts = place.timeline("ann", "sid")["facts"]
        assert sum(fact["ms"] for fact in facts if fact["fact"] == "stall") >= 1000
        assert not [fact for fact in facts if fact["fact"] == "error"]


@pytest.mark.parametrize("name", PLAYERS)
def test_pause_and_seek_are_no_stalls(place: Stage, name: str) -> None:
    with place.watch(name, "sid", player("ann", device="tv"), act="yes"):
        wait_for(lambda: place.said("sid", e="ps", sta="e"), "the film is over")
        wait_for(lambda: place.ended("sid"), "and so is the view")
    states = "".join(report["sta"] for report in place.reports("sid") if report["e"] == "ps")
    assert {"a", "k"} <= set(states)
    timeline = place.timeline("ann", "sid")
    facts = [fact["fact"] for fact in timeline["facts"]]
    assert (facts.count("attempt"), facts.count("start"), facts.count("stall"), facts.count("error")) == (1, 1, 0, 0)
    (end,) = [fact for fact in timeline["facts"] if fact["fact"] == "end"]
    assert not end.get("silent")


def test_a_page_of_another_origin_is_not_heard(
    single: Server, prefix: str, tmp_path: Path, chromium: str, film: Path
) -> None:
    """The browser asks leave before it reports, and does not report without it."""
    with stage(single, prefix, tmp_path, chromium, film, allowed="https://elsewhere.example") as place:
        with place.watch("hls", "sid", player("ann", device="tv")):
            wait_for(lambda: place.origin.told("sid", "playing"), "it plays")
            assert not place.reports("sid")
        assert not place.api.sessions("ann")


@pytest.mark.parametrize(("first", "second"), [("hls", "dash"), ("dash", "hls")])
def test_a_second_device_is_refused_by_the_edge(place: Stage, film: Path, first: str, second: str) -> None:
    tv, phone = (player("ann", device=device, max_streams=1) for device in ("tv", "phone"))
    port = free_port()
    with start_nginx(place.directory, film.parent.parent, f"127.0.0.1:{place.api.port}", port) as nginx:
        wait_for(lambda: listening(port) or not nginx.running, "nginx listens")
        source = f"http://127.0.0.1:{port}/t/%s/vod/film/%s"
        with place.watch(first, "sid-tv", tv, source % (tv, MANIFESTS[first])):
            wait_for(lambda: place.said("sid-tv", e="t", sta="p"), "the first device plays")
            with place.watch(second, "sid-phone", phone, source % (phone, MANIFESTS[second])):
                (fatal, *_) = wait_for(lambda: place.origin.told("sid-phone", "fatal"), "the second gives up")
                assert fatal.get("status", 403) == 403
                wait_for(lambda: place.said("sid-phone", e="e"), "and says so")
                asked = place.api.get(
                    "/v1/edge/authorize", token=phone, headers={"X-Original-URI": "/vod/film/chunk-stream0-00001.m4s"}
                )
                assert (asked.status_code, asked.headers["x-pulsegate-reason"]) == (403, "limit_reached")
            assert not place.origin.told("sid-phone", "playing")
            beats = len(place.said("sid-tv", e="t", sta="p"))
            wait_for(lambda: len(place.said("sid-tv", e="t", sta="p")) > beats, "the first plays on")
            assert [(item["session"], item["device"]) for item in place.api.sessions("ann")] == [("sid-tv", "tv")]
        assert " 403 " in (place.directory / "access.log").read_text()
    facts = place.timeline("ann", "sid-phone")["facts"]
    errors = [fact for fact in facts if fact["fact"] == "error"]
    assert errors
    assert all(fact["business"] for fact in errors), "a refusal is no failure of the picture"
