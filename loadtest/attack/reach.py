"""Reaching what is not one's own: scopes, profiles, revocations, and heads that say two things."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from typing import Any, ClassVar

from loadtest.attack.base import HEARTBEATS, Attack, Finding
from loadtest.attack.wires import post, talk


class ScopedPlayer(Attack):
    name = "scoped-player"
    line = "11"
    what = "a player's token with a scope asks for the audit, other accounts, erasures, revocations"
    holds = "a player's token with scope `openid read admin`"
    at_once = 16
    asked: ClassVar[tuple[tuple[str, str, bytes], ...]] = (
        ("GET", "/v1/audit/blocks?limit=1", b""),
        ("GET", "/v1/accounts/full/sessions", b""),
        ("GET", "/v1/views?account=full", b""),
        ("GET", "/v1/views?content=title", b""),
        ("GET", "/v1/resume?account=full", b""),
        ("GET", "/v1/quality?metric=sessions", b""),
        ("GET", "/v1/behaviour", b""),
        ("POST", "/v1/signals", b'{"account":"full","device":"x","evidence":"segment","content":"y","kind":"vod"}'),
        ("POST", "/v1/tokens/revoke", b'{"jti":"somebody"}'),
        ("POST", "/v1/contents", b'[{"content":"title","hidden":true}]'),
        ("POST", "/v1/sessions/first-session/stop", b'{"account":"full"}'),
        ("DELETE", "/v1/accounts/victim", b""),
    )

    async def prepare(self) -> None:
        self._token = self.target.player("mallory", scope="openid read admin signals")
        self._reached: Counter[str] = Counter()

    async def fire(self, n: int) -> None:
        method, path, body = self.asked[n % len(self.asked)]
        answer = await self.ask(method, path, body, self._token)
        # A player may list its own views of a content, and may stop a session of its own that is not there.
        own = "content=" in path or "/stop" in path
        if answer.status in (200, 202) or (answer.status == 204 and not own):
            self._reached[f"{method} {path.partition('?')[0]}"] += not (own and b'"items":[]' in answer.body)

    async def finish(self) -> list[Finding]:
        return [Finding("calls answered that are not a player's", self._reached.total(), most=0)] + [
            Finding(call, count, most=0) for call, count in self._reached.items() if count
        ]


class OtherProfile(Attack):
    name = "other-profile"
    line = "12"
    what = "a token for the profile kids reads, sets, hides and stops what is the default profile's"
    holds = 'a player\'s token with `profiles: ["kids"]`'
    workers = True
    at_once = 1

    async def prepare(self) -> None:
        self._parent = self.target.player("family", max_streams=5)
        self._kids = self.target.player("family", max_streams=5, profiles=["kids"])
        self._reached: Counter[str] = Counter()
        await self._watch()
        await self.ask("PUT", "/v1/resume/film-adults", b'{"position": 700, "duration": 5400}', self._parent)

    async def _watch(self) -> None:
        await self.beat(self._parent, "adults", "tv", content="film-adults", duration=5400, position=700)

    async def _position(self) -> Any:
        answer = await self.ask("GET", "/v1/resume/film-adults", token=self._parent)
        return json.loads(answer.body).get("position") if answer.status == 200 else None

    async def fire(self, n: int) -> None:
        calls = (self._reads, self._sets, self._hides, self._stops, self._speaks)
        # Four of five only look: a write waits for the workers.
        await (self._reads() if n % 5 else calls[n // 5 % len(calls)]())

    async def _reads(self) -> None:
        for path in ("/v1/resume", "/v1/resume/film-adults", "/v1/views", "/v1/accounts/family/sessions"):
            answer = await self.ask("GET", path, token=self._kids)
            # Views and sessions name the session; a position has none where it was set, so it is told by what it is.
            self._reached[f"reads {path}"] += b'"adults"' in answer.body or b'"position":700' in answer.body

    async def _sets(self) -> None:
        await self.ask("PUT", "/v1/resume/film-adults", b'{"position": 4321, "duration": 5400}', self._kids)
        self._reached["sets a position"] += await self._position() == 4321
        await self.ask("PUT", "/v1/resume/film-adults", b'{"position": 700, "duration": 5400}', self._parent)

    async def _hides(self) -> None:
        await self.ask("DELETE", "/v1/resume/film-adults", token=self._kids)
        answer = await self.ask("GET", "/v1/resume", token=self._parent)
        self._reached["hides a position"] += answer.status == 200 and b"film-adults" not in answer.body
        await self.ask("PUT", "/v1/resume/film-adults", b'{"position": 700, "duration": 5400}', self._parent)

    async def _runs(self) -> bool:
        answer = await self.ask("GET", "/v1/accounts/family/sessions", token=self._parent)
        return b'"adults"' in answer.body

    async def _stops(self) -> None:
        await self._watch()
        await self.ask("POST", "/v1/sessions/adults/stop", token=self._kids)
        self._reached["stops a session"] += not await self._runs()

    async def _speaks(self) -> None:
        await self._watch()
        await self.beat(self._kids, "adults", "tv", content="film-adults", profile="kids", state="ended")
        self._reached["ends a session by a heartbeat"] += not await self._runs()

    async def finish(self) -> list[Finding]:
        return [Finding(what, count, most=0) for what, count in self._reached.items()]


class RevokedInSeconds(Attack):
    name = "revoked-in-seconds"
    line = "13"
    what = "tokens are revoked with expires_at in seconds; do they stay revoked?"
    holds = "a service token, `admin`"
    _LATER_S: ClassVar[float] = 4.0
    _LOOKED_AT: ClassVar[int] = 100

    async def prepare(self) -> None:
        self._service = self.target.service("admin")
        self._taken: list[str] = []

    async def fire(self, n: int) -> None:
        jti = f"token-{self.number()}"
        body = json.dumps({"jti": jti, "expires_at": int(time.time()) + 3600}).encode()
        answer = await self.ask("POST", "/v1/tokens/revoke", body, self._service)
        if answer.status == 204 and len(self._taken) < self._LOOKED_AT:
            self._taken.append(jti)

    async def finish(self) -> list[Finding]:
        await asyncio.sleep(self._LATER_S)
        passed = 0
        for jti in self._taken:
            answer = await self.beat(self.target.player("revoked", jti=jti), jti, jti)
            passed += answer.status == 200
        return [Finding("revocations answered 204 and undone", passed, len(self._taken), most=0)]


class OddHeads(Attack):
    name = "odd-heads"
    line = "14"
    what = "heads and ends that can be read in two ways"

    async def prepare(self) -> None:
        self._token = self.target.player("odd")
        self._wrong: Counter[str] = Counter()

    async def fire(self, n: int) -> None:
        names = tuple(self._cases())
        name = names[n % len(names)]
        text, wanted, half = self._cases()[name]
        # The answer, or answers, and then the end: those who are not told the connection's end are let go.
        reply = await talk(self.target, [text], answers=len(wanted), half_close=half)
        self.tell(reply.said)
        self._wrong[name] += reply.statuses[: len(wanted)] != list(wanted)

    def _cases(self) -> dict[str, tuple[bytes, tuple[int, ...], bool]]:
        """Name → what is sent, the statuses that must come, and whether the client closes its half."""
        body, good = self.beat_body("odd", "odd"), f"Authorization: Bearer {self._token}"
        beat = post(HEARTBEATS, self._token, body)
        chunked = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n"
        head = "POST /v1/heartbeats HTTP/1.1\r\nHost: loopback\r\n"
        return {
            "a token in a trailer": (
                f"{head}Authorization: Bearer none\r\nTransfer-Encoding: chunked\r\nTrailer: Authorization\r\n\r\n".encode()
                + chunked + f"{good}\r\n\r\n".encode(), (401,), False,
            ),
            "a bad token, then a good one": (post(HEARTBEATS, "none", body, good), (400,), False),
            "a good token, then a bad one": (post(HEARTBEATS, self._token, body, "Authorization: Bearer none"), (400,), False),
            "no Host": (post(HEARTBEATS, self._token, body, host=""), (400,), False),
            "two Hosts": (post(HEARTBEATS, self._token, body, "Host: elsewhere"), (400,), False),
            "two lengths": (post(HEARTBEATS, self._token, body, f"Content-Length: {len(body) - 1}"), (400,), False),
            "a length and chunks": (post(HEARTBEATS, self._token, body, "Transfer-Encoding: chunked"), (400,), False),
            "a space before the colon": (post(HEARTBEATS, self._token, body, "X-Odd : 1"), (400,), False),
            "a client that has closed its half": (beat, (200,), True),
            "a heartbeat, then garbage": (beat + b"\0garbage\r\n\r\n", (200, 400), False),
        }  # fmt: skip

    async def finish(self) -> list[Finding]:
        return [Finding(f"answered wrongly: {name}", self._wrong[name], most=0) for name in self._cases()]


ALL: tuple[type[Attack], ...] = (ScopedPlayer, OtherProfile, RevokedInSeconds, OddHeads)
