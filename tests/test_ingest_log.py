"""`pulsegate ingest-log` from the file to the server: delivery, refusals, following, restarts, kill −9."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.cdnlog import command, options, tail
from engine.cdnlog.process import Pace
from engine.cdnlog.tail import Cutter
from engine.errors import ConfigError

START = datetime(2026, 3, 1, 20, 0, 0, tzinfo=UTC)
HEADER = "#Version: 1.0\n#Fields: date time cs-method sc-status cs-uri-stem cs-uri-query\n"
QUERY = ("--query", "account=acc", "--query", "device=dev")
REPOSITORY = Path(__file__).parent.parent

Answer = tuple[int, dict[str, str], Any]


def line(n: int, **over: str) -> str:
    """The n-th good line: an account of its own, so that none is coalesced."""
    values = {
        "date": "2026-03-01", "time": f"20:{n // 60 % 60:02}:{n % 60:02}", "method": "GET", "status": "200",
        "stem": "/vod/film/1.ts", "query": f"acc=a{n}&dev=tv",
    }  # fmt: skip
    return "\t".join((values | over).values()) + "\n"


def lines(*numbers: int) -> str:
    return "".join(map(line, numbers))


class Pulsegate:
    """A server on loopback that answers as scripted, then accepts everything."""

    def __init__(self) -> None:
        self.script: deque[Callable[[list[Any]], Answer | None]] = deque()
        self.seen: list[list[dict[str, Any]]] = []
        self.sizes: list[int] = []
        self.headers: list[dict[str, str]] = []
        self.accepted: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    outer._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # A thread is joined at the end: a client that left its connection open would show.
        self._server.daemon_threads = False
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["content-length"]))
        signals = json.loads(body)
        self.seen.append(signals)
        self.sizes.append(len(body))
        self.headers.append({k.lower(): v for k, v in handler.headers.items()} | {"path": handler.path})
        answer = self.script.popleft()(signals) if self.script else accept(signals)
        if answer is None:
            handler.close_connection = True
            return
        status, headers, value = answer
        if status == 200:
            self.accepted += signals
        reply = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        handler.send_response_only(status)
        for name, text in ({"Content-Length": str(len(reply))} | headers).items():
            handler.send_header(name, text)
        handler.end_headers()
        handler.wfile.write(reply)

    @property
    def accounts(self) -> list[int]:
        """The numbers of the lines accepted, in order."""
        return [int(s["account"][1:]) for s in self.accepted]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def accept(signals: list[Any]) -> Answer:
    return 200, {}, [{"decision": "allow"} for _ in signals]


def answers(status: int, value: Any = "", **headers: str) -> Callable[[list[Any]], Answer]:
    return lambda _: (status, {k.replace("_", "-"): v for k, v in headers.items()}, value)


def refuses(field: str, message: str = "no good", status: int = 400) -> Callable[[list[Any]], Answer]:
    return answers(status, {"error": {"code": "invalid", "message": message, "field": field}})


def hangs_up(_: list[Any]) -> None:
    return None


class Steps(Pace):
    """A clock that moves only while something waits. Each wait runs the next step; after the last: stopped."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        super().__init__()
        self._steps = deque(steps)
        self._now = 0.0
        self.waits: list[float] = []

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def now(self) -> float:
        return self._now

    def wait(self, seconds: float, fd: int | None = None) -> None:
        self.waits.append(seconds)
        self._now += seconds
        if self._steps:
            self._steps.popleft()()
        else:
            self.stopped = True


def nothing() -> None:
    pass


@pytest.fixture
def server() -> Iterator[Pulsegate]:
    pulsegate = Pulsegate()
    yield pulsegate
    pulsegate.close()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PULSEGATE_TOKEN", "service-token")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def parse(*argv: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    options.add_arguments(parser)
    return parser.parse_args([*QUERY, *map(str, argv)])


