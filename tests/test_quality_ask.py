"""The processes that answer questions: bounded, interrupted, replaced when they die, and gone with whoever asks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from engine.errors import Overloaded, PulsegateError, TooCostly, Unavailable
from engine.quality import ask as ask_module
from engine.quality.ask import Asker, Child
from engine.settings import Settings
from engine.wire import AT_MAX
from tests.quality_plain import fill, seeded
from tests.servers import ROOT, clean_env, wait_for

CHILD = "tests.quality_child"


@contextlib.asynccontextmanager
async def asker(lake: Path, **settings: Any) -> AsyncIterator[Asker]:
    made = Asker(Settings(lake_dir=str(lake), **{"quality_memory_bytes": 2**28} | settings), CHILD)
    try:
        yield made
    finally:
        await made.close()
        assert made._busy == set()
        assert made._idle == []


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


async def asked(of: Asker, do: str, **args: Any) -> Any:
    return orjson.loads(await of.ask(do, args, 0, AT_MAX))


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


async def until(condition: Callable[[], Any], what: str) -> None:
    await asyncio.to_thread(wait_for, condition, what)


def test_answers_from_files_in_a_nice_process_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PULSEGATE_JWT_SECRET", "x" * 40)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    fill(tmp_path, seeded(1, 100))

    async def test() -> None:
        async with asker(tmp_path) as of:
            first, second = [await asked(of, "count") for _ in range(2)]
            assert first["rows"] == 100
            assert first["pid"] == second["pid"] != os.getpid()
            assert first["nice"] == 10
            assert not [name for name in first["env"] if "PULSEGATE" in name or "SECRET" in name]
            assert await asked(of, "loud") == {}

    run(test)


@pytest.mark.parametrize("name", ["it's [1] *", "symlink", "relative"])
def test_lakes_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "real").mkdir()
    root = tmp_path / name
    if name == "symlink":
        root.symlink_to(tmp_path / "real")
    elif name == "relative":
        monkeypatch.chdir(tmp_path / "real")
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        root = Path("../relative")
    fill(root, seeded(1, 100))

    async def test() -> None:
        async with asker(root) as of:
            assert (await asked(of, "count"))["rows"] == 100

    run(test)


def test_the_api_process_never_loads_duckdb_or_arrow() -> None:
    check = "import sys, api.app; sys.exit(bool({'duckdb', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, env=clean_env(), check=False).returncode == 0


def test_too_slow(tmp_path: Path) -> None:
    async def test() -> None:
        async with asker(tmp_path, quality_timeout_s=5) as of:
            pid = (await asked(of, "count"))["pid"]
            with pytest.raises(TooCostly) as caught:
                await asked(of, "long")
            assert caught.value.code == "query_too_slow"
            # It was interrupted, not killed: the same process answers the next one.
            assert (await asked(of, "count"))["pid"] == pid

    run(test)


def test_deaf_processes_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask_module, "GRACE_S", 0.2)

    async def test() -> None:
        async with asker(tmp_path, quality_timeout_s=5) as of:
            pid = (await asked(of, "count"))["pid"]
            with pytest.raises(TooCostly):
                await asked(of, "deaf")
            await until(lambda: not lives(pid), "the deaf process is dead")
            assert (await asked(of, "count"))["pid"] != pid

    run(test)


def test_too_large(tmp_path: Path) -> None:
    async def test() -> None:
        async with asker(tmp_path, quality_memory_bytes=2**26) as of:
            with pytest.raises(TooCostly) as caught:
                await asked(of, "large")
            assert caught.value.code == "query_too_large"
            assert (await asked(of, "count"))["rows"] == 0

    run(test)


def test_a_caller_that_goes_interrupts_its_question(tmp_path: Path) -> None:
    async def test() -> None:
        async with asker(tmp_path) as of:
            pid = (await asked(of, "count"))["pid"]
            going = asyncio.create_task(asked(of, "long"))
            await until(lambda: busy(pid), "the question is being answered")
            going.cancel()
            with pytest.raises(asyncio.CancelledError):
                await going
            assert (await asyncio.wait_for(asked(of, "count"), 5))["pid"] == pid

    run(test)


def busy(pid: int) -> bool:
    """It uses a core: clock ticks of its threads grow."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    known = _ticks.setdefault(pid, ticks)
    return ticks > known + 5


_ticks: dict[int, int] = {}


def test_a_process_that_dies_is_replaced(tmp_path: Path) -> None:
    async def test() -> None:
        async with asker(tmp_path) as of:
            pid = (await asked(of, "count"))["pid"]
            with pytest.raises(Unavailable) as caught:
                await asked(of, "die")
            assert caught.value.code == "query_process_ended"
            other = (await asked(of, "count"))["pid"]
            assert other != pid
            # Also one that died while nobody asked.
            os.kill(other, signal.SIGKILL)
            await until(lambda: not lives(other), "it is dead")
            with contextlib.suppress(Unavailable):
                await asked(of, "count")
            assert (await asked(of, "count"))["pid"] not in (pid, other)

    run(test)


