"""A token for some of an account's profiles reaches only those, on every route and by one rule."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from engine import resume, views
from engine.embedded import Server
from engine.errors import BadRequest, Forbidden
from engine.keys import Keys
from engine.resume import Entry
from engine.tokens import Claims
from engine.views import View
from engine.wire import Stop, Takeover
from tests.harness import PARTITIONS, World
from tests.servers import ApiProcess, player, service, wait_for

PREFIX = "hostile-profiles"
KIDS: dict[str, Any] = {"profiles": ["kids"]}


@pytest.fixture(scope="module")
def api(single: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    with ApiProcess(single.url, tmp_path_factory.mktemp("profiles"), prefix=PREFIX, resume_wait_ms=10) as process:
        yield process


@pytest.fixture
def account(request: pytest.FixtureRequest) -> str:
    return f"ann-{request.node.name}"


def claims(*profiles: str) -> Claims:
    return Claims(account="a", profiles=frozenset(profiles))


# the rule


def test_the_rule() -> None:
    one, several, none, unnamed = claims("kids"), claims("kids", "main"), claims(), claims("", "kids")
    assert [one.profile_or(""), one.profile_or("kids"), several.profile_or("main")] == ["kids", "kids", "main"]
    assert [Claims(account="a").profile_or(""), Claims(account="a").profile_or("any"), unnamed.profile_or("")] == ["", "any", ""]  # fmt: skip
    for who, named in ((one, "main"), (several, "x"), (none, ""), (none, "kids")):
        with pytest.raises(Forbidden) as caught:
            who.profile_or(named)
        assert (caught.value.code, caught.value.field) == ("other_profile", "profile")
    with pytest.raises(BadRequest) as asked:
        several.profile_or("")
    assert asked.value.field == "profile"
    assert (one.sole_profile, several.sole_profile, Claims(account="a").sole_profile) == ("kids", "", "")
    with pytest.raises(Forbidden):
        _ = none.sole_profile


# the sessions of others


@pytest.mark.parametrize("state", ["playing", "ended", "paused"])
def test_a_heartbeat_speaks_for_no_session_of_another(world: World, state: str) -> None:
    """`ended` in another's name was as good as a stop."""
    world.beat("theirs", "tv", profile="main", limit=9)
    with pytest.raises(Forbidden) as caught:
        world.beat("theirs", "phone", profile="kids", state=state, limit=9, claims={"profiles": frozenset({"kids"})})
    assert (caught.value.code, caught.value.field) == ("other_profile", "session")
    (session,) = world.sessions()
    assert (session["profile"], session["device"], session["state"]) == ("main", "tv", "playing")
    assert world.events("a", "view_end", "pause") == []


def test_check_tells_nothing_of_a_session_of_another(world: World) -> None:
    world.beat("theirs", "tv", profile="main")
    with pytest.raises(Forbidden):
        world.run(world.decisions.check(claims("kids"), "theirs", "tv", "film", "vod", {}))
    assert world.run(world.decisions.check(claims("main"), "theirs", "tv", "film", "vod", {}))["decision"] == "allow"


@pytest.mark.parametrize("request_id", ["", "r-1"])
def test_stopping(world: World, request_id: str) -> None:
    world.beat("theirs", "tv", profile="main")
    world.beat("mine", "phone", profile="kids")
    for who in (claims("kids"), claims()):
        with pytest.raises(Forbidden) as caught:
            world.run(world.decisions.stop(who, "theirs", Stop(request_id=request_id)))
        assert caught.value.field == "session"
    assert world.running() == {"theirs", "mine"}
    # A refusal does not use up the request id.
    assert world.run(world.decisions.stop(claims("main"), "theirs", Stop(request_id=request_id)))
    assert world.run(world.decisions.stop(claims("kids"), "mine", Stop()))
    assert not world.run(world.decisions.stop(claims("kids"), "unknown", Stop()))


def test_a_name_within_a_name_is_another(world: World) -> None:
    """However profiles are written down for the scripts, `a` is not `a b`, and nothing is no profile."""
    for number, profile in enumerate(("", "a", "a b", "b:d:9", "ab")):
        session = f"s{number}"
        for allowed in ("", "a", "a b", "b:d:9", "ab", "b"):
            world.beat(session, f"d{number}", limit=9, **({"profile": profile} if profile else {}))
            who = claims(allowed)
            if allowed == profile:
                assert world.run(world.decisions.stop(who, session, Stop()))
            else:
                with pytest.raises(Forbidden):
                    world.run(world.decisions.stop(who, session, Stop()))
        world.wait(1)


