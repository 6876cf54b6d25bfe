"""What a list holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

# the distinct accounts of the last five minutes, of those contents that are asked for; it may leave some out
Distinct = Callable[[list[str]], Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Item:
    """One content of a list. `observed` and `expected` are viewers, in a popular list hours; `since` is ms since the epoch."""

    content: str
    observed: float
    expected: float
    score: float
    concurrent: int
    distinct: int
    since: int


@dataclass(frozen=True, slots=True)
class Member:
    """A content that is in the list: since when (ms), and the accounts last counted."""

    since: int
    distinct: int
