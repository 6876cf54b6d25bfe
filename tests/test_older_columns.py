"""A lake whose older files lack columns that were added later: asked, merged, erased from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.embedded import Server
from engine.lake import Lake
from engine.lake.forms import form_of
from engine.quality.columns import SCHEMA, table
from engine.quality.facts import Fact
from engine.quality.files import TOPIC
from tests.harness import PARTITIONS, START
from tests.quality_plain import HOUR, seeded
from tests.servers import ApiProcess, service

LATER = ("experiment", "silent", "bits_ms")
"""As if these had been added: a text, a flag, a number."""
SPAN = {"from": START - 2 * HOUR, "to": START + 2 * HOUR}


def age(path: Path) -> None:
    """The file as an earlier version would have written it."""
    pq.write_table(pq.ParquetFile(path).read().drop_columns(list(LATER)), path)


def as_read(fact: Fact) -> Fact:
    """What an older file says of it."""
    fact.experiment, fact.silent, fact.bits_ms = "", False, None
    return fact


def mixed(root: Path, facts: list[Fact], *, older: int) -> Lake:
    """Two goes of facts; the files of go `older` lack the columns."""
    lake = Lake(root / "quality", partitions=PARTITIONS, clock=lambda: START + 9 * HOUR)
    middle = sorted(f.stream_ms for f in facts)[len(facts) // 2]
    for n, part in enumerate(([f for f in facts if f.stream_ms < middle], [f for f in facts if f.stream_ms >= middle])):
        before = set(lake.files(TOPIC, 0, 2**42))
        lake.add(TOPIC, table(part), dict.fromkeys(range(PARTITIONS), f"{max(f.stream_ms for f in part)}-99"))
        if n == older:
            for path in set(lake.files(TOPIC, 0, 2**42)) - before:
                age(path)
            for fact in part:
                as_read(fact)
    return lake


def rows(lake: Lake) -> list[tuple[Any, ...]]:
    """All that the lake holds, each with what is in the later columns."""
    found = []
    for path in lake.files(TOPIC, 0, 2**42):
        file = form_of(TOPIC).whole(pq.ParquetFile(path).read())
        assert file.schema.names == SCHEMA.names
        found += [(r["stream_ms"], r["fact"], *(r[name] for name in LATER)) for r in file.to_pylist()]
    return sorted(found, key=str)


def expected(facts: list[Fact]) -> list[tuple[Any, ...]]:
    return sorted([(f.stream_ms, f.fact, f.experiment, f.silent, f.bits_ms) for f in facts], key=str)


@pytest.mark.parametrize("older", [0, 1])
def test_questions(single: Server, tmp_path: Path, prefix: str, older: int) -> None:
    """Whichever file comes first: figures, dimensions, percentiles, a timeline."""
    facts = seeded(21, 600)
    for n, fact in enumerate(facts):
        fact.experiment = ("", "blue")[n % 2]
    mixed(tmp_path / "lake", facts, older=older)
    with ApiProcess(single.url, tmp_path, prefix=prefix, lake_dir=tmp_path / "lake") as api:

        def ask(path: str, **params: Any) -> Any:
            answer = api.get(path, token=service("read"), params=SPAN | params)
            assert answer.status_code == 200, answer.text
            return answer.json()

        said = ask("/v1/quality", metrics="plays,bitrate", by="experiment", where="experiment!=red")["items"]
        plays = {name: sum(f.fact == "start" for f in facts if f.experiment == name) for name in ("", "blue")}
        assert {i["by"]["experiment"]: i["metrics"]["plays"]["value"] for i in said} == plays
        bits = {i["by"]["experiment"]: i["metrics"]["bitrate"]["value"] for i in said}
        mine = [f for f in facts if f.fact == "play" and f.experiment == "blue" and f.bits_ms]
        top, under = sum(f.bits or 0 for f in mine), sum(f.bits_ms or 0 for f in mine)
        assert bits["blue"] == pytest.approx(top * 1000 / under)
        series = ask("/v1/quality", metrics="plays", by="experiment", interval="5m")["items"]
        assert sum(i["metrics"]["plays"]["value"] for i in series) == sum(plays.values())
        assert ask("/v1/quality/players")["items"]
        one = facts[0]
        told = ask(f"/v1/quality/sessions/{one.session}", account=one.account)["facts"]
        assert len(told) == sum((f.account, f.session) == (one.account, one.session) for f in facts)
        assert ask("/v1/behaviour")["items"]


def test_merged_and_erased_from(tmp_path: Path) -> None:
    facts = seeded(22, 600)
    lake = mixed(tmp_path, facts, older=0)
    name = facts[0].account
    assert lake.erase(name).rows == sum(f.account == name for f in facts)
    left = [f for f in facts if f.account != name]
    assert rows(lake) == expected(left)
    assert lake.compact(0).merged
    assert rows(lake) == expected(left)


def test_what_a_newer_version_added_is_not_lost(tmp_path: Path) -> None:
    """A process of an older version refuses to merge such files."""
    facts = seeded(23, 200)
    lake = mixed(tmp_path, facts, older=0)
    for path in lake.files(TOPIC, 0, 2**42):
        file = pq.ParquetFile(path).read()
        pq.write_table(file.append_column("tomorrow", pa.repeat("x", file.num_rows)), path)
    with pytest.raises((ValueError, pa.ArrowInvalid)):
        lake.compact(0)
    assert len(rows_as_they_are(lake)) == len(facts)


def rows_as_they_are(lake: Lake) -> list[Any]:
    return [
        r for path in lake.files(TOPIC, 0, 2**42) for r in pq.ParquetFile(path).read().column("tomorrow").to_pylist()
    ]
