"""Who may ask: every way a token can be wrong, keys that rotate, revocation, grace after expiry, scopes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import itertools
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from engine.embedded import Server
from engine.errors import BadRequest, ConfigError, Forbidden, Unauthorized
from engine.settings import Settings
from engine.tokens import TOKEN_MAX, Claims, Tokens, issue
from engine.wire import ID_MAX
from tests.servers import SECRET, ApiProcess, player, service, wait_for

NOW = 1_800_000_000
GRACE_S = Settings().token_grace_s
LEEWAY_S = Settings().jwt_leeway_s

_RSA = [rsa.generate_private_key(65537, 2048) for _ in range(2)]
_EC = ec.generate_private_key(ec.SECP256R1())
_ED = ed25519.Ed25519PrivateKey.generate()


class Clock:
    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


def tokens(clock: Clock | None = None, **changed: Any) -> Tokens:
    return Tokens(Settings(**({"jwt_secret": SECRET} | changed)), clock or Clock())


def signed(claims: dict[str, Any] | None = None, key: Any = SECRET, algorithm: str = "HS256", **header: Any) -> str:
    """A token that is good at NOW unless the claims say otherwise; None leaves one out."""
    said = {"sub": "ann", "exp": NOW + 3600} | (claims or {})
    return jwt.encode({k: v for k, v in said.items() if v is not None}, key, algorithm=algorithm, headers=header)


def b64(data: bytes | str) -> str:
    return base64.urlsafe_b64encode(data.encode() if isinstance(data, str) else data).decode().rstrip("=")


def forged(header: dict[str, Any], claims: dict[str, Any], key: bytes | None) -> str:
    """A token put together by hand, as PyJWT would refuse to; without a key it is not signed."""
    head = f"{b64(json.dumps(header))}.{b64(json.dumps(claims))}"
    return f"{head}.{b64(hmac.digest(key, head.encode(), hashlib.sha256)) if key else ''}"


def refused(who: Tokens, token: str, code: str) -> None:
    with pytest.raises(Unauthorized) as caught:
        who.verify(token)
    assert caught.value.code == code, caught.value.message


def jwk(key: Any, kid: str | None, **more: Any) -> dict[str, Any]:
    public = key.public_key()
    kind: Any = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm if isinstance(key, ec.EllipticCurvePrivateKey) else OKPAlgorithm  # fmt: skip
    return kind.to_jwk(public, as_dict=True) | ({"kid": kid} if kid is not None else {}) | more


def jwks(*keys: dict[str, Any]) -> str:
    return json.dumps({"keys": keys})


ALL_KEYS = jwks(jwk(_RSA[0], "rsa"), jwk(_EC, "ec"), jwk(_ED, "ed"))


def from_file(path: Path, document: str, clock: Clock | None = None, **changed: Any) -> Tokens:
    """Tokens verified by keys in a file."""
    path.write_text(document)
    who = tokens(clock, **({"jwt_secret": "", "jwks_url": str(path)} | changed))
    asyncio.run(who.refresh_keys())
    return who


class JwksServer:
    """Serves `document` on loopback and counts how often it was read."""

    def __init__(self, document: str) -> None:
        self.document = document
        self.status = 200
        self.reads = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.reads += 1
                body = outer.document.encode()
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self.url = f"http://127.0.0.1:{self._server.server_port}/keys"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


# wrong tokens


def test_a_good_token_says_what_it_says() -> None:
    claims = {
        "sub": "ann", "plan": "family", "max_streams": 3, "device": "d", "device_type": "tv", "provider": "p", "kind": "live",
        "content": "c", "profiles": ["kids"], "sid": "s", "jti": "j",
    }  # fmt: skip
    found = tokens().verify(signed(claims))
    assert found == Claims(
        account="ann", plan="family", max_streams=3, device="d", device_type="tv", provider="p", kind="live", content="c",
        profiles=frozenset({"kids"}), sid="s", jti="j", expires_at=(NOW + 3600) * 1000,
    )  # fmt: skip


def test_a_public_key_is_no_secret(tmp_path: Path) -> None:
    """Algorithm confusion: HS256 over the text of the public key, which everybody knows."""
    public = _RSA[0].public_key()
    texts = [
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), public.public_bytes(Encoding.PEM, PublicFormat.PKCS1),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo), json.dumps(jwk(_RSA[0], "rsa")).encode(), b"", b"0",
    ]  # fmt: skip
    claims = {"sub": "ann", "exp": NOW + 3600}
    for who in (from_file(tmp_path / "k", ALL_KEYS), from_file(tmp_path / "k", ALL_KEYS, jwt_secret=SECRET), tokens()):
        for text, kid in itertools.product(texts, ({}, {"kid": "rsa"}, {"kid": "ec"})):
            refused(who, forged({"alg": "HS256", "typ": "JWT"} | kid, claims, text or b"\x00"), "token_invalid")


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "NONE", "", "HS512", "hs256", "RS256", "ES256", None, 256, ["HS256"]]
)
def test_only_the_algorithm_of_the_key(tmp_path: Path, algorithm: Any) -> None:
    claims, both = {"sub": "ann", "exp": NOW + 3600}, from_file(tmp_path / "k", ALL_KEYS, jwt_secret=SECRET)
    for who, key, kid in itertools.product(
        (tokens(), both), (None, SECRET.encode()), ({}, {"kid": "rsa"}, {"kid": "ed"})
    ):
        refused(who, forged({"alg": algorithm} | kid, claims, key), "token_invalid")


def test_no_other_algorithm_of_a_key_that_fits(tmp_path: Path) -> None:
    who = from_file(tmp_path / "k", ALL_KEYS)
    assert who.verify(signed(key=_RSA[0], algorithm="RS256", kid="rsa")).account == "ann"
    for algorithm in ("RS512", "PS256"):
        refused(who, signed(key=_RSA[0], algorithm=algorithm, kid="rsa"), "token_invalid")
    refused(tokens(), signed(key=SECRET * 2, algorithm="HS512"), "token_invalid")
    refused(who, signed(key=_RSA[0], algorithm="RS256", kid="ec"), "token_invalid")
    refused(who, signed(key=_RSA[1], algorithm="RS256", kid="rsa"), "token_invalid")


def test_a_secret_among_the_public_keys_signs_nothing(tmp_path: Path) -> None:
    shared = {"kty": "oct", "kid": "oct", "k": b64(SECRET), "alg": "HS256"}
    refused(from_file(tmp_path / "k", jwks(shared, jwk(_EC, "ec"))), signed(kid="oct"), "token_invalid")


def test_times_audience_and_issuer() -> None:
    who = tokens(jwt_audience="pulsegate", jwt_issuer="us")
    good = {"aud": "pulsegate", "iss": "us"}
    assert who.verify(signed(good | {"aud": ["x", "pulsegate"], "nbf": NOW + LEEWAY_S - 1})).account == "ann"
    for changed, code in (
        ({"exp": NOW - LEEWAY_S - 1}, "token_expired"), ({"nbf": NOW + LEEWAY_S + 1}, "token_not_yet_valid"),
        ({"aud": "other"}, "token_audience"), ({"aud": ["other"]}, "token_audience"), ({"aud": 7}, "token_audience"),
        ({"iss": "them"}, "token_issuer"), ({"iss": ["us"]}, "token_issuer"),
        ({"aud": None}, "token_invalid"), ({"iss": None}, "token_invalid"), ({"exp": None}, "token_invalid"),
    ):  # fmt: skip
        refused(who, by_hand(good | changed), code)


def by_hand(claims: dict[str, Any]) -> str:
    """Signed with the secret, whatever the claims hold; None leaves one out."""
    said = {"sub": "ann", "exp": NOW + 3600} | claims
    return forged({"alg": "HS256"}, {k: v for k, v in said.items() if v is not None}, SECRET.encode())


BAD_CLAIMS: list[dict[str, Any]] = [
    *({name: value} for name in ("plan", "device", "device_type", "provider", "kind", "content", "sid")
      for value in (7, [], {}, True, "x" * (ID_MAX + 1), "a\n", "\x00", "\ud800", "a\u202eb")),
    {"sub": "x" * (ID_MAX + 1)}, {"sub": "a\tb"}, {"sub": ""}, {"sub": None}, {"sub": None, "scope": "root"}, {"sub": None, "scope": 7},
    {"kind": "radio"}, {"max_streams": -1}, {"max_streams": 1001}, {"max_streams": "2"}, {"max_streams": 1.5}, {"max_streams": True},
    {"profiles": "kids"}, {"profiles": [1]}, {"profiles": {}}, {"exp": "soon"}, {"exp": -1}, {"exp": 1e12}, {"exp": []}, {"exp": True},
    {"exp": float("nan")}, {"exp": float("inf")}, {"nbf": float("inf")}, {"nbf": []}, {"nbf": "x"}, {"jti": "x" * (ID_MAX + 1)},
]  # fmt: skip


@pytest.mark.parametrize("claims", BAD_CLAIMS, ids=lambda value: repr(value)[:40])
def test_malformed_claims(claims: dict[str, Any]) -> None:
    refused(tokens(), by_hand(claims), "token_claims")


@pytest.mark.parametrize("claims", [{"sub": 7}, {"sub": []}, {"jti": 7}, {"exp": None}])
def test_claims_that_are_not_even_jwt(claims: dict[str, Any]) -> None:
    refused(tokens(), by_hand(claims), "token_invalid")


NOT_TOKENS = [
    "", ".", "..", "...", "a.b.c", "é.é.é", b64("{}") + "..", b64("[]") + "..", b64("null") + "..", b64('{"alg":"HS256"}') + "..",
    b64("[" * 9000) + ".a.b", b64('{"alg":' * 1500) + ".a.b", b64("9" * 9000) + ".a.b", "x" * (TOKEN_MAX + 1), "\x00",
    forged({"alg": "HS256", "kid": 7}, {}, b"k"), forged({"alg": "HS256", "crit": ["b64"], "b64": False}, {}, SECRET.encode()),
]  # fmt: skip


@pytest.mark.parametrize("token", NOT_TOKENS, ids=lambda value: ascii(value)[:40])
def test_what_is_no_token(tmp_path: Path, token: str) -> None:
    for who in (tokens(), from_file(tmp_path / "k", ALL_KEYS)):
        refused(who, token, "token_invalid")


def test_a_payload_that_is_signed_but_no_object() -> None:
    for payload in ("[]", "7", "null", "{", "[" * 9000, '{"exp": ' + "9" * 5000 + "}"):
        head = b64('{"alg":"HS256"}') + "." + b64(payload)
        refused(tokens(), f"{head}.{b64(hmac.digest(SECRET.encode(), head.encode(), hashlib.sha256))}", "token_invalid")


@settings(derandomize=True, max_examples=300, database=None, deadline=None)
@given(st.one_of(st.text(), st.lists(st.binary().map(b64), min_size=2, max_size=4).map(".".join)))
def test_no_text_raises_anything_but_unauthorized(token: str) -> None:
    refused(tokens(), token, "token_invalid")


# the cache


def test_the_cache_is_bounded_and_forgets_the_expired_first() -> None:
    clock = Clock()
    who = tokens(clock, token_cache=100)
    for number in range(60):
        who.verify(signed({"jti": f"short-{number}", "exp": NOW + 60}))
    clock.now += 61
    kept = [signed({"jti": f"long-{number}"}) for number in range(500)]
    for token in kept:
        who.verify(token)
        assert len(who._cache) <= 100
    assert who.cached(kept[-1]) is not None
    assert sum(who.cached(token) is not None for token in kept) >= 50
    for size in (0, 1, 2):
        small = tokens(token_cache=size)
        for token in kept[:10]:
            small.verify(token)
            assert len(small._cache) <= size


def test_a_remembered_token_is_still_judged() -> None:
    clock = Clock()
    who = tokens(clock)
    token, backend = signed({"jti": "j"}), signed({"sub": None, "typ": "service", "scope": "read"})
    assert who.cached(token) is None
    who.verify(backend)
    assert who.cached(backend) is None  # the short cut is for players
    assert who.verify(token) is who.cached(token)
    who.revoked = frozenset({"j"})
    assert who.cached(token) is None
    refused(who, token, "token_revoked")
    who.revoked = frozenset()
    clock.now = NOW + 3601
    assert who.cached(token) is None
    assert who.verify(token).account == "ann"  # within the leeway
    clock.now = NOW + 3601 + LEEWAY_S
    refused(who, token, "token_expired")
    assert who.expired(who.verify(token, grace_s=GRACE_S))
    clock.now += GRACE_S
    with pytest.raises(Unauthorized):
        who.verify(token, grace_s=GRACE_S)


# public keys


def test_each_kind_of_public_key(tmp_path: Path) -> None:
    who = from_file(tmp_path / "k", ALL_KEYS, jwt_secret=SECRET)
    for key, algorithm, kid in ((_RSA[0], "RS256", "rsa"), (_EC, "ES256", "ec"), (_ED, "EdDSA", "ed")):
        assert who.verify(signed(key=key, algorithm=algorithm, kid=kid)).account == "ann"
        refused(who, signed(key=key, algorithm=algorithm, kid="unknown"), "token_invalid")
        refused(who, signed(key=key, algorithm=algorithm), "token_invalid")
    assert who.verify(signed()).account == "ann"  # the secret goes on beside them
    alone = from_file(tmp_path / "k", jwks(jwk(_ED, None)))
    assert alone.verify(signed(key=_ED, algorithm="EdDSA")).account == "ann"  # without an id it can only be that one
    sealing = from_file(tmp_path / "k", jwks(jwk(_RSA[0], "rsa", use="enc"), jwk(_EC, "ec")))
    refused(sealing, signed(key=_RSA[0], algorithm="RS256", kid="rsa"), "token_invalid")


def test_keys_rotate() -> None:
    clock = Clock()
    old, new = signed(key=_RSA[0], algorithm="RS256", kid="old"), signed(key=_RSA[1], algorithm="RS256", kid="new")
    with JwksServer(jwks(jwk(_RSA[0], "old"))) as server, asyncio.Runner() as runner:
        who = tokens(clock, jwt_secret="", jwks_url=server.url)

        def upkeep(seconds: float) -> None:
            """Called once a second, as the API does."""
            for _ in range(int(seconds)):
                clock.now += 1
                runner.run(who.refresh_keys())

        upkeep(60)
        assert (who.verify(old).account, server.reads) == ("ann", 1)
        server.document = jwks(jwk(_RSA[0], "old"), jwk(_RSA[1], "new"))
        refused(who, new, "token_invalid")
        upkeep(1)
        assert (who.verify(new).account, server.reads) == ("ann", 2)
        for _ in range(60):  # who makes up key ids causes one read in 10 s
            refused(who, signed(key=_EC, algorithm="ES256", kid="made-up"), "token_invalid")
            upkeep(1)
        assert server.reads <= 9
        upkeep(20)
        reads = server.reads
        upkeep(250)
        assert server.reads == reads
        server.document = jwks(jwk(_RSA[1], "new"))
        upkeep(60)
        assert who.verify(new).account == "ann"
        refused(who, old, "token_invalid")  # though it was remembered
        server.document = jwks(jwk(_RSA[0], "new"))
        upkeep(300)
        refused(who, new, "token_invalid")  # the same id, another key


def test_a_broken_key_document_keeps_the_keys_there_are() -> None:
    clock, token = Clock(), signed({"exp": NOW + 86_400}, _RSA[0], "RS256", kid="rsa")
    with JwksServer(ALL_KEYS) as server, asyncio.Runner() as runner:
        who = tokens(clock, jwt_secret="", jwks_url=server.url)
        runner.run(who.refresh_keys())
        for document, status in (
            ("", 200), ("{", 200), ("[]", 200), ("7", 200), ("{}", 200), ('{"keys": []}', 200), ('{"keys": [7]}', 200), ('{"keys": {}}', 200),
            ('{"keys": [{"kty": "RSA"}]}', 200), ("[" * 50_000, 200), (ALL_KEYS, 500), (ALL_KEYS, 404),
        ):  # fmt: skip
            server.document, server.status = document, status
            clock.now += 301
            runner.run(who.refresh_keys())
            assert who.verify(token).account == "ann", document
        server.document, server.status, reads = jwks(jwk(_RSA[1], "rsa")), 200, server.reads
        clock.now += 11  # after a failure it does not wait for five minutes
        runner.run(who.refresh_keys())
        assert server.reads == reads + 1
        refused(who, token, "token_invalid")


def test_keys_that_cannot_be_read_at_the_start_come_later(tmp_path: Path) -> None:
    clock = Clock()
    who = tokens(clock, jwt_secret="", jwks_url=str(tmp_path / "k"))
    asyncio.run(who.refresh_keys())
    token = signed(key=_EC, algorithm="ES256", kid="ec")
    refused(who, token, "token_invalid")
    (tmp_path / "k").write_text(ALL_KEYS)
    clock.now += 10
    asyncio.run(who.refresh_keys())
    assert who.verify(token).account == "ann"


def test_secrets_from_files(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n")
    env = {"PULSEGATE_JWT_SECRET_FILE": str(path)}
    assert Tokens(Settings.from_env(env), Clock()).verify(signed()).account == "ann"
    for bad, named in (
        ({"PULSEGATE_JWT_SECRET": SECRET}, "PULSEGATE_JWT_SECRET"), ({"PULSEGATE_JWT_SECRET_FILE": str(tmp_path / "no")}, "PULSEGATE_JWT_SECRET_FILE"),
    ):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            Settings.from_env(env | bad)
        assert caught.value.field == named
    path.write_text("too short")
    with pytest.raises(ConfigError):
        Settings.from_env(env)
    with pytest.raises(ConfigError):
        Tokens(Settings())


def test_what_a_token_reaches() -> None:
    ann, backend = Claims(account="ann"), Claims(scopes=frozenset({"read"}))
    assert (ann.account_or(""), ann.account_or("ann"), backend.account_or("bob")) == ("ann", "ann", "bob")
    with pytest.raises(Forbidden):
        ann.account_or("bob")
    with pytest.raises(BadRequest):
        backend.account_or("")
    backend.require("read")
    Claims(scopes=frozenset({"admin"})).require("signals")
    for who, scope in ((backend, "signals"), (backend, "admin"), (ann, "read")):
        with pytest.raises(Forbidden):
            who.require(scope)


def test_issued_tokens_verify() -> None:
    s = Settings(jwt_secret=SECRET, jwt_audience="pulsegate", jwt_issuer="us")
    token = issue(SECRET, {"sub": "ann", "plan": None}, 60, settings=s, now=NOW)
    assert Tokens(s, Clock()).verify(token) == Claims(account="ann", expires_at=(NOW + 60) * 1000)


# over HTTP


@pytest.fixture(scope="module")
def api(single: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    with ApiProcess(single.url, tmp_path_factory.mktemp("api"), prefix="auth") as process:
        yield process


def status_and_code(api: ApiProcess, method: str, path: str, token: str, body: str | None = None) -> tuple[int, str]:
    answer = api.request(method, path, token=token, content=body)
    return answer.status_code, answer.json()["error"]["code"] if answer.status_code >= 400 else ""


def beaten(api: ApiProcess, token: str, session: str = "s1", device: str = "d1", seq: int = 0) -> tuple[int, str]:
    body = {"session": session, "device": device, "content": "film", "kind": "live", "state": "playing", "seq": seq}
    return status_and_code(api, "POST", "/v1/heartbeats", token, json.dumps(body))


CHECK = "/v1/check?content=film&device=d1"


def test_every_route_refuses_a_token_that_does_not_verify(api: ApiProcess) -> None:
    wrong = issue(
        "another secret, of thirty-two bytes too", {"sub": "ann", "scope": "admin"}, 3600, settings=Settings()
    )
    body = json.dumps({"session": "s", "device": "d", "content": "c", "kind": "live", "state": "playing", "seq": 0,
                       "stop": "oldest", "account": "ann", "evidence": "segment", "jti": "j"})  # fmt: skip
    routes = [
        ("POST", "/v1/heartbeats", body), ("GET", CHECK, None), ("POST", "/v1/sessions/s/stop", "{}"), ("DELETE", "/v1/sessions/s", None),
        ("POST", "/v1/sessions/s/takeover", body), ("GET", "/v1/accounts/ann/sessions", None), ("POST", "/v1/signals", body),
        ("POST", "/v1/tokens/revoke", body),
    ]  # fmt: skip
    for method, path, sent in routes:
        assert status_and_code(api, method, path, "", sent) == (401, "token_missing"), path
        assert status_and_code(api, method, path, wrong, sent) == (401, "token_invalid"), path
        answer = api.request(method, path, headers={"Authorization": "Basic YTpi"}, content=sent)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.json()["error"]["field"] == "authorization"
    assert api.get("/v1/edge/authorize", token=wrong).headers["x-pulsegate-reason"] == "token_invalid"


def test_scopes(api: ApiProcess) -> None:
    signal = json.dumps({"account": "scopes", "device": "d", "content": "c", "evidence": "segment"})
    calls = {
        "signals": ("POST", "/v1/signals", signal), "read": ("GET", "/v1/accounts/scopes/sessions", None),
        "admin": ("POST", "/v1/tokens/revoke", '{"jti": "nobody"}'),
    }  # fmt: skip
    for scope, (method, path, body) in calls.items():
        for held in ("signals", "read", "admin"):
            status, code = status_and_code(api, method, path, service(held), body)
            assert (status < 300) == (held in (scope, "admin")), (scope, held)
            assert code in ("", "scope")
    for held in calls:
        for method, path, body in (("GET", CHECK, None), ("POST", "/v1/heartbeats", '{"session":"s","content":"c","kind":"live","state":"playing","seq":0}')):  # fmt: skip
            assert status_and_code(api, method, path, service(held), body) == (403, "account")
    stop = json.dumps({"account": "scopes"})
    assert status_and_code(api, "POST", "/v1/sessions/s/stop", service("read", "signals"), stop) == (403, "scope")
    assert status_and_code(api, "POST", "/v1/sessions/s/stop", service("admin"), stop) == (204, "")


def test_a_revoked_token_is_refused_at_once_here_and_soon_elsewhere(
    api: ApiProcess, single: Server, tmp_path: Path
) -> None:
    token, other = player("rev", jti="rev-1"), player("rev", jti="rev-2")
    with ApiProcess(single.url, tmp_path, prefix="auth") as second:
        for process in (api, second):
            assert beaten(process, token) == beaten(process, other) == (200, "")
        body = json.dumps({"jti": "rev-1", "expires_at": int(time.time() * 1000) + 3_600_000})
        assert api.post("/v1/tokens/revoke", token=service("admin"), content=body).status_code == 204
        assert beaten(api, token) == (401, "token_revoked")
        assert status_and_code(api, "GET", CHECK, token) == (401, "token_revoked")
        wait_for(lambda: beaten(second, token) == (401, "token_revoked"), "the other process knows", seconds=4)
        assert beaten(api, other) == beaten(second, other) == (200, "")
    with ApiProcess(single.url, tmp_path, prefix="auth") as later:
        wait_for(lambda: beaten(later, token) == (401, "token_revoked"), "a process started later knows", seconds=4)
    assert [item["session"] for item in api.sessions("rev")] == ["s1"]  # a 401 is not a block


def test_grace_after_expiry(api: ApiProcess) -> None:
    now = time.time()
    late = player("late", ttl_s=60, now=now - 60 - GRACE_S / 2)
    too_late = player("late", ttl_s=60, now=now - 60 - GRACE_S - LEEWAY_S - 5)
    assert beaten(api, late) == (401, "token_expired")
    assert api.sessions("late") == []
    assert beaten(api, player("late")) == (200, "")
    assert beaten(api, late, seq=1) == (200, "")
    assert beaten(api, late, "s2", "d2") == (401, "token_expired")
    assert beaten(api, too_late, seq=2) == (401, "token_expired")
    for method, path, body in (("GET", CHECK, None), ("POST", "/v1/sessions/s1/takeover", '{"stop": "oldest"}'), ("GET", "/v1/accounts/late/sessions", None)):  # fmt: skip
        assert status_and_code(api, method, path, late, body) == (401, "token_expired")
    assert [item["seq"] for item in api.sessions("late")] == [1]  # refused, but neither ended nor blocked
    assert beaten(api, player("late"), seq=2) == (200, "")
    assert status_and_code(api, "POST", "/v1/sessions/s1/stop", too_late) == (401, "token_expired")
    assert status_and_code(api, "POST", "/v1/sessions/s1/stop", late) == (204, "")
    assert beaten(api, late, seq=3) == (401, "token_expired")


def test_a_secret_from_a_file_reaches_every_process(single: Server, tmp_path: Path, prefix: str) -> None:
    (tmp_path / "secret").write_text(SECRET)
    api = ApiProcess(single.url, tmp_path, prefix=prefix, processes=2)
    del api.env["PULSEGATE_JWT_SECRET"]
    api.env["PULSEGATE_JWT_SECRET_FILE"] = str(tmp_path / "secret")
    with api:
        assert beaten(api, player("ann")) == (200, "")


def test_public_keys_over_http(single: Server, tmp_path: Path, prefix: str) -> None:
    with (
        JwksServer(jwks(jwk(_RSA[0], "rsa"), jwk(_EC, "ec"))) as server,
        ApiProcess(single.url, tmp_path, prefix=prefix, jwt_secret="", jwks_url=server.url) as api,
    ):
        soon = {"exp": int(time.time()) + 3600}
        assert beaten(api, signed(soon, _RSA[0], "RS256", kid="rsa")) == (200, "")
        assert beaten(api, signed(soon, _EC, "ES256", kid="ec")) == (200, "")
        assert beaten(api, signed(soon)) == (401, "token_invalid")
        new = signed(soon, _ED, "EdDSA", kid="ed")
        assert beaten(api, new) == (401, "token_invalid")
        server.document = ALL_KEYS
        wait_for(lambda: beaten(api, new) == (200, ""), "the new key is known", seconds=20, every_s=0.2)
        assert server.reads <= 4
