"""The concurrency rules in plain Python: one account, read from the design (section 6) and not from the scripts.

`Account` answers what the engine must answer and logs the life-cycle events that the engine must append. It knows no
Redis, no slots and no sweep lag: a session's view is *running* until something ends it, and holds its slot while its
lease is *alive*. Times are ms. What the design leaves open is decided here as in docs and scripts, marked "reading:".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum

INTERVAL, LIFETIME = 10_000, 30_000
STALE = 1.5
PAUSED_KEEP, PAUSED_SILENT, PAUSED_END = 300_000, 60_000, 1_800_000
STICKY, REOPEN, KEEP = 1_800_000, 1_800_000, 1_800_000
GUARD, LEFT_WITHIN, STRAGGLE, UNPROVEN = 60_000, 60_000, 5_000, 120_000
RIDES = 2 * INTERVAL
SHARED_MOST = 600_000
TAKEOVERS = 10

EVIDENCE = {"token": (1, 600_000), "licence": (2, 600_000), "manifest": (3, 30_000), "segment": (4, 30_000)}
"""Kind → how fine it is (a heartbeat is as fine as a segment) and its lifetime."""
FINEST = 4

LEFT = ("stopped", "superseded", "error")
REMOVED = ("evicted", "displaced", "takeover")
REOPENS = ("timeout", "paused_timeout", "no_progress", "displaced")


class UnknownTarget(Exception):
    """The session a takeover names is not running."""


class Phase(Enum):
    """RUNNING: has a view. RIDING: shows evidence next to its device's player, no slot. ENDED. REFUSED: a note only."""

    RUNNING, RIDING, ENDED, REFUSED = range(4)


@dataclass(frozen=True)
class Rule:
    name: str
    limit: int
    kind: str = ""
    unit: str = "device"


@dataclass(frozen=True)
class Plan:
    rules: tuple[Rule, ...]
    at_limit: str = "deny_new"
    require_evidence: bool = False

    def matching(self, kind: str) -> tuple[Rule, ...]:
        matching = (rule for rule in self.rules if not rule.kind or not kind or rule.kind == kind)
        return tuple(sorted(matching, key=lambda rule: rule.limit))  # narrow first: fewer have to go


@dataclass
class Session:
    """A session as the account remembers it, whatever its phase."""

    id: str
    device: str
    content: str
    kind: str
    phase: Phase
    rules: tuple[str, ...] = ()
    player: bool = True
    """A player has spoken for it; False: born of backend evidence."""
    beaten: bool = False
    seq: int = -1
    seen: int = 0
    lifetime: int = 0
    promised: int = INTERVAL
    finest: int = 0
    paused_at: int | None = None
    said_paused: bool = False
    position: float | None = None
    still_since: int | None = None
    """Since when it beats without its position moving."""
    completed: bool = False
    held_since: int = 0
    started: int = 0
    proven_until: int | None = None
    view: int = 0
    revision: int = 0
    ended_at: int = 0
    reason: str = ""
    by: str = ""
    ended_rule: str = ""
    noted: str = ""
    """Rule or reason of the refusal it was last told; the `block` event comes when this changes."""
    left: str = ""
    left_at: int = 0
    free: bool = True
    """Whether the account could afford its riding when it was last seen."""
    fetched: int = 0
    """Latest evidence for it after its device had left it."""

    @property
    def expires(self) -> int:
        return self.seen + self.lifetime

    @property
    def yields_at(self) -> int:
        """When somebody who asks may have the slot."""
        if self.paused_at is not None:
            return min(self.paused_at + PAUSED_KEEP, self.seen + PAUSED_SILENT)
        if not self.beaten:  # reading: evidence promised no interval, so it cannot be late
            return self.expires
        return min(self.expires, self.seen + int(STALE * self.promised))

    @property
    def due(self) -> int:
        """When the sweep must look at it."""
        if self.phase is Phase.RUNNING:
            return self.expires
        return self.seen + LEFT_WITHIN if self.phase is Phase.RIDING else self.ended_at + KEEP


