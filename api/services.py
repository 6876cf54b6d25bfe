"""What the routes need, built once by `api/app.py` and handed to each of them."""

from __future__ import annotations

from dataclasses import dataclass

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from api.http import Cors
from api.streams import Streams
from engine.ask import Asks
from engine.bad import BadEvents
from engine.clock import Clock
from engine.decisions import Decisions
from engine.errors import Forbidden, Unauthorized, Unavailable
from engine.keys import Keys
from engine.metrics import Metrics
from engine.outages import Announcer, Outage
from engine.plans import PlanFile
from engine.published import Published
from engine.quality.ask import Asker
from engine.revocations import Revocations
from engine.router import Router
from engine.settings import Settings
from engine.tokens import Claims, Tokens
from engine.visitors import Visitors


@dataclass(frozen=True, slots=True)
class Services:
    settings: Settings
    keys: Keys
    client: Redis | RedisCluster
    log: Redis | None
    """The log Redis: projections, event log. None if the sessions are on a cluster and no other server is named."""
    router: Router
    plans: PlanFile
    tokens: Tokens
    revocations: Revocations
    metrics: Metrics
    outage: Outage
    decisions: Decisions
    bad: BadEvents
    asks: Asks
    cors: Cors
    published: Published
    streams: Streams
    visitors: Visitors
    asker: Asker
    announcer: Announcer
    clock: Clock

    def player(self, token: str, *, grace_s: int = 0) -> Claims:
        """The claims of a player's token. Raises Unauthorized, or Forbidden for a service token."""
        claims = self.tokens.verify(token, grace_s=grace_s)
        if not claims.account:
            raise Forbidden("needs a player's token: sub names the account", code="account")
        return claims

    async def admitted(self, token: str, session: str, device: str = "") -> Claims:
        """Like `player`, but an admitted session's (or device's) token passes for a while after it has expired."""
        claims = self.player(token, grace_s=self.settings.token_grace_s)
        if self.tokens.expired(claims):
            try:
                running = await self.decisions.sessions(claims.account)
            except Unavailable:
                # Whether it is admitted cannot be known; a paying viewer is not punished for that.
                return claims
            if not any(item["session"] == session or (device and item["device"] == device) for item in running):
                raise Unauthorized("the token has expired", code="token_expired")
        return claims
