"""Every figure of stream quality equals a computation in plain Python, and nothing that is asked gets out of its parameters."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest

from engine.errors import BadRequest
from engine.quality import ask_hours
from engine.quality.ask_jobs import JOBS
from engine.quality.facts import Fact
from engine.quality.fold import Playback, fold
from engine.quality.metrics import METRICS
from engine.quality.query import Asked, Condition, by_of, check_range, interval_of, metrics_of, where_of
from engine.quality.server import Database
from tests.harness import START
from tests.quality_plain import HOUR, NONE, figures, last_ends, percentile, seeded, write
from tests.quality_truth import STYLES, Session

SPAN = (START - 2 * HOUR, START + 2 * HOUR)
ALL = tuple(METRICS)


class Asking:
    """A database over some facts."""

    def __init__(self, root: Path, facts: Sequence[Fact]) -> None:
        self.facts = facts
        self.paths = [str(path) for path in write(root, facts)]
        self.database = Database(2, 2**29, str(root))
        self.begin()

    def begin(self) -> None:
        self.database.begin(1, {"facts": self.paths})

    def ask(self, do: str = "metrics", **args: Any) -> dict[str, Any]:
        said = {"start": SPAN[0], "end": SPAN[1]} | args
        return dict(orjson.loads(orjson.dumps(JOBS[do](self.database, msgspec.to_builtins(said)))))

    def items(self, metrics: tuple[str, ...] = ALL, **args: Any) -> list[dict[str, Any]]:
        return list(self.ask(metrics=metrics, **args)["items"])


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Asking:
    return Asking(tmp_path_factory.mktemp("lake"), seeded(1))


def same(said: dict[str, Any], facts: Sequence[Fact], names: Sequence[str] = ALL) -> None:
    expected = figures(facts)
    assert set(said) == set(names)
    for name in names:
        assert set(said[name]) == set(expected[name])
        for part, value in expected[name].items():
            assert said[name][part] == (value if value == NONE else pytest.approx(value, rel=1e-9)), (name, part)


@pytest.mark.parametrize("seed", [2, 3, 4, 5])
def test_every_metric_over_everything(tmp_path: Path, seed: int) -> None:
    facts = seeded(seed, 200 * seed)
    (item,) = Asking(tmp_path, facts).items()
    assert item["by"] == {}
    assert "at" not in item
    same(item["metrics"], facts)
    assert set(figures(facts)) == set(METRICS)


def test_by_dimensions_and_labels(asking: Asking) -> None:
    by = ("player", "country", "label.plan", "label.o'k\"")
    groups: dict[tuple[str, ...], list[Fact]] = {}
    for fact in last_ends(asking.facts):
        key = (fact.player, fact.country, fact.labels.get("plan", ""), fact.labels.get("o'k\"", ""))
        groups.setdefault(key, []).append(fact)
    items = asking.items(by=by)
    assert [tuple(item["by"]) for item in items] == [by] * len(groups)
    assert {tuple(item["by"].values()) for item in items} == set(groups)
    for item in items:
        facts = groups[tuple(item["by"].values())]
        same(item["metrics"], facts)
    behind = [item["sessions"] for item in items]
    assert behind == sorted(behind, reverse=True)


@pytest.mark.parametrize("interval", [10_000, 60_000, 300_000, 900_000, HOUR, 24 * HOUR])
@pytest.mark.parametrize("by", [(), ("player",)])
def test_by_interval(asking: Asking, interval: int, by: tuple[str, ...]) -> None:
    # The ends of the time asked for are in the middle of an hour, and of an interval.
    start, end = START - 70 * 60_000 + 1, START + 41 * 60_000 + 7
    groups: dict[tuple[Any, ...], list[Fact]] = {}
    for fact in last_ends([fact for fact in asking.facts if start <= fact.at < end]):
        groups.setdefault((fact.at // interval * interval, *([fact.player] if by else [])), []).append(fact)
    # Without figures of views a series is made hour by hour; with them, all at once.
    for names in (ALL, tuple(name for name in ALL if not METRICS[name].ends)):
        asking.begin()
        items = asking.items(names, by=by, interval=interval, start=start, end=end)
        assert [item["at"] for item in items] == sorted(item["at"] for item in items)
        assert {(item["at"], *item["by"].values()) for item in items} == set(groups)
        chosen = items if interval > 60_000 else random.Random(1).sample(items, 60)
        for item in chosen:
            same(item["metrics"], groups[item["at"], *item["by"].values()], names)


def test_a_remembered_hour_is_as_good_as_a_new_one(tmp_path: Path) -> None:
    facts = seeded(6, 2_000)
    asking = Asking(tmp_path, facts)
    args: dict[str, Any] = {"metrics": ("plays", "rebuffer_ratio", "startup_time"), "by": ("cdn",), "interval": 60_000}
    first = asking.ask(**args)
    assert len(asking.database.hours._kept) >= 2
    # What is remembered is what is answered: without the files, too.
    made: list[Any] = []
    asking.database.rows = lambda *a: made.append(a) or []  # type: ignore[method-assign, func-returns-value]
    assert asking.ask(**args) == first
    assert made == []
    assert asking.ask(**args | {"by": ("country",)})["items"] == []
    assert made
    del asking.database.rows  # type: ignore[method-assign]
    # Another file in an hour: that hour is made anew.
    late = msgspec.structs.replace(facts[0], fact="start", ms=5, cdn="a", stream_ms=1)
    asking.paths += [str(path) for path in write(tmp_path / "more", [late], 1)]
    asking.begin()
    assert asking.ask(**args) == Asking(tmp_path / "again", [*facts, late]).ask(**args) != first


def test_part_of_an_hour_is_not_remembered_for_all_of_it(tmp_path: Path) -> None:
    """The first moment asked for is in, the last is not."""
    facts = [
        Fact(fact="start", at=START + at, account="a", session="s") for at in (0, 1_000, 1_800_000, HOUR - 1, HOUR)
    ]
    asking = Asking(tmp_path, facts)
    for start, end, plays in [
        (START + 1_000, START + 1_800_000, 1), (START, START + HOUR, 4), (START + 1, START + HOUR, 3), (START, START + HOUR + 1, 5),
        (START, START + HOUR, 4), (START + 1_000, START + 1_800_001, 2),
    ]:  # fmt: skip
        for interval in (60_000, 0):
            items = asking.items(("plays",), start=start, end=end, interval=interval)
            assert sum(item["metrics"]["plays"]["value"] for item in items) == plays


def test_a_change_to_the_same_bitrate_is_no_degradation(tmp_path: Path) -> None:
    facts = [
        Fact(fact="play", at=START, account="a", session="s", ms=60_000, bits=1e6, bits_ms=60_000),
        *(Fact(fact="switch", at=START, account="a", session="s", value=v, before=2e6) for v in (1e6, 2e6, 3e6)),
    ]
    (item,) = Asking(tmp_path, facts).items(("switches", "degradations"))
    assert [item["metrics"][name]["value"] for name in ("switches", "degradations")] == [3, 1]


def test_a_series_is_cut_at_its_limit(asking: Asking) -> None:
    args: dict[str, Any] = {"metrics": ("plays",), "interval": 60_000}
    asking.begin()
    every = asking.ask(**args)
    assert every["truncated"] is False
    for limit in (1, 59, 61, len(every["items"]) - 1):
        asking.begin()
        cut = asking.ask(**args, limit=limit)
        assert cut["items"] == every["items"][:limit]
        assert cut["truncated"] is True
    assert asking.ask(**args, limit=len(every["items"]))["truncated"] is False


def test_memory_of_hours_is_bounded(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask_hours, "KEPT_BYTES", 20_000)
    hours = asking.database.hours
    for n in range(1, 30):
        asking.begin()
        asking.ask(metrics=("plays",), interval=300_000, where=(Condition("cdn", (str(n), "a")),))
    assert hours._bytes <= 20_000
    assert hours._bytes == sum(len(text) + 500 for _, text in hours._kept.values())


@pytest.mark.parametrize(
    ("where", "test"),
    [
        ("country=PT,ES", lambda f: f.country in ("PT", "ES")),
        ("country!=PT,ES", lambda f: f.country not in ("PT", "ES")),
        ("country=", lambda f: f.country == ""),
        ("country=PT;cdn!=a", lambda f: f.country == "PT" and f.cdn != "a"),
        ("label.plan=gold", lambda f: f.labels.get("plan") == "gold"),
        ("label.plan!=gold", lambda f: f.labels.get("plan") != "gold"),
        ("label.o'k\"=x", lambda f: f.labels.get("o'k\"") == "x"),
        ('player=it\'s "odd"\\; --', lambda f: f.player == 'it\'s "odd"; --'),
        ("source=cmcd", lambda f: f.source == "cmcd"),
    ],
)
def test_where(asking: Asking, where: str, test: Any) -> None:
    chosen = [fact for fact in asking.facts if test(fact)]
    assert 0 < len(chosen) < len(asking.facts)
    asking.begin()
    (item,) = asking.items(where=where_of(where))
    same(item["metrics"], chosen)


HOSTILE = [
    "'", '"', ";", "' OR 1=1 --", "'; DROP VIEW facts; --", "$p0", "{}", "%s", "\\", "\x00", "a\nb", "é" * 300, "x" * 1_024,
    "') UNION SELECT * FROM read_text('/etc/passwd') --", "${facts}", "NULL", "p0",
]  # fmt: skip


@pytest.mark.parametrize("value", HOSTILE)
def test_values_and_label_names_are_never_sql(asking: Asking, value: str) -> None:
    escaped = value.replace("\\", "\\\\").replace(",", "\\,").replace(";", "\\;")
    (test,) = where_of(f"country={escaped}")
    assert test == Condition("country", (value,))
    asking.begin()
    assert asking.items(("plays",), where=(test,)) == []
    (item,) = asking.items(where=(Condition("country", (value,), True),))
    same(item["metrics"], asking.facts)
    name = f"label.{value}"
    if value.isprintable() and len(value) <= 64:
        assert by_of(name) == ((name,) if "," not in value else by_of(name))
        asking.begin()
        (item,) = asking.items(("plays",), by=(name,))
        assert item["by"] == {name: ""}
    else:
        with pytest.raises(BadRequest):
            by_of(name)


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("metrics", lambda: metrics_of("")),
        ("metrics", lambda: metrics_of("plays,nonsense")),
        ("metrics", lambda: metrics_of("plays,plays")),
        ("metrics", lambda: metrics_of(",".join(ALL[:11]))),
        ("metrics", lambda: metrics_of('plays"; DROP')),
        ("by", lambda: by_of("session")),
        ("by", lambda: by_of("content,kind,cdn,edge,asn,os")),
        ("by", lambda: by_of("label.")),
        ("by", lambda: by_of("label." + "x" * 65)),
        ("by", lambda: by_of("x" * 10_000)),
        ("by", lambda: by_of("label.a\x00b")),
        ("where", lambda: where_of("country")),
        ("where", lambda: where_of("account=ann")),
        ("where", lambda: where_of("1=1")),
        ("where", lambda: where_of("country=" + "x" * 10_000)),
        ("where", lambda: where_of("country=" + ",".join("x" * 101))),
        ("where", lambda: where_of(";".join(["country=PT"] * 21))),
        ("where", lambda: where_of("country=PT;")),
        ("interval", lambda: interval_of("7m", 0, HOUR)),
        ("interval", lambda: interval_of("10s", 0, 24 * HOUR)),
        ("from", lambda: check_range(5, 5)),
        ("from", lambda: check_range(0, 91 * 24 * HOUR)),
    ],
)
def test_bad_questions_name_the_field(field: str, call: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        call()
    assert caught.value.field == field
    assert len(caught.value.message) < 1_000


def test_nothing_there(tmp_path: Path) -> None:
    asking = Asking(tmp_path, [])
    assert asking.items() == []
    assert asking.items(by=("cdn",), interval=60_000) == []
    assert asking.ask("worst", metrics=("rebuffer_ratio",), by=("cdn",))["items"] == []
    assert asking.ask("players", limit=10)["items"] == []


def test_what_no_player_told_is_not_measurable(tmp_path: Path) -> None:
    silent = [
        Fact(fact="attempt", at=START, account="a", session="s"),
        Fact(fact="start", at=START + 1, account="a", session="s"),
        Fact(fact="play", at=START + 2, account="a", session="s", ms=60_000),
    ]
    (item,) = Asking(tmp_path, silent).items()
    zero = {"start_failure_rate", "exit_before_start_rate", "playback_failure_rate", "business_refusal_rate"}
    told = {name for name, said in item["metrics"].items() if said["value"] != NONE}
    assert told == zero | {"sessions", "attempts", "plays"}
    assert all(item["metrics"][name]["value"] == 0 for name in zero)
    assert item["metrics"]["startup_time"]["p95"] == NONE


def test_worst(asking: Asking) -> None:
    """Excess over the rest × sessions, from each group's own sums."""
    asking.begin()
    said = asking.ask("worst", metrics=("rebuffer_ratio",), by=("player", "country"), limit=100)
    expected = []
    for name in ("player", "country"):
        sums = {}
        for value in {getattr(f, name) for f in asking.facts}:
            group = [f for f in asking.facts if getattr(f, name) == value]
            stood = sum(f.ms or 0 for f in group if f.fact == "stall")
            played = sum(f.ms or 0 for f in group if f.fact == "play" and f.stalls_known)
            sums[value] = (stood, stood + played, figures(group)["rebuffer_ratio"]["sessions"])
        for value, (top, under, behind) in sums.items():
            rest_top = sum(t for v, (t, _, _) in sums.items() if v != value)
            rest_under = sum(u for v, (_, u, _) in sums.items() if v != value)
            excess = top / under - rest_top / rest_under
            if excess > 0:
                expected.append(({name: value}, top, under, rest_top, rest_under, behind, excess * behind))
    expected.sort(key=lambda each: -each[-1])
    assert len(expected) >= 2
    assert [item["by"] for item in said["items"]] == [each[0] for each in expected]
    for item, (_, top, under, rest_top, rest_under, behind, hurt) in zip(said["items"], expected, strict=True):
        assert (item["sum"], item["over"], item["rest_sum"], item["rest_over"]) == (top, under, rest_top, rest_under)
        assert item["sessions"] == behind
        assert item["hurt"] == pytest.approx(hurt)
        assert item["value"] - item["rest"] == pytest.approx(item["excess"])
    assert asking.ask("worst", metrics=("rebuffer_ratio",), by=("player", "country"), limit=1)["truncated"] is True


