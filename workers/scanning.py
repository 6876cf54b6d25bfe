"""Looking through a projection key by key: for `pulsegate replay` only, because it takes as long as there are keys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from redis import Redis

_TOGETHER = 500
"""Hashes read in one round trip."""


def keys_below(client: Redis, start: str) -> Iterator[tuple[bytes, str]]:
    """Each key that begins with `start`, once, and how it goes on."""
    seen = set()
    pattern = re.sub(r"([\[\]*?\\])", r"\\\1", start) + "*"
    found: Any = client.scan_iter(match=pattern, count=1000)
    for key in found:
        if key not in seen:
            seen.add(key)
            yield key, key.decode()[len(start) :]


def hashes_below(client: Redis, start: str) -> Iterator[tuple[str, dict[bytes, bytes]]]:
    """Each hash whose key begins with `start`: how the key goes on, and what it holds."""
    keys = keys_below(client, start)
    while batch := list(islice(keys, _TOGETHER)):
        with client.pipeline(transaction=False) as pipe:
            for key, _ in batch:
                pipe.hgetall(key)
            for (_, rest), found in zip(batch, pipe.execute(), strict=True):
                yield rest, found