@dataclass
class Ask:
    """One request, and in whose place it would come."""

    session: str
    device: str
    content: str
    kind: str
    plan: Plan
    player: bool
    at: int
    seq: int = 0
    alone: bool = False
    """May not take the place of its device's session."""
    proven_until: int | None = None
    adopts: Session | None = None
    supersedes: Session | None = None
    heir_of: Session | None = None
    replaces: tuple[str, ...] = ()
    paused_since: int | None = None
    """Whatever ended its view, a pause that goes on is the same pause."""
    since: int | None = None
    """When its device came back to what it had left."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        return self.plan.matching(self.kind)


@dataclass
class Answer:
    decision: str = "allow"
    reason: str | None = None
    rule: str | None = None
    limit: int | None = None
    by: str | None = None
    expires: int | None = None
    retry_at: int | None = None
    conflicts: frozenset[str] = frozenset()
    duplicate: bool = False
    last_seq: int | None = None
    leaving: list[tuple[Session, str, str]] = field(default_factory=list)

    @property
    def allowed(self) -> bool:
        return self.decision == "allow"


Event = tuple[str, str, int, int, str, bool]
"""Type, session, view, revision, reason; whether a view that ends was completed."""


class Account:
    """The rules. Every call takes place at `now`, which the caller moves. `no_progress` ms without movement end a view."""

    def __init__(self, no_progress: int = 1_800_000) -> None:
        self.now = 0
        self.no_progress = no_progress
        self.sessions: dict[str, Session] = {}
        self.events: list[Event] = []
        self.takeovers = 0
        self.stragglers_until = -LEFT_WITHIN
        self.shared_until = 0

    # what callers ask

    def heartbeat(
        self, session: str, device: str, content: str, kind: str, plan: Plan, seq: int, state: str, position: float | None,
        stretch: int = 1, completes: bool = False,
    ) -> Answer:  # fmt: skip
        """`completes`: the position is beyond the point from which its title counts as completed."""
        me = self.sessions.get(session)
        ask = Ask(session, device, content, kind, plan, True, self.now, seq)
        if me and seq <= me.seq and not (seq == 0 and self.now - me.seen > me.promised / 2):
            return replace(self._as_it_stands(ask, me), duplicate=True)
        if state in ("ended", "error"):
            if me and me.phase is Phase.RUNNING:
                me.completed |= completes and me.content == content  # reading: a last word about something else
                me.seq, me.seen, me.said_paused, me.position = seq, self.now, False, position
                self._end(me, "stopped" if state == "ended" else "error")
            return self._noted(me, seq)
        paused = state == "paused" and not self._advances(me, content, position)
        verdict = self._sticky(me) or self._on_its_device(ask, me)
        if verdict and verdict.allowed:
            self._share(INTERVAL)
            self._noted(me, seq)
            return replace(verdict, last_seq=seq)
        if paused and me and me.content == content and self._paused_out(me):
            return self._noted(me, seq)
        if me and me.content == content and position is not None and position == me.position:
            if me.reason == "no_progress":
                return self._noted(me, seq)
            if me.phase is Phase.RUNNING and state != "paused" and self._stuck(me):
                me.seq, me.seen, me.completed = seq, self.now, me.completed or completes
                self._end(me, "no_progress")
                return Answer(last_seq=seq)
        self._stand_in(ask, me)
        verdict = verdict or self._judge(ask)
        if not verdict.allowed:
            self._note(ask, me, verdict)
            return self._refusal(me, verdict)
        ask.paused_since = me.paused_at if paused and me and me.content == content else None
        me = self._admit(ask, me, verdict)
        if state == "paused" or position is None or position != me.position:
            me.still_since = None
        elif me.paused_at is not None:
            me.still_since = self.now  # reading: a pause is no standstill, and has its own time
        elif me.still_since is None:
            me.still_since = me.seen
        me.completed |= completes
        me.seen, me.beaten, me.promised, me.lifetime, me.finest = (
            self.now,
            True,
            INTERVAL * stretch,
            LIFETIME * stretch,
            FINEST,
        )
        self._pause(me, paused)
        me.seq, me.said_paused, me.position = seq, state == "paused", position
        return Answer(expires=me.expires, last_seq=seq)

    def check(self, session: str, device: str, content: str, kind: str, plan: Plan) -> Answer:
        ask = Ask(session, device, content, kind, plan, True, self.now)
        return self._as_it_stands(ask, self.sessions.get(session))

    def stop(self, session: str, seq: int | None = None) -> bool:
        me = self.sessions.get(session)
        if not me or me.phase not in (Phase.RUNNING, Phase.RIDING):
            return False
        for s in self._of_device(me.device):  # a stop voids all earlier evidence
            if s.phase is Phase.RIDING and (s is me or s.content == me.content):
                del self.sessions[s.id]
        if me.phase is Phase.RUNNING:
            me.seq = max(me.seq, -1 if seq is None else seq)
            self._end(me, "stopped")
        return True

    def takeover(self, session: str, device: str, content: str, kind: str, plan: Plan, stop: str) -> Answer:
        """Raises UnknownTarget."""
        me = self.sessions.get(session)
        ask = Ask(session, device, content, kind, plan, True, self.now)
        self._stand_in(ask, me)
        choices = [s for s in self._running() if s.id not in ask.replaces and stop in ("oldest", s.id)]
        verdict = self._judge(ask, chosen="")
        if not verdict.allowed:
            if self.takeovers >= TAKEOVERS:
                return Answer("block", "takeover_limited", last_seq=_seq(me))
            if not choices and stop != "oldest":
                raise UnknownTarget(stop)
            for choice in sorted(choices, key=lambda s: (s.held_since, s.id)):
                freed = self._judge(ask, chosen=choice.id)
                if freed.allowed:
                    verdict = freed
                    break
            else:
                return self._refusal(me, verdict)
            self.takeovers += 1
        me = self._admit(ask, me, verdict)
        me.seen, me.beaten, me.promised, me.finest = self.now, True, INTERVAL, FINEST
        me.lifetime = LIFETIME if me.paused_at is None else max(0, me.paused_at + PAUSED_END - self.now)
        return Answer(expires=me.expires, last_seq=_seq(me))

    def signal(
        self, device: str, content: str, kind: str, plan: Plan, evidence: str, born: str, at: int | None = None, named: str = ""
    ) -> Answer:  # fmt: skip
        """`born` is the id that a stream without a name gets."""
        rank, lifetime = EVIDENCE[evidence]
        at = self.now if at is None else min(at, self.now)
        linked = self.sessions.get(named)
        if named and not (linked and linked.player):
            born = named
        ask = Ask(born, device, content, kind, plan, False, at)
        me, left = self._match(ask, linked)
        if me:
            ask.session = me.id
        if left:
            assert me
            if me.phase is Phase.ENDED and not me.player and at > max(me.fetched, me.ended_at):
                self._share(at - max(me.fetched, me.ended_at))
            me.fetched = max(me.fetched, at)
            return Answer(last_seq=_seq(me))
        if me and me.phase is Phase.RUNNING and at >= me.started:
            me.proven_until = self.now + UNPROVEN  # reading: from when we learn of it, because log lines come late
        if at + lifetime <= self.now:
            return self._as_it_stands(ask, me)
        if me and self._alive(me) and content in ("", me.content):
            self._refresh(me, rank, lifetime, at)
            return Answer(expires=me.expires, last_seq=_seq(me))
        verdict = self._sticky(me)
        if not verdict:
            if not content:
                return Answer()
            if me and me.phase is Phase.ENDED and self._zapped_back(me, at):
                ask.since = self._back_since(me, at)
                me.reason = ""
            elif me and me.phase is Phase.ENDED and me.reason in LEFT:
                ask.alone = me.reason == "superseded"
                me, ask.session = None, born
            known = self.sessions.get(born)
            back = ask.alone or bool(known and known.phase is Phase.RIDING and known.reason == "superseded")
            me = me or self.sessions.get(ask.session)
            mine = [s for s in self._of_device(device) if s.phase is Phase.RUNNING]
            if any(s.started > at for s in mine):
                return Answer()  # from before what the device runs now
            if not (me and self._alive(me)):
                riding = self._ride(ask, born, lifetime, back)
                if riding:
                    me, ask.session, ask.alone = riding, born, True
                    if not self._both_go_on(riding, back):
                        return Answer()
            ask.proven_until = self.now + UNPROVEN
            self._stand_in(ask, me)
            verdict = self._judge(ask)
        if not verdict.allowed:
            self._note(ask, me, verdict)
            return self._refusal(self.sessions.get(ask.session), verdict)
        me = self._admit(ask, me, verdict)
        me.seen, me.finest, me.lifetime, me.said_paused = max(me.seen, at), rank, lifetime, False
        return Answer(expires=me.expires, last_seq=_seq(me))

    def sweep(self) -> None:
        for s in list(self.sessions.values()):
            if s.phase is Phase.RUNNING:
                self.lapse(s.id)
            elif s.due <= self.now:
                del self.sessions[s.id]

    def lapse(self, session: str) -> None:
        """The engine may end an overdue view before the sweep comes, whenever it writes; no decision depends on it."""
        s = self.sessions.get(session)
        if s and s.phase is Phase.RUNNING and s.expires <= self.now:
            self._end(s, "timeout" if s.paused_at is None else "paused_timeout")

    def running(self) -> set[str]:
        return {s.id for s in self._running() if self._alive(s)}

    # who is there

    def _running(self) -> list[Session]:
        return [s for s in self.sessions.values() if s.phase is Phase.RUNNING]

    def _of_device(self, device: str) -> list[Session]:
        return [s for s in self.sessions.values() if s.device == device]

    def _alive(self, s: Session) -> bool:
        return s.phase is Phase.RUNNING and s.expires > self.now

    def _unproven(self, proven_until: int | None, paused: bool, plan: Plan) -> bool:
        if proven_until is None:
            return plan.require_evidence
        return not paused and self.now >= proven_until

    # the decision

    def _as_it_stands(self, ask: Ask, me: Session | None) -> Answer:
        """The decision without any effect."""
        if me and self._alive(me) and me.content == ask.content:
            return Answer(expires=me.expires, last_seq=_seq(me))
        verdict = self._sticky(me) or self._on_its_device(ask, me)
        if not verdict:
            self._stand_in(ask, me)
            verdict = self._judge(ask)
        return Answer(last_seq=_seq(me), expires=verdict.expires) if verdict.allowed else self._refusal(me, verdict)

    def _sticky(self, me: Session | None) -> Answer | None:
        """Evicted: told why and by whom for 30 min, whatever is free."""
        if me and me.phase is Phase.ENDED and me.reason in ("evicted", "takeover") and self.now < me.ended_at + STICKY:
            found = frozenset([me.by]) & self.sessions.keys()
            return Answer("block", me.reason, me.ended_rule, by=me.by, retry_at=me.ended_at + STICKY, conflicts=found)
        return None

    def _on_its_device(self, ask: Ask, me: Session | None) -> Answer | None:
        """A superseded session that beats again shares its device's slot for two intervals (rules that count devices)."""
        if not (me and me.phase is Phase.ENDED and me.reason == "superseded" and self.now <= me.ended_at + RIDES):
            return None
        winner = self.sessions.get(me.by)
        if any(rule.unit != "device" for rule in ask.rules) or not (winner and self._alive(winner)):
            return None
        shares = winner.device == ask.device and self._may_share()
        return Answer(expires=winner.expires, last_seq=_seq(me)) if shares else None

    def _stand_in(self, ask: Ask, me: Session | None) -> None:
        """In whose place the stream comes: its own, its adopted backend session's, its device's earlier session's."""
        running = me if me and me.phase is Phase.RUNNING else None
        others = [s for s in self._of_device(ask.device) if s.id != ask.session]
        known = [ask.proven_until, running.proven_until if running else None]
        for s in others:
            born = not s.player and s.phase in (Phase.RUNNING, Phase.RIDING)
            if ask.player and born and s.content == ask.content:
                ask.adopts = s
        earlier = [s for s in others if s.phase is Phase.RUNNING and s is not ask.adopts]
        barred = running or ask.alone or (me and me.phase is Phase.ENDED and me.reason == "superseded")
        if earlier and not barred:
            ask.supersedes = min(earlier, key=lambda s: (s.content != ask.content, s.seen, s.id))
        known += [s.proven_until for s in (ask.adopts, ask.supersedes) if s]
        ask.proven_until = max((p for p in known if p is not None), default=None)
        ask.replaces = (ask.session, *(s.id for s in (ask.adopts, ask.supersedes) if s))
        heirs = [s for s in (running, ask.adopts, ask.supersedes) if s and s.phase is Phase.RUNNING]
        ask.heir_of = heirs[0] if heirs and self._alive(heirs[0]) else None

    def _judge(self, ask: Ask, chosen: str | None = None) -> Answer:
        """A slot under every matching rule, or under none. `chosen`: only this session may go (takeover)."""
        gone, leaving = set(ask.replaces), []
        refusal: Answer | None = None
        for rule in ask.rules:
            if ask.heir_of and rule.name in ask.heir_of.rules:
                continue
            holders = [s for s in self._running() if rule.name in s.rules and self._alive(s) and s.id not in gone]
            need = len(holders) + 1 - rule.limit
            if need <= 0:
                continue
            if chosen is None:
                go = self._who_goes(ask, holders, need)
            else:
                go = [(s, "takeover") for s in holders if s.id == chosen]
            if len(go) < need:
                opens = self._opens_at(ask, holders, need)
                if not refusal:
                    ids = frozenset(s.id for s in holders)
                    refusal = Answer("block", "limit_reached", rule.name, rule.limit, conflicts=ids)
                refusal.retry_at = max(filter(None, (refusal.retry_at, opens)), default=None)
            gone |= {s.id for s, _ in go}
            leaving += [(s, reason, rule.name) for s, reason in go]
        return refusal or Answer(leaving=leaving)

    def _may_take(self, ask: Ask, s: Session) -> bool:
        """An unproven stream never evicts or displaces a proven one."""
        weak = self._unproven(ask.proven_until, False, ask.plan)
        return not weak or self._unproven(s.proven_until, s.paused_at is not None, ask.plan)

    def _who_goes(self, ask: Ask, holders: list[Session], need: int) -> list[tuple[Session, str]]:
        """Ghosts first, the stalest before others; then as the plan says. Backend evidence never evicts."""
        takeable = [s for s in holders if self._may_take(ask, s)]
        ghosts = sorted((s for s in takeable if s.yields_at <= self.now), key=lambda s: (s.yields_at, s.id))
        go = [(s, "displaced") for s in ghosts[:need]]
        if ask.plan.at_limit != "deny_new" and ask.player:
            sign = 1 if ask.plan.at_limit == "stop_oldest" else -1
            others = [s for s in takeable if s.yields_at > self.now and not self._guarded(ask, s)]
            others.sort(key=lambda s: (sign * s.held_since, s.id))
            go += [(s, "evicted") for s in others[: need - len(go)]]
        return go

    def _guarded(self, ask: Ask, s: Session) -> bool:
        """A removed device may not turn on its remover for 60 s, a superseded session never on its own device."""
        for old in self._of_device(ask.device):
            if old.phase is not Phase.ENDED:
                continue
            if old.reason == "superseded" and old.id == ask.session and s.device == ask.device:
                return True
            if old.reason in REMOVED and self.now < old.ended_at + GUARD:
                remover = self.sessions.get(old.by)
                if s.id == old.by or (remover and remover.device == s.device):
                    return True
        return False

    def _opens_at(self, ask: Ask, holders: list[Session], need: int) -> int | None:
        """The earliest moment at which as many slots as needed can be had."""
        times = sorted(max(s.yields_at, self.now) if self._may_take(ask, s) else s.expires for s in holders)
        return times[need - 1] if need <= len(times) else None

    def _refusal(self, me: Session | None, verdict: Answer) -> Answer:
        if me and verdict.reason == "limit_reached" and me.reason in ("displaced", "superseded"):
            verdict.reason, verdict.by = me.reason, me.by
        verdict.last_seq = _seq(me)
        return verdict

    # what changes

    def _log(self, kind: str, s: Session, reason: str = "") -> None:
        self.events.append((kind, s.id, s.view, s.revision, reason, s.completed and kind == "view_end"))

    def _note(self, ask: Ask, me: Session | None, verdict: Answer) -> None:
        """A refusal writes nothing but a note; the event comes on the transition."""
        mark = verdict.rule or verdict.reason or ""
        same = me and (me.phase is not Phase.REFUSED or _who(me, ask) == (me.device, me.content, me.kind, me.rules))
        if me and me.noted == mark and same:
            return
        if not me or me.phase is Phase.REFUSED:
            me = Session(
                ask.session, ask.device, ask.content, ask.kind, Phase.REFUSED, _names(ask.rules), ended_at=self.now
            )
            self.sessions[me.id] = me
        me.noted = mark
        view = 0 if me.phase is Phase.RIDING else me.view  # what only rides has no view yet
        self.events.append(("block", ask.session, view, 0, verdict.reason or "", False))

    def _end(self, s: Session, reason: str, by: str = "", rule: str = "") -> None:
        self._log("view_end", s, reason)
        if reason in LEFT:
            self._spare(s)
        s.phase, s.ended_at, s.reason, s.by, s.ended_rule, s.noted = Phase.ENDED, self.now, reason, by, rule, ""

    def _admit(self, ask: Ask, me: Session | None, verdict: Answer) -> Session:
        for s, reason, rule in verdict.leaving:
            self._end(s, reason, ask.session, rule)
            if reason != "displaced":
                self._log("takeover" if reason == "takeover" else "evict", s)
        if ask.supersedes:
            self._end(ask.supersedes, "superseded", ask.session)
        if ask.adopts and self._alive_view(me, ask) and ask.adopts.phase is Phase.RUNNING:
            self._end(ask.adopts, "superseded", ask.session)  # reading: two views under way cannot become one
        if ask.adopts:
            del self.sessions[ask.adopts.id]
        me = self._settle_view(ask, me)
        me.phase, me.reason, me.by, me.noted = Phase.RUNNING, "", "", ""
        me.player = ask.player or me.player
        me.held_since = ask.heir_of.held_since if ask.heir_of else self.now
        me.proven_until = ask.proven_until
        return me

    @staticmethod
    def _alive_view(me: Session | None, ask: Ask) -> bool:
        return bool(me and me.phase is Phase.RUNNING and me.content == ask.content)

    def _settle_view(self, ask: Ask, me: Session | None) -> Session:
        """Starts, continues, changes or reopens the session's view."""
        adopted = ask.adopts if ask.adopts and ask.adopts.phase is Phase.RUNNING else None
        fresh = me is None or me.phase in (Phase.REFUSED, Phase.RIDING)
        was, content = (None, "") if fresh or me is None else (me.phase, me.content)
        if fresh:
            view = (me.view if me else 0) or (self.now // 1000 if ask.seq else 0)  # forgotten: a number of its own
            me = Session(ask.session, ask.device, ask.content, ask.kind, Phase.RUNNING, player=False, view=view)
            self.sessions[me.id] = me
        assert me is not None
        if was is Phase.RUNNING and content != ask.content:
            self._log("view_end", me, "content_changed")
            self._spare(me)
            me.left, me.left_at = content, self.now
        if was is not Phase.RUNNING:
            me.paused_at, me.said_paused = ask.paused_since, False
        me.device, me.content, me.kind, me.rules = ask.device, ask.content, ask.kind, _names(ask.rules)
        timely = not adopted and was is Phase.ENDED and me.reason in REOPENS and self.now < me.ended_at + REOPEN
        if timely and content == ask.content:
            me.revision += 1
            me.still_since = ask.at
            self._log("view_reopen", me, me.reason)
        elif was is not Phase.RUNNING or content != ask.content:
            me.view, me.revision, me.position = me.view + 1, 0, None
            me.completed, me.still_since = False, None
            me.started = adopted.started if adopted else ask.at if ask.since is None else ask.since
            me.finest, me.seen = adopted.finest if adopted else 0, ask.at
            self._log("session_linked" if adopted else "view_start", me, adopted.id if adopted else "")
        return me

    def _advances(self, me: Session | None, content: str, position: float | None) -> bool:
        """Paused with an advancing position (more than 1 s since the last beat) is playing."""
        if not (me and me.content == content and me.said_paused) or position is None or me.position is None:
            return False
        return position > me.position + 1

    def _paused_out(self, me: Session) -> bool:
        """Its view has ended, or is about to, because of the pause: a player that is still paused changes nothing."""
        if me.phase is Phase.ENDED:
            return me.reason == "paused_timeout"
        return me.phase is Phase.RUNNING and me.paused_at is not None and not self._alive(me)

    def _noted(self, me: Session | None, seq: int) -> Answer:
        """It changes no view."""
        if me and me.phase is Phase.ENDED:
            me.seq = seq
        return Answer(last_seq=seq)

    def _stuck(self, me: Session) -> bool:
        """Whether a beat without movement, now, is one too many."""
        since = me.seen if me.still_since is None else me.still_since
        return me.paused_at is None and self.now - since >= self.no_progress

    def _pause(self, me: Session, paused: bool) -> None:
        if paused:
            if me.paused_at is None:
                me.paused_at = self.now
                self._log("pause", me)
            me.lifetime = max(0, me.paused_at + PAUSED_END - self.now)
        elif me.paused_at is not None:
            me.paused_at = None
            self._log("resume", me)

    # evidence without the player

    def _match(self, ask: Ask, linked: Session | None) -> tuple[Session | None, bool]:
        """The session the evidence is about, and whether it belongs to a view that the device has left."""
        if linked and linked.phase is not Phase.REFUSED:
            same = ask.content in ("", linked.content)
            others = (s for s in self._of_device(ask.device) if s.phase is Phase.RUNNING and s.content == ask.content)
            if same or (not linked.player and linked.phase is not Phase.RIDING and not any(others)):
                if linked.phase is Phase.ENDED and linked.reason in LEFT:
                    recent = linked.content == ask.content and self._straggles(linked, ask.at)
                    return linked, recent or ask.at <= linked.ended_at
                return linked, False
        mine = self._of_device(ask.device)
        found = [s for s in mine if s.phase is not Phase.REFUSED and s.content == ask.content]
        if not ask.content:
            found = [s for s in mine if s.phase is Phase.RUNNING]
        order = (Phase.RUNNING, Phase.RIDING, Phase.ENDED)
        best = min(found, key=lambda s: (order.index(s.phase), not s.player, -s.seen, s.id), default=None)
        if best and best.phase is not Phase.ENDED:
            return best, False
        for s in mine:
            if ask.content and s.left == ask.content and ask.at < max(s.left_at + 1, self.stragglers_until):
                return s, True
        if best and best.reason in LEFT:
            return best, ask.at <= best.ended_at or self._straggles(best, ask.at)
        return best, False

    def _straggles(self, s: Session, at: int) -> bool:
        """Evidence that comes after a view was left belongs to it for some seconds; a zap back begins another."""
        box = not s.player and s.reason == "superseded" and self.now < s.ended_at + LEFT_WITHIN and self._may_share()
        return (at < self.stragglers_until or box) and not self._zapped_back(s, at)

    def _may_share(self) -> bool:
        """Sharing a slot costs twice its time, of which an account may owe so much."""
        return self.shared_until - self.now <= SHARED_MOST

    def _share(self, ms: int) -> None:
        self.shared_until = max(self.now, self.shared_until) + 2 * max(0, ms)

    def _spare(self, s: Session) -> None:
        """A view is left: what was under way may come, once a minute, no longer than the view has lasted."""
        if self.now >= self.stragglers_until + LEFT_WITHIN:
            self.stragglers_until = self.now + min(STRAGGLE, self.now - s.started)

    def _zapped_back(self, s: Session, at: int) -> bool:
        """A device nobody speaks for fetches again what it had left, after a silence in which a slot yields, or fetches nothing else."""
        return self._back_since(s, at) is not None

    def _back_since(self, s: Session, at: int) -> int | None:
        if s.player or s.reason != "superseded":
            return None
        if at - max(s.seen, s.fetched) >= STALE * INTERVAL:
            return at
        heir = self.sessions.get(s.by)
        if not heir or heir.phase is not Phase.RUNNING or heir.player or heir.device != s.device:
            return None
        return heir.seen if at - heir.seen >= INTERVAL else None

    def _refresh(self, s: Session, rank: int, lifetime: int, at: int) -> None:
        """Coarser evidence extends nothing once finer was seen; only a later segment shows that a paused player plays."""
        if rank < s.finest:
            return
        if s.paused_at is not None:
            if rank < FINEST or at <= s.seen:
                return
            s.paused_at = None
            self._log("resume", s)
        if rank > s.finest or at > s.seen:
            s.finest, s.seen, s.lifetime = rank, max(s.seen, at), lifetime

    def _ride(self, ask: Ask, born: str, lifetime: int, back: bool) -> Session | None:
        """Evidence for other content on a device whose player is beating: what rides on that player's slot.

        Reading: content that was superseded and is fetched again (`back`) may be a zap back or the other of two streams;
        the same two intervals tell, whether a player speaks for what the device runs by now or not.
        """
        others = list(self._others(ask.device, born, back))
        if not others:
            return None
        old = self.sessions.get(born)
        if old and old.phase is Phase.RIDING and self.now < old.seen + LEFT_WITHIN:
            old.free = self._may_share()
            self._share(ask.at - old.seen)
            old.seen = max(old.seen, ask.at)
            return old
        if old and old.phase is Phase.RUNNING:
            self._end(old, "timeout" if old.paused_at is None else "paused_timeout")
        s = Session(born, ask.device, ask.content, ask.kind, Phase.RIDING, _names(ask.rules), player=False)
        s.view, s.started, s.seen, s.lifetime = (old.view if old else 0), ask.at, ask.at, lifetime
        s.free = self._may_share()
        if back:
            s.reason, s.by = "superseded", min(others, key=lambda o: (-o.seen, o.id)).id
        self.sessions[born] = s
        return s

    def _others(self, device: str, but: str, back: bool) -> Iterable[Session]:
        mine = (s for s in self._of_device(device) if s.phase is Phase.RUNNING and s.id != but)
        return (s for s in mine if (s.player or back) and s.yields_at > self.now)

    def _both_go_on(self, riding: Session, back: bool) -> bool:
        """After two intervals with evidence for both they are two streams."""
        until = riding.started + RIDES
        return not riding.free or riding.seen > until and any(s.seen > until for s in self._others(riding.device, riding.id, back))


def _seq(me: Session | None) -> int | None:
    return me.seq if me and me.phase is not Phase.REFUSED and me.seq >= 0 else None


def _names(rules: tuple[Rule, ...]) -> tuple[str, ...]:
    return tuple(rule.name for rule in rules)


def _who(me: Session, ask: Ask) -> tuple[str, str, str, tuple[str, ...]]:
    return ask.device, ask.content, ask.kind, _names(ask.rules)
