"""From a player's reports to the event log: each becomes one event `cmcd` of its session, and some are heartbeats, too."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import NamedTuple

import orjson

from engine import tracking
from engine.cmcd.evidence import Stream, Stretch, heartbeat, kind_of, stretches
from engine.cmcd.parser import Report
from engine.decisions import Decisions
from engine.errors import Forbidden, Unavailable
from engine.tokens import Claims
from engine.tracking import STATED, Good

TYPE = "cmcd"
_KNOWN_MAX = 50_000


@dataclass(frozen=True, slots=True)
class Sender:
    """Who reports, by its token and by what the app put into the collector's URL. `stated` are what both name of the stream.

    `device` is the one to use where nothing else names one. `target` tells the targets of one player apart.
    """

    claims: Claims
    account: str
    stated: Stream
    device: str
    target: str = ""


class Told(NamedTuple):
    accepted: int
    duplicates: int


class Collector:
    """One per API process. `beats` says whether a session's own heartbeats come to this process: then its reports are none."""

    def __init__(self, decisions: Decisions, beats: Callable[[str, str], bool]) -> None:
        self._decisions = decisions
        self._beats = beats
        self._known: dict[tuple[str, str], Stream] = {}

    async def take(self, sender: Sender, reports: list[Report], evidence: Collection[str] | None) -> Told:
        """What became of the reports. `evidence` names the sessions whose reports may be evidence, None: all.

        Raises Forbidden for a session of a profile that the token is not for; Unavailable and Overloaded: then the sender should send all of them again; what was taken is a duplicate by then.
        Heartbeats are judged, or spooled, in any case.
        """
        sessions: dict[str, list[Report]] = {}
        for report in reports:
            sessions.setdefault(report.text("sid"), []).append(report)
        accepted = duplicates = 0
        failed: Exception | None = None
        # One after another: a body with a thousand sessions is no more at once than one with one.
        for session, mine in sessions.items():
            try:
                told = await self._session(sender, session, mine, evidence is None or session in evidence)
                accepted, duplicates = accepted + told.accepted, duplicates + told.duplicates
            except Exception as error:
                failed = error
        if failed is not None:
            raise failed
        return Told(accepted, duplicates)

    async def _session(self, sender: Sender, session: str, reports: list[Report], evidence: bool) -> Told:
        accepted = duplicates = 0
        evidence = evidence and not self._beats(sender.account, session)
        parts = list(stretches(reports, ""))
        beating = evidence and any(part.beats or part.last for part in parts)
        if sender.claims.profiles is not None:
            await self._check_profile(sender, session)
        known = await self._stream(sender, session) if beating else Stream()
        for part in parts:
            known = _seen(known, part)
            stream = _overlaid(replace(known, device=known.device or sender.device), sender.stated)
            if not stream.content:
                stream = replace(stream, content=sender.claims.content)
            beats = beating and stream.content != ""
            for report in part.beats if beats else ():
                await self._beat(sender, session, stream, report)
            try:
                fate = await self._tell(sender, session, part)
            finally:
                if beats and part.last is not None:
                    await self._beat(sender, session, stream, part.last)
            accepted += sum(fate.flags)
            duplicates += len(fate.flags) - sum(fate.flags)
        if beating:
            self._remember(sender.account, session, known)
        return Told(accepted, duplicates)

    async def _beat(self, sender: Sender, session: str, stream: Stream, report: Report) -> None:
        """The decision cannot be told to the player: it is enforced at the edge."""
        beat, body = heartbeat(report, session, stream)
        await self._decisions.heartbeat(sender.claims, beat, body, [])

    async def _tell(self, sender: Sender, session: str, part: Stretch) -> tracking.Fate:
        """Appends the events. Their envelope says what token and URL say, else what the session's record does."""
        said = {name: getattr(sender.stated, name) for name in STATED} | {"content": part.content}
        stated = {name: value for name, value in said.items() if value}
        good = [_good(sender, session, report) for report in part.reports]
        bodies = tracking.bodies({"account": sender.account, "session": session} | stated, good)
        fill = tuple(name for name in STATED if name not in stated)
        return await self._decisions.track(sender.account, bodies, session, fill)

    async def _check_profile(self, sender: Sender, session: str) -> None:
        """Raises Forbidden for a session of a profile that the token is not for. Without Redis nobody knows, and nothing is appended."""
        with contextlib.suppress(Unavailable):
            known = await self._decisions.track(sender.account, [], session)
            if known.ident.get("device") and not sender.claims.reaches(known.ident["profile"], backend=known.backend):
                raise Forbidden("the session is of another profile", code="other_profile", field="sid")

    async def _stream(self, sender: Sender, session: str) -> Stream:
        """What this process, else the session's record, knows of it."""
        known = self._known.get((sender.account, session))
        if known is None:
            try:
                ident = (await self._decisions.track(sender.account, [], session)).ident
            except Unavailable:
                return Stream()
            known = Stream(**{name: ident.get(name, "") for name in Stream.__dataclass_fields__})
        return known

    def _remember(self, account: str, session: str, stream: Stream) -> None:
        key = (account, session)
        if self._known.pop(key, None) is None and len(self._known) >= _KNOWN_MAX:
            del self._known[next(iter(self._known))]
        self._known[key] = stream


def _seen(known: Stream, part: Stretch) -> Stream:
    """With what the reports of a stretch tell. What was known of other content says nothing of this one."""
    content = part.content or known.content
    kind = next((kind for report in reversed(part.reports) if (kind := kind_of(report))), "")
    return replace(known, content=content, kind=kind or (known.kind if content == known.content else ""))


def _overlaid(known: Stream, stated: Stream) -> Stream:
    said = {name: value for name in Stream.__dataclass_fields__ if (value := getattr(stated, name))}
    return replace(known, **said)


def _good(sender: Sender, session: str, report: Report) -> Good:
    data = orjson.dumps({"type": TYPE, "target": sender.target, "keys": report.keys, "raw": report.raw})
    sn = report.sn
    mark = b"" if sn is None else tracking.numbered("\0".join((TYPE, session, sender.target)), sn)
    return Good(TYPE, event_id(sender.account, session, sender.target, sn), data, mark)


def event_id(account: str, session: str, target: str, sn: int | None) -> str:
    """32 hexadecimal digits, the same however often a report comes; '' for one that is not numbered."""
    if sn is None:
        return ""
    # Printable parts have no NUL in them.
    return blake2b("\0".join((account, TYPE, session, target, str(sn))).encode(), digest_size=16).hexdigest()
