"""Where the lake's rows lie and what their columns are.

`<topic>/date=YYYY-MM-DD/hour=HH/<name>.parquet`: zstd, rows sorted by partition and stream id; date and hour (UTC) are
those of the event's own `at`, so a late event joins the hour it happened in. Columns are the envelope's fields
(engine/events.py) under their own names, and besides:

| column                            | is                                                                            |
|-----------------------------------|-------------------------------------------------------------------------------|
| id                                | `partition-ms-seq`: unique, the event's id everywhere                         |
| partition, stream_ms, stream_seq  | the same in parts, to sort by                                                 |
| started_at                        | null: the event belongs to no view (0)                                        |
| watched_ms, revision, event_id    | null: its JSON has no such field; `coalesce(event_id, id)` finds duplicates   |
| at, started_at                    | ms, in UTC without saying so: DuckDB handles such times without its time zones |
| data                              | the caller's JSON, byte for byte, as text                                     |
| payload                           | the whole JSON, only where the other columns do not spell it byte for byte    |

An event's JSON is written by our own scripts, nearly always in one order, so it can be put together again from the
columns. That is tried for every row before it is written, and compared; where it fails (another order, an escape in an id, a field
this version does not know) the row keeps its JSON. So nothing is ever lost, at a third of the size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from operator import attrgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from engine.events import EVENTS, HEARTBEATS, PLAIN, Event, read

HOUR = 3_600_000
_AT_MAX = 253_402_300_799_999
"""The last ms of the year 9999."""
_INT64 = 2**63 - 1

_int, _text, _time = pa.int64(), pa.string(), pa.timestamp("ms")
SCHEMA = pa.schema(
    [
        pa.field("id", _text, False), pa.field("partition", pa.int32(), False),
        pa.field("stream_ms", _int, False), pa.field("stream_seq", _int, False),
        ("event_id", _text), ("type", _text), ("at", _time), ("account", _text), ("profile", _text), ("device", _text),
        ("session", _text), ("view", _int), ("started_at", _time), ("content", _text), ("kind", _text), ("seq", _int),
        ("watched_ms", _int), ("revision", _int), ("v", pa.int32()), ("data", _text), ("payload", pa.binary()),
    ]
)  # fmt: skip
ORDER = [("partition", "ascending"), ("stream_ms", "ascending"), ("stream_seq", "ascending")]
_DELTA = ("partition", "stream_ms", "stream_seq", "at", "started_at", "seq", "watched_ms")
"""Numbers that grow a little from row to row."""
ENCODING: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": [n for n in SCHEMA.names if n not in (*_DELTA, "id", "data", "payload")],
    "column_encoding": dict.fromkeys(_DELTA, "DELTA_BINARY_PACKED"),
    "write_page_checksum": True,
}


def folder(topic: str, at: int) -> str:
    """The folder, below the lake's, of an event that happened at `at` (ms); what no calendar holds goes to its ends."""
    when = datetime.fromtimestamp(min(max(at, 0), _AT_MAX) // 1000, UTC)
    return f"{topic}/date={when:%Y-%m-%d}/hour={when:%H}"


def hour_began(path: str) -> int:
    """ms since the epoch at which the hour of a file's path began."""
    _, date, hour, _ = path.split("/")
    return int(datetime.fromisoformat(f"{date[5:]}T{hour[5:]}:00:00+00:00").timestamp()) * 1000


def date_of(path: str) -> str:
    return path.split("/")[1][5:]


def table(events: Sequence[Event], ids: Sequence[tuple[int, int]]) -> pa.Table:
    """One row for each event, in their order; `ids` are their stream ids."""
    rows: dict[str, Any] = {name: list(map(attrgetter(name), events)) for name in Event.__struct_fields__}
    payloads = rows["payload"]
    heads = [p[: p.find(b',"account":')] for p in payloads]
    ms, seq = zip(*ids, strict=True)
    columns = {
        "partition": pa.array(rows["partition"], pa.int32()),
        "stream_ms": pa.array(ms, _int),
        "stream_seq": pa.array(seq, _int),
        "event_id": _strings([e or None for e in rows["event_id"]]),
        "at": _numbers(rows["at"]).cast(_time),
        "view": _numbers(rows["view"]),
        "started_at": _numbers([s or None for s in rows["started_at"]]).cast(_time),
        "seq": _numbers(rows["seq"]),
        "watched_ms": _present(rows["watched_ms"], heads, b'"watched_ms":'),
        "revision": _present(rows["revision"], heads, b'"revision":'),
        "v": _numbers(rows["v"]).cast(pa.int32(), safe=False),
        "data": _json([bytes(d) for d in rows["data"]]),
    }
    for name in ("type", "account", "profile", "device", "session", "content", "kind"):
        columns[name] = _strings(rows[name])
    columns["id"] = pc.binary_join_element_wise(
        *(columns[n].cast(_text) for n in ("partition", "stream_ms", "stream_seq")), "-"
    )
    given = pa.array(payloads, pa.binary())
    same = pc.equal(_spelled(columns).cast(pa.binary()), given)
    columns["payload"] = pa.nulls(len(events), pa.binary()) if same.false_count == 0 else pc.if_else(same, None, given)
    return pa.table([columns[name] for name in SCHEMA.names], SCHEMA)


def events(rows: pa.Table) -> Iterator[Event]:
    """The events of a table's rows, in their order."""
    for batch in rows.to_batches(max_chunksize=8192):
        ids = pc.binary_join_element_wise(batch["stream_ms"].cast(_text), batch["stream_seq"].cast(_text), "-")
        yield from map(read, batch["partition"].to_pylist(), ids.to_pylist(), payloads(batch).to_pylist())


def payloads(batch: pa.RecordBatch) -> pa.Array:
    """The JSON of each row, byte for byte."""
    given = batch["payload"]
    if given.null_count == len(given):
        return _spelled(batch).cast(pa.binary())
    return pc.coalesce(given, _spelled(batch).cast(pa.binary()))


def split(rows: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """(folder, its rows sorted and each id once) of events in any order."""
    plain = pc.is_in(rows["type"], value_set=pa.array(sorted(PLAIN)))
    for topic, mask in ((EVENTS, pc.invert(plain)), (HEARTBEATS, plain)):
        for where, part in by_hour(topic, rows.filter(mask), ORDER):
            yield where, _once(part)


def by_hour(topic: str, rows: pa.Table, order: list[tuple[str, str]]) -> Iterator[tuple[str, pa.Table]]:
    """(folder, its rows sorted) of a topic's rows in any order."""
    names = rows.column_names
    rows = rows.append_column("_hour", pc.divide(pc.max_element_wise(rows["at"].cast(_int), 0), HOUR))
    rows = rows.take(pc.sort_indices(rows, sort_keys=[("_hour", "ascending"), *order])).combine_chunks()
    for begin, end in pairwise([0, *_run_ends(rows, "_hour")]):
        part = rows.slice(begin, end - begin)
        yield folder(topic, part["_hour"][0].as_py() * HOUR), part.select(names)


def runs(rows: pa.Table) -> list[tuple[int, int, int]]:
    """(partition, first row, end) of each run of rows sorted by partition."""
    ends = _run_ends(rows, "partition")
    begins = [0, *ends[:-1]]
    found = rows["partition"].take(pa.array(begins, _int)).to_pylist()
    return list(zip(found, begins, ends, strict=True))


def _run_ends(rows: pa.Table, *names: str) -> list[int]:
    """Where each run of equal values ends, the last row's end included."""
    if rows.num_rows == 0:
        return []
    differs = None
    for name in names:
        column = rows[name].combine_chunks() if rows[name].num_chunks != 1 else rows[name].chunk(0)
        here = pc.not_equal(column.slice(1), column.slice(0, len(column) - 1))
        differs = here if differs is None else pc.or_(differs, here)
    return [*(i + 1 for i in pc.indices_nonzero(differs).to_pylist()), rows.num_rows]


def _once(rows: pa.Table) -> pa.Table:
    """Sorted rows without those that repeat the id before them."""
    ends = _run_ends(rows, "partition", "stream_ms", "stream_seq")
    if len(ends) == rows.num_rows:
        return rows
    return rows.take(pa.array([0, *ends[:-1]], _int))


def _spelled(columns: Any) -> pa.Array:
    """The JSON that the columns stand for if it was written in our own order, without an escape in an id."""
    number = {n: columns[n].cast(_text) for n in ("view", "watched_ms", "revision", "v")}
    number["at"] = columns["at"].cast(_int).cast(_text)
    number["started_at"] = pc.fill_null(columns["started_at"].cast(_int), 0).cast(_text)
    seq = columns["seq"]
    number["seq"] = pc.if_else(pc.greater_equal(seq, 0), seq.cast(_text), None)

    def optional(name: str, quote: str = "") -> pa.Array:
        value = number[name] if name in number else columns[name]
        return pc.binary_join_element_wise(f',"{name}":{quote}', value, quote, "")

    return pc.binary_join_element_wise(
        '{"type":"', columns["type"], '","at":', number["at"], ',"view":', number["view"],
        ',"started_at":', number["started_at"],
        optional("seq"), optional("watched_ms"), optional("revision"), optional("event_id", '"'), ',"account":"', columns["account"],
        '","profile":"', columns["profile"], '","device":"', columns["device"], '","session":"', columns["session"],
        '","content":"', columns["content"], '","kind":"', columns["kind"], '","v":', number["v"], ',"data":',
        columns["data"], "}", "", null_handling="skip",
    )  # fmt: skip


def _present(values: Sequence[int], heads: Sequence[bytes], name: bytes) -> pa.Array:
    """Null where the JSON has no such field, which is more than its value can tell."""
    return _numbers([v if v or name in head else None for v, head in zip(values, heads, strict=True)])


def _numbers(values: Sequence[int | None]) -> pa.Array:
    try:
        return pa.array(values, _int)
    except (OverflowError, pa.ArrowInvalid):  # a number no column holds; the row keeps its JSON
        return pa.array([None if v is None else max(-_INT64, min(v, _INT64)) for v in values], _int)


def _strings(values: Sequence[str | None]) -> pa.Array:
    try:
        return pa.array(values, _text)
    except UnicodeEncodeError:  # half a surrogate pair, which UTF-8 has no bytes for
        return pa.array([v and v.encode(errors="replace").decode() for v in values], _text)


def _json(values: Sequence[bytes]) -> pa.Array:
    try:
        return pa.array(values, pa.binary()).cast(_text)
    except pa.ArrowInvalid:
        return pa.array([v.decode(errors="replace") for v in values], _text)
