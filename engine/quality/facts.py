"""Quality facts: one row for each thing that a player's picture did. Everything asked about quality is a sum over these rows.

A fact stands by itself: it has all dimensions that were known when it was made, so no question joins anything. What lasts (playing,
a stall) is told in pieces of a minute at most, so that an hour's figures do not wait for its end.

| fact           | `ms`                                                      | other measures                                        |
|----------------|-----------------------------------------------------------|-------------------------------------------------------|
| attempt        |                                                           | playback was asked for; told with its outcome         |
| start          | from the request to the first frame; null: nobody can say | `value`: what the player claims (CMCD `msd`), ms      |
| start_failure  |                                                           | ended before the first frame by a fatal error: `code` |
| exit           |                                                           | ended before the first frame without one              |
| play           | played                                                    | `bits` in `bits_ms` of it where the bitrate is known; `stalls_known` |
| stall          | stood still for want of data, not starting, seeking, paused | `count`: 1 in a stall's first piece, else 0          |
| switch         |                                                           | `value`: bits/s now, `before`: until then             |
| error          |                                                           | `code`, `message`, `fatal`, `business`, `started`     |
| dropped        |                                                           | `value`: frames more than before; 0 says that it can be told |
| latency        |                                                           | `value`: ms behind live                               |
| ad_break       |                                                           | a break began                                         |
| ad_start       | from the ad's request to its first frame, if known        | an impression                                         |
| ad_end         | watched of it, if known                                   | `skipped`                                             |
| ad_error       |                                                           | `code`                                                |
| beacon         |                                                           | `count`: reports that came, `value`: that are missing before them |
| end            | `watched_ms`                                              | `value`: furthest position (s), `before`: duration (s), `completed`, `code`: reason, `silent`: found by silence |

`play` and `stall` within an ad have `ad` set. Times (`at`, ms) are the server's; durations are differences of one and the same clock, the player's
where it tells its own.
"""

from __future__ import annotations

import msgspec

FACTS = (
    "attempt", "start", "start_failure", "exit", "play", "stall", "switch", "error", "dropped", "latency",
    "ad_break", "ad_start", "ad_end", "ad_error", "beacon", "end",
)  # fmt: skip

DIMENSIONS = (
    "content", "kind", "provider", "device_type", "os", "browser", "app_version", "player", "player_version", "cdn", "edge",
    "asn", "country", "ad_break", "experiment", "source", "profile", "code",
)  # fmt: skip
"""What figures can be told apart by; beside them any custom label."""


class Fact(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One fact. `partition`, `stream_ms`, `stream_seq` are those of the event it was made of, `part` counts the facts of one event."""

    fact: str
    at: int
    account: str
    session: str
    partition: int = 0
    stream_ms: int = 0
    stream_seq: int = 0
    part: int = 0
    view: int = 0
    started_at: int = 0
    """ms, when the view began; 0: no view."""
    # dimensions; '' is unknown
    profile: str = ""
    device: str = ""
    content: str = ""
    kind: str = ""
    provider: str = ""
    device_type: str = ""
    os: str = ""
    browser: str = ""
    app_version: str = ""
    player: str = ""
    player_version: str = ""
    cdn: str = ""
    edge: str = ""
    asn: str = ""
    country: str = ""
    ad_break: str = ""
    """pre-roll, mid-roll, post-roll, or the break's id; of what happens within a break."""
    experiment: str = ""
    labels: dict[str, str] = {}
    source: str = ""
    """heartbeat, event or cmcd."""
    # measures
    ms: int | None = None
    value: float | None = None
    before: float | None = None
    bits: float | None = None
    bits_ms: int | None = None
    count: int | None = None
    code: str = ""
    message: str = ""
    ad: bool = False
    fatal: bool = False
    business: bool = False
    """A refusal that is meant (a limit, an entitlement, a region): no failure of the picture."""
    started: bool = False
    """The first frame had been seen."""
    stalls_known: bool = False
    """The player tells when it stalls; otherwise no stall says nothing."""
    skipped: bool = False
    completed: bool = False
    silent: bool = False
