"""Who may ask: bearer JWTs, verified once and remembered until they expire.

HS256 by a shared secret, or RS256, ES256 and EdDSA by JWKS. The algorithm is bound to the key: a token that names
HS256 is only ever tried against the secret, so a public key cannot be passed off as one; `none` is never accepted.

A player's token names its account (`sub`) and reaches nothing of another. Service tokens carry `scope`
(`signals`, `read`, `admin`) and no account.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jwt

from engine.errors import BadRequest, ConfigError, Forbidden, Unauthorized
from engine.settings import Settings
from engine.wire import ID_MAX

log = logging.getLogger(__name__)

SCOPES = frozenset({"signals", "read", "admin"})
_JWKS_ALGORITHMS = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}
TOKEN_MAX = 16_384
_JWKS_EVERY_S = 300
_JWKS_SOONEST_S = 10


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says. Empty strings and None are claims it does not make."""

    account: str = ""
    plan: str = ""
    max_streams: int | None = None
    device: str = ""
    device_type: str = ""
    provider: str = ""
    kind: str = ""
    content: str = ""
    profiles: frozenset[str] | None = None
    sid: str = ""
    jti: str = ""
    scopes: frozenset[str] = frozenset()
    expires_at: int = 0
    """ms since the epoch."""

    def require(self, scope: str) -> None:
        """Raises Forbidden unless this is a service token with the scope (`admin` includes all)."""
        if scope not in self.scopes and "admin" not in self.scopes:
            raise Forbidden(f"needs a service token with scope {scope}", code="scope")

    def account_or(self, named: str) -> str:
        """The account a call is about: the token's own, or the one a service token names."""
        if self.account:
            if named and named != self.account:
                raise Forbidden("the token is for another account", code="other_account", field="account")
            return self.account
        if not named:
            raise BadRequest("account is required with a service token", field="account")
        return named


class Tokens:
    """Verifies tokens. `clock` gives seconds since the epoch."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        if not settings.jwt_secret and not settings.jwks_url:
            raise ConfigError("set PULSEGATE_JWT_SECRET(_FILE) or PULSEGATE_JWKS_URL", field="PULSEGATE_JWT_SECRET")
        self._settings = settings
        self._clock = clock
        self._cache: dict[str, Claims] = {}
        self._keys: dict[str, jwt.PyJWK] = {}
        self._keys_at = float("-inf")
        self._key_missed = False
        self._jwks: dict[str, Any] = {}
        self.revoked: frozenset[str] = frozenset()

    def verify(self, token: str, *, grace_s: int = 0) -> Claims:
        """The token's claims. Raises Unauthorized with a code that says what is wrong.

        `grace_s` forgives that many seconds past expiry; the caller then decides whether that is enough.
        """
        claims = self._cache.get(token)
        if claims is None:
            claims = self._decode(token)
            if len(self._cache) >= self._settings.token_cache:
                self._make_room()
            if self._settings.token_cache:
                self._cache[token] = claims
        if claims.jti and claims.jti in self.revoked:
            raise Unauthorized("the token was revoked", code="token_revoked")
        if self._clock() * 1000 > claims.expires_at + (grace_s + self._settings.jwt_leeway_s) * 1000:
            self._cache.pop(token, None)
            raise Unauthorized("the token has expired", code="token_expired")
        return claims

    def cached(self, token: str) -> Claims | None:
        """The claims of a player's token that was verified before and still holds; else None: verify it."""
        claims = self._cache.get(token)
        if (
            claims is None
            or self._clock() * 1000 > claims.expires_at
            or not claims.account
            or (claims.jti and claims.jti in self.revoked)
        ):
            return None
        return claims

    def expired(self, claims: Claims) -> bool:
        return self._clock() * 1000 > claims.expires_at + self._settings.jwt_leeway_s * 1000

    def _make_room(self) -> None:
        """Forgets the expired, and of the others the oldest: a quarter at once, so that it costs little per token."""
        now, keep = self._clock() * 1000, self._settings.token_cache * 3 // 4
        living = [(token, claims) for token, claims in self._cache.items() if claims.expires_at > now]
        self._cache = dict(living[-keep:] if keep else [])

    def _decode(self, token: str) -> Claims:
        s = self._settings
        if len(token) > TOKEN_MAX:
            raise Unauthorized(f"the token exceeds {TOKEN_MAX} characters", code="token_invalid")
        try:
            key, algorithm = self._key(jwt.get_unverified_header(token))
            raw = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=s.jwt_audience or None,
                issuer=s.jwt_issuer or None,
                leeway=s.jwt_leeway_s,
                options={
                    "require": ["exp"],
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_nbf": False,
                    "verify_aud": bool(s.jwt_audience),
                },
            )
        except jwt.InvalidAudienceError:
            raise Unauthorized("the token is for another audience", code="token_audience") from None
        except jwt.InvalidIssuerError:
            raise Unauthorized("the token is from another issuer", code="token_issuer") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise Unauthorized(f"the token does not verify: {error}", code="token_invalid") from None
        begins = _seconds(raw, "nbf") if "nbf" in raw else 0
        if begins > self._clock() + s.jwt_leeway_s:
            raise Unauthorized("the token is not valid yet", code="token_not_yet_valid")
        return _claims(raw)

    def _key(self, header: dict[str, Any]) -> tuple[Any, str]:
        algorithm = header.get("alg")
        if algorithm == "HS256" and self._settings.jwt_secret:
            return self._settings.jwt_secret, "HS256"
        key = self._keys.get(header.get("kid", ""))
        if key is None and "kid" not in header and len(self._keys) == 1:
            key = next(iter(self._keys.values()))
        if key is None:
            self._key_missed = True
            raise Unauthorized("no key for this token", code="token_invalid")
        wanted = _JWKS_ALGORITHMS.get(key.key_type or "", "")
        if wanted != algorithm:
            raise Unauthorized("the token's algorithm does not fit its key", code="token_invalid")
        return key, wanted

    async def refresh_keys(self) -> None:
        """Reads the JWKS every 5 min; every 10 s at most while tokens name keys we do not know, or reading fails."""
        due = _JWKS_SOONEST_S if self._key_missed else _JWKS_EVERY_S
        if not self._settings.jwks_url or self._clock() - self._keys_at < due:
            return
        self._keys_at, self._key_missed = self._clock(), False
        try:
            document = await self._read_jwks(self._settings.jwks_url)
            found = jwt.PyJWKSet.from_dict(document).keys
        except Exception as error:
            # Whatever is wrong with the document, the keys we have stay.
            log.warning("jwks", extra={"why": f"{type(error).__name__}: {error}"})
            self._key_missed = True
            return
        if document != self._jwks:
            self._cache.clear()
        self._jwks = document
        self._keys = {key.key_id or "": key for key in found if key.public_key_use != "enc"}

    @staticmethod
    async def _read_jwks(where: str) -> dict[str, Any]:
        if where.startswith(("http://", "https://")):
            async with httpx.AsyncClient(timeout=5) as client:
                answer = await client.get(where)
                answer.raise_for_status()
                return dict(answer.json())
        return dict(json.loads(await asyncio.to_thread(Path(where).read_text, encoding="utf-8")))


