"""The quality consumer: the fold's facts, each in the lake once, whatever dies when."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.embedded import Server
from engine.events import Event
from engine.partitions import partition_of
from engine.quality.facts import Fact
from engine.quality.files import TOPIC, lake_of
from engine.quality.fold import fold
from tests.harness import PARTITIONS
from tests.pipeline import drain, owner, plant, put
from workers.consume import Commit, Consume
from workers.erase import erase_account
from workers.mirror import Mirror
from workers.quality import SILENT_MS, Quality
from workers.reading import LogReader
from workers.runtime import Runtime

NOW = int(time.time() * 1000)


@pytest.fixture
def run(single: Server, prefix: str, tmp_path: Path) -> Iterator[Runtime]:
    run = plant(single.url, single.url, prefix, lake_dir=str(tmp_path))
    yield run
    run.close()


def watch(run: Runtime, account: str, seconds: int = 40) -> None:
    """A view with a start-up of 700 ms, a stall and a switch, as a CMCD player tells it."""
    partition = partition_of(account, PARTITIONS)
    common: dict[str, Any] = {
        "account": account,
        "session": f"of-{account}",
        "content": "film",
        "kind": "vod",
        "started_at": NOW,
    }
    put(run, partition, "view_start", **common | {"at": NOW})
    put(run, partition, "client", **common | {"at": NOW, "data": {"user_agent": "", "country": "PT", "asn": "AS1"}})
    told = [
        (0, {"e": "ps", "sta": "s"}), (700, {"e": "ps", "sta": "p", "br": [1000]}), (20_000, {"e": "ps", "sta": "r"}),
        (21_500, {"e": "ps", "sta": "p"}), (30_000, {"e": "bc", "sta": "p", "br": [500]}), (seconds * 1000, {"e": "ps", "sta": "e"}),
    ]  # fmt: skip
    for sn, (ms, keys) in enumerate(told):
        keys |= {"ts": NOW + ms - 3_000, "sn": sn, "sid": f"of-{account}", "cid": "film", "v": 2}
        put(
            run,
            partition,
            "cmcd",
            **common | {"at": NOW + ms, "data": {"type": "cmcd", "target": "", "keys": keys, "raw": ""}},
        )
    end = {"reason": "stopped", "watched_ms": 37_800, "max_position": 38, "last_seen_at": NOW + 40_000}
    put(run, partition, "view_end", **common | {"at": NOW + 40_000, "watched_ms": 37_800, "data": end})


def mirror(run: Runtime) -> None:
    ownership = owner(run, "mirror")
    drain(Mirror(run, 0, ownership))
    ownership.release()


def consume(run: Runtime) -> None:
    ownership = owner(run, "consume-quality")
    drain(Consume(run, 0, ownership, Quality))
    ownership.release()


def rows(run: Runtime) -> list[dict[str, Any]]:
    lake = lake_of(run.settings)
    assert lake is not None
    return [row for path in lake.files(TOPIC) for row in pq.ParquetFile(path).read().to_pylist()]


def states(run: Runtime) -> dict[str, Any]:
    return dict(Quality(run.log, run.keys.projection("quality", 1), run.settings).dump())


def events(run: Runtime) -> list[Event]:
    return LogReader(run.log, run.keys, range(PARTITIONS)).look({}).events


def folded(found: list[Event]) -> Counter[tuple[Any, ...]]:
    """What the fold makes of them, one after the other."""
    kept: dict[str, Any] = {}
    facts: list[Fact] = []
    for event in found:
        kept[event.account], made = fold(kept.get(event.account), event)
        facts += made
    return Counter((f.account, f.fact, f.ms, f.value, f.count, f.country, f.part) for f in facts)


def stored(run: Runtime) -> Counter[tuple[Any, ...]]:
    return Counter(
        (r["account"], r["fact"], r["ms"], r["value"], r["count"], r["country"], r["part"]) for r in rows(run)
    )


def test_its_facts_are_the_folds_with_their_view(run: Runtime) -> None:
    for n in range(4):
        watch(run, f"a{n}")
    mirror(run)
    consume(run)
    assert stored(run) == folded(events(run))
    found = [row for row in rows(run) if row["account"] == "a1"]
    assert {row["country"] for row in found} == {"PT"}
    assert {row["started_at"].timestamp() for row in found} == {pa.scalar(NOW, pa.timestamp("ms")).as_py().timestamp()}
    by = Counter(row["fact"] for row in found)
    assert (by["attempt"], by["start"], by["stall"], by["switch"], by["end"]) == (1, 1, 1, 1, 1)
    assert next(row["ms"] for row in found if row["fact"] == "start") == 700
    assert sum(row["ms"] for row in found if row["fact"] == "stall") == 1_500
    consume(run)
    assert stored(run) == folded(events(run)), "nothing new, nothing twice"


def test_who_dies_between_lake_and_state_repeats_nothing(run: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    watch(run, "ann")
    mirror(run)
    consume(run)
    watch(run, "bob")
    mirror(run)
    execute = Commit.execute

    def die(*_: Any, **__: Any) -> None:
        raise ConnectionError("killed")

    monkeypatch.setattr(Commit, "execute", die)
    ownership = owner(run, "consume-quality")
    with pytest.raises(ConnectionError):
        drain(Consume(run, 0, ownership, Quality))
    ownership.release()
    assert {row["account"] for row in rows(run)} == {"ann", "bob"}, "the lake has them, the states do not"
    assert list(states(run)) == ["ann\tof-ann"]
    monkeypatch.setattr(Commit, "execute", execute)
    watch(run, "ann")
    mirror(run)
    consume(run)
    assert sum(stored(run).values()) == len(rows(run))
    assert stored(run) == folded(events(run))


def test_an_erased_account_leaves_facts_and_states(run: Runtime) -> None:
    for account in ("ann", "bob"):
        watch(run, account)
    mirror(run)
    consume(run)
    found = erase_account(run, "ann")["removed"]
    assert found["projections"]["quality"] == 1
    assert found["quality"]["rows"] > 5
    assert {row["account"] for row in rows(run)} == {"bob"}
    assert list(states(run)) == ["bob\tof-bob"]


def test_files_are_merged_and_the_silent_forgotten(run: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(14):
        watch(run, f"a{n}")
        mirror(run)
        consume(run)
    lake = lake_of(run.settings)
    assert lake is not None
    before, facts = len(lake.files(TOPIC)), stored(run)
    quality = Quality(run.log, run.keys.projection("quality", 1), run.settings)
    quality.tidy(NOW)
    assert len(lake.files(TOPIC)) < before
    assert stored(run) == facts
    assert len(states(run)) == 14
    quality.tidy(NOW + 60_000 + SILENT_MS)
    assert states(run) == {}


def test_without_a_lake_nothing_is_folded(single: Server, prefix: str) -> None:
    run = plant(single.url, single.url, prefix)
    watch(run, "ann")
    mirror(run)
    consume(run)
    assert states(run) == {}
    run.close()


def test_an_account_keeps_so_many_sessions(run: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ever new session names push out that account's own."""
    monkeypatch.setattr("workers.quality.SESSIONS_MAX", 3)

    def started(account: str, number: int) -> None:
        common: dict[str, Any] = {"account": account, "session": f"s{number}", "content": "film", "kind": "vod"}
        put(
            run,
            partition_of(account, PARTITIONS),
            "view_start",
            **common | {"at": NOW + number, "started_at": NOW + number},
        )

    started("ben", 0)
    for round_ in range(3):
        for number in range(5):
            started("ann", 5 * round_ + number)
        mirror(run)
        consume(run)
    assert set(states(run)) == {"ben\ts0", "ann\ts12", "ann\ts13", "ann\ts14"}
    heard = run.log.zrange(run.keys.projection("quality", 1).key("heard"), 0, -1)
    assert {member.decode() for member in heard} == set(states(run))  # type: ignore[union-attr]
