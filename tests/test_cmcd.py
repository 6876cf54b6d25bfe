"""CMCD: what players send is read, whatever their encoders make of the standard; and what it says becomes heartbeats and events."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import replace
from typing import Any

import pytest
from msgspec.structs import asdict

from engine.cdnlog.signals import Parser, Rules
from engine.cmcd import keys as cmcd_keys
from engine.cmcd.collect import Collector, Sender, event_id
from engine.cmcd.evidence import Stream, heartbeat, seq_of, state_of, stretches
from engine.cmcd.parser import LINE_MAX_BYTES, LINES_MAX, Report, of_request, parse_body, parse_keys
from engine.errors import BadRequest, Overloaded, Unavailable
from engine.spool import Spool
from engine.tokens import Claims
from engine.wire import decode_kept_heartbeat
from tests.harness import World

WIRE = (
    'bl=(6000),br=(4200),cid="C1",e=ps,ltc=2500,msd=812,mtp=(87100),pt=1234.6,sid="S1",sn=2,sta=p,ts=1795400848573,v=2'
)
CAPTURED = {
    'cid="film",e=t,sf=h,sid="h1",sn=0,ts=1795402553242,v=2': {
        "cid": "film", "e": "t", "sf": "h", "sid": "h1", "sn": 0, "ts": 1795402553242, "v": 2,
    },
    'br=(273),cid="film",e=bc,mtp=(500),sf=h,sid="h1",sn=3,sta=s,ts=1795402553293,v=2': {
        "br": [273], "cid": "film", "e": "bc", "mtp": [500], "sf": "h", "sid": "h1", "sn": 3, "sta": "s",
        "ts": 1795402553293, "v": 2,
    },
    'bl=(0;v 0;a),cid="film",e=ps,msd=1,sid="d1",sn=1,sta=s,ts=1795402567215,v=2': {
        "bl": [0, 0], "cid": "film", "e": "ps", "msd": 1, "sid": "d1", "sn": 1, "sta": "s", "ts": 1795402567215, "v": 2,
    },
    'bl=(0;v 0;a),br=(300;v 48;a),cid="film",e=rr,msd=72,rc=200,sid="d1",sn=2,sta=s,ts=1795402567287': {
        "bl": [0, 0], "br": [300, 48], "cid": "film", "e": "rr", "msd": 72, "rc": 200, "sid": "d1", "sn": 2, "sta": "s",
        "ts": 1795402567287,
    },
    'bg,br=(348),cid="film",e=b,sf=d,sid="s1",sn=51,st=v,sta=p,ts=1795402812578': {
        "bg": True, "br": [348], "cid": "film", "e": "b", "sf": "d", "sid": "s1", "sn": 51, "st": "v", "sta": "p",
        "ts": 1795402812578,
    },
}  # fmt: skip
_accounts = itertools.count(1)


@pytest.fixture
def account() -> str:
    return f"a{next(_accounts)}"


# lines


def test_the_report_of_the_standard() -> None:
    assert parse_keys(WIRE) == (
        {
            "bl": [6000], "br": [4200], "cid": "C1", "e": "ps", "ltc": 2500, "msd": 812, "mtp": [87100], "pt": 1234.6,
            "sid": "S1", "sn": 2, "sta": "p", "ts": 1795400848573, "v": 2,
        },
        [],
    )  # fmt: skip


@pytest.mark.parametrize("line", CAPTURED)
def test_captured_reports(line: str) -> None:
    parsed = parse_body(line.encode() + b"\n")
    assert [report.keys for report in parsed.reports] == [CAPTURED[line]]
    assert parsed.reports[0].raw == line
    assert not parsed.bad
    assert not parsed.dropped


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("ec=1234", {"ec": ["1234"]}),
        ("ec=(mediaError)", {"ec": ["mediaError"]}),
        ('ec=("a b" 3016)', {"ec": ["a b", "3016"]}),
        ("br=3200.5", {"br": [3200.5]}),
        ("br=(3200;v x 64;a)", {"br": [3200, 64]}),
        ("dfa=(12)", {"dfa": 12}),
        ("df=12", {"df": 12}),
        ("su,bs=?0,nr=?1", {"su": True, "bs": False, "nr": True}),
        ("ltc=-40", {"ltc": -40}),
        ("sn=3.0", {"sn": 3}),
        (r'cid="a\"b\\c"', {"cid": r'a"b\c'}),
        ('cid="фильм, 1;2"', {"cid": "фильм, 1;2"}),
        ('e="ps"', {"e": "ps"}),
        ('nor="..%2F300.m4s"', {"nor": ["..%2F300.m4s"]}),
        ('com.example-seat="4A",com.example-n=7,com.example-on', {"com.example-seat": "4A", "com.example-n": 7, "com.example-on": True}),
        ("com.example-l=(a 2;x=1)", {"com.example-l": ["a", 2]}),
        (" e=t ,\tsn=1 , ", {"e": "t", "sn": 1}),
        (",,e=t,,", {"e": "t"}),
        ("e=t;q=1;r=\"x,y\",sn=1", {"e": "t", "sn": 1}),
        ("sn=1,sn=2", {"sn": 2}),
        ("", {}),
    ],
)  # fmt: skip
def test_shapes(text: str, keys: dict[str, Any]) -> None:
    assert parse_keys(text) == (keys, [])


@pytest.mark.parametrize(
    "text",
    [
        "sn=-1", "sn=1.5", "sn=x", "sn=999999999999999", 'sn="1"', "sn", "bg=1", "br=(fast)", "br=()", "br=", "pt=-3", "pt=1e5",
        "ts=now", "sta=(p a)", "e=7", "cid=12", f'cid="{"x" * 129}"', f'sid="{"x" * 65}"', 'sid=""', 'sid="a\u200bb"', "msd=NaN", "v=two", "ec",
    ],
)  # fmt: skip
def test_ill_typed_values_cost_their_key_only(text: str) -> None:
    key = text.partition("=")[0]
    assert parse_keys(f'e=ps,{text},com.example-x="y"') == ({"e": "ps", "com.example-x": "y"}, [key])


@pytest.mark.parametrize(
    "line",
    [b'sid="x', b"a b", b"e=ps sid=x", b"{}", b"[1]", b"\x00", b'sid="a\x01"', b"bl=(1", b"bl=1)", b"bl=((1))", b"=1", b"1a=2", b"x" * 65, b'e=p"s"'],
)  # fmt: skip
def test_a_line_that_is_none_hurts_no_neighbour(line: bytes) -> None:
    parsed = parse_body(b"\n".join([WIRE.encode(), line, WIRE.replace("sn=2", "sn=3").encode()]))
    assert [report.sn for report in parsed.reports] == [2, 3]
    assert [(bad.index, bad.reason, bad.raw) for bad in parsed.bad] == [(1, "syntax", line)]


def test_bodies_in_all_their_forms() -> None:
    other = WIRE.replace("sn=2", "sn=3")
    for body in (
        f"{WIRE}\n{other}",
        f"{WIRE}\r\n{other}\r\n",
        f"\ufeff{WIRE}\n\n \n{other}\n\n",
        f"  {WIRE}\t\n{other}",
    ):
        parsed = parse_body(body.encode())
        assert [report.sn for report in parsed.reports] == [2, 3], body
        assert not parsed.bad
    for body in ("", "\n", "\r\n\r\n", " , ,\n"):
        parsed = parse_body(body.encode())
        assert (parsed.reports, parsed.bad, parsed.newer) == ([], [], 0)


def test_lines_that_are_bad_each_for_its_reason() -> None:
    lines = [
        b"e=ps,sn=1",
        b'e=ps,sid="' + b"x" * 65 + b'"',
        b'cid="\xff"',
        b'sid="a",x="' + b"y" * LINE_MAX_BYTES + b'"',
    ]
    parsed = parse_body(b"\n".join([*lines, b'e=ps,sid="a"']))
    assert [bad.reason for bad in parsed.bad] == ["sid", "sid", "encoding", "too_long"]
    assert max(len(bad.raw) for bad in parsed.bad) <= LINE_MAX_BYTES
    assert len(parsed.reports) == 1


def test_newer_versions_are_counted_and_dropped() -> None:
    parsed = parse_body(b'v=3,sid="a"\nv=2,sid="a"\nv=1,sid="a"\nsid="a"\nv=x,sid="a"\nv=99')
    assert (len(parsed.reports), parsed.newer, len(parsed.bad)) == (4, 2, 0)


def test_lines_are_limited() -> None:
    assert len(parse_body(b'sid="a"\n' * LINES_MAX).reports) == LINES_MAX
    with pytest.raises(BadRequest, match="at most") as caught:
        parse_body(b'sid="a"\n' * (LINES_MAX + 1))
    assert caught.value.field == "body"


@pytest.mark.parametrize(
    "hostile",
    ["a=(" + "1" * 8000, 'a="' + '\\"' * 4000, "a" + ";b" * 4000 + "(", "a=(" + "x;y " * 2000, "," * 8000 + "(", "a=(" + '"" ' * 2600, "a" * 8000],
)  # fmt: skip
def test_a_hostile_line_costs_its_length(hostile: str) -> None:
    began = time.process_time()
    parse_body(hostile.encode())
    assert time.process_time() - began < 0.1


def test_every_key_of_the_standard_is_known() -> None:
    # CTA-5004-B, table 1, and nrr of CTA-5004.
    names = (
        "ab bg bl br bs bsa bsd bsda cdn cen cid cmsdd cmsds cs d dfa dl e ec h lab lb ltc msd mtp nor nr nrr ot pb pr pt rc rtp sf "
        "sid smrt sn st sta su tab tb tbl tpb ts ttfb ttfbb ttlb url v"
    )
    assert [name for name in names.split() if not cmcd_keys.known(name)] == []


# request mode


def test_request_mode() -> None:
    assert of_request('br=3200,bs,cid="film",d=4004,mtp=25400,nor="..%2F300.m4s",ot=v,sid="6e2fb550",tb=6000') == {
        "br": [3200], "bs": True, "cid": "film", "d": 4004, "mtp": [25400], "nor": ["..%2F300.m4s"], "ot": "v",
        "sid": "6e2fb550", "tb": [6000],
    }  # fmt: skip
    headers = ["br=3200,d=4004,ot=v", "bl=21300", 'cid="film",sid="6e2fb550",v=2', ""]
    assert of_request("", headers) == {
        "br": [3200], "d": 4004, "ot": "v", "bl": [21300], "cid": "film", "sid": "6e2fb550", "v": 2,
    }  # fmt: skip
    assert of_request('sid="q"', ['sid="h"']) == {"sid": "q"}
    for nothing in ("", "sid=", 'sid="', 'v=3,sid="x"', 'sid="' + "x" * LINE_MAX_BYTES):
        assert of_request(nothing) == {}


COLUMNS = "date time cs-method sc-status cs-uri-stem cs-uri-query cs(CMCD-Session)"
SAID = {"cid": "film", "sid": "S1"}


def logged(*values: str, columns: str = COLUMNS, mapping: dict[str, str] | None = None) -> dict[str, Any]:
    rules = Rules(query={"token": "token", "account": "a", "device": "d"}, mapping=mapping or {}, trust_tokens=True)
    signal = Parser(rules, columns.split()).parse("\t".join(values))
    assert isinstance(signal, dict)
    return signal


def test_a_cdns_log_tells_it() -> None:
    """By the query as the CDN encodes it once more, or by a header that was logged; it fills what the path leaves open."""
    query = "a=ann&d=tv&CMCD=cid%253D%2522film%2522%252Csid%253D%2522S1%2522"
    line = ("2026-03-01", "20:15:07", "GET", "200", "/seg1.ts")
    by_query = logged(*line, query, "-")
    assert (by_query["content"], by_query["session"], by_query["cmcd"]) == ("film", "S1", SAID)
    by_header = logged(*line, "a=ann&d=tv", "cid=%22film%22,sid=%22S1%22")
    assert by_header == by_query
    in_path = logged("2026-03-01", "20:15:07", "GET", "200", "/vod/other/seg1.ts", query, "-")
    assert (in_path["content"], in_path["session"]) == ("other", "S1")
    line_json = json.dumps({"t": 1_772_396_107, "u": "/seg1.ts?a=ann&d=tv", "h": 'cid="film",sid="S1"'})
    by_map = logged(line_json, mapping={"time": "t", "path": "u", "cmcd": "h"})
    assert (by_map["content"], by_map["session"], by_map["cmcd"]) == ("film", "S1", SAID)


def test_a_token_that_names_a_device_is_linked_by_it_alone() -> None:
    """Or a viewer on another device could ride on a session by writing its name into the URL."""
    from tests.servers import player

    query = f"token={player('ann', device='phone')}&CMCD=sid%253D%2522S1%2522"
    signal = logged("2026-03-01", "20:15:07", "GET", "200", "/vod/film/seg1.ts", query, "-")
    assert (signal["device"], signal.get("session")) == ("phone", None)
    query = f"token={player('ann', jti='token-1')}&CMCD=sid%253D%2522S1%2522"
    assert logged("2026-03-01", "20:15:07", "GET", "200", "/vod/film/seg1.ts", query, "-")["session"] == "token-1"


# evidence


def report(sn: int | None = 0, e: str = "ps", sta: str = "p", cid: str = "film", **more: Any) -> Report:
    keys = {"sid": "s1", "sn": sn, "e": e, "sta": sta, "cid": cid, "ts": 1_800_000_000_000} | more
    kept = {name: value for name, value in keys.items() if value not in (None, "")}
    return Report(kept, f"sn={sn}")


@pytest.mark.parametrize(
    ("sta", "state"),
    [("s", "starting"), ("p", "playing"), ("k", "seeking"), ("r", "buffering"), ("a", "paused"), ("w", "buffering"), ("e", "ended"), ("q", "ended"),
     ("d", None), ("x", None), ("", None)],
)  # fmt: skip
def test_states(sta: str, state: str | None) -> None:
    assert state_of(report(e="t", sta=sta)) == state_of(report(e="ps", sta=sta)) == state
    ends = state if sta in ("e", "q") else None
    assert state_of(report(e="rr", sta=sta)) == state_of(report(e="e", sta=sta)) == ends


def test_a_failure_ends_the_view_with_the_report_that_says_why() -> None:
    assert state_of(report(e="ps", sta="f")) is None
    assert state_of(report(e="e", sta="f")) == state_of(report(e="t", sta="f")) == "error"


def test_order_is_sn_else_the_players_clock() -> None:
    assert seq_of(report(7)) == 7
    assert seq_of(report(None)) == 1_800_000_000_000
    assert seq_of(report(None, ts=None)) is None
    assert state_of(report(None, ts=None)) is None


def cut(*reports: Report) -> list[tuple[str, list[int], list[int], int | None]]:
    return [
        (part.content, [r.sn or 0 for r in part.reports], [r.sn or 0 for r in part.beats], part.last and part.last.sn)
        for part in stretches(reports, "")
    ]


def test_a_batch_is_cut_where_content_changes_or_ends() -> None:
    assert cut(report(3), report(1, sta="s"), report(2, "rr"), report(4, "t")) == [("film", [1, 2, 3, 4], [1, 4], None)]
    # A pause in the middle matters.
    assert cut(report(1), report(2, sta="a"), report(3)) == [("film", [1, 2, 3], [1, 2, 3], None)]
    assert cut(report(1), report(2, sta="e"), report(3, "t", sta="e"), report(4)) == [
        ("film", [1, 2], [1], 2), ("film", [3], [], 3), ("film", [4], [4], None),
    ]  # fmt: skip
    assert cut(report(1), report(2, cid=""), report(3, cid="next")) == [
        ("film", [1, 2], [2], None), ("next", [3], [3], None),
    ]  # fmt: skip


def test_the_heartbeat_of_a_report() -> None:
    stream = Stream("film", "vod", "tv", device_type="stb", provider="acme")
    beat, body = heartbeat(report(7, pt=61_500, pr=2), "s1", stream)
    assert (beat.seq, beat.state, beat.position, beat.rate) == (7, "playing", 61.5, 2)
    assert json.loads(body) == {
        "cmcd": 7, "session": "s1", "content": "film", "kind": "vod", "state": "playing", "seq": 7, "device": "tv",
        "position": 61.5, "rate": 2, "device_type": "stb", "provider": "acme",
    }  # fmt: skip
    assert asdict(decode_kept_heartbeat(body)) == asdict(beat)
    bare, body = heartbeat(report(8, pt=61_500, pr=0), "s1", replace(stream, kind="live"))
    assert (bare.position, bare.rate) == (None, 1)
    for kind in ("vod", ""):
        unplaced, body = heartbeat(report(9), "s1", replace(stream, kind=kind))
        assert asdict(decode_kept_heartbeat(body)) == asdict(unplaced)


# the collector, with a clock that the test moves


class Player:
    """A stock player on one device: `tell` posts reports, numbering them."""

    def __init__(
        self, world: World, account: str, session: str = "s1", *, limit: int | None = None, **stated: str
    ) -> None:
        self.world, self.account, self.session = world, account, session
        claims = Claims(account=account, max_streams=limit)
        self.sender = Sender(
            claims, account, Stream(**({"kind": "vod", "device": f"of {session}"} | stated)), "token:1"
        )
        self.collector = Collector(world.decisions, lambda account, session: False)
        self.sn = 0

    def tell(self, *said: dict[str, Any], evidence: Any = None) -> tuple[int, int]:
        reports = []
        for keys in said:
            base = {"sid": self.session, "sn": self.sn, "e": "ps", "cid": "film", "ts": self.world.now}
            reports.append(Report({k: v for k, v in (base | keys).items() if v is not None}, f"line {self.sn}"))
            self.sn += 1
        return self.send(*reports, evidence=evidence)

    def send(self, *reports: Report, evidence: Any = None) -> tuple[int, int]:
        return tuple(self.world.run(self.collector.take(self.sender, list(reports), evidence)))  # type: ignore[return-value]

    def play(self, seconds: float, every: float = 10, **keys: Any) -> None:
        for _ in range(int(seconds / every)):
            self.world.wait(every)
            self.tell({"e": "t", "sta": "p"} | keys)


def test_a_stock_player_is_counted_and_its_view_ends_by_silence(world: World, account: str) -> None:
    player = Player(world, account)
    assert player.tell({"sta": "s"}, {"sta": "p", "e": "ps"}) == (2, 0)
    player.play(60)
    (session,) = world.sessions(account)
    assert (session["session"], session["device"], session["content"], session["kind"], session["state"]) == (
        "s1", "of s1", "film", "vod", "playing",
    )  # fmt: skip
    world.wait(31)
    assert world.sweep() == 1
    (end,) = world.events(account, "view_end")
    # No position, so what counts is the time in a playing state.
    assert (end["data"]["reason"], end["data"]["watched_ms"]) == ("timeout", 60_000)
    assert world.running(account) == set()


def test_each_report_is_an_event_of_its_view(world: World, account: str) -> None:
    player = Player(world, account, provider="acme")
    player.tell({"sta": "s", "com.example-seat": "4A"}, {"e": "rr", "rc": 200}, {"sta": "p"})
    events = world.events(account, "cmcd")
    assert [(e["session"], e["view"], e["content"], e["kind"], e["device"]) for e in events] == [
        ("s1", 1, "film", "vod", "of s1")
    ] * 3
    assert events[0]["data"] == {
        "type": "cmcd", "target": "", "raw": "line 0",
        "keys": {"sid": "s1", "sn": 0, "e": "ps", "cid": "film", "ts": world.now, "sta": "s", "com.example-seat": "4A"},
    }  # fmt: skip
    assert [e["event_id"] for e in events] == [event_id(account, "s1", "", sn) for sn in range(3)]
    beats = world.events(account, "heartbeat")
    assert [(b["seq"], b["data"]["cmcd"], b["data"]["state"], b["data"]["provider"]) for b in beats] == [
        (0, 0, "starting", "acme"), (2, 2, "playing", "acme"),
    ]  # fmt: skip


def test_a_view_that_ends_has_its_last_report_and_a_content_its_own(world: World, account: str) -> None:
    player = Player(world, account)
    player.tell(
        {"sta": "p"}, {"e": "t", "sta": "p", "cid": "next"}, {"sta": "e", "cid": "next"}, {"e": "rr", "cid": "next"}
    )
    told = [(e["content"], e["view"]) for e in world.events(account, "cmcd")]
    assert told == [("film", 1), ("next", 2), ("next", 2), ("next", 0)]
    ends = [(e["content"], e["data"]["reason"]) for e in world.events(account, "view_end")]
    assert ends == [("film", "content_changed"), ("next", "stopped")]
    # The viewer starts it anew.
    player.tell({"sta": "p", "cid": "next"})
    assert world.sessions(account)[0]["view"] == 3


@pytest.mark.parametrize(("sta", "reason"), [("q", "stopped"), ("e", "stopped"), ("f", "error")])
def test_ends(world: World, account: str, sta: str, reason: str) -> None:
    player = Player(world, account)
    player.tell({"sta": "p"}, {"e": "rr", "sta": sta})
    assert [e["data"]["reason"] for e in world.events(account, "view_end")] == [reason]


def test_duplicates_are_dropped_and_disorder_is_put_right(world: World, account: str) -> None:
    player = Player(world, account)
    batch = [
        Report({"sid": "s1", "sn": sn, "e": "ps", "cid": "film", "sta": sta}, "x")
        for sn, sta in ((2, "a"), (0, "s"), (1, "p"))
    ]
    assert player.send(*batch) == (3, 0)
    assert world.sessions(account)[0]["state"] == "paused"
    assert player.send(*batch) == (0, 3)
    late = Report({"sid": "s1", "sn": 1, "e": "t", "cid": "film", "sta": "p"}, "late")
    player.send(late)
    assert world.sessions(account)[0]["state"] == "paused"
    # Another target counts for itself.
    player.sender = replace(player.sender, target="b")
    assert player.send(*batch) == (3, 0)
    bare = Report({"sid": "s1", "e": "rr"}, "not numbered")
    assert [player.send(bare), player.send(bare)] == [(1, 0), (1, 0)]


def test_what_is_no_evidence(world: World, account: str) -> None:
    player = Player(world, account)
    player.tell(
        {"e": "t"},
        {"sta": "d"},
        {"e": "rr", "sta": "p"},
        {"e": "bc", "sta": "p"},
        {"cid": None, "sta": "p"},
        evidence=(),
    )
    player.tell({"cid": None, "sta": "p", "e": "t"})
    player.tell({"e": "t"}, {"sta": "d"}, {"e": "rr", "sta": "p"})
    assert world.sessions(account) == []
    assert len(world.events(account, "cmcd")) == 9
    player.collector._beats = lambda account, session: True
    player.tell({"sta": "p"})
    assert world.sessions(account) == []


def test_a_player_that_names_its_content_once(world: World, account: str) -> None:
    """And its kind (`st`): a later report says neither; another process asks the session's record."""
    player = Player(world, account, kind="")
    player.tell({"sta": "p", "st": "l"})
    world.wait(10)
    player.tell({"e": "t", "sta": "p", "cid": None})
    player.collector = Collector(world.decisions, lambda account, session: False)
    world.wait(10)
    player.tell({"e": "t", "sta": "p", "cid": None})
    (session,) = world.sessions(account)
    assert (session["content"], session["kind"], session["view"], session["watched_ms"]) == ("film", "live", 1, 20_000)
    assert [e["content"] for e in world.events(account, "cmcd")] == ["film"] * 3
    # Of other content nothing is known.
    player.tell({"sta": "p", "cid": "other"})
    assert world.sessions(account)[0]["kind"] == ""


