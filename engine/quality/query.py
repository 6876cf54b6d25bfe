"""From the arguments of a question to SQL. Names come from closed tables; values, and the names of labels, are bound parameters.

`where` is tests joined by `;`, each `name=a,b` (one of these) or `name!=a,b` (none of them): `country=PT,ES;device_type!=tv;label.plan=gold`.
An unknown value is '': `cdn=` are the facts without one. `\\` makes the `,` `;` or `\\` after it part of a value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from engine.errors import BadRequest
from engine.quality.facts import DIMENSIONS
from engine.quality.metrics import END, METRICS, PERCENTILES, SESSION

METRICS_MAX, BY_MAX, WHERE_MAX, VALUES_MAX = 10, 5, 20, 100
VALUE_MAX, LABEL_MAX = 1_024, 64
ROWS_MAX, POINTS_MAX = 10_000, 5_000
RANGE_MAX_MS = 90 * 86_400_000
INTERVALS = {"10s": 10_000, "1m": 60_000, "5m": 300_000, "15m": 900_000, "1h": 3_600_000, "1d": 86_400_000}
LABEL = "label."
_TEST = re.compile(r"([^=!;]*)(!?=)(.*)", re.DOTALL)
_PARTS = re.compile(r"\\(.)|([,;])", re.DOTALL)


class Condition(msgspec.Struct, frozen=True):
    """The dimension has one of these values, or (`negated`) none of them."""

    name: str
    values: tuple[str, ...]
    negated: bool = False


class Asked(msgspec.Struct, frozen=True):
    """A question: of `start` ≤ at < `end` (ms), in intervals of so many ms (0: one figure for all of it)."""

    metrics: tuple[str, ...]
    start: int
    end: int
    by: tuple[str, ...] = ()
    where: tuple[Condition, ...] = ()
    interval: int = 0
    limit: int = ROWS_MAX


# reading arguments


def names(field_: str, text: str, known: Mapping[str, Any] | Sequence[str], most: int) -> tuple[str, ...]:
    """Comma-separated names, each once. Raises BadRequest."""
    found = tuple(part.strip() for part in text.split(",")) if text.strip() else ()
    for name in found:
        if name not in known and not (field_ == "by" and _is_label(name)):
            raise BadRequest(f"{field_}: {_shown(name)} is none of {', '.join(known)}", field=field_)
    if len(found) > most:
        raise BadRequest(f"{field_}: at most {most}", field=field_)
    if len(set(found)) < len(found):
        raise BadRequest(f"{field_}: each name once", field=field_)
    return found


def metrics_of(text: str) -> tuple[str, ...]:
    """Raises BadRequest."""
    found = names("metrics", text, METRICS, METRICS_MAX)
    if not found:
        raise BadRequest(f"metrics is required: {', '.join(METRICS)}", field="metrics")
    return found


def by_of(text: str) -> tuple[str, ...]:
    """Raises BadRequest."""
    return names("by", text, DIMENSIONS, BY_MAX)


def where_of(text: str) -> tuple[Condition, ...]:
    """Raises BadRequest."""
    if not text:
        return ()
    tests = [_test(part) for part in _split(text, ";")]
    if len(tests) > WHERE_MAX:
        raise BadRequest(f"where: at most {WHERE_MAX} tests", field="where")
    return tuple(tests)


def interval_of(text: str, start: int, end: int) -> int:
    """ms; 0 for ''. Raises BadRequest."""
    if not text:
        return 0
    if text not in INTERVALS:
        raise BadRequest(f"interval must be one of {', '.join(INTERVALS)}", field="interval")
    if (end - start) / INTERVALS[text] > POINTS_MAX:
        raise BadRequest(f"interval: more than {POINTS_MAX:,} points between from and to", field="interval")
    return INTERVALS[text]


def check_range(start: int, end: int) -> None:
    """Raises BadRequest."""
    if not start < end:
        raise BadRequest("from must be before to", field="from")
    if end - start > RANGE_MAX_MS:
        raise BadRequest("from must be before to by 90 days at most", field="from")


def _test(text: str) -> Condition:
    found = _TEST.fullmatch(text)
    if found is None:
        raise BadRequest(f"where: {_shown(text)} is neither name=value nor name!=value", field="where")
    name, sign, rest = found[1].strip(), found[2], found[3]
    if name not in DIMENSIONS and not _is_label(name):
        raise BadRequest(f"where: {_shown(name)} is none of {', '.join(DIMENSIONS)}, label.<name>", field="where")
    values = tuple(_PARTS.sub(lambda part: part[1] or part[2], value) for value in _split(rest, ","))
    if len(values) > VALUES_MAX or any(len(value) > VALUE_MAX for value in values):
        raise BadRequest(f"where: at most {VALUES_MAX} values of {VALUE_MAX} characters in a test", field="where")
    return Condition(name, values, sign == "!=")


def _split(text: str, separator: str) -> list[str]:
    """At separators without a backslash before them; backslashes stay."""
    found, begin = [], 0
    for part in _PARTS.finditer(text):
        if part[2] == separator:
            found.append(text[begin : part.start()])
            begin = part.end()
    return [*found, text[begin:]]


def _is_label(name: str) -> bool:
    return name.startswith(LABEL) and 0 < len(name) - len(LABEL) <= LABEL_MAX and name.isprintable()


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")


# SQL


@dataclass(slots=True)
class Query:
    """SQL over the relation `facts`, its parameters, and what its columns are: at (if in intervals), the dimensions, the number of
    sessions, then for each metric top, under, sessions, its extra figures' top and under, and the percentiles."""

    sql: str
    params: dict[str, Any] = field(default_factory=dict)


