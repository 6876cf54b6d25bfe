"""What counting and ranking the audience costs: memory, the tenure's round, and a reader of the list beside a bare answer."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import time
from bisect import bisect
from pathlib import Path

from loadtest.bench_load import token, wrk
from loadtest.bench_replay import ACCOUNT, CONTENT, Replay, capture
from loadtest.bench_rig import MEMORY_ONLY, ROOT, BenchError, Place, Process, Spread, Valkey, api, uvicorn, valkey
from loadtest.bench_table import Row

CONTENTS, SESSIONS, CHANGES = 20_000, 1_000_000, 10_000
QUICK_SESSIONS = 100_000
HOURS = 3_600_000
CONNECTIONS = 16
_PUBLISHED_S = 60.0
SCRIPT = Path(__file__).with_name("bench_get.lua")


def measure(place: Place, *, quick: bool) -> tuple[list[Row], dict[str, object]]:
    """Raises BenchError if what is listed is not what was sent."""
    sessions = QUICK_SESSIONS if quick else SESSIONS
    with valkey(place, place.others, MEMORY_ONLY) as session, valkey(place, place.others, MEMORY_ONLY) as log:
        captured = capture(session, place, place.mine)
        session.know_outboxes(captured.outboxes())
        contents = zipf(sessions + 40 * CHANGES)
        replay = Replay(session, captured, content=contents.__getitem__)
        for start in range(0, sessions, 50_000):
            replay.beat(range(start, start + 50_000))
            session.empty_outboxes()
        counts = bytes_of(session, "pg:{p*}:audience", "pg:{p*}:deltas")
        before = session.used_memory()
        _mark(session, contents[:sessions])
        distinct = session.used_memory() - before
        tenure = Tenure(place, session, log, 3_600)
        first = tenure.next()
        while not log.client.hexists("pg:{trending}:applied", "recounts"):
            tenure.next()  # all partitions added up once: from then on it is what it is every day
        jobs, done = [], sessions
        for _ in range(4 if quick else 26):
            replay.beat(range(done, done + CHANGES))
            session.empty_outboxes()
            done += CHANGES
            jobs.append(tenure.next())
        tenure.next()
        tenure.stop()
        replay.close()
        total = sum(int(n) for n in log.client.hvals("pg:{trending}:totals"))
        if total != done:
            raise BenchError(f"{total} views in the totals, not {done}")
        kept = bytes_of(log, "pg:{trending}:*")
        reads = _reads(place, session, log, quick)
    claims, publications = (Spread(tuple(float(job[name]) for job in jobs)) for name in ("claims_ms", "publication_ms"))
    spread = Spread(tuple(float(job["claims_ms"] + job["publication_ms"]) for job in jobs))
    rows = [
        Row(f"the 5-second job, {CHANGES:,} sessions more", spread.text(0), "ms", goal="≤ 500 ms", met=spread.median <= 500),
        Row("of it: two claims of all partitions", claims.text(0), "ms"),
        Row("of it: the publication", publications.text(0), "ms"),
        Row("the very first: a million changes, 32 partitions recounted", f"{first['claims_ms'] + first['publication_ms']:,}", "ms"),
        Row("session Redis: counts", f"{counts / 1e6:,.1f}", "MB", f"{counts / sessions:.0f} B a session"),
        Row("session Redis: distinct viewers, one bucket of each length", f"{distinct / 1e6:,.1f}", "MB"),
        Row("log Redis: totals, lists, series, what was learned", f"{kept / 1e6:,.1f}", "MB", f"{kept / CONTENTS:.0f} B a content"),
        *_read_rows(reads),
    ]  # fmt: skip
    return rows, {
        "first": first,
        "jobs": jobs,
        "counts": counts,
        "distinct": distinct,
        "log": kept,
        "reads": reads,
    }


def zipf(count: int) -> list[int]:
    """What each session watches: the n-th most popular content has 1/n of the first one's viewers."""
    random_ = random.Random(1)
    weights = list(itertools.accumulate(1 / (n + 1) for n in range(CONTENTS)))
    return [bisect(weights, random_.random() * weights[-1]) for _ in range(count)]


def _mark(session: Valkey, contents: list[int]) -> None:
    """Every session's account in the buckets of this moment, as the API puts it there."""
    seconds, _ = session.client.time()
    now = int(seconds) * 1000
    sha = session.client.script_load((ROOT / "lua" / "viewers.lua").read_text())
    for start in range(0, len(contents), 5_000):
        pipe = session.client.pipeline(transaction=False)
        for n in range(start, min(start + 5_000, len(contents))):
            stem = f"pg:{{c:{CONTENT % contents[n]}}}:viewers"
            names = (f"{stem}:5m:{now // 300_000}", f"{stem}:1h:{now // HOURS}")
            pipe.evalsha(sha, 2, *names, ACCOUNT % n, HOURS, 25 * HOURS)
        pipe.execute()


