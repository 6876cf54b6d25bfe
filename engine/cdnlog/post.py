"""Delivers signals to `POST /v1/signals`, again and again where that may help."""

from __future__ import annotations

import contextlib
import itertools
import re
from typing import Any

import httpx

from engine.cdnlog.batch import Entry, encode
from engine.cdnlog.errors import IngestError, Refused
from engine.cdnlog.ingest import Counts
from engine.cdnlog.process import Pace, say

TIMEOUT_S = 10.0
BACKOFF_FIRST_S, BACKOFF_MOST_S, RETRY_AFTER_MOST_S = 0.5, 30.0, 300.0
_ITEM = re.compile(r"^\[(\d+)\]")


class Poster:
    """A Send. Tries `retries` times more, or for ever if None; once stopped, one last time.

    Between attempts it waits as long as `Retry-After` says, and at least its own doubling back-off.
    """

    def __init__(self, client: httpx.Client, url: str, retries: int | None, pace: Pace, counts: Counts) -> None:
        self._client = client
        self._url = url.rstrip("/") + "/v1/signals"
        self._retries = retries
        self._pace = pace
        self._counts = counts

    def __call__(self, entries: list[Entry]) -> list[Any]:
        body = encode(entries)
        for attempt in itertools.count(1):
            last = self._pace.stopped or (self._retries is not None and attempt > self._retries)
            after = 0.0
            try:
                answer = self._client.post(self._url, content=body)
            except httpx.RequestError as error:
                why = f"{error}" or type(error).__name__
            else:
                if answer.status_code not in (408, 429) and answer.status_code < 500:
                    return self._answered(answer)
                why, after = f"it answers {answer.status_code} {_said(answer)[0]}", _retry_after(answer)
            if last:
                raise IngestError(f"cannot deliver to {self._url} ({attempt} attempts): {why}")
            delay = max(after, min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2.0 ** min(attempt - 1, 16)))
            say(f"cannot deliver to {self._url}: {why}; next attempt in {delay:.1f} s")
            self._counts.retries += 1
            self._pace.wait(delay)
        raise AssertionError("unreachable")

    def _answered(self, answer: httpx.Response) -> list[Any]:
        if answer.status_code == 200:
            decisions = _json(answer)
            if not isinstance(decisions, list):
                raise IngestError(f"{self._url} answers 200, but no list of decisions: is that Pulsegate?")
            return decisions
        message, where = _said(answer)
        if answer.status_code in (400, 413, 422):
            item = _ITEM.match(where)
            raise Refused(message or f"answered {answer.status_code}", int(item[1]) if item else None)
        raise IngestError(f"{self._url} answers {answer.status_code} {message}".rstrip())


def _json(answer: httpx.Response) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        return answer.json()
    return None


def _said(answer: httpx.Response) -> tuple[str, str]:
    """(message, field) of an error; empty where it has none."""
    said = _json(answer)
    error = said.get("error") if isinstance(said, dict) else None
    if not isinstance(error, dict):
        return "", ""
    return str(error.get("message", "")), str(error.get("field", ""))


def _retry_after(answer: httpx.Response) -> float:
    """Seconds; 0 if it does not say."""
    text = answer.headers.get("retry-after", "").strip()
    return min(float(text), RETRY_AFTER_MOST_S) if re.fullmatch(r"[0-9]{1,9}", text) else 0.0
