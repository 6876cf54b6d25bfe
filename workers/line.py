"""One connection on which a write need not wait for the last one's answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError


class Line:
    """One connection to the log, on which a write need not wait for the last one's answers."""

    def __init__(self, client: Redis) -> None:
        self._pool = client.connection_pool
        self._connection: Any = None
        self._owed = 0

    def send(self, commands: Sequence[tuple[Any, ...]]) -> None:
        if self._connection is None:
            self._connection = self._pool.get_connection()
        self._owed += len(commands)
        self._connection.send_packed_command(self._connection.pack_commands(commands))

    def answers(self, count: int) -> list[Any]:
        """The next answers; errors of the server as values."""
        found: list[Any] = []
        for _ in range(count):
            try:
                found.append(self._connection.read_response())
            except ResponseError as error:
                found.append(error)
            self._owed -= 1
        return found

    def close(self) -> None:
        """Gives the connection back to the pool, which looks whether it still lives before it is used again."""
        if self._connection is not None:
            if self._owed:
                self._connection.disconnect()
            self._pool.release(self._connection)
            self._connection, self._owed = None, 0
