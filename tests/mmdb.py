"""Writes MaxMind database files small enough for tests (MaxMind DB format 2.0, 32-bit records, IPv4)."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

_MAP, _UTF8, _UINT16, _UINT32, _UINT64, _ARRAY = 7, 2, 5, 6, 9, 11
# Readers insist on these; all other numbers are 32 bits wide.
_KINDS = {"record_size": _UINT16, "ip_version": _UINT16, "binary_format_major_version": _UINT16,
          "binary_format_minor_version": _UINT16, "build_epoch": _UINT64}  # fmt: skip


def write(path: Path, networks: dict[str, dict[str, Any]]) -> Path:
    """`networks` is `203.0.113.0/24` → its record."""
    data, places = b"", {}
    for network, record in networks.items():
        places[network] = len(data)
        data += _encode(record)
    nodes: list[list[Any]] = [[None, None]]
    for network in networks:
        parsed = ipaddress.IPv4Network(network)
        bits = f"{int(parsed.network_address):032b}"[: parsed.prefixlen]
        here = 0
        for bit in bits[:-1]:
            if nodes[here][int(bit)] is None:
                nodes.append([None, None])
                nodes[here][int(bit)] = len(nodes) - 1
            here = nodes[here][int(bit)]
        nodes[here][int(bits[-1])] = network
    count = len(nodes)
    values = {None: count} | {network: count + 16 + place for network, place in places.items()}
    tree = b"".join(values.get(side, side).to_bytes(4, "big") for node in nodes for side in node)
    about = {
        "node_count": count, "record_size": 32, "ip_version": 4, "database_type": "Test", "languages": ["en"],
        "binary_format_major_version": 2, "binary_format_minor_version": 0, "build_epoch": 1_800_000_000,
        "description": {"en": "for tests"},
    }  # fmt: skip
    path.write_bytes(tree + bytes(16) + data + b"\xab\xcd\xefMaxMind.com" + _encode(about))
    return path


def _encode(value: Any, kind: int = _UINT32) -> bytes:
    if isinstance(value, dict):
        return _head(_MAP, len(value)) + b"".join(
            _encode(k) + _encode(v, _KINDS.get(k, _UINT32)) for k, v in value.items()
        )
    if isinstance(value, list):
        return _head(_ARRAY, len(value)) + b"".join(map(_encode, value))
    if isinstance(value, str):
        return _head(_UTF8, len(value.encode())) + value.encode()
    raw = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return _head(kind, len(raw)) + raw


def _head(kind: int, size: int) -> bytes:
    assert size < 285, "longer values need more than this"
    first, more = (size, b"") if size < 29 else (29, bytes([size - 29]))
    return (bytes([first, kind - 7]) if kind > 7 else bytes([kind << 5 | first])) + more
