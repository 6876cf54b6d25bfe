"""Names that Pulsegate makes itself come in from nowhere, and no two things ever share a key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import edge_rules, names
from engine.cdnlog.errors import BadLine
from engine.cdnlog.signals import Parser, Rules
from engine.cmcd import parser
from engine.embedded import Server
from engine.errors import BadRequest, ConfigError, Unauthorized
from engine.keys import Keys
from engine.plans import parse
from engine.settings import Settings
from engine.tokens import Tokens
from engine.wire import decode_heartbeat
from tests.harness import World
from tests.servers import SECRET, ApiProcess, player, service

OWN_SESSIONS = ("~", "~0123", names.backend_session("box", "film"), "oldest")
OWN_DEVICES = ("token:", "token:x", names.token_device("some token"))
BEAT = {"session": "s", "device": "d", "content": "film", "kind": "vod", "position": 1, "state": "playing", "seq": 0}


@pytest.fixture(scope="module")
def api(single: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    with ApiProcess(single.url, tmp_path_factory.mktemp("names"), prefix="hostile-names") as process:
        yield process


# the attack: a player's session called as the engine calls the backend's


def test_the_backends_session_is_not_a_players(world: World) -> None:
    """The player watched one title under this name, a box another, and neither was in the other's way."""
    own = names.backend_session("d1", "other")
    with pytest.raises(BadRequest) as caught:
        world.beat(own, "d1", "film", limit=1)
    assert (caught.value.field, caught.value.code) == ("session", "reserved")
    assert world.sessions() == []


@pytest.mark.parametrize("name", OWN_SESSIONS)
def test_no_heartbeat_begins_a_session_of_ours(name: str) -> None:
    for text in (json.dumps(BEAT | {"session": name}), json.dumps(BEAT | {"session": name}).replace("~", "\\u007e")):
        with pytest.raises(BadRequest) as caught:
            decode_heartbeat(text.encode())
        assert caught.value.field == "session"


@pytest.mark.parametrize("name", OWN_DEVICES)
def test_no_heartbeat_comes_from_a_device_of_ours(name: str) -> None:
    for text in (json.dumps(BEAT | {"device": name}), json.dumps(BEAT | {"device": name}).replace(":x", "\\u003ax")):
        with pytest.raises(BadRequest) as caught:
            decode_heartbeat(text.encode())
        assert caught.value.field == "device"


@pytest.mark.parametrize(
    ("session", "device"), [("olde", "tokens"), ("oldest-1", "my token:1"), ("o", "aa:bb"), ("a~", "Token:1")]
)
def test_other_names_are_anybodys(session: str, device: str) -> None:
    assert decode_heartbeat(json.dumps(BEAT | {"session": session, "device": device}).encode()).session == session


# every other way in


@pytest.mark.parametrize("name", OWN_SESSIONS)
def test_no_route_takes_a_session_of_ours(api: ApiProcess, name: str) -> None:
    token, backend = player("ann"), service("signals", "admin")
    signal = {"account": "ann", "device": "d", "content": "film", "kind": "vod", "evidence": "segment"}
    for answer, field in (
        (api.post("/v1/heartbeats", token=token, json=BEAT | {"session": name}), "session"),
        (api.get("/v1/check", token=token, params={"session": name, "device": "d", "content": "c"}), "session"),
        (api.post("/v1/events", token=token, json={"session": name, "events": []}), "session"),
        (api.post("/v1/signals", token=backend, json=signal | {"session": name}), "session"),
        (api.post("/v1/signals", token=backend, json=[signal, signal | {"session": name}]), "[1].session"),
        (api.post(f"/v1/sessions/{name}/takeover", token=token, json={"stop": "x", "device": "d", "content": "c"}), "session"),
    ):  # fmt: skip
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "reserved"), answer.text
        assert answer.json()["error"]["field"] == field


@pytest.mark.parametrize("name", OWN_DEVICES)
def test_no_route_takes_a_device_of_ours(api: ApiProcess, name: str) -> None:
    token = player("ann")
    ask = {"stop": "x", "device": name, "content": "c", "kind": "vod"}
    for answer in (
        api.post("/v1/heartbeats", token=token, json=BEAT | {"device": name}),
        api.get("/v1/check", token=token, params={"device": name, "content": "c"}),
        api.post("/v1/events", token=token, json={"session": "s", "device": name, "events": []}),
        api.post("/v1/sessions/s/takeover", token=token, json=ask),
        api.post("/v1/cmcd", params={"token": token, "device": name}, content='sid="s",e=t,ts=1800000000000,v=2'),
    ):
        assert (answer.status_code, answer.json()["error"]["field"]) == (400, "device"), answer.text
    edge = api.get("/v1/edge/authorize/t/x", headers={"Cookie": f"pulsegate={token}"})
    assert edge.status_code == 200


