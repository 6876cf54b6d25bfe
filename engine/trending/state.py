"""The detector's state as parts, each stored under its name: what changed since the last dump is all that must be written.

A part is 4 bytes magic and version, 4 bytes CRC-32 of the rest, then the rest: JSON or a little-endian array.

| part                             | changes     | holds                                                               |
|----------------------------------|-------------|---------------------------------------------------------------------|
| meta                             | every tick  | JSON {began, last (ms), hour, covered (s), slots, written: [168]}    |
| fast, slow, viewed               | every tick  | 32-bit floats by slot                                               |
| peak                             | every 5 min | the same                                                            |
| level, foreseen                  | hourly      | the same                                                            |
| seen                             | hourly      | 32-bit unsigned by slot: hour since the epoch                       |
| names:<n>                        | new content | JSON, of slots 1024·n on: [content, hour since the epoch] or null    |
| members                          | the list changed | JSON {content: [since (ms), distinct]}                         |
| hour:<0..167>                    | one an hour | 16-bit codes by slot (engine/trending/profile.py)                    |
"""

from __future__ import annotations

import logging
import sys
import zlib
from array import array
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from engine.trending.items import Member
from engine.trending.profile import HOURS
from engine.trending.slots import CHUNK

if TYPE_CHECKING:
    from engine.trending.detector import Detector

log = logging.getLogger(__name__)

MAGIC = b"PGT\x01"
_T = TypeVar("_T")
_FLOATS = ("fast", "slow", "viewed", "peak", "level", "foreseen")


def mark_all(detector: Detector) -> None:
    """As if everything had changed."""
    detector.changed.update(("meta", "seen", "members", *_FLOATS))
    detector.changed.update(f"hour:{week}" for week, written in enumerate(detector.profile.written) if written >= 0)
    detector.slots.changed.update(range(-(-len(detector.slots) // CHUNK)))


def dump(detector: Detector) -> dict[str, bytes]:
    slots = detector.slots
    parts: dict[str, bytes] = {}
    for name in detector.changed:
        if name in _FLOATS:
            parts[name] = _array(array("f", getattr(detector, name)))
        elif name.startswith("hour:"):
            parts[name] = _array(detector.profile.parts[int(name[5:])])
    if "seen" in detector.changed:
        parts["seen"] = _array(array("I", slots.seen))
    for chunk in slots.changed:
        parts[f"names:{chunk}"] = _json(_rows(detector, chunk))
    if "members" in detector.changed:
        parts["members"] = _json({name: [member.since, member.distinct] for name, member in detector.members.items()})
    if "meta" in detector.changed:
        parts["meta"] = _json(
            {
                "began": detector.began,
                "last": detector.last,
                "hour": detector.hour,
                "covered": detector.covered,
                "slots": len(slots),
                "written": detector.profile.written,
            }
        )
    detector.changed.clear()
    slots.changed.clear()
    return parts


def load(detector: Detector, parts: Mapping[str, bytes]) -> None:
    meta = _read(parts, "meta", _meta)
    if meta is None:  # without it nothing else can be placed in time
        return
    count, slots, profile = int(meta["slots"]), detector.slots, detector.profile
    rows: list[tuple[str, int] | None] = []
    for chunk in range(-(-count // CHUNK)):
        rows.extend(_read(parts, f"names:{chunk}", _names) or [None] * CHUNK)
        rows.extend([None] * ((chunk + 1) * CHUNK - len(rows)))
    seen = _read(parts, "seen", lambda data: _numbers("I", data, count, meta["hour"]))
    slots.restore(rows[:count], seen if seen is not None else [meta["hour"]] * count)
    detector.began, detector.last = meta["began"], meta["last"]
    detector.hour, detector.covered = meta["hour"], meta["covered"]
    for name in _FLOATS:
        column = _read(parts, name, lambda data: _numbers("f", data, count, 0.0))
        setattr(detector, name, column if column is not None else [0.0] * count)
        detector.restored |= column is None and name in ("fast", "slow")
    for week, written in enumerate(meta["written"]):
        codes = _read(parts, f"hour:{week}", lambda data: _numbers("H", data, count, 0)) if written >= 0 else None
        if codes is not None:
            profile.parts[week], profile.written[week] = array("H", codes), written
    members = _read(parts, "members", _members) or {}
    detector.members = {name: member for name, member in members.items() if name in slots.index}


def _meta(data: bytes) -> dict[str, Any]:
    meta = orjson.loads(data)
    fields = ("began", "last", "hour", "slots")
    if not all(isinstance(meta[name], int) for name in fields) or len(meta["written"]) != HOURS:
        raise ValueError("fields are missing")
    return dict(meta)


def _names(data: bytes) -> list[tuple[str, int] | None]:
    rows = [None if row is None else (str(row[0]), int(row[1])) for row in orjson.loads(data)]
    if len(rows) > CHUNK:
        raise ValueError("too long")
    return rows


def _members(data: bytes) -> dict[str, Member]:
    return {str(name): Member(int(since), int(accounts)) for name, (since, accounts) in orjson.loads(data).items()}


def _numbers(code: str, data: bytes, count: int, rest: float) -> list[Any]:
    """An array by slot; contents that came after it was written have `rest`."""
    values = array(code)
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    if len(values) > count:
        raise ValueError("more slots than there are")
    return [*values, *[rest] * (count - len(values))]


def _rows(detector: Detector, chunk: int) -> list[tuple[str, int] | None]:
    slots, part = detector.slots, slice(chunk * CHUNK, (chunk + 1) * CHUNK)
    return [
        None if name is None else (name, born) for name, born in zip(slots.names[part], slots.born[part], strict=True)
    ]


def _pack(payload: bytes) -> bytes:
    return MAGIC + zlib.crc32(payload).to_bytes(4, "little") + payload


def _json(value: Any) -> bytes:
    return _pack(orjson.dumps(value))


def _array(values: array[Any]) -> bytes:
    if sys.byteorder == "big":
        values = array(values.typecode, values)
        values.byteswap()
    return _pack(values.tobytes())


def _read(parts: Mapping[str, bytes], name: str, parse: Callable[[bytes], _T]) -> _T | None:
    data = parts.get(name)
    if data is None:
        return None
    try:
        if data[:4] != MAGIC:
            raise ValueError("not of this version")
        if zlib.crc32(data[8:]).to_bytes(4, "little") != data[4:8]:
            raise ValueError("damaged")
        return parse(data[8:])
    except (ValueError, TypeError, KeyError, IndexError) as error:
        log.warning("trending state left out", extra={"part": name, "why": str(error)})
        return None
