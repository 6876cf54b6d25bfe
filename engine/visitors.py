"""Who watches with what, from where: one event `client` when an API process first sees a session.

What heartbeats do not say, but their requests do: user agent, country, network. The address itself is never kept. A session is
forgotten after an hour and told of again, which the log sees only if something has changed, or a day has passed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

import orjson

from engine import scripts
from engine.decisions import Decision
from engine.errors import PulsegateError
from engine.keys import Keys
from engine.places import Places
from engine.scripts import Arg, Executor
from engine.settings import Settings
from engine.tracking import STATED, Good, Told, bodies, fate, triple

log = logging.getLogger(__name__)

TYPE = "client"
USER_AGENT_MAX = 512
_AGAIN_S = 3600.0
_MOST = 200_000
_UNDER_WAY_MAX = 64

Headers = Iterable[tuple[bytes, bytes]]


class Visitors:
    """One per API process. Whether a session is known to it is one look into `beating` (those with heartbeats of their own).

    It calls Redis beside the decisions: what nobody waits for takes no place from what somebody does. `now` is the scripts' clock.
    """

    def __init__(
        self, executor: Executor, keys: Keys, settings: Settings, places: Places, most: int = _MOST,
        clock: Callable[[], float] = time.monotonic, now: Callable[[], Arg] = lambda: "",
    ) -> None:  # fmt: skip
        self._executor, self._keys, self._settings, self._places = executor, keys, settings, places
        self._most, self._clock, self._now = most, clock, now
        self._track, self._tuning = scripts.load("track"), settings.tuning()
        # (account, session) -> when it was first seen, the oldest first.
        self.beating: dict[tuple[str, str], float] = {}
        self._reporting: dict[tuple[str, str], float] = {}
        self._under_way: set[asyncio.Task[None]] = set()

    def beats(self, account: str, session: str) -> bool:
        """Whether heartbeats of the session came to this process within the last hour."""
        return (account, session) in self.beating

    def beat(self, scope: MutableMapping[str, Any], account: str, session: str, decision: Decision) -> None:
        """A heartbeat of a session that is not in `beating`. `scope` is its request's. Never raises, and does not wait.

        What is refused shows no picture, and without Redis nothing can be told: the next heartbeat is the first then.
        """
        if decision["decision"] == "allow" and not decision["degraded"]:
            self._see(self.beating, scope, account, session)

    def report(self, scope: MutableMapping[str, Any], account: str, session: str) -> None:
        """A report of a session by CMCD; the same."""
        if (account, session) not in self._reporting:
            self._see(self._reporting, scope, account, session)

    def forget(self) -> None:
        """Those seen an hour ago, of what is too much the oldest. Called about once a second."""
        before = self._clock() - _AGAIN_S
        for seen in (self.beating, self._reporting):
            stale: list[tuple[str, str]] = []
            for key, at in seen.items():
                if at > before and len(seen) - len(stale) <= self._most:
                    break
                stale.append(key)
            for key in stale:
                del seen[key]

    async def close(self) -> None:
        """Waits for what is under way, a few seconds at most."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=3)

    def _see(
        self, seen: dict[tuple[str, str], float], scope: MutableMapping[str, Any], account: str, session: str
    ) -> None:
        # With too many under way, all the world comes back at once: there will be another heartbeat.
        if len(self._under_way) >= _UNDER_WAY_MAX:
            return
        seen[account, session] = self._clock()
        task = asyncio.get_running_loop().create_task(self._tell(scope, account, session))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _tell(self, scope: MutableMapping[str, Any], account: str, session: str) -> None:
        try:
            headers = scope["headers"]
            country, asn = self._places.find(address_of(headers, scope.get("client"), self._settings.proxies))
            said = {"user_agent": _user_agent(headers), "country": country, "asn": asn}
            data = orjson.dumps({name: text for name, text in said.items() if text})
            # Told again it says the same again: remembering each for a day would cost more than a session does.
            (body,) = bodies({"account": account, "session": session}, [Good(TYPE, "", data)])
            told = Told(session, STATED, triples=triple(*body))
            common = (self._now(), account, self._tuning)
            keys, args = told.call(self._keys.account(account), common, self._settings.outbox_high)
            fate(await self._executor.run(self._track, keys, args))
        except PulsegateError as error:
            log.debug("client", extra={"why": error.message})
        except Exception:
            log.exception("client")


def address_of(headers: Headers, peer: Any, proxies: int) -> str:
    """The first address that is not one of our `proxies`, counted from the nearest: whoever writes X-Forwarded-For himself
    stands before it. '' if there is none."""
    here = str(peer[0]) if peer else ""
    if proxies == 0:
        return here
    named = [
        part.strip()
        for name, value in headers
        if name == b"x-forwarded-for"
        for part in value.decode("latin-1").split(",")
        if part.strip()
    ]
    path = [*named, here]
    address = path[max(0, len(path) - 1 - proxies)]
    # Some proxies add the port.
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.partition(":")[0] if address.count(":") == 1 else address


def _user_agent(headers: Headers) -> str:
    for name, value in headers:
        if name == b"user-agent":
            text = value[: 4 * USER_AGENT_MAX].decode(errors="replace")
            return "".join(char if char.isprintable() else " " for char in text).strip()[:USER_AGENT_MAX]
    return ""
