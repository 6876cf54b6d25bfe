"""Questions on stream quality over HTTP: 5,000,000 facts of a day, in a lake written by the lake's own writer."""

from __future__ import annotations

import http.client
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import duckdb
import jwt
import pyarrow as pa
import pyarrow.feather as feather

from loadtest.bench_rig import MEMORY_ONLY, PARTITIONS, SECRET, BenchError, Place, Spread, api, unpinned, valkey
from loadtest.bench_table import Row

FACTS, QUICK_FACTS = 5_000_000, 500_000
DAY = 1_794_355_200_000
DAY_MS, HOUR, MINUTE = 86_400_000, 3_600_000, 60_000
_A_SESSION = 44.6
"""Facts of a session."""

SESSIONS = """
CREATE TABLE sessions AS SELECT i,
  'account-' || lpad((hash(i, 'account') % {accounts})::VARCHAR, 7, '0') AS account,
  regexp_replace(md5(i::VARCHAR), '(.{{8}})(.{{4}})(.{{4}})(.{{4}})', '\\1-\\2-\\3-\\4-') AS session,
  {day} - 3600000 + (hash(i, 'begin') % ({day_ms} + 3600000))::BIGINT AS began, 1 + (hash(i, 'long') % 60)::INT AS mins,
  'device-' || (hash(i, 'account') % {accounts})::VARCHAR AS device,
  'title-' || lpad(floor(20000 * pow((hash(i, 'content') % 1000000) / 1e6, 3))::INT::VARCHAR, 5, '0') AS content,
  CASE WHEN hash(i, 'kind') % 3 = 0 THEN 'live' ELSE 'vod' END AS kind, 'provider-' || (hash(i, 'provider') % 20)::VARCHAR AS provider,
  ['tv', 'mobile', 'web', 'tablet', 'stick'][1 + (hash(i, 'type') % 5)::INT] AS device_type,
  ['Android', 'iOS', 'Windows', 'Tizen', 'webOS', 'macOS', 'Linux', 'tvOS'][1 + (hash(i, 'os') % 8)::INT] AS os,
  ['Chrome', 'Safari', 'Firefox', 'Edge', '', ''][1 + (hash(i, 'browser') % 6)::INT] AS browser,
  ['hls.js', 'dash.js', 'shaka', 'exo', 'avplayer'][1 + (hash(i, 'player') % 5)::INT] AS player,
  '1.' || (hash(i, 'version') % 6)::VARCHAR AS player_version, '3.' || (hash(i, 'app') % 9)::VARCHAR AS app_version,
  'cdn-' || (hash(i, 'cdn') % 4)::VARCHAR AS cdn, 'edge-' || (hash(i, 'edge') % 200)::VARCHAR AS edge,
  'AS' || (2000 + hash(i, 'asn') % 300)::VARCHAR || ' A network' AS asn,
  ['PT', 'ES', 'FR', 'DE', 'IT', 'GB', 'US', 'BR', 'PL', 'NL'][1 + (hash(i, 'country') % 10)::INT] AS country,
  CASE WHEN i % 4 = 0 THEN MAP {{'plan': CASE WHEN i % 8 = 0 THEN 'gold' ELSE 'free' END}} ELSE MAP {{}}::MAP(VARCHAR, VARCHAR) END AS labels,
  CASE WHEN i % 3 = 0 THEN 'cmcd' ELSE 'heartbeat' END AS "source"
FROM range({sessions}) r(i)
"""
"""A day's sessions, and those that go on from the day before: 1 to 60 minutes, some titles much more watched than others."""
MOMENTS = """
CREATE TABLE facts AS
SELECT s.*, m.k, e.fact, s.began + e.off AS at_ms FROM sessions s, range(60) m(k), LATERAL (
  SELECT 'play' AS fact, (k + 1) * 60000 AS off WHERE k < mins
  UNION ALL SELECT 'beacon', (k + 1) * 60000 + 1 WHERE k < mins AND hash(i, k, 'beacon') % 100 < 17
  UNION ALL SELECT 'stall', (k + 1) * 60000 - 5000 WHERE k < mins AND hash(i, k, 'stall') % 100 < 8
  UNION ALL SELECT 'switch', (k + 1) * 60000 - 9000 WHERE k < mins AND hash(i, k, 'switch') % 100 < 9
  UNION ALL SELECT 'dropped', (k + 1) * 60000 - 9000 WHERE k < mins AND hash(i, k, 'dropped') % 100 < 5
  UNION ALL SELECT 'latency', (k + 1) * 60000 - 8000 WHERE k < mins AND kind = 'live' AND hash(i, k, 'latency') % 100 < 6
  UNION ALL SELECT unnest(['attempt', CASE WHEN hash(i, 'fate') % 100 >= 3 THEN 'start' WHEN hash(i, 'fate') % 100 = 0 THEN 'start_failure'
    ELSE 'exit' END]), unnest([0, 1500]) WHERE k = 0
  UNION ALL SELECT 'error', mins * 60000 WHERE k = 0 AND hash(i, 'error') % 100 < 2
  UNION ALL SELECT unnest(['ad_break', 'ad_start', 'ad_end']), unnest([2000, 2300, 17300]) WHERE k = 0 AND hash(i, 'ad') % 100 < 20
  UNION ALL SELECT 'end', mins * 60000 + 100 WHERE k = 0) e
"""
"""70 % play, 12 % beacons, the rest stalls, switches, ends and others."""
MEASURED = """
SELECT make_timestamp_ms(at_ms) AS "at", at_ms AS stream_ms, (hash(i, k, fact) % 1000)::BIGINT AS stream_seq, fact, account, session,
  1::BIGINT AS "view", make_timestamp_ms(began) AS started_at, device, content, kind, provider, device_type, os, browser, app_version,
  player, player_version, cdn, edge, asn, country, labels, "source",
  CASE fact WHEN 'start' THEN CASE WHEN i % 20 > 0 THEN 300 + (hash(i, 'ms') % 4000)::BIGINT END WHEN 'play' THEN 60000
    WHEN 'stall' THEN 200 + (hash(i, k, 'stood') % 5000)::BIGINT WHEN 'ad_start' THEN 250 + i % 500 WHEN 'ad_end' THEN 15000
    WHEN 'end' THEN mins * 60000 END AS ms,
  CASE fact WHEN 'start' THEN 800.0 WHEN 'switch' THEN (1 + hash(i, k, 'to') % 6) * 9e5 WHEN 'dropped' THEN (hash(i, k, 'to') % 9)::DOUBLE
    WHEN 'latency' THEN 2000.0 + hash(i, k, 'to') % 8000 WHEN 'beacon' THEN (hash(i, k, 'to') % 20 = 0)::INT::DOUBLE
    WHEN 'end' THEN mins * 60.0 END AS "value",
  CASE fact WHEN 'switch' THEN (1 + hash(i, k, 'from') % 6) * 9e5 WHEN 'end' THEN 5400.0 END AS "before",
  CASE WHEN fact = 'play' AND i % 10 > 0 THEN 60.0 * (1 + hash(i, k, 'rate') % 6) * 9e5 END AS bits,
  CASE WHEN fact = 'play' AND i % 10 > 0 THEN 60000 END AS bits_ms, CASE fact WHEN 'stall' THEN 1 WHEN 'beacon' THEN 6 END AS "count",
  CASE fact WHEN 'error' THEN 'manifestLoadError' WHEN 'start_failure' THEN 'keySystemNoAccess' WHEN 'end' THEN 'stopped' ELSE '' END AS code,
  fact IN ('error', 'start_failure') AS fatal, fact NOT IN ('attempt', 'start_failure', 'exit') AS started,
  fact = 'stall' OR i % 7 > 0 AS stalls_known
FROM facts WHERE at_ms >= $low AND at_ms < $high
"""
FILL = """
import sys
from pathlib import Path
import pyarrow as pa, pyarrow.compute as pc, pyarrow.feather as feather
from engine.lake import Lake
from engine.partitions import partition_of
from engine.quality.columns import SCHEMA
root, pieces, partitions = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
lake = Lake(root / "quality", partitions=partitions)
blank = {"string": "", "bool": False}
for path in sorted(pieces.iterdir()):
    given = feather.read_table(path)
    accounts = given["account"].combine_chunks().dictionary_encode()
    of = pa.array([partition_of(name, partitions) for name in accounts.dictionary.to_pylist()], pa.int32())
    given = given.append_column("partition", of.take(accounts.indices))
    columns = [
        given[f.name].cast(f.type) if f.name in given.column_names
        else pa.array([0 if f.name == "part" else blank.get(str(f.type))] * given.num_rows, f.type) for f in SCHEMA
    ]
    end = int(path.stem.split("-")[1]) - 1
    lake.add("facts", pa.table(columns, SCHEMA), dict.fromkeys(range(partitions), f"{end}-1000000"))
"""
"""Run by itself, because it uses the lake's own writer."""


