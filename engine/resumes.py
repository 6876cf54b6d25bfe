"""Resume positions as the API gives and takes them: reads the live projection, writes events that change it.

Setting and hiding are events in the account's outbox like any other, so that a replay gives the same; the caller waits
until the projection has them and so reads its own write.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal
from uuid import uuid4

import orjson
from msgspec import Meta, Struct
from redis.asyncio import Redis

from engine.decisions import Decisions
from engine.errors import BadRequest, Unavailable
from engine.keys import Keys
from engine.partitions import partition_of
from engine.projected import Projected
from engine.resume import HIDE, NAME, SET, Entry, decode, field
from engine.wire import Seconds

Item = dict[str, Any]


class ResumeSet(Struct):
    """`PUT /v1/resume/{content}`. Without `completed` the position tells, as it would in a heartbeat."""

    position: Annotated[Seconds, Meta(description="seconds")]
    duration: Seconds | None = None
    completed: bool | None = None
    kind: Literal["vod", "live"] = "vod"
    title: Annotated[str, Meta(max_length=512)] = ""
    start_over: bool = False

    def data(self) -> bytes:
        """What the event carries: the fields that were given."""
        given = {
            "position": self.position, "duration": self.duration, "completed": self.completed, "title": self.title or None,
            "start_over": self.start_over or None,
        }  # fmt: skip
        return orjson.dumps({name: value for name, value in given.items() if value is not None})


class Resumes:
    """One per process. Writes wait for the workers for `wait_s`, at most."""

    def __init__(self, log: Redis | None, keys: Keys, decisions: Decisions, wait_s: float) -> None:
        self._projected = Projected(log, keys, NAME)
        self._decisions = decisions
        self._partitions, self._wait_s = keys.partitions, wait_s

    async def listed(self, account: str, profile: str, limit: int, cursor: str) -> tuple[list[Item], str | None]:
        """Continue watching, newest first, and where the next page begins. Raises BadRequest, Unavailable."""
        before = _position(cursor) if cursor else None
        flat = await self._projected.call("HGETALL", ("of", account))
        start = field(profile, "")
        found = []
        for name, stored in zip(flat[::2], flat[1::2], strict=True):
            text = name.decode()
            if text.startswith(start):
                entry, content = decode(stored), text[len(start) :]
                if entry.in_progress and (before is None or (entry.updated_at, content) < before):
                    found.append((entry.updated_at, content, entry))
        found.sort(key=lambda each: each[:2], reverse=True)
        page = found[:limit]
        more = _cursor(page[-1][0], page[-1][1]) if len(found) > limit else None
        return [item(profile, content, entry) for _, content, entry in page], more

    async def one(self, account: str, profile: str, content: str) -> Item | None:
        """None if there is nothing to tell, or it is hidden. Raises Unavailable."""
        stored = await self._projected.call("HGET", ("of", account), field(profile, content))
        entry = decode(stored) if stored is not None else None
        if entry is None or entry.hidden or (entry.position is None and not entry.completed_at):
            return None
        return item(profile, content, entry)

    async def set(self, account: str, profile: str, content: str, given: ResumeSet) -> bool:
        """Whether the projection has it already. Raises Unavailable, Overloaded."""
        return await self._tell(SET, account, profile, content, given.kind, given.data())

    async def hide(self, account: str, profile: str, content: str) -> bool:
        """Whether the projection has it already. Raises Unavailable, Overloaded."""
        return await self._tell(HIDE, account, profile, content, "", b"{}")

    async def _tell(self, type_: str, account: str, profile: str, content: str, kind: str, data: bytes) -> bool:
        _ = self._projected.client  # nothing is written where nobody could read it
        head = {
            "account": account,
            "profile": profile,
            "device": "",
            "session": "",
            "content": content,
            "kind": kind,
            "v": 1,
        }
        body = orjson.dumps(head)[1:-1] + b',"data":' + data + b"}"
        _, last = await self._decisions.record(account, [(type_, uuid4().hex, body)])
        if not last:
            return True
        try:
            return await self._projected.caught_up(partition_of(account, self._partitions), last, self._wait_s)
        except Unavailable:
            return False  # it is recorded, whether or not anybody can see it yet


def item(profile: str, content: str, entry: Entry) -> Item:
    return {
        "content": content, "profile": profile, "kind": entry.kind or None, "title": entry.title or None,
        "provider": entry.provider or None, "position": entry.position, "duration": entry.duration,
        "in_progress": entry.in_progress, "completed": entry.completed_at > 0, "completed_at": entry.completed_at or None,
        "updated_at": entry.updated_at, "session": entry.session or None, "device": entry.device or None,
    }  # fmt: skip


def _cursor(updated_at: int, content: str) -> str:
    return base64.urlsafe_b64encode(f"{updated_at}\t{content}".encode()).decode().rstrip("=")


def _position(cursor: str) -> tuple[int, str]:
    """What the page before ended with. Raises BadRequest."""
    try:
        updated_at, content = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode().split("\t")
        return int(updated_at), content
    except (ValueError, binascii.Error):
        raise BadRequest("cursor must be the `next` of an earlier answer", field="cursor") from None
