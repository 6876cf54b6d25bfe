"""Asks the child processes in which DuckDB runs (engine/quality/server.py). An API process has one `Asker`.

Children start with the first question and stop when none has come for a while. Each answers one question at a time; a few more wait, others
are refused. A question that takes too long, or whose caller has gone, is interrupted, and a child that does not heed this is killed.
Children see their standard input end with this process, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import orjson

from engine.errors import BadRequest, NotFound, Overloaded, PulsegateError, TooCostly, Unavailable
from engine.quality.ask_frames import HEAD, TAIL, frame
from engine.settings import Settings

log = logging.getLogger(__name__)

GRACE_S = 2.0
"""An interrupted question ends within this, or its process does."""
LIFE_S = 3_600.0
"""A process is replaced when it is so old: what it remembers of files that are gone goes with it."""
_ENV = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "SYSTEMROOT", "TMPDIR")
"""What a child is told of the environment: no settings, no secrets."""


class Child:
    """One process. `begun` is when it was started, by the loop's clock; `asked` counts its questions."""

    def __init__(self, process: asyncio.subprocess.Process, begun: float) -> None:
        self._process, self.begun = process, begun
        self._ids = count(1)
        self._waiting: dict[int, asyncio.Future[tuple[int, bytes]]] = {}
        self.asked = 0
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, module: str, options: dict[str, Any]) -> Child:
        """Raises OSError."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, orjson.dumps(options).decode(),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,
            env={name: os.environ[name] for name in _ENV if name in os.environ},
        )  # fmt: skip
        return cls(process, asyncio.get_running_loop().time())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return not self._reader.done()

    def put(self, question: Mapping[str, Any]) -> tuple[int, asyncio.Future[tuple[int, bytes]]]:
        """The question's id, and (status, JSON) when it is answered; that raises Unavailable if the process ends before."""
        ident = next(self._ids)
        future: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        if not self.alive:
            future.set_exception(_died())
            return ident, future
        self._waiting[ident] = future
        self.asked += 1
        self._write({"id": ident, **question})
        return ident, future

    def cancel(self, ident: int) -> None:
        self._write({"cancel": ident})

    async def close(self, patience_s: float = GRACE_S) -> None:
        """Ends it; kills it if it does not."""
        with contextlib.suppress(OSError, RuntimeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            async with asyncio.timeout(patience_s):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()
        await self._reader

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def _write(self, said: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, RuntimeError):  # it has ended: the reader says so
            self._process.stdin.write(frame(said))

    async def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            while True:
                (length,) = HEAD.unpack(await self._process.stdout.readexactly(HEAD.size))
                frame = await self._process.stdout.readexactly(length)
                ident, status = TAIL.unpack_from(frame)
                future = self._waiting.pop(ident, None)
                if future is not None and not future.done():
                    future.set_result((status, frame[TAIL.size :]))
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(_died())
            self._waiting.clear()


def _died() -> Unavailable:
    return Unavailable("the process that answers has ended; ask again", code="query_process_ended")


class Asker:
    """Takes questions of one API process."""

    def __init__(self, settings: Settings, module: str = "engine.quality.server") -> None:
        self._settings, self._module = settings, module
        self._options = {
            "threads": settings.quality_threads, "memory_bytes": settings.quality_memory_bytes,
            "root": os.path.abspath(settings.lake_dir or "/nonexistent"), "partitions": settings.partitions,
        }  # fmt: skip
        self._free = asyncio.Semaphore(settings.quality_processes)
        self._inside = 0
        self._idle: list[Child] = []
        self._busy: set[Child] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def ask(
        self, do: str, args: Mapping[str, Any], start: int, end: int, reads: Sequence[str] = ("facts",)
    ) -> bytes:
        """The answer, JSON, of relations that hold what the lake's files have of that time (ms).

        Raises Overloaded if too many wait, TooCostly if it takes too long or needs too much, Unavailable if the process ends, and the
        question's own errors. Cancelled, it ends what it began.
        """
        settings = self._settings
        if self._closed or self._inside >= settings.quality_processes + settings.quality_queue:
            raise Overloaded("as many questions as may wait are waiting")
        self._inside += 1
        begun = False
        try:
            async with asyncio.timeout(settings.quality_timeout_s):
                await self._free.acquire()
                begun = True
                return await self._answered({"do": do, "args": args, "reads": reads, "from": start, "to": end})
        except TimeoutError:
            if not begun:
                raise Overloaded("other questions took all the time there was") from None
            raise TooCostly(
                f"no answer within {settings.quality_timeout_s:g} s; ask for less: a shorter time, fewer dimensions",
                code="query_too_slow",
            ) from None
        finally:
            self._inside -= 1

    async def _answered(self, question: Mapping[str, Any]) -> bytes:
        """With a slot acquired, which it gives back when its process is free again."""
        child: Child | None = None
        pending: tuple[int, asyncio.Future[tuple[int, bytes]]] | None = None
        try:
            child = await self._child()
            pending = child.put(question)
            return _judged(*await asyncio.shield(pending[1]))
        finally:
            if child is not None and pending is not None and not pending[1].done():
                self._later(self._reclaim(child, *pending))
            else:
                self._give_back(child)

    async def _child(self) -> Child:
        now = asyncio.get_running_loop().time()
        while self._idle:
            child = self._idle.pop()
            if child.alive and now - child.begun < LIFE_S:
                self._busy.add(child)
                return child
            self._later(child.close())
        starting = asyncio.ensure_future(Child.start(self._module, self._options))
        try:
            child = await asyncio.shield(starting)
        except asyncio.CancelledError:
            self._later(_abandon(starting))
            raise
        except OSError as error:
            raise Unavailable(f"no process to answer with: {error}", code="query_process_ended") from None
        log.info("quality_child", extra={"child": child.pid})
        self._busy.add(child)
        return child

    async def _reclaim(self, child: Child, ident: int, future: asyncio.Future[tuple[int, bytes]]) -> None:
        """Interrupts a question that nobody waits for any more, and takes its process back, or ends it."""
        child.cancel(ident)
        await asyncio.wait((future,), timeout=GRACE_S)
        if not future.done():
            child.kill()
            await asyncio.wait((future,))
        future.exception()  # seen
        self._give_back(child)

    def _give_back(self, child: Child | None) -> None:
        self._free.release()
        if child is None:
            return
        self._busy.discard(child)
        if self._closed or not child.alive:
            self._later(child.close())
            return
        self._idle.append(child)
        loop = asyncio.get_running_loop()
        loop.call_later(self._settings.quality_idle_s, self._retire, child, child.asked)

    def _retire(self, child: Child, asked: int) -> None:
        if child in self._idle and child.asked == asked:
            self._idle.remove(child)
            self._later(child.close())

    def _later(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Ends all processes; questions under way are answered with Unavailable."""
        self._closed = True
        for child in self._busy:
            child.kill()
        for child in [*self._busy, *self._idle]:
            self._later(child.close())
        self._idle.clear()
        while self._tasks:
            await asyncio.wait(set(self._tasks))


async def _abandon(starting: asyncio.Future[Child]) -> None:
    """Whoever wanted the process does not any more."""
    with contextlib.suppress(OSError):
        await (await starting).close()


def _judged(status: int, body: bytes) -> bytes:
    """The answer, or its error raised."""
    if status == 0:
        return body
    said = orjson.loads(body)
    code, message = said["code"], said["message"]
    if code == "query_too_large":
        raise TooCostly(message, code=code)
    kinds = {"BadRequest": BadRequest, "NotFound": NotFound, "Cancelled": Unavailable, "Unavailable": Unavailable}
    kind = kinds.get(said["kind"], PulsegateError)
    raise kind(message, code=code, field=said["field"])