def test_profiles_add_no_rules(world: World) -> None:
    """The profiles go to the scripts behind the policy; no name of theirs becomes part of it."""
    who = {"profiles": frozenset({"x:d:0", "streams:d:0", "kids"})}
    assert world.beat("s", "d", profile="kids", limit=1, claims=who)["decision"] == "allow"
    refused = world.beat("s2", "d2", profile="kids", limit=1, claims=who)
    assert (refused["rule"], refused["limit"]) == ("streams", 1)


def test_takeover_chooses_among_its_own(world: World) -> None:
    world.beat("theirs", "tv", profile="main", limit=2)
    world.wait(1)
    world.beat("mine", "tablet", profile="kids", limit=2)
    world.wait(1)
    kids = {"profiles": frozenset({"kids"})}
    assert world.beat("new", "phone", limit=2, claims=kids)["decision"] == "block"

    def take(session: str, stop: str, **fields: Any) -> Any:
        who = Claims(account="a", max_streams=2, **kids)
        return world.run(world.decisions.takeover(who, session, Takeover(stop=stop, **fields)))

    for session, stop in (("new", "theirs"), ("theirs", "mine"), ("theirs", "oldest")):
        with pytest.raises(Forbidden):
            take(session, stop, device="phone", content="film", kind="vod")
    with pytest.raises(Forbidden):
        take("new", "mine", profile="main")
    assert world.running() == {"theirs", "mine"}
    taken = take("new", "oldest")
    assert taken["decision"] == "allow"
    assert world.running() == {"theirs", "new"}
    assert {item["profile"] for item in world.sessions() if item["session"] == "new"} == {"kids"}


def test_oldest_finds_none_of_its_own(world: World) -> None:
    world.beat("theirs", "tv", profile="main", limit=1)
    who = Claims(account="a", max_streams=1, profiles=frozenset({"kids"}))
    ask = Takeover(stop="oldest", device="phone", content="film", kind="vod")
    assert world.run(world.decisions.takeover(who, "new", ask))["decision"] == "block"
    assert world.running() == {"theirs"}


def test_a_block_does_not_tell_what_others_watch(world: World) -> None:
    world.beat("theirs", "tv", "secret film", profile="main", limit=2)
    world.beat("mine", "tablet", "cartoon", profile="kids", limit=2)
    kids = {"profiles": frozenset({"kids"})}
    told = world.beat("new", "phone", limit=2, claims=kids)["conflicts"]
    assert {item["session"]: item["content"] for item in told} == {"theirs": None, "mine": "cartoon"}
    assert all("profile" not in item for item in told)
    told = world.beat("new", "phone", profile="main", limit=2)["conflicts"]
    assert {item["content"] for item in told} == {"secret film", "cartoon"}


def test_left_out_it_is_the_only_one(world: World) -> None:
    kids = {"profiles": frozenset({"kids"})}
    world.beat("s", "d", claims=kids)
    assert [item["profile"] for item in world.sessions()] == ["kids"]
    assert {event["profile"] for event in world.events()} == {"kids"}
    world.wait(10)
    world.beat("s", "d", claims=kids)  # the fast path, too
    assert {event["profile"] for event in world.events()} == {"kids"}
    for given, error in ((frozenset({"kids", "main"}), BadRequest), (frozenset(), Forbidden)):
        with pytest.raises(error) as caught:
            world.beat("s2", "d2", claims={"profiles": given})
        assert caught.value.field == "profile"


def test_where_only_the_backend_has_spoken_nobody_has_said_whose_it_is(world: World) -> None:
    """The edge cannot name a profile of a token for several; its session is the player's all the same."""
    several = {"profiles": frozenset({"kids", "main"})}
    assert world.signal("tv", "film", session="sid")["decision"] == "allow"
    with pytest.raises(Forbidden):
        world.run(world.decisions.stop(claims(), "sid", Stop()))
    assert world.beat("sid", "tv", "film", profile="kids", claims=several)["decision"] == "allow"
    world.signal("tv", "film", session="sid")
    assert [item["profile"] for item in world.sessions()] == ["kids"]
    world.wait(60)
    world.sweep()
    # Back by evidence alone it is still hers, and he does not reach it.
    assert world.signal("tv", "film", session="sid")["decision"] == "allow"
    assert [item["profile"] for item in world.sessions()] == ["kids"]
    with pytest.raises(Forbidden):
        world.beat("sid", "tv", "film", profile="main", claims={"profiles": frozenset({"main"})})
    assert world.beat("sid", "tv", "film", profile="kids", claims=several)["decision"] == "allow"