class Dimensions:
    """SQL expressions of dimensions and tests; collects their parameters."""

    def __init__(self) -> None:
        self.params: dict[str, Any] = {}

    def bind(self, value: Any) -> str:
        name = f"p{len(self.params)}"
        self.params[name] = value
        return f"${name}"

    def of(self, name: str) -> str:
        """Never null, as the facts' columns are: '' is unknown."""
        if name in DIMENSIONS:
            return f'"{name}"'
        return f"coalesce(labels[{self.bind(name.removeprefix(LABEL))}], '')"

    def tests(self, start: int, end: int, where: Sequence[Condition]) -> str:
        """The WHERE clause's conditions."""
        # Constants to the planner, which compares them with what each row group holds.
        found = [f'"at" >= epoch_ms({self.bind(start)}::BIGINT)', f'"at" < epoch_ms({self.bind(end)}::BIGINT)']
        for test in where:
            values = ", ".join(f"{self.bind(value)}::VARCHAR" for value in test.values)
            found.append(f"{self.of(test.name)} {'NOT IN' if test.negated else 'IN'} ({values})")
        return " AND ".join(found)


_ROW = (
    "ms",
    "count",
    "value",
    "before",
    "bits",
    "bits_ms",
    "ad",
    "fatal",
    "business",
    "started",
    "stalls_known",
    "skipped",
)


