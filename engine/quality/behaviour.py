"""How people watch, out of the views' ends (facts `end`): every figure is a sum over views, told apart by what they are about.

A view counts where it began, and once: by its last end, if it was reopened. A view whose end nobody reported was found by silence; it counts
like the others and has `silent`.

| figure        | is                                                                                                      |
|---------------|---------------------------------------------------------------------------------------------------------|
| views, silent | views that are over, and those of them found by silence                                                  |
| watched_ms    | their watched time, together                                                                             |
| accounts      | distinct accounts                                                                                        |
| completion    | completed ÷ views of known length                                                                        |
| quartiles     | share of the views of known length that came to 25, 50, 75, 95 % of it; the last as near the end as credits let it |
| zaps          | views shorter than `ZAP_MS` whose account watched something else on that device within `ZAP_GAP_MS`; rate: ÷ views |
| binge         | completed titles after which the same profile began another within an hour ÷ completed titles            |
| returned      | accounts that began another view `AWAY_MS` to `RETURN_MS` after their first one in the period ÷ accounts |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.errors import BadRequest

ZAP_MS = 60_000
ZAP_GAP_MS = 30_000
BINGE_MS = 3_600_000
AWAY_MS = 12 * 3_600_000
RETURN_MS = 7 * 86_400_000
QUARTILES = (25, 50, 75, 95)
BY = {
    "content": "content", "kind": "kind", "provider": "provider", "device_type": "device_type", "country": "country",
    "hour": "hour(started_at)", "day": "strftime(started_at, '%Y-%m-%d')", "reason": "code",
}  # fmt: skip
"""Dimension → SQL. `hour` is the hour of the day, UTC."""
FILTERS = ("content", "kind", "provider", "device_type", "country", "profile")
BY_MAX = 3
STEPS = 20
"""Points of a drop-off curve."""
SPAN_MAX_MS = 90 * 86_400_000


@dataclass(frozen=True, slots=True)
class Asked:
    """`start` ≤ began < `end`, ms; `where`: dimension → value."""

    start: int
    end: int
    by: tuple[str, ...] = ()
    where: tuple[tuple[str, str], ...] = ()
    limit: int = 100

    def __post_init__(self) -> None:
        """Raises BadRequest."""
        if not self.start < self.end <= self.start + SPAN_MAX_MS:
            raise BadRequest("from must be before to, 90 days at most", field="from")
        for name in self.by:
            if name not in BY:
                raise BadRequest(f"by: no dimension {name!r}; there are {', '.join(BY)}", field="by")
        if len(self.by) > BY_MAX or len(set(self.by)) < len(self.by):
            raise BadRequest(f"by: at most {BY_MAX} dimensions, each once", field="by")

    @property
    def until(self) -> int:
        """Facts up to here are looked at: who returned is known later."""
        return self.end + RETURN_MS


def figures(asked: Asked) -> tuple[str, dict[str, Any]]:
    """SQL over the relation `facts`, and its parameters. One row a group: its dimensions in the order of `by`, then the columns that
    `rows` names."""
    groups = "".join(f"{BY[name]} AS by_{n}, " for n, name in enumerate(asked.by))
    keys = ", ".join(f"by_{n}" for n in range(len(asked.by)))
    quartiles = ", ".join(
        f"count(*) FILTER (before > 0 AND (completed OR value >= before * {share / 100})) AS q{share}"
        for share in QUARTILES
    )
    views, params = _views(asked)
    sql = f"""
{views}
SELECT {groups}count(*) AS views, count(*) FILTER (silent) AS silent, coalesce(sum(ms), 0)::BIGINT AS watched_ms,
  count(DISTINCT account) AS accounts, count(*) FILTER (before > 0) AS measured,
  count(*) FILTER (completed AND before > 0) AS completed, {quartiles}, count(*) FILTER (zap) AS zaps,
  count(*) FILTER (completed AND kind = 'vod') AS titles,
  count(*) FILTER (completed AND kind = 'vod' AND binge) AS binges, count(DISTINCT account) FILTER (back) AS returned
