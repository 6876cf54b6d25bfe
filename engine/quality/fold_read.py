"""Reading what players say, who may say anything: a value is of its type and within reason, or nobody has said it."""

from __future__ import annotations

import math
import re
from typing import Any

TEXT, MESSAGE = 64, 256
"""Characters of a dimension or a label, and of a code or a message."""

_MEANT = re.compile(
    r"geo|region|territor|blackout|entitle|subscri|concurren|(stream|device|session)s?.?limit|limit.?(reached|exceeded)"
    r"|too.?many.?(stream|device|session)|parental|age.?restrict|vpn|proxy.?detected|licen[cs]e.?(denied|refused)|drm.?denied",
    re.IGNORECASE,
)
"""Codes and messages of refusals that are meant. Not 401 and 403: a CDN's wrong signature looks the same."""


def number(value: Any, most: float = 1e15) -> float | None:
    """A finite number from 0 to `most`, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        return None
    return float(value) if math.isfinite(value) else None


def whole(value: Any, most: int = 10**15) -> int | None:
    """The same as a whole number; fractions are cut off."""
    found = number(value, most)
    return None if found is None else int(found)


def text(value: Any, longest: int = TEXT) -> str:
    return value[:longest] if isinstance(value, str) else ""


def meant(code: str, message: str) -> bool:
    """A refusal, not a failure."""
    return bool(_MEANT.search(code) or _MEANT.search(message))
