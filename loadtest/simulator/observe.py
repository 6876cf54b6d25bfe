"""What the engine says while a simulation goes on: who watches what, and what is trending. Written beside the truth.

An `observed` line holds `concurrent` (content → viewers), `trending` (kind → contents, best first), or both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import orjson

from loadtest.http1 import Answer
from loadtest.simulator.world import Sender

TRENDING_EVERY_MS = 5_000
"""As often as lists are published."""
LISTED = 100
AT_ONCE = 16


class ObserveError(Exception):
    """The engine did not answer a question."""


async def observe(
    pool: Sender, token: str, at: int, *, contents: Iterable[str] = (), trending: bool = True
) -> dict[str, Any]:
    """The line of this moment. `token` needs the scope `read`; audiences are asked of `contents`. Raises ObserveError."""
    line: dict[str, Any] = {"type": "observed", "at": at}
    if trending:
        kinds = ("live", "vod")
        answers = await asyncio.gather(
            *(pool.send("GET", f"/v1/trending?kind={kind}&limit={LISTED}", token=token) for kind in kinds)
        )
        line["trending"] = {
            kind: [item["content"] for item in _read(answer)["items"]]
            for kind, answer in zip(kinds, answers, strict=True)
        }
    wanted = list(contents)
    if wanted:
        line["concurrent"] = {}
        for first in range(0, len(wanted), AT_ONCE):
            some = wanted[first : first + AT_ONCE]
            answers = await asyncio.gather(
                *(pool.send("GET", f"/v1/contents/{quote(content, safe='')}/audience", token=token) for content in some)
            )
            line["concurrent"] |= {
                content: _read(answer)["concurrent"] for content, answer in zip(some, answers, strict=True)
            }
    return line


def _read(answer: Answer) -> dict[str, Any]:
    if answer.status != 200:
        raise ObserveError(f"the engine answered {answer.status}: {answer.body[:300].decode(errors='replace')}")
    found: dict[str, Any] = orjson.loads(answer.body)
    return found
