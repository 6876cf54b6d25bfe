"""`/v1/edge/authorize`: asked by nginx (`auth_request`) or Envoy (`ext_authz`) before each segment or manifest.

Answers 204, 401 or 403 and nothing else, because nginx turns every other status into a 500. The request itself is
evidence that the stream is alive. When Pulsegate cannot tell (Redis away, overload, a bug) it lets the viewer pass.
"""

from __future__ import annotations

import logging
import re
from hashlib import sha256
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, unquote, urlsplit

import orjson
from starlette.requests import Request
from starlette.responses import Response

from api.services import Services
from engine.errors import BadRequest, ConfigError, Forbidden, PulsegateError, Unauthorized
from engine.wire import ID_MAX, Signal

log = logging.getLogger(__name__)

_GROUPS = ("token", "device", "content", "kind", "provider")


class Edge:
    def __init__(self, services: Services) -> None:
        self._services = services
        settings = services.settings
        self._uri = _compile("PULSEGATE_EDGE_URI", settings.edge_uri)
        self._manifest = _compile("PULSEGATE_EDGE_MANIFEST", settings.edge_manifest)

    async def authorize(self, request: Request) -> Response:
        try:
            return await self._authorize(request)
        except Unauthorized as error:
            return _refusal(401, error.code)
        except (Forbidden, BadRequest) as error:
            return _refusal(403, error.code)
        except PulsegateError as error:
            log.warning("edge_degraded", extra={"why": error.message})
        except Exception:
            log.exception("edge_degraded")
        return Response(status_code=204, headers={"X-Pulsegate-Degraded": "1"})

    async def _authorize(self, request: Request) -> Response:
        if request.headers.get("x-original-method", "").upper() == "OPTIONS":
            return Response(status_code=204)
        path, query = self._original(request)
        match = self._uri.search(path)
        named = {name: (match.groupdict().get(name) or "") for name in _GROUPS} if match else dict.fromkeys(_GROUPS, "")
        token = self._token(request, query, named["token"])
        device = named["device"]
        claims = await self._services.admitted(token, "", device or _device_of(token))
        device = claims.device or device or _device_of(token)
        signal = Signal(
            account=claims.account,
            device=device,
            evidence="manifest" if self._manifest.search(path) else "segment",
            content=claims.content or named["content"],
            kind=claims.kind or (named["kind"] if named["kind"] in ("live", "vod") else ""),  # type: ignore[arg-type]
            session=claims.sid or claims.jti,
            provider=named["provider"],
        )
        for name in ("device", "content", "provider"):
            value = getattr(signal, name)
            if len(value) > ID_MAX or not value.isprintable():
                raise BadRequest(f"{name} in the URI must be at most {ID_MAX} printable characters", field=name)
        decision = await self._services.decisions.signal(signal, orjson.dumps({"evidence": signal.evidence}), claims)
        if decision["decision"] == "block":
            return _refusal(403, decision["reason"], decision["rule"], decision["retry_at"])
        return Response(status_code=204, headers={"X-Pulsegate-Degraded": "1"} if decision["degraded"] else None)

    @staticmethod
    def _original(request: Request) -> tuple[str, dict[str, list[str]]]:
        """The path and query the viewer asked for: a header of nginx's, or the rest of the path with Envoy."""
        uri = request.headers.get("x-original-uri") or request.headers.get("x-forwarded-uri")
        if uri is None:
            uri = "/" + request.path_params.get("original", "") + (f"?{request.url.query}" if request.url.query else "")
        parts = urlsplit(uri if uri.startswith("/") else f"/{uri}")
        return unquote(parts.path), parse_qs(parts.query)

    def _token(self, request: Request, query: dict[str, list[str]], in_path: str) -> str:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            return token.strip()
        try:
            cookie = SimpleCookie(request.headers.get("cookie", "")).get(self._services.settings.edge_cookie)
        except CookieError:
            cookie = None
        found = (cookie.value if cookie else "") or query.get(self._services.settings.edge_query, [""])[0] or in_path
        if not found:
            raise Unauthorized("no token in header, cookie, query or path", code="token_missing")
        return found


def _device_of(token: str) -> str:
    """Where neither token nor URI names a device, a token is a device."""
    return "token:" + sha256(token.encode()).hexdigest()[:16]


def _refusal(status: int, reason: str | None, rule: str | None = None, retry_at: int | None = None) -> Response:
    headers = {
        "X-Pulsegate-Reason": reason or "",
        "X-Pulsegate-Rule": rule or "",
        "X-Pulsegate-Retry-At": str(retry_at or ""),
    }
    return Response(status_code=status, headers={name: value for name, value in headers.items() if value})


def _compile(variable: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{variable} is not a regular expression: {error}", field=variable) from None
