"""Work that a request wants done and the API must not do itself, because it would make heartbeats wait: an RQ job.

The API queues it, waits for its answer for a while, and otherwise gives the caller its id to come back with.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.job import Job, JobStatus

from engine.errors import Conflict, NotFound, Unavailable
from engine.keys import Keys

KEPT_S = 3_600
"""An answer can be fetched for an hour; so long RQ keeps what was asked, an erased account's name too."""
REFUSED = "refused"
"""What a job that cannot be done now answers instead: {refused: {code, message}}, so that it does not count as failed."""
_POLL_S = 0.05


class Asks:
    """`url` is the log Redis, where RQ's queues are; '' if there is none."""

    def __init__(self, url: str, keys: Keys) -> None:
        self._url, self._queue = url, keys.queue("asks")

    async def ask(self, function: str, *args: Any, wait_s: float, timeout_s: int) -> tuple[str, Any]:
        """Runs `function` in a worker; the job's id and its answer, None if that takes longer than `wait_s`.

        Raises Conflict if it cannot be done now, Unavailable also if the job failed.
        """
        until = time.monotonic() + wait_s
        job = await asyncio.to_thread(self._enqueue, function, args, timeout_s)
        while (found := await self.answer(job)) is None and time.monotonic() < until:
            await asyncio.sleep(_POLL_S)
        return job, found

    async def answer(self, job_id: str) -> Any:
        """The answer of an earlier job; None while it is not done. Raises NotFound, Conflict, Unavailable."""
        return await asyncio.to_thread(self._answer, job_id)

    def _enqueue(self, function: str, args: tuple[Any, ...], timeout_s: int) -> str:
        try:
            with self._client() as client:
                queue = Queue(self._queue, connection=client)
                job = queue.enqueue(function, args=args, job_timeout=timeout_s, result_ttl=KEPT_S, failure_ttl=KEPT_S)
                return str(job.id)
        except (RedisError, OSError) as error:
            raise Unavailable(f"log Redis: {error}") from None

    def _answer(self, job_id: str) -> Any:
        try:
            with self._client() as client:
                return _result(Job.fetch(job_id, connection=client))
        except NoSuchJobError:
            raise NotFound("no such job, or its answer is gone by now", code="unknown_job") from None
        except (RedisError, OSError) as error:
            raise Unavailable(f"log Redis: {error}") from None

    def _client(self) -> Redis:
        if not self._url:
            raise Unavailable("the session Redis is a cluster: PULSEGATE_LOG_REDIS_URL must name the log Redis")
        return Redis.from_url(self._url, socket_timeout=2, socket_connect_timeout=2)


def _result(job: Job) -> Any:
    status = job.get_status(refresh=True)
    if status == JobStatus.FAILED:
        raise Unavailable("the job failed; RQ's failure registry has the traceback", code="job_failed")
    if status != JobStatus.FINISHED:
        return None
    found: Any = job.return_value(refresh=True)
    if refused := found.pop(REFUSED, None):
        raise Conflict(refused["message"], code=refused["code"])
    return found
