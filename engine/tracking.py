"""Tracking events: what a player or a backend tells of, any JSON, each judged by itself.

An event passes byte for byte (it becomes `data` of the envelope, see `engine/events.py`) unless its own fields are wrong:
`type`, `at`, `seq`, `id`, and for a known type the fields that `FIELDS` lists, beside `type` or in `data`. Everything else goes
through unread. None of the fields is required, because players differ in what they can tell.

A duplicate is recognised by the client's `id` within the account, else by (session, type, `seq`). An event with neither
is never taken for another's duplicate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import orjson
from msgspec import Meta, Raw, Struct

from engine.errors import BadRequest, Overloaded, OverQuota
from engine.keys import AccountKeys
from engine.scripts import Arg
from engine.wire import OWN_TYPES, Id, Kind, Millis, NewDevice, NewSession, PlayerEvent, Seconds, Seq, check_ms, decode

Name = Annotated[str, Meta(max_length=256)]
Text = Annotated[str, Meta(max_length=4096)]
Bitrate = Annotated[float, Meta(ge=0, le=1e12, description="bits per second")]
Duration = Annotated[float, Meta(ge=0, le=1e11, description="ms")]
Count = Annotated[int, Meta(ge=0, le=1_000_000)]

LARGEST = 64 * 1024
"""Bytes of one event, as many as a heartbeat with its events may have: a larger one would have to be read by many, one after another."""
STATED = ("profile", "device", "content", "kind")
"""Envelope fields that a batch may state; else they are those of the session's record."""


class EventBatch(Struct):
    """`POST /v1/events`."""

    session: NewSession
    events: list[Raw]
    account: Id = ""
    device: NewDevice = ""
    content: Id = ""
    kind: Kind | Literal[""] = ""
    profile: Id = ""
    token: str = ""


class Sent(Struct, kw_only=True):
    """What every event may say of itself."""

    type: Annotated[str, Meta(min_length=1, max_length=128)]
    at: Millis | None = None
    seq: Seq | None = None
    id: Annotated[str, Meta(min_length=1, max_length=128)] | None = None


class Seek(Struct):
    """The viewer moves the playhead; positions in seconds."""

    from_: Seconds | None = msgspec.field(name="from", default=None)
    to: Seconds | None = None


class AdBreakStart(Struct):
    """A break begins; `position` is where in the content (s), `ads` how many are planned."""

    break_: Name | None = msgspec.field(name="break", default=None)
    position: Seconds | None = None
    ads: Count | None = None


class AdStart(Struct):
    """One ad's first frame; `index` counts from 0 within its break, `duration` is its length (s)."""

    ad: Name | None = None
    ad_type: Name | None = None
    break_: Name | None = msgspec.field(name="break", default=None)
    index: Count | None = None
    position: Seconds | None = None
    duration: Seconds | None = None


class AdEnd(Struct):
    """One ad is over; `skipped` by the viewer, `watched_ms` of it."""

    ad: Name | None = None
    break_: Name | None = msgspec.field(name="break", default=None)
    index: Count | None = None
    position: Seconds | None = None
    skipped: bool | None = None
    watched_ms: Duration | None = None


class AdBreakEnd(Struct):
    """A break is over."""

    break_: Name | None = msgspec.field(name="break", default=None)
    position: Seconds | None = None


class BitrateChange(Struct):
    """Another rendition plays."""

    from_: Bitrate | None = msgspec.field(name="from", default=None)
    to: Bitrate | None = None
    width: Count | None = None
    height: Count | None = None


class BufferStart(Struct):
    """Playback stalls for want of data."""

    position: Seconds | None = None


class BufferEnd(Struct):
    """Playback goes on; `duration_ms` is how long it stood still."""

    position: Seconds | None = None
    duration_ms: Duration | None = None


class Error(Struct):
    """Something failed; `fatal` says that playback ended by it."""

    code: Name | Annotated[int, Meta(ge=-(2**53), le=2**53)] | None = None
    message: Text | None = None
    fatal: bool | None = None
    position: Seconds | None = None


