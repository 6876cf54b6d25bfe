"""Seeded sessions whose truth is known: what a player did, told in three dialects, and what that adds up to.

A `Session` is a script: stretches of starting, playing, stalling, seeking and pausing with their lengths, and what happens at their
ends. `truth()` sums the script itself; `own()` and `cmcd(style)` tell it as the engine would log it. Nothing here knows how facts are made.

    session = Session(7, "cmcd")
    events, until = session.cmcd("hls")          # what the log has, and up to when each playback was heard of
    session.truth(until).play_ms

Times within a script are ms from its beginning. State changes are at least `STEP_MS` apart, so reports that overtake one another by less
than that change no sum.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from engine.events import Event, read

BEGIN = 1_795_400_000_000
STEP_MS = 200
BEAT_MS = 10_000
STYLES = ("hls", "dash", "shaka")
LETTERS = {"start": "s", "play": "p", "stall": "r", "seek": "k", "load": "r", "pause": "a"}
RATES = (400_000, 900_000, 1_800_000, 3_500_000, 6_000_000)


@dataclass
class Stretch:
    """From `begin` to `end` the player did `what`: start, play, stall, seek, load (data after a seek), pause."""

    what: str
    begin: int
    end: int
    rate: int
    ad: bool = False


@dataclass
class Mark:
    """What happened at a moment: rate, error, abs, as, ae, abe; `value` tells more."""

    at: int
    what: str
    value: Any = None


@dataclass
class Script:
    """One content's playback. `ending`: ended, stopped, timeout, error, zapped."""

    content: str
    begin: int
    kind: str
    first_rate: int
    stretches: list[Stretch] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    ending: str = "stopped"
    code: str = ""

    @property
    def end(self) -> int:
        return self.stretches[-1].end

    def at(self, when: int) -> Stretch:
        """The stretch that runs at a moment, the later one at a boundary."""
        return next((s for s in reversed(self.stretches) if s.begin <= when), self.stretches[0])


@dataclass
class Truth:
    """What the facts must add up to."""

    attempts: int = 0
    starts: int = 0
    start_ms: list[int] = field(default_factory=list)
    start_failures: int = 0
    exits: int = 0
    play_ms: int = 0
    ad_play_ms: int = 0
    bits: float = 0.0
    stall_ms: int = 0
    stalls: int = 0
    switches: int = 0
    down: int = 0
    errors: int = 0
    fatal: int = 0
    codes: list[str] = field(default_factory=list)
    ad_breaks: int = 0
    ad_starts: int = 0
    ad_ends: int = 0
    skipped: int = 0
    dropped: int = 0
    latencies: list[int] = field(default_factory=list)
    ends: int = 0
    silent: int = 0