def test_a_player_that_reports_its_playhead_goes_on_where_it_was(world: World, account: str) -> None:
    player = Player(world, account)
    player.tell({"sta": "p", "pt": 60_000})
    world.wait(10)
    player.tell({"e": "t", "sta": "p", "pt": 70_000})
    world.wait(40)
    world.sweep()
    world.wait(60)
    player.tell({"e": "t", "sta": "p", "pt": 70_500})
    (session,) = world.sessions(account)
    assert (session["position"], session["view"], session["revision"], session["watched_ms"]) == (70.5, 1, 1, 10_500)
    assert len(world.events(account, "view_reopen")) == 1


def test_the_limit_counts_stock_players(world: World, account: str) -> None:
    first, second = Player(world, account, "s1", limit=1), Player(world, account, "s2", limit=1)
    first.tell({"sta": "p"})
    second.tell({"sta": "p"})
    assert world.running(account) == {"s1"}
    assert [e["session"] for e in world.events(account, "block")] == ["s2"]
    # Its reports count all the same, and the backend is told to refuse it.
    assert {e["session"] for e in world.events(account, "cmcd")} == {"s1", "s2"}
    assert world.signal("of s2", account=account, limit=1)["decision"] == "block"
    assert world.signal("of s1", account=account, limit=1)["decision"] == "allow"
    world.wait(16)
    second.tell({"e": "t", "sta": "p"})
    assert world.running(account) == {"s2"}


