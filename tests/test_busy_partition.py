"""One account can be busier than all others together: what gathers events does not fall behind because its partition is read little by little."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from engine.embedded import Server
from engine.lake import Lake
from tests.harness import PARTITIONS, START
from tests.pipeline import owner, plant
from workers import reading
from workers.consume import Consume
from workers.export import Export
from workers.lake import LakeSink
from workers.quality import Quality
from workers.runtime import Runtime

EVENTS = 500
"""In one partition, of which an answer holds `AT_ONCE` of each stream."""
AT_ONCE = 20


@pytest.fixture
def run(single: Server, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    monkeypatch.setattr(reading, "READ_MAX", AT_ONCE * PARTITIONS * 2)
    run = plant(single.url, single.url, prefix, lake_dir=str(tmp_path), lake_roll_s=3_600, quality_roll_s=60)
    pipe = run.log.pipeline(transaction=False)
    for n in range(EVENTS):
        said = {"type": "cmcd", "at": START + n, "account": "ann", "session": "s", "data": {"keys": {"sn": n}}}
        pipe.xadd(run.keys.log(3, "events"), {"e": orjson.dumps(said)}, id=f"{START + n}-0")
    pipe.hset(run.keys.mirrored, "3", f"{START + EVENTS - 1}-0")
    pipe.execute()
    yield run
    run.close()


def test_the_lake_has_all_of_it_at_once(run: Runtime, tmp_path: Path) -> None:
    work = Export(run, 0, owner(run, "export-lake"), LakeSink)
    assert work.step(0.01) == EVENTS
    assert work.step(0.01) == 0
    stored: list[Any] = list(Lake(tmp_path, partitions=PARTITIONS).read())
    assert [event.at for event in stored] == [START + n for n in range(EVENTS)]


def test_so_has_a_consumer(run: Runtime) -> None:
    work = Consume(run, 0, owner(run, "consume-quality"), Quality)
    assert work.step(0.01) == EVENTS
    work.close()