class Session:
    """One to three playbacks of one session. `seeded` scripts are the same for the same seed and dialect."""

    def __init__(self, seed: int, dialect: str) -> None:
        self.rng = random.Random(f"{seed}/{dialect}")
        self.seed, self.dialect, self.name = seed, dialect, f"s{seed}"
        self.live = self.rng.random() < 0.3
        self.scripts: list[Script] = []
        # Frames dropped and latency as functions of time, so that every report can tell them.
        self._drops = sorted(self.rng.randrange(0, 400_000) for _ in range(self.rng.randrange(0, 12)))
        count = self.rng.choice((1, 1, 1, 2, 3))
        begin = 0
        for index in range(count):
            script = self._script(index, begin, last=index == count - 1)
            self.scripts.append(script)
            begin = script.end + self.rng.randrange(500, 3_000)

    def dropped(self, when: int) -> int:
        """The player's counter."""
        return 3 * sum(1 for at in self._drops if at <= when)

    def latency(self, when: int) -> int:
        return 2_000 + when * 7 % 900

    # The script

    def _script(self, index: int, begin: int, last: bool) -> Script:
        rng = self.rng
        script = Script(f"film-{index}", begin, "live" if self.live else "vod", rng.choice(RATES))
        if not last:
            script.ending = rng.choice(("zapped", "zapped", "ended"))
        else:
            script.ending = rng.choice(("ended", "stopped", "timeout", "timeout", "error"))
        rate = script.first_rate
        now = begin + rng.randrange(500, 6_000)
        script.stretches.append(Stretch("start", begin, now, rate))
        fate = rng.random()
        if fate < 0.2:
            # No first frame: a failure, or the viewer is gone.
            if fate < 0.1 and last:
                script.ending, script.code = "error", "manifestLoadError"
            elif last:
                script.ending = rng.choice(("stopped", "timeout"))
            return script
        script.code = "bufferAppendError"
        self._plays(script, now, rate)
        return script

    def _plays(self, script: Script, now: int, rate: int) -> None:
        """From the first frame on."""
        rng = self.rng

        def add(what: str, ms: int, ad: bool = False) -> None:
            nonlocal now
            script.stretches.append(Stretch(what, now, now + ms, rate, ad))
            now += ms

        def mark(what: str, value: Any = None) -> None:
            script.marks.append(Mark(now, what, value))

        if rng.random() < 0.3:
            self._break(script, mark, add)
        add("play", rng.randrange(3_000, 40_000))
        for _ in range(rng.randrange(1, 9)):
            step = rng.choice(("play", "stall", "stall", "seek", "pause", "rate", "rate", "ads", "error"))
            if step == "stall":
                # A minute and more, sometimes: told in pieces.
                add(
                    "stall",
                    rng.choice((rng.randrange(300, 6_000), rng.randrange(300, 6_000), rng.randrange(30_000, 130_000))),
                )
            elif step == "seek":
                self._seek(add)
            elif step == "pause":
                add("pause", rng.randrange(1_000, 50_000))
            elif step == "rate":
                rate = rng.choice([r for r in RATES if r != rate])
                mark("rate", rate)
            elif step == "ads":
                self._break(script, mark, add)
            elif step == "error" and self.dialect == "own":
                mark("error", ("subtitle_failed", False))
            add("play", rng.randrange(3_000, 40_000))

    def _seek(self, add: Any) -> None:
        """Data is fetched after it, either at once or after a moment of playing that the buffer still had."""
        rng = self.rng
        add("seek", rng.randrange(STEP_MS, 900))
        kind = rng.random()
        if kind < 0.4:
            add("load", rng.randrange(STEP_MS, 1_000))
        elif kind < 0.7 and self.dialect == "cmcd":
            add("play", rng.randrange(STEP_MS, 1_500))
            add("load", rng.randrange(STEP_MS, 3_000))

    def _break(self, script: Script, mark: Any, add: Any) -> None:
        mark("abs")
        for _ in range(self.rng.randrange(1, 3)):
            mark("as")
            add("play", self.rng.randrange(2_000, 20_000), True)
            if self.rng.random() < 0.3:
                add("stall", self.rng.randrange(300, 3_000), True)
                add("play", self.rng.randrange(2_000, 8_000), True)
            mark("ae", self.rng.random() < 0.3)
        mark("abe")

    # What it adds up to

    def truth(self, heard: list[int], told: list[list[int]]) -> Truth:
        """`heard`: until when each playback was heard of; `told`: the moments at which something was told, for what is sampled."""
        truth = Truth()
        for script, until, moments in zip(self.scripts, heard, told, strict=True):
            self._add(truth, script, until)
            last = max(moments, default=0)
            truth.dropped = max(truth.dropped, self.dropped(last))
            if script.kind == "live":
                truth.latencies += [self.latency(at) for at in moments]
        truth.latencies.sort()
        return truth

    def _add(self, truth: Truth, script: Script, until: int) -> None:
        truth.attempts += 1
        truth.ends += 1
        truth.silent += script.ending == "timeout"
        failed = script.ending == "error"
        truth.errors += failed
        truth.fatal += failed
        if len(script.stretches) == 1:
            truth.start_failures += failed
            truth.exits += not failed
            truth.codes += [script.code] * failed
            return
        truth.starts += 1
        truth.start_ms.append(script.stretches[0].end - script.begin)
        for stretch in script.stretches:
            ms = min(stretch.end, until) - stretch.begin
            if ms < 0:
                continue
            if stretch.what == "play":
                truth.play_ms += ms
                truth.ad_play_ms += ms * stretch.ad
                truth.bits += stretch.rate * ms / 1000
            elif stretch.what == "stall":
                truth.stall_ms += ms
                truth.stalls += 1
        self._count(truth, script, until)
        truth.codes += [script.code] * failed

    @staticmethod
    def _count(truth: Truth, script: Script, until: int) -> None:
        before = script.first_rate
        for mark in script.marks:
            if mark.at > until:
                continue
            truth.ad_breaks += mark.what == "abs"
            truth.ad_starts += mark.what == "as"
            truth.ad_ends += mark.what == "ae"
            truth.skipped += mark.what == "ae" and mark.value
            if mark.what == "rate":
                truth.switches += 1
                truth.down += mark.value < before
                before = mark.value
            elif mark.what == "error":
                truth.errors += 1
                truth.codes.append(mark.value[0])

    # The dialects

    def cmcd(self, style: str, jitter_ms: int = 0, lost: float = 0.0) -> Told:
        """In the manner of hls.js, dash.js or Shaka. Reports arrive up to `jitter_ms` late, each on its own; a share is `lost`."""
        return Reports(self, style, jitter_ms, lost).told()

    def own(self, inside: bool) -> Told:
        """By our own heartbeats; `inside`: events ride in the next heartbeat, else each is posted at once."""
        return Beats(self, inside).told()


