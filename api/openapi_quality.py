"""The part of `/openapi.json` about stream quality; `api/openapi.py` merges it."""

from __future__ import annotations

from typing import Any

from api.cmcd import CONTENT_TYPES
from engine.cmcd.parser import LINES_MAX
from engine.wire import ID_MAX, PRINTABLE

Schema = dict[str, Any]

# CMCD

REPORTS = (
    'cid="film-1",e=ps,sid="9b2f7c1e",sn=0,sta=s,ts=1800000000000,v=2\n'
    'bl=(6000),br=(4200),cid="film-1",e=ps,msd=812,sid="9b2f7c1e",sn=1,sta=p,ts=1800000000812,v=2\n'
)

CMCD_DESCRIPTION = f"""Event reports of CTA-5004-B or -A (version 2), one a line, at most {LINES_MAX}. Unknown keys are kept, ill-typed
values dropped, reports of a newer version dropped; a line that is no report costs the others nothing. The same (`sid`, `target`, `sn`)
again within a day is a duplicate. Reports of the events `t` and `ps` with a state keep the session's slot like a heartbeat.
The token rides in the query, because stock players set no headers."""


def cmcd_body() -> Schema:
    # Whatever is no report is taken, too, and kept with its reason: no schema would refuse it.
    text = {"description": "text: CMCD, one report a line"}
    content = {kind: {"schema": text, "examples": {"start": {"value": REPORTS}}} for kind in CONTENT_TYPES}
    return {"required": False, "content": content}


def cmcd_query() -> list[Schema]:
    """What the app may put into the collector's URL; an empty value is one left out."""
    text = {"type": "string", "maxLength": ID_MAX, "pattern": f"^{PRINTABLE}*$"}
    described = {
        "device": ("a stable id of the device, unless the token names it", "living-room"),
        "device_type": ("", "tv"),
        "provider": ("", ""),
        "profile": ("who watches within the account", ""),
        "target": ("tells the targets of one player apart, if it has several", ""),
        "account": ("with a service token: whose reports these are", ""),
    }
    asked: list[Schema] = [
        {"name": name, "in": "query", "schema": text, "description": description, "example": example}
        for name, (description, example) in described.items()
    ]
    kind = {"name": "kind", "in": "query", "schema": {"enum": ["live", "vod", ""]}, "example": "vod",
            "description": "else what the reports say (`st`)"}  # fmt: skip
    evidence = {"name": "evidence", "in": "query", "schema": {"enum": ["yes", "no", ""]}, "example": "yes",
                "description": "`no` where the app sends heartbeats of the same session itself"}  # fmt: skip
    return [*asked, kind, evidence]
