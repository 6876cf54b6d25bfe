"""How the API and the process it asks speak to one another: frames over a pipe, all numbers big-endian.

In:  u32 length, JSON `{"id", "do", "args", "reads": [relation, …], "from", "to"}` (ms; the time of which the relations' files are looked up),
     or `{"cancel": id}`.
Out: u32 length of the rest, u32 id, u8 status (0: the answer, 1: an error `{"code", "message", "field", "kind"}`), JSON.
"""

from __future__ import annotations

import struct
from typing import Any, BinaryIO

import orjson

HEAD = struct.Struct(">I")
TAIL = struct.Struct(">IB")


def frame(said: dict[str, Any]) -> bytes:
    body = orjson.dumps(said)
    return HEAD.pack(len(body)) + body


def answer(ident: int, status: int, body: bytes) -> bytes:
    return HEAD.pack(TAIL.size + len(body)) + TAIL.pack(ident, status) + body


def read(source: BinaryIO) -> bytes | None:
    """A frame's body; None when there are no more."""
    head = source.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    (length,) = HEAD.unpack(head)
    body = source.read(length)
    return body if len(body) == length else None
