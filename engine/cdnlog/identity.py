"""Who and what a request was for. Where the edge sees the same stream it must find the same: `engine/edge_rules`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jwt

from engine import edge_rules, names
from engine.cdnlog.errors import BadLine
from engine.cdnlog.formats import NAMES, Request, text_of
from engine.tokens import TOKEN_MAX

_CLAIMS = {name: (name,) for name in NAMES} | {"account": ("sub",), "session": ("sid", "jti")}
# Not a token's expiry: the bytes were delivered, and that is what a signal tells.
_SIGNATURE_ONLY = {f"verify_{claim}": False for claim in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")}


class Identities:
    """`query` and `cookies` are part → argument or cookie. `secret` verifies tokens; without it they are read only
    if `trusted`, because somebody else verified them."""

    def __init__(
        self, query: Mapping[str, str], cookies: Mapping[str, str], secret: bytes | None, trusted: bool
    ) -> None:
        self._query, self._cookies, self._secret, self._trusted = query, cookies, secret, trusted
        # A player shows the same token with every segment.
        self._known = lru_cache(10_000)(self._claims)

    def of(self, request: Request, groups: Mapping[str, str] | None) -> dict[str, str] | None:
        """The parts, and `evidence` if the log names it; None if nothing says it was for a stream. Raises BadLine.

        `groups` are what the path names, None if it is no stream's. A token's claims win over what the log names,
        and that over what the viewer can write; CMCD comes last.
        """
        arguments = _found(edge_rules.argument, request.query, self._query)
        said = {"content": str(request.cmcd["cid"])} if "cid" in request.cmcd else {}
        if groups is None and request.path is not None and not (said | request.named | arguments).get("content"):
            # A poster fetched with the viewer's cookie is no sign of a stream.
            return None
        cookies = _found(edge_rules.cookie, request.cookie, self._cookies)
        groups = groups or {}
        token = next((place["token"] for place in (request.named, cookies, arguments, groups) if "token" in place), "")
        claimed = self._known(token)
        found = {**said, **cookies, **arguments, **groups, **request.named, **claimed}
        if session := edge_rules.session_of(request.cmcd, claimed.get("device", "")):
            found.setdefault("session", session)
        if names.own_session(found.get("session", "")):
            raise BadLine("bad_session", "the session's name is one of Pulsegate's own")
        if names.own_device(found.get("device", "")):
            raise BadLine("bad_device", "the device's name is one of Pulsegate's own")
        if token:
            found.setdefault("device", names.token_device(token))
        return found

    def _claims(self, token: str) -> dict[str, str]:
        """The parts that a JWT names; nothing for a token of another make. Raises BadLine."""
        if token.count(".") != 2:
            return {}
        claims = self._decoded(token)
        first = {name: next((claims[key] for key in keys if claims.get(key)), None) for name, keys in _CLAIMS.items()}
        return {name: text_of(value, f"the token's {name}") for name, value in first.items() if value is not None}

    def _decoded(self, token: str) -> dict[str, Any]:
        if self._secret is None and not self._trusted:
            raise BadLine("token_unverified", "give --jwt-secret-file, or --trust-tokens")
        if len(token) > TOKEN_MAX:
            raise BadLine("bad_token", f"longer than {TOKEN_MAX} characters")
        try:
            if self._secret is None:
                return jwt.decode(token, options={"verify_signature": False})
            return jwt.decode(token, self._secret, algorithms=["HS256"], options=_SIGNATURE_ONLY)  # type: ignore[arg-type]
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise BadLine("bad_token", f"{error}") from None


def _found(find: Callable[[str, str], str], where: str, wanted: Mapping[str, str]) -> dict[str, str]:
    return {part: value for part, name in wanted.items() if (value := find(where, name))}
