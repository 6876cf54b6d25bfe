"""What callers send: one pass of msgspec validates and builds; a few checks follow that no schema can say.

Ids are 1–128 printable characters. Positions and durations are seconds, `at` is ms since the epoch. Unknown fields
are not refused: an event's `data` is the caller's JSON, byte for byte.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable
from itertools import accumulate
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import orjson
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from engine import names
from engine.errors import BadRequest

ID_MAX = 128
EVENTS_MAX = 100
SIGNALS_MAX = 500
NESTING_MAX = 32
CONTAINERS_MAX = 20_000
"""Arrays and objects in a body: each costs some 100 ns wherever it is read, ten times what its bytes do."""
AT_MAX = 99_999_999_999_999
MS_LEAST = 100_000_000_000
"""In 1973 as ms, in 5138 as seconds: a time between 0 and this is not in ms, whoever sends it."""

Kind = Literal["live", "vod"]
State = Literal["starting", "playing", "buffering", "seeking", "paused", "ended", "error"]
Evidence = Literal["token", "licence", "manifest", "segment"]

# What `str.isprintable` says, for the API's description.
PRINTABLE = r"(?:[^\p{C}\p{Z}]| )"
Id = Annotated[
    str,
    Meta(
        min_length=1, max_length=ID_MAX, description="1–128 printable characters",
        extra_json_schema={"pattern": f"^{PRINTABLE}+$"},
    ),
]  # fmt: skip
OWN_SESSION = f"^({names.SESSION_MARK}|{names.OLDEST}$)"
OWN_DEVICE = f"^{names.DEVICE_MARK}"
NewSession = Annotated[Id, Meta(extra_json_schema={"not": {"pattern": OWN_SESSION}})]
NewDevice = Annotated[Id, Meta(extra_json_schema={"not": {"pattern": OWN_DEVICE}})]
"""Names that may begin something: none of Pulsegate's own (engine/names.py), which the decoders' callers check."""
_Scalar = bool | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | float | str | None
Plain = _Scalar | dict[str, _Scalar] | list[_Scalar]
"""JSON without nesting, and with numbers that every reader has."""
Seconds = Annotated[float, Meta(ge=0, le=1e8)]
Millis = Annotated[
    int,
    Meta(
        ge=0, le=AT_MAX, description="ms since the epoch",
        extra_json_schema={"anyOf": [{"const": 0}, {"minimum": MS_LEAST}]},
    ),
]  # fmt: skip
Seq = Annotated[int, Meta(ge=0, le=AT_MAX, description="counts up from 0 within a run of the player")]

STATES: dict[str, str] = {
    "playing": "p", "buffering": "b", "seeking": "k", "starting": "s", "paused": "a", "ended": "e", "error": "f",
}  # fmt: skip
STATE_NAMES = {letter: name for name, letter in STATES.items()}
RANKS: dict[str, int] = {"token": 1, "licence": 2, "manifest": 3, "segment": 4}

# Types that only Pulsegate itself may write.
OWN_TYPES = frozenset(
    [
        "heartbeat",
        "view_start",
        "view_end",
        "view_reopen",
        "block",
        "evict",
        "takeover",
        "session_linked",
        "evidence",
        "pause",
        "resume",
        "resume_set",
        "resume_hide",
        "cmcd",
        "client",
    ]
)
EVENT_TYPE = "[a-z][a-z0-9_]{0,63}"
_TYPE = re.compile(EVENT_TYPE)


class Heartbeat(Struct):
    """`POST /v1/heartbeats`."""

    session: NewSession
    content: Id
    kind: Kind
    state: State
    seq: Seq
    device: NewDevice = ""
    position: Seconds | None = None
    duration: Seconds | None = None
    credits: Annotated[Seconds | None, Meta(description="where the end credits start")] = None
    profile: Id = ""
    device_type: Id = ""
    provider: Id = ""
    title: Annotated[str, Meta(max_length=512)] = ""
    rate: Annotated[float, Meta(ge=0, le=16)] = 1.0
    quality: Raw | UnsetType = UNSET
    events: Annotated[list[Raw], Meta(max_length=EVENTS_MAX)] | None = None


class KeptHeartbeat(Heartbeat, kw_only=True):
    """A heartbeat that was judged when it came. One that stands for a CMCD report may lack kind and position."""

    kind: Kind | Literal[""] = ""  # type: ignore[assignment]


class PlayerEvent(Struct):
    """One of a heartbeat's `events`. A time that can only be seconds costs the event, not the heartbeat."""

    type: str
    at: Annotated[int, Meta(ge=0, le=AT_MAX, description="ms since the epoch")] | None = None


