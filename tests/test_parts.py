"""The parts on their own: scripts' headers, settings, plans, partitions, spool, outbox back-pressure."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from redis.crc import key_slot

from engine import layout, plans, scripts
from engine.deployment import Part
from engine.errors import ConfigError, LayoutMismatch, Unavailable
from engine.keys import Keys
from engine.metrics import Metrics
from engine.partitions import SLOTS, partition_of, tags
from engine.settings import Settings
from engine.spool import Entry, Spool
from engine.watch import Backlog
from tests.harness import PARTITIONS, World

NAMES = sorted(path.stem for path in Path(scripts.__file__).parent.parent.joinpath("lua").glob("*.lua"))


class TestScripts:
    @pytest.mark.parametrize("name", NAMES)
    def test_every_header_is_a_contract(self, name: str) -> None:
        script = scripts.load(name)
        assert script.text.startswith(f"-- {name}: ")
        assert script.source == (f"#!lua flags={script.flags}\n{script.text}" if script.flags else script.text)
        assert "-- RETURNS" in script.source
        assert "@include" not in script.source
        with pytest.raises(TypeError, match=f"{name}.lua takes"):
            script.check(0, 0)

    def test_a_call_that_does_not_fit_is_refused(self) -> None:
        script = scripts.load("stop")
        script.check(4, 8)
        with pytest.raises(TypeError):
            script.check(5, 8)
        with pytest.raises(TypeError):
            script.check(4, 7)
        scripts.load("heartbeat").check(3, 22)

    def test_a_gap_in_the_header_is_refused(self) -> None:
        with pytest.raises(ValueError, match="out of order"):
            scripts.parse("x", "-- KEYS[1] a\n-- KEYS[3] c\n", {})


class TestPartitions:
    @pytest.mark.parametrize("count", [1, 3, 16, 256, 1024])
    def test_tags_lie_evenly(self, count: int) -> None:
        slots = [key_slot(tag.encode()) for tag in tags(count)]
        assert [slot * count // SLOTS for slot in slots] == list(range(count))
        on_three_nodes = Counter(slot * 3 // SLOTS for slot in slots)
        assert max(on_three_nodes.values()) - min(on_three_nodes.values() if count >= 3 else [0]) <= 1

    def test_accounts_spread(self) -> None:
        spread = Counter(partition_of(f"account-{n}", 16) for n in range(16_000))
        assert min(spread.values()) > 800

    def test_every_key_of_an_account_shares_a_slot(self) -> None:
        keys = Keys("pg", 256).account("with{braces}:and:colons")
        every = [keys.leases, keys.deadlines, keys.outbox, keys.takeovers, keys.request("stop", "r")]
        assert len({key_slot(key.encode()) for key in every}) == 1

    def test_another_layout_is_refused(self, world: World) -> None:
        world.run(layout.ensure(world.client, world.keys))
        world.run(layout.ensure(world.client, world.keys))
        other = Keys(world.keys.prefix, PARTITIONS * 2)
        with pytest.raises(LayoutMismatch, match="partitions 16"):
            world.run(layout.ensure(world.client, other))


class TestSettings:
    def test_defaults_are_valid_and_listed(self) -> None:
        settings = Settings.from_env({})
        assert len(settings.describe()) == len(settings.to_env())
        assert Settings.from_env(settings.to_env()) == settings

    @pytest.mark.parametrize(
        ("env", "named"),
        [
            ({"PULSEGATE_PORT": "x"}, "PULSEGATE_PORT"),
            ({"PULSEGATE_PORT": "-1"}, "PULSEGATE_PORT"),
            ({"PULSEGATE_STALE_INTERVALS": "nan"}, "PULSEGATE_STALE_INTERVALS"),
            ({"PULSEGATE_METRICS_PUBLIC": "maybe"}, "PULSEGATE_METRICS_PUBLIC"),
            ({"PULSEGATE_UNMATCHED": "perhaps"}, "PULSEGATE_UNMATCHED"),
            ({"PULSEGATE_JWT_SECRET": "short"}, "PULSEGATE_JWT_SECRET"),
            ({"PULSEGATE_JWT_SECRET_FILE": "/nowhere"}, "PULSEGATE_JWT_SECRET_FILE"),
            ({"PULSEGATE_LIFETIME_MS": "5000"}, "PULSEGATE_LIFETIME_MS"),
            ({"PULSEGATE_OUTBOX_HIGH": "500000"}, "PULSEGATE_OUTBOX_HIGH"),
            ({"PULSEGATE_TYPO": "1"}, "PULSEGATE_TYPO"),
        ],
    )
    def test_a_bad_value_names_its_variable(self, env: dict[str, str], named: str) -> None:
        with pytest.raises(ConfigError) as caught:
            Settings.from_env(env)
        assert caught.value.field == named
        assert named in caught.value.message

    def test_secrets_come_from_files_and_are_masked(self, tmp_path: Path) -> None:
        (tmp_path / "jwt").write_text("s" * 40 + "\n")
        settings = Settings.from_env({"PULSEGATE_JWT_SECRET_FILE": str(tmp_path / "jwt")})
        assert settings.jwt_secret == "s" * 40
        assert ("PULSEGATE_JWT_SECRET", "***") in [(name, value) for name, value, _ in settings.describe()]
        with pytest.raises(ConfigError, match="keep one"):
            Settings.from_env({"PULSEGATE_JWT_SECRET_FILE": "x", "PULSEGATE_JWT_SECRET": "y" * 40})

    def test_tuning_matches_the_scripts_list(self) -> None:
        text = Path(scripts.__file__).parent.parent.joinpath("lua/lib/tuning.lua").read_text()
        names = text.split("{", 2)[2].split("}")[0].replace("'", "").replace(",", " ").split()
        assert len(names) == len(Settings().tuning().split())


class TestPlanFile:
    GOOD = '[plans.p]\n[[plans.p.rules]]\nname = "streams"\nlimit = 1\n'

    @pytest.mark.parametrize(
        ("text", "field"),
        [
            ("default = ", "plans"),
            ('default = "p"', "plans"),
            ("default = 'q'\n" + GOOD, "default"),
            ("default = 'p'\nextra = 1\n" + GOOD, "plans file.extra"),
            ("default = 'p'\n[plans.p]\n", "plans.p.rules"),
            ("default = 'p'\n[plans.p]\nat_limit = 'x'\n[[plans.p.rules]]\nname='a'\nlimit=1", "plans.p.at_limit"),
            ("default = 'p'\n[[plans.p.rules]]\nname = 'A b'\nlimit = 1", "plans.p.rules[0].name"),
            ("default = 'p'\n[[plans.p.rules]]\nname = 'a'\nlimit = true", "plans.p.rules[0].limit"),
            ("default = 'p'\n[[plans.p.rules]]\nname = 'a'\nlimit = -1", "plans.p.rules[0].limit"),
            ("default = 'p'\n[[plans.p.rules]]\nname = 'a'\nlimit = 1\nunit = 'x'", "plans.p.rules[0].unit"),
            ("default = 'p'\n[[plans.p.rules]]\nname = 'a'\nlimit = 1\nkind = []", "plans.p.rules[0].kind"),
            ("default = 'p'\n[[plans.p.rules]]\nname = 'a'\nlimit = 1\ncolour = 'x'", "plans.p.rules[0].colour"),
            (
                "default = 'p'\n[[plans.p.rules]]\nname='a'\nlimit=1\n[[plans.p.rules]]\nname='b'\nlimit=1",
                "plans.p.rules",
            ),
        ],
    )
    def test_what_is_wrong_is_named(self, text: str, field: str) -> None:
        with pytest.raises(ConfigError) as caught:
            plans.parse(text)
        assert caught.value.field == field

    def test_token_limit_replaces_only_the_rule_without_selector(self) -> None:
        text = (
            "default='p'\n[[plans.p.rules]]\nname='all'\nlimit=2\n[[plans.p.rules]]\nname='live'\nlimit=1\nkind='live'"
        )
        plan = plans.parse(text).get("p")
        assert plan.match("live", "", "", "c", 7).policy == "deny_new\t0\tlive:d:1\tall:d:7"
        assert plan.match("vod", "", "", "c", None).policy == "deny_new\t0\tall:d:2"
        only_live = plans.parse(text.replace("name='all'", "name='all'\nprovider='x'")).get("p")
        assert only_live.match("vod", "y", "", "c", 3).policy == "deny_new\t0\tstreams:d:3"

    def test_reload_keeps_the_good_ones(self, tmp_path: Path) -> None:
        path, said = tmp_path / "plans.toml", list[str]()
        path.write_text('default = "p"\n' + self.GOOD)
        file = plans.PlanFile(path, said.append)
        for broken in ("x", "default = 1"):
            path.write_text(broken * 3)
            file.refresh()
            assert file.error
            assert file.current.default == "p"
        path.unlink()
        file.refresh()
        assert "No such file" in file.error
        path.write_text('default = "p"\n' + self.GOOD.replace("1", "9"))
        file.refresh()
        assert file.error == ""
        assert file.current.get("p").rules[0].limit == 9
        assert len(said) == 3


class TestSpool:
    def spool(self, root: Path, max_bytes: int = 2**20) -> tuple[Spool, Metrics]:
        metrics = Metrics()
        spool = Spool(root, max_bytes, metrics.spooled, clock=lambda: 1_800_000_000.0)
        spool.open()
        return spool, metrics

    def fate(self, metrics: Metrics, fate: str) -> float:
        return metrics.registry.get_sample_value("pulsegate_spooled_heartbeats_total", {"fate": fate}) or 0.0

    def test_applies_in_order_once_and_stops_when_redis_is_away_again(self, tmp_path: Path) -> None:
        spool, metrics = self.spool(tmp_path)
        for n in range(5):
            spool.put({"n": n})
        seen: list[Entry] = []

        async def two_then_away(entry: Entry) -> bool:
            if len(seen) == 2:
                raise Unavailable("gone")
            return await apply(entry)

        async def apply(entry: Entry) -> bool:
            seen.append(entry)
            return True

        asyncio.run(spool.drain(two_then_away))
        assert spool.waiting
        asyncio.run(spool.drain(apply))
        assert seen == [{"n": n} for n in range(5)]
        assert not spool.waiting
        assert self.fate(metrics, "applied") == 5
        spool.close()
        assert list(tmp_path.iterdir()) == []

    def test_a_dead_process_is_inherited_and_a_torn_line_costs_itself_only(self, tmp_path: Path) -> None:
        dead, _ = self.spool(tmp_path)
        dead.put({})
        assert dead._file is not None
        assert dead._lock is not None
        dead._file.write(b'{"at":1')
        dead._file.close()
        dead._lock.close()
        heir, metrics = self.spool(tmp_path)
        seen: list[Entry] = []

        async def apply(entry: Entry) -> bool:
            seen.append(entry)
            return True

        asyncio.run(heir.drain(apply))
        assert seen == [{}]
        assert self.fate(metrics, "bad") == 1
        heir.close()

    def test_a_living_process_is_left_alone(self, tmp_path: Path) -> None:
        one, _ = self.spool(tmp_path)
        one.put({})
        two, _ = self.spool(tmp_path)
        assert not two.waiting
        assert one.waiting
        one.close()
        two.close()

    def test_the_oldest_is_dropped_and_counted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("engine.spool._SEGMENT_BYTES", 1000)
        spool, metrics = self.spool(tmp_path, max_bytes=3000)
        for n in range(100):
            spool.put({"n": n, "body": "b" * 100})
        seen: list[Entry] = []

        async def apply(entry: Entry) -> bool:
            seen.append(entry)
            return True

        asyncio.run(spool.drain(apply))
        assert seen[-1]["n"] == 99
        assert 0 < len(seen) < 30
        assert self.fate(metrics, "dropped") == 100 - len(seen)
        spool.close()


class TestBackPressure:
    def test_heartbeats_are_thinned_and_lifecycle_is_not(self, backend: str, prefix: str) -> None:
        with World(backend, prefix, outbox_high=10, outbox_max=100) as world:
            backlog = Backlog(world.client, world.keys, world.settings, world.metrics, world.outage)
            world.beat()
            for _ in range(20):
                world.wait(10)
                world.beat()
            world.run(backlog.look())
            before = len(world.events())
            world.wait(10)
            assert world.beat()["decision"] == "allow"
            assert len(world.events()) == before
            world.beat("s1", "d1", "other")
            assert [e["type"] for e in world.events()[before:]] == ["view_end", "view_start"]
            assert world.metrics.registry.get_sample_value("pulsegate_leases", {"rule": "streams"}) == 1

    def test_an_error_of_a_script_is_an_error(self, backend: str, prefix: str) -> None:
        with World(backend, prefix) as world:
            world.run(world.client.set(world.keys.account("a").leases, "not a set"))
            with pytest.raises(Exception, match="WRONGTYPE"):
                world.beat()


class TestSupervision:
    """A part that fails at once, again and again, is started less and less often; one that was killed at once."""

    def starts(self, monkeypatch: pytest.MonkeyPatch, code: str, seconds: int) -> list[int]:
        """The seconds at which the part was started anew."""
        now, started = 0.0, []
        monkeypatch.setattr("engine.deployment.time.monotonic", lambda: now)
        part = Part("test", ["-c", code], Settings())
        part.start()
        for second in range(1, seconds):
            process = part._process
            assert process is not None
            process.wait(10)
            now = float(second)
            part.watch()
            if part._process is not process:
                started.append(second)
        assert part._process is not None
        part._process.wait(10)
        part.stop()
        return started

    def test_one_that_fails_at_once_is_given_longer_each_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.starts(monkeypatch, "raise SystemExit(3)", 60) == [1, 3, 7, 15, 30, 45]

    def test_one_that_was_killed_starts_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
        assert self.starts(monkeypatch, killed, 6) == [1, 2, 3, 4, 5]