class Run:
    """One run in this process: exit code, summary, and what it said."""

    def __init__(self, capsys: pytest.CaptureFixture[str], pace: Pace | None, *argv: object) -> None:
        self.pace = pace or Steps(*[nothing] * 100)
        self.code = command.run(parse(*argv), self.pace)
        out, self.said = capsys.readouterr()
        *self.printed, last = out.splitlines()
        self.summary = json.loads(last)
        counts = self.summary
        parts = ("signals", "coalesced", "skipped", "bad", "undelivered")
        assert counts["lines"] == sum(counts[p] for p in parts)

    def __getitem__(self, name: str) -> Any:
        return self.summary[name]


@pytest.fixture
def ingest(capsys: pytest.CaptureFixture[str], server: Pulsegate) -> Callable[..., Run]:
    return lambda *argv, pace=None: Run(capsys, pace, "--url", server.url, *argv)


Ingest = Callable[..., Run]


def kept(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


# Delivery


def test_a_log_is_delivered_and_every_line_accounted_for(server: Pulsegate, log: Path, ingest: Ingest) -> None:
    late = line(1, time="20:00:02")
    log.write_text(HEADER + lines(1, 2) + late + line(3, status="404") + "garbage\n\n" + line(4, query="-") + line(5))
    run = ingest(log)
    assert run.code == 0
    assert [(s["account"], s["at"]) for s in server.accepted] == [
        (f"a{n}", int(START.timestamp() + s) * 1000) for n, s in ((1, 2), (2, 2), (5, 5))
    ]
    assert {k: run[k] for k in ("lines", "signals", "coalesced", "skipped", "bad")} == {
        "lines": 7, "signals": 3, "coalesced": 1, "skipped": 1, "bad": 2,
    }  # fmt: skip
    assert run["bad_by"] == {"field_count": 1, "no_account": 1}
    assert run["skipped_by"] == {"status": 1}
    assert server.headers[0]["authorization"] == "Bearer service-token"
    assert server.headers[0]["path"] == "/v1/signals"

    bad = Path(f"{log}.bad")
    assert [(b["line_number"], b["reason"], b["line"]) for b in kept(bad)] == [
        (7, "field_count", "garbage"), (9, "no_account", line(4, query="-").rstrip("\n")),
    ]  # fmt: skip
    assert stat.S_IMODE(bad.stat().st_mode) == 0o600
    assert f"2 bad lines kept in {bad}" in run.said


def test_batches_respect_the_limits_of_the_server(server: Pulsegate, log: Path, ingest: Ingest) -> None:
    log.write_text(HEADER + lines(*range(1200)))
    assert ingest(log)["signals"] == 1200
    assert server.accounts == list(range(1200))
    assert max(map(len, server.seen)) <= 500
    assert max(server.sizes) <= 60_000


def test_gzip_crlf_and_a_last_line_without_newline(server: Pulsegate, tmp_path: Path, ingest: Ingest) -> None:
    path = tmp_path / "E123.2026-03-01-20.gz"
    path.write_bytes(gzip.compress((HEADER + lines(1, 2, 3)).replace("\n", "\r\n").rstrip().encode()))
    assert ingest(path)["signals"] == 3
    assert server.accounts == [1, 2, 3]


def test_a_torn_gzip_delivers_what_it_holds_and_fails(server: Pulsegate, tmp_path: Path, ingest: Ingest) -> None:
    path = tmp_path / "log.gz"
    path.write_bytes(gzip.compress((HEADER + lines(1, 2)).encode()) + gzip.compress(lines(3).encode())[:-12])
    run = ingest(path)
    assert run.code == 1
    assert "cannot be read on" in run.said
    assert server.accounts[:2] == [1, 2]


def test_a_missing_file_is_an_error(log: Path, ingest: Ingest) -> None:
    run = ingest(log)
    assert run.code == 1
    assert "no such file" in run.said


def test_dry_run_prints_signals_and_leaves_no_trace(server: Pulsegate, log: Path, ingest: Ingest) -> None:
    log.write_text(HEADER + lines(1, 2) + "garbage\n")
    run = ingest(log, "--dry-run", "--checkpoint", log.with_suffix(".checkpoint"))
    assert [json.loads(text)["account"] for text in run.printed] == ["a1", "a2"]
    assert '"reason": "field_count"' in run.said
    assert server.seen == []
    assert [p.name for p in log.parent.iterdir()] == [log.name]


def test_blocks_are_counted(server: Pulsegate, log: Path, ingest: Ingest) -> None:
    server.script.append(answers(200, [{"decision": "allow"}, {"decision": "block"}]))
    log.write_text(HEADER + lines(1, 2))
    assert ingest(log)["blocked"] == 1


def test_a_line_without_end_is_kept_in_pieces(
    server: Pulsegate, log: Path, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "LINE_MAX", 1000)
    monkeypatch.setattr(tail, "CHUNK", 700)
    endless = "x" * 3000 + line(9)
    log.write_text(HEADER + line(1) + endless + line(2))
    assert ingest(log)["bad_by"].keys() == {"too_long"}
    assert server.accounts == [1, 2]
    pieces = kept(Path(f"{log}.bad"))
    assert "".join(p["line"] for p in pieces) + "\n" == endless
    assert {p["line_number"] for p in pieces} == {4}


# Standard input


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """A pipe in place of standard input; writing "" closes it."""
    reading, writing = os.pipe()
    pipe = os.fdopen(reading, "rb")
    monkeypatch.setattr(sys, "stdin", pipe)

    def write(text: str) -> None:
        if text:
            os.write(writing, text.encode())
        else:
            os.close(writing)

    yield write
    pipe.close()


def test_standard_input_keeps_bad_lines_on_standard_error(
    server: Pulsegate, ingest: Ingest, stdin: Callable[[str], None]
) -> None:
    stdin(HEADER + lines(1) + "garbage\n" + line(2).rstrip("\n"))
    stdin("")
    run = ingest("-")
    assert server.accounts == [1, 2]
    assert json.loads(run.said.splitlines()[0])["line"] == "garbage"


def test_a_slow_pipe_does_not_hold_signals_back(
    server: Pulsegate, ingest: Ingest, stdin: Callable[[str], None]
) -> None:
    stdin(HEADER + lines(1))
    before: list[list[int]] = []

    def later() -> None:
        before.append(server.accounts)
        stdin(lines(2))

    run = ingest("-", "--linger-s", "3", pace=Steps(nothing, later, nothing, lambda: stdin("")))
    assert before == [[1]]
    assert server.accounts == [1, 2]
    assert run.pace.waits[0] == 3


# Trouble with the server


def test_it_tries_again_and_honours_retry_after(server: Pulsegate, log: Path, ingest: Ingest) -> None:
    log.write_text(HEADER + lines(1, 2))
    server.script += [
        answers(503), answers(429, "", Retry_After="7"), hangs_up, answers(500, "oops", Retry_After="soon"),
        answers(503, "", Retry_After="999999"),
    ]  # fmt: skip
    run = ingest(log)
    assert run.code == 0
    assert run.pace.waits == [0.5, 7, 2, 4, 300]
    assert run["retries"] == 5
    assert server.accounts == [1, 2]
    assert all(seen == server.seen[0] for seen in server.seen), "the same ids on every attempt"


def test_it_gives_up_after_the_retries_and_says_so(server: Pulsegate, log: Path, ingest: Ingest) -> None:
    log.write_text(HEADER + lines(1, 2, 3))
    checkpoint = log.with_suffix(".checkpoint")
    server.script += [accept, *[answers(503)] * 9]
    run = ingest(log, "--retries", 2, "--batch-size", 1, "--checkpoint", checkpoint)
    assert run.code == 1
    assert run.pace.waits == [0.5, 1]
    assert f"cannot deliver to {server.url}/v1/signals (3 attempts): it answers 503" in run.said
    assert (run["signals"], run["undelivered"]) == (1, 2)
    server.script.clear()
    assert ingest(log, "--checkpoint", checkpoint)["signals"] == 2
    assert server.accounts == [1, 2, 3]


def test_nobody_listens(log: Path, ingest: Ingest, server: Pulsegate) -> None:
    log.write_text(HEADER + lines(1))
    run = ingest(log, "--url", "http://127.0.0.1:9", "--retries", 1)
    assert run.code == 1
    assert len(run.pace.waits) == 1


def test_following_it_tries_for_ever(server: Pulsegate, log: Path, ingest: Ingest) -> None:
    log.write_text(HEADER + lines(1))
    server.script += [answers(503)] * 20
    run = ingest(log, "--follow", "--retries", 1, pace=Steps(*[nothing] * 21))
    assert run.code == 0
    assert server.accounts == [1]
    assert max(run.pace.waits) == 30


def test_stopped_it_tries_one_last_time(server: Pulsegate, log: Path, ingest: Ingest) -> None:
    log.write_text(HEADER + lines(1))
    server.script += [answers(503)] * 20
    run = ingest(log, "--follow", pace=Steps(nothing))
    assert run.code == 1
    assert run["undelivered"] == 1
    assert len(server.seen) == 2


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (refuses("", "no token", 401), "answers 401 no token"),
        (refuses("", "scope", 403), "answers 403 scope"),
        (answers(301, "", Location="/elsewhere"), "answers 301"),
        (answers(404, "<html>"), "answers 404"),
        (answers(200, "<html>"), "no list of decisions"),
        (answers(200, {"ok": True}), "no list of decisions"),
    ],
)
def test_what_cannot_get_better_ends_the_run(
    server: Pulsegate, log: Path, ingest: Ingest, answer: Any, says: str
) -> None:
    log.write_text(HEADER + lines(1))
    server.script.append(answer)
    run = ingest(log)
    assert run.code == 1
    assert says in run.said
    assert run.pace.waits == []