@dataclass
class Told:
    """A session as the log has it. `lost_ms` is the time between reports around those that were lost. `blurred`: the player tells no
    position, so the engine knows what was played to a heartbeat only, where one falls into a stall. `cut`: how many playbacks were last heard of within a stall."""

    events: list[Event]
    truth: Truth
    reports: int = 0
    missing: int = 0
    lost: int = 0
    lost_ms: int = 0
    blurred: bool = False
    cut: int = 0


class Log:
    """Writes events as the engine does."""

    def __init__(self, session: Session) -> None:
        self._session, self._ids = session, 0
        self.events: list[Event] = []

    def write(self, kind_of: str, at: int, script: Script, view: int, data: Any, **more: Any) -> None:
        self._ids += 1
        payload = {
            "type": kind_of, "at": at, "view": view, "started_at": more.pop("started_at", 0), "seq": -1, "watched_ms": 0, "revision": 0,
            "account": "ann", "profile": "", "device": "tv", "session": self._session.name, "content": script.content, "kind": script.kind,
            "v": 1, "data": data,
        }  # fmt: skip
        self.events.append(read(3, f"{BEGIN}-{self._ids}", json.dumps(payload | more).encode()))


REASONS = {
    "ended": "stopped",
    "stopped": "stopped",
    "timeout": "timeout",
    "error": "error",
    "zapped": "content_changed",
}


@dataclass
class Report:
    script: int
    at: int
    keys: dict[str, Any]
    arrives: int = 0
    lost: bool = False


