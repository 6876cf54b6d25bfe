"""Outboxes full of real events: captured from an API process, then repeated for any number of viewers.

A view is captured as the API and its scripts wrote it (`view_start`, heartbeats on the slow and on the fast path,
`view_end`). What is put into the outboxes is the same JSON with other accounts, sessions, devices, titles and times. It
comes as it would from players that beat in turn: one heartbeat of every viewer, then the next of every viewer.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import hiredis
import orjson

from loadtest.bench_load import token
from loadtest.bench_rig import PARTITIONS, BenchError, Place, Valkey, api

BEATS = 10
"""Heartbeats of a view: with its beginning and its end 12 events."""
INTERVAL_MS = 10_000
TITLES = 2_000
_BATCH = 500


@dataclass(frozen=True)
class Captured:
    """The outboxes' keys by partition, and one view's events: what it began with, a heartbeat, its end."""

    outboxes: tuple[bytes, ...]
    start: dict[str, Any]
    beat: dict[str, Any]
    end: dict[str, Any]


def heartbeat(session: str, device: str, content: str, seq: int, position: float) -> dict[str, Any]:
    """What a television's player sends: about 350 bytes."""
    return {
        "session": session, "device": device, "content": content, "kind": "vod", "position": position, "duration": 5400.0,
        "state": "playing", "seq": seq, "profile": "grown-ups", "device_type": "tv", "provider": "studio-one",
        "title": "The Long Way Home", "quality": {"bitrate": 4_200_000, "height": 1080, "dropped_frames": 3},
    }  # fmt: skip


def capture(server: Valkey, place: Place, core: int | None) -> Captured:
    """Watches one title of an account in each partition; leaves the server empty. Raises BenchError."""
    accounts: dict[int, str] = {}
    number = 0
    while len(accounts) < PARTITIONS:
        accounts.setdefault(partition_of(account_of(number)), account_of(number))
        number += 1
    with api(place, core, server.url) as served:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
        for partition, account in accounts.items():
            for seq in range(3 if partition == 0 else 1):
                session, device = str(uuid.uuid5(uuid.NAMESPACE_OID, account)), account[-7:].rjust(16, "0")
                _post(
                    connection, account, "/v1/heartbeats", heartbeat(session, device, "title-00001", seq, 1000.5 + seq)
                )
        session = str(uuid.uuid5(uuid.NAMESPACE_OID, accounts[0]))
        _post(connection, accounts[0], f"/v1/sessions/{session}/stop", {})
        connection.close()
    outboxes: dict[int, bytes] = {}
    view: list[dict[str, Any]] = []
    for key in server.client.scan_iter(match="*:outbox", count=10_000):
        found = [json.loads(fields[b"e"]) for _, fields in server.client.xrange(key)]
        partition = partition_of(found[0]["account"])
        outboxes[partition] = key
        if partition == 0:
            view = [event for event in found if event["type"] != "client"]
    server.client.flushall()
    if sorted(outboxes) != list(range(PARTITIONS)):
        raise BenchError(f"events in {len(outboxes)} outboxes, not {PARTITIONS}")
    if [event["type"] for event in view] != ["view_start", *["heartbeat"] * 3, "view_end"]:
        raise BenchError(f"a view's events were {[event['type'] for event in view]}")
    return Captured(tuple(outboxes[p] for p in range(PARTITIONS)), view[0], view[-2], view[-1])


def _post(connection: http.client.HTTPConnection, account: str, path: str, body: dict[str, Any]) -> None:
    headers = {"Authorization": f"Bearer {token(account)}", "Content-Type": "application/json"}
    connection.request("POST", path, json.dumps(body, separators=(",", ":")), headers)
    answer = connection.getresponse()
    text = answer.read()
    if answer.status >= 300 or (text and json.loads(text).get("decision") != "allow"):
        raise BenchError(f"{path} was answered {answer.status}: {text.decode()[:500]}")


def account_of(number: int) -> str:
    return f"acct-{number:07d}"


def partition_of(account: str) -> int:
    return crc32(account.encode()) % PARTITIONS


