"""The log's reader: one order within a partition over both topics, nothing skipped, gaps noticed."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import fakeredis
import pytest
from redis import Redis
from redis.exceptions import ResponseError

from engine.embedded import Server
from engine.events import EVENTS, HEARTBEATS, TOPICS, order
from engine.keys import Keys
from tests.servers import wait_for
from workers.reading import Ahead, Behind, LogReader, Reading


@pytest.fixture(params=["fake", "single"])
def client(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "fake":
        found: Any = fakeredis.FakeRedis(version=(7, 2))
    else:
        server: Server = request.getfixturevalue("single")
        found = Redis.from_url(server.url)
    yield found
    found.close()


@pytest.fixture
def keys(prefix: str) -> Keys:
    return Keys(prefix, 4)


def add(client: Any, keys: Keys, partition: int, id_: str, kind: str = "", payload: bytes | None = None) -> str:
    """One entry, as the mirror writes it. `kind` defaults to a heartbeat."""
    kind = kind or "heartbeat"
    topic = HEARTBEATS if kind == "heartbeat" else EVENTS
    if payload is None:
        payload = b'{"type":"%b","at":5,"account":"a","data":null}' % kind.encode()
    client.xadd(keys.log(partition, topic), {"e": payload}, id=id_)
    client.hset(keys.mirrored, str(partition), id_)
    return f"{partition}-{id_}"


def drain(reader: LogReader | Ahead, count: int, positions: dict[int, str] | None = None) -> list[str]:
    """The ids of everything, read in pieces."""
    positions, seen = dict(positions or {}), []
    while found := reader.look(positions, count):
        assert not found.behind
        seen += [event.id for event in found.events]
        positions |= found.ends
    return seen


@pytest.mark.parametrize("count", [1, 2, 3, 7, 1000])
def test_a_partition_is_one_order_over_both_topics(client: Any, keys: Keys, count: int) -> None:
    rnd = random.Random(count)
    sent: dict[int, list[str]] = {p: [] for p in range(4)}
    for n in range(200):
        p = rnd.randrange(3)
        # Sequence numbers of one and of two digits: they sort as numbers.
        kind = rnd.choice(["heartbeat"] * 9 + ["pause"])
        sent[p].append(add(client, keys, p, f"{1000 + n // 20}-{n % 20}", kind))
    seen = drain(LogReader(client, keys, range(4)), count)
    for p in range(4):
        assert [id_ for id_ in seen if id_.startswith(f"{p}-")] == sent[p]


def test_what_is_cut_off_in_one_topic_holds_the_other_back(client: Any, keys: Keys) -> None:
    for n in range(1, 6):
        add(client, keys, 0, f"{n}-0")
    add(client, keys, 0, "3-5", "pause")
    add(client, keys, 0, "9-0", "resume")
    found = LogReader(client, keys, [0]).look({}, 2)
    assert [e.stream_id for e in found.events] == ["1-0", "2-0"]
    assert found.ends == {0: "2-0"}
    found = LogReader(client, keys, [0]).look(found.ends, 3)
    assert [e.stream_id for e in found.events] == ["3-0", "3-5", "4-0", "5-0"]


def test_an_event_knows_where_it_was_read(client: Any, keys: Keys) -> None:
    payload = b'{"type":"custom","at":5,"account":"a","session":"s","data":{"x": [1, 2]}}'
    add(client, keys, 2, "7-1", "custom", payload)
    (event,), _ = LogReader(client, keys, [1, 2]).read({})
    assert (event.id, event.partition, event.stream_id, event.payload) == ("2-7-1", 2, "7-1", payload)
    assert bytes(event.data) == b'{"x": [1, 2]}'


def test_what_cannot_be_decoded_is_reported_and_passed(client: Any, keys: Keys) -> None:
    add(client, keys, 0, "1-0")
    add(client, keys, 0, "2-0", payload=b"{nonsense")
    client.xadd(keys.log(0, HEARTBEATS), {"other": b"x"}, id="3-0")
    found = LogReader(client, keys, [0]).look({})
    assert [e.stream_id for e in found.events] == ["1-0"]
    assert [(p, id_, payload) for p, id_, payload, _ in found.undecodable] == [
        (0, "2-0", b"{nonsense"),
        (0, "3-0", b""),
    ]
    assert all(why for *_, why in found.undecodable)
    assert found.ends == {0: "3-0"}


def test_a_position_passes_events_of_topics_that_are_not_read(client: Any, keys: Keys) -> None:
    reader = LogReader(client, keys, [0], [EVENTS])
    add(client, keys, 0, "1-0", "pause")
    add(client, keys, 0, "2-0")
    found = reader.look({})
    assert [e.stream_id for e in found.events] == ["1-0"]
    assert found.ends == {0: "2-0"}
    assert not reader.look(found.ends)
    add(client, keys, 0, "3-0")
    assert reader.look(found.ends).ends == {0: "3-0"}


def test_nothing_passes_what_was_cut_off(client: Any, keys: Keys) -> None:
    for n in range(1, 4):
        add(client, keys, 0, f"{n}-0", "pause")
    add(client, keys, 0, "9-0")
    assert LogReader(client, keys, [0], [EVENTS]).look({}, 2).ends == {0: "2-0"}


def test_a_gap_is_noticed(client: Any, keys: Keys) -> None:
    for n in range(1, 6):
        add(client, keys, 0, f"{n}-0")
        add(client, keys, 1, f"{n}-0")
    client.xtrim(keys.log(0, HEARTBEATS), minid="4-0")
    client.hset(keys.trimmed, "0", "3-0")
    reader = LogReader(client, keys, [0, 1])
    found = reader.look({0: "2-0", 1: "2-0"})
    assert found.behind == {0: "3-0"}
    assert {e.partition for e in found.events} == {1}
    assert set(found.ends) == {1}
    with pytest.raises(Behind) as caught:
        reader.read({0: "2-0"})
    assert caught.value.trimmed == {0: "3-0"}


def test_trimming_behind_the_position_is_no_gap(client: Any, keys: Keys) -> None:
    for n in range(1, 6):
        add(client, keys, 0, f"{n}-0")
    client.xtrim(keys.log(0, HEARTBEATS), minid="4-0")
    client.hset(keys.trimmed, "0", "3-0")
    assert drain(LogReader(client, keys, [0]), 10, {0: "3-0"}) == ["0-4-0", "0-5-0"]


def test_it_wakes_for_news_and_reads_both_topics(single: Server, keys: Keys) -> None:
    """An event that wakes it may be younger than one of the other topic that came in the same breath."""
    client: Any = Redis.from_url(single.url)
    reader = LogReader(client, keys, range(4))
    got: list[list[str]] = []
    thread = threading.Thread(target=lambda: got.append([e.id for e in reader.look({}, block_ms=4_000).events]))
    thread.start()
    while not int(client.info("clients")["blocked_clients"]):
        pass
    script = "redis.call('XADD', KEYS[1], '2-0', 'e', ARGV[1]) redis.call('XADD', KEYS[2], '1-0', 'e', ARGV[1])"
    payload = b'{"type":"pause","at":5,"account":"a","data":null}'
    client.eval(script, 2, *(keys.log(3, topic) for topic in TOPICS), payload)
    thread.join(5)
    client.close()
    assert got == [["3-1-0", "3-2-0"]]


def test_without_news_it_waits_no_longer_than_it_may(client: Any, keys: Keys) -> None:
    assert not LogReader(client, keys, range(4)).look({}, block_ms=20)
    assert not LogReader(client, keys, []).look({}, block_ms=20)


def test_large_events_make_the_next_answer_smaller(client: Any, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.reading.READ_MAX", 16)
    monkeypatch.setattr("workers.reading.READ_MAX_BYTES", 500)
    ids = [
        add(client, keys, 0, f"{n}-0", payload=b'{"type":"x","at":1,"account":"%b"}' % (b"a" * 200))
        for n in range(1, 40)
    ]
    reader = LogReader(client, keys, [0], [HEARTBEATS])
    first = reader.look({})
    second = reader.look(first.ends)
    assert len(first.events) == 16
    assert len(second.events) == 4
    rest = drain(reader, 1000, second.ends)
    assert [e.id for e in first.events + second.events] + rest == ids


def test_order_is_that_of_numbers() -> None:
    assert sorted(["10-2", "9-99", "10-10"], key=order) == ["9-99", "10-2", "10-10"]


class TestAhead:
    @pytest.fixture(autouse=True)
    def _little_is_much(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("workers.reading.MUCH", 3)

    def test_it_reads_on_while_its_user_works_and_leaves_nothing_out(self, client: Any, keys: Keys) -> None:
        sent = [add(client, keys, n % 2, f"{n}-0", "pause" if n % 3 else "") for n in range(1, 80)]
        looked: list[dict[int, str]] = []

        class Watched(LogReader):
            def look(self, positions: Any, count: int = 1_000, block_ms: int = 0) -> Reading:
                looked.append(dict(positions))
                return super().look(positions, count, block_ms)

        reader = Ahead(Watched(client, keys, range(4)))
        first = reader.look({}, 5)
        wait_for(lambda: len(looked) == 2, "the next answer is asked for")
        assert looked[1] == first.ends
        seen = [event.id for event in first.events] + drain(reader, 5, dict(first.ends))
        reader.close()
        assert sorted(seen) == sorted(sent)
        for partition in range(2):
            mine = [order(id_.partition("-")[2]) for id_ in seen if id_.startswith(f"{partition}-")]
            assert mine == sorted(mine)

    def test_what_was_read_for_other_positions_is_not_given(self, client: Any, keys: Keys) -> None:
        for n in range(1, 21):
            add(client, keys, 0, f"{n}-0")
        reader = Ahead(LogReader(client, keys, [0]))
        reader.look({}, 5)
        assert [e.id for e in reader.look({0: "2-0"}, 5).events] == [f"0-{n}-0" for n in range(3, 8)]
        reader.close()

    def test_nothing_read_ahead_does_not_hide_what_has_come_since(self, client: Any, keys: Keys) -> None:
        for n in range(1, 6):
            add(client, keys, 0, f"{n}-0")
        reader = Ahead(LogReader(client, keys, [0]))
        ends = reader.look({}).ends
        assert reader._next is not None
        reader._next[1].result()
        add(client, keys, 0, "6-0")
        assert [e.id for e in reader.look(ends).events] == ["0-6-0"]
        reader.close()

    def test_an_error_comes_when_the_answer_is_wanted(self, client: Any, keys: Keys) -> None:
        for n in range(1, 6):
            add(client, keys, 0, f"{n}-0")

        class Failing(LogReader):
            def look(self, positions: Any, count: int = 1_000, block_ms: int = 0) -> Reading:
                if positions:
                    raise ResponseError("gone")
                return super().look(positions, count, block_ms)

        reader = Ahead(Failing(client, keys, [0]))
        ends = reader.look({}).ends
        with pytest.raises(ResponseError, match="gone"):
            reader.look(ends)
        reader.close()
