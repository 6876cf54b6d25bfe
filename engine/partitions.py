"""Accounts hash onto a fixed number of partitions; each partition is one Redis hash tag.

The count is fixed when a deployment is created (`pg:layout`), so an account's partition never moves. Tags are
chosen, not counted: `p0`, `p1`, … hash very unevenly onto a cluster's slots, so for every partition the first
suffix whose slot falls into that partition's own slice of the 16,384 slots is taken.
"""

from __future__ import annotations

from functools import lru_cache
from zlib import crc32

from redis.crc import key_slot

SLOTS = 16_384


@lru_cache(maxsize=8)
def tags(count: int) -> tuple[str, ...]:
    """The hash tags of `count` partitions, spread evenly: partition i owns a slot in [i, i+1) · 16,384 / count."""
    chosen: dict[int, str] = {}
    suffix = 0
    while len(chosen) < count:
        tag = f"p{suffix}"
        chosen.setdefault(key_slot(tag.encode()) * count // SLOTS, tag)
        suffix += 1
    return tuple(chosen[i] for i in range(count))


def partition_of(account: str, count: int) -> int:
    """The partition of an account: CRC-32 of its UTF-8 bytes, modulo the deployment's partition count."""
    return crc32(account.encode()) % count
