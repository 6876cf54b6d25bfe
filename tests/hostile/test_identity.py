"""Whose token it is: what a player's carries for others is nothing to us, and a key must be worth its trust."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import itertools
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from engine import jwks
from engine.embedded import Server
from engine.errors import ConfigError, Unauthorized
from engine.settings import Settings
from engine.tokens import Claims, Tokens
from tests.servers import SECRET, ApiProcess, player, service, wait_for

NOW = 1_800_000_000
GOOD = rsa.generate_private_key(65537, 2048)
WEAK = rsa.generate_private_key(65537, 1024)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


def tokens(**changed: Any) -> Tokens:
    return Tokens(Settings(**({"jwt_secret": SECRET} | changed)), lambda: float(NOW))


def b64(data: bytes | str) -> str:
    return base64.urlsafe_b64encode(data.encode() if isinstance(data, str) else data).decode().rstrip("=")


def signed(payload: dict[str, Any] | str, **header: Any) -> str:
    """With the secret, whatever it says."""
    text = payload if isinstance(payload, str) else json.dumps({"exp": NOW + 3600} | payload)
    head = f"{b64(json.dumps({'alg': 'HS256'} | header))}.{b64(text)}"
    return f"{head}.{b64(hmac.digest(SECRET.encode(), head.encode(), hashlib.sha256))}"


def refused(who: Tokens, token: str, code: str) -> None:
    with pytest.raises(Unauthorized) as caught:
        who.verify(token)
    assert caught.value.code == code, caught.value.message


# the attack: a player's token that any OIDC provider issues


@pytest.fixture(scope="module")
def api(single: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    with ApiProcess(single.url, tmp_path_factory.mktemp("identity"), prefix="hostile-identity") as process:
        yield process


@pytest.mark.parametrize("scope", ["openid read", "admin", "read,admin,signals", ["admin"]])
@pytest.mark.parametrize("more", [{}, {"typ": "service"}, {"typ": "Bearer"}, {"aud": "pulsegate-services"}])
def test_a_player_with_a_scope_is_a_player(api: ApiProcess, scope: Any, more: dict[str, Any]) -> None:
    token = player("alice", scope=scope, **more)
    for method, path in (
        ("GET", "/v1/audit/blocks"), ("GET", "/v1/accounts/bob/sessions"), ("GET", "/v1/views?account=bob"), ("DELETE", "/v1/accounts/bob"),
        ("GET", "/v1/quality?metrics=plays"), ("POST", "/v1/tokens/revoke"), ("POST", "/v1/signals"), ("GET", "/v1/resume?account=bob"),
        ("GET", "/v1/behaviour"), ("POST", "/v1/contents"), ("GET", "/v1/alerts"),
    ):  # fmt: skip
        assert api.request(method, path, token=token).status_code == 403, path
    assert api.get("/v1/accounts/alice/sessions", token=token).status_code == 200


def test_a_scope_alone_is_no_service() -> None:
    for claims in ({"scope": "admin"}, {"scope": "admin", "typ": "Bearer"}, {"scope": "admin", "typ": ["service"]}, {"scope": "admin", "aud": "x"}):  # fmt: skip
        refused(tokens(), signed(claims), "token_claims")
    for claims in ({"typ": "service"}, {"typ": "service", "scope": "openid"}, {"typ": "service", "scope": 7}):
        refused(tokens(), signed(claims), "token_claims")
    assert tokens().verify(signed({"typ": "service", "scope": "read"})).scopes == {"read"}


def test_an_audience_that_is_only_for_services() -> None:
    who = tokens(jwt_audience="players", jwt_service_audience="services", jwt_issuer="us")
    said = {"iss": "us", "scope": "read"}
    assert who.verify(signed(said | {"aud": ["services", "x"]})).scopes == {"read"}
    assert who.verify(signed(said | {"aud": "players", "typ": "service"})).scopes == {"read"}
    refused(who, signed(said | {"aud": "players"}), "token_claims")
    refused(who, signed(said | {"aud": "others", "typ": "service"}), "token_audience")
    refused(who, signed({"iss": "us", "sub": "ann", "aud": "services"}), "token_audience")
    assert who.verify(signed({"iss": "us", "sub": "ann", "aud": ["players", "services"]})) == Claims(
        account="ann", expires_at=(NOW + 3600) * 1000
    )
    with pytest.raises(ConfigError):
        Settings(jwt_secret=SECRET, jwt_audience="a", jwt_service_audience="a").check()


def test_providers_that_give_every_token_a_subject() -> None:
    """Auth0 and Keycloak: exactly the subjects that are listed, and only with the mark. Cognito writes a name before each scope."""
    who = tokens(jwt_service_audience="https://pulsegate", jwt_service_subjects=("abc@clients",))
    marked = {"aud": "https://pulsegate", "scope": "read openid"}
    assert who.verify(signed(marked | {"sub": "abc@clients"})) == Claims(
        scopes=frozenset({"read"}), expires_at=(NOW + 3600) * 1000
    )
    for sub in ("abc@client", "ABC@clients", "alice"):
        assert who.verify(signed(marked | {"sub": sub})).scopes == frozenset()
    found = who.verify(signed({"sub": "abc@clients", "scope": "read"}))
    assert (found.account, found.scopes) == ("abc@clients", frozenset())
    cognito = tokens(jwt_service_subjects=("client",), jwt_scope_prefix="pulsegate/")
    said = {"sub": "client", "typ": "service", "scope": "pulsegate/read billing/admin admin"}
    assert cognito.verify(signed(said)).scopes == {"read"}


@pytest.mark.parametrize("claim", ["sub", "jti", "device", "sid", "plan"])
@pytest.mark.parametrize("value", [7, 0, 1.5, True, False, [], ["ann"], {}, {"a": 1}, "a\nb", "x" * 129])
def test_a_name_is_a_string(claim: str, value: Any) -> None:
    with pytest.raises(Unauthorized):
        tokens().verify(signed({"sub": "ann", claim: value}))


@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
@pytest.mark.parametrize("value", [NOW * 1000, "now", True, [], -1, 1e300])
def test_a_time_is_seconds(claim: str, value: Any) -> None:
    refused(tokens(), signed({"sub": "ann", claim: value}), "token_claims")


def test_a_name_said_twice() -> None:
    """What another reader of the token took for its account need not be ours."""
    for payload in (
        f'{{"sub": "ann", "exp": {NOW + 60}, "sub": "bob"}}',
        f'{{"sub": "ann", "exp": 1, "exp": {NOW + 60}}}',
        f'{{"sub": "ann", "exp": {NOW + 60}, "profiles": ["kids"], "profiles": null}}',
        f'{{"sub": "ann", "exp": {NOW + 60}, "s\\u0075b": "bob"}}',
    ):
        refused(tokens(), signed(payload), "token_invalid")
    twice = '{"alg": "none", "alg": "HS256"}'
    head = f"{b64(twice)}.{b64(json.dumps({'sub': 'ann', 'exp': NOW + 60}))}"
    refused(tokens(), f"{head}.{b64(hmac.digest(SECRET.encode(), head.encode(), hashlib.sha256))}", "token_invalid")


@pytest.mark.parametrize("header", [{"crit": ["exp"]}, {"crit": []}, {"b64": True}, {"b64": False}, {"crit": ["b64"], "b64": False}])  # fmt: skip
def test_extensions_that_nobody_here_knows(header: dict[str, Any]) -> None:
    refused(tokens(), signed({"sub": "ann"}, **header), "token_invalid")


# keys


def jwk(key: Any, kid: str, **more: Any) -> dict[str, Any]:
    kind: Any = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else OKPAlgorithm if isinstance(key, ed25519.Ed25519PrivateKey) else ECAlgorithm  # fmt: skip
    return {**kind.to_jwk(key.public_key(), as_dict=True), "kid": kid, **more}


def by_keys(tmp_path: Path, *keys: Any, **changed: Any) -> Tokens:
    (tmp_path / "keys").write_text(json.dumps({"keys": keys}))
    who = tokens(**({"jwt_secret": "", "jwks_url": str(tmp_path / "keys")} | changed))
    asyncio.run(who.refresh_keys())
    return who


def by(key: Any, algorithm: str, kid: str) -> str:
    return jwt.encode({"sub": "ann", "exp": NOW + 3600}, key, algorithm=algorithm, headers={"kid": kid})


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
def test_weak_and_foreign_keys_cost_only_themselves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    others = {
        "weak": (WEAK, "RS256"), "p384": (ec.generate_private_key(ec.SECP384R1()), "ES384"),
        "k1": (ec.generate_private_key(ec.SECP256K1()), "ES256K"), "pss": (GOOD, "PS256"), "enc": (GOOD, "RS256"), "ops": (GOOD, "RS256"),
    }  # fmt: skip
    more: dict[str, dict[str, Any]] = {"pss": {"alg": "PS256"}, "enc": {"use": "enc"}, "ops": {"key_ops": ["encrypt"]}}
    keys = [jwk(key, kid, **more.get(kid, {})) for kid, (key, _) in others.items()]
    private = RSAAlgorithm.to_jwk(GOOD, as_dict=True) | {"kid": "private"}
    broken: list[Any] = [
        7,
        None,
        [],
        {},
        {"kty": []},
        {"kty": "RSA", "kid": "half"},
        {"kty": "EC", "crv": {}, "kid": "x"},
    ]
    who = by_keys(
        tmp_path,
        *broken,
        private,
        *keys,
        jwk(GOOD, "good"),
        jwk(EC, "ec"),
        jwk(ED, "ed"),
        jwk(GOOD, "no") | {"kid": 7},
    )
    for kid, (key, algorithm) in others.items():
        for named in {algorithm, "RS256" if isinstance(key, rsa.RSAPrivateKey) else algorithm}:
            refused(who, by(key, named, kid), "token_invalid")
    refused(who, by(GOOD, "RS256", "private"), "token_invalid")
    for key, algorithm, kid in ((GOOD, "RS256", "good"), (EC, "ES256", "ec"), (ED, "EdDSA", "ed")):
        assert who.verify(by(key, algorithm, kid)).account == "ann"
    said = [record for record in caplog.records if record.getMessage() == "jwks_key"]
    assert {"'weak'", "'p384'", "'private'"} <= {getattr(record, "kid", "") for record in said}
    assert "2048" in next(getattr(r, "why", "") for r in said if getattr(r, "kid", "") == "'weak'")
    assert private["d"] not in caplog.text


def test_a_secret_in_the_key_set_signs_nothing(tmp_path: Path) -> None:
    shared = {"kty": "oct", "kid": "oct", "k": b64(SECRET), "alg": "HS256"}
    texts = [
        GOOD.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        json.dumps(jwk(GOOD, "g")).encode(),
        b"",
    ]
    for changed in ({}, {"jwt_secret": "another secret of thirty-two bytes or more"}):
        who = by_keys(tmp_path, shared, jwk(GOOD, "g"), **changed)
        for secret, kid in itertools.product((SECRET.encode(), *texts), ("oct", "g", "")):
            head = f"{b64(json.dumps({'alg': 'HS256', 'kid': kid}))}.{b64(json.dumps({'sub': 'a', 'exp': NOW + 60}))}"
            refused(who, f"{head}.{b64(hmac.digest(secret, head.encode(), hashlib.sha256))}", "token_invalid")


# reading them


class Slow:
    """An HTTP server on loopback that answers as `answer` says, byte by byte if it likes, until its reader has gone."""

    def __init__(self, answer: Callable[[socket.socket, threading.Event], None]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/keys"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self.served = 0
        self.busy = False

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                if self._over.is_set():
                    return
                connection.recv(65_536)
                self.served += 1
                self.busy = True
                with contextlib.suppress(OSError):
                    self._answer(connection, self._over)
                self.busy = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        socket.create_connection(self._listener.getsockname()).close()
        self._thread.join()
        self._listener.close()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"


def drip(connection: socket.socket, over: threading.Event) -> None:
    connection.sendall(HEAD)
    while not over.wait(0.05):
        connection.sendall(b" ")


def flood(connection: socket.socket, over: threading.Event) -> None:
    connection.sendall(HEAD + b'{"keys": [')
    while not over.is_set():
        connection.sendall(b" " * 65_536)


def elsewhere(to: str) -> Callable[[socket.socket, threading.Event], None]:
    head = f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    return lambda connection, over: connection.sendall(head.encode())


def compressed(connection: socket.socket, over: threading.Event) -> None:
    connection.sendall(HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") + b"\x1f\x8b")


def test_a_document_that_drips_is_given_up_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte at a time no single read ever times out: the reading held for as long as it liked."""
    assert jwks.READ_S <= 5
    monkeypatch.setattr(jwks, "READ_S", 0.3)
    with Slow(drip) as server, pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(jwks.read(server.url), 30))


