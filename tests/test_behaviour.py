"""How people watch: each figure against a count by hand over seeded lives."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import duckdb
import pytest

from engine.embedded import Server
from engine.errors import BadRequest
from engine.quality import behaviour
from engine.quality.behaviour import Asked
from engine.quality.columns import table
from engine.quality.facts import Fact
from engine.quality.files import TOPIC, lake_of
from engine.settings import Settings
from tests.servers import ApiProcess, player, service

DAY = 86_400_000
START = 1_800_000_000_000 // DAY * DAY
END = START + 3 * DAY


def ended(n: int, began: int, lasted: int, **fields: Any) -> Fact:
    at = began + lasted
    return Fact(
        fact="end", at=at, account=fields.pop("account", "ann"), session=fields.pop("session", f"s{n}"), started_at=began, partition=1,
        stream_ms=at, stream_seq=n, ms=fields.pop("ms", lasted), code=fields.pop("code", "stopped"), **fields,
    )  # fmt: skip


def lives(seed: int) -> list[Fact]:
    """Accounts that zap, binge, come back or not."""
    random_ = random.Random(seed)
    facts: list[Fact] = []
    for a in range(60):
        at = START - DAY + random_.randrange(2 * DAY)
        for n in range(random_.randrange(1, 14)):
            kind = random_.choice(("live", "vod"))
            length = random_.choice((1800.0, 5400.0, 0.0)) if kind == "vod" else 0.0
            short = random_.random() < 0.4
            lasted = random_.randrange(1_000, 59_000) if short else random_.randrange(60_000, 5_400_000)
            completed = bool(length) and random_.random() < 0.4
            reached = length if completed else length * random_.random()
            silent = random_.random() < 0.2
            place: dict[str, Any] = {
                "account": f"a{a}", "session": f"a{a}-{n}", "profile": random_.choice(("", "kids")), "device": random_.choice("xy"),
                "content": f"{kind}{random_.randrange(5)}", "kind": kind, "provider": random_.choice(("big", "small")),
                "device_type": random_.choice(("tv", "phone")), "value": reached, "before": length or None,
                "completed": completed, "silent": silent, "code": "timeout" if silent else "stopped",
            }  # fmt: skip
            if random_.random() < 0.1:  # it had timed out before, and was reopened
                facts.append(ended(10_000 + n, at, lasted // 2, **place | {"completed": False, "silent": True}))
            facts.append(ended(n, at, lasted, **place))
            at += lasted + random_.choice((500, 20_000, 40_000, 3_000_000, 4_000_000, 13 * 3_600_000, 30 * 3_600_000))
    random_.shuffle(facts)
    return facts


def counted(facts: list[Fact], asked: Asked) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The same by hand."""
    last: dict[Any, Fact] = {}
    for fact in facts:
        key = (fact.account, fact.session, fact.started_at)
        if key not in last or (fact.stream_ms, fact.stream_seq) > (last[key].stream_ms, last[key].stream_seq):
            last[key] = fact
    views = sorted(last.values(), key=lambda f: (f.account, f.started_at, f.session))
    inside = [f for f in views if asked.start <= f.started_at < asked.end]
    first: dict[str, int] = {}
    for fact in inside:
        first.setdefault(fact.account, fact.started_at)
    loyal = {
        f.account for f in views
        if f.account in first and behaviour.AWAY_MS <= f.started_at - first[f.account] <= behaviour.RETURN_MS
    }  # fmt: skip

    def following(fact: Fact, same: str) -> Fact | None:
        rest = [f for f in views if f.account == fact.account and getattr(f, same) == getattr(fact, same)]
        place = rest.index(fact)
        return rest[place + 1] if place + 1 < len(rest) else None

    groups: defaultdict[tuple[Any, ...], list[Fact]] = defaultdict(list)
    for fact in inside:
        if all(getattr(fact, name) == value for name, value in asked.where):
            hour = fact.started_at % DAY // 3_600_000
            groups[tuple(hour if name == "hour" else getattr(fact, name) for name in asked.by)].append(fact)
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for by, some in groups.items():
        known = [f for f in some if f.before]
        titles = [f for f in some if f.completed and f.kind == "vod"]
        zaps = [
            f
            for f in some
            if (f.ms or 0) < 60_000
            and (n := following(f, "device"))
            and n.content != f.content
            and n.started_at - f.at <= 30_000
        ]
        binges = [
            f
            for f in titles
            if (n := following(f, "profile"))
            and n.kind == "vod"
            and n.content != f.content
            and n.started_at - f.at <= 3_600_000
        ]
        accounts = {f.account for f in some}
        found[by] = {
            "views": len(some), "silent": sum(f.silent for f in some), "watched_ms": sum(f.ms or 0 for f in some),
            "accounts": len(accounts),
            "completion": sum(f.completed for f in known) / len(known) if known else None,
            "quartiles": {
                str(q): sum(f.completed or (f.value or 0) >= (f.before or 0) * q / 100 for f in known) / len(known) if known else None
                for q in behaviour.QUARTILES
            },
            "zapping": len(zaps) / len(some), "binge": len(binges) / len(titles) if titles else None,
            "returned": len(accounts & loyal) / len(accounts),
        }  # fmt: skip
    return found


