"""The public keys that sign tokens: read from a URL or a file, and only those that can be trusted with it.

Whoever serves the document may be slow, broken or not who it seems: the whole reading has `READ_S` seconds and `BYTES_MAX`
bytes, and goes nowhere else than to the URL it was given. A key that is too weak, or no public key, costs only itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

log = logging.getLogger(__name__)

READ_S = 5.0
BYTES_MAX = 2**20
KEYS_MAX = 100
RSA_BITS_MIN = 2048
_ALGORITHMS: dict[tuple[Any, Any], str] = {
    ("RSA", None): "RS256",
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
}
"""By type and curve; what stands not here verifies nothing, symmetric keys first of all."""


async def read(where: str) -> dict[str, Any]:
    """The document. Raises whatever keeps it from being read; TimeoutError after READ_S, ValueError beyond BYTES_MAX."""
    if where.startswith(("http://", "https://")):
        async with asyncio.timeout(READ_S):
            text = await _fetch(where)
    else:
        text = await asyncio.to_thread(_from_file, Path(where))
    return dict(json.loads(text))


async def _fetch(url: str) -> bytes:
    # Uncompressed, so that what is counted is what is kept.
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    client = httpx.AsyncClient(timeout=READ_S, follow_redirects=False)
    async with client, client.stream("GET", url, headers=headers) as answer:
        if answer.status_code != 200:  # httpx' own error would repeat the URL, and with it a password
            raise ValueError(f"it answers {answer.status_code}")
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise ValueError("the answer is compressed")
        text = bytearray()
        async for part in answer.aiter_raw():
            text += part
            _check_length(len(text))
    return bytes(text)


def _from_file(path: Path) -> bytes:
    with path.open("rb") as file:
        text = file.read(BYTES_MAX + 1)
    _check_length(len(text))
    return text


def _check_length(length: int) -> None:
    if length > BYTES_MAX:
        raise ValueError(f"longer than {BYTES_MAX} bytes")


def usable(document: dict[str, Any]) -> dict[str, jwt.PyJWK]:
    """Key id ('' for none) → key. Those that are not used are logged. Raises ValueError if none is left."""
    listed = document.get("keys")
    if not isinstance(listed, list):
        raise ValueError("no list of keys")
    found: dict[str, jwt.PyJWK] = {}
    for raw in listed[:KEYS_MAX]:
        try:
            kid, key = _key(raw)
            found[kid] = key
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            named = raw.get("kid") if isinstance(raw, dict) else None
            # PyJWT's messages quote the key.
            why = str(error) if type(error) is ValueError else type(error).__name__
            log.warning("jwks_key", extra={"kid": repr(named)[:80], "why": why})
    if len(listed) > KEYS_MAX:
        log.warning("jwks_key", extra={"kid": "", "why": f"only the first {KEYS_MAX} keys are used"})
    if not found:
        raise ValueError("no key that can be used")
    return found


def _key(raw: Any) -> tuple[str, jwt.PyJWK]:
    """Raises ValueError, TypeError, PyJWTError for one that must not be used."""
    if not isinstance(raw, dict):
        raise ValueError("no object")
    kind, kid = raw.get("kty"), raw.get("kid", "")
    algorithm = _ALGORITHMS.get((kind, None if kind == "RSA" else raw.get("crv")))
    if algorithm is None:
        raise ValueError("neither RSA, nor EC on P-256, nor Ed25519")
    if "d" in raw:
        raise ValueError("a private key")
    if raw.get("use", "sig") != "sig" or "verify" not in raw.get("key_ops", ["verify"]):
        raise ValueError("not for signatures")
    if raw.get("alg", algorithm) != algorithm:
        raise ValueError(f"for another algorithm than {algorithm}")
    if not isinstance(kid, str):
        raise ValueError("kid is no string")
    key = jwt.PyJWK(raw, algorithm)
    if isinstance(key.key, RSAPublicKey) and key.key.key_size < RSA_BITS_MIN:
        raise ValueError(f"RSA of fewer than {RSA_BITS_MIN} bits")
    return kid, key