def test_a_refused_item_is_kept_and_the_rest_delivered(server: Pulsegate, log: Path, ingest: Ingest) -> None:
    log.write_text(HEADER + lines(1, 2, 3, 4))
    server.script += [refuses("[1].device", "device is odd"), refuses("[2].content")]
    run = ingest(log)
    assert run.code == 0
    assert server.accounts == [1, 3]
    assert [(b["line_number"], b["reason"], b["detail"], b["line"]) for b in kept(Path(f"{log}.bad"))] == [
        (4, "refused", "device is odd", line(2).rstrip("\n")), (6, "refused", "no good", line(4).rstrip("\n")),
    ]  # fmt: skip
    assert run["bad_by"] == {"refused": 2}


@pytest.mark.parametrize("field", ["body", "[99].device", "", "device"])
@pytest.mark.parametrize("status", [400, 413, 422])
def test_an_item_that_is_not_named_is_found(
    server: Pulsegate, log: Path, ingest: Ingest, field: str, status: int
) -> None:
    def judge(signals: list[Any]) -> Answer:
        wrong = any(s["account"] == "a6" for s in signals)
        return refuses(field, status=status)(signals) if wrong else accept(signals)

    server.script += [judge] * 50
    log.write_text(HEADER + lines(*range(10)))
    assert ingest(log)["bad"] == 1
    assert server.accounts == [n for n in range(10) if n != 6]


