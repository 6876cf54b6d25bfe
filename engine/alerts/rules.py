"""What to be told of: rules in TOML. A broken file keeps the rules that were read before, and says so.

[[alert]]
name = "stalls"                    # once in the file
metric = "rebuffer_ratio"          # any of GET /v1/quality; percentiles as "startup_time.p95"
where = "country=PT;kind=live"     # as there
by = ["cdn"]                       # judged apart for each; at most 2
above = 0.02                       # or below = …, or deviates = 4: so many usual deviations above or below what is usual
sessions = 200                     # fewer say nothing
window_s = 300                     # of the figure
for_s = 120                        # it must hold so long before it is told
clear_s = 300                      # and be over for so long
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import ConfigError

BY_MAX = 2
RULES_MAX = 100
_NAME = re.compile(r"[a-z0-9_-]{1,64}")


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One alert. Exactly one of `above`, `below`, `deviates` is set."""

    name: str
    metric: str
    where: str = ""
    by: tuple[str, ...] = ()
    above: float | None = None
    below: float | None = None
    deviates: float | None = None
    sessions: int = 50
    window_s: int = 300
    for_s: int = 120
    clear_s: int = 300
    severity: str = ""
    """Free text for whoever is told."""


@dataclass(frozen=True, slots=True)
class _Bound:
    low: float
    high: float


_BOUNDS = {
    "sessions": _Bound(1, 10**9), "window_s": _Bound(30, 86_400), "for_s": _Bound(0, 86_400), "clear_s": _Bound(0, 86_400),
    "deviates": _Bound(1, 100),
}  # fmt: skip


def parse(text: str, check: Callable[[Rule], None] = lambda rule: None) -> tuple[Rule, ...]:
    """Raises ConfigError that names the alert and the key. `check` judges metric, `by` and `where` of a rule: it raises
    ConfigError, too."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"alerts: {error}", field="alert") from None
    for key in raw.keys() - {"alert"}:
        raise ConfigError(f"alerts: unknown key {key!r}", field=key)
    tables = raw.get("alert", [])
    if not isinstance(tables, list) or len(tables) > RULES_MAX:
        raise ConfigError(f"alerts: at most {RULES_MAX} [[alert]] tables", field="alert")
    rules = tuple(_rule(f"alert[{n}]", table) for n, table in enumerate(tables))
    if len({rule.name for rule in rules}) < len(rules):
        raise ConfigError("alerts: names must differ", field="alert.name")
    for rule in rules:
        check(rule)
    return rules


def _rule(where: str, table: Any) -> Rule:
    try:
        rule = msgspec.convert(table, Rule)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}", field=where) from None
    if not _NAME.fullmatch(rule.name):
        raise ConfigError(f"{where}.name must be 1–64 of a–z, 0–9, _ and -", field=f"{where}.name")
    if sum(value is not None for value in (rule.above, rule.below, rule.deviates)) != 1:
        raise ConfigError(f"{where}: one of above, below, deviates is needed", field=f"{where}.above")
    for name, bound in _BOUNDS.items():
        value = getattr(rule, name)
        if value is not None and not bound.low <= value <= bound.high:
            raise ConfigError(f"{where}.{name} must be {bound.low:g} to {bound.high:g}", field=f"{where}.{name}")
    if len(rule.by) > BY_MAX or len(set(rule.by)) < len(rule.by):
        raise ConfigError(f"{where}.by: at most {BY_MAX} dimensions, each once", field=f"{where}.by")
    return rule


class RuleFile:
    """Rules from a file, read again when it changes; no file, no rules. A broken one keeps the rules it had."""

    def __init__(
        self,
        path: Path | None,
        check: Callable[[Rule], None] = lambda rule: None,
        on_error: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._path, self._check, self._on_error = path, check, on_error
        self._stamp: tuple[int, int, int] | None = (0, 0, 0)
        self.error = ""
        self.current: tuple[Rule, ...] = ()
        self.refresh()

    def refresh(self) -> None:
        """Reads the file again if it has changed."""
        stamp = self._look()
        if self._path is None or stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.current = parse(self._path.read_text(encoding="utf-8"), self._check) if stamp else ()
            self.error = ""
        except (ConfigError, OSError, UnicodeDecodeError) as error:
            self.error = str(error)
            self._on_error(self.error)

    def _look(self) -> tuple[int, int, int] | None:
        try:
            stat = self._path.stat() if self._path else None
        except OSError:
            return None
        return (stat.st_mtime_ns, stat.st_size, stat.st_ino) if stat else None