FROM asked {f"GROUP BY {keys}" if keys else ""}
ORDER BY views DESC{"".join(f", by_{n}" for n in range(len(asked.by)))} LIMIT {int(asked.limit)}
"""
    return sql, params


def curve(asked: Asked) -> tuple[str, dict[str, Any]]:
    """SQL of a drop-off curve, and its parameters: of the views of known length how many came to each twentieth of it."""
    views, params = _views(asked)
    points = ", ".join(
        f"count(*) FILTER (completed OR value >= before * {n / STEPS})" if n else "count(*)" for n in range(STEPS + 1)
    )
    return f"{views}\nSELECT {points} FROM asked WHERE before > 0", params


def _views(asked: Asked) -> tuple[str, dict[str, Any]]:
    """CTEs that end with `asked`: one row a view that was asked for. What came next is looked for among all views."""
    params: dict[str, Any] = {"start": asked.start, "end": asked.end}
    tests = []
    for n, (name, value) in enumerate(asked.where):
        if name not in FILTERS:
            raise BadRequest(f"no filter {name!r}; there are {', '.join(FILTERS)}", field=name)
        tests.append(f" AND {name} = $where_{n}")
        params[f"where_{n}"] = value
    return (
        f"""WITH ended AS (
  SELECT account, profile, session, device, content, kind, provider, device_type, country, code, started_at, "at", ms, value, before,
    completed, silent
  FROM facts WHERE fact = 'end' AND started_at IS NOT NULL
  QUALIFY row_number() OVER (PARTITION BY account, session, started_at ORDER BY stream_ms DESC, stream_seq DESC, part DESC) = 1
), following AS (
  SELECT *,
    lead(started_at) OVER device_order AS next_here, lead(content) OVER device_order AS next_content,
    lead(started_at) OVER profile_order AS next_start, lead(kind) OVER profile_order AS next_kind,
    lead(content) OVER profile_order AS next_title
  FROM ended
  WINDOW device_order AS (PARTITION BY account, device ORDER BY started_at, session),
    profile_order AS (PARTITION BY account, profile ORDER BY started_at, session)
), marked AS (
  SELECT *,
    coalesce(ms, 0) < {ZAP_MS} AND next_content <> content AND epoch_ms(next_here) - epoch_ms("at") <= {ZAP_GAP_MS} AS zap,
    next_kind = 'vod' AND next_title <> content AND epoch_ms(next_start) - epoch_ms("at") <= {BINGE_MS} AS binge
  FROM following
), firsts AS (
  SELECT account, min(started_at) AS first FROM marked
  WHERE epoch_ms(started_at) >= $start AND epoch_ms(started_at) < $end GROUP BY account
), loyal AS (
  SELECT DISTINCT account FROM marked JOIN firsts USING (account)
  WHERE epoch_ms(started_at) - epoch_ms(first) BETWEEN {AWAY_MS} AND {RETURN_MS}
), asked AS (
  SELECT *, account IN (SELECT account FROM loyal) AS back FROM marked
  WHERE epoch_ms(started_at) >= $start AND epoch_ms(started_at) < $end{"".join(tests)}
)""",
        params,
    )


COLUMNS = ("views", "silent", "watched_ms", "accounts", "measured", "completed", *(f"q{share}" for share in QUARTILES),
           "zaps", "titles", "binges", "returned")  # fmt: skip


def rows(asked: Asked, found: list[list[Any]]) -> list[dict[str, Any]]:
    """The answer's items. A share of nothing is null."""
    items = []
    for row in found:
        by, said = row[: len(asked.by)], dict(zip(COLUMNS, row[len(asked.by) :], strict=True))
        items.append(
            {
                "by": dict(zip(asked.by, by, strict=True)), "views": said["views"], "silent": said["silent"],
                "watched_ms": said["watched_ms"], "accounts": said["accounts"],
                "completion": _share(said["completed"], said["measured"]),
                "quartiles": {str(q): _share(said[f"q{q}"], said["measured"]) for q in QUARTILES},
                "zapping": _share(said["zaps"], said["views"]), "binge": _share(said["binges"], said["titles"]),
                "returned": _share(said["returned"], said["accounts"]),
            }
        )  # fmt: skip
    return items


def points(found: list[Any]) -> list[dict[str, float]]:
    """A drop-off curve's points: share of the length, share of the views that came so far."""
    return [{"at": n / STEPS, "share": count / found[0]} for n, count in enumerate(found)] if found and found[0] else []


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
