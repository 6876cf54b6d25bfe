"""`POST /v1/cmcd`: where stock players post their CMCD event reports (CTA-5004-A and -B).

Such a player can only be told to go on (204), to come again (429, 503) or to be silent for the session (410). It cannot get
another token into its URL, so a token that has run out or was revoked silences it, where others are answered 401.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, NamedTuple

from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope

from api.asking import identifier
from api.direct import Direct
from api.http import RawHeaders, bearer, read_body
from api.services import Services
from engine import names
from engine.cmcd.collect import Collector, Sender
from engine.cmcd.evidence import Stream
from engine.cmcd.parser import Bad, Parsed, parse_body
from engine.errors import BadRequest, Forbidden, Gone, Unauthorized, Unavailable
from engine.tokens import Claims
from engine.tracking import STATED, Rejected

ROUTE = "/v1/cmcd"
CONTENT_TYPES = ("application/cmcd", "text/cmcd", "application/cmcd+text", "text/plain")
"""Of -B, of -A, of some players; the last (or none) is what `sendBeacon` sends."""

_KNOWN_MAX, _KNOWN_BYTES = 20_000, 4_096
_SILENCES = frozenset(["token_expired", "token_revoked"])


class _Asked(NamedTuple):
    token: str
    sender: Sender
    wanted: bool
    """Whether the reports may be evidence."""


class Cmcd(Direct):
    path = ROUTE
    methods = ("POST",)
    headers: ClassVar[RawHeaders] = []
    status = 204

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._collector: Collector | None = None
        # A player's URL is the same for all its reports.
        self._known: dict[bytes, _Asked] = {}

    async def answer(self, scope: Scope, receive: Receive, authorization: bytes | None, length: bytes | None) -> bytes:
        services, settings = self.services, self.services.settings
        if not settings.cmcd:
            raise Gone("CMCD reports are not collected", code="cmcd_off")
        _check_type(scope["headers"])
        asked = self._asked(scope["query_string"], authorization)
        sender, claims = asked.sender, asked.sender.claims
        parsed = parse_body(await read_body(receive, settings.cmcd_body_max_bytes, length))
        evidence = await self._evidence(claims, asked.wanted)
        collector = self._collector = self._collector or Collector(services.decisions, services.visitors.beats)
        told = await collector.take(sender, parsed.reports, evidence)
        self._count(parsed, told.accepted, told.duplicates)
        if claims.account:
            for session in {report.text("sid") for report in parsed.reports}:
                services.visitors.report(scope, claims.account, session)
        if parsed.bad:
            stated = {name: getattr(sender.stated, name) for name in STATED}
            await services.bad.keep(sender.account, "", stated, [_rejected(bad) for bad in parsed.bad])
        return b""

    def _asked(self, query: bytes, authorization: bytes | None) -> _Asked:
        """Who asks, and what of. Raises Gone, Unauthorized, Forbidden, BadRequest."""
        known = self._known.get(query) if authorization is None else None
        if known is not None and self._verified(known.token) is known.sender.claims:
            return known
        said = QueryParams(query)
        token = bearer(authorization) if authorization is not None or not said.get("token") else said["token"]
        claims = self._verified(token)
        asked = _Asked(token, _sender(said, claims, token), _wanted(said))
        if authorization is None and len(query) <= _KNOWN_BYTES:
            if len(self._known) >= _KNOWN_MAX:
                del self._known[next(iter(self._known))]
            self._known[query] = asked
        return asked

    def _verified(self, token: str) -> Claims:
        """Raises Gone for a token that was good once, Unauthorized for what never was, Forbidden without the scope."""
        services = self.services
        try:
            claims = services.tokens.verify(token, grace_s=services.settings.token_grace_s)
        except Unauthorized as error:
            if error.code in _SILENCES:
                raise Gone(error.message, code=error.code, field="authorization") from None
            raise
        if not claims.account:
            claims.require("signals")
        return claims

    async def _evidence(self, claims: Claims, wanted: bool) -> Collection[str] | None:
        """The sessions whose reports are evidence; None: all. A token past its time keeps alive what runs, and starts nothing."""
        if not claims.account or not wanted:
            return ()
        if not self.services.tokens.expired(claims):
            return None
        try:
            return {item["session"] for item in await self.services.decisions.sessions(claims.account)}
        except Unavailable:
            return None

    def _count(self, parsed: Parsed, accepted: int, duplicates: int) -> None:
        metrics = self.services.metrics
        for fate, count in (("accepted", accepted), ("duplicate", duplicates), ("newer", parsed.newer)):
            if count:
                metrics.cmcd.labels(fate).inc(count)
        for bad in parsed.bad:
            metrics.cmcd.labels(bad.reason).inc()
        for key, count in parsed.dropped.items():
            metrics.cmcd_keys.labels(key).inc(count)


def _check_type(headers: RawHeaders) -> None:
    """Raises BadRequest."""
    for name, value in headers:
        if name == b"content-type":
            kind = value.partition(b";")[0].strip().lower().decode("latin-1")
            if kind and kind not in CONTENT_TYPES:
                raise BadRequest(f"content-type must be one of {', '.join(CONTENT_TYPES)}", field="content-type")


def _sender(query: QueryParams, claims: Claims, token: str) -> Sender:
    """What token and URL say. Raises BadRequest, Forbidden."""
    account = claims.account_or(identifier("account", query.get("account"), required=False))
    kind = query.get("kind", "")
    if kind not in ("", "live", "vod"):
        raise BadRequest("kind must be live or vod", field="kind")
    said = ("device", "device_type", "provider", "profile", "target")
    device, device_type, provider, profile, target = (
        identifier(name, query.get(name), required=False) for name in said
    )
    names.check_device(device)
    if claims.device and device not in ("", claims.device):
        raise Forbidden("the token is for another device", code="other_device", field="device")
    stated = Stream(
        kind=claims.kind or kind, device=claims.device or device, profile=claims.profile_or(profile),
        device_type=claims.device_type or device_type, provider=claims.provider or provider,
    )  # fmt: skip
    # As at the edge: where nothing names a device, one token is one device, whatever it plays.
    return Sender(claims, account, stated, names.token_device(token), target)


def _wanted(query: QueryParams) -> bool:
    """Raises BadRequest."""
    evidence = query.get("evidence", "")
    if evidence not in ("", "yes", "no"):
        raise BadRequest("evidence must be yes or no", field="evidence")
    return evidence != "no"


def _rejected(bad: Bad) -> Rejected:
    return Rejected(bad.index, f"cmcd_{bad.reason}", f"line {bad.index + 1}: {bad.message}", "event", bad.raw)
