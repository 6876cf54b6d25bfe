"""The options of `pulsegate ingest-log`. A bad one raises ConfigError that names it."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable
from pathlib import Path

import httpx

from engine import edge_rules
from engine.cdnlog.formats import MAPPABLE, NAMES
from engine.cdnlog.signals import EDGE, Rules
from engine.errors import ConfigError
from engine.masked import masked
from engine.wire import RANKS, SIGNALS_MAX


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", nargs="?", default="-", metavar="FILE", help="the log, plain or .gz; - is standard input")
    add("--url", default="http://127.0.0.1:8080", help="where Pulsegate listens (%(default)s)")
    add("--token-file", metavar="F", help="holds the service token, scope signals; else PULSEGATE_TOKEN")
    add("--follow", action="store_true", help="wait for more lines, through rotation; retry for ever")
    add("--checkpoint", metavar="F", help="remember here how far the log was acknowledged")
    add("--bad", metavar="F", help="keep bad lines here (FILE.bad; for standard input, standard error)")
    add("--dry-run", action="store_true", help="print the signals, post nothing")
    add("--retries", type=int, default=8, metavar="N", help="attempts after the first (%(default)s)")
    add("--batch-size", type=int, default=SIGNALS_MAX, metavar="N", help="signals a request (%(default)s)")
    add("--linger-s", type=float, default=1.0, metavar="S", help="a live batch waits this long (%(default)s)")
    add("--coalesce-s", type=float, default=5.0, metavar="S", help="like signals within it are one; 0: none")
    add = parser.add_argument_group("what counts, and where its parts are").add_argument
    add("--method", default="GET", metavar="M,…", help="methods that count (%(default)s)")
    add("--path", default=EDGE.edge_uri, metavar="RE", help="paths that count; groups name parts of the signal")
    add("--manifest", default=EDGE.edge_manifest, metavar="RE", help="of them the manifests (%(default)s)")
    add("--query", action="append", default=[], metavar="NAME=ARG", help="e.g. account=acc (token=token)")
    add("--cookie", action="append", default=[], metavar="NAME=COOKIE", help="e.g. token=pulsegate")
    add("--map", action="append", default=[], metavar="NAME=KEY", help="JSON lines: e.g. account=claims.sub")
    add("--fields", default="", metavar="F F …", help="the W3C columns, where no #Fields line comes first")
    add("--evidence", choices=tuple(RANKS), default="", help="what every line is (by --manifest)")
    add("--ttl-s", type=float, metavar="S", help="lifetime of each signal (the server's)")
    add("--jwt-secret-file", metavar="F", help="verifies tokens (HS256)")
    add("--trust-tokens", action="store_true", help="read tokens unverified: the CDN verified them")


def rules_of(args: argparse.Namespace) -> Rules:
    names = ("token", *NAMES)
    secret = read_secret("--jwt-secret-file", args.jwt_secret_file)
    if secret is not None and len(secret) < 32:
        raise ConfigError("--jwt-secret-file must hold at least 32 bytes", field="--jwt-secret-file")
    return Rules(
        path=edge_rules.compiled("--path", args.path, names),
        manifest=edge_rules.compiled("--manifest", args.manifest),
        query={"token": EDGE.edge_query} | parse_pairs("--query", args.query, names),
        cookies={"token": EDGE.edge_cookie} | parse_pairs("--cookie", args.cookie, names),
        mapping=parse_pairs("--map", args.map, MAPPABLE),
        methods=frozenset(method.strip().upper() for method in args.method.split(",")),
        evidence=args.evidence,
        ttl_s=args.ttl_s,
        secret=secret,
        trust_tokens=args.trust_tokens,
    )


def check(args: argparse.Namespace) -> None:
    """Numbers out of range, and what no single option can tell."""
    for option, low, high in (
        ("--retries", 0, 1_000_000), ("--batch-size", 1, SIGNALS_MAX), ("--linger-s", 0.01, 60),
        ("--coalesce-s", 0, 3600), ("--ttl-s", 0.001, 86_400),
    ):  # fmt: skip
        value = getattr(args, option[2:].replace("-", "_"))
        if value is not None and not low <= value <= high:
            raise ConfigError(f"{option} must be between {low} and {high}", field=option)
    if args.map and "time" not in (name := [item.partition("=")[0] for item in args.map]):
        raise ConfigError(f"--map must say where the time is; it names {', '.join(name)}", field="--map")
    if args.file == "-" and args.checkpoint:
        raise ConfigError("--checkpoint needs a file, not standard input", field="--checkpoint")
    if args.file.endswith(".gz") and args.follow:
        raise ConfigError("--follow needs a plain file: a .gz does not grow", field="--follow")
    with contextlib.suppress(httpx.InvalidURL):
        url = httpx.URL(args.url)
        if url.scheme in ("http", "https") and url.host:
            return
    raise ConfigError(f"--url {masked(args.url)!r:.128} is no http(s) URL", field="--url")


def read_secret(option: str, path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"{option} {path} cannot be read: {error.strerror}", field=option) from None


def parse_pairs(option: str, items: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """`["account=claims.sub"]` → `{"account": "claims.sub"}`."""
    allowed, pairs = tuple(names), {}
    for item in items:
        name, _, target = item.partition("=")
        if name not in allowed or not target:
            raise ConfigError(f"{option} {item}: want NAME=…, NAME one of {', '.join(allowed)}", field=option)
        pairs[name] = target
    return pairs
