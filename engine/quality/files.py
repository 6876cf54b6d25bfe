"""Where the facts are: a lake of their own beside the events, `<lake_dir>/quality/facts/date=…/hour=…`, with its own manifest."""

from __future__ import annotations

from pathlib import Path

from engine.lake import Lake
from engine.lake.forms import FACTS as TOPIC
from engine.settings import Settings

__all__ = ["QUALITY", "TOPIC", "facts_files", "lake_of"]

QUALITY = "quality"
"""The folder of that lake in `lake_dir`."""


def lake_of(settings: Settings) -> Lake | None:
    """None: there is no lake, and no facts are kept."""
    if not settings.lake_dir:
        return None
    return Lake(Path(settings.lake_dir) / QUALITY, partitions=settings.partitions)


def facts_files(settings: Settings, from_ms: int, to_ms: int) -> list[Path]:
    """The Parquet files that may hold facts of that time (`to_ms` exclusive). They stay for an hour at least, unless an account is
    erased."""
    lake = lake_of(settings)
    return lake.files(TOPIC, from_ms, to_ms) if lake is not None else []