class Stop(Struct):
    """`POST /v1/sessions/{session}/stop`; the body may be empty."""

    account: Id = ""
    seq: Seq | None = None
    request_id: Id = ""
    token: str = ""


class Takeover(Struct):
    """`POST /v1/sessions/{session}/takeover`. What the session was refused with need not be repeated."""

    stop: Id
    account: Id = ""
    device: NewDevice = ""
    content: Id = ""
    kind: Kind | Literal[""] = ""
    profile: Id = ""
    device_type: Id = ""
    provider: Id = ""
    request_id: Id = ""


class Signal(Struct):
    """`POST /v1/signals`, one or one of a list."""

    account: Id
    device: Id
    evidence: Evidence
    content: Id = ""
    kind: Kind | Literal[""] = ""
    at: Millis | None = None
    session: NewSession = ""
    ttl_s: Annotated[float, Meta(gt=0, le=86_400)] | None = None
    plan: Id = ""
    max_streams: Annotated[int, Meta(ge=0, le=1000)] | None = None
    profile: Id = ""
    device_type: Id = ""
    provider: Id = ""
    request_id: Id = ""


class Revocation(Struct):
    """`POST /v1/tokens/revoke`: `expires_at` (ms) is when the token would have expired, and may be forgotten some time later."""

    jti: Id
    expires_at: Millis | None = None


T = TypeVar("T")
_heartbeat = msgspec.json.Decoder(Heartbeat)
_kept_heartbeat = msgspec.json.Decoder(KeptHeartbeat)
_SESSION_FIRST = names.SESSION_FIRST
_OWN_MAX = 32
_UNKNOWN = re.compile(r"Object contains unknown field `([^`]{1,64})`")
_event = msgspec.json.Decoder(PlayerEvent)
_NO_MARKS = bytes(set(range(256)) - set(b'"[]{}'))
_STEPS = bytes.maketrans(b"[]{}", b"\x01\xff\x01\xff")
_PATH = re.compile(r" - at `\$\.?([^`]*)`$")
_KEY = re.compile(r"required field `([^`]+)`|unknown field `([^`]+)`")


class _OnePass:
    """Reads heartbeats of which the decoder skips nothing: no events, only fields that it knows. The players of a deployment have
    fields of their own, the same ones in every heartbeat, so the first 32 that are met are known from then on."""

    def __init__(self) -> None:
        self._own: list[str] = []
        self._make()

    def _make(self) -> None:
        own = {f"own_{place}": name for place, name in enumerate(self._own)}
        kind = msgspec.defstruct(
            "OrdinaryHeartbeat", [(field, Plain | UnsetType, UNSET) for field in ("quality", *own)], bases=(Heartbeat,),
            forbid_unknown_fields=True, rename=own,
        )  # fmt: skip
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(kind).decode

    def read(self, body: bytes) -> Heartbeat | str:
        """The heartbeat; or why it is none that can be read so."""
        if b'"events"' in body:
            return ""
        try:
            beat: Heartbeat = self._decode(body)
        except msgspec.MsgspecError as error:
            return str(error)
        return beat

    def learn(self, why: str) -> None:
        """`read` has said so of a heartbeat that is sound."""
        unknown = _UNKNOWN.fullmatch(why)
        if unknown and len(self._own) < _OWN_MAX:
            self._own.append(unknown[1])
            self._make()


_one_pass = _OnePass()


