"""Tokens that nobody issued: each must be refused, by every route it is tried on."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from loadtest.attack.base import HEARTBEATS, Attack, Finding

_PATHS = (
    ("POST", HEARTBEATS),
    ("GET", "/v1/check?content=film"),
    ("GET", "/v1/resume"),
    ("GET", "/v1/accounts/forged/sessions"),
)


def encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def token(header: Any, claims: Any, key: bytes, digest: str = "sha256") -> str:
    """Any JSON as header and claims, or text as it is, signed by HMAC."""
    parts = [each if isinstance(each, str) else json.dumps(each) for each in (header, claims)]
    text = ".".join(encoded(part.encode()) for part in parts)
    return text + "." + encoded(hmac.new(key, text.encode(), digest).digest())


class Tokens(Attack):
    name = "fuzz-tokens"
    line = "fuzzing: tokens"
    what = "tokens with changed bytes, other algorithms, keys, types and times"
    holds = "a token that is no good"

    async def prepare(self) -> None:
        self._good = self.target.player("forged")
        self._key = self.target.secret.encode()
        self._let_in: Counter[str] = Counter()
        self._inputs = 0

    async def fire(self, n: int) -> None:
        name, forge = _FORGERIES[n % len(_FORGERIES)]
        forged = forge(self)
        if not forged or forged == self._good:
            return
        method, path = self.random.choice(_PATHS)
        body = self.beat_body("forged", "forged") if method == "POST" else b""
        header = b"Authorization: Bearer " + forged.encode("utf-8", "surrogateescape") + b"\r\n"
        answer = await self.ask(method, path, body, headers=header)
        self._inputs += 1
        self._let_in[name] += 200 <= answer.status < 300

    async def finish(self) -> list[Finding]:
        found = [Finding("tokens let in", self._let_in.total(), self._inputs, most=0)]
        return found + [Finding(f"let in: {name}", count, most=0) for name, count in self._let_in.items() if count]

    # forgeries

    def _claims(self, **more: Any) -> dict[str, Any]:
        now = int(time.time())
        return {"sub": "forged", "iat": now, "exp": now + 600} | more

    def _signed(self, **more: Any) -> str:
        return token({"alg": "HS256", "typ": "JWT"}, self._claims(**more), self._key)

    def _byte(self) -> str:
        """Not of the last character: its low bits are no part of the signature."""
        at = self.random.randrange(len(self._good) - 1)
        other = self.random.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")
        return self._good[:at] + other + self._good[at + 1 :]

    def _cut(self) -> str:
        return self._good[: self.random.randrange(len(self._good) - 1)]

    def _none(self) -> str:
        algorithm: Any = self.random.choice(("none", "None", "NONE", "nOnE", "", None, 0, [], "HS256 "))
        return token({"alg": algorithm, "typ": "JWT"}, self._claims(), b"").rpartition(".")[0] + "."

    def _algorithm(self) -> str:
        algorithm, digest = self.random.choice(
            (("HS384", "sha384"), ("HS512", "sha512"), ("RS256", "sha256"), ("ES256", "sha256"), ("EdDSA", "sha256"))
        )
        return token({"alg": algorithm, "typ": "JWT"}, self._claims(), self._key, digest)

    def _other_key(self) -> str:
        key = self.random.choice(
            (
                b"",
                b"\0",
                b"secret",
                self._key[:-1],
                hashlib.sha256(self._key).digest(),
                b"-----BEGIN PUBLIC KEY-----",
            )
        )
        return token({"alg": "HS256", "typ": "JWT"}, self._claims(), key or b"\0x")

    def _header(self) -> str:
        header = self.random.choice((
            "", "[]", "1", '"HS256"', "null", "{", '{"alg": {"a": 1}}', '{"alg": "HS256", "crit": ["exp"]}', '{"typ": "JWT"}', "[" * 5_000,
        ))  # fmt: skip
        return token(header, self._claims(), self._key)

    def _claims_of_a_kind(self) -> str:
        claims = self.random.choice(
            ("", "[]", "1", '"a"', "null", "{", "[" * 5_000, "{}", '{"sub": "forged"}', '{"exp": 99999999999}')
        )
        return token({"alg": "HS256", "typ": "JWT"}, claims, self._key)

    def _times(self) -> str:
        past = int(time.time()) - 100_000
        exp: Any = self.random.choice((past, -1, 0, "soon", None, [], {}, True, "1e400", past / 3, -1e308, [9e9]))
        return self._signed(exp=exp)

    def _not_yet(self) -> str:
        return self._signed(nbf=self.random.choice((int(time.time()) + 90_000, "later", [], {}, 1e308)))

    def _types(self) -> str:
        name, value = self.random.choice((
            ("sub", 5), ("sub", ["forged"]), ("sub", {}), ("sub", True), ("sub", "x" * 200), ("sub", "a\nb"), ("sub", ""), ("sub", None),
            ("max_streams", "many"), ("max_streams", -1), ("max_streams", 1e9), ("max_streams", []), ("profiles", "kids"), ("profiles", [1]),
            ("device", "x" * 200), ("device", "a\0b"), ("kind", "film"),
        ))  # fmt: skip
        return self._signed(**{name: value})

    def _bytes(self) -> str:
        return bytes(self.random.randrange(128, 256) for _ in range(40)).decode("utf-8", "surrogateescape") + self._good

    def _long(self) -> str:
        return self._signed(more="x" * self.random.choice((17_000, 30_000)))


_FORGERIES: tuple[tuple[str, Callable[[Tokens], str]], ...] = (
    ("a changed character", Tokens._byte), ("cut short", Tokens._cut), ("no signature", Tokens._none),
    ("another algorithm", Tokens._algorithm), ("another key", Tokens._other_key), ("an odd header", Tokens._header),
    ("odd claims", Tokens._claims_of_a_kind), ("expired, or no time", Tokens._times), ("not yet valid", Tokens._not_yet),
    ("claims of another type", Tokens._types), ("bytes before it", Tokens._bytes), ("too long", Tokens._long),
)  # fmt: skip

ALL: tuple[type[Attack], ...] = (Tokens,)
