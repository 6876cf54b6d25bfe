"""Players through an outage: each beats at its own rhythm, retries as docs/api.md asks, and all come back at once.

Every account's slots are full, and at one in a hundred a further device asks for one again and again and must be refused. So
a false block shows, and so does a slot given away. Works on a Pool, in one event loop.
"""

from __future__ import annotations

import asyncio
import functools
import heapq
import random
import time
import uuid
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from loadtest.bench_load import token
from loadtest.capacity.crowd import TITLES, heartbeat
from loadtest.capacity.generator import percentile, wrong_with
from loadtest.capacity.ticker import Ticker
from loadtest.capacity.timeline import Timeline
from loadtest.http1 import Answer, Pool

RETRY_S = (2.0, 4.0)
"""Unanswered: the same heartbeat again so long after it was first sent."""
JITTER = 0.25
"""Each waits up to so much of it longer."""
SLOTS = 2
"""Of an account, by its plan."""
_AWAY = "nobody listens"
_AT_A_TIME = 256
"""Attempts before answers are looked at again, however many more are due."""


class Player:
    """One session on one device. `wants_slot`: the further device, which nobody may let in."""

    __slots__ = (
        "account",
        "attempt",
        "body",
        "content",
        "device",
        "first",
        "open",
        "seq",
        "session",
        "token",
        "turn",
        "wanted",
        "wants_slot",
    )

    def __init__(self, account: str, signed: str, number: int, chance: random.Random, wants_slot: bool) -> None:
        self.account, self.token, self.wants_slot = account, signed, wants_slot
        self.session = str(uuid.UUID(int=chance.getrandbits(128), version=4))
        self.device, self.content = f"{number:016x}", f"title-{chance.randrange(TITLES):05d}"
        self.seq = self.turn = self.attempt = 0
        self.body, self.open = b"", False
        self.first = self.wanted = 0.0
        """When the heartbeat was first sent, and from when its answer is waited for."""


@dataclass
class Seen:
    """What was wrong, over the whole run."""

    false_blocks: int = 0
    degraded: int = 0
    let_in: int = 0
    """Further devices that were allowed to play."""
    refused: int = 0
    """Rightly."""
    wrong: Counter[str] = field(default_factory=Counter)
    said: str = ""
    """The first false block, or the first wrong answer."""
    late_s: array[float] = field(default_factory=lambda: array("d"))
    """From due to sent: the generator's own doing."""

    @property
    def late_p99_ms(self) -> float:
        return percentile(sorted(self.late_s), 0.99) * 1000


