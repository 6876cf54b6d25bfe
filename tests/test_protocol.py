"""An answer's header waits for its body, and for nothing else."""

from __future__ import annotations

import asyncio

from api.joined import Joined


class _Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: object) -> None:
        self.written.append(bytes(data))  # type: ignore[call-overload]

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


def _run(*steps: str) -> list[bytes]:
    async def go() -> list[bytes]:
        transport = _Transport()
        joined = Joined(transport, asyncio.get_running_loop())
        for step in steps:
            if step == "turn":
                await asyncio.sleep(0)
            elif step == "close":
                joined.close()
            elif step == "gone":
                transport.closed = True
            else:
                joined.write(step.encode())
        return transport.written

    return asyncio.run(go())


HEAD = "HTTP/1.1 200 OK\r\n\r\n"


def test_header_and_body_leave_in_one_write() -> None:
    assert _run(HEAD, "body", "turn", "turn") == [f"{HEAD}body".encode()]


def test_a_header_without_a_body_leaves_at_the_next_turn() -> None:
    assert _run(HEAD, "turn", "turn") == [HEAD.encode()]


def test_a_later_body_leaves_by_itself() -> None:
    assert _run(HEAD, "turn", "turn", "body", "more") == [HEAD.encode(), b"body", b"more"]


def test_closing_sends_what_was_held() -> None:
    assert _run(HEAD, "close", "turn") == [HEAD.encode()]


def test_a_peer_that_has_gone_gets_nothing() -> None:
    assert _run(HEAD, "gone", "turn", "turn") == []