def _seconds(raw: dict[str, Any], claim: str) -> float:
    value = raw[claim]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e11:
        raise Unauthorized(f"claim {claim} must be seconds since the epoch", code="token_claims")
    return value


def _claims(raw: dict[str, Any]) -> Claims:
    texts = {}
    for name, claim in (
        ("account", "sub"),
        *((n, n) for n in ("plan", "device", "device_type", "provider", "kind", "content", "sid", "jti")),
    ):
        value = raw.get(claim, "")
        if not isinstance(value, str) or len(value) > ID_MAX or not value.isprintable():
            raise Unauthorized(f"claim {claim} must be 1–{ID_MAX} printable characters", code="token_claims")
        texts[name] = value
    limit = raw.get("max_streams")
    if limit is not None and (type(limit) is not int or not 0 <= limit <= 1000):
        raise Unauthorized("claim max_streams must be 0–1000", code="token_claims")
    if texts["kind"] not in ("", "live", "vod"):
        raise Unauthorized("claim kind must be live or vod", code="token_claims")
    profiles = raw.get("profiles")
    if profiles is not None and not (isinstance(profiles, list) and all(isinstance(p, str) for p in profiles)):
        raise Unauthorized("claim profiles must be a list of strings", code="token_claims")
    scope = raw.get("scope", "")
    scopes = frozenset(scope.replace(",", " ").split()) & SCOPES if isinstance(scope, str) else frozenset()
    if not texts["account"] and not scopes:
        raise Unauthorized("the token names neither an account (sub) nor a scope", code="token_claims")
    return Claims(
        **texts, max_streams=limit, profiles=frozenset(profiles) if profiles is not None else None, scopes=scopes,
        expires_at=int(_seconds(raw, "exp") * 1000),
    )  # fmt: skip


def issue(secret: str, claims: dict[str, Any], ttl_s: int, *, settings: Settings, now: float | None = None) -> str:
    """A signed HS256 token; `None` values are left out."""
    issued = int(now if now is not None else time.time())
    payload = {k: v for k, v in claims.items() if v is not None} | {"iat": issued, "exp": issued + ttl_s}
    if settings.jwt_audience:
        payload["aud"] = settings.jwt_audience
    if settings.jwt_issuer:
        payload["iss"] = settings.jwt_issuer
    return jwt.encode(payload, secret, algorithm="HS256")
