"""The decision: turns a validated request into one script call, and its reply into the answer.

`Decisions` is what `api/` talks to. Every method answers within the Redis timeout; when session Redis is away it
answers `allow` with `degraded: true` (a paying viewer is not punished for our outage) and spools the heartbeat.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from time import monotonic, perf_counter, time
from typing import Any

import orjson

from engine import names, scripts, tracking, viewers
from engine.completion import Thresholds, completed_point
from engine.errors import AccountBusy, BadRequest, Conflict, Forbidden, NotFound, Overloaded, OverQuota, Unavailable
from engine.keys import Keys
from engine.metrics import Metrics
from engine.outages import Outage
from engine.plans import Matched, PlanFile
from engine.quotas import ENTRY, Quotas, Use
from engine.scripts import Arg, Executor
from engine.settings import Settings
from engine.spool import Spool
from engine.tokens import Claims
from engine.wire import RANKS, STATE_NAMES, STATES, Heartbeat, Signal, Stop, Takeover

log = logging.getLogger(__name__)

Decision = dict[str, Any]

SPOOLED = ("account", "plan", "max_streams", "device", "device_type", "provider", "kind")
"""What is kept of the token with a spooled heartbeat, beside its profiles."""

REMEMBERED = 512
"""Bytes of an answer to a request id, about."""
_UNREAL_S = 5.0
_TURNS, _TURN_S = 50, 0.02

ALLOW, BLOCK, UNKNOWN_TARGET, OTHER_PROFILE = range(4)
"""Reply codes, shared with lua/lib/reply.lua."""


class Decisions:
    """One per process. `now` gives the scripts' clock: '' (the server's own) outside tests."""

    def __init__(
        self, executor: Executor, keys: Keys, settings: Settings, plans: PlanFile, metrics: Metrics, outage: Outage,
        spool: Spool, now: Callable[[], Arg] = lambda: "", clock: Callable[[], float] = monotonic,
    ) -> None:  # fmt: skip
        self._executor = executor
        self._keys = keys
        # Who beats is known for as long as its token; to make an account's keys anew each time costs a microsecond.
        self._account = lru_cache(maxsize=max(1, settings.token_cache))(keys.account)
        self._settings = settings
        self._plans = plans
        self._metrics = metrics
        self._outage = outage
        self._spool = spool
        self._now = now
        self._tuning = (0, 0, settings.tuning())
        self._thresholds = Thresholds.of(settings)
        self.quotas = Quotas(settings, metrics, outage, clock)
        self._inflight = 0
        self._unreal_at = -_UNREAL_S
        """When a decision was last given without Redis (s, monotonic), if none was given by it since."""
        self._lifetimes = {
            "token": settings.token_ms, "licence": settings.licence_ms, "manifest": settings.manifest_ms,
            "segment": settings.segment_ms,
        }  # fmt: skip
        self._heartbeat = scripts.load("heartbeat")
        self._check = scripts.load("check")
        self._stop = scripts.load("stop")
        self._takeover = scripts.load("takeover")
        self._signal = scripts.load("signal")
        self._sessions = scripts.load("sessions")
        self._remember = scripts.load("remembered")
        self._running = scripts.load("running")
        self._track = scripts.load("track")
        self._viewers = scripts.load("viewers")
        self._counting: set[asyncio.Future[Any]] = set()

    # the calls

    async def heartbeat(
        self, claims: Claims, beat: Heartbeat, body: bytes, events: list[tuple[str, bytes]], at: Arg = ""
    ) -> Decision:
        """A player's heartbeat. `body` is its JSON as it came; `at` (ms) is when it arrived, if it was spooled.

        Raises Overloaded, of an account that starts too many views also with the code `quota`.
        """
        if at == "" and claims.account in self.quotas.starts.over:
            await self._check_start(claims.account, beat.session, beat.device, beat.content)
        keys, args, interval = self._heartbeat_call(claims, beat, body, events, at, self.quotas.use(claims.account))
        try:
            reply = await self._run(self._heartbeat, keys, args)
        except Unavailable:
            if at == "":
                known = {name: getattr(claims, name) for name in SPOOLED}
                known["profiles"] = None if claims.profiles is None else sorted(claims.profiles)
                self._spool.put({"at": int(time() * 1000), "claims": known, "body": body.decode()})
            return self._degraded(beat.session, claims, interval)
        if at == "":
            self._count_viewer(claims.account, beat.content, reply)
            self._count_start(claims.account, reply)
        return self._decision(beat.session, claims, reply, interval, beat.seq)

    def submit(self, claims: Claims, beat: Heartbeat, body: bytes, tell: Callable[[Decision | None], None]) -> bool:
        """A heartbeat without events, without a task that waits: `tell` is called with its decision, or with None where only
        `heartbeat` can give one. False (and `tell` is never called) if that is known now. Raises PulsegateError."""
        account, quotas = claims.account, self.quotas
        if self._inflight >= self._settings.inflight_max:
            return False
        if account in quotas.starts.over:
            return False
        use = quotas.known(account) or quotas.use(account)
        keys, args, interval = self._heartbeat_call(claims, beat, body, [], "", use)
        if not self._executor.submit(self._heartbeat, keys, args, _Submitted(self, claims, beat, interval, use, tell)):
            return False
        self._inflight += 1
        use.under_way += 1
        return True

    def _heartbeat_call(
        self, claims: Claims, beat: Heartbeat, body: bytes, events: list[tuple[str, bytes]], at: Arg, use: Use
    ) -> tuple[tuple[str, ...], tuple[Arg, ...], int]:
        """(keys, arguments, the interval to promise in ms) of a heartbeat's script call."""
        account = claims.account
        device, profile = self._device(claims, beat.device), beat.profile
        if claims.profiles is not None:
            profile = claims.profile_or(profile)
        kind, provider, device_type = (
            claims.kind or beat.kind,
            claims.provider or beat.provider,
            claims.device_type or beat.device_type,
        )
        matched = self._match(claims, kind, provider, device_type, beat.content)
        k = self._account(account)
        stretch = self._stretch()
        interval = int(self._settings.interval_ms * stretch)
        common = orjson.dumps({
            "account": account, "profile": profile, "device": device, "session": beat.session,
            "content": beat.content, "kind": kind, "v": 1,
        })[1:-1] + b',"data":'  # fmt: skip
        written = common + body + b"}"
        count = len(written)
        extra: list[Arg] = []
        for name, data in events:
            extra += (name, common + data + b"}")
            count += len(common) + len(data) + ENTRY
        if at == "" and not self.quotas.beat(use, count):
            written, extra = b"", []
        elif self._outage.thinned(k.base):
            written, extra = b"", [] if self._outage.full else extra
        length, completed = "", ""
        if kind != "live" and (beat.duration or beat.credits):
            length = f"\t{beat.duration:.0f}" if beat.duration and beat.duration >= 1 else ""
            completed = self._completed(beat)
        args = (
            *self._common(account),
            beat.session, f"{device}\t{beat.content}\t{kind}\t{device_type}\t{provider}\t{profile}\t{matched.held}{length}",
            beat.seq, STATES[beat.state], "" if beat.position is None else int(beat.position * 1000), "" if stretch == 1 else interval,
            int(self._settings.lifetime_ms * stretch), "" if beat.rate == 1 else beat.rate,
            matched.policy if claims.profiles is None else self._policy(claims, matched), at, written, completed, *extra,
        )  # fmt: skip
        return (k.leases, k.deadlines, k.outbox), args, interval

    async def check(
        self, claims: Claims, session: str, device: str, content: str, kind: str, attributes: dict[str, str]
    ) -> Decision:
        """What a heartbeat would be answered now; reads only. Raises Forbidden for a session of another profile than the token's."""
        device = self._device(claims, device)
        attributes = attributes | {"profile": claims.profile_or(attributes.get("profile", ""))}
        ident, matched = self._ident(claims, device, content, kind, attributes)
        k = self._account(claims.account)
        args = (*self._common(claims.account), session, ident, self._policy(claims, matched))
        try:
            reply = await self._run(self._check, (k.leases, k.deadlines, k.outbox), args)
        except Unavailable:
            return self._degraded(session, claims, self._settings.interval_ms)
        return self._decision(session, claims, reply, self._settings.interval_ms)

    async def stop(self, claims: Claims, session: str, stop: Stop) -> bool:
        """Ends the session's view and frees its slots; whether there was one. Raises Forbidden for a session of another profile than
        the token's, Unavailable."""
        account = claims.account_or(stop.account)
        k = self._account(account)
        args = (
            *self._common(account),
            session,
            "" if stop.seq is None else stop.seq,
            stop.request_id,
            self._settings.request_ttl_ms,
            claims.profiles_said,
        )
        reply = await self._run(self._stop, (k.leases, k.deadlines, k.outbox, k.request("stop", stop.request_id)), args)
        if reply[0] == OTHER_PROFILE:
            raise _other_profile("session")
        return bool(reply[0])

    async def takeover(self, claims: Claims, session: str, ask: Takeover) -> Decision:
        """Stops the stream the viewer chose and starts this one. Raises Conflict, Forbidden, NotFound, Unavailable."""
        account = claims.account_or(ask.account)
        k = self._account(account)
        if wait := self.quotas.starts.wait_s(account):
            raise self.quotas.refuse_start(wait)
        if ask.request_id:
            self.quotas.tell(account, REMEMBERED, decides=True)
        ident, matched = await self._takeover_stream(claims, account, session, ask)
        s = self._settings
        args = (
            *self._common(account), session, ident, ask.stop, s.interval_ms, s.lifetime_ms, self._policy(claims, matched), ask.request_id,
            s.request_ttl_ms,
        )  # fmt: skip
        keys = (k.leases, k.deadlines, k.outbox, k.request("takeover", ask.request_id), k.takeovers)
        reply = await self._run(self._takeover, keys, args)
        if reply[0] == UNKNOWN_TARGET:
            raise NotFound("no such running session", code="unknown_session", field="stop")
        self._count_viewer(account, "", reply)
        self._count_start(account, reply)
        return self._decision(session, claims, reply, s.interval_ms)

    async def signal(self, signal: Signal, data: bytes, claims: Claims | None = None) -> Decision:
        """Evidence from the backend. `claims` are those of the player's token, when the evidence came with one."""
        device = signal.device
        attributes = {"provider": signal.provider, "device_type": signal.device_type, "profile": signal.profile}
        named = claims or Claims(account=signal.account, plan=signal.plan, max_streams=signal.max_streams)
        ident, matched = self._ident(named, device, signal.content, signal.kind, attributes)
        k = self._account(signal.account)
        born = names.backend_session(device, signal.content)
        if signal.content and signal.account in self.quotas.starts.over:
            try:
                await self._check_start(signal.account, signal.session, device, signal.content)
            except OverQuota as error:
                # A block, and no error: it stands among the answers to other accounts' signals.
                return self._too_many(signal.session or born, named, error)
        # A backend's decision is never refused for want of room: without it the answer is given, but not remembered.
        request_id = signal.request_id
        if request_id and not self.quotas.may_tell(signal.account, REMEMBERED, decides=True):
            request_id = ""
        lifetime = int(signal.ttl_s * 1000) if signal.ttl_s else self._lifetimes[signal.evidence]
        who = orjson.dumps({"account": signal.account, "profile": signal.profile, "device": device})[1:-1]
        what = {"content": signal.content, "kind": named.kind or signal.kind, "v": 1}
        body = orjson.dumps(what)[1:-1] + b',"data":' + data + b"}"
        use = self.quotas.use(signal.account)
        written = self.quotas.beat(use, len(who) + len(body)) and not self._outage.thinned(k.base)
        args = (
            *self._common(signal.account), signal.session, born, ident, RANKS[signal.evidence], lifetime,
            "" if signal.at is None else signal.at, matched.policy, self._settings.unmatched,
            who, body if written else b"", request_id, self._settings.request_ttl_ms,
        )  # fmt: skip
        keys = (k.leases, k.deadlines, k.outbox, k.request("signal", signal.request_id))
        try:
            reply = await self._run(self._signal, keys, args)
        except Unavailable:
            return self._degraded(signal.session or born, named, self._settings.interval_ms)
        self._count_viewer(signal.account, signal.content, reply)
        self._count_start(signal.account, reply)
        return self._decision(signal.session or born, named, reply, self._settings.interval_ms)

    async def signals(self, signals: Sequence[tuple[Signal, bytes]]) -> list[Decision]:
        """Several at once, answered in their order; those of one account one after another. They wait while it has too much under way
        of its own, for about a second, and are refused then: nobody else's signals may suffer for that."""
        answers: list[Decision] = [{}] * len(signals)
        of: dict[str, list[int]] = {}
        for place, (signal, _) in enumerate(signals):
            of.setdefault(signal.account, []).append(place)

        async def tell(places: list[int]) -> None:
            turns = _TURNS
            for place in places:
                signal, data = signals[place]
                while not answers[place]:
                    try:
                        answers[place] = await self.signal(signal, data)
                    except AccountBusy as error:
                        if turns:
                            turns -= 1
                            await asyncio.sleep(_TURN_S)
                        else:
                            answers[place] = self._too_many(signal.session, Claims(account=signal.account), error)

        await asyncio.gather(*(tell(places) for places in of.values()))
        return answers

    async def sessions(self, account: str) -> list[dict[str, Any]]:
        """The account's running sessions, longest running first. Raises Unavailable."""
        k = self._account(account)
        items = orjson.loads(await self._run(self._sessions, (k.leases, k.deadlines), self._common(account)))
        for item in items:
            item["state"] = STATE_NAMES[item["state"]]
            item["paused_at"] = item["paused_at"] or None
            item["proven_until"] = item["proven_until"] or None
            item["rules"] = list(item["rules"])  # Lua writes an empty list as {}
            item["device_type"], item["position"] = item.get("device_type"), item.get("position")
            item["seq"] = item["seq"] if item["seq"] >= 0 else None
            item["yields_at"] = int(item["yields_at"])
            item["account"] = account
        return list(items)

    async def record(
        self, account: str, events: Sequence[tuple[str, str, bytes]], session: str = ""
    ) -> tuple[list[int], str]:
        """Appends events (type, event_id or '', JSON from "account" on), each `event_id` once within a day or two.

        Returns what became of each (1 appended, 0 duplicate) and the outbox id of the last one appended, or ''.
        Raises Unavailable, and Overloaded while the outbox is above `outbox_high` or the account above its quota.
        """
        fate = await self.track(account, [(*event, b"") for event in events], session)
        return fate.flags, fate.last

    async def track(
        self, account: str, events: Sequence[tracking.Body], session: str = "", fill: tuple[str, ...] = ()
    ) -> tracking.Fate:
        """Like `record`; `fill` names the envelope's fields that the session's record knows. No events: only looks."""
        triples = tuple(arg for event in events for arg in tracking.triple(*event))
        if triples:
            self.quotas.tell(account, sum(ENTRY + len(event[2]) for event in events))
        told = tracking.Told(session, fill, triples=triples)
        keys, args = told.call(self._account(account), self._common(account), self._settings.outbox_high)
        reply = await self._run(self._track, keys, args)
        self._metrics.overloaded.inc(1 if reply[0] else 0)
        return tracking.fate(reply)

    async def restore(self, event: str) -> bool:
        """Appends an event that once found its outbox full, as it is; False while there is no room. Raises Unavailable."""
        told = tracking.Told(triples=tracking.whole(event.encode()))
        account = str(orjson.loads(event)["account"])
        keys, args = told.call(self._account(account), self._common(account), self._settings.outbox_high)
        try:
            tracking.fate(await self._run(self._track, keys, args))
        except Overloaded:
            return False
        return True

    @property
    def unreal(self) -> bool:
        """Whether decisions of the last few seconds were given without Redis, and none by it since."""
        return monotonic() - self._unreal_at < _UNREAL_S

    async def close(self) -> None:
        """Waits for what was sent without waiting for it."""
        if self._counting:
            await asyncio.wait(self._counting)

    # the parts

    def _common(self, account: str) -> tuple[Arg, ...]:
        began, ended, tuning = self._tuning
        outage = self._outage
        if began != outage.began or ended != outage.ended:
            tuning = self._settings.tuning(outage.began, outage.ended)
            self._tuning = (outage.began, outage.ended, tuning)
        return self._now(), account, tuning

    async def _run(self, script: scripts.Script, keys: tuple[str, ...], args: tuple[Arg, ...]) -> Any:
        if self._inflight >= self._settings.inflight_max:
            self._metrics.overloaded.inc()
            raise Overloaded("too many decisions under way")
        account = str(args[1])
        self.quotas.check_busy(account)
        use = self.quotas.use(account)
        self._inflight += 1
        use.under_way += 1
        started = perf_counter()
        try:
            return await self._executor.run(script, keys, args)
        finally:
            self._inflight -= 1
            use.under_way -= 1
            self._metrics.redis_took(perf_counter() - started)

    def _count_viewer(self, account: str, content: str, reply: list[Any] | int) -> None:
        """Where the reply says so, counts the account among a content's distinct viewers, without waiting for it: one that is
        lost with Redis is made up for five minutes later."""
        if isinstance(reply, int):
            if reply >= 0:
                return
        elif len(reply) > 5 and reply[5] and reply[0] == ALLOW:
            content = reply[5].decode()
        else:
            return
        now = int(self._now() or time() * 1000)
        call = self._executor.run(self._viewers, viewers.marked(self._keys, content, now), (account, *viewers.KEEP_MS))
        task = asyncio.ensure_future(call)
        self._counting.add(task)
        task.add_done_callback(self._counted)

    def _count_start(self, account: str, reply: list[Any] | int) -> None:
        """A view that began, or was refused for the first time, leaves something behind; the reply tells it from what goes on."""
        if not isinstance(reply, int) and not reply[3] and len(reply) > 5 and reply[5]:
            self.quotas.starts.take(account, 1)

    async def _check_start(self, account: str, session: str, device: str, content: str) -> None:
        """What runs goes on, whatever the account starts beside it. Raises Overloaded."""
        wait = self.quotas.starts.wait_s(account)
        if not wait:
            return
        try:
            args = (*self._common(account), session, device, content)
            if await self._run(self._running, (self._account(account).leases,), args):
                return
        except Unavailable:
            return
        raise self.quotas.refuse_start(wait)

    def _counted(self, task: asyncio.Future[Any]) -> None:
        self._counting.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, Unavailable | Overloaded):
            log.debug("viewer", extra={"why": error.message})
        else:
            log.error("viewer", exc_info=error)

    def _stretch(self) -> float:
        """Under load players are asked to come less often, and their leases live longer to match."""
        busy = self._inflight / self._settings.inflight_max
        return 1.0 if busy < 0.5 else 2.0 if busy < 0.8 else 3.0

    def _completed(self, beat: Heartbeat) -> str:
        """'1' if the beat's position completes its title, as the script wants it."""
        if beat.position is None or (
            not beat.credits and beat.position < self._thresholds.completed_least_ratio * (beat.duration or 0)
        ):
            return ""  # as nearly always
        point = completed_point(beat.duration, beat.credits, self._thresholds)
        return "1" if point is not None and beat.position >= point else ""

    @staticmethod
    def _device(claims: Claims, named: str) -> str:
        if claims.device:
            if named and named != claims.device:
                raise Forbidden("the token is for another device", code="other_device", field="device")
            return claims.device
        if not named:
            raise BadRequest("device is required where the token names none", field="device")
        return named

    @staticmethod
    def _policy(claims: Claims, matched: Matched) -> str:
        """The policy as scripts want it: with the token's profiles, if it names any."""
        return matched.policy if claims.profiles is None else f"{matched.policy}\n{claims.profiles_said}"

    def _match(self, claims: Claims, kind: str, provider: str, device_type: str, content: str) -> Matched:
        matched = self._plans.current.get(claims.plan).match(kind, provider, device_type, content, claims.max_streams)
        for attribute in matched.unstated:
            self._metrics.unstated.labels(attribute).inc()
        return matched

    def _ident(
        self, claims: Claims, device: str, content: str, kind: str, attributes: dict[str, str]
    ) -> tuple[str, Matched]:
        kind, profile = claims.kind or kind, attributes.get("profile", "")
        provider = claims.provider or attributes.get("provider", "")
        device_type = claims.device_type or attributes.get("device_type", "")
        matched = self._match(claims, kind, provider, device_type, content)
        return f"{device}\t{content}\t{kind}\t{device_type}\t{provider}\t{profile}\t{matched.held}", matched

    async def _takeover_stream(self, claims: Claims, account: str, session: str, ask: Takeover) -> tuple[str, Matched]:
        """Who asks: as the body says, else as the session was last refused or seen."""
        seen = {} if ask.content else await self._remembered(account, session)
        device, content, kind = (
            ask.device or seen.get("device", ""),
            ask.content or seen.get("content", ""),
            ask.kind or seen.get("kind", ""),
        )
        if not content or not (device or claims.device):
            raise Conflict(
                "the session was never seen: name device, content and kind", code="unknown_session", field="session"
            )
        attributes = {
            "provider": ask.provider or seen.get("provider", ""), "device_type": ask.device_type or seen.get("device_type", ""),
            "profile": claims.profile_or(ask.profile or seen.get("profile", "")),
        }  # fmt: skip
        return self._ident(claims, self._device(claims, device), content, kind, attributes)

    async def _remembered(self, account: str, session: str) -> dict[str, str]:
        k = self._account(account)
        args = (*self._common(account), session)
        text = await self._run(self._remember, (k.leases,), args)
        names = ("device", "content", "kind", "device_type", "provider", "profile")
        return dict(zip(names, text.decode().split("\t"), strict=False)) if text else {}

    # answers

    def _decision(self, session: str, claims: Claims, reply: list[Any] | int, interval: int, seq: int = -1) -> Decision:
        self._unreal_at = -_UNREAL_S
        if isinstance(reply, int):
            code, expires, last_seq, duplicate, detail = ALLOW, abs(reply), seq, 0, b""
        else:
            code, expires, last_seq, duplicate, detail, *_ = reply
            if code == OTHER_PROFILE:
                raise _other_profile("session")
        allowed = code == ALLOW
        if allowed and not detail:
            self._metrics.allowed()
            return {
                "decision": "allow", "session": session, "reason": None, "rule": None, "limit": None, "by": None,
                "lease_expires_at": expires or None, "next_heartbeat_ms": interval, "retry_at": None, "conflicts": [],
                "duplicate": duplicate == 1, "last_seq": last_seq if last_seq >= 0 else None,
                "token_expires_at": claims.expires_at or None, "degraded": False,
            }  # fmt: skip
        said: dict[str, Any] = orjson.loads(detail) if detail else {}
        rule = said.get("rule") or None
        retry_at, conflicts = said.get("retry_at"), said.get("conflicts") or []
        for conflict in conflicts:
            conflict.setdefault("device_type", None)
            if not claims.reaches(conflict.pop("profile", "")):
                conflict["content"] = None
        self._metrics.decided(
            "allow" if allowed else "block", said.get("reason") or "", rule or "", said.get("ended", ())
        )
        return {
            "decision": "allow" if allowed else "block",
            "session": session,
            "reason": said.get("reason"),
            "rule": rule,
            "limit": said.get("limit"),
            "by": said.get("by") or None,
            "lease_expires_at": expires or None,
            "next_heartbeat_ms": interval,
            "retry_at": int(retry_at) if retry_at else None,
            "conflicts": conflicts,
            "duplicate": duplicate == 1,
            "last_seq": last_seq if last_seq >= 0 else None,
            "token_expires_at": claims.expires_at or None,
            "degraded": False,
        }

    def _too_many(self, session: str, claims: Claims, why: AccountBusy) -> Decision:
        """The answer to a backend about an account that asks for more, or starts more views, than one may."""
        self._metrics.decided("block", why.code, "", ())
        return self._unasked(session, claims, self._settings.interval_ms) | {
            "decision": "block", "reason": why.code, "retry_at": int(self._now() or time() * 1000) + why.retry_after_s * 1000,
        }  # fmt: skip

    def _degraded(self, session: str, claims: Claims, interval: int) -> Decision:
        self._metrics.decided("degraded", "", "", ())
        self._unreal_at = monotonic()
        return self._unasked(session, claims, interval) | {"degraded": True}

    @staticmethod
    def _unasked(session: str, claims: Claims, interval: int) -> Decision:
        """What is said where no script was asked."""
        return {
            "decision": "allow", "session": session, "reason": None, "rule": None, "limit": None, "by": None,
            "lease_expires_at": None, "next_heartbeat_ms": interval, "retry_at": None, "conflicts": [], "duplicate": False,
            "last_seq": None, "token_expires_at": claims.expires_at or None, "degraded": False,
        }  # fmt: skip