class Custom(Struct):
    """Whatever an application wants to tell; `name` says what."""

    name: Name | None = None


FIELDS: dict[str, type[Struct]] = {
    "seek": Seek, "ad_break_start": AdBreakStart, "ad_start": AdStart, "ad_end": AdEnd, "ad_break_end": AdBreakEnd,
    "bitrate_change": BitrateChange, "buffer_start": BufferStart, "buffer_end": BufferEnd, "error": Error, "custom": Custom,
}  # fmt: skip
"""The known types with their fields. A new one is one class and one line here (and one in `docs/events.md`)."""


def _whole(kind: str, fields: type[Struct]) -> type[Struct]:
    """An event of this type: its fields beside `type`, in `data`, or both. The data of `custom` is anybody's."""
    inner: Any = Any if kind == "custom" else fields | None
    beside: list[tuple[str, Any, Any]] = [
        (field.name, field.type, msgspec.field(name=field.encode_name, default=None))
        for field in msgspec.structs.fields(fields)
    ]
    return msgspec.defstruct(f"{fields.__name__}Event", [*beside, ("data", inner, None)], bases=(Sent,), kw_only=True)


_sent = msgspec.json.Decoder(Sent)
_at = msgspec.json.Decoder(PlayerEvent)
_known = {kind: msgspec.json.Decoder(_whole(kind, fields)) for kind, fields in FIELDS.items()}


class Good(NamedTuple):
    """An event that passes. `event_id` is the same on every retry; '' if its sender gave nothing to know it by."""

    type: str
    event_id: str
    raw: bytes
    mark: bytes = b""
    """What a duplicate is recognised by, if not its `event_id`: see `numbered`."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """One that does not; `field` begins with `event`, which stands for the event itself."""

    index: int
    code: str
    message: str
    field: str
    raw: bytes


def judge(account: str, session: str, raw: bytes) -> Good:
    """One event. Raises BadRequest whose field begins with `event`."""
    if len(raw) > LARGEST:
        raise BadRequest(f"event: more than {LARGEST} bytes", code="too_large", field="event")
    try:
        # What goes through unread must be JSON for every reader of the event log too: 1e999 is not.
        orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"event: not valid JSON: {error.msg}", code="invalid_json", field="event") from None
    sent = decode(_sent, raw, "event")
    if sent.type in OWN_TYPES:
        message = f"event.type: {sent.type} is written by Pulsegate itself"
        raise BadRequest(message, code="reserved", field="event.type")
    for name in ("type", "id"):
        if not (getattr(sent, name) or "").isprintable():
            raise BadRequest(f"event.{name} must be printable characters", field=f"event.{name}")
    check_ms(sent.at, "event.at")
    if sent.type in _known:
        decode(_known[sent.type], raw, "event")
    return Good(sent.type, event_id(account, session, sent.type, sent.id, sent.seq), raw)


def sort(account: str, session: str, events: Iterable[Raw], first: int = 0) -> tuple[list[Good], list[Rejected]]:
    """A batch's events apart, in their order; `first` is the place of the first of them."""
    good, bad = [], []
    for index, item in enumerate(events, first):
        raw = bytes(item)
        try:
            good.append(judge(account, session, raw))
        except BadRequest as error:
            bad.append(Rejected(index, error.code, error.message, error.field or "event", raw))
    return good, bad


def sift(events: list[tuple[str, bytes]]) -> tuple[list[tuple[str, bytes]], list[Rejected]]:
    """A heartbeat's own events, whose types are names already: their times must be ms, and known types must have good fields."""
    good, bad = [], []
    for index, (kind, raw) in enumerate(events):
        try:
            check_ms(decode(_at, raw, "event").at, "event.at")
            if kind in _known:
                decode(_known[kind], raw, "event")
            good.append((kind, raw))
        except BadRequest as error:
            bad.append(Rejected(index, error.code, error.message, error.field or "event", raw))
    return good, bad