def test_what_was_refused_is_nobodys(world: World) -> None:
    """A refusal leaves a note under the session's name, which holds nothing and belongs to nobody."""
    world.beat("s", "d", limit=1)
    assert world.signal("box", "other", session="sid", limit=1)["decision"] == "block"
    who = {"profiles": frozenset({"kids", "main"})}
    assert world.beat("sid", "box", "other", profile="kids", limit=1, claims=who)["reason"] == "limit_reached"
    assert world.beat("sid", "box", "other", profile="main", limit=2, claims=who)["decision"] == "allow"


# over HTTP


def beat(api: ApiProcess, token: str, session: str, **fields: Any) -> Any:
    now = time.time()
    body = {
        "session": session, "device": f"d-{session}", "content": "film", "kind": "vod", "state": "playing", "seq": int(now * 1000),
        "position": round(now % 1e6, 3),
    } | fields  # fmt: skip
    return api.post("/v1/heartbeats", token=token, json=body)


def test_both_ways_of_a_heartbeat_refuse_alike(api: ApiProcess, account: str) -> None:
    """A token that is remembered is answered without a task, and nothing is raised to the connection that serves all."""
    assert beat(api, player(account, max_streams=9), "theirs", profile="main").status_code == 200
    token = player(account, max_streams=9, **KIDS)
    for _ in range(3):
        answer = beat(api, token, "theirs", state="ended")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "other_profile")
        assert beat(api, token, "mine").json()["degraded"] is False
    assert {item["session"] for item in api.sessions(account)} == {"theirs", "mine"}


def test_every_route_by_one_rule(api: ApiProcess, account: str, single: Server) -> None:
    """What a token for `kids` could do to the others before, and what one for several must say."""
    everybody, kids = player(account, max_streams=9), player(account, max_streams=9, **KIDS)
    several, nobody = player(account, max_streams=9, profiles=["kids", "main"]), player(account, profiles=[])
    for session, profile in (("theirs", "main"), ("mine", "kids"), ("unnamed", "")):
        beat(api, everybody, session, **({"profile": profile} if profile else {}))
    project(single, account)

    def listed(token: str, path: str) -> set[str]:
        return {item["session"] for item in api.get(path, token=token).json()["items"]}

    for path in (f"/v1/accounts/{account}/sessions", "/v1/views"):
        assert listed(everybody, path) == {"theirs", "mine", "unnamed"}
        assert (listed(kids, path), listed(several, path), listed(nobody, path)) == (
            {"mine"},
            {"mine", "theirs"},
            set(),
        )
    take = {"stop": "theirs", "device": "phone", "content": "film", "kind": "vod"}
    position = {"position": 9, "duration": 5400}
    named = "?profile=main"
    for status, field, token, method, path, body in (
        (403, "session", kids, "POST", "/v1/sessions/theirs/stop", None),
        (403, "session", kids, "DELETE", "/v1/sessions/theirs", None),
        (403, "session", kids, "DELETE", "/v1/sessions/unnamed", None),
        (403, "session", kids, "POST", "/v1/sessions/new/takeover", take),
        (403, "session", kids, "GET", "/v1/check?session=theirs&device=d&content=c", None),
        (403, "profile", kids, "GET", "/v1/check?device=d&content=c&profile=main", None),
        (400, "profile", several, "GET", "/v1/check?device=d&content=c", None),
        (403, "profile", nobody, "GET", "/v1/check?device=d&content=c", None),
        *((403, "profile", kids, method, f"/v1/resume/film{named}", body) for method, body in (("GET", None), ("PUT", position), ("DELETE", None))),
        *((400, "profile", several, method, "/v1/resume/film", body) for method, body in (("GET", None), ("PUT", position), ("DELETE", None))),
        *((403, "profile", nobody, method, "/v1/resume/film", body) for method, body in (("GET", None), ("PUT", position), ("DELETE", None))),
        (403, "profile", kids, "GET", f"/v1/resume{named}", None), (400, "profile", several, "GET", "/v1/resume", None),
        (403, "session", kids, "POST", "/v1/events", {"session": "theirs", "events": [{"type": "x"}]}),
        (403, "profile", kids, "POST", "/v1/events", {"session": "new", "profile": "main", "events": [{"type": "x"}]}),
        (400, "profile", several, "POST", "/v1/events", {"session": "new", "events": [{"type": "x"}]}),
        (403, "profile", nobody, "POST", "/v1/events", {"session": "new", "events": [{"type": "x"}]}),
    ):  # fmt: skip
        answer = api.request(method, path, token=token, content=None if body is None else json.dumps(body))
        assert (answer.status_code, answer.json()["error"]["field"]) == (status, field), (method, path, answer.text)
    assert {item["session"] for item in api.sessions(account)} == {"theirs", "mine", "unnamed"}
    # What is its own goes as ever; left out, the profile is the only one, or that of the session.
    assert api.get("/v1/resume/film", token=kids).json()["position"] == 600
    assert api.get(f"/v1/resume/film{named}", token=several).json()["position"] == 700
    assert api.get("/v1/resume/film", token=everybody).json()["position"] == 500
    for token, session in ((kids, "mine"), (several, "theirs"), (kids, "new")):
        said = {"session": session, "events": [{"type": "x"}]}
        assert api.post("/v1/events", token=token, json=said).json()["accepted"] == 1
    assert api.post("/v1/sessions/mine/stop", token=kids).status_code == 204
    assert api.post("/v1/sessions/never-seen/stop", token=kids).status_code == 204