def decode_heartbeat(body: bytes) -> Heartbeat:
    """Raises BadRequest that names the field."""
    # JSON has no raw control characters, so an ASCII body without escapes and DEL holds printable strings only.
    ordinary = body.isascii() and b"\\" not in body and b"\x7f" not in body
    read = _one_pass.read(body) if ordinary else ""
    if isinstance(read, str):
        beat = decode(_heartbeat, body)
        if ordinary:
            _one_pass.learn(read)
        else:
            for name in ("session", "device", "content", "profile", "device_type", "provider"):
                if not getattr(beat, name).isprintable():
                    raise BadRequest(f"{name} must be printable characters", field=name)
    else:
        beat = read
    # Asked of every heartbeat, so this only tells nearly all of them from those that are worth a look.
    if beat.session[0] in _SESSION_FIRST or ":" in beat.device:
        names.check_session(beat.session)
        names.check_device(beat.device)
    if beat.position is None and beat.kind == "vod":
        raise BadRequest("position is required for vod", field="position")
    return beat


def decode_kept_heartbeat(body: bytes) -> Heartbeat:
    """One that was spooled. Raises BadRequest for what never was one."""
    return decode(_kept_heartbeat, body)


def decode_events(raw: list[Raw]) -> list[tuple[str, bytes]]:
    """(type, JSON) of a heartbeat's events. Raises BadRequest that names the event."""
    out = []
    for index, item in enumerate(raw):
        kind = decode(_event, bytes(item), f"events[{index}]").type
        if not _TYPE.fullmatch(kind) or kind in OWN_TYPES:
            raise BadRequest(f"events[{index}].type is reserved or not a name", field=f"events[{index}].type")
        out.append((kind, bytes(item)))
    return out


def decode(decoder: msgspec.json.Decoder[T], body: bytes, where: str = "", *, whole: bool = True) -> T:
    """One JSON document. Raises BadRequest with the path of the offending field, below `where`.

    `whole` also checks the parts that the decoder skips; leave that out where the caller checks them one by one.
    """
    try:
        if not body.isascii():
            body.decode()
        containers = body.count(b"[") + body.count(b"{")
        if containers > NESTING_MAX:
            _check_nesting(body, containers)
        item = decoder.decode(body)
        if whole and not where:
            # What msgspec skips must be JSON for every reader of the event log too: 1e999 is not.
            orjson.loads(body)
        return item
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"not valid JSON: {error.msg}", code="invalid_json", field="body") from None
    except msgspec.ValidationError as error:
        raise _named(str(error), where) from None
    except msgspec.DecodeError as error:
        raise BadRequest(f"not valid JSON: {error}", code="invalid_json", field=where or "body") from None
    except UnicodeDecodeError:
        raise BadRequest("not valid UTF-8", code="invalid_json", field=where or "body") from None


def _check_nesting(body: bytes, containers: int) -> None:
    if containers > CONTAINERS_MAX:
        why = f"more than {CONTAINERS_MAX} arrays and objects, brackets in strings included"
        raise BadRequest(why, code="too_deep", field="body")
    # Each step is one pass in C: a hostile body costs little more than its length.
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Quotes and brackets; without the strings that have no bracket in them, which leaves the others in their places.
    marks = body.translate(None, _NO_MARKS).replace(b'""', b"")
    if b'"' in marks:
        marks = b"".join(marks.split(b'"')[::2])
    if max(accumulate(array("b", marks.translate(_STEPS))), default=0) > NESTING_MAX:
        raise BadRequest(f"nested deeper than {NESTING_MAX}", code="too_deep", field="body")


def _named(message: str, where: str) -> BadRequest:
    path = _PATH.search(message)
    named = path[1] if path else ""
    key = _KEY.search(message)
    if key:
        named = f"{named}.{key[1] or key[2]}".lstrip(".")
    text = _PATH.sub("", message)
    name = where + named if named.startswith("[") else f"{where}.{named}".strip(".")
    return BadRequest(f"{name or 'body'}: {text}", field=name or "body")


def check_ms(value: int | None, field: str) -> None:
    """Raises BadRequest for a time that can only have been meant as seconds."""
    if value is not None and 0 < value < MS_LEAST:
        raise BadRequest(f"{field} must be ms since the epoch: {value} is before 1973; is it seconds?", field=field)


def check_printable(item: Struct, where: str = "") -> None:
    """Raises BadRequest for a string field with control characters."""
    for name in item.__struct_fields__:
        value = getattr(item, name)
        if isinstance(value, str) and not value.isprintable():
            raise BadRequest(f"{where}{name} must be printable characters", field=f"{where}{name}")