def measure(place: Place, *, quick: bool) -> tuple[list[Row], dict[str, object]]:
    """Raises BenchError if an answer is wrong."""
    lake = place.directory / "lake"
    truth = _fill(place, lake, QUICK_FACTS if quick else FACTS)
    settings = {"PULSEGATE_LAKE_DIR": str(lake), "PULSEGATE_QUALITY_TIMEOUT_S": "120"}
    with (
        unpinned(place) as free,
        valkey(free, None, MEMORY_ONLY) as session,
        api(free, None, session.url, **settings) as web,
    ):
        asking = Asking(web.port)
        _check(asking, truth)
        times = _ask(asking, truth, 5 if quick else 15)
        asking.close()
    size = sum(path.stat().st_size for path in lake.rglob("*.parquet"))
    spread = {name: Spread(tuple(values)) for name, values in times.items()}
    goals = {
        "dashboard": ("per-minute dashboard of the day: 4 figures, 1,440 points, finished hours asked for before", 200),
        "new": ("the same, asked for the first time: each point with exact distinct sessions for each figure", None),
        "breakdown": (
            "by country, player and device type: exact distinct sessions, startup p50 to p99, rebuffering",
            600,
        ),
        "latest": ("last five minutes, in points of 10 s: 4 figures", 20),
        "timeline": ("one session's timeline", 50),
    }
    rows = [
        Row(
            f"{truth.facts:,} facts of {truth.sessions:,} sessions",
            f"{size / 1e6:,.0f}",
            "MB",
            f"{size / truth.facts:.0f} B a fact",
        )
    ]
    for name, (what, goal) in goals.items():
        found = spread[name]
        rows.append(
            Row(what, found.text(1), "ms", "", f"≤ {goal} ms" if goal else "", found.median <= goal if goal else None)
        )
    return rows, {"facts": truth.facts, "sessions": truth.sessions, "bytes": size} | {
        name: s.to_json() for name, s in spread.items()
    }


