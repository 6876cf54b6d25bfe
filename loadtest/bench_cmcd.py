"""CMCD: reports a second of one API process on one core, beside bare ASGI; and how soon a report shows in `GET /v1/quality`."""

from __future__ import annotations

import http.client
import json
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import jwt

from loadtest.bench_fresh import deployed
from loadtest.bench_http import ACCOUNTS, CONNECTIONS, Series
from loadtest.bench_load import token, wrk
from loadtest.bench_replay import DEVICE, SESSION
from loadtest.bench_rig import DURABLE, SECRET, BenchError, Place, Spread, Valkey, Web, api, unpinned, uvicorn, valkey
from loadtest.bench_table import Row

SCRIPT = Path(__file__).with_name("bench_cmcd.lua")
BATCH = 10
GOAL_S = 5.0
WORKERS = 7
_WARM_UP_S = 3.0
_FIRST_SN, _SNS_A_RUN = 1_000_000, 10_000
_POLL_S = 0.2
_LOST_S = 60.0
_ACCEPTED = re.compile(rb'^pulsegate_cmcd_reports_total\{fate="(\w+)"\} ([0-9.e+]+)$', re.MULTILINE)


def measure(place: Place, *, quick: bool) -> tuple[list[Row], dict[str, object]]:
    """Raises BenchError unless every report is accepted, and each shows up."""
    series = _ingest(place, *((3, 2.0) if quick else (7, 4.0)))
    with unpinned(place) as free:
        seen = deployed(free, WORKERS, 15.0 if quick else 90.0, _visible)
    waits = Spread(tuple(seen.waits_ms))
    ordered = sorted(waits.values)
    p99 = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] / 1000
    rows = _rows(series)
    rows += [
        Row(f"report → visible, p50 of {len(ordered)}, at {seen.load['per_s']:,.0f} heartbeats/s", f"{waits.median / 1000:.2f}", "s"),
        Row("  p99", f"{p99:.2f}", "s", goal=f"≤ {GOAL_S:g} s", met=p99 <= GOAL_S),
        Row("  most", f"{ordered[-1] / 1000:.2f}", "s"),
    ]  # fmt: skip
    return rows, {name: vars(s) for name, s in series.items()} | {"visible": vars(seen)}


def _ingest(place: Place, repetitions: int, seconds: float) -> dict[str, Series]:
    """Bare ASGI and the API in turn, with requests of one report and of several."""
    accounts = place.directory / "players"
    accounts.write_text("".join(f"{token(f'acct-{n:07d}')} {SESSION % n} {DEVICE % n}\n" for n in range(ACCOUNTS)))
    series = {f"{name}, {lines} a request": Series() for lines in (1, BATCH) for name in ("bare", "api")}
    with (
        valkey(place, place.others, DURABLE) as server,
        api(place, place.mine, server.url) as real,
        uvicorn("loadtest.baseline.bare:app", place, place.mine, {"BENCH_ANSWER": ""}) as bare,
    ):
        sn = _FIRST_SN
        for repetition in range(-1, repetitions):
            for lines in (1, BATCH):
                for name, web in (("bare", bare), ("api", real)):
                    sn += _SNS_A_RUN
                    into = series[f"{name}, {lines} a request"] if repetition >= 0 else Series()
                    _run(
                        place, server, web, name, accounts, sn, lines, seconds if repetition >= 0 else _WARM_UP_S, into
                    )
    return series


def _run(
    place: Place, server: Valkey, web: Web, name: str, accounts: Path, sn: int, lines: int, seconds: float, into: Series
) -> None:
    for key in server.client.scan_iter("pg:*:outbox"):
        server.client.xtrim(key, maxlen=0, approximate=False)
    before, cpu = _accepted(web) if name == "api" else 0, web.process.cpu_s()
    load = wrk(web.port, SCRIPT, seconds, CONNECTIONS, place.others, str(accounts), str(sn), str(lines))
    after = web.process.cpu_s()
    if load.failed:
        raise BenchError(f"{name}: {load.failed} of {load.requests} answers were no 2xx")
    if name == "api":
        taken = _accepted(web) - before
        if not load.requests * lines <= taken <= (load.requests + CONNECTIONS) * lines:
            raise BenchError(f"{taken} reports accepted in {load.requests} requests of {lines}")
    into.add(load, None if cpu is None or after is None else after - cpu)