def test_a_document_without_end_costs_a_mebibyte() -> None:
    with Slow(flood) as server, pytest.raises(ValueError, match="longer than 1048576 bytes"):
        asyncio.run(asyncio.wait_for(jwks.read(server.url), 30))


def test_it_is_read_from_nowhere_else() -> None:
    body = json.dumps({"keys": [jwk(GOOD, "g")]}).encode()
    with (
        Slow(lambda connection, over: connection.sendall(HEAD + body)) as real,
        Slow(elsewhere(real.url)) as server,
        Slow(compressed) as packed,
    ):
        for url in (server.url, packed.url):
            with pytest.raises(Exception, match=r"302|compressed"):
                asyncio.run(asyncio.wait_for(jwks.read(url), 30))
        assert real.served == 0


def test_what_went_wrong_is_logged_without_the_password(caplog: pytest.LogCaptureFixture) -> None:
    with Slow(elsewhere("http://127.0.0.1:1/")) as server:
        who = tokens(jwks_url=server.url.replace("http://", "http://user:pass-word@") + "?key=pass-word")
        asyncio.run(who.refresh_keys())
    (record,) = [record for record in caplog.records if record.getMessage() == "jwks"]
    assert "302" in str(getattr(record, "why", ""))
    assert "pass-word" not in repr(record.__dict__)


