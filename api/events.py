"""`POST /v1/events`: batches of tracking events. Each is judged by itself; what is rejected is kept with its reason."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from api.http import json_response, token_and_body
from api.services import Services
from engine import names, tracking
from engine.errors import BadRequest, Forbidden, Overloaded, Unavailable
from engine.tokens import Claims
from engine.tracking import STATED, EventBatch, Fate, Rejected
from engine.wire import check_printable, decode

ROUTE = "/v1/events"
_PIECE_BYTES = 64 * 1024
_batch = msgspec.json.Decoder(EventBatch)
_UNKNOWN = Fate([], "", 0, 0, {})


class Events:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._large = asyncio.Lock()

    async def post(self, request: Request) -> Response:
        settings = self._services.settings
        claims, body = await token_and_body(
            request, self._verified, settings.events_body_max_bytes, settings.body_max_bytes
        )
        if len(body) <= _PIECE_BYTES:
            return await self._take(claims, body)
        # Large ones one after another, and with pauses: whoever is next must not wait for all of them.
        async with self._large:
            return await self._take(claims, body)

    async def _take(self, claims: Claims, body: bytes) -> Response:
        services, settings = self._services, self._services.settings
        # Events are checked one by one, so that a bad one costs the others nothing.
        batch = decode(_batch, body, whole=False)
        check_printable(batch)
        names.check_session(batch.session)
        names.check_device(batch.device)
        if len(batch.events) > settings.events_max:
            raise BadRequest(f"events: at most {settings.events_max} at once", field="events")
        account = claims.account_or(batch.account)
        if not claims.account:
            services.decisions.quotas.check(account)
        stated = _stated(claims, batch)
        if claims.profiles is not None:
            stated["profile"] = await self._profile(claims, account, batch)
        good, bad = await _sorted(account, batch)
        fate = await self._append(account, batch.session, stated, good)
        accepted = sum(fate.flags)
        services.metrics.tracked(accepted, len(good) - accepted, len(bad))
        if bad:
            await services.bad.keep(account, batch.session, _envelope(stated, fate), bad)
        answer = {
            "accepted": accepted,
            "duplicates": len(good) - accepted,
            "rejected": [_refusal(item) for item in bad],
        }
        return json_response(answer, 202)

    def _verified(self, token: str) -> Claims:
        """Whose events these are; an account that may tell nothing now is refused before its body is read. Raises Unauthorized, Forbidden,
        Overloaded."""
        claims = self._services.tokens.verify(token, grace_s=self._services.settings.token_grace_s)
        if claims.account:
            self._services.decisions.quotas.check(claims.account)
        else:
            claims.require("signals")
        return claims

    async def _profile(self, claims: Claims, account: str, batch: EventBatch) -> str:
        """Whose events these are, where the token is not for all: by the session's record, if it is known. Raises BadRequest,
        Forbidden, Unavailable."""
        known = await self._services.decisions.track(account, [], batch.session)
        theirs = known.ident.get("profile", "")
        if known.ident.get("device") and not claims.reaches(theirs, backend=known.backend):
            raise Forbidden("the session is of another profile", code="other_profile", field="session")
        return claims.profile_or(batch.profile or theirs)

    async def _append(self, account: str, session: str, stated: dict[str, str], good: list[tracking.Good]) -> Fate:
        """Raises Unavailable and Overloaded, unless there is nothing to append."""
        fill = tuple(name for name in STATED if name not in stated)
        bodies = tracking.bodies({"account": account, "session": session} | stated, good)
        try:
            return await self._services.decisions.track(account, bodies, session, fill)
        except (Unavailable, Overloaded):
            if good:
                raise
            return _UNKNOWN


async def _sorted(account: str, batch: EventBatch) -> tuple[list[tracking.Good], list[Rejected]]:
    """As `tracking.sort`, with a pause after each piece."""
    good: list[tracking.Good] = []
    bad: list[Rejected] = []
    start = size = 0
    for end, item in enumerate(batch.events, 1):
        size += len(bytes(item))
        if size < _PIECE_BYTES and end < len(batch.events):
            continue
        some, others = tracking.sort(account, batch.session, batch.events[start:end], start)
        good += some
        bad += others
        start, size = end, 0
        if end < len(batch.events):
            await asyncio.sleep(0)
    return good, bad


def _stated(claims: Claims, batch: EventBatch) -> dict[str, str]:
    """What token and body say of the stream. Raises Forbidden for another device than the token's."""
    if claims.device and batch.device not in ("", claims.device):
        raise Forbidden("the token is for another device", code="other_device", field="device")
    said = {
        "profile": batch.profile, "device": claims.device or batch.device, "content": batch.content,
        "kind": claims.kind or batch.kind,
    }  # fmt: skip
    return {name: value for name, value in said.items() if value}


def _envelope(stated: dict[str, str], fate: Fate) -> dict[str, Any]:
    """What the events' envelope would have said."""
    who = {name: stated.get(name, fate.ident.get(name, "")) for name in STATED}
    return who | {"view": fate.view, "started_at": fate.started_at}


def _refusal(bad: Rejected) -> dict[str, Any]:
    """As the sender can find it: `event` becomes its place in the batch."""
    place = f"events[{bad.index}]"
    message = place + bad.message.removeprefix("event") if bad.message.startswith("event") else bad.message
    return {
        "index": bad.index,
        "error": {"code": bad.code, "message": message, "field": place + bad.field.removeprefix("event")},
    }
