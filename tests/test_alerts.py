"""Alerts: rules in a file, and when one fires, is over, or stays quiet."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.alerts import Rule, RuleFile, State, Told, judge, parse
from engine.errors import ConfigError

STALLS = Rule("stalls", "rebuffer_ratio", above=0.02, sessions=100, for_s=120, clear_s=300)
STEP_MS = 15_000


def told(rule: Rule, figures: list[tuple[float | None, int]], state: State | None = None) -> list[tuple[int, Told]]:
    """What is told of figures that come every 15 s: (which figure, what)."""
    state, found = state or State(), []
    for n, (value, sessions) in enumerate(figures):
        state, said = judge(rule, state, 1_800_000_000_000 + n * STEP_MS, value, sessions)
        state = msgspec.json.decode(msgspec.json.encode(state), type=State)
        if said is not None:
            found.append((n, said))
    return found


def many(value: float | None, count: int, sessions: int = 500) -> list[tuple[float | None, int]]:
    return [(value, sessions)] * count


class TestJudge:
    def test_it_fires_once_it_has_held_and_is_over_once_it_has_been_back(self) -> None:
        ((fired, first), (over, last)) = told(STALLS, many(0.01, 10) + many(0.05, 40) + many(0.01, 40))
        assert (first.status, fired) == ("firing", 10 + 8)
        assert (first.value, first.sessions, first.bound) == (0.05, 500, 0.02)
        assert first.at - first.since == 120_000
        assert (last.status, over) == ("resolved", 50 + 20)
        assert last.since == first.since

    def test_what_does_not_last_is_not_told(self) -> None:
        assert told(STALLS, (many(0.05, 7) + many(0.01, 1)) * 10) == []

    def test_too_few_sessions_say_nothing(self) -> None:
        assert told(STALLS, many(0.5, 100, sessions=99)) == []
        assert told(STALLS, many(None, 100)) == []
        assert told(STALLS, many(float("nan"), 100)) == []

    def test_it_is_over_when_nobody_watches_any_more(self) -> None:
        assert [said.status for _, said in told(STALLS, many(0.05, 20) + many(None, 30, 0))] == ["firing", "resolved"]

    def test_a_figure_at_its_bound_is_told_once(self) -> None:
        random_ = random.Random(3)
        noisy: list[tuple[float | None, int]] = [(0.02 * random_.uniform(0.97, 1.5), 500) for _ in range(2_000)]
        assert [said.status for _, said in told(STALLS, noisy)] == ["firing"]

    def test_below(self) -> None:
        rule = Rule("bitrate", "bitrate", below=2e6, for_s=0, clear_s=0)
        assert [(n, said.status) for n, said in told(rule, many(3e6, 2) + many(1e6, 2) + many(2.1e6, 2) + many(2.3e6, 2))] == [
            (2, "firing"), (6, "resolved"),
        ]  # fmt: skip

    def test_a_deviation_needs_to_know_what_is_usual(self) -> None:
        rule = Rule("startup", "startup_time.p95", deviates=4, for_s=60, clear_s=60)
        random_ = random.Random(5)
        usual: list[tuple[float | None, int]] = [(random_.gauss(900, 30), 500) for _ in range(400)]
        assert told(rule, usual[:20] + many(5000.0, 9)) == [], "it has not learned yet"
        assert told(rule, usual) == []
        found = told(rule, usual + many(1500.0, 300) + usual)
        assert [(said.status, n) for n, said in found] == [("firing", 404), ("resolved", 704)], (
            "while it fires it learns nothing"
        )

    def test_a_deviation_downwards_counts_too(self) -> None:
        rule = Rule("plays", "plays", deviates=5, for_s=0)
        assert [said.status for _, said in told(rule, many(1000.0, 60) + many(500.0, 3))] == ["firing"]

    @given(
        st.lists(
            st.tuples(st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True)), st.integers(0, 1000)),
            max_size=60,
        )
    )
    def test_firing_and_over_take_turns(self, figures: list[tuple[float | None, int]]) -> None:
        for rule in (
            STALLS,
            Rule("d", "m", deviates=2, sessions=1, for_s=0, clear_s=0),
            Rule("b", "m", below=0.0, for_s=15, clear_s=30),
        ):
            statuses = [said.status for _, said in told(rule, figures)]
            assert statuses == ["firing", "resolved"] * (len(statuses) // 2) + ["firing"] * (len(statuses) % 2)


RULES = """
[[alert]]
name = "stalls"
metric = "rebuffer_ratio"
by = ["cdn"]
above = 0.02

[[alert]]
name = "startup"
metric = "startup_time.p95"
deviates = 4.0
"""


class TestRules:
    def test_read(self) -> None:
        first, second = parse(RULES)
        assert (first.name, first.by, first.above, first.sessions) == ("stalls", ("cdn",), 0.02, 50)
        assert (second.deviates, second.above) == (4.0, None)
        assert parse("") == ()

    @pytest.mark.parametrize(
        ("text", "field"),
        [
            ("[[alert]]\nname='a'\nmetric='m'", "alert[0].above"),
            ("[[alert]]\nname='a'\nmetric='m'\nabove=1\nbelow=2", "alert[0].above"),
            ("[[alert]]\nname='A b'\nmetric='m'\nabove=1", "alert[0].name"),
            ("[[alert]]\nname='a'\nmetric='m'\nabove='x'", "alert[0]"),
            ("[[alert]]\nname='a'\nmetric='m'\nabove=1\ncolour='red'", "alert[0]"),
            ("[[alert]]\nname='a'\nmetric='m'\nabove=1\nwindow_s=5", "alert[0].window_s"),
            ("[[alert]]\nname='a'\nmetric='m'\nabove=1\nby=['a','b','c']", "alert[0].by"),
            ("[[alert]]\nname='a'\nmetric='m'\nabove=1\n[[alert]]\nname='a'\nmetric='m'\nabove=1", "alert.name"),
            ("[alert]\nname='a'", "alert"), ("[[alert]", "alert"), ("rules = 1", "rules"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_named(self, text: str, field: str) -> None:
        with pytest.raises(ConfigError) as refused:
            parse(text)
        assert refused.value.field == field

    def test_a_broken_file_keeps_the_rules(self, tmp_path: Path) -> None:
        path, said = tmp_path / "alerts.toml", list[str]()
        rules = RuleFile(path, on_error=said.append)
        assert rules.current == ()
        path.write_text(RULES)
        rules.refresh()
        before = rules.current
        assert len(before) == 2
        path.write_text("[[alert]")
        rules.refresh()
        assert rules.current == before
        assert said == [rules.error] != [""]
        path.unlink()
        rules.refresh()
        assert (rules.current, rules.error) == ((), "")

    def test_a_rule_that_cannot_be_asked_is_refused(self) -> None:
        def check(rule: Rule) -> None:
            if rule.metric != "rebuffer_ratio":
                raise ConfigError(f"{rule.name}: no metric {rule.metric}", field="metric")

        with pytest.raises(ConfigError, match="startup"):
            parse(RULES, check)


def test_states_stay_small() -> None:
    state: Any = State()
    for n in range(100):
        state, _ = judge(STALLS, state, n * STEP_MS, 0.01 + n / 1e4, 500)
    assert len(msgspec.json.encode(state)) < 300
