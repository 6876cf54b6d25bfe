"""Measuring by CMCD event reports (CTA-5004-B): states with the player's own clock. The rules with their reasons: docs/quality-facts.md.

A report says in `sta` what the player does since `ts`, or does still; so the time between two reports belongs to the state of the first.
"""

from __future__ import annotations

from typing import Any

from engine.events import Event
from engine.quality.fold_happened import happened
from engine.quality.fold_own import settle
from engine.quality.fold_read import number, text, whole
from engine.quality.fold_tell import GAP_MS, LONGEST_MS, PIECE_MS, Teller
from engine.quality.state import ASKED, ERRED, FAILED, FINE, NONE, OVER, RUNNING, Beats, Reports, Watched

BACK_MS = 60_000
"""A report further back than this, with the next `sn`, is no straggler: the player's clock was set."""
SEEK_MS = 2_000
"""Rebuffering this soon after a seek has resumed is the seek's own."""
TARGETS, FIRST_MISSING, GAP_MAX = 4, 50, 10_000
_STATES = frozenset("spkraefqdw")
_TRUSTED = frozenset(["ps", "t"])
"""Events whose state may begin another attempt after the end of one; other reports may carry a state that is past."""
_RATES = (("pb", 3), ("br", 2), ("ab", 1))
_DIMS = {
    "player": "player",
    "player_version": "player_version",
    "app_version": "app_version",
    "experiment": "experiment",
    "edge": "edge",
}


def report(t: Teller, event: Event, data: dict[str, Any]) -> None:
    """One `cmcd` event."""
    said = data.get("keys")
    keys: dict[str, Any] = said if isinstance(said, dict) else {}
    r, kind = t.s.reports, text(keys.get("e"))
    ts, sn = whole(keys.get("ts"), 10**14), whole(keys.get("sn"))
    ahead = _count(t, text(data.get("target"), 40), sn, event.at)
    if not ts:
        # A report must have `ts`. Without it nothing can be measured, but what happened did happen.
        happened(t, kind, 0, keys)
        return
    if ahead and r.ts - ts > BACK_MS:
        t.flush()
        t.end_stall()
        r.ts, r.told, r.sta = ts, 0, ""
    late = ts < r.told or (ts == r.told and not ahead) or _left(t, keys)
    if not late:
        _content(t, event, keys)
        _learn(t, keys)
    _claim(t, keys)
    if kind == "rr":
        # Its `ts` is when the request began, its `sta` is of when the answer came.
        _advance(t, ts, False)
        return
    state = text(keys.get("sta"))
    state = state if state in _STATES and (kind != "c" or state == "s") else ""
    if state:
        _measured(t, kind)
    if late:
        _straggler(t, state, ts)
    else:
        _advance(t, ts, kind == "ps" and state not in ("", r.sta))
    happened(t, kind, ts, keys)
    if not late:
        _rate(t, keys)
        _state(t, state, ts, kind, keys)
    elif not t.s.pieces.rate:
        _rate(t, keys)
    dropped = whole(keys.get("dfa", keys.get("df")))
    if not late or (dropped or 0) > t.s.pieces.dropped >= 0:
        t.drop(dropped)
    t.late_by(number(keys.get("ltc"), 1e9))


def _state(t: Teller, state: str, ts: int, kind: str, keys: dict[str, Any]) -> None:
    """What the report says the player does, if it says so."""
    r = t.s.reports
    if not state:
        if not r.first and t.s.attempt.phase == NONE:
            r.first = ts
        return
    r.told = ts
    if state == r.sta:
        if state == "f" and t.s.attempt.failing == ERRED:
            t.owe()
        return
    # Reports without a state may have come first and counted this time to the state before.
    ahead = r.ts - ts
    if ahead and r.sta == "p":
        t.unplay(ahead)
    elif ahead and t.s.pieces.stalling:
        t.s.pieces.stall_ms = max(0, t.s.pieces.stall_ms - ahead)
    r.ts = ts
    _turn(t, state, ts, kind, keys)
    _advance(t, ts + ahead, False)


