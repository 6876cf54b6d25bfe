"""The ceilings of the background work: the same reading and writing with nothing in between.

    python -m loadtest.baseline.flow copy SESSION_URL LOG_URL    outboxes to streams of the log, by redis-py pipelines
    python -m loadtest.baseline.flow read LOG_URL                the event log's streams, read and decoded
    python -m loadtest.baseline.flow parquet LAKE COPY           the lake's files' tables, written once more

Each prints one JSON line: events, seconds and CPU seconds of the loop.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
from redis import Redis

_BATCH = 1_000


class Event(msgspec.Struct):
    """What every consumer needs to know of an event."""

    type: str
    at: int
    account: str
    session: str = ""
    device: str = ""
    profile: str = ""
    content: str = ""
    kind: str = ""
    view: int = 0
    started_at: int = 0
    seq: int = -1
    watched_ms: int = 0
    data: msgspec.Raw = msgspec.Raw(b"null")


def copy(session_url: str, log_url: str) -> int:
    """XRANGE by the thousand, XADD of each under its id; no script, no position, nothing trimmed."""
    session, log = Redis.from_url(session_url), Redis.from_url(log_url)
    count = 0
    for key in _streams(session):
        target, after = b"copy:" + key, b"-"
        while True:
            entries: Any = session.xrange(key, after, "+", _BATCH)
            pipe = log.pipeline(transaction=False)
            for id_, fields in entries:
                pipe.execute_command("XADD", target, id_, "e", fields[b"e"])
            pipe.execute()
            count += len(entries)
            if len(entries) < _BATCH:
                break
            after = b"(" + entries[-1][0]
    return count


def read(log_url: str) -> int:
    """XREAD of all streams together, as consumers do it, each event decoded."""
    log = Redis.from_url(log_url)
    decode = msgspec.json.Decoder(Event).decode
    after = dict.fromkeys(_streams(log), b"0-0")
    each, count = 80_000 // len(after), 0
    while True:
        answer: Any = log.execute_command("XREAD", "COUNT", each, "STREAMS", *after, *after.values())
        pairs = list(answer.items() if isinstance(answer, dict) else answer or ())
        if not pairs:
            return count
        for key, entries in pairs:
            for _, fields in entries:
                decode(fields[b"e"] if isinstance(fields, dict) else fields[1])
            after[key] = entries[-1][0]
            count += len(entries)


def _streams(client: Redis) -> list[bytes]:
    return sorted(client.scan_iter(match="pg:*", count=10_000, _type="stream"))


def main(words: list[str]) -> int:
    kind, *rest = words
    if kind == "parquet":
        import pyarrow.parquet as pq

        source, target = (Path(word) for word in rest)
        # Partition columns of the path (date, hour) are no part of the files.
        tables = [pq.ParquetFile(path).read() for path in sorted(source.rglob("*.parquet"))]
        target.mkdir()
    wall, cpu = time.monotonic(), time.process_time()
    if kind == "parquet":
        for number, table in enumerate(tables):
            pq.write_table(table, target / f"{number}.parquet", compression="zstd")
        count = sum(table.num_rows for table in tables)
    else:
        count = copy(*rest) if kind == "copy" else read(*rest)
    seconds, used = time.monotonic() - wall, time.process_time() - cpu
    print(json.dumps({"events": count, "seconds": seconds, "cpu_seconds": used}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