def test_what_ingest_log_makes_of_a_token_is_a_signals_device(api: ApiProcess) -> None:
    signal = {"account": "ann", "content": "film", "kind": "vod", "evidence": "segment"}
    for device, status in (
        (names.token_device("t"), 200),
        ("token:", 400),
        ("token:0123456789ABCDEF", 400),
        ("token:0123456789abcdef0", 400),
    ):
        answer = api.post("/v1/signals", token=service("signals"), json=signal | {"device": device})
        assert answer.status_code == status, answer.text


def test_what_only_points_to_something_may_be_any_name(api: ApiProcess) -> None:
    """The backend's sessions are stopped, taken over and looked up under the names they have."""
    account, backend = "pointing", service("signals", "read", "admin")
    signal = {"account": account, "device": "box", "content": "film", "kind": "vod", "evidence": "segment"}
    born = api.post("/v1/signals", token=backend, json=signal).json()["session"]
    assert born == names.backend_session("box", "film")
    token = player(account, max_streams=1)
    assert api.beat(token, "mine", "phone")["decision"] == "block"
    taken = api.post("/v1/sessions/mine/takeover", token=token, json={"stop": born})
    assert taken.json()["decision"] == "allow"
    assert api.post(f"/v1/sessions/{born}/stop", token=token).status_code == 204
    assert api.get("/v1/views", token=token, params={"session": born}).status_code in (200, 503)


def test_a_tokens_claims() -> None:
    who = Tokens(Settings(jwt_secret=SECRET))
    for claims in (
        *({claim: name} for claim in ("sid", "jti") for name in OWN_SESSIONS),
        *({"device": name} for name in OWN_DEVICES),
    ):
        with pytest.raises(Unauthorized) as caught:
            who.verify(player("ann", **claims))
        assert caught.value.code == "token_claims", claims
    assert who.verify(player("~ann", content="~c")).account == "~ann"  # we make no accounts and no contents


def test_cmcd() -> None:
    for name in OWN_SESSIONS:
        parsed = parser.parse_body(f'sid="{name}",e=t\nsid="mine",e=t'.encode())
        assert [bad.reason for bad in parsed.bad] == ["sid"]
        assert [report.text("sid") for report in parsed.reports] == ["mine"]
        assert edge_rules.session_of({"sid": name}, "") == ""
    assert edge_rules.session_of({"sid": "mine"}, "") == "mine"


def test_the_edge_passes_a_viewer_whose_player_says_such_a_name(api: ApiProcess) -> None:
    """Its segment is no worse for it; the name is just not believed."""
    token = player("edge-names")
    uri = "/vod/film/1.m4s?CMCD=" + "sid%3D%22~0123%22"
    answer = api.get("/v1/edge/authorize", token=token, headers={"X-Original-URI": uri})
    assert answer.status_code == 204
    (session,) = api.sessions("edge-names")
    assert session["session"] == names.backend_session(names.token_device(token), "film")


def test_no_device_of_ours_in_the_edges_uri(single: Server, tmp_path: Path, prefix: str) -> None:
    pattern = "^/(?P<kind>live|vod)/(?P<content>[^/]+)/(?P<device>[^/]+)"
    with ApiProcess(single.url, tmp_path, prefix=prefix, edge_uri=pattern) as edge:
        token = player("ann", max_streams=9)
        for device, status, reason in (
            ("box", 204, None), (OWN_DEVICES[2], 403, "reserved"), ("token%3Ax", 403, "reserved"), ("t%6Fken:x", 403, "reserved"),
        ):  # fmt: skip
            answer = edge.get(
                "/v1/edge/authorize", token=token, headers={"X-Original-URI": f"/vod/film/{device}/1.m4s"}
            )
            assert (answer.status_code, answer.headers.get("x-pulsegate-reason")) == (status, reason), device
        assert [item["device"] for item in edge.sessions("ann")] == ["box"]


def test_one_log_line_costs_no_other() -> None:
    """A batch with one bad signal is refused whole, so a line must be judged before it becomes one."""
    mapping = {name: name for name in ("time", "account", "device", "content", "session")}
    lines = Parser(Rules(mapping=mapping))
    line = {"time": 1_800_000_000, "account": "ann", "device": "d", "content": "film"}
    assert lines.parse(json.dumps(line)) is not None
    for bad, code in (
        *(({"session": name}, "bad_session") for name in OWN_SESSIONS),
        *(({"device": name}, "bad_device") for name in OWN_DEVICES),
    ):
        with pytest.raises(BadLine) as caught:
            lines.parse(json.dumps(line | bad))
        assert caught.value.code == code


