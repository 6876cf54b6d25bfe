"""What is scarce is shared: no one token, account or receiver takes all of it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from redis import Redis
from rq import Queue

from engine import deployment
from engine.embedded import Server
from engine.events import read
from engine.settings import Settings
from tests.pipeline import plant, put
from tests.receiver import SECRET
from tests.servers import ApiProcess, Child, clean_env, environment, player, service, wait_for
from workers.jobs import jobs
from workers.posting import NoAnswer, Poster
from workers.sinks import Retry
from workers.webhook import Webhook

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n"


class Dripping:
    """A receiver that gets to nothing: it takes or sends a byte, waits a tenth of a second, and so on, for as long as it is let."""

    def __init__(self, behave: Callable[[socket.socket, threading.Event], None]) -> None:
        self._behave, self._over = behave, threading.Event()
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/hook"
        self.left = threading.Event()
        """The sender has closed its connection."""
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, contextlib.suppress(OSError):
                    self._behave(connection, self._over)
                self.left.set()

    def __enter__(self) -> Dripping:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


def _drip(connection: socket.socket, over: threading.Event, text: bytes, then: bytes) -> None:
    connection.sendall(text)
    while not over.wait(0.1):
        connection.sendall(then)


def drips_head(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(65_536)
    _drip(connection, over, b"HTTP/1.1 200 OK\r\nX-", b"x")


def drips_interim(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(65_536)
    _drip(connection, over, b"", b"HTTP/1.1 103 Early Hints\r\n\r\n")


def drips_body(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(65_536)
    _drip(connection, over, HEAD + b"\r\n", b"x")


def takes_slowly(connection: socket.socket, over: threading.Event) -> None:
    while not over.wait(0.1):
        if not connection.recv(100):
            return


def silent(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(65_536)
    connection.settimeout(0.1)
    while not over.is_set():
        with contextlib.suppress(TimeoutError):
            if not connection.recv(65_536):
                return


BEHAVIOURS = [drips_head, drips_interim, drips_body, takes_slowly, silent]


class TestReceivers:
    """The time-out is for the whole request."""

    @pytest.mark.parametrize("behave", BEHAVIOURS)
    @pytest.mark.timeout(30)
    def test_one_that_drips_is_given_up_and_its_connection_closed(self, behave: Any) -> None:
        poster = Poster(0.5)
        with Dripping(behave) as receiver:
            with pytest.raises(NoAnswer, match=r"no answer within 0\.5 s"):
                poster.post(receiver.url, b"x" * 8 * 2**20, {})
            # What the kernel has taken already, one that reads slowly goes on to read.
            assert behave is takes_slowly or receiver.left.wait(10)
        poster.close()

    @pytest.mark.parametrize("behave", BEHAVIOURS)
    @pytest.mark.timeout(30)
    def test_the_webhook_tries_again_later(self, behave: Any) -> None:
        with Dripping(behave) as receiver:
            hook = Webhook(
                Settings(webhook_url=receiver.url, webhook_secret=SECRET, webhook_timeout_s=0.5, webhook_body_max=2**23)
            )
            event = {"type": "custom", "at": 1, "account": "ann", "session": "s", "data": {"fill": "x" * 4 * 2**20}}
            with pytest.raises(Retry, match="no answer within"):
                hook.deliver([read(0, "1-0", orjson.dumps(event))])
            hook.poster.close()

    def test_a_long_answer_is_not_kept(self) -> None:
        def endless(connection: socket.socket, over: threading.Event) -> None:
            connection.recv(65_536)
            connection.sendall(HEAD.replace(b"100000", b"1000000000") + b"\r\n")
            while not over.is_set():
                connection.sendall(b"x" * 65_536)

        poster = Poster(20)
        with Dripping(endless) as receiver:
            answer = poster.post(receiver.url, b"{}", {})
            assert answer.status == 200
            assert len(answer.body) == 64 * 1024
            assert receiver.left.wait(10)
        poster.close()


class TestSinks:
    def test_each_has_a_queue_and_processes_of_its_own(self, single: Server, prefix: str, tmp_path: Path) -> None:
        run = plant(
            single.url, single.url, prefix, lake_dir=str(tmp_path), webhook_url="http://h/", webhook_secret=SECRET
        )
        queues = {job: run.queue_of(job).name for job in jobs(run.settings)}
        exports = {job: name for job, name in queues.items() if job.startswith("export-")}
        assert len(exports) == len(set(exports.values())) == 2
        assert not set(exports.values()) & {name for job, name in queues.items() if job not in exports}
        commands = [part._command[3:] for part in deployment._workers(run.settings)]
        assert [command for command in commands if command[0] == "exporter"] == [
            ["exporter", "lake"],
            ["exporter", "webhook"],
        ]
        assert ["asker"] in commands
        run.close()

    def test_nothing_waits_where_nothing_is_configured(self) -> None:
        names = [part.name for part in deployment._workers(Settings())]
        assert not [name for name in names if name.startswith("exporter")]

    @pytest.mark.timeout(90)
    def test_a_webhook_that_drips_does_not_hold_the_lake(self, single: Server, prefix: str, tmp_path: Path) -> None:
        lake = tmp_path / "lake"
        with Dripping(drips_head) as receiver:
            settings: dict[str, Any] = {
                "lake_dir": str(lake), "lake_roll_s": 0.1, "webhook_url": receiver.url, "webhook_secret": SECRET, "webhook_timeout_s": 60,
            }  # fmt: skip
            run = plant(single.url, single.url, prefix, **settings)
            env = environment(
                redis_url=single.url, log_redis_url=single.url, prefix=prefix, partitions=run.settings.partitions,
                worker_processes=1, ask_processes=0, **settings,
            )  # fmt: skip
            with _pulsegate(tmp_path, env, "worker"), _pulsegate(tmp_path, env, "scheduler"):
                for n in range(3):
                    put(run, n, "pause")
                    wait_for(lambda n=n: _handled(run, "lake") > n, "the lake has it", 40)  # type: ignore[misc]
                assert _handled(run, "webhook") == 0
            run.close()


class TestAsks:
    """Audits and erasures."""

    def test_of_one_token_few_wait_and_of_all_not_many(self, single: Server, prefix: str, tmp_path: Path) -> None:
        with ApiProcess(single.url, tmp_path, prefix=prefix, ask_wait_s=0, ask_queue=6, ask_token_max=4) as api:
            tokens = [service("read"), service("read", "signals"), service("read", "admin")]
            answers = [[api.get("/v1/audit/blocks", token=token) for _ in range(20)] for token in tokens]
            assert [[a.status_code for a in each].count(202) for each in answers] == [4, 2, 0]
            refused = answers[0][-1]
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) > 0
            assert "PULSEGATE_ASK_TOKEN_MAX" in refused.text
            assert "PULSEGATE_ASK_QUEUE" in answers[1][-1].text
            # An erasure is the same kind of work.
            assert api.request("DELETE", "/v1/accounts/ann", token=tokens[2]).status_code == 429

    def test_waiting_for_an_answer_opens_no_connections(self, single: Server, prefix: str, tmp_path: Path) -> None:
        with Redis.from_url(single.url) as client, ApiProcess(single.url, tmp_path, prefix=prefix, ask_wait_s=1) as api:

            def opened() -> int:
                info: Any = client.info("stats")
                return int(info["total_connections_received"])

            before = opened()
            answers = [api.get("/v1/audit/blocks", token=service("read")).status_code for _ in range(2)]
            assert answers == [202, 202]
            assert opened() - before <= 1

    @pytest.mark.timeout(120)
    def test_sixty_audits_take_no_tenure_away(self, single: Server, prefix: str, tmp_path: Path) -> None:
        """Every job goes on working while a worker is busy with what was asked."""
        run = plant(single.url, single.url, prefix)
        env = environment(
            redis_url=single.url,
            log_redis_url=single.url,
            prefix=prefix,
            partitions=run.settings.partitions,
            worker_processes=2,
        )
        held = run.keys.prefix + ":held"
        with (
            ApiProcess(single.url, tmp_path, prefix=prefix, ask_wait_s=0) as api,
            _pulsegate(tmp_path, env, "worker"),
            _pulsegate(tmp_path, env, "scheduler"),
            ThreadPoolExecutor(20) as pool,
        ):
            # The asker is kept busy by a job of the test's for as long as it says.
            asks = Queue(run.keys.queue("asks"), connection=run.log)
            busy = asks.enqueue("tests.hostile.test_sharing.hold", single.url, held, job_timeout=100)
            wait_for(lambda: run.log.exists(held), "the asker is at it", 40)
            token = service("read")
            sent = list(pool.map(lambda _: api.get("/v1/audit/blocks", token=token).status_code, range(60)))
            assert set(sent) == {202, 429}
            for n in range(5):
                put(run, n, "pause")
                wait_for(lambda n=n: _handled(run, "views", 1) > n, "mirrored and handled", 40)  # type: ignore[misc]
            assert busy.get_status() == "started"
            run.log.set(held, "over")
            wait_for(lambda: not asks.count, "what was asked is done, too", 40)
        run.close()


def hold(url: str, key: str) -> dict[str, str]:
    """An RQ job that lasts until the test sets the key."""
    from redis import Redis

    with Redis.from_url(url) as client:
        client.set(key, "")
        while client.get(key) == b"":
            time.sleep(0.05)
    return {}


class TestStreams:
    """`GET /v1/trending/stream`."""

    def test_one_account_or_token_takes_no_more_than_its_share(
        self, single: Server, prefix: str, tmp_path: Path
    ) -> None:
        with (
            ApiProcess(single.url, tmp_path, prefix=prefix, streams_each_max=3, streams_max=8) as api,
            httpx.Client(base_url=api.base, timeout=10, trust_env=False) as client,
            contextlib.ExitStack() as open_,
        ):

            def opened(token: str) -> httpx.Response:
                request = client.build_request(
                    "GET", "/v1/trending/stream?kind=live", headers={"Authorization": f"Bearer {token}"}
                )
                answer = client.send(request, stream=True)
                open_.callback(answer.close)
                return answer

            def all_of(*tokens: str) -> list[int]:
                return [opened(token).status_code for token in tokens]

            # Another token of the same account is the same account.
            ann = [player("ann", ttl_s=3600 + n) for n in range(5)]
            assert all_of(*ann) == [200, 200, 200, 429, 429]
            refused = opened(ann[0])
            refused.read()
            assert "PULSEGATE_STREAMS_EACH_MAX" in refused.text
            assert int(refused.headers["retry-after"]) > 0
            assert all_of(*[service("read")] * 4) == [200, 200, 200, 429]
            assert all_of(player("bob")) == [200]
            open_.close()
            wait_for(lambda: opened(ann[0]).status_code == 200, "places are given back")


@contextlib.contextmanager
def _pulsegate(directory: Path, env: dict[str, str], part: str) -> Iterator[Child]:
    import sys

    command = [sys.executable, "-m", "engine.cli", part]
    with Child(command, directory / f"{part}.log", clean_env() | env) as child:
        yield child


def _handled(run: Any, name: str, generation: int = 0) -> int:
    return int(run.log.hget(run.keys.cursor(name, generation), "handled") or 0)