class _Submitted:
    """Takes the reply to a submitted heartbeat in place of a future."""

    __slots__ = ("_beat", "_claims", "_decisions", "_interval", "_started", "_tell", "_use")

    def __init__(
        self, decisions: Decisions, claims: Claims, beat: Heartbeat, interval: int, use: Use, tell: Callable[[Decision | None], None]
    ) -> None:  # fmt: skip
        self._decisions, self._claims, self._beat, self._interval = decisions, claims, beat, interval
        self._use, self._tell = use, tell
        self._started = perf_counter()

    def done(self) -> bool:
        return False

    def set_result(self, reply: Any) -> None:
        decisions, beat, claims = self._decisions, self._beat, self._claims
        decisions._inflight -= 1
        self._use.under_way -= 1
        decisions._metrics.redis_took(perf_counter() - self._started)
        decision = None
        # Nothing may be raised to the connection that serves all: asked again, `heartbeat` says what is wrong.
        try:
            if type(reply) is int:  # nearly always
                if reply < 0:
                    decisions._count_viewer(claims.account, beat.content, reply)
                decision = decisions._decision(beat.session, claims, reply, self._interval, beat.seq)
            elif isinstance(reply, list) and reply[0] != OTHER_PROFILE:
                decisions._count_viewer(claims.account, beat.content, reply)
                decisions._count_start(claims.account, reply)
                decision = decisions._decision(beat.session, claims, reply, self._interval, beat.seq)
        except Exception:
            log.exception("reply")
        self._tell(decision)

    def set_exception(self, error: BaseException) -> None:
        self.set_result(error)


def _other_profile(field: str) -> Forbidden:
    return Forbidden("the session is of a profile that the token is not for", code="other_profile", field=field)
