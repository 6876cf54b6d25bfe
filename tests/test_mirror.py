"""The mirror: every outbox into the log, once, in order; trimmed only behind what the log has on disk."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError as Disconnected

from engine.embedded import DURABLE, Server
from engine.events import EVENTS, HEARTBEATS
from tests.harness import PARTITIONS
from tests.pipeline import drain, log_ids, outbox_ids, owner, plant, put
from tests.servers import wait_for
from workers.mirror import Mirror
from workers.runtime import Runtime
from workers.tenure import LostOwnership, Ownership


@pytest.fixture(params=["single", "cluster"])
def run(request: pytest.FixtureRequest, single: Server, prefix: str) -> Iterator[Runtime]:
    servers = request.getfixturevalue(request.param)
    session = (servers if request.param == "single" else servers[0]).url
    return plant(session, single.url, prefix)


_built: list[tuple[Runtime, Mirror]] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _built:
        run, work = _built.pop()
        work._disk.close()
        work._disk.join(5)
        run.log.close()
        run.session.close()


def mirror(run: Runtime, ownership: Ownership | None = None) -> Mirror:
    work = Mirror(run, 0, ownership or owner(run, "mirror"))
    _built.append((run, work))
    return work


class TestMirroring:
    def test_both_topics_get_the_outbox_ids_in_order(self, run: Runtime) -> None:
        kinds = ["view_start", "heartbeat", "pause", "heartbeat", "evidence", "view_end"]
        sent = {p: [put(run, p, kind) for kind in kinds] for p in (0, 7)}
        work = mirror(run)
        assert drain(work) == 12
        for partition, made in sent.items():
            assert log_ids(run, partition) == made
            assert log_ids(run, partition, HEARTBEATS) == [made[1], made[3], made[4]]
            assert log_ids(run, partition, EVENTS) == [made[0], made[2], made[5]]
        counted = run.log.hmget(run.keys.mirrored, ["heartbeats", "events"])
        assert [int(n) for n in counted] == [6, 6]

    def test_payloads_pass_byte_for_byte(self, run: Runtime) -> None:
        payload = '{"type":"custom","at":1,"data":{"b":1.0,"a":"é\\u00e9"}}'.encode()
        run.session.xadd(run.keys.outbox(3), {"e": payload})
        drain(mirror(run))
        assert run.log.xrange(run.keys.log(3, EVENTS))[0][1] == {b"e": payload}

    def test_a_successor_goes_on_where_the_last_one_stopped(self, run: Runtime) -> None:
        first = [put(run, 1, "heartbeat") for _ in range(5)]
        gone = owner(run, "mirror")
        drain(mirror(run, gone))
        gone.release()
        more = [put(run, 1, "heartbeat") for _ in range(5)]
        assert drain(mirror(run)) == 5
        assert log_ids(run, 1) == first + more

    def test_who_has_lost_the_group_appends_nothing(self, run: Runtime) -> None:
        work = mirror(run)
        work.step(0.01)
        run.log.set(run.keys.owner("mirror", 0), "another")
        put(run, 2, "view_start")
        with pytest.raises(LostOwnership):
            drain(work)
        assert log_ids(run, 2) == []

    def test_a_batch_that_does_not_begin_where_the_log_stands_is_refused(self, run: Runtime) -> None:
        made = [put(run, 4, "pause") for _ in range(3)]
        work = mirror(run)
        work.step(0.01)
        work._positions.clear()
        made.append(put(run, 4, "resume"))
        # It offers what the log has already; refused, it learns where the log stands and goes on from there.
        work.step(0.01)
        drain(work)
        assert log_ids(run, 4) == made
        assert int(run.log.hget(run.keys.mirrored, "events")) == 4

    def test_a_large_backlog_goes_in_batches(self, run: Runtime) -> None:
        with run.session.pipeline() as pipe:
            for n in range(2_500):
                pipe.xadd(run.keys.outbox(5), {"e": b'{"type":"heartbeat","at":%d}' % n})
            pipe.execute()
        drain(mirror(run))
        assert len(log_ids(run, 5)) == 2_500


class TestUnderWay:
    """The next write leaves before the last one's answers are there."""

    def fill(self, run: Runtime, partitions: tuple[int, ...] = (1, 2, 3), count: int = 4_500) -> None:
        with run.session.pipeline() as pipe:
            for partition in partitions:
                for n in range(count):
                    pipe.xadd(run.keys.outbox(partition), {"e": b'{"type":"heartbeat","at":%d}' % n})
            pipe.execute()

    def arrived_once(self, run: Runtime, partitions: tuple[int, ...] = (1, 2, 3)) -> None:
        for partition in partitions:
            assert log_ids(run, partition) == outbox_ids(run, partition)

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("workers.mirror.BATCH", 100)
        monkeypatch.setattr("workers.mirror.TOGETHER", 400)
        monkeypatch.setattr(Mirror, "_trim", lambda _: None)

    def test_two_writes_are_under_way_and_answers_come_in_order(
        self, run: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        most = 0
        receive = Mirror._receive

        def watched(work: Mirror) -> int:
            nonlocal most
            most = max(most, len(work._under_way))
            return receive(work)

        monkeypatch.setattr(Mirror, "_receive", watched)
        self.fill(run)
        assert drain(mirror(run)) == 13_500
        assert most == 2
        self.arrived_once(run)

    def test_a_forgotten_script_goes_unnoticed(self, run: Runtime) -> None:
        work = mirror(run)
        work.step(0.01)
        self.fill(run)
        run.log.script_flush()
        assert work.step(0.01) == 0
        drain(work)
        self.arrived_once(run)

    def test_a_broken_connection_leaves_nothing_out_and_repeats_nothing(
        self, run: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.fill(run)
        work = mirror(run)
        send, sent = Mirror._send, 0

        def breaking(self: Mirror, calls: Any) -> int:
            nonlocal sent
            sent += 1
            if sent == 6:
                self._line._connection._sock.shutdown(socket.SHUT_RDWR)
            return send(self, calls)

        monkeypatch.setattr(Mirror, "_send", breaking)
        with pytest.raises(Disconnected):
            drain(work)
        drain(work)
        assert sent > 6
        self.arrived_once(run)

    def test_a_partition_that_fails_holds_up_no_other_for_good(self, run: Runtime) -> None:
        self.fill(run)
        run.log.set(run.keys.log(2, HEARTBEATS), "not a stream")
        work = mirror(run)
        drain(work)
        for partition in set(range(PARTITIONS)) - {2}:
            assert log_ids(run, partition) == outbox_ids(run, partition)
        run.log.delete(run.keys.log(2, HEARTBEATS))
        work._aside = {2: 0.0}  # its time is over
        drain(work)
        self.arrived_once(run)


class TestTrimming:
    def test_an_outbox_is_trimmed_behind_what_the_log_has(self, run: Runtime) -> None:
        for _ in range(20):
            put(run, 6, "heartbeat")
        work = mirror(run)

        def trimmed() -> bool:
            work.step(0.05)
            return outbox_ids(run, 6) == []

        wait_for(trimmed, "the outbox is empty")
        assert len(log_ids(run, 6)) == 20

    def test_not_before_it_is_on_disk(self, single: Server, tmp_path: Path, prefix: str) -> None:
        durable = Server(tmp_path / "log", DURABLE | {"appendfsync": "no"})
        durable.start()
        try:
            run = plant(single.url, durable.url, prefix)
            # `no` leaves it to the system when to write; nothing is on disk until somebody asks for it.
            made = [put(run, 0, "heartbeat") for _ in range(10)]
            work = mirror(run)
            drain(work)
            until = time.monotonic() + 1.5
            while time.monotonic() < until:
                work.step(0.05)
            assert outbox_ids(run, 0) == made
            run.log.config_set("appendfsync", "always")
            run.log.set("x", "y")
            wait_for(lambda: work.step(0.05) >= 0 and outbox_ids(run, 0) == [], "trimmed once on disk")
        finally:
            durable.kill()

    def test_what_the_log_has_lost_is_mirrored_again(self, single: Server, tmp_path: Path, prefix: str) -> None:
        """kill −9 of a log whose file lacks its last seconds: the outbox still has them."""
        log = Server(tmp_path / "log", DURABLE | {"appendfsync": "no", "aof-use-rdb-preamble": "no"})
        log.start()
        try:
            run = plant(single.url, log.url, prefix)
            made = [put(run, 0, "heartbeat") for _ in range(50)]
            work = mirror(run)
            drain(work)
            assert log_ids(run, 0) == made
            log.kill()
            file = next((tmp_path / "log").glob("appendonlydir/*.incr.aof"))
            file.write_bytes(b"")
            log.start()
            run.log.set(run.keys.owner("mirror", 0), work._owner.token)

            def whole() -> bool:
                work.step(0.05)
                return log_ids(run, 0) == made

            wait_for(whole, "the log is whole again")
        finally:
            log.kill()


class TestNewRun:
    def test_an_outbox_goes_on_above_what_the_log_has(self, run: Runtime) -> None:
        put(run, 9, "heartbeat")
        drain(mirror(run))
        ahead = f"{int(time.time() * 1000) + 60_000}-5"
        run.log.hset(run.keys.mirrored, "9", ahead)
        run.log.delete(run.keys.owner("mirror", 0))
        run.session.delete(run.keys.outbox(9))
        work = mirror(run)
        work.step(0.01)
        late = put(run, 9, "heartbeat")
        assert late == ahead.replace("-5", "-6")
        assert drain(work) == 1
        assert log_ids(run, 9)[-1] == late
