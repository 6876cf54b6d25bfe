"""Plans: how many streams an account may run, under which rules, and what happens at the limit.

`plans.toml`:

    default = "standard"

    [plans.standard]
    at_limit = "deny_new"          # or stop_oldest, stop_latest
    require_evidence = false       # true: a session never seen by the backend is unproven

    [[plans.standard.rules]]
    name = "streams"
    limit = 2
    unit = "device"                # or stream

    [[plans.standard.rules]]
    name = "live"
    limit = 1
    kind = "live"                  # selectors: kind, provider, device_type, content; a value or a list

A stream holds a lease under every rule whose selectors match it. An attribute that nobody states matches every
rule that selects on it, so leaving a field out gains nothing. Names of rules that Pulsegate makes itself are refused.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import ConfigError
from engine.names import RULES, STREAMS_RULE
from engine.wire import ID_MAX

MODES = ("deny_new", "stop_oldest", "stop_latest")
UNITS = ("device", "stream")
SELECTORS = ("kind", "provider", "device_type", "content")
_NAME = re.compile("[a-z0-9_-]{1,32}")
_MATCH_CACHE = 4096


@dataclass(frozen=True, slots=True)
class Rule:
    """A named limit. `selects` maps an attribute to the values it must have; empty: every stream."""

    name: str
    limit: int
    unit: str = "device"
    selects: tuple[tuple[str, frozenset[str]], ...] = ()

    def matches(self, attributes: dict[str, str]) -> bool:
        return all(not attributes[name] or attributes[name] in values for name, values in self.selects)


@dataclass(frozen=True, slots=True)
class Matched:
    """The rules that hold for one stream, as the scripts want them."""

    names: tuple[str, ...]
    held: str
    """Rule names joined by commas, for the session record."""
    policy: str
    """Mode, require_evidence, name:unit:limit…, tab-separated."""
    unstated: tuple[str, ...]
    """Attributes that some rule selects on and nobody stated."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    name: str
    rules: tuple[Rule, ...]
    at_limit: str = "deny_new"
    require_evidence: bool = False
    _by_content: bool = field(init=False, default=False)
    _cache: dict[tuple[str, str, str, str, int | None], Matched] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_content", self._selects("content"))

    def match(self, kind: str, provider: str, device_type: str, content: str, max_streams: int | None) -> Matched:
        """The rules for a stream. `max_streams` from a token replaces the limit of the rule without a selector."""
        key = (kind, provider, device_type, content if self._by_content else "*", max_streams)
        found = self._cache.get(key)
        if found is None:
            if len(self._cache) >= _MATCH_CACHE:
                self._cache.clear()
            found = self._cache[key] = self._match(
                {"kind": kind, "provider": provider, "device_type": device_type, "content": content}, max_streams
            )
        return found

    def _selects(self, attribute: str) -> bool:
        return any(name == attribute for rule in self.rules for name, _ in rule.selects)

    def _match(self, attributes: dict[str, str], max_streams: int | None) -> Matched:
        rules = [rule for rule in self.rules if rule.matches(attributes)]
        if max_streams is not None:
            rules = [Rule(r.name, max_streams, r.unit) if not r.selects else r for r in rules]
            if all(rule.selects for rule in self.rules):
                rules.insert(0, Rule(STREAMS_RULE, max_streams))
        # Narrow rules first: who leaves for one often frees the wider ones too, so fewer streams have to go.
        rules.sort(key=lambda rule: rule.limit)
        names = tuple(rule.name for rule in rules)
        parts = [
            self.at_limit,
            "1" if self.require_evidence else "0",
            *(f"{r.name}:{r.unit[0]}:{r.limit}" for r in rules),
        ]
        unstated = tuple(a for a in SELECTORS if not attributes[a] and self._selects(a))
        return Matched(names, ",".join(names), "\t".join(parts), unstated)


@dataclass(frozen=True, slots=True)
class Plans:
    default: str
    by_name: dict[str, Plan]

    def get(self, name: str) -> Plan:
        """The plan of that name, or the default plan."""
        return self.by_name.get(name) or self.by_name[self.default]