# Following


def append(path: Path, text: str) -> Callable[[], object]:
    def write() -> None:
        with path.open("a") as file:
            file.write(text)

    return write


def test_following_a_growing_file(server: Pulsegate, log: Path, ingest: Ingest) -> None:
    half = line(2)
    steps = Steps(
        lambda: log.write_text(HEADER + lines(1) + half[:20]), append(log, half[20:40]), append(log, half[40:]),
        append(log, lines(3)), nothing,
    )  # fmt: skip
    run = ingest(log, "--follow", pace=steps)
    assert run.code == 0
    assert server.accounts == [1, 2, 3]
    assert run["bad"] == 0


def test_following_through_rotation(server: Pulsegate, log: Path, ingest: Ingest) -> None:
    old = log.with_name("access.log.1")
    log.write_text(HEADER + lines(1))

    def recreate() -> None:
        # Another order of fields, and the writer has not yet been told to leave the old file.
        log.write_text("#Fields: cs-uri-query cs-uri-stem sc-status cs-method time date\n")
        append(log, "acc=a5&dev=tv\t/vod/film/1.ts\t200\tGET\t20:00:05\t2026-03-01\n")()

    steps = Steps(
        nothing, append(log, lines(2)), lambda: log.rename(old), recreate, append(old, lines(3)),
        append(old, line(4).rstrip("\n")),
        *[nothing] * 4,
    )  # fmt: skip
    run = ingest(log, "--follow", pace=steps)
    assert server.accounts == [1, 2, 3, 4, 5]
    assert run["bad"] == 0


