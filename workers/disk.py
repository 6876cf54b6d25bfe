"""How much of the event log is on its server's disk: up to there the mirror may trim the outboxes."""

from __future__ import annotations

import logging
import threading
import time
from functools import lru_cache
from typing import Any

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from engine.events import is_id
from workers.runtime import Runtime

log = logging.getLogger(__name__)

_NO_WAITAOF_S = 3.0


@lru_cache(maxsize=64)
def disk_of(run: Runtime, group: int) -> Disk:
    """One per process: what it waits for may take longer than a tenure's turn."""
    return Disk(run.log, run.keys.mirrored)


class Disk(threading.Thread):
    """Learns how much of the log is on its server's disk, without making the mirror wait for it.

    `WAITAOF` answers once everything this connection wrote is on disk, and with it all that was written before. Without an
    append-only file nothing can be waited for, and what is in memory has to do.
    """

    def __init__(self, client: Redis, mirrored: str) -> None:
        super().__init__(name="disk", daemon=True)
        self._client, self._mirrored = client, mirrored
        self._wanted: dict[int, bytes] = {}
        self.durable: dict[int, bytes] = {}
        """Partition → the id up to which its events are on disk."""
        self._news = threading.Event()
        self._closed = False
        self.start()

    def reached(self, positions: dict[int, bytes]) -> None:
        """The log has everything up to these ids in memory."""
        if positions != self._wanted:
            self._wanted = dict(positions)
            self._news.set()

    def close(self) -> None:
        self._closed = True
        self._news.set()

    def run(self) -> None:
        while self._news.wait() and not self._closed:
            self._news.clear()
            try:
                if (found := self._on_disk()) is not None:
                    self.durable = found
                else:
                    self._news.set()
            except (RedisError, OSError) as error:
                log.warning("disk", extra={"why": str(error)})
                self._news.set()
                time.sleep(0.5)

    def _on_disk(self) -> dict[int, bytes] | None:
        """How far the server says that it has mirrored, once that is on its disk: a server that has restarted since may
        have forgotten what the mirror remembers. None if it takes longer."""
        # One connection for all: WAITAOF is about what its own connection wrote.
        with self._client.client() as connection:
            found: Any = connection.hgetall(self._mirrored)
            connection.set(f"{self._mirrored}:disk", b"", px=60_000)
            try:
                local, _ = connection.execute_command("WAITAOF", 1, 0, 3_000)
            except ResponseError as error:
                if "unknown command" in str(error):
                    # Redis before 7.2: everything is on disk after the second that fsync has, and some.
                    time.sleep(_NO_WAITAOF_S)
                elif "appendonly" not in str(error):
                    raise
                local = 1
        return {int(p): id_ for p, id_ in found.items() if p.isdigit() and is_id(id_)} if local else None
