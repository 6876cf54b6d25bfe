"""What a worker finds in Redis and cannot read: it leaves that out, goes on with the rest, and says so here.

One bad member, record, entry or key must not stop the work for all others. Each is counted by job for `pulsegate status` and
`/metrics`; a cause is logged when it is first met and then less and less often, for it may be met every second.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from typing import Any

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from engine.keys import Keys

log = logging.getLogger(__name__)

AGAIN_S = 10.0
"""The same cause is logged again after so long, then after twice that, and so on."""
AGAIN_MAX_S = 3_600.0
ASIDE_S = 10.0
"""A partition that cannot be worked on is left out for so long, then tried again."""
_CAUSES_MAX = 1_000
_OWN = ("WRONGTYPE", "Invalid stream ID", "equal or smaller", "not an integer", "not a valid float", "not a number")
"""What Redis says when it is the key or what it holds, and not the server, that is at fault."""

_said: dict[tuple[str, str, str], tuple[float, float, int]] = {}
"""Prefix, job and cause → when it may be logged again, after how long then, and how often it was met since."""


class Troubles:
    """Of one job. `log` is the log Redis."""

    def __init__(self, log: Redis, keys: Keys, job: str) -> None:
        self._log, self._keys, self._job = log, keys, job

    def note(self, what: str, why: object, count: int = 1) -> None:
        """`what` names the cause in few words that do not vary, `why` shows one case. Raises nothing."""
        with contextlib.suppress(RedisError, OSError):
            self._log.hincrby(self._keys.skipped, self._job, count)
        place, now = (self._keys.prefix, self._job, what), time.monotonic()
        due, wait, met = _said.get(place, (now, AGAIN_S, 0))
        if now < due:
            _said[place] = due, wait, met + count
            return
        if len(_said) >= _CAUSES_MAX:
            _said.clear()
        _said[place] = now + wait, min(2 * wait, AGAIN_MAX_S), 0
        said = {"job": self._job, "what": what, "why": str(why)[:300], "count": met + count}
        log.warning("skipped", extra=said)

    def check(self, answers: Sequence[Any], what: str) -> None:
        """A pipeline's answers: what lies in one key is noted, any other error raised."""
        for answer in answers:
            if isinstance(answer, Exception):
                if not own(answer):
                    raise answer
                self.note(what, answer)


def own(error: BaseException) -> bool:
    """Whether what Redis refused lies in that one key, so that others can be worked on."""
    return isinstance(error, ResponseError) and any(part in str(error) for part in _OWN)


def counts(answers: Sequence[Any]) -> list[int]:
    """What a pipeline counted, 0 where a key is of another type. Raises whatever else Redis refused."""
    for answer in answers:
        if isinstance(answer, Exception) and not own(answer):
            raise answer
    return [0 if isinstance(answer, Exception) else int(answer) for answer in answers]