def _count(t: Teller, target: str, sn: int | None, at: int) -> bool:
    """Counts the report, and what is missing before it; whether it is the target's newest."""
    r = t.s.reports
    r.counted_at = r.counted_at or at
    r.count += 1
    if sn is None:
        return True
    expected, missing = r.targets.get(target, (-1, 0))
    if expected < 0:
        gap = sn if sn <= FIRST_MISSING else 0  # further on, the session is only now seen
    elif sn < expected:
        if missing:
            r.missing -= 1
            r.targets = r.targets | {target: (expected, missing - 1)}
        return False
    else:
        gap = sn - expected if sn - expected <= GAP_MAX else 0
    r.missing += gap
    known = r.targets if target in r.targets or len(r.targets) < TARGETS else dict(list(r.targets.items())[1:])
    r.targets = known | {target: (sn + 1, missing + gap)}
    return True


def beacons(t: Teller) -> None:
    """Tells of the reports counted: when something is missing, when anything else is told, or once a minute."""
    r = t.s.reports
    idle = t.s.attempt.phase in (NONE, OVER) or t.s.now.ended
    if r.count and (r.missing or t.facts or idle or t.event.at - r.counted_at >= PIECE_MS):
        t.tell("beacon", count=r.count, value=float(r.missing), source="cmcd")
        r.count, r.missing, r.counted_at = 0, 0, 0


def _left(t: Teller, keys: dict[str, Any]) -> bool:
    """Of what the player has left: the engine's new view began, and no report of the new content has come yet."""
    now, cid = t.s.now, text(keys.get("cid"), 128)
    return not now.cid and cid != "" and cid == now.left != now.content


def _content(t: Teller, event: Event, keys: dict[str, Any]) -> None:
    """The player's own name for what it plays; another one is another playback, which may be ahead of the engine's new view."""
    now, cid = t.s.now, text(keys.get("cid"), 128)
    if cid and now.cid and cid != now.cid:
        t.close()
        t.renew()
        old = t.s.now
        past, past_begun = (old.view, old.begun) if old.view else (old.past, old.past_begun)
        t.s.now = now = Watched(past=past, past_begun=past_begun, left=old.cid)
        t.s.reports.first = 0
    now.cid = cid or now.cid
    live = {"l": "live", "ll": "live", "v": "vod"}.get(text(keys.get("st")), "")
    now.content = now.content or cid or event.content
    now.kind = now.kind or event.kind or live


def _learn(t: Teller, keys: dict[str, Any]) -> None:
    """Dimensions; custom keys (`name-of-ours`) are one of ours or a label."""
    dims, labels = {"cdn": text(keys.get("cdn")), "edge": text(keys.get("h"))}, {}
    for key, value in keys.items():
        _, hyphen, name = key.partition("-")
        if hyphen and isinstance(value, str):
            name = name.replace("-", "_")
            if name in _DIMS:
                dims[_DIMS[name]] = text(value)
            else:
                labels[name] = value
    t.learn(**dims)
    if labels:
        t.label(labels)


def _claim(t: Teller, keys: dict[str, Any]) -> None:
    attempt = t.s.attempt
    if attempt.phase in (NONE, ASKED) and (claimed := number(keys.get("msd"), LONGEST_MS)) is not None:
        attempt.claimed = claimed


def _measured(t: Teller, kind: str) -> None:
    """From its first state on, the session is measured by its reports alone."""
    if not t.s.reports.states:
        settle(t, closing=True)
        t.flush()
        t.end_stall()
        t.s.reports.states = True
        t.s.beats = Beats(seen=t.s.beats.seen)
        if t.s.attempt.phase == ASKED:
            # The request was told by the other clock.
            t.s.attempt.asked = 0
    if kind == "ps":
        t.s.pieces.stalls_known = True