def compile_(asked: Asked) -> Query:
    """One statement: the sessions' parts (`s`), sums over them (`g`), and where asked for percentiles (`q`) and views (`e`)."""
    said = Dimensions()
    keys = {}
    if asked.interval:
        keys["t"] = f"time_bucket(INTERVAL '{asked.interval // 1000} seconds', \"at\", TIMESTAMP '1970-01-01')"
    keys |= {f"d{n}": said.of(name) for n, name in enumerate(asked.by)}
    tests = said.tests(asked.start, asked.end, asked.where)
    metrics = [METRICS[name] for name in asked.metrics]
    selected = "".join(f"{sql} AS {key}, " for key, sql in keys.items())
    named = "".join(f"{key}, " for key in keys)
    group = f"GROUP BY {', '.join(keys)}" if keys else ""

    parts = dict.fromkeys(part for metric in metrics if not metric.ends for part in metric.parts)
    made = "".join(f", {SESSION[part]} AS {part}" for part in parts)
    base = f"(SELECT {selected}account, session, fact{_read(made)} FROM facts WHERE {tests})"
    sessions = f"s AS (SELECT {named}account, session{made} FROM {base} GROUP BY {named}account, session)"
    order = ", ".join((["t"] if asked.interval else []) + ["n DESC"] + [key for key in keys if key != "t"])
    counted = ["count(*) AS n"] + [
        f"{sql} AS {key}"
        for n, metric in enumerate(metrics) if not metric.ends for key, sql in _columns(n, metric).items()
    ]  # fmt: skip
    groups = f"{', '.join(counted)} FROM s {group} ORDER BY {order} LIMIT {asked.limit + 1}"
    spreads, ends = _spreads(metrics, base, named, group), _ends(metrics, selected, named, group, tests)
    if not spreads and not ends:  # half the time to plan
        shown = ", ".join("epoch_ms(t)" if key == "t" else key for key in keys)
        return Query(f"WITH {sessions} SELECT {shown}{', ' if shown else ''}{groups}", said.params)
    ctes, joined = [sessions, f"g AS (SELECT {named}{groups})"], ["g"]
    for name, cte in (("q", spreads), ("e", ends)):
        if cte:
            ctes.append(cte)
            joined.append(f"LEFT JOIN {name} ON {' AND '.join(f'g.{k} = {name}.{k}' for k in keys) or 'true'}")
    columns = ["epoch_ms(g.t)" if key == "t" else f"g.{key}" for key in keys] + ["g.n"]
    for n, metric in enumerate(metrics):
        columns += [f"{'e' if metric.ends else 'g'}.{key}" for key in _columns(n, metric)]
        if metric.spread:
            columns.append(f"{'e' if metric.ends else 'q'}.m{n}_p")
    ordered = ", ".join("g." + part for part in order.split(", "))
    sql = f"WITH {', '.join(ctes)} SELECT {', '.join(columns)} FROM {' '.join(joined)} ORDER BY {ordered}"
    return Query(sql, said.params)


def _read(made: str) -> str:
    """The columns that the parts of sessions are made of."""
    words = set(re.findall(r"\w+", made))
    return "".join(f', "{name}"' for name in _ROW if name in words)


def _columns(n: int, metric: Any) -> dict[str, str]:
    """Column → aggregate of a metric, but for its percentiles."""
    behind = (
        f"count(DISTINCT (account, session)) FILTER ({metric.behind})"
        if metric.ends
        else f"count(*) FILTER ({metric.behind})"
    )
    found = {f"m{n}_top": metric.top, f"m{n}_under": metric.under or "NULL", f"m{n}_n": behind}
    for extra, (top, under) in metric.extra.items():
        found |= {f"m{n}_{extra}_top": top, f"m{n}_{extra}_under": under}
    return found


def _quantiles(column: str) -> str:
    return f"quantile_cont({column}, {list(PERCENTILES.values())})"


def _spreads(metrics: Sequence[Any], base: str, named: str, group: str) -> str:
    """Percentiles need each value: a look of its own at the few rows that have one."""
    asked = [(n, *metric.spread) for n, metric in enumerate(metrics) if metric.spread and not metric.ends]
    if not asked:
        return ""
    found = ", ".join(f"{_quantiles(column)} FILTER (fact = '{fact}') AS m{n}_p" for n, fact, column in asked)
    facts = ", ".join(f"'{fact}'" for fact in dict.fromkeys(fact for _, fact, _ in asked))
    return f"q AS (SELECT {named}{found} FROM {base} WHERE fact IN ({facts}) {group})"


def _ends(metrics: Sequence[Any], selected: str, named: str, group: str, tests: str) -> str:
    """Views, each by its last end."""
    asked = [(n, metric) for n, metric in enumerate(metrics) if metric.ends]
    if not asked:
        return ""
    found = []
    for n, metric in asked:
        found += [f"{sql} AS {key}" for key, sql in _columns(n, metric).items()]
        if metric.spread:
            found.append(f"{_quantiles('view_ms')} AS m{n}_p")
    parts = ", ".join(f"{sql} AS {part}" for part, sql in END.items())
    last = (
        'QUALIFY row_number() OVER (PARTITION BY account, session, "view", started_at '
        "ORDER BY stream_ms DESC, stream_seq DESC, part DESC) = 1"
    )
    views = f"SELECT {selected}account, session, {parts} FROM facts WHERE {tests} AND fact = 'end' {last}"
    return f"e AS (SELECT {named}{', '.join(found)} FROM ({views}) {group})"