class Herd:
    """`start` begins; `away` tells that nobody listens (every attempt fails at once, as it would); `back` that it is over."""

    def __init__(
        self, count: int, interval_s: float, pool: Pool, *, seed: int = 1, name: str = "storm",
        sign: Callable[[str], str] = token, clock: Callable[[], float] = time.perf_counter,
    ) -> None:  # fmt: skip
        if count < 1 or interval_s <= 0:
            raise ValueError(f"count, interval_s: expected 1 or more and above 0, got {count} and {interval_s}")
        self._chance = random.Random(seed)
        self._interval, self._pool, self._clock = interval_s, pool, clock
        self._retry = tuple(wait * min(1.0, interval_s / 10) for wait in RETRY_S)
        accounts = -(-count // SLOTS)
        signed = [sign(f"{name}-{n:07d}") for n in range(accounts)]
        self.players = [
            Player(f"{name}-{n // SLOTS:07d}", signed[n // SLOTS], n, self._chance, False)
            for n in range(accounts * SLOTS)
        ]
        self.others = [
            Player(f"{name}-{n:07d}", signed[n], accounts * SLOTS + n, self._chance, True)
            for n in range(0, accounts, 100)
        ]
        self._heap: list[tuple[float, int, Player, int]] = []
        self._count = 0
        self._away = False
        self._ticker: Ticker | None = None
        self.seen = Seen()
        self.timeline = Timeline(clock())

    def start(self) -> None:
        """All begin within an interval; the further devices within the next one, when every slot is taken."""
        now = self._clock()
        for player in self.players:
            self._plan(now + self._chance.uniform(0, self._interval), player, -1)
        for player in self.others:
            self._plan(now + self._interval * (1.2 + self._chance.random()), player, -1)
        self._ticker = Ticker(self._work)

    def stop(self) -> None:
        if self._ticker is not None:
            self._ticker.close()

    def check(self) -> None:
        """Raises what went wrong in its clockwork, if anything did."""
        if (
            self._ticker is not None
            and self._ticker.done.done()
            and (error := self._ticker.done.exception()) is not None
        ):
            raise error

    def away(self) -> None:
        self._away = True

    def back(self, within_s: float) -> None:
        """Whoever waits for an answer sends now: all of them within so many seconds; its own rhythm goes on besides."""
        self._away = False
        now = self._clock()
        for player in (*self.players, *self.others):
            if player.open:
                player.turn += 1
                player.attempt = 0
                player.first = player.wanted = now + self._chance.uniform(0, within_s)
                self._plan(player.wanted, player, player.turn)
        if self._ticker is not None:
            self._ticker.poke()

    def judged(self) -> tuple[Seen, Timeline]:
        """What was seen until now. All go on, but what is seen from now on is not in it."""
        before = self.seen, self.timeline
        self.seen, self.timeline = Seen(), Timeline(self.timeline.zero)
        return before

    def waiting(self) -> int:
        """Players whose last heartbeat has no answer yet."""
        return sum(player.open for player in self.players)

    def _plan(self, at: float, player: Player, turn: int) -> None:
        """`turn` −1: the next heartbeat; else another attempt, unless there is something newer by then."""
        self._count += 1
        heapq.heappush(self._heap, (at, self._count, player, turn))

    def _work(self) -> float | None:
        heap, clock = self._heap, self._clock
        for _ in range(_AT_A_TIME):
            if not heap:
                return None
            if (at := heap[0][0]) > clock():
                return at
            _, _, player, turn = heapq.heappop(heap)
            if turn < 0:
                self._beat(player, at)
            elif turn == player.turn:
                self._send(player)
        return heap[0][0] if heap else None

    def _beat(self, player: Player, at: float) -> None:
        player.turn += 1
        player.attempt, player.open = 0, True
        player.first = player.wanted = at
        player.body = heartbeat(
            player.session, player.device, player.content, player.seq, 600.5 + player.seq * self._interval
        )
        player.seq += 1
        self._plan(at + self._interval, player, -1)
        self.timeline.at(at).wanted += 1
        self._send(player)

    def _send(self, player: Player) -> None:
        now = self._clock()
        self.timeline.at(now).attempts += 1
        if self._away:
            self._failed(player, player.turn, _AWAY, 0.0)
            return
        self.seen.late_s.append(max(0.0, now - player.wanted) if player.attempt == 0 else 0.0)
        future = self._pool.send("POST", "/v1/heartbeats", player.body, token=player.token)
        future.add_done_callback(functools.partial(self._taken, player, player.turn, player.wanted))

    def _taken(self, player: Player, turn: int, wanted: float, future: asyncio.Future[Answer]) -> None:
        answer = future.result()
        wrong = wrong_with(answer)
        if wrong not in ("", "block"):
            self._failed(player, turn, wrong, answer.retry_after_s)
            self.seen.said = self.seen.said or (
                "" if not answer.status else f"{answer.status} {answer.body[:300].decode(errors='replace')}"
            )
            return
        now = self._clock()
        second = self.timeline.at(now)
        second.answered += 1
        second.latencies.append(now - wanted)
        if turn == player.turn:
            player.open = False
        if player.wants_slot:
            self._judge(wrong == "block")
        elif wrong:
            second.blocked += 1
            if not self.seen.false_blocks:
                self.seen.said = answer.body[:600].decode(errors="replace")
            self.seen.false_blocks += 1

    def _judge(self, refused: bool) -> None:
        if refused:
            self.seen.refused += 1
        else:
            self.seen.let_in += 1

    def _failed(self, player: Player, turn: int, why: str, retry_after_s: float) -> None:
        """Again later, if this heartbeat is still the newest and may be tried again."""
        now = self._clock()
        self.timeline.at(now).failed[why] += 1
        self.seen.wrong[why] += 1
        if why == "degraded":
            self.seen.degraded += 1
        if turn != player.turn or player.attempt >= len(self._retry):
            return
        wait = self._retry[player.attempt]
        player.attempt += 1
        again = max(player.first + wait, now + retry_after_s)
        self._plan(again + (again - player.first) * JITTER * self._chance.random(), player, turn)