@dataclass(frozen=True)
class Truth:
    """What the generator counted."""

    facts: int
    sessions: int
    starts: int
    stall_ms: int
    known_ms: int
    one: tuple[str, str, int]
    """Account, session and facts of one session."""


def _fill(place: Place, lake: Path, facts: int) -> Truth:
    """Makes the facts, and has the lake write them: an hour a file, the last one in small files."""
    pieces = place.directory / "pieces"
    pieces.mkdir()
    sessions = round(facts / _A_SESSION)
    with duckdb.connect() as connection:
        said = {"accounts": sessions // 2, "sessions": sessions, "day": DAY, "day_ms": DAY_MS}
        connection.execute(SESSIONS.format(**said))
        connection.execute(MOMENTS.format(**said))
        for low, high in itertools.pairwise(_borders()):
            rows: pa.Table = connection.execute(MEASURED, {"low": low, "high": high}).to_arrow_table()
            if rows.num_rows:
                feather.write_feather(rows, str(pieces / f"{low}-{high}.arrow"), compression="lz4")
        connection.execute(
            f"CREATE VIEW measured AS {MEASURED.replace('$low', str(DAY)).replace('$high', str(DAY + DAY_MS))}"
        )
        counted: Any = connection.execute(
            """SELECT count(*), count(DISTINCT (account, session)), count(*) FILTER (fact = 'start'),
            sum(ms) FILTER (fact = 'stall')::BIGINT, sum(ms) FILTER (fact = 'play' AND stalls_known)::BIGINT FROM measured"""
        ).fetchone()
        one: Any = connection.execute(
            "SELECT account, session, count(*) FROM measured GROUP BY ALL ORDER BY count(*) DESC, session LIMIT 1"
        ).fetchone()
    subprocess.run([sys.executable, "-c", FILL, str(lake), str(pieces), str(PARTITIONS)], check=True)
    facts_, people, starts, stood, known = counted
    return Truth(facts_, people, starts, stood, known, one)


def _borders() -> Iterator[int]:
    """Where files begin: whole hours merged; the last one as merging leaves files of 2 s when it leaves most: five of a size, and
    six more of the smallest that came since."""
    yield from range(DAY, DAY + 24 * HOUR, HOUR)
    left = ((432_000, 5), (72_000, 5), (12_000, 5), (2_000, 11))
    at = DAY + DAY_MS - sum(length * count for length, count in left)
    for length, count in left:
        yield from range(at, at + count * length, length)
        at += count * length
    yield at


class Asking:
    """Questions one at a time over one kept connection."""

    def __init__(self, port: int) -> None:
        now = int(time.time())
        token = jwt.encode(
            {"typ": "service", "scope": "read", "iat": now, "exp": now + 36_000}, SECRET, algorithm="HS256"
        )
        self._headers = {"Authorization": f"Bearer {token}"}
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=130)

    def __call__(self, path: str, **query: Any) -> dict[str, Any]:
        """Raises BenchError unless it is answered."""
        self._connection.request("GET", f"/v1/quality{path}?{urlencode(query)}", headers=self._headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise BenchError(f"{path} {query} was answered {answer.status}: {text[:500]!r}")
        self.body = text
        return {}

    def read(self, path: str, **query: Any) -> dict[str, Any]:
        self(path, **query)
        return dict(json.loads(self.body))

    def close(self) -> None:
        self._connection.close()


def _check(ask: Asking, truth: Truth) -> None:
    whole = {"from": DAY, "to": DAY + DAY_MS}
    said = ask.read("", metrics="sessions,plays,rebuffer_ratio", **whole)["items"][0]["metrics"]
    ratio = truth.stall_ms / (truth.stall_ms + truth.known_ms)
    found = (said["sessions"]["value"], said["plays"]["value"], round(said["rebuffer_ratio"]["value"], 12))
    if found != (truth.sessions, truth.starts, round(ratio, 12)):
        raise BenchError(f"answered {found}, not {(truth.sessions, truth.starts, ratio)}")
    series = ask.read("", metrics="plays", interval="1m", **whole)["items"]
    if sum(item["metrics"]["plays"]["value"] for item in series) != truth.starts:
        raise BenchError("the points of the series do not add up")
    account, session, facts = truth.one
    if len(ask.read(f"/sessions/{session}", account=account, **whole)["facts"]) != facts:
        raise BenchError("the timeline is not whole")


def _ask(ask: Asking, truth: Truth, times: int) -> dict[str, list[float]]:
    """Milliseconds of each question, each asked twice beforehand."""
    four = {"metrics": "attempts,plays,start_failure_rate,rebuffer_ratio"}
    # As of a window that slides: its first and last hours are not whole, and never remembered.
    day = {"from": DAY + 30_000, "to": DAY + DAY_MS - 30_000}
    account, session, _ = truth.one
    number = itertools.count()
    questions: dict[str, Callable[[], object]] = {
        "dashboard": lambda: ask("", interval="1m", **four, **day),
        "new": lambda: ask("", interval="1m", where=f"cdn!=none-{next(number)}", **four, **day),
        "breakdown": lambda: ask(
            "", metrics="sessions,startup_time,rebuffer_ratio", by="country,player,device_type", **day
        ),
        "latest": lambda: ask("", interval="10s", **four, **{"from": DAY + DAY_MS - 5 * MINUTE, "to": DAY + DAY_MS}),
        "timeline": lambda: ask(f"/sessions/{session}", account=account, **day),
    }
    found: dict[str, list[float]] = {name: [] for name in questions}
    for name, question in questions.items():
        for repetition in range(-2, min(times, 5) if name == "new" else times):
            began = time.perf_counter()
            question()
            if repetition >= 0:
                found[name].append((time.perf_counter() - began) * 1000)
    return found
