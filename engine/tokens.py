"""Who may ask: bearer JWTs, verified once and remembered until they expire.

HS256 by a shared secret, or RS256, ES256 and EdDSA by JWKS. The algorithm is bound to the key: a token that names
HS256 is only ever tried against the secret, so a public key cannot be passed off as one; `none` is never accepted.

A player's token names its account (`sub`) and reaches nothing of another; whatever `scope` it carries is for somebody
else. A service token has a mark that comes by no accident (`typ: "service"`, or an audience that is only for services), scopes
(`signals`, `read`, `admin`), and no `sub`, or one that the operator lists, for some providers give every token one.
"""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jwt

from engine import jwks, names
from engine.errors import BadRequest, ConfigError, Forbidden, Unauthorized
from engine.settings import Settings
from engine.wire import ID_MAX

log = logging.getLogger(__name__)

SCOPES = frozenset({"signals", "read", "admin"})
SERVICE = "service"
"""What `typ` says in the payload of a service token. (Keycloak says `Bearer` there, which is no mark of anything.)"""
TOKEN_MAX = 16_384
_OUTLIVED_MAX = 10_000
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

    # profiles: one rule, whatever is asked

    def reaches(self, profile: str, *, backend: bool = False) -> bool:
        """Whether the token is for this profile ('' is the one of those who name none). `backend`: of a session that only the
        backend has shown; if that named no profile, nobody has said whose it is."""
        allowed = self.profiles
        return allowed is None or profile in allowed or (backend and not profile and bool(allowed))

    def profile_or(self, named: str) -> str:
        """The profile a call is about: the one named, else the token's only one. Raises Forbidden for one that the token is not
        for, BadRequest where it is for several and none is named."""
        allowed = self.profiles
        if allowed is None or named in allowed:
            return named
        if named or not allowed:
            raise Forbidden("the token is not for this profile", code="other_profile", field="profile")
        if len(allowed) > 1:
            raise BadRequest("profile is required: the token is for several", field="profile")
        return next(iter(allowed))

    @property
    def sole_profile(self) -> str:
        """For a call that cannot name one: the token's only profile, else ''. Raises Forbidden if it is for none at all."""
        return "" if self.profiles is not None and len(self.profiles) > 1 else self.profile_or("")

    @property
    def profiles_said(self) -> str:
        """The profiles as scripts want them: '' for any, else each between tabs (lua/lib/judge.lua)."""
        return "" if self.profiles is None else "\t" + "".join(f"{name}\t" for name in sorted(self.profiles))


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
        self._audiences = frozenset(filter(None, (settings.jwt_audience, settings.jwt_service_audience)))
        self.revoked: frozenset[str] = frozenset()
        self.outlived: dict[str, int] = {}
        """Revoked tokens that were shown lately → when they really end, ms: `Revocations` keeps them until then."""

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
            if len(self.outlived) < _OUTLIVED_MAX:
                self.outlived[claims.jti] = max(claims.expires_at, self.outlived.get(claims.jti, 0))
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

    @property
    def grace_s(self) -> int:
        """Seconds past its expiry after which no token passes anywhere."""
        return self._settings.token_grace_s + self._settings.jwt_leeway_s

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
            header = jwt.get_unverified_header(token)
            if "crit" in header or "b64" in header:
                raise ValueError("it asks for extensions (crit, b64)")
            key, algorithm = self._key(header)
            raw = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._audiences if s.jwt_audience else None,
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
            _check_names(token)
        except jwt.InvalidAudienceError:
            raise Unauthorized("the token is for another audience", code="token_audience") from None
        except jwt.InvalidIssuerError:
            raise Unauthorized("the token is from another issuer", code="token_issuer") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise Unauthorized(f"the token does not verify: {error}", code="token_invalid") from None
        begins = _seconds(raw, "nbf") if "nbf" in raw else 0
        if begins > self._clock() + s.jwt_leeway_s:
            raise Unauthorized("the token is not valid yet", code="token_not_yet_valid")
        if "iat" in raw:
            _seconds(raw, "iat")
        claims = _claims(raw, self._is_service(raw), s.jwt_scope_prefix)
        if s.jwt_audience and claims.account and s.jwt_audience not in _audiences(raw):
            raise Unauthorized("the token is for another audience", code="token_audience")
        return claims

    def _is_service(self, raw: dict[str, Any]) -> bool:
        s, subject = self._settings, raw.get("sub")
        if subject is not None and subject not in s.jwt_service_subjects:
            return False
        return raw.get("typ") == SERVICE or bool(s.jwt_service_audience and s.jwt_service_audience in _audiences(raw))

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
        if key.algorithm_name != algorithm:
            raise Unauthorized("the token's algorithm does not fit its key", code="token_invalid")
        return key, key.algorithm_name

    async def refresh_keys(self) -> None:
        """Reads the JWKS every 5 min; every 10 s at most while tokens name keys we do not know, or reading fails."""
        due = _JWKS_SOONEST_S if self._key_missed else _JWKS_EVERY_S
        if not self._settings.jwks_url or self._clock() - self._keys_at < due:
            return
        self._keys_at, self._key_missed = self._clock(), False
        try:
            document = await jwks.read(self._settings.jwks_url)
            found = self._keys if self._keys and document == self._jwks else jwks.usable(document)
        except Exception as error:
            # Whatever is wrong with the document, the keys we have stay.
            log.warning("jwks", extra={"why": f"{type(error).__name__}: {error}"})
            self._key_missed = True
            return
        if document != self._jwks:
            self._cache.clear()
        self._jwks, self._keys = document, found