def ask(facts: list[Fact], sql: str, params: dict[str, Any]) -> list[Any]:
    with duckdb.connect() as db:
        db.register("facts", table(facts))
        return db.execute(sql, params).fetchall()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("by", [(), ("kind",), ("provider", "device_type"), ("content",), ("hour",)])
def test_every_figure_equals_a_count_by_hand(seed: int, by: tuple[str, ...]) -> None:
    facts = lives(seed)
    for where in ((), (("kind", "vod"),), (("provider", "big"), ("device_type", "tv"))):
        asked = Asked(START, END, by, where)
        found = behaviour.rows(asked, [list(row) for row in ask(facts, *behaviour.figures(asked))])
        wanted = counted(facts, asked)
        assert sorted(str(tuple(item["by"].values())) for item in found) == sorted(map(str, wanted))
        for item in found:
            place = tuple(item.pop("by").values())
            assert item == wanted[place], (where, place)


def test_a_drop_off_curve_falls_from_all_to_those_who_stayed() -> None:
    facts = [
        ended(
            n,
            START + n,
            1000,
            account=f"a{n}",
            kind="vod",
            content="film",
            value=reached,
            before=100.0,
            completed=reached > 95,
        )
        for n, reached in enumerate((0.0, 10.0, 50.0, 50.0, 99.0))
    ]
    facts.append(ended(9, START, 1000, account="b", kind="live", content="film"))
    points = behaviour.points(list(ask(facts, *behaviour.curve(Asked(START, END, where=(("content", "film"),))))[0]))
    shares = {point["at"]: point["share"] for point in points}
    assert [shares[at] for at in (0.0, 0.05, 0.1, 0.5, 0.55, 1.0)] == [1.0, 0.8, 0.8, 0.6, 0.2, 0.2]


def test_nothing_was_watched() -> None:
    asked = Asked(START, END)
    ((*row,),) = ask([], *behaviour.figures(asked))
    (item,) = behaviour.rows(asked, [row])
    assert (item["views"], item["completion"], item["returned"]) == (0, None, None)
    assert behaviour.points(list(ask([], *behaviour.curve(asked))[0])) == []


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"by": ("colour",)}, "by"), ({"by": ("kind", "kind")}, "by"), ({"by": ("kind", "hour", "day", "content")}, "by"),
        ({"end": START}, "from"), ({"end": START + 91 * DAY}, "from"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(BadRequest) as refused:
        Asked(**{"start": START, "end": END} | fields)
    assert refused.value.field == named


def test_a_value_is_never_sql() -> None:
    asked = Asked(START, END, where=(("content", "' OR 1=1; DROP TABLE facts --"),))
    ((*row,),) = ask(lives(1), *behaviour.figures(asked))
    assert behaviour.rows(asked, [row])[0]["views"] == 0
    with pytest.raises(BadRequest):
        behaviour.figures(Asked(START, END, where=(("content = '' OR 1", "x"),)))


def test_over_http(single: Server, prefix: str, tmp_path: Path) -> None:
    facts = lives(1)
    lake = lake_of(Settings(lake_dir=str(tmp_path / "lake")))
    assert lake is not None
    lake.add(TOPIC, table(facts), {1: f"{max(f.stream_ms for f in facts)}-99999"})
    with ApiProcess(single.url, tmp_path, prefix=prefix, lake_dir=str(tmp_path / "lake")) as api:

        def get(path: str, **params: Any) -> Any:
            return api.get(path, params={"from": START, "to": END} | params, token=service("read"))

        wanted = counted(facts, Asked(START, END, ("kind", "provider"), (("device_type", "tv"),)))
        found = get("/v1/behaviour", by="kind,provider", device_type="tv").json()
        assert {tuple(item.pop("by").values()): item for item in found["items"]} == wanted
        curve = get("/v1/behaviour/dropoff", content="vod1").json()
        assert curve["items"][0] == {"at": 0.0, "share": 1.0}
        assert curve["views"] > 10
        for params, field in (({"by": "colour"}, "by"), ({"from": END}, "from"), ({"limit": 0}, "limit")):
            refused = get("/v1/behaviour", **params)
            assert (refused.status_code, refused.json()["error"]["field"]) == (400, field)
        assert get("/v1/behaviour/dropoff").json()["error"]["field"] == "content"
        assert api.get("/v1/behaviour", token=player("ann")).status_code == 403