def test_following_through_truncation(server: Pulsegate, log: Path, ingest: Ingest) -> None:
    log.write_text(HEADER + lines(1, 2))

    def cut(*numbers: int) -> Callable[[], object]:
        # The same inode; the second time the file has outgrown its former length before anyone looks.
        return lambda: log.write_text(HEADER + lines(*numbers))

    ingest(log, "--follow", pace=Steps(nothing, cut(3), nothing, cut(4, 5, 6), nothing))
    assert server.accounts == [1, 2, 3, 4, 5, 6]


# Checkpoints


def test_a_restart_goes_on_where_the_server_acknowledged(server: Pulsegate, log: Path, ingest: Ingest) -> None:
    checkpoint = log.with_suffix(".checkpoint")
    log.write_text(HEADER + lines(1, 2) + "garbage\n" + line(3)[:10])
    ingest(log, "--checkpoint", checkpoint)
    assert server.accounts == [1, 2]
    append(log, line(3)[10:] + "rubbish\n")()
    # The header with the order of the fields is not read again.
    ingest(log, "--checkpoint", checkpoint)
    assert server.accounts == [1, 2, 3]
    assert [b["line_number"] for b in kept(Path(f"{log}.bad"))] == [5, 7]
    assert ingest(log, "--checkpoint", checkpoint)["lines"] == 0


@pytest.mark.parametrize("follow", [(), ("--follow",)])
def test_a_file_rotated_in_the_meantime_is_finished_first(
    server: Pulsegate, log: Path, ingest: Ingest, follow: tuple[str, ...]
) -> None:
    checkpoint = log.with_suffix(".checkpoint")
    log.write_text(HEADER + lines(1))
    ingest(log, "--checkpoint", checkpoint)
    append(log, lines(2))()
    log.rename(log.with_name("access.log-20260301"))
    log.write_text(HEADER + lines(3))
    run = ingest(log, "--checkpoint", checkpoint, *follow, pace=Steps(*[nothing] * 5) if follow else None)
    assert run.code == 0
    assert server.accounts == [1, 2, 3]
    append(log, lines(4))()
    ingest(log, "--checkpoint", checkpoint)
    assert server.accounts == [1, 2, 3, 4]


def test_after_a_rotation_the_old_file_is_needed_no_more(server: Pulsegate, log: Path, ingest: Ingest) -> None:
    checkpoint, old = log.with_suffix(".checkpoint"), log.with_name("access.log.1")
    log.write_text(HEADER + lines(1))
    rotate = (lambda: log.rename(old), log.touch, nothing, nothing, old.unlink)
    ingest(log, "--follow", "--checkpoint", checkpoint, pace=Steps(nothing, *rotate))
    append(log, HEADER + lines(2))()
    run = ingest(log, "--checkpoint", checkpoint)
    assert server.accounts == [1, 2]
    assert run.said == ""


def test_another_file_with_the_same_inode_is_read_from_its_beginning(
    server: Pulsegate, log: Path, ingest: Ingest
) -> None:
    checkpoint = log.with_suffix(".checkpoint")
    log.write_text(HEADER + lines(1))
    ingest(log, "--checkpoint", checkpoint)
    log.write_text(HEADER + lines(2, 3))
    run = ingest(log, "--checkpoint", checkpoint)
    assert server.accounts == [1, 2, 3]
    assert "starting at the beginning" in run.said