def _check_names(token: str) -> None:
    """Raises ValueError where header or payload says a name twice: two readers would read two tokens."""
    for part in token.split(".")[:2]:
        json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)), object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it says a name twice")
    return found


def _audiences(raw: dict[str, Any]) -> list[Any]:
    said = raw.get("aud")
    return said if isinstance(said, list) else [said]


def _seconds(raw: dict[str, Any], claim: str) -> float:
    value = raw[claim]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e11:
        raise Unauthorized(f"claim {claim} must be seconds since the epoch", code="token_claims")
    return value


def _claims(raw: dict[str, Any], service: bool, scope_prefix: str) -> Claims:
    """Raises Unauthorized."""
    texts = {}
    for name, claim in (
        ("account", "sub"),
        *((n, n) for n in ("plan", "device", "device_type", "provider", "kind", "content", "sid", "jti")),
    ):
        value = "" if service and name == "account" else raw.get(claim, "")
        if not isinstance(value, str) or len(value) > ID_MAX or not value.isprintable():
            raise Unauthorized(f"claim {claim} must be 1–{ID_MAX} printable characters", code="token_claims")
        texts[name] = value
    for claim, own in (("device", names.own_device), ("sid", names.own_session), ("jti", names.own_session)):
        if own(texts[claim]):
            raise Unauthorized(f"claim {claim} is a name of Pulsegate's own", code="token_claims")
    limit = raw.get("max_streams")
    if limit is not None and (type(limit) is not int or not 0 <= limit <= 1000):
        raise Unauthorized("claim max_streams must be 0–1000", code="token_claims")
    if texts["kind"] not in ("", "live", "vod"):
        raise Unauthorized("claim kind must be live or vod", code="token_claims")
    profiles = raw.get("profiles")
    if profiles is not None and not (isinstance(profiles, list) and all(_is_name(p) for p in profiles)):
        raise Unauthorized(
            f"claim profiles must be a list of names, up to {ID_MAX} characters each", code="token_claims"
        )
    scopes = _scopes(raw, scope_prefix) if service else frozenset()
    if service and not scopes:
        raise Unauthorized(
            f"a service token's scope must name some of {', '.join(sorted(SCOPES))}", code="token_claims"
        )
    if not service and not texts["account"]:
        raise Unauthorized(
            "the token names no account (sub), nor is it marked as a service's (typ, or its audience)",
            code="token_claims",
        )
    return Claims(
        **texts, max_streams=limit, profiles=frozenset(profiles) if profiles is not None else None, scopes=scopes,
        expires_at=int(_seconds(raw, "exp") * 1000),
    )  # fmt: skip


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= ID_MAX and value.isprintable()


def _scopes(raw: dict[str, Any], prefix: str) -> frozenset[str]:
    """Those of ours, without what the provider writes before each."""
    scope = raw.get("scope", "")
    words = scope.replace(",", " ").split() if isinstance(scope, str) else []
    return frozenset(word.removeprefix(prefix) for word in words if word.startswith(prefix)) & SCOPES


def issue(secret: str, claims: dict[str, Any], ttl_s: int, *, settings: Settings, now: float | None = None) -> str:
    """A signed HS256 token; `None` values are left out."""
    issued = int(now if now is not None else time.time())
    payload = {k: v for k, v in claims.items() if v is not None} | {"iat": issued, "exp": issued + ttl_s}
    if settings.jwt_audience:
        payload["aud"] = settings.jwt_audience
    if settings.jwt_issuer:
        payload["iss"] = settings.jwt_issuer
    return jwt.encode(payload, secret, algorithm="HS256")
