"""`POST /v1/events`: batches of tracking events. Each is judged by itself; what is rejected is kept with its reason."""

from __future__ import annotations

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
_batch = msgspec.json.Decoder(EventBatch)
_UNKNOWN = Fate([], "", 0, 0, {})


class Events:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def post(self, request: Request) -> Response:
        services, settings = self._services, self._services.settings
        claims, body = await token_and_body(
            request, self._verified, settings.events_body_max_bytes, settings.body_max_bytes
        )
        # Events are checked one by one, so that a bad one costs the others nothing.
        batch = decode(_batch, body, whole=False)
        check_printable(batch)
        names.check_session(batch.session)
        names.check_device(batch.device)
        if len(batch.events) > settings.events_max:
            raise BadRequest(f"events: at most {settings.events_max} at once", field="events")
        account = claims.account_or(batch.account)
        services.decisions.quotas.check(account)
        stated = _stated(claims, batch)
        if claims.profiles is not None:
            stated["profile"] = await self._profile(claims, account, batch)
        good, bad = tracking.sort(account, batch.session, batch.events)
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
        """Raises Unauthorized, Forbidden."""
        claims = self._services.tokens.verify(token, grace_s=self._services.settings.token_grace_s)
        if not claims.account:
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