def test_where_nothing_names_a_device_one_token_is_one(world: World, account: str) -> None:
    """A reload has a new `sid`: it must not be blocked by itself."""
    Player(world, account, "s1", limit=1, device="").tell({"sta": "p"})
    again = Player(world, account, "s2", limit=1, device="")
    again.tell({"sta": "p"})
    assert [(s["session"], s["device"]) for s in world.sessions(account)] == [("s2", "token:1")]


def test_many_sessions_in_one_body(world: World, account: str) -> None:
    player = Player(world, account)
    reports = [
        Report({"sid": f"s{n % 7}", "sn": n // 7, "e": "t", "cid": "film", "sta": "p"}, f"{n}") for n in range(70)
    ]
    player.sender = replace(player.sender, stated=Stream(kind="vod"))
    assert player.send(*reports) == (70, 0)
    told = [(e["session"], e["data"]["keys"]["sn"]) for e in world.events(account, "cmcd")]
    assert sorted(told) == sorted((f"s{n}", sn) for n in range(7) for sn in range(10))


def test_redis_away_keeps_the_evidence_and_asks_for_the_reports_again(tmp_path: Any, prefix: str, account: str) -> None:
    class Away:
        async def run(self, *args: Any, **kwargs: Any) -> Any:
            raise Unavailable("away")

    with World("fake", prefix) as world:
        spool = world.decisions._spool = Spool(tmp_path, 2**24, world.metrics.spooled)
        spool.open()
        here, world.decisions._executor = world.decisions._executor, Away()
        player = Player(world, account, kind="")
        with pytest.raises(Unavailable):
            player.tell({"sta": "p"}, {"sta": "e"})
        world.decisions._executor = here
        kept: list[Any] = []

        async def apply(entry: Any) -> bool:
            kept.append(decode_kept_heartbeat(entry["body"].encode()))
            return True

        world.run(spool.drain(apply))
        assert [(beat.state, beat.seq, beat.kind, beat.content) for beat in kept] == [
            ("playing", 0, "", "film"),
            ("ended", 1, "", "film"),
        ]
        spool.close()


def test_an_outbox_too_long_costs_no_viewer_his_place(prefix: str, account: str) -> None:
    with World("fake", prefix, outbox_high=10) as world:
        player = Player(world, account)
        for _ in range(12):
            world.beat("other", account=account)
        with pytest.raises(Overloaded):
            player.tell({"sta": "p"})
        assert "s1" in world.running(account)
        assert world.events(account, "cmcd") == []


def test_reports_of_a_token_past_its_time_keep_alive_what_runs(world: World, account: str) -> None:
    running, new = Player(world, account, "s1"), Player(world, account, "s2")
    running.tell({"sta": "p"})
    world.wait(20)
    running.tell({"sta": "p", "e": "t"}, evidence={"s1"})
    new.tell({"sta": "p"}, evidence={"s1"})
    world.wait(20)
    assert world.running(account) == {"s1"}


def test_a_bug_in_one_session_loses_no_other(prefix: str, account: str) -> None:
    with World("fake", prefix) as world:
        player = Player(world, account)
        track = world.decisions.track

        async def broken(account: str, events: Any, session: str = "", fill: Any = ()) -> Any:
            if session == "bad":
                raise RuntimeError
            return await track(account, events, session, fill)

        world.decisions.track = broken  # type: ignore[method-assign]
        reports = [Report({"sid": sid, "sn": 0, "e": "rr"}, "x") for sid in ("bad", "good")]
        with pytest.raises(RuntimeError):
            player.send(*reports)
        world.decisions.track = track  # type: ignore[method-assign]
        assert [e["session"] for e in world.events(account, "cmcd")] == ["good"]


def test_what_a_process_knows_is_bounded(monkeypatch: pytest.MonkeyPatch, prefix: str, account: str) -> None:
    monkeypatch.setattr("engine.cmcd.collect._KNOWN_MAX", 3)
    with World("fake", prefix) as world:
        player = Player(world, account)
        for number in range(9):
            player.session = f"s{number}"
            player.tell({"sta": "p"})
        assert [session for _, session in player.collector._known] == ["s6", "s7", "s8"]
