"""Known sessions that go on beating at an even rate, whether or not the answers keep up (an open loop), and how long each
answer took, counted from when its heartbeat was due.

    python -m loadtest.bench_steady '{"port": …, "per_s": …, "sessions": [first, after], "seq": …, "out": FILE, …}'

It says `ready`, beats until SIGTERM or for `seconds`, writes `out`, and prints one JSON line. What it keeps of each heartbeat
are three numbers in an array (doubles): when it was due (s of time.monotonic, which all processes of a machine share), how
late it was sent, and how late it was answered (ms).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.bench_load import heartbeat_json, token
from loadtest.bench_replay import ACCOUNT, CONTENT, DEVICE, SESSION
from loadtest.bench_rig import ROOT, BenchError, pinned
from loadtest.http1 import Answer, Pool

CONNECTIONS = 512
"""Enough that none is waited for while Redis is busy for a moment: players have one each."""
_TICK_S = 0.001
_LAST_S = 15.0
_SEQ, _POSITION = 8_765_432, 7_654_321.5
"""Stand in the prepared bodies for what changes."""


@dataclass(frozen=True)
class Seen:
    """What was kept, in order of due times: seconds and two kinds of ms."""

    due: array[float]
    sent_ms: array[float]
    answered_ms: array[float]

    @classmethod
    def read(cls, path: Path) -> Seen:
        both = array("d", path.read_bytes())
        order = sorted(range(len(both) // 3), key=lambda n: both[3 * n])
        return cls(*(array("d", (both[3 * n + part] for n in order)) for part in range(3)))

    def between(self, since: float, until: float) -> Seen:
        """What was due then."""
        chosen = [n for n, due in enumerate(self.due) if since <= due < until]
        return Seen(*(array("d", (part[n] for n in chosen)) for part in (self.due, self.sent_ms, self.answered_ms)))

    def quantile(self, share: float) -> float:
        """ms within which so many were answered; 0 if there are none."""
        found = sorted(self.answered_ms)
        return found[min(len(found) - 1, int(len(found) * share))] if found else 0.0

    def gap_ms(self) -> float:
        """The longest time without any answer."""
        at = sorted(due * 1000 + late for due, late in zip(self.due, self.answered_ms, strict=True))
        return max((b - a for a, b in itertools.pairwise(at)), default=0.0)


def bodies(first: int, after: int, contents: Sequence[int]) -> list[bytes]:
    """What the sessions of these numbers send, with places for position and seq."""
    return [
        heartbeat_json(SESSION % n, DEVICE % n, _SEQ, _POSITION, CONTENT % contents[n - first])
        .replace(b"%", b"%%")
        .replace(b"%.1f" % _POSITION, b"%.1f")
        .replace(b"%d" % _SEQ, b"%d")
        for n in range(first, after)
    ]


class Beating:
    """The sessions, in turn."""

    def __init__(self, order: dict[str, Any]) -> None:
        first, after = order["sessions"]
        self._bodies = bodies(first, after, order.get("contents") or [1] * (after - first))
        self._tokens = [token(ACCOUNT % n) for n in range(first, after)]
        self._per_s, self._seq = float(order["per_s"]), int(order["seq"])
        self._pool = Pool(f"http://127.0.0.1:{order['port']}", most=CONNECTIONS)
        self._began = 0.0
        self.sent = self.answered = self.again = self.failed = 0
        self.said = ""
        """The first answer that was wrong."""
        self.kept = array("d")

    async def run(self, seconds: float | None) -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        gc.collect()
        gc.freeze()
        gc.disable()  # its pauses would be mistaken for the server's
        print("ready", flush=True)
        self._began = time.monotonic()
        while not stop.is_set() and (seconds is None or time.monotonic() - self._began < seconds):
            passed = time.monotonic() - self._began
            while self.sent < passed * self._per_s:
                self._send(self.sent)
                self.sent += 1
            await asyncio.sleep(_TICK_S)
        until = time.monotonic() + _LAST_S
        while self.answered < self.sent and time.monotonic() < until:
            await asyncio.sleep(_TICK_S)
        self._pool.close()

    def _send(self, number: int, *, again: bool = False) -> None:
        turn, n = divmod(number, len(self._bodies))
        # Ten seconds of a film each turn, however fast they turn.
        body = self._bodies[n] % (1_400.5 + 10 * turn % 5_000, self._seq + turn)
        late = (time.monotonic() - self._began - number / self._per_s) * 1000
        future = self._pool.send("POST", "/v1/heartbeats", body, token=self._tokens[n])
        future.add_done_callback(lambda f: self._take(number, late, again, f.result()))

    def _take(self, number: int, late: float, again: bool, answer: Answer) -> None:
        if answer.status == 0 and not again:
            # A connection that the server was just about to close; a player sends again, too.
            self.again += 1
            self._send(number, again=True)
            return
        self.answered += 1
        due = self._began + number / self._per_s
        self.kept.extend((due, late, (time.monotonic() - due) * 1000))
        if answer.status != 200 or b'"decision":"allow"' not in answer.body or b'"degraded":true' in answer.body:
            self.failed += 1
            self.said = self.said or f"{answer.status} {answer.body[:300].decode(errors='replace')}"


@dataclass
class Steady:
    """A running generator."""

    process: subprocess.Popen[bytes]
    out: Path

    def finish(self) -> tuple[Seen, dict[str, Any]]:
        """Stops it; then as `join`."""
        self.process.send_signal(signal.SIGTERM)
        return self.join()

    def join(self) -> tuple[Seen, dict[str, Any]]:
        """Waits for its end: what it saw, and its counts. Raises BenchError for any answer but an undegraded allow."""
        said: dict[str, Any] = json.loads(self.process.communicate(timeout=60)[0])
        if said["failed"] or said["answered"] != said["sent"]:
            raise BenchError(
                f"{said['failed']} of {said['sent']} heartbeats were not allowed, {said['answered']} answered: {said['said']}"
            )
        return Seen.read(self.out), said


@contextlib.contextmanager
def steady(directory: Path, core: int | None, **order: Any) -> Iterator[Steady]:
    """Heartbeats of the sessions numbered from `sessions[0]` on, `per_s` of them, from `seq` on; they beat when this returns."""
    out = directory / f"steady-{len(list(directory.iterdir()))}"
    told = directory / f"{out.name}.json"
    told.write_text(json.dumps(order | {"out": str(out)}))
    with subprocess.Popen(
        [sys.executable, "-m", "loadtest.bench_steady", f"@{told}"], cwd=ROOT, stdout=subprocess.PIPE, preexec_fn=pinned(core)
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise BenchError("the load generator did not start")
            yield Steady(process, out)
        finally:
            process.kill()


def main(words: list[str]) -> int:
    text = Path(words[0][1:]).read_text() if words[0].startswith("@") else words[0]
    order = json.loads(text)

    async def run() -> Beating:
        beating = Beating(order)
        await beating.run(order.get("seconds"))
        return beating

    beating = asyncio.run(run())
    Path(order["out"]).write_bytes(beating.kept.tobytes())
    counts = {name: getattr(beating, name) for name in ("sent", "answered", "again", "failed", "said")}
    print(json.dumps(counts), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
