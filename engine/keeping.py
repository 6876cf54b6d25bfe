"""What is kept for somebody to look at (rejected events, dead letters): streams bounded in entries and bytes (lua/keep.lua)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redis import Redis

from engine import scripts
from engine.keys import sizes
from engine.scripts import Arg

PAGE = 1_000
"""Entries taken away at a time."""


def cut(value: bytes, most: int) -> tuple[bytes, dict[str, Arg]]:
    """What is kept of a value, and, where that is not all of it, the field that says how large it was."""
    return (value, {}) if len(value) <= most else (value[:most], {"size": len(value)})


def command(
    key: str, entry: Mapping[str, Arg], most: int, most_bytes: int, share: Arg = "", account: str = ""
) -> tuple[Any, ...]:
    """The call that appends an entry, for a pipeline; `share` is the account's, in bytes."""
    fields = [part for pair in entry.items() for part in pair]
    return ("EVAL", scripts.load("keep").source, 2, key, sizes(key), most, most_bytes, share, account, *fields)


def remove(client: Redis, key: str, ids: Sequence[str]) -> int:
    """Takes entries away; how many there were. Raises redis-py's errors."""
    run, gone = client.register_script(scripts.load("unkeep").source), 0
    for start in range(0, len(ids), PAGE):
        gone += int(run(keys=[key, sizes(key)], args=list(ids[start : start + PAGE])))
    return gone
