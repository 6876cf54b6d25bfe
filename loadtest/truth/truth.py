"""The truth as the simulator wrote it: one JSON object a line. Times are ms, positions seconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from msgspec import Struct


class TruthError(Exception):
    """A file is no truth, or one that is cut off."""


class Plan(Struct):
    limit: int
    unit: str = "device"
    mode: str = "deny_new"


class Run(Struct, tag="run"):
    """The first line."""

    seed: int
    start: int = 0
    tick_ms: int = 250
    plans: dict[str, Plan] = {}
    parts: list[tuple[int, int]] = []
    """(from, to) of the prelude, if there is one, and of the run, which begins at `start` and is what is judged."""

    @property
    def spans(self) -> list[tuple[int, int]]:
        """When anything happened."""
        return self.parts or [(self.start, self.start + 86_400_000)]


class Device(Struct):
    device: str
    device_type: str = ""
    backend_only: bool = False


class Household(Struct, tag="household"):
    account: str
    plan: str
    limit: int
    mode: str = "deny_new"
    honest: bool = True
    devices: list[Device] = []
    profiles: list[str] = []


class Request(Struct, tag="request"):
    """Something that reached the server and was answered. `call`: heartbeat, signal, edge, check, stop, takeover."""

    at: int
    account: str
    call: str = "heartbeat"
    n: int = 0
    device: str = ""
    machine: str = ""
    """What the device really is: two machines of a cheat may share a device's id."""
    session: str = ""
    content: str | None = None
    seq: int | None = None
    state: str | None = None
    position: float | None = None
    evidence: str | None = None
    sent_at: int = 0
    attempt: int = 0
    lost_answer: bool = False
    late: bool = False
    decision: str | None = None
    reason: str | None = None
    rule: str | None = None
    degraded: bool = False
    duplicate: bool = False
    by: str | None = None
    status: int = 200


class Lost(Request, tag="lost"):
    """Something that never reached the server."""


class Play(Struct, tag="play"):
    """What physically happened. `state`: playing, paused, buffering, seeking, ad, starting."""

    account: str
    session: str
    started_at: int
    ended_at: int
    state: str
    device: str = ""
    machine: str = ""
    profile: str | None = None
    content: str | None = None
    kind: str | None = None
    from_position: float | None = None
    to_position: float | None = None
    rate: float = 1.0


class View(Struct, tag="view"):
    """One content watched in one session, physically. `end`: stop, power_off, sleep, zap, finished, error, blocked, crash,
    still_running."""

    account: str
    session: str
    started_at: int
    ended_at: int
    end: str
    device: str = ""
    profile: str | None = None
    content: str = ""
    kind: str = "vod"
    played_ms: float = 0
    last_position: float | None = None
    last_delivered_at: int | None = None
    last_delivered_position: float | None = None
    completed: bool | None = None
    duration: float | None = None


class Surge(Struct, tag="surge"):
    """`decoy`: a rise that must not be listed."""

    content: str
    kind: str
    from_: int = msgspec.field(name="from")
    to: int
    factor: float = 0.0
    viewers_before: float = 0.0
    decoy: bool = False


class Sample(Struct, tag="sample"):
    """Content → viewers who physically play at that moment."""

    at: int
    viewers: dict[str, int] = {}


class Observed(Struct, tag="observed"):
    """What the engine said at that moment: content → concurrent viewers (absent: not asked), kind → contents listed, best first."""

    at: int
    concurrent: dict[str, int] | None = None
    trending: dict[str, list[str]] | None = None


class End(Struct, tag="end"):
    at: int = 0
    counts: dict[str, float] = {}


Line = Run | Household | Request | Lost | Play | View | Surge | Sample | Observed | End
_decoder = msgspec.json.Decoder(Line)


@dataclass
class Truth:
    """One run of the simulator."""

    run: Run
    households: dict[str, Household] = field(default_factory=dict)
    requests: dict[str, list[Request]] = field(default_factory=lambda: defaultdict(list))
    lost: dict[str, list[Lost]] = field(default_factory=lambda: defaultdict(list))
    plays: dict[str, list[Play]] = field(default_factory=lambda: defaultdict(list))
    views: dict[str, list[View]] = field(default_factory=lambda: defaultdict(list))
    """These four by account, in order of time."""
    surges: list[Surge] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    observed: list[Observed] = field(default_factory=list)
    end: End = field(default_factory=End)

    @property
    def seed(self) -> int:
        return self.run.seed

    @classmethod
    def of(cls, lines: Iterable[Line]) -> Truth:
        """Raises TruthError."""
        made: Truth | None = None
        for line in lines:
            if made is None:
                if not isinstance(line, Run):
                    raise TruthError("the truth must begin with a line of type run")
                made = cls(line)
            else:
                made._add(line)
        if made is None:
            raise TruthError("the truth is empty")
        for requests in (made.requests, made.lost):
            for each in requests.values():
                each.sort(key=lambda r: (r.at, r.n))
        for plays in made.plays.values():
            plays.sort(key=lambda p: (p.started_at, p.ended_at))
        for views in made.views.values():
            views.sort(key=lambda v: (v.started_at, v.ended_at))
        return made

    def _add(self, line: Line) -> None:
        match line:
            case Household():
                self.households[line.account] = line
            case Lost():
                self.lost[line.account].append(line)
            case Request():
                self.requests[line.account].append(line)
            case Play():
                self.plays[line.account].append(line)
            case View():
                self.views[line.account].append(line)
            case Surge():
                self.surges.append(line)
            case Sample():
                self.samples.append(line)
            case Observed():
                self.observed.append(line)
            case End():
                self.end = line
            case Run():
                raise TruthError("a second line of type run")

    @classmethod
    def read(cls, path: Path) -> Truth:
        """Raises TruthError with the number of the line that cannot be read."""

        def lines() -> Iterable[Line]:
            with path.open("rb") as file:
                for number, text in enumerate(file, 1):
                    try:
                        yield _decoder.decode(text)
                    except msgspec.DecodeError as error:
                        raise TruthError(f"{path.name}, line {number}: {error}") from None

        return cls.of(lines())
