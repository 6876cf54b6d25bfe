"""Work that a request wants done and the API must not do itself, because it would make heartbeats wait: an RQ job.

The API queues it, waits for its answer for a while, and otherwise gives the caller its id to come back with. It is worked by
processes that do nothing else (`PULSEGATE_ASK_PROCESSES`), and few may wait, in all and of one token: whoever asks sixty times gets
answers to a few, and keeps nobody's events waiting.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from hashlib import blake2b
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.job import Job, JobStatus

from engine.errors import Conflict, NotFound, Overloaded, Unavailable
from engine.keys import Keys
from engine.settings import Settings

KEPT_S = 3_600
"""An answer can be fetched for an hour; so long RQ keeps what was asked, an erased account's name too."""
REFUSED = "refused"
"""What a job that cannot be done now answers instead: {refused: {code, message}}, so that it does not count as failed."""
FULL_RETRY_S = 5
_POLL_S, _POLL_MAX_S = 0.05, 0.5
_REST_MAX_S = 0.1


class Asks:
    """`url` is the log Redis, where RQ's queues are; '' if there is none."""

    def __init__(self, url: str, keys: Keys, settings: Settings) -> None:
        self._url, self._queue = url, keys.queue("asks")
        self._most, self._most_of_one = settings.ask_queue, settings.ask_token_max
        # One, which rests as long as it worked: what RQ computes keeps the interpreter from the event loop.
        self._thread = ThreadPoolExecutor(1, "asks")

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        if "_client" in vars(self):
            self._client.close()

    async def ask(self, who: str, function: str, *args: Any, wait_s: float, timeout_s: int) -> tuple[str, Any]:
        """Runs `function` in a worker; the job's id and its answer, None if that takes longer than `wait_s`. `who` asks: a token.

        Raises Overloaded if too many wait, Conflict if it cannot be done now, Unavailable also if the job failed.
        """
        until, pause = time.monotonic() + wait_s, _POLL_S
        job: str = await self._do(self._enqueue, who, function, args, timeout_s)
        while (found := await self.answer(job)) is None and time.monotonic() < until:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _POLL_MAX_S)
        return job, found

    async def answer(self, job_id: str) -> Any:
        """The answer of an earlier job; None while it is not done. Raises NotFound, Conflict, Unavailable."""
        return await self._do(self._answer, job_id)

    async def _do(self, function: Callable[..., Any], *args: Any) -> Any:
        def work() -> Any:
            began = time.monotonic()
            try:
                return function(*args)
            finally:
                time.sleep(min(time.monotonic() - began, _REST_MAX_S))

        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _enqueue(self, who: str, function: str, args: tuple[Any, ...], timeout_s: int) -> str:
        # The id tells whose it is, so that all API processes count alike.
        mine = blake2b(who.encode(), digest_size=4).hexdigest()
        options: Any = {"job_timeout": timeout_s, "result_ttl": KEPT_S, "failure_ttl": KEPT_S}
        try:
            queue = Queue(self._queue, connection=self._client)
            self._check(mine, queue.get_job_ids(0, self._most))
            job = queue.enqueue(function, args=args, job_id=mine + str(uuid.uuid4())[8:], **options)
            return str(job.id)
        except (RedisError, OSError) as error:
            raise Unavailable(f"log Redis: {error}") from None

    def _check(self, mine: str, waiting: list[str]) -> None:
        """Raises Overloaded."""
        if sum(job.startswith(mine) for job in waiting) >= self._most_of_one:
            raise Overloaded(
                f"{self._most_of_one} requests of this token wait for a worker (PULSEGATE_ASK_TOKEN_MAX)",
                retry_after_s=FULL_RETRY_S,
            )
        if len(waiting) >= self._most:
            raise Overloaded(
                f"{self._most} requests wait for a worker (PULSEGATE_ASK_QUEUE)", retry_after_s=FULL_RETRY_S
            )

    def _answer(self, job_id: str) -> Any:
        try:
            return _result(Job.fetch(job_id, connection=self._client))
        except NoSuchJobError:
            raise NotFound("no such job, or its answer is gone by now", code="unknown_job") from None
        except (RedisError, OSError) as error:
            raise Unavailable(f"log Redis: {error}") from None

    @cached_property
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
