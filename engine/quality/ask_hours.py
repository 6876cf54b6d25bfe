"""Series, hour by hour. A point of a series lies within one hour, and so do the files it is made of (engine/lake/layout.py): so a long series
is made in pieces, each of bounded memory, and an hour whose files are the same as when it was last asked for is not made again. A dashboard
that is looked at every few seconds costs the hour that goes on.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import msgspec
import orjson

from engine.quality.metrics import METRICS
from engine.quality.query import Asked

HOUR_MS = 3_600_000
PIECE_BYTES = 16 * 2**20
"""Of Parquet, made at once: some 800,000 facts."""
KEPT_BYTES = 64 * 2**20
"""Of answers that are remembered."""
_PLACE = re.compile(r"/date=(\d{4}-\d\d-\d\d)/hour=(\d\d)/[^/]+$")

Items = Callable[[Asked], tuple[list[dict[str, Any]], bool]]
"""Makes a question's items; whether there were more than its limit."""


class Database(Protocol):
    def files(self, name: str) -> Sequence[str]: ...

    def use(self, name: str, files: Sequence[str]) -> None: ...


class Hours:
    """What is remembered: (question, hour, files) → (items, their JSON without brackets)."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Any, ...], tuple[int, bytes]] = OrderedDict()
        self._bytes = 0

    def series(self, database: Database, asked: Asked, make: Items) -> tuple[Any, bool] | None:
        """The items (for orjson) and whether there are more; None if this question cannot be answered hour by hour."""
        files = _by_hour(database.files("facts"))
        if (
            files is None
            or not asked.interval
            or HOUR_MS % asked.interval
            or any(METRICS[m].ends for m in asked.metrics)
        ):
            return None
        shape = msgspec.structs.replace(asked, start=0, end=0, limit=0)
        found: dict[int, tuple[int, bytes]] = {}
        missing = []
        hours = [hour for hour in sorted(files) if asked.start - HOUR_MS < hour < asked.end]
        for hour in hours:
            known = self._kept.get((shape, hour, files[hour])) if _whole(hour, asked) else None
            if known is None:
                missing.append(hour)
            else:
                found[hour] = known
                self._kept.move_to_end((shape, hour, files[hour]))
        for piece in _pieces(missing, files):
            database.use("facts", [path for hour in piece for path in files[hour]])
            start, end = max(asked.start, piece[0]), min(asked.end, piece[-1] + HOUR_MS)
            items, more = make(msgspec.structs.replace(asked, start=start, end=end))
            if more:
                return None
            found |= dict.fromkeys(piece, (0, b"")) | _encoded(items)
            for hour in piece:
                if _whole(hour, asked):
                    self._keep((shape, hour, files[hour]), found[hour])
        parts = [orjson.Fragment(b"[" + b",".join(found[hour][1] for hour in hours if found[hour][0]) + b"]")]
        if sum(found[hour][0] for hour in hours) <= asked.limit:
            return parts[0], False
        whole = orjson.loads(orjson.dumps(parts[0]))
        return whole[: asked.limit], True

    def _keep(self, key: tuple[Any, ...], value: tuple[int, bytes]) -> None:
        self._kept[key] = value
        self._bytes += len(value[1]) + 500
        while self._bytes > KEPT_BYTES:
            _, old = self._kept.popitem(last=False)
            self._bytes -= len(old[1]) + 500


def _whole(hour: int, asked: Asked) -> bool:
    return asked.start <= hour and hour + HOUR_MS <= asked.end


def _by_hour(paths: Iterable[str]) -> dict[int, tuple[str, ...]] | None:
    """Hour (ms) → its files; None if they do not lie by hours."""
    found: dict[int, list[str]] = {}
    for path in paths:
        place = _PLACE.search(path)
        if place is None:
            return None
        hour = int(datetime.fromisoformat(f"{place[1]}T{place[2]}:00:00+00:00").timestamp()) * 1000
        found.setdefault(hour, []).append(path)
    return {hour: tuple(sorted(files)) for hour, files in found.items()}


def _pieces(hours: Sequence[int], files: dict[int, tuple[str, ...]]) -> list[list[int]]:
    """Hours that are made together: next to one another, and not too much."""
    found: list[list[int]] = []
    size = 0
    for hour in hours:
        bytes_ = sum(Path(path).stat().st_size for path in files[hour])
        if not found or found[-1][-1] + HOUR_MS != hour or size + bytes_ > PIECE_BYTES:
            found.append([])
            size = 0
        found[-1].append(hour)
        size += bytes_
    return found


def _encoded(items: list[dict[str, Any]]) -> dict[int, tuple[int, bytes]]:
    found = {}
    for hour, group in groupby(items, lambda item: item["at"] // HOUR_MS * HOUR_MS):
        together = list(group)
        found[hour] = (len(together), orjson.dumps(together)[1:-1])
    return found
