"""One line in, one signal out. Pure: no files, no network, no clock."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from engine import edge_rules
from engine.cdnlog import formats
from engine.cdnlog.errors import BadLine
from engine.cdnlog.formats import NAMES, Request
from engine.cdnlog.identity import Identities
from engine.settings import Settings
from engine.wire import ID_MAX, RANKS

Signal = dict[str, Any]
Skip = Literal["method", "status", "path"]

EDGE = Settings()
"""What the edge does unless told otherwise; so does the log reader."""

_STATUSES = frozenset({*range(200, 300), 304})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Which requests count and where a signal's parts are found.

    `query`, `cookies` and `mapping` are name → argument, cookie or dotted path. `ttl_s` (seconds) and
    `evidence` are sent with every signal if set. For `secret` and `trust_tokens` see Identities.
    """

    path: re.Pattern[str] = re.compile(EDGE.edge_uri)
    manifest: re.Pattern[str] = re.compile(EDGE.edge_manifest)
    query: Mapping[str, str] = field(default_factory=lambda: {"token": EDGE.edge_query})
    cookies: Mapping[str, str] = field(default_factory=lambda: {"token": EDGE.edge_cookie})
    mapping: Mapping[str, str] = field(default_factory=dict)
    methods: frozenset[str] = frozenset({"GET"})
    evidence: str = ""
    ttl_s: float | None = None
    secret: bytes | None = None
    trust_tokens: bool = False


class Parser:
    """Turns lines into signals, telling the formats apart line by line.

    `columns` is the order of W3C columns, replaced by every `#Fields` line.
    """

    def __init__(self, rules: Rules, columns: Sequence[str] = ()) -> None:
        self._rules = rules
        self.columns = tuple(columns)
        self._identities = Identities(rules.query, rules.cookies, rules.secret, rules.trust_tokens)

    def parse(self, line: str) -> Signal | Skip | None:
        """A signal, the reason to skip the line, or None (directive, blank). Raises BadLine, nothing else."""
        text = line.lstrip("\ufeff").rstrip("\r\n")
        if not text.strip():
            return None
        if text.startswith("#"):
            self._directive(text)
            return None
        if text.lstrip().startswith("{"):
            request = formats.from_json(text, self._rules.mapping)
        else:
            request = formats.from_w3c(text, self.columns)
        if request.method is not None and request.method.upper() not in self._rules.methods:
            return "method"
        if request.status is not None and not _succeeded(request.status):
            return "status"
        return self._signal(request)

    def _directive(self, text: str) -> None:
        columns = formats.columns_named(text)
        if columns is None:
            return
        # Forgotten first: lines after an unreadable header must not be read by the order of the one before.
        self.columns = columns
        if not columns:
            raise BadLine("bad_directive", "#Fields names no fields")

    def _signal(self, request: Request) -> Signal | Skip:
        rules = self._rules
        path = edge_rules.looked_up((request.path or "").encode(errors="surrogateescape"))
        found = self._identities.of(request, edge_rules.parts(rules.path, path))
        if found is None:
            return "path"
        evidence = rules.evidence or found.get("evidence") or ("manifest" if rules.manifest.search(path) else "segment")
        identity = {name: found.get(name, "") for name in NAMES}
        signal = _checked(identity, evidence, formats.parse_time(request.time), rules.ttl_s)
        return signal | {"cmcd": request.cmcd} if request.cmcd else signal


def _succeeded(status: str) -> bool:
    if not (status.isascii() and status.isdigit() and len(status) == 3):
        raise BadLine("bad_status", f"{status!r:.64} is not a status")
    return int(status) in _STATUSES


def _checked(identity: dict[str, str], evidence: str, at: int, ttl_s: float | None) -> Signal:
    """The finished signal. What the server would refuse is refused here, with the line. Raises BadLine."""
    for name in ("account", "device"):
        if not identity[name]:
            raise BadLine(f"no_{name}", f"nothing in the request names the {name}")
    for name, value in identity.items():
        if len(value) > ID_MAX or not value.isprintable():
            raise BadLine(f"bad_{name}", f"{name} must be 1–{ID_MAX} printable characters")
    if identity["kind"] not in ("", "live", "vod"):
        raise BadLine("bad_kind", f"kind is {identity['kind']!r}, not live or vod")
    if evidence not in RANKS:
        raise BadLine("bad_evidence", f"evidence is {evidence!r:.64}, none of {', '.join(RANKS)}")
    signal: Signal = {name: value for name, value in identity.items() if value}
    signal |= {"evidence": evidence, "at": at}
    if ttl_s is not None:
        signal["ttl_s"] = ttl_s
    # The same line gives the same id, so a batch sent twice counts once.
    name_of = "\0".join((*identity.values(), evidence, str(at)))
    signal["request_id"] = "log-" + hashlib.sha256(name_of.encode()).hexdigest()[:24]
    return signal
