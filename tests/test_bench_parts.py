"""The benchmarks' parts that can be wrong without anything being slow: rows, tables, plots, and what is made of raw figures."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from xml.etree import ElementTree

import pytest

from loadtest import bench_million, bench_side, plots
from loadtest.bench import main
from loadtest.bench_million import Exit
from loadtest.bench_replay import DEVICE, SESSION
from loadtest.bench_side import API, API_2, BARE, BARE_2, EMPTY, PLAIN, WORKERS, Line
from loadtest.bench_steady import Seen, bodies
from loadtest.bench_sweep import BATCHES, Cost, sheet
from loadtest.bench_table import Row, Sheet, table

SVG = "http://www.w3.org/2000/svg"


def lines() -> dict[str, Line]:
    """Two turns of each; the second on a machine half as fast, which no ratio shows."""

    def line(per_s: float, cpu_us: float, redis_us: float | None = None) -> Line:
        made = Line([per_s, per_s / 2], [cpu_us, cpu_us * 2], [1.0, 2.0], [4.0, 8.0])
        if redis_us is not None:
            made.redis_us, made.redis_cpu_us = [redis_us, redis_us * 2], [redis_us * 2, redis_us * 4]
        return made

    found = {
        BARE: line(40_000, 25), EMPTY: line(30_000, 32, 1), PLAIN: line(6_000, 160, 12), API: line(24_000, 40, 12),
        WORKERS: line(12_000, 44, 14), BARE_2: line(60_000, 27), API_2: line(36_000, 45, 13),
    }  # fmt: skip
    found[WORKERS].workers_us = [100, 200]
    return found


class TestSide:
    def test_ratios_are_taken_within_each_turn(self) -> None:
        sheet_, *rows = bench_side.report(lines())
        assert isinstance(sheet_, Sheet)
        cells = {line[0]: dict(zip(sheet_.columns[1:], line[1:], strict=True)) for line in sheet_.lines}
        assert cells[API]["rate to bare"] == "0.60 (0.60–0.60)"
        assert cells[API]["to empty"] == "0.80 (0.80–0.80)"
        assert cells[API]["CPU to bare"] == "0.62 (0.62–0.62)"
        assert cells[API_2]["rate to bare"] == "0.60 (0.60–0.60)", "two processes stand beside bare ASGI with two"
        assert (cells[BARE]["to empty"], cells[BARE]["Redis µs"]) == ("", "")
        by_cpu = next(row for row in rows if isinstance(row, Row) and row.what.startswith("CPU a request"))
        assert (by_cpu.figure, by_cpu.met) == ("0.62 (0.62–0.62)", True)

    def test_a_goal_that_is_missed_is_said(self) -> None:
        found = lines()
        found[API].redis_us = [12.1, 12.1]
        found[API].half_p99_ms, found[BARE].half_p99_ms = [9.1, 9.1], [3.0, 3.0]
        met = {row.what: row.met for row in bench_side.report(found) if isinstance(row, Row)}
        assert met["Redis per heartbeat, by commandstats"] is False
        assert met["  the API, one node"] is False

    def test_the_table_has_sheets_first_and_even_columns(self) -> None:
        text = table(
            "Title", [Row("a row", "1", "ms", goal="≤ 2", met=True), Sheet(("", "x"), (("a", "1"), ("bbb", "22")))]
        )
        assert text.splitlines()[:4] == ["Title", "     x", "a    1", "bbb  22"]
        assert "a row" in text.splitlines()[-1]
        assert text.rstrip().endswith("yes")


class TestPlots:
    def test_they_stand_alone(self, tmp_path: Path) -> None:
        files = plots.side(bench_side.figures(lines()), tmp_path / "plots")
        assert [path.name for path in files] == ["side-share.svg", "side-cpu-us.svg", "side-redis-us.svg"]
        for path in files:
            text = path.read_text(encoding="utf-8")
            root = ElementTree.fromstring(text)
            assert root.tag == f"{{{SVG}}}svg"
            assert not {each.tag for each in root.iter()} & {f"{{{SVG}}}script", f"{{{SVG}}}image", f"{{{SVG}}}a"}
            assert "http" not in text.replace(f'xmlns="{SVG}"', "")
            assert "@import" not in text
            assert "url(" not in text
            assert len(text.encode()) < plots.MOST_BYTES
        assert ">0.60</text>" in files[0].read_text(encoding="utf-8")
        assert API_2 in files[2].read_text(encoding="utf-8")
        assert BARE not in "".join(ElementTree.fromstring(files[2].read_text(encoding="utf-8")).itertext()).replace(
            EMPTY, ""
        )

    def test_the_same_figures_give_the_same_bytes(self) -> None:
        first, second = (plots.bars("A title", {"one": 1.0, "two <&>": 2.5}, "µs", loud=["one"]) for _ in range(2))
        assert first == second
        assert "two &lt;&amp;&gt;" in first

    def test_nothing_is_not_drawn(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="values"):
            plots.bars("A title", {}, "µs")
        assert plots.side({}, tmp_path) == []


class TestSeen:
    def seen(self, tmp_path: Path) -> Seen:
        """A heartbeat due each 10 ms, answered after 1 ms; those due from 1 to 1.1 s all at 1.2 s. Written out of order."""
        kept = array("d")
        for n in reversed(range(200)):
            due = n / 100
            kept.extend((due, 0.5, 1.0 if not 100 <= n < 110 else (1.2 - due) * 1000))
        (tmp_path / "seen").write_bytes(kept.tobytes())
        return Seen.read(tmp_path / "seen")

    def test_latencies_count_from_when_they_were_due(self, tmp_path: Path) -> None:
        seen = self.seen(tmp_path)
        assert list(seen.due) == sorted(seen.due)
        assert seen.quantile(0.5) == 1.0
        assert seen.quantile(1.0) == pytest.approx(200)
        assert seen.gap_ms() == pytest.approx(110), "between the answers at 0.991 and 1.101 s"
        assert len(seen.between(1.0, 1.1).due) == 10
        assert Seen(array("d"), array("d"), array("d")).quantile(0.99) == 0.0

    def test_a_stall_is_seen_in_its_window_only(self, tmp_path: Path) -> None:
        seen = self.seen(tmp_path)
        found = bench_million._beats(seen, Exit(from_=0.95, until=1.5))
        late = {line[0]: line[found.columns.index("> 100 ms")] for line in found.lines}
        assert late == {"before": "0", "while the sweep works": "10", "after": "0"}


class TestMillion:
    def test_how_fast_and_how_far_behind(self) -> None:
        """1,000 views due evenly over 10 s; a sweep that ends 50 a second, and so is done after 20."""
        after = array("d", (n / 100 for n in range(1_000)))
        polled = [(100 + t / 5, 3_000 + 1_000 - 10 * t) for t in range(101)]
        left = Exit(100.0, 120.0, polled)
        rows = {row.what: row.figure for row in bench_million._exit_rows(left, (100.0, after), 1_000)}
        assert rows["1,000 vanish: all their views have ended after"] == "20.0"
        assert rows["  after the last deadline"] == "10.0"
        assert rows["  views ended"] == "50"
        assert int(rows["  most of them overdue at once"]) == pytest.approx(500, abs=5)

    def test_memory_is_judged_at_full_size_only(self) -> None:
        memory = {"base": 0, "base_rss": 0, "all": 401_000_000, "rss": 500_000_000, "counts": 108_000_000}
        assert bench_million._memory_rows(memory, 1_000_000)[0].met is False
        assert bench_million._memory_rows(memory | {"all": 400_000_000}, 1_000_000)[0].met is True
        assert bench_million._memory_rows(memory, 100_000)[0].met is None

    def test_the_sweeps_batches(self) -> None:
        costs = {kind: {batch: Cost([batch * 50.0], [50.0]) for batch in BATCHES} for kind in ("ended", "alive")}
        found = sheet(costs)
        assert found.lines[-1][:3] == ("500", "25.00 (25.00–25.00)", "50.0 (50.0–50.0)")


def test_heartbeats_are_of_the_sessions_they_go_on_with() -> None:
    first, second = (json.loads(body % (1_400.5, 100_001)) for body in bodies(5, 7, [3, 7]))
    assert (first["content"], second["content"]) == ("title-00003", "title-00007")
    assert (first["seq"], first["position"], first["state"]) == (100_001, 1400.5, "playing")
    assert (first["session"], second["device"]) == (SESSION % 5, DEVICE % 6)


class TestCommandLine:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["sideways"], "no such part: sideways"),
            (["million", "--scale", "3"], "argument --scale: at least"),
            (["million", "--scale", "many"], "argument --scale: invalid int value"),
        ],
    )
    def test_bad_words_are_named(self, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as raised:
            main(words)
        assert raised.value.code == 2
        assert said in capsys.readouterr().err