def parse(text: str) -> Plans:
    """Reads plans from TOML. Raises ConfigError that names the table and key."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"plans: {error}", field="plans") from None
    _only(raw, {"default", "plans"}, "plans file")
    tables = raw.get("plans")
    if not isinstance(tables, dict) or not tables:
        raise ConfigError("plans: at least one [plans.<name>] is needed", field="plans")
    plans = {name: _plan(name, table) for name, table in tables.items()}
    default = raw.get("default")
    if not isinstance(default, str) or default not in plans:
        raise ConfigError(f"default: {default!r} is not a plan", field="default")
    return Plans(default, plans)


def _only(table: Any, allowed: set[str], where: str) -> None:
    if not isinstance(table, dict):
        raise ConfigError(f"{where} must be a table", field=where)
    for key in table.keys() - allowed:
        raise ConfigError(f"{where}: unknown key {key!r}", field=f"{where}.{key}")


def _pick(table: dict[str, Any], key: str, where: str, kind: type, default: Any, choices: tuple[str, ...] = ()) -> Any:
    value = table.get(key, default)
    if type(value) is not kind or (choices and value not in choices):
        wanted = f"one of {', '.join(choices)}" if choices else kind.__name__
        raise ConfigError(f"{where}.{key} must be {wanted}", field=f"{where}.{key}")
    return value


def _plan(name: str, table: Any) -> Plan:
    where = f"plans.{name}"
    if not 0 < len(name) <= ID_MAX or not name.isprintable() or name != name.strip():
        raise ConfigError(
            f"{where}: a plan's name must be 1–{ID_MAX} printable characters, as a token can say it", field=where
        )
    _only(table, {"at_limit", "require_evidence", "rules"}, where)
    rules = table.get("rules")
    if not isinstance(rules, list) or not rules:
        raise ConfigError(f"{where}.rules: at least one rule is needed", field=f"{where}.rules")
    built = tuple(_rule(f"{where}.rules[{i}]", rule) for i, rule in enumerate(rules))
    if len({rule.name for rule in built}) < len(built):
        raise ConfigError(f"{where}.rules: names must differ", field=f"{where}.rules")
    if sum(not rule.selects for rule in built) > 1:
        raise ConfigError(f"{where}.rules: only one rule may be without a selector", field=f"{where}.rules")
    mode = _pick(table, "at_limit", where, str, "deny_new", MODES)
    return Plan(name, built, mode, _pick(table, "require_evidence", where, bool, False))


def _rule(where: str, table: Any) -> Rule:
    _only(table, {"name", "limit", "unit", *SELECTORS}, where)
    name = _pick(table, "name", where, str, None)
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}.name must be 1–32 of a–z, 0–9, _ and -", field=f"{where}.name")
    if name in RULES:
        raise ConfigError(f"{where}.name: {name} is a name of Pulsegate's own", field=f"{where}.name")
    limit = _pick(table, "limit", where, int, None)
    if not 0 <= limit <= 1000:
        raise ConfigError(f"{where}.limit must be 0–1000", field=f"{where}.limit")
    selects = []
    for key in SELECTORS:
        if key in table:
            values = table[key] if isinstance(table[key], list) else [table[key]]
            if not values or not all(isinstance(v, str) and v for v in values):
                raise ConfigError(f"{where}.{key} must be a string or a list of strings", field=f"{where}.{key}")
            selects.append((key, frozenset(values)))
    if selects and name == STREAMS_RULE:
        message = f"{where}.name: {name} is the rule without selectors, whose limit a token may set"
        raise ConfigError(message, field=f"{where}.name")
    return Rule(name, limit, _pick(table, "unit", where, str, "device", UNITS), tuple(selects))


class PlanFile:
    """Plans from a file, read again when it changes. A broken file keeps the plans it had and says so."""

    def __init__(self, path: Path, on_error: Callable[[str], None] = lambda message: None) -> None:
        self._path = path
        self._on_error = on_error
        self._stamp = self._look()
        self.error = ""
        self.current = parse(self._read())

    def _look(self) -> tuple[int, int, int] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _read(self) -> str:
        try:
            return self._path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self._path}: {error}", field="PULSEGATE_PLANS_FILE") from None

    def refresh(self) -> None:
        """Reads the file again if it has changed; call it about once a second."""
        stamp = self._look()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.current = parse(self._read())
            self.error = ""
        except ConfigError as error:
            self.error = error.message
            self._on_error(error.message)
