"""What sends requests: tokens, one player at a time, and wrk."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import jwt

from loadtest.bench_rig import SECRET, BenchError, pinned


def token(account: str, secret: str = SECRET) -> str:
    now = int(time.time())
    return jwt.encode({"sub": account, "plan": "standard", "iat": now, "exp": now + 36_000}, secret, algorithm="HS256")


def heartbeat_json(session: str, device: str, seq: int, position: float, content: str = "title-00001") -> bytes:
    """What a player sends: about 200 bytes."""
    beat = {
        "session": session, "device": device, "content": content, "kind": "vod", "position": position, "state": "playing",
        "seq": seq, "quality": {"bitrate": 4_200_000},
    }  # fmt: skip
    return json.dumps(beat, separators=(",", ":")).encode()


class Player:
    """Heartbeats one at a time, over one kept connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)

    def beat(self, token: str, body: bytes) -> bytes:
        """The answer. Raises BenchError unless it is an undegraded allow."""
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._connection.request("POST", "/v1/heartbeats", body, headers)
        answer = self._connection.getresponse()
        text = answer.read()
        said = json.loads(text) if answer.status == 200 else {}
        if said.get("decision") != "allow" or said.get("degraded") or said.get("duplicate"):
            raise BenchError(f"a heartbeat was answered {answer.status}: {text.decode()[:500]}")
        return text

    def resume(self, token: str, content: str, profile: str = "") -> float | None:
        """The position to go on from; None if there is none. Raises BenchError for an error."""
        headers = {"Authorization": f"Bearer {token}"}
        self._connection.request("GET", f"/v1/resume/{content}?profile={profile}", headers=headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status not in (200, 404):
            raise BenchError(f"a resume position was answered {answer.status}: {text.decode()[:500]}")
        position = json.loads(text)["position"] if answer.status == 200 else None
        return None if position is None else float(position)

    def close(self) -> None:
        self._connection.close()


@dataclass(frozen=True)
class Load:
    """What one run of wrk saw."""

    requests: int
    seconds: float
    p99_ms: float
    failed: int
    """Answers other than 2xx, and socket errors."""
    cpu_s: float
    """CPU wrk itself used."""
    p50_ms: float = 0.0
    """0 where the script does not say it."""

    @property
    def per_s(self) -> float:
        return self.requests / self.seconds


def wrk(port: int, script: Path, seconds: float, connections: int, core: int | None, *args: str) -> Load:
    """One run of wrk with `script`, which gets `args`. Raises BenchError if there is no wrk or no result."""
    program = shutil.which("wrk")
    if program is None:
        raise BenchError("wrk is not installed; scripts/install-test-tools installs it with apt")
    command = [
        program,
        "-t1",
        f"-c{connections}",
        f"-d{max(1, round(seconds))}s",
        "-s",
        str(script),
        f"http://127.0.0.1:{port}/",
        "--",
        *args,
    ]
    before = os.times()
    done = subprocess.run(
        command, capture_output=True, text=True, preexec_fn=pinned(core), check=False, timeout=seconds + 60
    )
    after = os.times()
    found = re.search(r"^RESULT (.*)$", done.stdout, re.MULTILINE)
    if found is None:
        raise BenchError(f"wrk said:\n{done.stdout}\n{done.stderr}")
    requests, micros, p99_us, *errors = (int(float(value)) for value in found[1].split())
    used = after.children_user + after.children_system - before.children_user - before.children_system
    median = re.search(r"^P50 (\d+)", done.stdout, re.MULTILINE)
    return Load(requests, micros / 1e6, p99_us / 1e3, sum(errors), used, int(median[1]) / 1e3 if median else 0.0)
