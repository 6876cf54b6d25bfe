"""What is known of contents: kind, title, runtime, provider, and whether lists may show it. Backends say it by
`POST /v1/contents`; it lives in one hash of the log Redis, content → JSON, and each change counts up a version.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import orjson
from msgspec import UNSET, Meta, Struct, UnsetType
from redis.asyncio import Redis

from engine import scripts
from engine.errors import BadRequest, Unavailable
from engine.keys import Keys
from engine.projected import answered
from engine.wire import Id, Kind, check_printable

# decode is also what `engine.wire` calls its own.
from engine.wire import decode as _decode

CONTENTS_MAX = 1_000
FIELDS = ("kind", "title", "runtime", "provider", "hidden")


class Content(Struct):
    """One of `POST /v1/contents`. A field left out stays as it is known, null forgets it."""

    content: Id
    kind: Kind | UnsetType | None = UNSET
    title: Annotated[str, Meta(max_length=512)] | UnsetType | None = UNSET
    runtime: Annotated[float, Meta(gt=0, le=1e8, description="seconds")] | UnsetType | None = UNSET
    provider: Id | UnsetType | None = UNSET
    hidden: Annotated[bool, Meta(description="lists do not show it")] | UnsetType | None = UNSET
    remove: Annotated[bool, Meta(description="forget the content; its other fields are ignored")] = False

    def said(self) -> bytes:
        """What `lua/describe.lua` wants to know of it."""
        if self.remove:
            return b""
        given = {name: value for name in FIELDS if (value := getattr(self, name)) is not UNSET}
        return orjson.dumps(given)


class Entry(Struct, frozen=True):
    """What is known of a content; a field nobody has said is ''."""

    kind: str = ""
    title: str = ""
    runtime: float = 0.0
    """Seconds; 0: unknown."""
    provider: str = ""
    hidden: bool = False


UNKNOWN = Entry()
_one = msgspec.json.Decoder(Content)
_many = msgspec.json.Decoder(list[msgspec.Raw])
_entry = msgspec.json.Decoder(Entry)


def decode(stored: bytes | None) -> Entry:
    """An entry as the hash holds it; None: nothing is known. Nor is it of one that cannot be read: it must not stop the others."""
    try:
        return UNKNOWN if stored is None else _entry.decode(stored)
    except msgspec.DecodeError:
        return UNKNOWN


def read(body: bytes) -> list[Content]:
    """The body of `POST /v1/contents`, one object or a list. Raises BadRequest that names field and index."""
    many = body.lstrip()[:1] == b"["
    raw = [bytes(item) for item in _decode(_many, body)] if many else [body]
    if len(raw) > CONTENTS_MAX:
        raise BadRequest(f"at most {CONTENTS_MAX} contents at once", field="body")
    found = []
    for index, item in enumerate(raw):
        content = _decode(_one, item, f"[{index}]" if many else "")
        where = f"[{index}]." if many else ""
        # A title may hold what titles hold: joiners, marks of direction.
        check_printable(Content(content=content.content, provider=content.provider), where)
        found.append(content)
    return found


class Catalogue:
    """Reads and writes it for the API. `log` is None where a cluster holds the sessions and no log Redis is named."""

    def __init__(self, log: Redis | None, keys: Keys) -> None:
        self._log, self._keys = log, keys
        self._describe = scripts.load("describe")

    @property
    def _client(self) -> Redis:
        if self._log is None:
            raise Unavailable("the session Redis is a cluster: PULSEGATE_LOG_REDIS_URL must name the log Redis")
        return self._log

    async def say(self, contents: Sequence[Content]) -> int:
        """Merges them into what is known, all or none; how many have changed. Raises Unavailable."""
        args: list[str | bytes] = []
        for content in contents:
            args += [content.content, content.said()]
        keys = [self._keys.contents, self._keys.contents_version, self._keys.published]
        self._describe.check(len(keys), len(args))
        run: Any = self._client.register_script(self._describe.source)
        return int(await answered(run(keys=keys, args=args)))

    async def get(self, content: str) -> Entry | None:
        """None if nobody has said anything. Raises Unavailable."""
        asked: Any = self._client.hget(self._keys.contents, content)
        stored = await answered(asked)
        return None if stored is None else decode(stored)