def test_worst_where_less_is_bad(tmp_path: Path) -> None:
    """The low bitrate hurts, not the high one."""
    rates = {"a": 1_000_000, "b": 5_000_000}
    facts = [
        Fact(fact="play", at=START + n, account="a", session=f"{cdn}{n}", ms=1000, bits=float(rate), bits_ms=1000, cdn=cdn)
        for cdn, rate in rates.items() for n in range(3)
    ]  # fmt: skip
    (item,) = Asking(tmp_path, facts).ask("worst", metrics=("bitrate",), by=("cdn",), limit=9)["items"]
    assert item["by"] == {"cdn": "a"}
    assert (item["value"], item["rest"], item["excess"], item["hurt"]) == (1e6, 5e6, 4e6, 12e6)


def test_players(tmp_path: Path) -> None:
    def fact(kind: str, session: str, **more: Any) -> Fact:
        return Fact(
            fact=kind, at=START, account="a", session=session, player="p", player_version="1", source="cmcd", **more
        )

    facts = [
        fact("attempt", "s1"), fact("start", "s1", ms=900, value=1.0), fact("play", "s1", ms=60_000, stalls_known=True),
        fact("start", "s2", ms=900, value=1_100.0), fact("error", "s2", fatal=True),
        fact("beacon", "s3", count=8, value=2.0), fact("beacon", "s1", count=10, value=0.0),
        Fact(fact="start", at=START, account="a", session="s4", player="q", ms=10, value=11.0),
    ]  # fmt: skip
    first, second = Asking(tmp_path, facts).ask("players", limit=10)["items"]
    assert (first["player"], first["player_version"], first["sessions"], first["cmcd_sessions"]) == ("p", "1", 3, 3)
    reports = {name: said["sessions"] for name, said in first["reports"].items()}
    assert reports["startup_time"] == 2
    assert reports["stalls"] == 1
    assert reports["bitrate"] == reports["ads"] == 0
    assert reports["sequence"] == 2
    assert first["reports"]["startup_time"]["share"] == pytest.approx(2 / 3)
    breaks = {each["rule"]: (each["sessions"], each["share"]) for each in first["breaks"]}
    assert breaks == {
        "beacon_loss": (1, 0.1), "startup_claim": (1, 0.5), "no_states": (1, pytest.approx(1 / 3)),
        "error_without_code": (1, pytest.approx(1 / 3)),
    }  # fmt: skip
    assert (second["player"], second["cmcd_sessions"], second["breaks"]) == ("q", 0, [])


