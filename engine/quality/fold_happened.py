"""What CMCD reports tell of errors and ads: facts that need no order, so a report that comes late tells them, too."""

from __future__ import annotations

from typing import Any

from engine.quality.fold_read import MESSAGE, text
from engine.quality.fold_tell import Teller
from engine.quality.state import ASKED, ERRED, FAILED, NONE, RUNNING

ONCE = 4
"""So many happenings are remembered, for players that report each to several targets."""
_AD_EVENTS = {
    "ad_break_start": "abs", "ad_break_end": "abe", "ad_start": "as", "ad_end": "ae", "ad_skip": "sk", "skip": "sk", "ad_error": "aerr",
}  # fmt: skip


def happened(t: Teller, kind: str, ts: int, keys: dict[str, Any]) -> None:
    """Errors and ads: facts that need no order."""
    name = text(keys.get("cen"))
    kind = (
        _AD_EVENTS.get(name.replace("-", "_"), name if name in ("abs", "abe", "as", "ae", "sk") else "")
        if kind == "ce"
        else kind
    )
    if kind not in ("e", "abs", "abe", "as", "ae", "sk", "aerr"):
        return
    code = _code(keys.get("ec"))
    mark = f"{kind}{ts}{code}"[:40]
    r = t.s.reports
    if mark in r.once:
        return
    r.once = (*r.once[1 - ONCE :], mark)
    if kind == "e":
        _erred(t, code)
    else:
        t.s.ads.by_cmcd = True
        _advertised(t, kind, code)


def _erred(t: Teller, code: str) -> None:
    attempt = t.s.attempt
    if t.s.beats.seen and not t.s.reports.states:
        return  # measured by heartbeats, which tell of errors themselves
    if attempt.bare:
        attempt.bare = False
        return
    owed = attempt.failing == FAILED
    if attempt.phase == NONE and t.s.reports.first >= 0 and not t.s.now.ended:
        t.ask(t.s.reports.first)
    t.error(code, "", fatal=True)
    if owed:
        t.give_up()
    elif attempt.phase in (ASKED, RUNNING):
        t.s.attempt.failing = ERRED


def _code(value: Any) -> str:
    """The first of `ec`; dash.js sends a bare number."""
    found = value[0] if isinstance(value, list) and value else value
    if isinstance(found, bool) or not isinstance(found, str | int | float):
        return ""
    return (str(int(found)) if isinstance(found, float) and found.is_integer() else str(found))[:MESSAGE]


def _advertised(t: Teller, kind: str, code: str) -> None:
    ads = t.s.ads
    if kind == "abs":
        t.break_starts("")
    elif kind == "abe":
        t.break_ends()
    elif kind == "as":
        t.ad_starts()
    elif kind == "ae":
        t.ad_ends(ads.ms, False)
    elif kind == "aerr":
        t.tell("ad_error", code=code)
    elif ads.on:
        ads.skip = True