def test_a_gzip_resumes_too(server: Pulsegate, tmp_path: Path, ingest: Ingest) -> None:
    path, checkpoint = tmp_path / "log.gz", tmp_path / "checkpoint"
    path.write_bytes(gzip.compress((HEADER + lines(*range(10))).encode()))
    server.script += [accept, answers(401)]
    assert ingest(path, "--checkpoint", checkpoint, "--batch-size", 4).code == 1
    assert ingest(path, "--checkpoint", checkpoint).code == 0
    assert server.accounts == list(range(10))


@pytest.mark.parametrize("content", ["", "{}", '{"inode": "x"}', "[]", "\x00"])
def test_a_file_that_is_no_checkpoint_is_refused(log: Path, ingest: Ingest, content: str) -> None:
    checkpoint = log.with_suffix(".checkpoint")
    checkpoint.write_text(content)
    log.write_text(HEADER)
    with pytest.raises(ConfigError, match="is no checkpoint"):
        ingest(log, "--checkpoint", checkpoint)


COMMAND = (
    "import argparse, sys; from engine.cdnlog import command, options; p = argparse.ArgumentParser(); "
    "options.add_arguments(p); sys.exit(command.run(p.parse_args()))"
)


def start(server: Pulsegate, *argv: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COMMAND, *QUERY, "--url", server.url, *map(str, argv)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("arrived", [True, False], ids=["answer lost", "request lost"])
def test_kill_9_skips_nothing_and_repeats_one_batch_at_most(
    server: Pulsegate, log: Path, ingest: Ingest, arrived: bool
) -> None:
    checkpoint = log.with_suffix(".checkpoint")
    log.write_text(HEADER + lines(*range(40)))
    options = (log, "--checkpoint", checkpoint, "--batch-size", 10)

    def kill(signals: list[Any]) -> Answer | None:
        victim.kill()
        victim.wait()
        return accept(signals) if arrived else None

    server.script += [accept, accept, kill]
    victim = start(server, *options)
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL
    assert server.accounts == list(range(30 if arrived else 20))

    assert ingest(*options).code == 0
    again = server.seen[3]
    assert again == server.seen[2], "the batch under way, with the same request ids"
    assert server.accounts == [*range(30), *range(20, 40)] if arrived else server.accounts == [*range(40)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_flushes_and_ends_well(server: Pulsegate, log: Path, number: signal.Signals) -> None:
    log.write_text(HEADER + lines(1, 2))

    def stop(signals: list[Any]) -> Answer:
        process.send_signal(number)
        return accept(signals)

    # The second line is read and waits for more; the first one's request is under way.
    server.script.append(stop)
    process = start(server, log, "--follow", "--batch-size", 1, "--linger-s", 60)
    out, said = process.communicate()
    assert process.returncode == 0, said
    assert json.loads(out)["signals"] == 2
    assert server.accounts == [1, 2]


def test_a_signal_ends_the_wait_that_follows() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Pace() as pace:
        signal.raise_signal(signal.SIGTERM)
        assert pace.stopped
        pace.wait(3600)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_dry_run_into_head_ends_quietly(server: Pulsegate, log: Path) -> None:
    log.write_text(HEADER + lines(*range(600)))
    process = start(server, log, "--dry-run")
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, said = process.communicate()
    assert process.returncode == 1
    assert said == "ingest-log: standard output was closed\n"


# Options


@pytest.mark.parametrize(
    ("argv", "option"),
    [
        (["--path", "("], "--path"),
        (["--path", "(?P<colour>.)"], "--path"),
        (["--manifest", "*"], "--manifest"),
        (["--map", "colour=x"], "--map"),
        (["--map", "account=x"], "--map"),
        (["--query", "account"], "--query"),
        (["--cookie", "=x"], "--cookie"),
        (["--retries", "-1"], "--retries"),
        (["--batch-size", "501"], "--batch-size"),
        (["--coalesce-s", "nan"], "--coalesce-s"),
        (["--ttl-s", "0"], "--ttl-s"),
        (["--url", "ftp://x"], "--url"),
        (["--url", "127.0.0.1:8080"], "--url"),
        (["-", "--checkpoint", "x"], "--checkpoint"),
        (["x.gz", "--follow"], "--follow"),
        (["--token-file", "/nowhere"], "--token-file"),
        (["--jwt-secret-file", "/nowhere"], "--jwt-secret-file"),
        (["--jwt-secret-file", "/dev/null"], "--jwt-secret-file"),
    ],
)
def test_a_bad_option_is_named(argv: list[str], option: str) -> None:
    with pytest.raises(ConfigError) as caught:
        command.run(parse(*argv), Steps())
    assert caught.value.field == option
    assert option in caught.value.message


def test_the_token_may_come_from_a_file_and_must_come_from_somewhere(
    server: Pulsegate, log: Path, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = log.with_name("token")
    file.write_text("from-a-file\n")
    log.write_text(HEADER + lines(1))
    ingest(log, "--token-file", file)
    assert server.headers[0]["authorization"] == "Bearer from-a-file"
    monkeypatch.delenv("PULSEGATE_TOKEN")
    with pytest.raises(ConfigError, match="PULSEGATE_TOKEN"):
        ingest(log)


def test_a_bad_file_that_cannot_be_written_ends_the_run(log: Path, ingest: Ingest) -> None:
    log.write_text("garbage\n")
    run = ingest(log, "--bad", log.parent / "nowhere" / "bad")
    assert run.code == 1
    assert "--bad" in run.said


# Anything at all


@given(st.binary(max_size=300), st.integers(1, 50))
def test_lines_do_not_depend_on_how_they_arrive(data: bytes, chunk: int) -> None:
    cutter = Cutter()
    found = []
    for at in range(0, len(data), chunk):
        found += cutter.feed(data[at : at + chunk])
        assert cutter.seen == min(at + chunk, len(data))
    found += cutter.rest()
    expected = data.split(b"\n") if data else []
    if expected and not expected[-1]:
        expected.pop()
    assert [one.text.encode(errors="surrogateescape") for one in found] == expected
    assert [one.number for one in found] == list(range(1, len(expected) + 1))
    for one in found:
        raw = one.text.encode(errors="surrogateescape")
        assert data[one.end - len(raw) - 1 : one.end] == raw + b"\n" or data[one.end - len(raw) : one.end] == raw


_junk = st.binary(max_size=60).map(lambda raw: raw.replace(b"\n", b"").replace(b"\r", b"").replace(b"#", b""))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.none() | _junk, max_size=30))
def test_good_lines_survive_bad_ones_and_bad_ones_are_kept(tmp_path: Path, content: list[bytes | None]) -> None:
    log, bad = tmp_path / "log", tmp_path / "bad"
    bad.unlink(missing_ok=True)
    log.write_bytes(
        HEADER.encode() + b"".join(line(n).encode() if raw is None else raw + b"\n" for n, raw in enumerate(content))
    )
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        code = command.run(parse(log, "--dry-run", "--bad", bad), Steps())
    *signals, summary = map(json.loads, out.getvalue().splitlines())
    assert code == 0
    assert {s["account"] for s in signals} >= {f"a{n}" for n, raw in enumerate(content) if raw is None}
    counts = {name: summary[name] for name in ("signals", "coalesced", "skipped", "bad")}
    assert summary["lines"] == sum(counts.values())
    lines_bad = [b["line"].encode(errors="surrogateescape") for b in kept(bad)] if bad.exists() else []
    assert len(lines_bad) == summary["bad"]
    # In order, byte for byte.
    rest = iter([raw for raw in content if raw is not None])
    assert all(any(one == raw for raw in rest) for one in lines_bad)
