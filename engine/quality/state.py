"""What the fold keeps of one (account, session) between two of its events, and how it is stored: MessagePack arrays, about 200–400 bytes.

The order of the fields is what is stored: new ones go to the end of their struct, with a default. A change that an older reader would
misread raises `VERSION`; `decode` answers None for another version, and the session is measured anew from there on.

Two clocks: `ts` is the player's (CMCD, ms), `at` the server's (ms). They are never subtracted from one another.
"""

from __future__ import annotations

from copy import copy

import msgspec
from msgspec import Struct

VERSION = 1

NONE, ASKED, RUNNING, OVER = 0, 1, 2, 3
"""An attempt's phase: none yet; asked for, without an outcome; the first frame was seen; over, so that playing again is another attempt."""

FINE, ERRED, FAILED = 0, 1, 2
"""Of failing: nothing; an error was told that may be the end; the player has given up and the error itself was not told yet."""


class Who(Struct, array_like=True):
    """Dimensions that last for the session; '' is unknown."""

    profile: str = ""
    device: str = ""
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
    experiment: str = ""
    labels: dict[str, str] = {}


class Watched(Struct, array_like=True):
    """What plays. `begun` is the server's time of the view's begin; `past` and `past_begun` name the view that the player had left before
    the engine gave it another."""

    content: str = ""
    kind: str = ""
    view: int = 0
    begun: int = 0
    cid: str = ""
    past: int = 0
    past_begun: int = 0
    ended: bool = False
    """The engine has ended this view."""
    left: str = ""
    """The player's name for what it played in the view before."""


class Attempt(Struct, array_like=True):
    """From the request to its outcome. `asked` is the request by the measuring clock, 0 unknown; `firm`: the player said so itself."""

    phase: int = NONE
    frame: bool = False
    """The first frame was seen."""
    asked: int = 0
    firm: bool = False
    claimed: float | None = None
    failing: int = FINE
    bare: bool = False
    """The error was told without its code, which may come late."""
    refused: bool = False
    """The engine has refused this stream: the error that follows is meant."""
    code: str = ""
    message: str = ""
    business: bool = False
    over_at: int = 0
    """Server's time when it was over."""


class Pieces(Struct, array_like=True):
    """Played and stalled, gathered but not told yet. `rate` is bits/s now, 0 unknown; `rank` how well its key tells it."""

    play_ms: int = 0
    bits: float = 0.0
    bits_ms: int = 0
    rate: float = 0.0
    rank: int = 0
    stall_ms: int = 0
    stalling: bool = False
    stall_new: bool = False
    stalls_known: bool = False
    dropped: int = -1
    """The player's counter as last told, -1 never."""
    dropped_told: bool = False


class Ads(Struct, array_like=True):
    """`on`: an ad plays; `ms` of it; `part`: the name of the break that goes on; `by_cmcd`: the player's reports tell of ads."""

    on: bool = False
    ms: int = 0
    skip: bool = False
    part: str = ""
    began: int = 0
    by_cmcd: bool = False


class Beats(Struct, array_like=True):
    """Measuring by our own heartbeats. `fresh` and `idle` are the played and the other part of what the last heartbeats told, `due` the
    stalls in it and `later` those after it; `spent` is all that was told of `at - opened`."""

    at: int = 0
    seq: int = -1
    state: str = ""
    watched: int = 0
    opened: int = 0
    fresh: int = 0
    fresh_bits: float = 0.0
    idle: int = 0
    due: int = 0
    later: int = 0
    spent: int = 0
    rate_sum: float = 0.0
    rate_at: int = 0
    """Bits/s × ms of the interval that runs, up to `rate_at`."""
    rate_next: float = 0.0
    """The bitrate that the last heartbeat told, until it is clear that no event tells how it came to be."""
    stall_at: int = 0
    """Server's time at which a stall began that still goes on; -1: it is none that counts."""
    stall_clock: int = 0
    stall_told: int = 0
    stall_seq: int = -1
    resumed_at: int = 0
    """A heartbeat said `playing` although nothing has told of the stall's end."""
    seek_clock: int = 0
    seen: bool = False


class Reports(Struct, array_like=True):
    """Measuring by CMCD. `ts` is up to when time was counted, `sta` the state since then or before, `told` the newest `ts` that came with a
    state; `first` the first report's before anything was asked."""

    ts: int = 0
    told: int = 0
    sta: str = ""
    first: int = 0
    seeking: bool = False
    played_since: int = 0
    states: bool = False
    """It has told states: it alone is measured by."""
    targets: dict[str, tuple[int, int]] = {}
    """Target → the `sn` expected next, and how many below it are missing."""
    once: tuple[str, ...] = ()
    """The last happenings, for players that report the same to several targets."""
    count: int = 0
    missing: int = 0
    counted_at: int = 0


class Playback(Struct, array_like=True):
    """All of it. A stored one is never changed: `fold` works on a copy."""

    version: int = VERSION
    who: Who = msgspec.field(default_factory=Who)
    now: Watched = msgspec.field(default_factory=Watched)
    attempt: Attempt = msgspec.field(default_factory=Attempt)
    pieces: Pieces = msgspec.field(default_factory=Pieces)
    ads: Ads = msgspec.field(default_factory=Ads)
    beats: Beats = msgspec.field(default_factory=Beats)
    reports: Reports = msgspec.field(default_factory=Reports)

    def mine(self) -> Playback:
        """A copy whose parts may be changed; dicts and tuples are replaced, never changed."""
        return Playback(
            self.version, copy(self.who), copy(self.now), copy(self.attempt), copy(self.pieces), copy(self.ads),
            copy(self.beats), copy(self.reports),
        )  # fmt: skip


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Playback)
_version = msgspec.msgpack.Decoder(list[msgspec.Raw])


def encode(state: Playback) -> bytes:
    return _encoder.encode(state)


def decode(stored: bytes) -> Playback | None:
    """None if another version wrote it. Raises msgspec.DecodeError for what is no state."""
    parts = _version.decode(stored)
    if not parts or msgspec.msgpack.decode(parts[0]) != VERSION:
        return None
    return _decoder.decode(stored)