class Viewers:
    """Viewers 0…n-1, one an account, who watch one title after the other, not all at the same point of theirs."""

    def __init__(self, captured: Captured, count: int, seed: int = 1) -> None:
        self._captured, self._count = captured, count
        self._random = random.Random(seed)
        # Their times lie behind us, however many rounds there will be.
        self._began_ms = int(time.time() * 1000) - 3_600_000
        self._titles: list[str] = [""] * count
        self._sessions = [str(uuid.UUID(int=self._random.getrandbits(128), version=4)) for _ in range(count)]

    def events(self, at_least: int) -> Iterator[tuple[bytes, bytes]]:
        """(outbox, JSON) of whole rounds, until there are so many. The first viewers began some rounds ago."""
        count = turn = 0
        while count < at_least:
            for viewer in range(self._count):
                for found in self._beat(viewer, turn, self._began_ms + turn * INTERVAL_MS):
                    count += 1
                    yield found
            turn += 1

    def _beat(self, viewer: int, turn: int, now: int) -> Iterator[tuple[bytes, bytes]]:
        # Who comes later than the first round still begins with a beginning: nobody is met in the middle of a view.
        watched = turn - viewer % BEATS
        if watched < 0:
            return
        ordinal, nth = divmod(watched, BEATS)
        if nth == 0:
            self._titles[viewer] = f"title-{self._random.randrange(TITLES):05d}"
        account = account_of(viewer)
        outbox = self._captured.outboxes[partition_of(account)]
        at, started = now + viewer % INTERVAL_MS, now + viewer % INTERVAL_MS - nth * INTERVAL_MS
        device = f"{viewer:016x}"
        position = 600.5 + viewer % 1000 + nth * 10
        common = {
            "view": ordinal + 1, "started_at": started, "account": account, "device": device,
            "session": self._sessions[viewer], "content": self._titles[viewer],
        }  # fmt: skip
        if nth == 0:
            yield outbox, _json(self._captured.start | common | {"at": at})
        body = heartbeat(self._sessions[viewer], device, self._titles[viewer], watched, position)
        beat = {"at": at, "seq": watched, "watched_ms": nth * INTERVAL_MS, "data": body}
        yield outbox, _json(self._captured.beat | common | beat)
        if nth == BEATS - 1:
            said = {
                "started_at": started,
                "last_seen_at": at,
                "watched_ms": nth * INTERVAL_MS,
                "max_position": position,
            }
            end = {"at": at + 1, "data": self._captured.end["data"] | said}
            yield outbox, _json(self._captured.end | common | end)


def _json(event: dict[str, Any]) -> bytes:
    return orjson.dumps(event)


@dataclass(frozen=True)
class Load:
    """Events as commands, made once and sent as often as wanted."""

    batches: Sequence[bytes]
    events: int
    bytes: int
    """Of an event's JSON, on average."""

    def send(self, server: Valkey) -> None:
        """Appends them to the outboxes, under ids of the server's. Raises BenchError."""
        left = self.events
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            reader = hiredis.Reader()
            for batch in self.batches:
                connection.sendall(batch)
                left -= _replies(connection, reader, min(_BATCH, left))


def load(viewers: Viewers, at_least: int) -> Load:
    count = size = 0
    batches: list[bytes] = []
    batch: list[bytes] = []
    for outbox, event in viewers.events(at_least):
        count, size = count + 1, size + len(event)
        batch.append(hiredis.pack_command(("XADD", outbox, "*", "e", event)))  # type: ignore[arg-type]
        if len(batch) == _BATCH:
            batches.append(b"".join(batch))
            batch = []
    return Load([*batches, b"".join(batch)], count, size // count)


def _replies(connection: socket.socket, reader: hiredis.Reader, count: int) -> int:
    left = count
    while left:
        reader.feed(connection.recv(262_144))
        while (reply := reader.gets()) is not False:
            left -= 1
            if isinstance(reply, Exception):
                raise BenchError(f"an event was not appended: {reply}")
    return count
