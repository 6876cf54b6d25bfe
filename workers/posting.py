"""Posts to a receiver that nobody here vouches for: one deadline for all of it, and little of its answer is kept.

httpx's time-outs are for each read and write, so a receiver that sends or takes a byte a second would hold its caller for
hours. Here the request runs in an event loop of its own, which gives it up, wherever it stands (name, connection, TLS, body,
head, answer), and closes its connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

import httpx

ANSWER_MAX = 64 * 1024
"""Bytes of an answer that are read; one that is longer costs its connection."""


class NoAnswer(Exception):
    """None in time, or none that is HTTP. The message says why."""


class Answer(NamedTuple):
    status: int
    headers: httpx.Headers
    body: bytes
    """At most about `ANSWER_MAX` of it."""


class Poster:
    """Keeps its connection between requests. Of one thread."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._runner: asyncio.Runner | None = None
        self._client: httpx.AsyncClient | None = None

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Redirects are not followed. Raises NoAnswer."""
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(self._post(url, body, headers))

    async def _post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        if self._client is None:
            # Made when it is first needed: reading the certificates takes longer than everything else here.
            self._client = httpx.AsyncClient(timeout=None, follow_redirects=False)
        try:
            async with asyncio.timeout(self._seconds):
                async with self._client.stream("POST", url, content=body, headers=dict(headers)) as answer:
                    return Answer(answer.status_code, answer.headers, await _beginning(answer))
        except TimeoutError:
            raise NoAnswer(f"no answer within {self._seconds:g} s") from None
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise NoAnswer(f"{type(error).__name__}: {error}") from None

    def close(self) -> None:
        if self._runner is not None:
            if self._client is not None:
                self._runner.run(self._client.aclose())
            self._runner.close()
            self._runner = self._client = None


async def _beginning(answer: httpx.Response) -> bytes:
    """A short answer is read to its end, so that the connection can be used again."""
    found = b""
    async for part in answer.aiter_bytes():
        found += part
        if len(found) > ANSWER_MAX:
            break
    return found[:ANSWER_MAX]