def test_killed_under_a_question(tmp_path: Path) -> None:
    async def test() -> None:
        async with asker(tmp_path) as of:
            pid = (await asked(of, "count"))["pid"]
            asking = asyncio.create_task(asked(of, "long"))
            await until(lambda: busy(pid), "the question is being answered")
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(Unavailable):
                await asking
            assert (await asked(of, "count"))["rows"] == 0

    run(test)


def test_too_many_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with asker(tmp_path, quality_queue=2, quality_timeout_s=30) as of:
            many = [asyncio.create_task(asked(of, "long")) for _ in range(3)]
            await asyncio.sleep(0)
            for _ in range(3):
                with pytest.raises(Overloaded):
                    await asked(of, "count")
            for task in many:
                task.cancel()
            await asyncio.wait(many)
            assert (await asked(of, "count"))["rows"] == 0

    run(test)


def test_waiting_too_long_is_no_fault_of_the_question(tmp_path: Path) -> None:
    async def test() -> None:
        async with asker(tmp_path, quality_timeout_s=0.2) as of:
            await of._free.acquire()  # another question that goes on and on
            with pytest.raises(Overloaded):
                await asked(of, "count")
            of._free.release()

    run(test)


def test_several_processes_answer_at_the_same_time(tmp_path: Path) -> None:
    async def test() -> None:
        async with asker(tmp_path, quality_processes=2, quality_timeout_s=30) as of:
            long = asyncio.create_task(asked(of, "long"))
            await asyncio.sleep(0)
            assert (await asked(of, "count"))["rows"] == 0
            assert not long.done()
            long.cancel()
            await asyncio.wait([long])

    run(test)


def test_files_that_vanish_are_looked_up_again_once(tmp_path: Path) -> None:
    fill(tmp_path, seeded(2, 50))

    async def test() -> None:
        async with asker(tmp_path) as of:
            assert await asked(of, "away", always=False) == 50
            with pytest.raises(Unavailable) as caught:
                await asked(of, "away", always=True)
            assert caught.value.code == "query_files_gone"

    run(test)


def test_a_lake_that_cannot_be_looked_up(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "quality").write_text("no folder")

    async def test() -> None:
        async with asker(tmp_path, quality_timeout_s=5) as of:
            with pytest.raises(PulsegateError) as caught:
                await asked(of, "count")
            assert caught.value.code == "internal"

    run(test)
    assert "NotADirectory" in capfd.readouterr().err


def test_our_own_errors_say_nothing_of_the_inside(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def test() -> None:
        async with asker(tmp_path) as of:
            with pytest.raises(PulsegateError) as caught:
                await asked(of, "broken")
            assert caught.value.code == "internal"
            assert "secret" not in caught.value.message
            assert (await asked(of, "count"))["rows"] == 0

    run(test)
    assert "ValueError" in capfd.readouterr().err


def test_idle_processes_end(tmp_path: Path) -> None:
    async def test() -> None:
        async with asker(tmp_path, quality_idle_s=0.2) as of:
            pid = (await asked(of, "count"))["pid"]
            await until(lambda: not lives(pid), "the idle process has ended")
            assert (await asked(of, "count"))["pid"] != pid

    run(test)


def test_old_processes_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with asker(tmp_path) as of:
            pid = (await asked(of, "count"))["pid"]
            monkeypatch.setattr(ask_module, "LIFE_S", 0.0)
            assert (await asked(of, "count"))["pid"] != pid

    run(test)


def test_closing_ends_what_is_under_way(tmp_path: Path) -> None:
    async def test() -> None:
        async with asker(tmp_path) as of:
            pid = (await asked(of, "count"))["pid"]
            asking = asyncio.create_task(asked(of, "long"))
            await until(lambda: busy(pid), "the question is being answered")
            await of.close()
            with pytest.raises(Unavailable):
                await asking
            assert not lives(pid)
            with pytest.raises(Overloaded):
                await asked(of, "count")

    run(test)


def test_a_child_does_not_outlive_who_asks(tmp_path: Path) -> None:
    """kill −9 of the asking process, in the middle of a question."""
    script = f"""
import asyncio, sys
from engine.quality.ask import Asker
from engine.settings import Settings
async def main():
    of = Asker(Settings(lake_dir={str(tmp_path)!r}), {CHILD!r})
    print(__import__("orjson").loads(await of.ask("count", {{}}, 0, 1))["pid"], flush=True)
    await of.ask("long", {{}}, 0, 1)
asyncio.run(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, env=clean_env(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        wait_for(lambda: busy(pid), "the question is being answered")
        process.kill()
    wait_for(lambda: not lives(pid), "the child has ended")


def test_no_child_without_a_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("started")

    monkeypatch.setattr(Child, "start", refuse)

    async def test() -> None:
        async with asker(tmp_path):
            pass

    run(test)