def test_nothing_but_the_lake_can_be_read(tmp_path: Path, asking: Asking) -> None:
    other = write(tmp_path / "other", seeded(7, 10), 1)[0]
    for sql in (
        f"SELECT * FROM read_parquet('{other}')", "SELECT * FROM read_text('/etc/passwd')", "SET threads = 8",
        "SET enable_external_access = true", "INSTALL httpfs", "LOAD httpfs", f"COPY (SELECT 1) TO '{tmp_path}/x.csv'",
        f"ATTACH '{tmp_path}/x.db'", "SELECT * FROM read_csv('http://127.0.0.1:1/x')",
    ):  # fmt: skip
        with pytest.raises(Exception, match=r"disabled|locked|[Pp]ermission|not exist|could not be"):
            asking.database.rows(sql)


def test_asked_travels_as_json() -> None:
    asked = Asked(("plays",), 1, 2, ("cdn",), where_of("country!=PT"), 60_000, 5)
    assert msgspec.convert(orjson.loads(orjson.dumps(msgspec.to_builtins(asked))), Asked) == asked


@pytest.mark.parametrize("style", STYLES)
def test_planted_truth(tmp_path: Path, style: str) -> None:
    """Sessions of which it is known what they did, told by reports, folded to facts, asked in SQL."""
    facts, truths = list[Fact](), []
    for seed in range(60):
        told = Session(seed, "cmcd").cmcd(style)
        state: Playback | None = None
        for event in told.events:
            state, made = fold(state, event)
            facts += made
        truths.append(told.truth)

    def of(name: str) -> Any:
        return sum(getattr(truth, name) for truth in truths)

    start = min(fact.at for fact in facts)
    (item,) = Asking(tmp_path, facts).items(start=start, end=max(fact.at for fact in facts) + 1)
    said = {name: figure["value"] for name, figure in item["metrics"].items()}
    known = {name: value for name, value in said.items() if value != NONE}
    stood, played, starts = of("stall_ms"), of("play_ms"), [ms for truth in truths for ms in truth.start_ms]
    expected = {
        "sessions": 60, "attempts": of("attempts"), "plays": of("starts"), "startup_time": sum(starts) / len(starts),
        "start_failure_rate": of("start_failures") / of("attempts"), "exit_before_start_rate": of("exits") / of("attempts"),
        "rebuffer_ratio": stood / (stood + played), "rebuffer_frequency": of("stalls") / (played / 60_000),
        "rebuffer_duration": stood / of("stalls"), "bitrate": of("bits") * 1000 / played,
        "switches": of("switches") / (played / 60_000), "degradations": of("down") / (played / 60_000), "beacon_loss": 0,
        "ad_breaks": of("ad_breaks"), "ad_impressions": of("ad_starts"), "ad_completion": (of("ad_ends") - of("skipped")) / of("ad_starts"),
    }  # fmt: skip
    for name, value in expected.items():
        assert known.get(name) == pytest.approx(value, rel=1e-6), name
    p95 = item["metrics"]["startup_time"]["p95"]
    assert p95 == pytest.approx(percentile(starts, 0.95))