def bytes_of(server: Valkey, *patterns: str) -> int:
    """Bytes of all keys of these names, every element looked at."""
    keys = [key for pattern in patterns for key in server.client.scan_iter(match=pattern, count=100_000)]
    total = 0
    for start in range(0, len(keys), 1_000):
        pipe = server.client.pipeline(transaction=False)
        for key in keys[start : start + 1_000]:
            pipe.memory_usage(key, samples=0)
        total += sum(int(size or 0) for size in pipe.execute())
    return total


class Tenure:
    """A process on the measured core that does the tenure's work, and nothing else."""

    def __init__(self, place: Place, session: Valkey, log: Valkey, seconds: float) -> None:
        env = {
            "PULSEGATE_REDIS_URL": session.url,
            "PULSEGATE_LOG_REDIS_URL": log.url,
            "PULSEGATE_LOG_LEVEL": "error",
        }
        command = [sys.executable, "-m", "engine.cli", "drain", "trending", "--for", str(seconds), "--seize"]
        self._process = Process(command, place.directory, place.mine, env)
        self._log = log
        self._last = self._took().get("at")

    def _took(self) -> dict[str, int]:
        return {name.decode(): int(ms) for name, ms in self._log.client.hgetall("pg:{trending}:took").items()}

    def next(self) -> dict[str, int]:
        """The next job: ms of its claims, and of its publication."""
        deadline = time.monotonic() + _PUBLISHED_S
        while (took := self._took()).get("at") == self._last:
            if time.monotonic() > deadline:
                raise BenchError("no lists were published")
            time.sleep(0.05)
        self._last = took["at"]
        return took

    def stop(self) -> None:
        self._process.stop()


def _reads(place: Place, session: Valkey, log: Valkey, quick: bool) -> dict[str, list[float]]:
    """Requests a second and p99 of `GET /v1/trending` and of a bare answer of the same bytes, in turns."""
    found: dict[str, list[float]] = {"api": [], "bare": [], "api_p99": [], "bare_p99": []}
    document = json.dumps({
        "kind": "vod", "rank": "trending", "provider": None, "published_at": 1, "formula": {"name": "surprise"},
        "items": [
            {"content": CONTENT % n, "observed": 100.5, "expected": 20.25, "score": 9.5, "concurrent": 101, "distinct": 99, "since": 1}
            for n in range(20)
        ],
    })  # fmt: skip
    log.client.set("pg:{trending}:list:vod:trending", document)
    path, bearer = "/v1/trending?kind=vod&limit=20", token("acct")
    with api(place, place.mine, session.url, PULSEGATE_LOG_REDIS_URL=log.url) as real:
        answer = subprocess.run(
            ["curl", "-sf", "-H", f"Authorization: Bearer {bearer}", f"http://127.0.0.1:{real.port}{path}"],
            capture_output=True, text=True, check=False,
        ).stdout  # fmt: skip
        if answer.count('"content"') != 20:
            raise BenchError(f"GET {path} was answered {answer[:300]!r}")
        with uvicorn("loadtest.baseline.bare:app", place, place.mine, {"BENCH_ANSWER": answer}) as bare:
            for repetition in range(-1, 3 if quick else 7):
                for name, web in (("bare", bare), ("api", real)):
                    load = wrk(web.port, SCRIPT, 2.0, CONNECTIONS, place.others, path, bearer)
                    if load.failed:
                        raise BenchError(f"{name}: {load.failed} of {load.requests} answers were no 2xx")
                    if repetition >= 0:
                        found[name].append(load.per_s)
                        found[f"{name}_p99"].append(load.p99_ms)
    return found


def _read_rows(found: dict[str, list[float]]) -> list[Row]:
    spread = {name: Spread(tuple(values)) for name, values in found.items()}
    ratio = spread["api_p99"].over(spread["bare_p99"])
    return [
        Row("GET /v1/trending, 20 items", spread["api"].text(0), "req/s", spread["api"].over(spread["bare"]).text(2) + " of bare"),
        Row(f"p99 at {CONNECTIONS} connections, bare answer of the same bytes", spread["bare_p99"].text(2), "ms"),
        Row(f"p99 at {CONNECTIONS} connections, GET /v1/trending", spread["api_p99"].text(2), "ms", ratio.text(2) + " of bare",
            "≤ 2 × bare", ratio.median <= 2),
    ]  # fmt: skip