def _accepted(web: Web) -> int:
    fates = {fate: int(float(count)) for fate, count in _ACCEPTED.findall(web.get("/metrics")[1])}
    if fates.keys() - {b"accepted"}:
        raise BenchError(f"reports that were not accepted: {fates}")
    return fates.get(b"accepted", 0)


def _rows(series: dict[str, Series]) -> list[Row]:
    rows = []
    for lines in (1, BATCH):
        bare, real = series[f"bare, {lines} a request"], series[f"api, {lines} a request"]
        per_s = Spread(tuple(real.per_s))
        rows.append(
            Row(f"requests of {lines} report{'s' if lines > 1 else ''}, API", per_s.text(0), "req/s", per_s.over(Spread(tuple(bare.per_s))).text(2))
        )  # fmt: skip
        if real.cpu_us and bare.cpu_us:
            used, least = Spread(tuple(real.cpu_us)), Spread(tuple(bare.cpu_us))
            a_report = Spread(tuple(us / lines for us in real.cpu_us))
            rows.append(Row("  CPU a request", used.text(1), "µs", least.over(used).text(2)))
            rows.append(Row("  CPU a report", a_report.text(1), "µs"))
    return rows


def _visible(served: Web, number: int, until: float) -> Iterator[float]:
    """ms from a report's answer to the answer that counts its play; each is of a new session, watching what nobody else does."""
    now = int(time.time())
    reader = jwt.encode({"typ": "service", "scope": "read", "iat": now, "exp": now + 36_000}, SECRET, algorithm="HS256")
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    content, target = (
        f"watched-by-{number}",
        f"/v1/cmcd?{urlencode({'token': token(f'reporting-{number}'), 'kind': 'vod'})}",
    )
    begun, seen = int(time.time() * 1000), 0
    ask = f"/v1/quality?{urlencode({'metrics': 'plays', 'where': f'content={content}', 'from': begun - 60_000})}"
    while time.monotonic() < until:
        session, at = uuid.uuid4(), int(time.time() * 1000)
        keys = f'cid="{content}",e=ps,sid="{session}",v=2'
        _post(connection, target, f"{keys},sn=0,sta=s,ts={at - 800}\n{keys},sn=1,sta=p,ts={at}\n")
        acknowledged = time.perf_counter()
        while _plays(connection, ask, reader) <= seen:
            if time.perf_counter() - acknowledged > _LOST_S:
                raise BenchError(f"the play of {session} was not there after {_LOST_S:g} s")
            time.sleep(_POLL_S)
        yield (time.perf_counter() - acknowledged) * 1000
        seen += 1
    connection.close()


def _post(connection: http.client.HTTPConnection, target: str, body: str) -> None:
    connection.request("POST", target, body.encode(), {"Content-Type": "application/cmcd"})
    answer = connection.getresponse()
    said = answer.read()
    if answer.status != 204:
        raise BenchError(f"a report was answered {answer.status}: {said.decode()[:500]}")


def _plays(connection: http.client.HTTPConnection, ask: str, reader: str) -> int:
    connection.request("GET", ask, headers={"Authorization": f"Bearer {reader}"})
    answer = connection.getresponse()
    said = answer.read()
    if answer.status != 200:
        raise BenchError(f"a question was answered {answer.status}: {said.decode()[:500]}")
    items = json.loads(said)["items"]
    return int(items[0]["metrics"]["plays"]["value"]) if items else 0