def project(server: Server, account: str) -> None:
    """What the workers would have made of it: there are none here."""
    keys = Keys(PREFIX, PARTITIONS)
    space = keys.projection("views", 1)
    with Redis.from_url(server.url) as client:
        for number, (profile, session) in enumerate((("", "unnamed"), ("kids", "mine"), ("main", "theirs"))):
            entry = Entry(position=500.0 + 100 * number, kind="vod", updated_at=1_800_000_000_000)
            name = resume.field(profile, "film")
            client.hset(resume.key(keys.projection("resume", 1), account), name, resume.encode(entry))
            view = View(profile, "d", "film", "vod", started_at=1_800_000_000_000, last_seen_at=1_800_000_000_000)
            place = views.name_of(session, 1, view.started_at)
            client.hset(space.key("of", account), place, views.encode(view))
            client.zadd(space.key("account", account), {place: view.started_at})


def test_reports_of_stock_players(api: ApiProcess, account: str) -> None:
    everybody = player(account, max_streams=9)
    beat(api, everybody, "theirs", profile="main")
    now = int(time.time() * 1000)

    def report(token: str, session: str, kind: str, **query: str) -> Any:
        line = f'sid="{session}",cid="film",st=v,e={kind},sta=p,sn=1,pt=1000,ts={now},v=2'
        return api.post("/v1/cmcd", params={"token": token, **query}, content=line)

    kids, several = player(account, max_streams=9, **KIDS), player(account, max_streams=9, profiles=["kids", "main"])
    for kind in ("t", "rr"):  # one that is a heartbeat, too, and one that is only an event
        refused = report(kids, "theirs", kind)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "other_profile"), refused.text
    assert report(kids, "new", "t", profile="main").status_code == 403
    assert report(several, "new", "t").json()["error"]["field"] == "profile"
    assert report(kids, "mine", "t").status_code == 204
    wait_for(lambda: "mine" in {item["session"] for item in api.sessions(account)}, "its own session")
    assert {item["session"]: item["profile"] for item in api.sessions(account)}["mine"] == "kids"


def test_the_edge_has_the_tokens_profile_only(api: ApiProcess, account: str) -> None:
    def ask(token: str) -> Any:
        return api.get("/v1/edge/authorize", token=token, headers={"X-Original-URI": "/vod/film/1.m4s"})

    assert ask(player(account, max_streams=9, device="tv", **KIDS)).status_code == 204
    assert ask(player(account, max_streams=9, device="box", profiles=["kids", "main"])).status_code == 204
    refused = ask(player(account, max_streams=9, profiles=[]))
    assert (refused.status_code, refused.headers["x-pulsegate-reason"]) == (403, "other_profile")
    assert {item["device"]: item["profile"] for item in api.sessions(account)} == {"tv": "kids", "box": ""}


def test_a_spooled_heartbeat_keeps_its_profile(tmp_path: Path, prefix: str, single: Server) -> None:
    """Of an outage it is told later, when the token is gone: its profile must not be lost with it."""
    server = Server(tmp_path / "redis", {"appendonly": "no", "save": ""})
    server.start()
    try:
        with ApiProcess(server.url, tmp_path, prefix=prefix, spool_dir=tmp_path / "spool") as api:
            token = player("ann", **KIDS)
            assert beat(api, token, "s").json()["degraded"] is False
            server.kill()
            wait_for(lambda: beat(api, token, "s").json()["degraded"], "Redis is away")
            server.start()
            wait_for(lambda: not beat(api, player("bob"), "b").json()["degraded"] and api.sessions("ann"), "it is back")
            assert [item["profile"] for item in api.sessions("ann")] == ["kids"]
    finally:
        server.stop()


def test_services_see_all(api: ApiProcess, account: str) -> None:
    beat(api, player(account, max_streams=9), "one", profile="main")
    answer = api.get(f"/v1/accounts/{account}/sessions", token=service("read"))
    assert [item["profile"] for item in answer.json()["items"]] == ["main"]
