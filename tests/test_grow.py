"""The SQL of docs/grow.md, as it stands there, on chDB: each figure is the one that DuckDB gives over the same Parquet, which is the answer of
`GET /v1/quality` (engine/quality/query.py, ask_jobs.py)."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from math import isclose
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest

from engine.events import Event, read
from engine.lake import Lake
from engine.lake.layout import SCHEMA as EVENTS
from engine.quality.ask_jobs import JOBS
from engine.quality.behaviour import Asked as Behaviour
from engine.quality.columns import SCHEMA, table
from engine.quality.facts import Fact
from engine.quality.files import QUALITY, TOPIC
from engine.quality.fold import SILENT, fold
from engine.quality.metrics import METRICS, PERCENTILES
from engine.quality.server import Database
from tests import test_behaviour
from tests.harness import START
from tests.quality_plain import HOUR, NONE, seeded
from tests.servers import ROOT, clean_env

GUIDE = (ROOT / "docs" / "grow.md").read_text()
BLOCKS = dict(re.findall(r"^```sql\n-- name: (\w+)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL))
DAY = 24 * HOUR
SPAN = {"from": START - 2 * HOUR, "to": START + 2 * HOUR}
LATER = START + 30 * DAY
"""When files are merged: all hours are quiet by then."""
LAKE = "facts_lake(from = {from:Int64}, to = {to:Int64})"
VIEWS = ("facts_counted", "facts_lake", "facts", "events_counted", "events_lake")

Question = tuple[list[str], dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    if importlib.util.find_spec("chdb") is None:
        message = "chDB is not installed; scripts/install-test-tools installs it"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)


class Grown:
    """A lake of facts and one of events, and a ClickHouse that reads them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts = Lake(folder / "lake" / QUALITY, clock=lambda: LATER)
        self.events = Lake(folder / "lake", clock=lambda: LATER)
        self._made = False

    def fill(self, facts: Sequence[Fact], parts: int = 3) -> None:
        """In as many commits, so that an hour has several files."""
        ordered = sorted(facts, key=lambda fact: (fact.stream_ms, fact.stream_seq))
        size = -(-len(ordered) // parts)
        for begin in range(0, len(ordered), size):
            chosen = ordered[begin : begin + size]
            self.facts.add(TOPIC, table(chosen), {f.partition: f"{f.stream_ms}-{f.stream_seq}" for f in chosen})

    def clickhouse(self, *questions: Question) -> list[Any]:
        """The rows of each; the tables are there."""
        made: list[Question] = [] if self._made else [([BLOCKS[name]], {}) for name in VIEWS]
        asked, answered = self.folder / "asked.json", self.folder / "answered.json"
        asked.write_text(json.dumps([*made, *questions]))
        # Not UTC: nothing may depend on where ClickHouse believes to be.
        subprocess.run(
            [sys.executable, "-m", "tests.grow_child", self.folder / "clickhouse", self.folder, asked, answered],
            cwd=ROOT, env=clean_env() | {"TZ": "Asia/Kolkata"}, check=True, timeout=60, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        found = json.loads(answered.read_text())
        errors = [said["error"] for said in found if isinstance(said, dict)]
        assert errors == []
        self._made = True
        return found[len(made) :]  # type: ignore[no-any-return]

    def duckdb(self, do: str = "metrics", until: int = SPAN["to"], **args: Any) -> list[dict[str, Any]]:
        """Our own answer's items."""
        database = Database(2, 2**29, str(self.folder))
        begin = args.setdefault("start", SPAN["from"])
        args.setdefault("end", SPAN["to"])
        database.begin(1, {"facts": [str(path) for path in self.facts.files(TOPIC, begin, until)]})
        said = orjson.loads(orjson.dumps(JOBS[do](database, msgspec.to_builtins(args))))
        return list(said["items"])


def query(name: str, key: str, source: str = "facts", **params: Any) -> Question:
    """The guide's query with the two lines changed that it says may be."""
    sql, count = re.subn(r"^( *)\w+ AS key, -- by$", rf"\g<1>{key} AS key,", BLOCKS[name], flags=re.MULTILINE)
    assert count == 1
    return [re.sub(r"\bFROM facts$", f"FROM {source}", sql, flags=re.MULTILINE)], SPAN | params


def load(day: str) -> Question:
    begin = int(datetime.fromisoformat(f"{day}T00:00+00:00").timestamp() * 1000)
    statements = [part for part in BLOCKS["load"].split(";\n") if part.strip()]
    return statements, {"from": begin, "to": begin + DAY, "day": day}


BEFORE, LOAD = load("2027-01-14"), load("2027-01-15")
COLUMNS = {
    "figures": [*re.findall(r"AS (\w+),?\n", BLOCKS["figures"].split("SELECT\n  key,")[1] + "\n")],
    "percentiles": ["startup_time", "live_latency", "ad_startup"],
    "views": ["view_duration", "view_duration_percentiles", "completion", "quartiles", "quartiles_shares"],
}


def as_ours(key: Any, by: Sequence[str], interval: int) -> tuple[Any, ...]:
    """A key of ClickHouse as (at, dimension, …)."""
    parts = key if isinstance(key, list) else [key] if by or interval else []
    if interval:
        parts = [int(datetime.fromisoformat(parts[0]).replace(tzinfo=UTC).timestamp() * 1000), *parts[1:]]
    return tuple(parts)


def told(found: Sequence[Any], by: Sequence[str], interval: int) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rows of the three queries as `metrics` of our items, by group."""
    groups: dict[tuple[Any, ...], dict[str, Any]] = defaultdict(dict)
    for name, rows in zip(COLUMNS, found, strict=True):
        for key, *cells in rows:
            said = dict(zip(COLUMNS[name], cells, strict=True))
            group = groups[as_ours(key, by, interval)]
            for column, cell in said.items():
                if name == "percentiles" or column.endswith("_percentiles"):
                    shares = dict(zip(PERCENTILES, cell, strict=True))
                    group.setdefault(column.removesuffix("_percentiles"), {}).update(shares)
                elif column == "quartiles_shares":
                    group["quartiles"].update(zip(("q25", "q50", "q75", "q100"), cell, strict=True))
                elif column.startswith("score_"):
                    group["score"][column.removeprefix("score_")] = cell[0]
                else:
                    group.setdefault(column, {}).update({"value": cell[0], "sessions": cell[1]})
    return groups


def same(said: dict[str, Any], ours: dict[str, Any]) -> None:
    """Each part of each figure. What nobody can measure is null, and so is what there is no row of."""
    assert set(ours) == set(METRICS)
    for name, parts in ours.items():
        theirs = said.get(name, {"sessions": 0})
        assert set(theirs) <= set(parts), name
        for part, value in parts.items():
            other = theirs.get(part)
            equal = other is None if value == NONE else other is not None and isclose(other, value)
            assert equal, (name, part, other, value)


@pytest.fixture(scope="module", params=[1, 2, 3])
def grown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Grown:
    """Files that were merged, those they were merged of, and some beside them; and one that no manifest names."""
    made = Grown(tmp_path_factory.mktemp("grown"))
    facts = seeded(request.param, 1_000 * request.param, hours=1.2)
    for n in range(0, len(facts), 11):
        facts[n] = msgspec.structs.replace(facts[n], started_at=0)
    for n in range(0, len(facts), 5):
        if facts[n].fact == "play":  # an instant, of which some bits are known
            facts[n] = msgspec.structs.replace(facts[n], ms=0, bits_ms=0)
    middle = facts[len(facts) // 2].stream_ms
    early = [fact for fact in facts if fact.stream_ms < middle]
    made.fill(early)
    assert made.facts.compact(0).merged >= 6
    made.fill([fact for fact in facts if fact.stream_ms >= middle])
    counted = made.facts.files(TOPIC)
    shutil.copy(counted[0], counted[0].with_name("1-uncommitted.parquet"))
    counted[0].with_name("2-broken.parquet").write_bytes(b"PAR1, but no more")
    return made


def test_each_row_once(grown: Grown) -> None:
    counted, on_disk = grown.facts.files(TOPIC), list((grown.folder / "lake").rglob("*.parquet"))
    assert len(on_disk) >= len(counted) + 8
    rows = sum(file.rows for file in grown.facts._listed(None, None))
    ids = "count(), uniqExact(partition, stream_ms, stream_seq, part)"
    listed, here, hour, loaded, again, behind = grown.clickhouse(
        (["SELECT name FROM facts_counted"], {}),
        ([f"SELECT {ids} FROM {LAKE}"], SPAN),
        ([f"SELECT {ids} FROM {LAKE}"], {"from": START - HOUR, "to": START - HOUR + 1_234_567}),
        ([*LOAD[0], f"SELECT {ids} FROM facts"], LOAD[1]),
        ([*LOAD[0], f"SELECT {ids} FROM facts"], LOAD[1]),
        ([BLOCKS["behind"]], {}),
    )
    assert sorted(name for (name,) in listed) == sorted(path.name for path in counted)
    assert here == loaded == again == [[rows, rows]]
    assert behind == []
    database = Database(1, 2**29, str(grown.folder))
    database.begin(1, {"facts": [str(path) for path in counted]})
    test = f'"at" >= epoch_ms({START - HOUR}) AND "at" < epoch_ms({START - HOUR + 1_234_567})'
    assert hour[0][0] == database.rows(f"SELECT count(*) FROM facts WHERE {test}")[0][0] > 0


SHAPES: list[tuple[str, tuple[str, ...], int]] = [
    ("'all'", (), 0),
    ("cdn", ("cdn",), 0),
    ("labels['plan']", ("label.plan",), 0),
    ("(player, country)", ("player", "country"), 0),
    ("toStartOfInterval(at, INTERVAL 1 MINUTE)", (), 60_000),
    ("(toStartOfInterval(at, INTERVAL 1 MINUTE), cdn)", ("cdn",), 60_000),
]


def same_order(found: Sequence[Any], ours: Sequence[dict[str, Any]]) -> None:
    """Of `worst`: the same values of a dimension, from the one that hurts most."""
    assert ours
    assert [[row[0]] for row in found] == [list(item["by"].values()) for item in ours]
    for (_, *row), item in zip(found, ours, strict=True):
        assert row == pytest.approx([item[part] for part in ("value", "rest", "excess", "sessions", "hurt")])


def test_every_figure_of_quality(grown: Grown) -> None:
    """From the table and in place."""
    assert all(f"`{key}`" in GUIDE for key, *_ in SHAPES)
    asked = [query(name, key, source) for key, *_ in SHAPES for source in ("facts", LAKE) for name in COLUMNS]
    asked += [query("worst", key, source) for key in ("cdn", "country") for source in ("facts", LAKE)]
    found = grown.clickhouse(LOAD, *asked)[1:]
    size = len(COLUMNS)
    for n, (_, by, interval) in enumerate(SHAPES):
        ours = grown.duckdb(metrics=tuple(METRICS), by=by, interval=interval)
        assert len(ours) > (60 if interval else 1 if by else 0)
        groups = {(*([item["at"]] if interval else []), *item["by"].values()): item["metrics"] for item in ours}
        for begin in (2 * n * size, (2 * n + 1) * size):
            theirs = told(found[begin : begin + size], by, interval)
            assert set(theirs) == set(groups)
            for group, metrics in groups.items():
                same(theirs[group], metrics)
    for n, key in enumerate(("cdn", "cdn", "country", "country")):
        same_order(found[n - 4], grown.duckdb("worst", metrics=("rebuffer_ratio",), by=(key,), limit=20))


def test_the_guide_has_every_figure_and_every_column() -> None:
    names = {name for columns in COLUMNS.values() for name in columns}
    assert {name for name in names if not name.startswith(("score_", "quartiles_", "view_duration_"))} == set(METRICS)
    columns = re.findall(r"(\w+) (?:Nullable|LowCardinality|Map|DateTime64|U?Int|String|Float64|Bool)", BLOCKS["facts"])
    assert columns == SCHEMA.names
    said = [re.sub(r"\s+", " ", text).replace("''", "'") for text in (BLOCKS["facts_lake"], BLOCKS["facts"])]
    types = [re.findall(r"(?:partition|, at|, account) .*", text)[0].partition(" silent Bool")[0] for text in said]
    assert types[0] == types[1].replace(" CODEC(Delta, ZSTD)", "")
    found = re.findall(r"(\w+) (?:Nullable|LowCardinality|DateTime64|Int|String)", BLOCKS["events_lake"])
    assert found[: len(EVENTS.names)] == EVENTS.names


def test_late_facts_and_erased_accounts(tmp_path: Path) -> None:
    """A day is loaded anew, and has what the lake has; also where nothing is left."""
    grown = Grown(tmp_path)
    facts = seeded(4, 600)
    day_before = [
        msgspec.structs.replace(fact, at=fact.at - DAY, stream_ms=fact.stream_ms + HOUR, account="gone")
        for fact in facts[:50]
    ]
    grown.fill(facts)
    count = "SELECT toString(toDate(at)), count() FROM facts GROUP BY 1 ORDER BY 1"
    behind, loaded = grown.clickhouse(([BLOCKS["behind"]], {}), ([*LOAD[0], count], LOAD[1]))
    assert behind == [["2027-01-15", 600, 0]]
    assert loaded == [["2027-01-15", 600]]
    grown.fill(day_before)
    behind, loaded = grown.clickhouse(([BLOCKS["behind"]], {}), ([*BEFORE[0], count], BEFORE[1]))
    assert behind == [["2027-01-14", 50, 0]]
    assert loaded == [["2027-01-14", 50], ["2027-01-15", 600]]
    mine = sum(fact.account == "account-1" for fact in facts)
    grown.facts.erase("gone", "account-1")
    behind, loaded, behind_now, erased = grown.clickhouse(
        ([BLOCKS["behind"]], {}),
        ([BLOCKS["drop"], count], {"day": "2027-01-14"}),
        ([BLOCKS["erase"], BLOCKS["behind"]], {"account": "account-1"}),
        ([BLOCKS["ttl"], "SELECT count() FROM facts WHERE account = 'account-1'"], {}),
    )
    assert behind == [["2027-01-14", 0, 50], ["2027-01-15", 600 - mine, 600]]
    assert loaded == [["2027-01-15", 600]]
    assert behind_now == []
    assert erased == [[0]]


def ended(facts: Sequence[Fact]) -> list[Event]:
    """The events that such ends come from. Half of the sessions are told after all others, so that each hour has late ones."""
    events = []
    for n, fact in enumerate(sorted(facts, key=lambda fact: (int(fact.session.partition("-")[2]) % 2, fact.at))):
        data = {
            "reason": fact.code,
            "watched_ms": fact.ms,
            "max_position": fact.value,
            "duration": fact.before,
            "completed": fact.completed,
        }
        payload = {
            "type": "view_end", "at": fact.at, "view": 1, "started_at": fact.started_at, "account": fact.account, "profile": fact.profile,
            "device": fact.device, "session": fact.session, "content": fact.content, "kind": fact.kind, "v": 1, "data": data,
        }  # fmt: skip
        events.append(read(1, f"{START}-{n + 1}", orjson.dumps(payload)))
    return events


def test_how_people_watch(tmp_path: Path) -> None:
    """Out of the facts, and out of the events that these were made of."""
    grown = Grown(tmp_path)
    begin, end = test_behaviour.START, test_behaviour.END
    lives = []
    for n, fact in enumerate(test_behaviour.lives(2)):
        if int(fact.account[1:]) < 20:
            content = fact.content.translate(str.maketrans("234", "101"))  # the same again, now and then
            code = sorted(SILENT)[n % len(SILENT)] if fact.silent else fact.code
            lives.append(msgspec.structs.replace(fact, content=content, code=code))
    events = ended(lives)
    grown.events.append(events[: len(events) // 2])
    grown.events.append(events[len(events) // 2 :])
    assert grown.events.compact(0).merged > 5
    grown.fill([fact for event in events for fact in fold(None, event)[1]], 1)
    shapes = [
        ("'all'", ()),
        ("kind", ("kind",)),
        ("content", ("content",)),
        ("toHour(assumeNotNull(began))", ("hour",)),
    ]
    span = {"from": begin, "to": end}
    found = grown.clickhouse(*(
        query(name, key, LAKE.replace("{to:Int64}", "{to:Int64} + 7 * 86400000"), **span)
        for key, _ in shapes for name in ("behaviour", "watched")
    ))  # fmt: skip
    for n, (_, by) in enumerate(shapes):
        asked = Behaviour(begin, end, by, limit=1_000)
        items = grown.duckdb("behaviour", asked.until, **msgspec.to_builtins(asked))
        ours = {tuple(item["by"].values()) or ("all",): item for item in items}
        for rows in found[2 * n : 2 * n + 2]:
            assert {(row[0],) for row in rows} == set(ours)
            for key, *row in rows:
                item = ours[key,]
                assert row[:4] == [item[part] for part in ("views", "silent", "watched_ms", "accounts")]
                figures = [item["completion"], *item["quartiles"].values()]
                figures += [item[part] for part in ("zapping", "binge", "returned")][: len(row) - 6]
                assert [row[4], *row[5], *row[6:]] == [
                    None if figure is None else pytest.approx(figure) for figure in figures
                ]
    (item,) = grown.duckdb("behaviour", asked.until, start=begin, end=end)
    assert all(item[part] for part in ("silent", "completion", "zapping", "binge", "returned"))