def event_id(account: str, session: str, kind: str, id_: str | None, seq: int | None) -> str:
    """32 hexadecimal digits; '' without `id` and `seq`."""
    if id_:
        return _hash(16, account, "id", id_).hex()
    return "" if seq is None else _hash(16, account, "seq", session, kind, str(seq)).hex()


def _hash(size: int, *parts: str) -> bytes:
    # Printable parts have no NUL in them.
    return blake2b("\0".join(parts).encode(), digest_size=size).digest()


# lua/track.lua

Body = tuple[str, str, bytes, bytes]
"""Type, event_id or '', JSON from "account" on, mark or b''."""
NUMBERS_MAX = 2**26
DAY_RETRY_S = 600


@dataclass(frozen=True, slots=True)
class Told:
    """Events for `lua/track.lua`. `at`, `view` and `started_at` are '' for now and the session's running view."""

    session: str = ""
    fill: tuple[str, ...] = ()
    at: Arg = ""
    view: Arg = ""
    started_at: Arg = ""
    triples: tuple[Arg, ...] = ()

    def call(self, k: AccountKeys, common: tuple[Arg, ...], high: int) -> tuple[tuple[str, ...], tuple[Arg, ...]]:
        """(keys, arguments) of the script call."""
        args = (*common, self.session, " ".join(self.fill), high, self.at, self.view, self.started_at, *self.triples)
        return (k.leases, k.outbox, k.seen), args


class Fate(NamedTuple):
    """What became of them: 1 appended, 0 duplicate; and what is known of their session ('' and 0 if nothing is)."""

    flags: list[int]
    last: str
    view: int
    started_at: int
    ident: dict[str, str]
    backend: bool = False
    """Only the backend has shown the session."""


def triple(kind: str, event_id: str, body: bytes, mark: bytes = b"") -> tuple[Arg, ...]:
    """One event for the script. `mark` is what a duplicate is recognised by, if not its `event_id`: `digest` or `numbered`."""
    if not body.startswith(b'"account":'):
        raise ValueError("an event's JSON begins with its account")
    if event_id:
        body = b'"event_id":' + orjson.dumps(event_id) + b"," + body
        mark = mark or digest(event_id)
    return orjson.dumps(kind), mark, body


def digest(known_by: str) -> bytes:
    """A mark for something that is told once, or again: it is remembered by itself."""
    return _hash(8, known_by)


def numbered(series: str, number: int) -> bytes:
    """A mark for the one of this number in a series: a bit is remembered of each, as long as the numbers go up about one by one."""
    if number >= NUMBERS_MAX:
        return digest(f"{series}\0{number}")
    return _hash(8, series) + number.to_bytes(4, "big")


def whole(event: bytes) -> tuple[Arg, ...]:
    """An event for the script that a script has written before."""
    return "", digest(event.decode()), event


def bodies(stated: dict[str, str], good: Sequence[Good]) -> list[Body]:
    """The arguments of `triple` for each event; `stated` is the envelope's part that its sender states."""
    common = orjson.dumps(stated | {"v": 1})[1:-1] + b',"data":'
    return [(event.type, event.event_id, common + event.raw + b"}", event.mark) for event in good]


def fate(reply: list[Any]) -> Fate:
    """The script's reply. Raises Overloaded if the outbox is too long for more events, or so much was told today already that
    repetitions could not be known."""
    full, flags, last, view, started_at, ident, origin = reply
    if full == 2:
        raise OverQuota("this account has told more today than one may", retry_after_s=DAY_RETRY_S)
    if full:
        raise Overloaded("too many events wait to be processed", retry_after_s=5)
    names = ("device", "content", "kind", "device_type", "provider", "profile")
    who = dict(zip(names, ident.decode().split("\t"), strict=False))
    return Fate([flag - 48 for flag in flags], last.decode(), view, started_at, who, origin == b"s")
