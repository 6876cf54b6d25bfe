"""Requests as they are sent, and what of them and of their answers is written into the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import jwt
import orjson

from loadtest.http1 import Answer

EXPIRES_AT = 4_102_444_800
"""Tokens are verified by real time, and the same in every run: they last until 2100."""


@dataclass(slots=True)
class Request:
    """`who` are the ids in the truth. `then` is told the answer, unless it is lost or came too late for a player to wait for it."""

    call: str
    method: str
    path: str
    token: str
    who: dict[str, Any]
    body: bytes = b""
    headers: bytes = b""
    then: Callable[[Request, Reply], None] | None = None
    delivered: Callable[[Request], None] | None = None
    """Called when the server has let it in."""
    sent_at: int = 0
    seq: int | None = None
    state: str | None = None
    position: float | None = None
    evidence: str | None = None
    attempt: int = 0
    late: bool = False
    repeated: bool = False
    lost_answer: bool = False

    def again(self, **changes: Any) -> Request:
        return replace(self, **changes)

    def line(self, kind: str, at: int) -> dict[str, Any]:
        return {
            "type": kind, "at": at, "call": self.call, **self.who, "seq": self.seq, "state": self.state,
            "position": self.position, "evidence": self.evidence, "sent_at": self.sent_at, "attempt": self.attempt,
            "late": self.late, "repeated": self.repeated,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. `decision` is allow, block, or None where there is none (a stop, an error)."""

    status: int
    decision: str | None
    said: dict[str, Any]

    @classmethod
    def of(cls, request: Request, answer: Answer) -> Reply:
        if request.call == "edge":
            headers = answer.said or {}
            told: dict[str, Any] = {name: headers[name] for name in ("reason", "rule") if headers.get(name)}
            if headers.get("retry-at", "").isdigit():
                told["retry_at"] = int(headers["retry-at"])
            return cls(
                answer.status,
                {204: "allow", 403: "block"}.get(answer.status),
                told | {"degraded": "degraded" in headers},
            )
        said = orjson.loads(answer.body) if answer.status == 200 and answer.body else {}
        return cls(answer.status, said.get("decision"), said)

    @property
    def retry_at(self) -> int | None:
        found: int | None = self.said.get("retry_at")
        return found

    def fields(self) -> dict[str, Any]:
        get = self.said.get
        return {
            "status": self.status, "decision": self.decision, "reason": get("reason"), "rule": get("rule"),
            "degraded": get("degraded", False), "duplicate": get("duplicate", False), "retry_at": get("retry_at"),
            "by": get("by"), "last_seq": get("last_seq"),
        }  # fmt: skip


class Signer:
    """Tokens; PyJWT's are the same for the same claims."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self.service = self._sign({"typ": "service", "scope": "signals read admin"})

    def player(self, account: str, plan: str, max_streams: int | None, **claims: str) -> str:
        more = {} if max_streams is None else {"max_streams": max_streams}
        return self._sign({"sub": account, "plan": plan} | more | claims)

    def _sign(self, claims: dict[str, Any]) -> str:
        return jwt.encode(claims | {"exp": EXPIRES_AT}, self._secret, algorithm="HS256")


def session_path(session: str, verb: str) -> str:
    return f"/v1/sessions/{quote(session, safe='')}/{verb}"
