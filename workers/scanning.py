"""Looking through a projection key by key: for `pulsegate replay` only, because it takes as long as there are keys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from redis import Redis


def keys_below(client: Redis, start: str) -> Iterator[tuple[bytes, str]]:
    """Each key that begins with `start`, once, and how it goes on."""
    seen = set()
    pattern = re.sub(r"([\[\]*?\\])", r"\\\1", start) + "*"
    found: Any = client.scan_iter(match=pattern, count=1000)
    for key in found:
        if key not in seen:
            seen.add(key)
            yield key, key.decode()[len(start) :]
