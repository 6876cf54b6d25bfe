"""The webhook against a receiver that fails in every way a receiver can."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import orjson
import pytest

from engine import signing
from engine.embedded import free_port
from engine.errors import ConfigError
from engine.events import EVENTS, HEARTBEATS, Event, read
from engine.settings import Settings
from tests.receiver import SECRET, Answer, Receiver, Request
from workers.sinks import Rejected, Retry
from workers.webhook import Webhook, retry_after_s

NOW = 1_800_000_000.0


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as found:
        yield found


@pytest.fixture
def hook(receiver: Receiver) -> Iterator[Callable[..., Webhook]]:
    """Builds webhooks that post to the receiver."""
    built = []

    def build(**settings: Any) -> Webhook:
        values = {"webhook_url": receiver.url, "webhook_secret": SECRET} | settings
        built.append(Webhook(Settings(**values), now=lambda: NOW))
        return built[-1]

    yield build
    for one in built:
        one.poster.close()


def event(n: int, kind: str = "custom", **fields: Any) -> Event:
    said = {"type": kind, "at": 1_800_000_000_000 + n, "account": "ann", "session": "s", "data": {"n": n}} | fields
    return read(3, f"1800000000000-{n}", orjson.dumps(said))


def events(count: int) -> list[Event]:
    return [event(n) for n in range(count)]


def refusing(*numbers: int, status: int = 422) -> Callable[[Request], Answer]:
    """Refuses every request with one of these events in it."""
    return lambda request: (status if any(item["data"]["n"] in numbers for item in request.items) else 200, {})


class TestRequest:
    def test_it_holds_the_events_with_both_ids_and_their_own_bytes(self, receiver: Receiver, hook: Any) -> None:
        raw = (
            b'{"type":"custom","at":5,"account":"a","session":"s","event_id":"mine","data":{"x": 1.50,  "y":"\\u00e9"}}'
        )
        hook().deliver([read(7, "5-1", raw), event(2)])
        (request,) = receiver.taken
        assert request.body.startswith(b'{"items":[{"id":"7-5-1","event_id":"mine","type":"custom",')
        assert b'"data":{"x": 1.50,  "y":"\\u00e9"}}' in request.body
        assert request.items[1]["event_id"] == request.items[1]["id"] == "3-1800000000000-2"
        assert request.headers["content-type"] == "application/json"

    def test_it_is_signed_over_time_and_body(self, receiver: Receiver, hook: Any) -> None:
        hook().deliver(events(3))
        (request,) = receiver.taken
        assert request.signed
        assert request.headers["pulsegate-timestamp"] == str(int(NOW))
        assert "authorization" not in request.headers

    def test_it_may_carry_an_authorization(self, receiver: Receiver, hook: Any) -> None:
        hook(webhook_authorization="Basic a2V5Og==").deliver(events(1))
        assert receiver.taken[0].headers["authorization"] == "Basic a2V5Og=="

    def test_the_same_events_are_the_same_batch_and_bytes(self, receiver: Receiver, hook: Any) -> None:
        for batch in (events(3), events(3), events(4)):
            hook().deliver(batch)
        one, two, other = receiver.taken
        assert (one.headers["pulsegate-batch"], one.body) == (two.headers["pulsegate-batch"], two.body)
        assert other.headers["pulsegate-batch"] != one.headers["pulsegate-batch"]

    def test_a_connection_is_used_again(self, receiver: Receiver, hook: Any) -> None:
        sink = hook()
        for n in range(5):
            sink.deliver([event(n)])
        assert (len(receiver.taken), receiver.connections) == (5, 1)

    def test_a_request_stays_below_its_size(self, receiver: Receiver, hook: Any) -> None:
        sent = [event(n, data={"n": n, "text": "x" * 300}) for n in range(20)]
        hook(webhook_body_max=1024).deliver(sent)
        assert receiver.ids == [e.id for e in sent]
        sizes = [len(request.body) for request in receiver.taken]
        assert max(sizes) <= 1024
        assert len(sizes) == 10

    def test_an_event_that_fits_into_no_request_is_refused(self, receiver: Receiver, hook: Any) -> None:
        large = event(1, data={"n": 1, "text": "x" * 2000})
        with pytest.raises(Rejected) as caught:
            hook(webhook_body_max=1024).deliver([event(0), large, event(2)])
        assert [e.id for e, _ in caught.value.refused] == [large.id]
        assert receiver.ids == [event(0).id, event(2).id]

    def test_only_the_types_that_are_wanted_are_sent(self, receiver: Receiver, hook: Any) -> None:
        sent = [event(0, "view_start"), event(1, "pause"), event(2, "view_end"), event(3, "custom")]
        hook(webhook_types=("view_start", "view_end")).deliver(sent)
        assert [item["type"] for item in receiver.taken[0].items] == ["view_start", "view_end"]
        hook(webhook_types=("takeover",)).deliver(sent)
        assert len(receiver.asked) == 1

    @pytest.mark.parametrize(
        ("settings", "topics"),
        [
            ({}, (EVENTS,)),
            ({"webhook_heartbeats": True}, (HEARTBEATS, EVENTS)),
            ({"webhook_types": ("heartbeat",)}, (HEARTBEATS, EVENTS)),
            ({"webhook_types": ("pause",)}, (EVENTS,)),
        ],
    )
    def test_heartbeats_are_sent_on_demand(self, hook: Any, settings: Any, topics: Any) -> None:
        assert tuple(hook(**settings).topics) == topics


class TestAnswers:
    @pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
    def test_not_now(self, receiver: Receiver, hook: Any, status: int) -> None:
        receiver.answer = lambda _: (status, {"Retry-After": "17"})
        with pytest.raises(Retry, match=str(status)) as caught:
            hook().deliver(events(4))
        assert caught.value.after_s == 17
        assert len(receiver.asked) == 1

    @pytest.mark.parametrize("status", [401, 403, 404, 405, 410, 301, 302, 307, 308])
    def test_not_here_is_no_fault_of_the_events(self, receiver: Receiver, hook: Any, status: int) -> None:
        receiver.answer = lambda _: (status, {"Location": receiver.url + "/elsewhere"})
        with pytest.raises(Retry, match=str(status)) as caught:
            hook().deliver(events(4))
        assert caught.value.after_s is None
        assert [request.path for request in receiver.asked] == ["/hook"]

    @pytest.mark.parametrize("status", [400, 409, 413, 422])
    def test_what_is_refused_is_found_and_the_rest_arrives_in_order(
        self, receiver: Receiver, hook: Any, status: int
    ) -> None:
        receiver.answer = refusing(0, 41, 42, 99, status=status)
        with pytest.raises(Rejected) as caught:
            hook().deliver(events(100))
        assert [json.loads(bytes(e.data))["n"] for e, _ in caught.value.refused] == [0, 41, 42, 99]
        assert {why for _, why in caught.value.refused} == {f"{status} answer {status}"}
        assert receiver.ids == [event(n).id for n in range(100) if n not in (0, 41, 42, 99)]
        assert all(request.signed for request in receiver.asked)
        assert len(receiver.asked) < 60

    def test_it_goes_away_while_the_refused_are_looked_for(self, receiver: Receiver, hook: Any) -> None:
        receiver.answer = lambda request: (422 if len(request.items) > 2 else 503, {})
        with pytest.raises(Retry):
            hook().deliver(events(8))

    def test_nobody_listens(self, hook: Any) -> None:
        with pytest.raises(Retry, match="ConnectError") as caught:
            hook(webhook_url=f"http://127.0.0.1:{free_port()}/").deliver(events(1))
        assert caught.value.after_s is None

    def test_it_hangs(self, receiver: Receiver, hook: Any) -> None:
        over = threading.Event()
        receiver.answer = lambda _: (200 if over.wait(20) else 500, {})
        with pytest.raises(Retry, match="no answer within"):
            hook(webhook_timeout_s=0.2).deliver(events(1))
        over.set()

    def test_it_promises_more_than_it_says(self, receiver: Receiver, hook: Any) -> None:
        receiver.answer = lambda _: (200, {"Content-Length": "100", "Connection": "close"})
        with pytest.raises(Retry):
            hook(webhook_timeout_s=0.5).deliver(events(1))


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            ("120", 120.0), (" 0 ", 0.0), ("", None), ("soon", None), ("-5", None), ("1.5", None), ("٣", None),
            (format_datetime(datetime.fromtimestamp(NOW + 90, UTC), usegmt=True), 90.0),
            (format_datetime(datetime.fromtimestamp(NOW - 90, UTC), usegmt=True), 0.0),
        ],
    )  # fmt: skip
    def test_seconds_or_a_date(self, value: str, seconds: float | None) -> None:
        assert retry_after_s(value, NOW) == seconds


class TestSigning:
    def test_a_receiver_verifies(self) -> None:
        made = signing.sign(SECRET, int(NOW), b"{}")
        assert signing.verify(SECRET, str(int(NOW)), made, b"{}", NOW + 299)

    @pytest.mark.parametrize(
        "change",
        [
            {"body": b"{ }"}, {"secret": SECRET + "!"}, {"timestamp": str(int(NOW) + 1)}, {"now": NOW + 301}, {"now": NOW - 301},
            {"signature": "v1=00"}, {"signature": "é"}, {"signature": ""}, {"timestamp": "now"}, {"timestamp": ""}, {"timestamp": "٣"},
        ],
    )  # fmt: skip
    def test_and_refuses_anything_else(self, change: dict[str, Any]) -> None:
        good = {
            "secret": SECRET, "timestamp": str(int(NOW)), "signature": signing.sign(SECRET, int(NOW), b"{}"), "body": b"{}",
            "now": NOW,
        }  # fmt: skip
        assert signing.verify(**good)  # type: ignore[arg-type]
        assert not signing.verify(**(good | change))


class TestSettings:
    def test_without_a_url_there_is_none(self) -> None:
        assert Webhook.from_settings(Settings()) is None

    @pytest.mark.parametrize(
        ("env", "field"),
        [
            ({"URL": "ftp://host/"}, "URL"), ({"URL": "https://"}, "URL"), ({"URL": "https://me:pw@host/x"}, "URL"),
            ({"URL": "https://host/x", "SECRET": "short"}, "SECRET"), ({"URL": "https://host/x"}, "SECRET"),
            ({"FORMAT": "xml"}, "FORMAT"), ({"BATCH": "0"}, "BATCH"), ({"TIMEOUT_S": "600"}, "TIMEOUT_S"),
        ],
    )  # fmt: skip
    def test_a_bad_value_names_its_variable(self, env: dict[str, str], field: str) -> None:
        with pytest.raises(ConfigError) as caught:
            Settings.from_env({f"PULSEGATE_WEBHOOK_{name}": value for name, value in env.items()})
        assert caught.value.field == f"PULSEGATE_WEBHOOK_{field}"

    def test_the_secret_may_come_from_a_file_and_is_not_shown(self, tmp_path: Any) -> None:
        (tmp_path / "secret").write_text(SECRET + "\n")
        found = Settings.from_env(
            {"PULSEGATE_WEBHOOK_URL": "https://host/x", "PULSEGATE_WEBHOOK_SECRET_FILE": str(tmp_path / "secret")}
        )
        assert found.webhook_secret == SECRET
        assert SECRET not in str(found.describe())


class TestSegment:
    """The names and properties of https://segment.com/docs/connections/spec/video/."""

    def calls(self, receiver: Receiver, hook: Any, *sent: Event) -> list[dict[str, Any]]:
        hook(webhook_format="segment", webhook_heartbeats=True).deliver(sent)
        (request,) = receiver.taken
        assert request.signed
        assert list(json.loads(request.body)) == ["batch"]
        return request.items

    @pytest.mark.parametrize(
        ("kind", "data", "names"),
        [
            ("view_start", {}, ["Video Playback Started", "Video Content Started"]),
            ("heartbeat", {"position": 30.5}, ["Video Content Playing"]),
            ("pause", {}, ["Video Playback Paused"]),
            ("resume", {}, ["Video Playback Resumed"]),
            ("view_reopen", {}, ["Video Playback Resumed"]),
            ("seek", {"from": 5, "to": 90}, ["Video Playback Seek Completed"]),
            ("buffer_start", {}, ["Video Playback Buffer Started"]),
            ("buffer_end", {"duration_ms": 800}, ["Video Playback Buffer Completed"]),
            ("bitrate_change", {"to": 4_200_000}, ["Video Quality Updated"]),
            ("ad_start", {"ad": "a1"}, ["Video Ad Started"]),
            ("ad_end", {"ad": "a1"}, ["Video Ad Completed"]),
            ("ad_end", {"ad": "a1", "skipped": True}, ["Video Ad Skipped"]),
            ("error", {"fatal": True}, ["Video Playback Interrupted"]),
            ("error", {"fatal": False}, ["error"]),
            (
                "view_end",
                {"completed": True, "reason": "timeout"},
                ["Video Content Completed", "Video Playback Completed"],
            ),
            ("view_end", {"reason": "stopped"}, ["Video Playback Exited"]),
            ("view_end", {"reason": "content_changed"}, ["Video Playback Exited"]),
            ("view_end", {"reason": "timeout"}, ["Video Playback Interrupted"]),
            ("view_end", {"reason": "evicted"}, ["Video Playback Interrupted"]),
            ("poll_answered", {}, ["poll_answered"]),
            ("block", {}, ["block"]),
        ],
    )
    def test_names(self, receiver: Receiver, hook: Any, kind: str, data: dict[str, Any], names: list[str]) -> None:
        found = self.calls(receiver, hook, event(1, kind, data=data))
        assert [call["event"] for call in found] == names
        assert {call["type"] for call in found} == {"track"}
        assert {call["userId"] for call in found} == {"ann"}
        assert len({call["messageId"] for call in found}) == len(names)

    def event(self, kind: str, **data: Any) -> Event:
        said = {
            "type": kind, "at": 1_800_000_000_123, "account": "ann", "session": "s-1", "device": "tv", "profile": "kid",
            "content": "film-1", "kind": "vod", "data": data,
        }  # fmt: skip
        return read(3, "5-1", orjson.dumps(said))

    def test_a_heartbeat(self, receiver: Receiver, hook: Any) -> None:
        beat = self.event(
            "heartbeat", position=30.9, duration=5400, title="Film", quality={"bitrate": 4_200_000, "framerate": 50}
        )
        assert self.calls(receiver, hook, beat) == [
            {
                "type": "track", "event": "Video Content Playing", "userId": "ann", "messageId": "3-5-1",
                "timestamp": "2027-01-15T08:00:00.123Z",
                "context": {"library": {"name": "pulsegate", "version": "1"}, "device": {"id": "tv"}, "traits": {"profile": "kid"}},
                "properties": {
                    "asset_id": "film-1", "title": "Film", "session_id": "s-1", "livestream": False, "position": 30,
                    "total_length": 5400, "bitrate": 4200, "framerate": 50,
                },
            }
        ]  # fmt: skip

    def test_a_views_end(self, receiver: Receiver, hook: Any) -> None:
        end = self.event("view_end", reason="timeout", max_position=88.5, watched_ms=61_000, last_seen_at=9)
        (call,) = self.calls(receiver, hook, end)
        assert call["properties"] == {
            "content_asset_id": "film-1", "session_id": "s-1", "livestream": False, "position": 88, "reason": "timeout",
            "watched_ms": 61_000, "last_seen_at": 9,
        }  # fmt: skip

    def test_fields_of_a_tracking_event_may_lie_in_its_own_data(self, receiver: Receiver, hook: Any) -> None:
        beside = self.event("seek", type="seek", to=90, **{"from": 5})
        within = self.event("seek", type="seek", data={"to": 90, "from": 5})
        one, two = self.calls(receiver, hook, beside, within)
        assert one["properties"] == two["properties"]
        assert one["properties"]["seek_position"] == one["properties"]["position"] == 90

    def test_an_unknown_event_keeps_what_was_said(self, receiver: Receiver, hook: Any) -> None:
        odd = self.event("poll_answered", type="poll_answered", id="x", answer={"a": [1]}, data={"more": None, "n": 2})
        (call,) = self.calls(receiver, hook, odd)
        assert call["properties"] == {
            "answer": {"a": [1]}, "n": 2, "content_asset_id": "film-1", "session_id": "s-1", "livestream": False,
        }  # fmt: skip

    @pytest.mark.parametrize(
        "data", [None, 5, "text", [1], {"position": "far", "duration": True, "quality": 3, "data": 4}]
    )
    def test_data_of_any_shape_passes(self, receiver: Receiver, hook: Any, data: Any) -> None:
        raw = orjson.dumps({"type": "heartbeat", "at": 5, "account": "a", "data": data})
        (call,) = self.calls(receiver, hook, read(0, "1-1", raw))
        assert call["properties"] == {}

    def test_numbers_of_any_size_pass(self, receiver: Receiver, hook: Any) -> None:
        raw = (
            b'{"type":"odd","at":5,"account":"a","data":{"position":1e300,"n":123456789012345678901234567890,"f":1.5}}'
        )
        (call,) = self.calls(receiver, hook, read(0, "1-1", raw))
        assert call["properties"] == {"n": 123456789012345678901234567890, "f": 1.5}

    def test_what_cannot_be_written_is_refused_alone(self, receiver: Receiver, hook: Any) -> None:
        odd = read(0, "1-1", b'{"type":"odd","at":99999999999999999,"account":"a"}')
        with pytest.raises(Rejected, match="cannot be written") as caught:
            hook(webhook_format="segment").deliver([event(1), odd, event(2)])
        assert [e.id for e, _ in caught.value.refused] == [odd.id]
        assert [call["messageId"] for call in receiver.taken[0].items] == [event(1).id, event(2).id]

    def test_both_calls_of_one_event_stay_together(self, receiver: Receiver, hook: Any) -> None:
        starts = [event(n, "view_start") for n in range(4)]
        hook(webhook_format="segment", webhook_body_max=1500).deliver(starts)
        assert len(receiver.taken) > 1
        assert all(len(request.items) % 2 == 0 for request in receiver.taken)
        found = [call["messageId"] for request in receiver.taken for call in request.items]
        assert found == [f"{e.export_id}{suffix}" for e in starts for suffix in ("", ":2")]