# the plan file


def plan(name: str, selector: str = "", plan_name: str = "p") -> str:
    return (
        f"default = {json.dumps(plan_name)}\n[plans.{json.dumps(plan_name)}]\n"
        f"[[plans.{json.dumps(plan_name)}.rules]]\nname = {json.dumps(name)}\nlimit = 1\n{selector}\n"
    )


@pytest.mark.parametrize("name", [*names.BLOCK_REASONS, "account", "streams\n", "a b", ""])
def test_a_rule_has_no_name_of_ours(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(plan(name))
    assert (caught.value.field or "").endswith(".name")


def test_streams_is_the_rule_without_selectors() -> None:
    assert parse(plan("streams")).default == "p"
    with pytest.raises(ConfigError):
        parse(plan("streams", 'kind = "live"'))


@pytest.mark.parametrize("name", ["", " ", "a ", "a\nb", "x" * 129])
def test_a_plan_has_a_name_that_a_token_can_say(name: str) -> None:
    with pytest.raises(ConfigError):
        parse(plan("streams", plan_name=name))
    assert parse(plan("streams", plan_name="Große Familie 4K")).default == "Große Familie 4K"


# keys

NAME = st.text(st.sampled_from("a:1n}{~\t@"), min_size=1, max_size=8).filter(str.isprintable)
NUMBER = st.integers(0, 12)
OPTIONAL = st.one_of(st.just(""), NAME)
KEYS = Keys("pg", 1)


def key_of(what: tuple[object, ...]) -> str:
    kind, *parts = what
    account = KEYS.account(str(parts[0])) if parts else KEYS.account("")
    made = {
        "leases": lambda _: account.leases,
        "takeovers": lambda _: account.takeovers,
        "seen": lambda _, day: f"{account.seen}:{day}",
        "numbers": lambda _, day: f"{account.seen}:{day}:n",
        "request": lambda _, verb, id_: account.request(verb, id_),
        "viewers": KEYS.viewers,
        "list": KEYS.trending_list,
        "series": KEYS.series,
        "of": lambda name: KEYS.projection("views", 1).key("of", name),
        "account": lambda name: KEYS.projection("views", 1).key("account", name),
        "content": lambda name: KEYS.projection("views", 1).key("content", name),
        "due": lambda tick: KEYS.due(0, tick),
        "held": lambda: KEYS.held(0),
        "audience": lambda: KEYS.audience(0),
    }
    return str(made[str(kind)](*parts))


THING = st.one_of(
    *(st.tuples(st.just(kind), NAME) for kind in ("leases", "takeovers", "of", "account", "content")),
    *(st.tuples(st.just(kind), NAME, NUMBER) for kind in ("seen", "numbers")),
    st.tuples(st.just("request"), NAME, st.sampled_from(["stop", "takeover", "signal", "lost"]), NAME),
    st.tuples(st.just("viewers"), NAME, st.sampled_from(["5m", "1h"]), NUMBER),
    st.tuples(st.just("list"), st.sampled_from(["live", "vod"]), st.sampled_from(["trending", "popular"]), OPTIONAL),
    st.tuples(st.just("series"), st.sampled_from(["live", "vod", ""]), OPTIONAL),
    st.tuples(st.just("due"), NUMBER),
    st.tuples(st.sampled_from(["held", "audience"])),
)


@settings(derandomize=True, max_examples=2_000, database=None, deadline=None)
@given(THING, THING)
def test_two_things_never_share_a_key(one: tuple[object, ...], other: tuple[object, ...]) -> None:
    assert (key_of(one) == key_of(other)) == (one == other)


@settings(derandomize=True, max_examples=500, database=None, deadline=None)
@given(st.lists(NAME, min_size=3, max_size=3), st.integers(0, 20), st.integers(0, 20))
def test_one_text_cut_in_two_ways_is_two_requests(parts: list[str], one: int, other: int) -> None:
    """The nearest to a collision: what is one account and id joined, cut elsewhere."""
    text = ":".join(parts)
    cuts = {cut for cut in (one % len(text), other % len(text)) if cut}
    keys = {(text[:cut], text[cut:]): KEYS.account(text[:cut]).request("stop", text[cut:]) for cut in cuts}
    assert len(set(keys.values())) == len(keys)


def test_accounts_share_no_request_id(world: World) -> None:
    """Account `a` with the id `b:stop:c` was account `a:stop:b` with the id `c`, where both fell into one partition."""
    pairs = [("a", "b:stop:c"), ("a:stop:b", "c")]
    assert len({world.keys.account(account).request("stop", id_).partition("}")[2] for account, id_ in pairs}) == 2
