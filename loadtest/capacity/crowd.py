"""Who sends what: viewers, one an account, and the share of each kind of request."""

from __future__ import annotations

import itertools
import random
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

from loadtest.bench_load import token

INTERVAL_S = 10
TITLES = 2_000
MIX: Mapping[str, float] = {"plain": 92, "zap": 3, "join": 2, "stop": 2, "check": 1}
"""Per cent of requests: heartbeats of known sessions, of which some with another content than before; first heartbeats of new
sessions, stops, checks. Half an hour at a content would be 0.6 % zaps; this is an evening of zapping."""
PLAIN: Mapping[str, float] = {"plain": 100}


class Request(NamedTuple):
    kind: str
    method: str
    path: str
    body: bytes
    token: str


class Viewer:
    """One account with one device."""

    __slots__ = ("content", "device", "on", "seq", "session", "token")

    def __init__(self, signed: str, device: str, content: int) -> None:
        self.token, self.device, self.content = signed, device, content
        self.session, self.seq, self.on = "", 0, False


def parse_mix(text: str) -> dict[str, float]:
    """`plain=92,zap=3,…`. Raises ValueError that names what is wrong."""
    mix: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.partition("=")
        if name not in MIX:
            raise ValueError(f"mix: {name!r} is none of {', '.join(MIX)}")
        try:
            mix[name] = float(share)
        except ValueError:
            raise ValueError(f"mix: {part!r} is not name=per cent") from None
        if not 0 <= mix[name] <= 100:
            raise ValueError(f"mix: {part!r} is not between 0 and 100 per cent")
    if abs(sum(mix.values()) - 100) > 1e-6:
        raise ValueError(f"mix: the shares add up to {sum(mix.values()):g}, not 100")
    return mix


class Crowd:
    """The next request, again and again, the same for the same seed. Each active viewer's turn comes once a round."""

    def __init__(
        self, viewers: int, mix: Mapping[str, float] = MIX, *, seed: int = 1, name: str = "cap",
        sign: Callable[[str], str] = token,
    ) -> None:  # fmt: skip
        if viewers < 1:
            raise ValueError(f"viewers: expected 1 or more, got {viewers}")
        self._random = random.Random(seed)
        self._viewers = [
            Viewer(sign(f"{name}-{n:07d}"), f"{n:016x}", self._random.randrange(TITLES)) for n in range(viewers)
        ]
        self._kinds, weights = list(mix), list(mix.values())
        self._weights = list(itertools.accumulate(weights))
        self._active = viewers
        self._turn = 0
        self._off: deque[Viewer] = deque()
        for viewer in self._viewers:
            self._begin(viewer)
        # Somebody must be away for somebody to join.
        for viewer in self._viewers[:: max(2, viewers // max(1, viewers // 50))] if mix.get("join") else ():
            viewer.on = False
            self._off.append(viewer)

    def activate(self, per_s: float) -> float:
        """No viewer beats more often than every ten seconds unless there are too few of them for the rate, so that at a low rate
        none lapses unheard. Returns the seconds of a round."""
        self._active = max(1, min(len(self._viewers), int(per_s * INTERVAL_S)))
        self._turn = 0
        return self._active / per_s

    def next(self) -> Request:
        kind = self._random.choices(self._kinds, cum_weights=self._weights)[0] if len(self._kinds) > 1 else "plain"
        if kind == "join" and self._off:
            viewer = self._off.popleft()
            self._begin(viewer)
            return self._beat(kind, viewer)
        viewer = self._watching()
        if kind == "zap":
            viewer.content = (viewer.content + 1 + self._random.randrange(TITLES - 1)) % TITLES
        elif kind == "stop":
            viewer.on = False
            self._off.append(viewer)
            return Request(kind, "POST", f"/v1/sessions/{viewer.session}/stop", b"", viewer.token)
        elif kind == "check":
            path = (
                f"/v1/check?session={viewer.session}&device={viewer.device}&content=title-{viewer.content:05d}&kind=vod"
            )
            return Request(kind, "GET", path, b"", viewer.token)
        else:
            kind = "plain"
        return self._beat(kind, viewer)

    def _watching(self) -> Viewer:
        for _ in range(self._active):
            viewer = self._viewers[self._turn]
            self._turn = (self._turn + 1) % self._active
            if viewer.on:
                return viewer
        # All have stopped, which only a mix with more stops than joins can bring about.
        viewer = self._viewers[self._turn]
        self._begin(viewer)
        return viewer

    def _begin(self, viewer: Viewer) -> None:
        viewer.on, viewer.seq = True, 0
        viewer.session = str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def _beat(self, kind: str, viewer: Viewer) -> Request:
        body = heartbeat(
            viewer.session, viewer.device, f"title-{viewer.content:05d}", viewer.seq, 600.5 + viewer.seq * INTERVAL_S
        )
        viewer.seq += 1
        return Request(kind, "POST", "/v1/heartbeats", body, viewer.token)


def heartbeat(session: str, device: str, content: str, seq: int, position: float) -> bytes:
    """What a player sends: about 200 bytes. The same as `bench_load.heartbeat_json`, at a tenth of its cost."""
    return (
        f'{{"session":"{session}","device":"{device}","content":"{content}","kind":"vod","position":{position:.1f},'
        f'"state":"playing","seq":{seq},"quality":{{"bitrate":4200000}}}}'
    ).encode()
