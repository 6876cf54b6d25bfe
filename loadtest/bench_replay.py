"""Real heartbeat calls, captured from an API process with MONITOR, then replayed for any number of sessions.

What is replayed is byte for byte what the API sends; only account, session, device, `seq` and position vary, each in
its captured length. So a million sessions are made by the real script at the speed of Redis, not of HTTP.
"""

from __future__ import annotations

import ast
import random
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import hiredis

from loadtest.bench_load import Player, heartbeat_json, token
from loadtest.bench_rig import PARTITIONS, BenchError, Place, Valkey, api

ACCOUNT, SESSION, DEVICE = "acct-%07d", "5e551000-0000-4000-8000-%012x", "%016x"
LONG_DEVICE = "de71ce00-0000-4000-8000-%012x"
CONTENT = "title-%05d"
SAMPLE = 8_765_432
SEQ, POSITION_S = 4711, 1386.5
WATCHED_BEATS = 140
LIFETIME_MS = "900000"
"""Leases outlive the making of a million sessions; one digit more than the default in each record."""
_TOKENS = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_BATCH = 250


@dataclass(frozen=True)
class Captured:
    """One heartbeat's `EVALSHA` as the API sent it, and the partitions' hash tags in their order."""

    argv: tuple[bytes, ...]
    tags: tuple[bytes, ...]
    source: bytes
    """The script's text, so that another server can be taught it."""
    answer: bytes
    """The HTTP answer to the heartbeat before it."""

    @property
    def sha(self) -> bytes:
        return self.argv[1]

    def outboxes(self) -> list[bytes]:
        return [b"pg:{%b}:outbox" % tag for tag in self.tags]


def capture(server: Valkey, place: Place, core: int | None, device: str = DEVICE) -> Captured:
    """Sends heartbeats through an API process while watching the server, which is left empty but for its scripts."""
    with (
        api(place, core, server.url, PULSEGATE_LIFETIME_MS=LIFETIME_MS) as served,
        Monitor(server.port) as monitor,
    ):
        player = Player(served.port)
        tags: dict[int, bytes] = {}
        number = 0
        while len(tags) < PARTITIONS:
            account = ACCOUNT % number
            partition = crc32(account.encode()) % PARTITIONS
            if partition not in tags:
                player.beat(token(account), heartbeat_json(SESSION % number, device % number, SEQ, POSITION_S))
                tags[partition] = _tag(monitor.call(account.encode()))
            number += 1
        account = ACCOUNT % SAMPLE
        player.beat(token(account), heartbeat_json(SESSION % SAMPLE, device % SAMPLE, SEQ, POSITION_S))
        monitor.call(account.encode())
        answer = player.beat(token(account), heartbeat_json(SESSION % SAMPLE, device % SAMPLE, SEQ + 1, POSITION_S))
        argv = monitor.call(account.encode())
        player.close()
    source = server.client.execute_command("SCRIPT", "SHOW", argv[1].decode())
    server.client.flushall()
    return Captured(tuple(argv), tuple(tags[n] for n in range(PARTITIONS)), source, answer)


def _tag(argv: Sequence[bytes]) -> bytes:
    key = argv[3]
    return key[key.index(b"{") + 1 : key.index(b"}")]


class Monitor:
    """The server's MONITOR stream."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> Monitor:
        self._socket.sendall(b"MONITOR\r\n")
        self._lines.readline()
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def call(self, *words: bytes) -> list[bytes]:
        """The next script call by a client that names a partition's deadlines and these words (a decision: the account)."""
        while line := self._lines.readline():
            if b'"EVALSHA"' in line and all(word in line for word in (*words, b":deadlines")) and b" lua]" not in line:
                return [ast.literal_eval('b"' + part.decode("ascii") + '"') for part in _TOKENS.findall(line)]
        raise BenchError("the server closed the MONITOR stream")


class Replay:
    """Sends captured heartbeats for sessions 0…n-1, one session an account, each in its account's partition, over one
    connection of its own. So an API process finds them, and goes on with them."""

    def __init__(
        self, server: Valkey, captured: Captured, device: str = DEVICE, content: Callable[[int], int] = lambda _: 1
    ) -> None:
        """`content` says what a session watches, a number below 100,000."""
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=120)
        self._reader = hiredis.Reader()
        self._templates = [_template(captured, tag, device) for tag in captured.tags]
        self._device, self._content = device, content
        self._seq = -1

    def close(self) -> None:
        self._socket.close()

    def beat(self, sessions: Iterable[int]) -> int:
        """One heartbeat for each; returns their number. Raises BenchError unless every answer is a fresh allow."""
        # A session begins at seq 0; what is measured are players that have been watching for a while.
        self._seq = 0 if self._seq < 0 else max(self._seq + 1, WATCHED_BEATS)
        position = POSITION_S + self._seq
        return self.send(self._packed(n, position) for n in sessions)

    def _packed(self, n: int, position: float) -> bytes:
        values = self._values(n, position)
        return self._templates[crc32(values[b"account"]) % len(self._templates)] % values

    def _values(self, n: int, position: float) -> dict[bytes, bytes]:
        account, session, device = (ACCOUNT % n).encode(), SESSION % n, self._device % n
        return {
            b"account": account, b"session": session.encode(), b"device": device.encode(), b"seq": b"%04d" % self._seq,
            b"ms": b"%d" % (position * 1000), b"s": b"%.1f" % position, b"content": (CONTENT % self._content(n)).encode(),
        }  # fmt: skip

    def send(self, commands: Iterator[bytes]) -> int:
        """Sends packed commands in batches and checks each reply."""
        total, batch = 0, []
        for command in commands:
            batch.append(command)
            if len(batch) == _BATCH:
                total += self._flush(batch)
                batch = []
        return total + (self._flush(batch) if batch else 0)

    def _flush(self, batch: list[bytes]) -> int:
        self._socket.sendall(b"".join(batch))
        left = len(batch)
        while left:
            self._reader.feed(self._socket.recv(262_144))
            while (reply := self._reader.gets()) is not False:
                left -= 1
                if isinstance(reply, list) and (reply[0] != 0 or reply[3] != 0):
                    raise BenchError(f"a replayed heartbeat was answered {reply!r}")
                if isinstance(reply, Exception):
                    raise BenchError(f"a replayed call failed: {reply}")
        return len(batch)


def _template(captured: Captured, tag: bytes, device: str) -> bytes:
    """The call packed for one partition, with named places for what varies."""
    keys = range(3, 3 + int(captured.argv[2]))
    argv = [part.replace(_tag(captured.argv), tag) if i in keys else part for i, part in enumerate(captured.argv)]
    call: Any = tuple(argv)
    packed: bytes = hiredis.pack_command(call).replace(b"%", b"%%")
    for text, name in (
        (ACCOUNT % SAMPLE, b"account"), (SESSION % SAMPLE, b"session"), (device % SAMPLE, b"device"), (str(SEQ + 1), b"seq"),
        (f"{POSITION_S * 1000:.0f}", b"ms"), (f"{POSITION_S:.1f}", b"s"), (CONTENT % 1, b"content"),
    ):  # fmt: skip
        if text.encode() not in packed:
            raise BenchError(f"the captured call lacks {name.decode()} {text}")
        packed = packed.replace(text.encode(), b"%%(%b)b" % name)
    return packed


def shuffled(count: int, out_of: int, seed: int) -> list[int]:
    """`count` different session numbers below `out_of`, in random order, the same for the same seed."""
    return random.Random(seed).sample(range(out_of), count)
