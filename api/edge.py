"""`/v1/edge/authorize`: asked by nginx (`auth_request`) or Envoy (`ext_authz`) before each segment or manifest.

nginx names the viewer's request in `X-Original-URI` and `X-Original-Method` and is answered 204; Envoy appends the
path to ours, keeps the method, and is answered 200, because it takes every other 2xx for a refusal. A refusal is 401
or 403 with the reason in headers. Nothing else is ever answered: nginx turns every other status into a 500. An account with too many
requests under way is refused, or a burst of them would be a way round the limit.

The request itself is evidence that the stream is alive. Where Pulsegate cannot tell (Redis away, overload, a bug) it
lets the viewer pass; a token it cannot read it refuses, or nonsense would be a way round the limit.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import orjson
from starlette.requests import Request
from starlette.responses import Response

from api.services import Services
from engine import edge_rules, names
from engine.cmcd import parser
from engine.cmcd.keys import Value
from engine.errors import AccountBusy, BadRequest, Forbidden, PulsegateError, Unauthorized
from engine.tokens import Claims
from engine.wire import ID_MAX, Signal

log = logging.getLogger(__name__)

ROUTE = "/v1/edge/authorize"
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
"""Envoy asks with the viewer's own method."""


PARTS = ("token", "device", "content", "kind", "provider")
"""Groups that `PULSEGATE_EDGE_URI` may have."""

_REFUSED = {401: {"WWW-Authenticate": "Bearer"}, 403: {}}


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the edge was asked for: `path` as nginx would look it up, `query` as it came."""

    method: str
    path: str
    query: str
    allowed: int
    """The status that lets the viewer pass."""


class Edge:
    def __init__(self, services: Services) -> None:
        self._services = services
        settings = services.settings
        self._uri = edge_rules.compiled("PULSEGATE_EDGE_URI", settings.edge_uri, PARTS)
        self._manifest = edge_rules.compiled("PULSEGATE_EDGE_MANIFEST", settings.edge_manifest)

    async def authorize(self, request: Request) -> Response:
        asked = _asked(request)
        if asked is None:
            return _refusal(403, "ambiguous")
        if asked.method == "OPTIONS":
            return Response(status_code=asked.allowed)
        try:
            token, signal, claims, said = self._read(request, asked)
            return await self._judge(token, signal, claims, said, asked.allowed)
        except Unauthorized as error:
            return _refusal(401, error.code)
        except (Forbidden, BadRequest, AccountBusy) as error:
            return _refusal(403, error.code)
        except PulsegateError as error:
            log.warning("edge_degraded", extra={"why": error.message})
        except Exception:
            log.exception("edge_degraded")
        return _pass(asked.allowed, degraded=True)

    def _read(self, request: Request, asked: _Asked) -> tuple[str, Signal, Claims, dict[str, Value]]:
        """The token, the evidence that this request is, the token's claims, and what the player says of the request by CMCD.

        Raises Unauthorized, BadRequest.
        """
        named = dict.fromkeys(PARTS, "") | (edge_rules.parts(self._uri, asked.path) or {})
        token = self._token(request, asked.query, named["token"])
        claims = self._verified(token)
        said = _cmcd(request, asked.query)
        signal = Signal(
            account=claims.account,
            device=claims.device or named["device"] or names.token_device(token),
            evidence="manifest" if self._manifest.search(asked.path) else "segment",
            content=claims.content or named["content"] or str(said.get("cid", "")),
            kind=claims.kind or named["kind"],  # type: ignore[arg-type]
            session=claims.sid or claims.jti or edge_rules.session_of(said, claims.device),
            provider=claims.provider or named["provider"],
            profile=claims.sole_profile,
        )
        if not claims.device:
            names.check_device(named["device"])
        for name in ("device", "content", "provider"):
            value = getattr(signal, name)
            if len(value) > ID_MAX or not value.isprintable():
                raise BadRequest(f"{name} in the URI must be at most {ID_MAX} printable characters", field=name)
        return token, signal, claims, said

    def _token(self, request: Request, query: str, in_path: str) -> str:
        """Header, else cookie, else query, else path. Raises Unauthorized if there is none."""
        settings = self._services.settings
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            return token.strip()
        found = (
            edge_rules.cookie(";".join(request.headers.getlist("cookie")), settings.edge_cookie)
            or edge_rules.argument(query, settings.edge_query)
            or in_path
        )
        if not found:
            raise Unauthorized("no token in header, cookie, query or path", code="token_missing")
        return found

    def _verified(self, token: str) -> Claims:
        """The token's claims, expired or not. Raises Unauthorized, whatever is wrong with it."""
        try:
            return self._services.tokens.verify(token, grace_s=self._services.settings.token_grace_s)
        except PulsegateError:
            raise
        except Exception as error:
            log.debug("edge_token", exc_info=True)
            raise Unauthorized("the token cannot be read", code="token_invalid") from error

    async def _judge(
        self, token: str, signal: Signal, claims: Claims, said: dict[str, Value], allowed: int
    ) -> Response:
        claims = await self._services.admitted(token, signal.session, signal.device)
        if not signal.content:
            self._services.metrics.edge_without_content.inc()
        data = {"evidence": signal.evidence} | ({"cmcd": said} if said else {})
        decision = await self._services.decisions.signal(signal, orjson.dumps(data), claims)
        if decision["decision"] == "block":
            return _refusal(403, decision["reason"], decision["rule"], decision["retry_at"])
        return _pass(allowed, degraded=decision["degraded"])


def _asked(request: Request) -> _Asked | None:
    """The viewer's request: in nginx's headers, or with Envoy behind our own path. None if two headers name different ones: one of
    them may be the viewer's own."""
    if "original" in request.path_params:
        raw_path: bytes = request.scope.get("raw_path") or request.url.path.encode()
        query = request.scope["query_string"].decode("latin-1")
        return _Asked(request.method, edge_rules.looked_up(raw_path[len(ROUTE) :]), query, 200)
    headers = request.headers
    uris, methods = (
        [headers.get(f"x-{whose}-{what}", "") for whose in ("original", "forwarded")] for what in ("uri", "method")
    )
    if any(all(said) and said[0] != said[1] for said in (uris, methods)):
        return None
    path, _, query = (uris[0] or uris[1] or "/").partition("#")[0].partition("?")
    # Who names the URI names the method.
    method = methods[0 if uris[0] else 1] or request.method
    return _Asked(method.upper(), edge_rules.looked_up(path.encode("latin-1")), query, 204)


def _cmcd(request: Request, query: str) -> dict[str, Value]:
    """From the argument, else from the headers, which the edge passes on with the others. {} for what cannot be read."""
    headers = [request.headers.get(name, "") for name in parser.HEADERS]
    utf8 = [header.encode("latin-1").decode(errors="replace") for header in headers]
    return parser.of_request(edge_rules.argument(query, parser.ARGUMENT), utf8)


def _pass(status: int, *, degraded: bool) -> Response:
    return Response(status_code=status, headers={"X-Pulsegate-Degraded": "1"} if degraded else None)


def _refusal(status: int, reason: str | None, rule: str | None = None, retry_at: int | None = None) -> Response:
    headers = {
        "X-Pulsegate-Reason": reason or "",
        "X-Pulsegate-Rule": rule or "",
        "X-Pulsegate-Retry-At": str(retry_at or ""),
    } | _REFUSED[status]
    return Response(status_code=status, headers={name: value for name, value in headers.items() if value})