class Reports:
    """The CMCD dialects."""

    def __init__(self, session: Session, style: str, jitter_ms: int, lost: float) -> None:
        self._session, self._style = session, style
        self._rng = random.Random(f"{session.seed}/{style}/{jitter_ms}/{lost}")
        self._reports: list[Report] = []
        for index, script in enumerate(session.scripts):
            self._playback(index, script)
        self._skew = self._rng.randrange(-5_000, 5_000)
        for sn, report in enumerate(self._reports):
            report.keys |= {"sn": sn, "sid": session.name, "cid": session.scripts[report.script].content, "v": 2}
            report.keys["ts"] = BEGIN + report.keys.pop("ts", report.at)
            report.arrives = BEGIN + self._skew + report.at + 40 + self._rng.randrange(jitter_ms + 1)
            report.lost = self._rng.random() < lost

    def _playback(self, index: int, script: Script) -> None:
        found: list[tuple[int, int, dict[str, Any]]] = []
        if self._style == "hls" and index == 0:
            found.append((script.begin - 40, 0, {"e": "t"}))
        for stretch in script.stretches:
            found += self._turn(script, stretch)
        for mark in script.marks:
            found += self._mark(mark)
        last = script.end
        if script.ending == "ended":
            found.append((last, 9, {"e": "ps", "sta": "e"}))
        elif script.ending == "error":
            code = script.code if self._style == "dash" else [script.code]
            error = {"e": "e"} if self._style == "shaka" else {"e": "e", "ec": code}
            both = [error | {"sta": "f"}, {"e": "ps", "sta": "f"}]
            if self._rng.random() < 0.5:
                both.reverse()
            found += [(last, 9 + i, keys) for i, keys in enumerate(both)]
        for at in range(script.begin + BEAT_MS, last, BEAT_MS):
            found.append((at, 5, {"e": "t", "sta": self._sta(script, at)}))
        for at in range(script.begin + 150, last, 4_000):
            # The request began before; the state is that of the answer, and the bitrate that of one track.
            ago = self._rng.randrange(20, 1_500)
            keys = {
                "e": "rr",
                "rc": 200,
                "br": [64],
                "msd": 234,
                "ts": max(at - ago, script.begin),
                "sta": self._sta(script, at),
            }
            found.append((at, 4, keys))
        found.sort(key=lambda item: (item[0], item[1]))
        self._reports += [Report(index, at, self._with(script, at, keys)) for at, _, keys in found]

    def _sta(self, script: Script, at: int) -> str:
        letter = LETTERS[script.at(at).what]
        return "r" if letter == "s" and self._style == "shaka" else letter

    def _turn(self, script: Script, stretch: Stretch) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """The report of a new state, if it is one: stretches of play follow one another."""
        before = [s for s in script.stretches if s.end == stretch.begin and s is not stretch]
        if before and before[0].what == stretch.what:
            return
        keys: dict[str, Any] = {"e": "ps", "sta": self._sta(script, stretch.begin)}
        if stretch.what == "load":
            keys["bl"] = [0, 1_200]
        elif stretch.what == "stall" and self._rng.random() < 0.5:
            keys["bl"] = [0]
        yield stretch.begin, 2, keys
        if stretch.what == "start" and self._style == "dash":
            keys["msd"] = 1
            # "Rebuffering" while it starts.
            yield stretch.begin + 120, 2, {"e": "ps", "sta": "r", "bl": [0, 0]}

    def _mark(self, mark: Mark) -> Iterator[tuple[int, int, dict[str, Any]]]:
        order = {"ae": 0, "abe": 1, "abs": 2, "as": 3, "rate": 3}[mark.what]
        ours = {"abs": "ad_break_start", "as": "ad_start", "ae": "ad_end", "abe": "ad_break_end"}
        if mark.what == "rate":
            yield mark.at, order, {"e": "bc", "sta": "p", "br": mark.value}
            return
        if mark.what == "ae" and mark.value:
            yield mark.at, -1, {"e": "ce", "cen": "skip"} if self._style == "hls" else {"e": "sk"}
        yield mark.at, order, {"e": "ce", "cen": ours[mark.what]} if self._style == "hls" else {"e": mark.what}

    def _with(self, script: Script, at: int, keys: dict[str, Any]) -> dict[str, Any]:
        """With what every report tells."""
        keys = dict(keys)
        if keys["e"] in ("ps", "t", "bc"):
            rate = keys["br"] if keys["e"] == "bc" else self._rate(script, at)
            # dash.js tells the tracks apart, the others do not.
            keys["br"] = [rate / 1000 - 48, 48] if self._style == "dash" else [rate / 1000]
            keys["df" if self._style == "dash" else "dfa"] = self._session.dropped(at)
            if script.kind == "live":
                keys["ltc"] = self._session.latency(at)
        if script.ending == "error" and self._style == "dash" and keys["e"] == "ps" and keys.get("sta") == "f":
            keys["ec"] = script.code  # sticking
        return keys

    @staticmethod
    def _rate(script: Script, at: int) -> int:
        rate = script.first_rate
        for mark in script.marks:
            if mark.what == "rate" and mark.at <= at:
                rate = mark.value
        return rate

    def told(self) -> Told:
        log, scripts = Log(self._session), self._session.scripts
        came = sorted((r for r in self._reports if not r.lost), key=lambda r: r.arrives)
        views: dict[int, int] = {}
        ended: set[int] = set()
        running = -1
        for report in came:
            script, at = scripts[report.script], report.arrives
            if report.script > running:
                if running >= 0:
                    self._end(log, running, views, at, ended)
                running = report.script
                views[running] = at
                log.write("view_start", at, script, running + 1, {"origin": "p"}, started_at=at)
            sn, sta = report.keys["sn"], report.keys.get("sta")
            now = scripts[running]
            if report.keys["e"] in ("ps", "t") and sta not in (None, "e", "f"):
                log.write(
                    "heartbeat",
                    at,
                    now,
                    running + 1,
                    {"cmcd": sn, "device_type": "web"},
                    started_at=views[running],
                    seq=sn,
                )
            log.write(
                "cmcd",
                at,
                now,
                running + 1,
                {"type": "cmcd", "target": "", "keys": report.keys, "raw": ""},
                started_at=views[running],
            )
        if running >= 0:
            self._end(log, running, views, came[-1].arrives + 30_000, ended)
        return self._sums(log, came, views)

    def _end(self, log: Log, index: int, views: dict[int, int], at: int, ended: set[int]) -> None:
        if index in ended:
            return
        ended.add(index)
        script = self._session.scripts[index]
        data = {
            "reason": REASONS[script.ending],
            "watched_ms": 0,
            "max_position": 0,
            "completed": False,
            "last_seen_at": at,
        }
        log.write("view_end", at, script, index + 1, data, started_at=views[index])

    def _sums(self, log: Log, came: list[Report], views: dict[int, int]) -> Told:
        scripts = self._session.scripts
        heard = [max((r.keys["ts"] - BEGIN for r in came if r.script == i), default=-1) for i in range(len(scripts))]
        sampled = [
            [r.keys["ts"] - BEGIN for r in came if r.script == i and r.keys["e"] in ("ps", "t", "bc")] for i in range(len(scripts))
        ]  # fmt: skip
        truth = self._session.truth(heard, sampled)
        if self._style == "shaka":
            truth.codes = [""] * len(truth.codes)
        newest = max((r.keys["sn"] for r in came), default=-1)
        gone = [r for r in self._reports if r.lost]
        return Told(
            log.events, truth, len(came), sum(1 for r in gone if r.keys["sn"] < newest), len(gone), _around(self._reports)
        )  # fmt: skip