def test_too_many_keys_and_a_file_without_end(tmp_path: Path) -> None:
    many = [jwk(ED, str(n)) for n in range(jwks.KEYS_MAX + 50)]
    assert len(jwks.usable({"keys": many})) == jwks.KEYS_MAX
    big = tmp_path / "big"
    big.touch()
    os.truncate(big, 2**32)
    with pytest.raises(ValueError, match="longer"):
        asyncio.run(jwks.read(str(big)))


def test_revocations_and_plans_do_not_wait_for_keys(single: Server, tmp_path: Path, prefix: str) -> None:
    """One process cannot read its keys; another revokes a token, and the plan file changes: it learns of both meanwhile."""
    plans = tmp_path / "plans.toml"
    hold = threading.Event()

    def held(connection: socket.socket, over: threading.Event) -> None:
        connection.sendall(HEAD)
        if not hold.is_set():
            return  # the start is not what is tried here
        while not over.wait(0.02):
            connection.sendall(b" ")

    plans.write_text('default = "p"\n[plans.p]\n[[plans.p.rules]]\nname = "streams"\nlimit = 1\n')
    with (
        Slow(held) as server,
        ApiProcess(single.url, tmp_path, prefix=prefix, jwks_url=server.url, plans_file=plans) as waiting,
        ApiProcess(single.url, tmp_path, prefix=prefix) as other,
    ):
        token = player("ann", jti="j-1")
        assert waiting.get("/v1/accounts/ann/sessions", token=token).status_code == 200
        hold.set()
        # A token that names an unknown key makes it read again.
        strange = by(GOOD, "RS256", "unknown")
        wait_for(
            lambda: waiting.get("/v1/resume", token=strange).status_code == 401 and server.busy, "it reads the keys", 30
        )
        assert other.post("/v1/tokens/revoke", token=service("admin"), json={"jti": "j-1"}).status_code == 204
        wait_for(lambda: waiting.get("/v1/accounts/ann/sessions", token=token).status_code == 401, "it learns")
        plans.write_text("broken")
        wait_for(lambda: waiting.get("/readyz").json()["plans"] != "ok", "and of the plans")
        assert server.busy  # still waiting for its keys
