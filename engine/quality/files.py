"""Where the facts are: a lake of their own beside the events, `<lake_dir>/quality/facts/date=…/hour=…`, with its own manifest."""

from __future__ import annotations

from pathlib import Path

from engine.lake import Lake
from engine.lake.forms import FACTS as TOPIC
from engine.settings import Settings

__all__ = ["QUALITY", "TOPIC", "lake_of"]

QUALITY = "quality"
"""The folder of that lake in `lake_dir`."""


def lake_of(settings: Settings) -> Lake | None:
    """None: there is no lake, and no facts are kept."""
    if not settings.lake_dir:
        return None
    return Lake(Path(settings.lake_dir) / QUALITY, partitions=settings.partitions)
