"""Quotas: what one account may make stay in Redis, so that no token can fill it. Each API process counts for itself.

What is told (tracking events, reports, rejected events, request ids) is counted in bytes, and answered 429 beyond; so are starts
of views, each of which leaves a record, counters and rings of its content for a day and more. A heartbeat is decided
whatever its bytes: beyond the quota it is only not appended. An account has one bucket of each: full it holds the burst, and it
refills steadily; one that is overdrawn is refused until it is not. No honest household comes near.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import ceil

from engine.errors import AccountBusy, Overloaded, OverQuota
from engine.metrics import Metrics
from engine.outages import Outage
from engine.settings import Settings

FULL = "memory_high"
"""`code` of the error that is about the deployment."""
ENTRY = 256
"""Bytes that an entry costs beside its JSON: envelope, stream, digest."""
_ACCOUNTS_MAX = 50_000
_WINDOW_S = 10.0
_FULL_RETRY_S = 30


class Bucket:
    """A bucket for each account. In memory are those that are not full, the least used of them forgotten first."""

    def __init__(self, burst: float, per_s: float, clock: Callable[[], float], most: int = _ACCOUNTS_MAX) -> None:
        self._s_per_unit, self._window_s, self._clock, self._most = 1 / per_s, burst / per_s, clock, most
        self._full_at: dict[str, float] = {}
        """When each is full again, the least lately used first."""
        self.over: dict[str, float] = {}
        """Those that are overdrawn, and until when (s)."""

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, account: str, count: float) -> None:
        """Takes what was used, and be it more than there is."""
        now = self._clock()
        full_at = max(self._full_at.pop(account, now), now) + count * self._s_per_unit
        if len(self._full_at) >= self._most:
            gone = next(iter(self._full_at))
            del self._full_at[gone]
            self.over.pop(gone, None)
        self._full_at[account] = full_at
        if full_at - now > self._window_s:
            self.over[account] = full_at - self._window_s

    def wait_s(self, account: str) -> float:
        """Seconds until the account may go on; 0 if it may now."""
        until = self.over.get(account)
        if until is None:
            return 0.0
        left = until - self._clock()
        if left <= 0:
            del self.over[account]
        return max(0.0, left)


class Use:
    """Of one account, in these ten seconds: its calls to Redis that are under way, and the bytes of its heartbeats that were appended."""

    __slots__ = ("appended", "under_way")

    def __init__(self) -> None:
        self.under_way = self.appended = 0


class Quotas:
    """One per API process. `outage.full` says that Redis has little memory left."""

    def __init__(
        self, settings: Settings, metrics: Metrics, outage: Outage, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._metrics, self._outage, self._clock = metrics, outage, clock
        self._told = Bucket(settings.quota_bytes, settings.quota_bytes_per_s, clock)
        self.starts = Bucket(settings.quota_starts, settings.quota_starts_per_min / 60, clock)
        self._uses: dict[str, Use] = {}
        self.known = self._uses.get
        """What an account uses, if anything; else `use` it. Saves a heartbeat a call."""
        self._under_way_max = settings.account_inflight_max
        self._beats_max, self._beats_until = settings.quota_beats_bytes, clock() + _WINDOW_S

    # what is told

    def tell(self, account: str, count: int, *, decides: bool = False) -> None:
        """Something of so many bytes is to stay; what belongs to a decision also where memory is scarce. Raises Overloaded."""
        self.check(account, decides=decides)
        self._told.take(account, count)

    def check(self, account: str, *, decides: bool = False) -> None:
        """Raises Overloaded if the account may tell nothing now."""
        if self._outage.full and not decides:
            self.refused("memory")
            raise Overloaded("Redis has little memory left", retry_after_s=_FULL_RETRY_S, code=FULL)
        if wait := self._told.wait_s(account):
            self.refused("bytes")
            raise OverQuota("this account tells more than one may", retry_after_s=ceil(wait))

    def may_tell(self, account: str, count: int, *, decides: bool = False) -> bool:
        """Like `tell`, for what is left out rather than refused."""
        try:
            self.tell(account, count, decides=decides)
        except Overloaded:
            return False
        return True

    # what is under way, and heartbeats

    def use(self, account: str) -> Use:
        """What the account uses now."""
        use = self._uses.get(account)
        if use is None:
            use = self._uses[account] = Use()
        return use

    def check_busy(self, account: str) -> None:
        """Raises AccountBusy if the account has as much under way as it may: its calls must not fill the queue that all others wait in."""
        use = self._uses.get(account)
        if use is not None and use.under_way >= self._under_way_max:
            self._metrics.overloaded.inc()
            raise AccountBusy("too many calls of this account under way", field="account")

    def beat(self, use: Use, count: int) -> bool:
        """Whether a heartbeat of so many bytes may be appended."""
        use.appended += count
        if use.appended <= self._beats_max:
            return True
        if self.turn():
            use.appended = count
            return True
        self.refused("heartbeats")
        return False

    def turn(self) -> bool:
        """Begins the next ten seconds if these are over; whether they are. Calls that are under way then are not counted any more, which
        lets an account have twice as many for a moment, and nobody look at all accounts."""
        now = self._clock()
        if now < self._beats_until:
            return False
        self._beats_until = now + _WINDOW_S
        self._uses.clear()
        return True

    # starts

    def refuse_start(self, wait_s: float) -> OverQuota:
        """The error for a start that must wait."""
        self.refused("starts")
        return OverQuota("this account starts more views than one may", retry_after_s=ceil(wait_s))

    def refused(self, what: str) -> None:
        self._metrics.over_quota.labels(what).inc()
