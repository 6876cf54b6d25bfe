"""What several routes read of a request: identifiers, numbers, whose account it is about."""

from __future__ import annotations

from starlette.datastructures import QueryParams
from starlette.requests import Request

from api.http import bearer, read_body
from api.services import Services
from engine.errors import BadRequest
from engine.tokens import Claims
from engine.wire import AT_MAX, ID_MAX, check_ms


def identifier(name: str, value: str | None, *, required: bool = True) -> str:
    """Raises BadRequest; an empty value is one left out."""
    if not value:
        if required:
            raise BadRequest(f"{name} is required", field=name)
        return ""
    if len(value) > ID_MAX or not value.isprintable():
        raise BadRequest(f"{name} must be 1–{ID_MAX} printable characters", field=name)
    return value


def whole(query: QueryParams, name: str, default: int, low: int, high: int) -> int:
    """Raises BadRequest."""
    value = query.get(name)
    if value is None:
        return default
    if not (value.isascii() and value.isdigit() and len(value) <= 16 and low <= int(value) <= high):
        raise BadRequest(f"{name} must be a whole number from {low} to {high}", field=name)
    return int(value)


def moment(query: QueryParams, name: str, default: int, low: int = 0) -> int:
    """A time, ms since the epoch. Raises BadRequest, also for one that can only have been meant as seconds."""
    value = whole(query, name, default, low, AT_MAX)
    if name in query:
        check_ms(value, name)
    return value


def verified(services: Services, request: Request) -> Claims:
    """The claims of the bearer token. Raises Unauthorized."""
    authorization = request.headers.get("authorization")
    return services.tokens.verify(bearer(authorization.encode("latin-1") if authorization is not None else None))


def account_of(request: Request, claims: Claims, scope: str, *, required: bool = True) -> str:
    """The player's own account, or the one that a service token with this scope names in the query ('' if it need not)."""
    if not claims.account:
        claims.require(scope)
    named = identifier("account", request.query_params.get("account"), required=False)
    return claims.account_or(named) if required or named or claims.account else ""


def profile_of(request: Request, claims: Claims) -> str:
    """The profile that the query names, or the token's only one. Raises BadRequest, Forbidden."""
    return claims.profile_or(identifier("profile", request.query_params.get("profile"), required=False))


async def body_of(services: Services, request: Request) -> bytes:
    """Raises TooLarge."""
    length = request.headers.get("content-length")
    limit = services.settings.body_max_bytes
    return await read_body(request.receive, limit, length.encode("latin-1") if length else None)
