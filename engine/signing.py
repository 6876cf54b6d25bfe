"""How a webhook's receiver knows that a request is ours and fresh: HMAC-SHA256 over time and body.

    Pulsegate-Timestamp: 1800000000          seconds since the epoch, when it was sent
    Pulsegate-Signature: v1=<hex>            HMAC-SHA256(secret, "<timestamp>.<body>")

The time is signed with the body, so a recorded request is of no use after `WINDOW_S`. A receiver computes the same over the
bytes as they came and compares in constant time; `verify` is what it does, and `docs/exports.md` shows it.
"""

from __future__ import annotations

import hmac
from hashlib import sha256

TIMESTAMP = "Pulsegate-Timestamp"
SIGNATURE = "Pulsegate-Signature"
WINDOW_S = 300


def sign(secret: str, timestamp: int, body: bytes) -> str:
    """The signature header's value. `timestamp` is in seconds."""
    return "v1=" + hmac.new(secret.encode(), b"%d." % timestamp + body, sha256).hexdigest()


def verify(secret: str, timestamp: str, signature: str, body: bytes, now: float, window_s: int = WINDOW_S) -> bool:
    """Whether the headers sign this body with this secret, not longer than `window_s` ago (or ahead)."""
    if not (timestamp.isascii() and timestamp.isdigit()) or abs(now - int(timestamp)) > window_s:
        return False
    return hmac.compare_digest(sign(secret, int(timestamp), body).encode(), signature.encode())
