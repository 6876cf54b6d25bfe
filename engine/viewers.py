"""Distinct viewers: HyperLogLogs of accounts, one for each content and five minutes, and one for each hour.

A view tells of itself when it begins and then once in every five minutes of its own (`lua/heartbeat.lua`, `lua/lib/reply.lua`), so whoever
watches is in every bucket once, and the marks of a final's viewers are spread over the five minutes.
"""

from __future__ import annotations

from engine.keys import Keys

FINE_MS, COARSE_MS = 300_000, 3_600_000
KEEP_MS = (13 * FINE_MS, 25 * COARSE_MS)
"""How long a bucket is kept after the last account that was new to it, fine and coarse."""


def marked(keys: Keys, content: str, now_ms: int) -> tuple[str, str]:
    """The buckets to which somebody who watches now belongs: fine and coarse."""
    return keys.viewers(content, "5m", now_ms // FINE_MS), keys.viewers(content, "1h", now_ms // COARSE_MS)


def windows(keys: Keys, content: str, now_ms: int) -> dict[str, list[str]]:
    """Window → the buckets whose union is its distinct viewers. The newest is still filling, so one more is looked at: each
    window reaches back by up to one bucket more than its name."""
    fine, coarse = now_ms // FINE_MS, now_ms // COARSE_MS
    return {
        "5m": [keys.viewers(content, "5m", n) for n in range(fine - 1, fine + 1)],
        "1h": [keys.viewers(content, "5m", n) for n in range(fine - 12, fine + 1)],
        "24h": [keys.viewers(content, "1h", n) for n in range(coarse - 24, coarse + 1)],
    }