def _advance(t: Teller, ts: int, turned: bool) -> None:
    """Time goes on to `ts`; `turned`: the player tells of a change, so a stall before it lasted till then, however long the silence."""
    r = t.s.reports
    passed, r.ts = (ts - r.ts if r.ts else 0), max(ts, r.ts)
    if passed <= 0:
        return
    if r.sta == "p" and passed <= GAP_MS and t.s.attempt.phase == RUNNING:
        t.play(passed)
    elif r.sta == "r" and t.s.pieces.stalling and passed <= (LONGEST_MS if turned else GAP_MS):
        t.stall(passed)


def _straggler(t: Teller, state: str, ts: int) -> None:
    """A report older than the newest turns no time back, but the request and the first frame it may still tell."""
    attempt = t.s.attempt
    if attempt.phase == ASKED and t.s.reports.states:
        if state == "s" and (not attempt.firm or ts < attempt.asked):
            attempt.asked, attempt.firm = ts, True
        elif state == "p":
            t.frame(ts - attempt.asked if 0 < attempt.asked < ts else None)


def _turn(t: Teller, state: str, ts: int, kind: str, keys: dict[str, Any]) -> None:
    """The player is in another state."""
    r, attempt = t.s.reports, t.s.attempt
    before, r.sta = r.sta, state
    if before == "p":
        t.flush()
    if t.s.pieces.stalling:
        t.end_stall()
    if state in "sp" and kind == "ps" and attempt.failing == FAILED:
        t.pay()
    if state == "s":
        _asked(t, ts, kind)
    elif state == "p":
        _plays(t, ts, kind)
    elif state in "rk":
        if attempt.phase == NONE:
            t.ask(r.first or ts)
        r.seeking = r.seeking or state == "k"
        if state == "r" and before == "p" and attempt.phase == RUNNING:
            if r.seeking and ts - r.played_since <= SEEK_MS and _empty(keys.get("bl")):
                return
            r.seeking = False
            t.begin_stall()
    elif state == "f":
        if attempt.phase == NONE:
            t.ask(r.first)
        t.owe()
    elif state in "eq":
        t.leave()
    elif attempt.phase == NONE:
        # Loaded or paused beforehand: from then on the viewer is waited for, not the picture.
        r.first = -1


def _asked(t: Teller, ts: int, kind: str) -> None:
    attempt = t.s.attempt
    if attempt.phase == RUNNING and t.s.now.ended and kind == "ps":
        t.leave()
    if attempt.phase == NONE or (attempt.phase == OVER and kind in _TRUSTED):
        t.ask(ts, firm=True)
    elif attempt.phase == ASKED and not attempt.firm:
        attempt.asked, attempt.firm = ts, True


def _plays(t: Teller, ts: int, kind: str) -> None:
    r, attempt = t.s.reports, t.s.attempt
    if attempt.phase == NONE or (attempt.phase == OVER and kind in _TRUSTED):
        t.ask(r.first if r.first > 0 and attempt.phase == NONE else 0)
        attempt = t.s.attempt
    if attempt.phase == ASKED:
        t.frame(ts - attempt.asked if 0 < attempt.asked < ts else None)
    elif attempt.failing == ERRED:
        attempt.failing = FINE  # it went on: that error was not the end
    r.played_since = ts


def _empty(buffered: Any) -> bool:
    """No data is left for at least one track, or nobody says."""
    found = [n for n in (number(v) for v in (buffered if isinstance(buffered, list) else [buffered])) if n is not None]
    return not found or min(found) == 0


def _rate(t: Teller, keys: dict[str, Any]) -> None:
    """kbit/s of the tracks together, because a variant of HLS is told with its audio and that of DASH without."""
    for name, rank in _RATES:
        value = keys.get(name)
        found = sum(n for n in (number(v, 1e9) for v in (value if isinstance(value, list) else [value])) if n)
        if found > 0:
            t.rate(found * 1000, rank)
            return


def reset(r: Reports) -> None:
    """Another view: what it does is not known yet."""
    r.sta, r.first, r.seeking = "", 0, False