def _around(reports: Iterable[Report]) -> int:
    """Ms in which what was lost may have misled: from the report before to the next that tells of a state; if a change was lost, to the next
    that says it plays, for what came in between looks like something else (a stall like starting, or a seek's loading like a stall)."""
    total, last, newest, waits = 0, 0, 0, ""
    for report in reports:
        at, kind = report.at, report.keys["e"]
        newest = at
        if "sta" not in report.keys or kind == "rr":
            continue
        if report.lost:
            waits = "ps" if kind == "ps" else waits or "any"
            # What is loaded a little later looks like a stall.
            total += 3_000 * (report.keys["sta"] == "k")
        elif not waits:
            last = at
        elif waits == "any" or report.keys["sta"] == "p":
            total, last, waits = total + at - last, at, ""
    return total + (newest - last if waits else 0)


class Beats:
    """Our own dialect: a heartbeat every 10 s and at every change of state, but stalls are told by events alone."""

    def __init__(self, session: Session, inside: bool) -> None:
        self._session, self._inside = session, inside
        self._rng = random.Random(f"{session.seed}/own/{inside}")
        self._by_position = not session.live or self._rng.random() < 0.5
        self._log = Log(session)
        self._seq = 0

    def told(self) -> Told:
        heard, sampled = [], []
        for index, script in enumerate(self._session.scripts):
            moments = self._playback(index, script)
            heard.append(moments[-1])
            sampled.append(moments)
        cut = sum(script.at(at).what == "stall" for script, at in zip(self._session.scripts, heard, strict=True))
        truth = self._session.truth(heard, sampled)
        return Told(self._log.events, truth, blurred=not self._by_position, cut=cut)

    def _moments(self, script: Script) -> list[tuple[int, str]]:
        """When heartbeats are sent, and the state they tell."""
        words = {
            "start": "starting",
            "play": "playing",
            "stall": "playing",
            "seek": "seeking",
            "load": "seeking",
            "pause": "paused",
        }
        found = {script.begin: "starting"}
        for before, after in zip(script.stretches, script.stretches[1:], strict=False):
            if words[before.what] != words[after.what]:
                found[after.begin] = words[after.what]
        for at in range(script.begin + BEAT_MS, script.end, BEAT_MS):
            found.setdefault(at, "buffering" if script.at(at).what == "stall" else words[script.at(at).what])
        if script.ending in ("ended", "error"):
            found[script.end] = script.ending
        return sorted(found.items())

    def _happened(self, script: Script) -> list[tuple[int, int, dict[str, Any]]]:
        """The events: when, their order at one moment, and their JSON."""
        found: list[tuple[int, int, dict[str, Any]]] = []
        ours = {"abs": "ad_break_start", "as": "ad_start", "ae": "ad_end", "abe": "ad_break_end"}
        orders = {"ae": 0, "abe": 1, "rate": 2, "error": 2, "abs": 3, "as": 4}
        rate = script.first_rate
        for mark in script.marks:
            if mark.what == "rate":
                found.append((mark.at, orders["rate"], {"type": "bitrate_change", "from": rate, "to": mark.value}))
                rate = mark.value
            elif mark.what == "error":
                found.append(
                    (mark.at, orders["error"], {"type": "error", "code": mark.value[0], "fatal": mark.value[1]})
                )
            else:
                more = {"skipped": mark.value} if mark.what == "ae" else {}
                found.append((mark.at, orders[mark.what], {"type": ours[mark.what], "ad_type": "mid-roll", **more}))
        for stretch in script.stretches:
            if stretch.what == "seek":
                found.append((stretch.begin, 5, {"type": "seek", "data": {"to": 1}}))
            elif stretch.what in ("stall", "load"):
                found.append((stretch.begin, 6, {"type": "buffer_start"}))
                more = {"duration_ms": stretch.end - stretch.begin} if self._rng.random() < 0.5 else {}
                found.append((stretch.end, -1, {"type": "buffer_end", **more}))
        if script.ending == "error":
            found.append((script.end, 9, {"type": "error", "code": script.code, "data": {"fatal": True}}))
        for at, _, event in found:
            event["at"] = BEGIN + 777 + at
        return sorted(found, key=lambda item: item[:2])

    def _playback(self, index: int, script: Script) -> list[int]:
        began = BEGIN + script.begin
        self._log.write("view_start", began, script, index + 1, {"origin": "p"}, started_at=began)
        waiting, moments = self._happened(script), self._moments(script)
        watched, before = 0, moments[0]
        for moment in moments:
            at, state = moment
            due = [item for item in waiting if item[0] <= at]
            waiting = [item for item in waiting if item[0] > at]
            if not self._inside:
                for when, _, event in due:
                    self._log.write(event["type"], BEGIN + when, script, index + 1, event, started_at=began)
            watched += self._moved(script, before, at)
            self._seq += 1
            more = {"seq": self._seq, "watched_ms": watched, "started_at": began}
            self._log.write("heartbeat", BEGIN + at, script, index + 1, self._body(script, at, state), **more)
            if self._inside:
                for _, _, event in due:
                    self._log.write(event["type"], BEGIN + at, script, index + 1, event, **more)
            before = moment
        last = BEGIN + moments[-1][0]
        data = {
            "reason": REASONS[script.ending], "watched_ms": watched, "max_position": 60.5, "duration": 5400, "completed": False,
            "last_seen_at": last, "started_at": began,
        }  # fmt: skip
        self._log.write(
            "view_end", last + (30_000 if script.ending == "timeout" else 0), script, index + 1, data, started_at=began
        )
        return [at for at, _ in moments]

    def _moved(self, script: Script, before: tuple[int, str], at: int) -> int:
        """What the engine adds to `watched_ms`: how far the position moved, and without one the time since a heartbeat that said playing."""
        since, state = before
        if not self._by_position:
            return at - since if state == "playing" else 0
        if state == "seeking":
            # It jumps, and the engine takes as much of that as time has passed.
            return at - since
        return sum(
            max(0, min(s.end, at) - max(s.begin, since)) for s in script.stretches if s.what == "play"
        )  # fmt: skip

    def _body(self, script: Script, at: int, state: str) -> dict[str, Any]:
        quality: dict[str, Any] = {
            "dropped_frames": self._session.dropped(at), "bitrate": Reports._rate(script, at), "player": "ours", "cdn": "cdn-a",
        }  # fmt: skip
        if script.kind == "live":
            quality["latency_ms"] = self._session.latency(at)
        if len(script.stretches) > 1 and at >= script.stretches[0].end:
            quality["startup_ms"] = script.stretches[0].end - script.begin
        body = {
            "session": self._session.name,
            "state": state,
            "quality": quality,
            "device_type": "tv",
            "provider": "p1",
        }
        return body | ({"position": at / 1000} if self._by_position else {})
