"""Telling: how facts are made, what is gathered until it is worth one, and how an attempt comes to its one outcome.

Both ways of measuring (`fold_own.py`, `fold_cmcd.py`) tell through a `Teller`, one for each event.
"""

from __future__ import annotations

from typing import Any

from engine.events import Event, order
from engine.quality.facts import Fact
from engine.quality.fold_read import TEXT, meant
from engine.quality.state import (
    ASKED,
    ERRED,
    FAILED,
    FINE,
    NONE,
    OVER,
    RUNNING,
    Ads,
    Attempt,
    Beats,
    Pieces,
    Playback,
    Watched,
)

PIECE_MS = 60_000
"""The longest piece of playing, and of a stall."""
GAP_MS = 30_000
"""Silence longer than three intervals: nobody knows what was in it."""
LONGEST_MS = 6 * 3_600_000
"""No difference of two times is believed beyond this."""
LABELS = 10


class Teller:
    """The facts of one event, and the state they change."""

    def __init__(self, state: Playback, event: Event, source: str = "event") -> None:
        self.s, self.event, self.source = state, event, source
        self.facts: list[Fact] = []
        self._stream = order(event.stream_id)

    def tell(self, fact: str, **more: Any) -> None:
        """One fact, with all dimensions as they are now; `more` wins over them."""
        who, now, ads, event = self.s.who, self.s.now, self.s.ads, self.event
        stream_ms, stream_seq = self._stream
        said: dict[str, Any] = {
            "view": now.view, "started_at": now.begun, "profile": who.profile, "device": who.device, "content": now.content or event.content,
            "kind": now.kind or event.kind, "provider": who.provider, "device_type": who.device_type, "os": who.os,
            "browser": who.browser, "app_version": who.app_version, "player": who.player, "player_version": who.player_version,
            "cdn": who.cdn, "edge": who.edge, "asn": who.asn, "country": who.country, "experiment": who.experiment,
            "labels": who.labels, "ad_break": ads.part, "ad": ads.on, "source": self.source,
        }  # fmt: skip
        said.update(more)
        self.facts.append(
            Fact(
                fact=fact, at=event.at, account=event.account, session=event.session, partition=event.partition,
                stream_ms=stream_ms, stream_seq=stream_seq, part=len(self.facts), **said,
            )
        )  # fmt: skip

    def learn(self, **dims: str) -> None:
        """Dimensions of the session; '' teaches nothing. What was gathered under others is told first."""
        who = self.s.who
        new = {name: value for name, value in dims.items() if value and value != getattr(who, name)}
        if new:
            self.flush()
            for name, value in new.items():
                setattr(who, name, value)

    def label(self, labels: Any) -> None:
        """Custom labels: the last word counts; beyond ten, or of another type, they are ignored."""
        if not isinstance(labels, dict):
            return
        known = dict(self.s.who.labels)
        for name, value in labels.items():
            if (
                isinstance(name, str)
                and isinstance(value, str)
                and 0 < len(name) <= TEXT
                and (name in known or len(known) < LABELS)
            ):
                known[name] = value[:TEXT]
        if known != self.s.who.labels:
            self.flush()
            self.s.who.labels = known

    # Pieces

    def play(self, ms: int, rate: float | None = None) -> None:
        """Played, at `rate` (bits/s; None: the one that is known)."""
        pieces = self.s.pieces
        rate = pieces.rate if rate is None else rate
        if self.s.ads.on:
            self.s.ads.ms += ms
        while ms > 0:
            part = min(ms, PIECE_MS - pieces.play_ms)
            pieces.play_ms += part
            if rate > 0:
                pieces.bits += rate * part / 1000
                pieces.bits_ms += part
            ms -= part
            if pieces.play_ms >= PIECE_MS:
                self._tell_play()

    def unplay(self, ms: int) -> None:
        """Takes back what was gathered too much; what was told stays."""
        pieces = self.s.pieces
        ms = min(ms, pieces.play_ms)
        if ms > 0:
            left = 1 - ms / pieces.play_ms
            pieces.play_ms, pieces.bits, pieces.bits_ms = (
                pieces.play_ms - ms,
                pieces.bits * left,
                round(pieces.bits_ms * left),
            )
            if self.s.ads.on:
                self.s.ads.ms = max(0, self.s.ads.ms - ms)

    def begin_stall(self) -> None:
        pieces = self.s.pieces
        pieces.stalling = pieces.stall_new = True

    def stall(self, ms: int) -> None:
        pieces = self.s.pieces
        while ms > 0:
            part = min(ms, PIECE_MS - pieces.stall_ms)
            pieces.stall_ms += part
            ms -= part
            if pieces.stall_ms >= PIECE_MS:
                self._tell_stall()

    def end_stall(self) -> None:
        self._tell_stall()
        self.s.pieces.stalling = False

    def flush(self) -> None:
        """Tells what was gathered."""
        self._tell_play()
        if self.s.pieces.stall_ms:
            self._tell_stall()

    def _tell_play(self) -> None:
        pieces = self.s.pieces
        if pieces.play_ms > 0:
            known = {"bits": round(pieces.bits, 3), "bits_ms": pieces.bits_ms} if pieces.bits_ms else {}
            self.tell("play", ms=pieces.play_ms, stalls_known=pieces.stalls_known, **self._measured(), **known)
        pieces.play_ms, pieces.bits, pieces.bits_ms = 0, 0.0, 0

    def _tell_stall(self) -> None:
        pieces = self.s.pieces
        if pieces.stall_ms or pieces.stall_new:
            self.tell("stall", ms=pieces.stall_ms, count=int(pieces.stall_new), stalls_known=True, **self._measured())
        pieces.stall_ms, pieces.stall_new = 0, False

    def _measured(self) -> dict[str, Any]:
        """The source of what is gathered: it may be told on an event of another kind."""
        return {"source": "cmcd" if self.s.reports.states else "heartbeat", "started": True}

    # The attempt

    def ask(self, asked: int, firm: bool = False) -> None:
        """Playback was asked for, at `asked` by the measuring clock; 0: nobody can say when."""
        attempt = self.s.attempt
        if attempt.phase == OVER:
            self.renew()
            attempt = self.s.attempt
        attempt.phase, attempt.asked, attempt.firm = ASKED, asked, firm

    def _attempted(self) -> None:
        """An attempt is told with its outcome: both are of one moment and have the same dimensions, which are seldom known at the request
        (who the client is comes a moment later)."""
        if self.s.attempt.phase == ASKED:
            self.tell("attempt")

    def frame(self, ms: int | None) -> None:
        """The first frame of the attempt, `ms` after the request."""
        attempt = self.s.attempt
        self._attempted()
        attempt.phase, attempt.frame, attempt.failing = RUNNING, True, FINE
        ms = ms if ms is not None and 0 <= ms <= LONGEST_MS else None
        self.tell("start", ms=ms, value=attempt.claimed, started=True)

    def error(self, code: str, message: str, fatal: bool, business: bool = False) -> None:
        attempt = self.s.attempt
        attempt.code, attempt.message = code, message
        attempt.business = business or attempt.refused or meant(code, message)
        self.tell("error", code=code, message=message, fatal=fatal, business=attempt.business, started=attempt.frame)

    def give_up(self) -> None:
        """Playback has ended by an error that was told."""
        attempt = self.s.attempt
        if attempt.phase == ASKED:
            self._attempted()
            self.tell("start_failure", code=attempt.code, message=attempt.message, business=attempt.business)
        self._over()

    def leave(self) -> None:
        """Playback has ended without an error."""
        if self.s.attempt.phase == ASKED:
            self._attempted()
            self.tell("exit")
        self._over()

    def _over(self) -> None:
        attempt = self.s.attempt
        if attempt.phase != NONE:
            attempt.phase, attempt.over_at = OVER, self.event.at
        attempt.failing = FINE

    def owe(self) -> None:
        """The player has given up: with an error that was told, or that is yet to come."""
        attempt = self.s.attempt
        if attempt.failing == ERRED:
            self.give_up()
        elif attempt.phase in (ASKED, RUNNING):
            attempt.failing = FAILED

    def pay(self) -> None:
        """No error came that would say why the player gave up: so it is told without a code."""
        if self.s.attempt.failing == FAILED:
            self.error("", "", fatal=True)
            self.s.attempt.bare = True
            self.give_up()

    def close(self) -> None:
        """Nothing more is heard of this playback for now: all that was gathered is told, and an attempt without a frame has its outcome."""
        self.flush()
        self.end_stall()
        attempt, ads = self.s.attempt, self.s.ads
        self.pay()
        if attempt.phase == ASKED:
            if attempt.failing == ERRED:
                self.give_up()
            else:
                self.leave()
        ads.on, ads.part, ads.ms, ads.skip = False, "", 0, False
        self.s.reports.sta = ""

    def renew(self) -> None:
        """Another attempt; the view stays, unless it has ended."""
        s = self.s
        s.attempt = Attempt(refused=s.attempt.refused)
        s.pieces = Pieces(stalls_known=s.pieces.stalls_known, dropped=s.pieces.dropped)
        s.ads = Ads(by_cmcd=s.ads.by_cmcd)
        s.beats = Beats(at=s.beats.at, seq=s.beats.seq, state=s.beats.state, watched=s.beats.watched, seen=s.beats.seen)
        if s.now.ended:
            s.now = Watched(s.now.content, s.now.kind, cid=s.now.cid, past=s.now.view, past_begun=s.now.begun)

    # What both ways of measuring tell alike

    def rate(self, rate: float, rank: int = 0, before: float = 0.0) -> None:
        """The bitrate (bits/s) from now on; a switch if the picture was seen and another one is known."""
        pieces = self.s.pieces
        if rank < pieces.rank or rate <= 0:
            return
        before = before or (pieces.rate if rank == pieces.rank else 0.0)
        pieces.rate, pieces.rank = rate, rank
        if self.s.attempt.phase == RUNNING and 0 < before != rate:
            self.tell("switch", value=rate, before=before)

    def drop(self, counter: int | None) -> None:
        """Dropped frames since the session began; a smaller counter began anew."""
        pieces = self.s.pieces
        if counter is None:
            return
        more = counter - pieces.dropped if 0 <= pieces.dropped <= counter else counter
        pieces.dropped = counter
        if more or not pieces.dropped_told:
            pieces.dropped_told = True
            self.tell("dropped", value=float(more))

    def late_by(self, latency: float | None) -> None:
        if latency is not None:
            self.tell("latency", value=latency)

    def break_starts(self, part: str) -> None:
        self.flush()
        self.s.ads.part = part or self.s.ads.part or self._place()
        self.tell("ad_break")

    def _place(self) -> str:
        """Which break it is when nobody says: what comes after the end cannot be told apart."""
        return "mid-roll" if self.s.attempt.frame else "pre-roll"

    def break_ends(self) -> None:
        self.flush()
        self.s.ads.on, self.s.ads.part = False, ""

    def ad_starts(self, ms: int | None = None, part: str = "", began: int = 0) -> None:
        ads = self.s.ads
        self.flush()
        ads.on, ads.ms, ads.skip, ads.began = True, 0, False, began
        ads.part = part or ads.part
        self.tell("ad_start", ms=ms)

    def ad_ends(self, ms: int | None, skipped: bool) -> None:
        ads = self.s.ads
        self.flush()
        self.tell("ad_end", ms=ms, skipped=skipped or ads.skip, ad=True)
        ads.on, ads.ms, ads.skip, ads.began = False, 0, False, 0
