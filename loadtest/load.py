"""`make load`: a deployment, Locust with its live page, two minutes of an evening, a report, and an exit code.

    python -m loadtest.load --shape premiere --players 5000 --minutes 3

starts `pulsegate run` on a free port with its data in a temporary directory, and stops it afterwards. With PULSEGATE_URL and
PULSEGATE_JWT_SECRET (or PULSEGATE_JWT_SECRET_FILE) set it asks that deployment instead. Other settings of Pulsegate's are
the deployment's. Arguments that are not its own are Locust's and those of loadtest/locustfile.py; LOAD_* variables say the same.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from loadtest.bench_rig import ROOT, BenchError, Process, free_port
from loadtest.locust_outage import ready


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--report", type=Path, default=Path(".pulsegate/load.html"), help="where the HTML report goes")
    parser.add_argument("--web-port", type=int, default=8089, help="of the live page; 0: a free one")
    parser.add_argument("--stay", type=int, default=3, help="the live page stays so long after the end, s")
    parser.add_argument("--headless", action="store_true", help="no live page")
    return parser


@contextlib.contextmanager
def deployment(directory: Path) -> Iterator[tuple[str, str, int]]:
    """A deployment of its own: (address, secret, process id). Raises BenchError if it does not start."""
    secret, port = secrets.token_urlsafe(48), free_port()
    given = {name: value for name, value in os.environ.items() if name.startswith("PULSEGATE_")}
    for name in ("PULSEGATE_URL", "PULSEGATE_JWT_SECRET_FILE"):
        given.pop(name, None)
    env = {"PULSEGATE_LOG_LEVEL": "warning", **given, "PULSEGATE_JWT_SECRET": secret}
    command = [sys.executable, "-m", "engine.cli", "run", "--port", str(port), "--data", str(directory / "data")]
    process = Process(command, directory, None, env)
    base = f"http://127.0.0.1:{port}"
    process.wait_until(lambda: ready(base))
    try:
        yield base, secret, process.pid
    finally:
        process.stop()


def locust(base: str, secret: str, args: argparse.Namespace, more: Sequence[str]) -> int:
    """Runs Locust; its exit code."""
    port = args.web_port or free_port()
    command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--host", base, "--html", str(args.report.resolve()),
               "--only-summary", "--loglevel", "WARNING"]  # fmt: skip
    if args.headless:
        command += ["--headless"]
    else:
        command += ["--autostart", "--autoquit", str(args.stay), "--web-host", "127.0.0.1", "--web-port", str(port)]
        print(f"live page: http://127.0.0.1:{port}/load   Locust's own: http://127.0.0.1:{port}", flush=True)
    env = {name: value for name, value in os.environ.items() if not name.startswith("PULSEGATE_")}
    # In a session of its own, so that Ctrl-C reaches it once.
    process = subprocess.Popen(
        [*command, *more], cwd=ROOT, env=env | {"PULSEGATE_JWT_SECRET": secret}, stdin=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    return _wait(process)


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Waits for it, and passes on being asked to stop: it still judges and writes what it has."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for each in before:
            signal.signal(each, lambda number, frame: process.terminate())
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def given_secret() -> str:
    """Of the deployment that PULSEGATE_URL names. Raises ValueError if there is none."""
    file = os.environ.get("PULSEGATE_JWT_SECRET_FILE", "")
    try:
        secret = Path(file).read_text(encoding="utf-8").strip() if file else os.environ.get("PULSEGATE_JWT_SECRET", "")
    except OSError as error:
        raise ValueError(f"PULSEGATE_JWT_SECRET_FILE: {error}") from None
    if not secret:
        raise ValueError(
            "PULSEGATE_JWT_SECRET: missing; PULSEGATE_URL names a deployment, whose secret signs the tokens"
        )
    return secret


def main(argv: list[str] | None = None) -> int:
    """0: all thresholds held; 1: one was missed, or nothing started; 2: wrong use."""
    args, more = parser().parse_known_args(argv)
    args.report.parent.mkdir(parents=True, exist_ok=True)
    url = os.environ.get("PULSEGATE_URL", "")
    try:
        if url:
            return locust(url, given_secret(), args, more)
        with (
            tempfile.TemporaryDirectory(prefix="pulsegate-load-") as name,
            deployment(Path(name)) as (base, secret, pid),
        ):
            print(f"deployment: {base}", flush=True)
            outage = shlex.join([sys.executable, "-m", "loadtest.locust_outage", "--below", str(pid)])
            return locust(base, secret, args, ["--outage-command", outage, *more])
    except ValueError as error:
        print(f"load: {error}", file=sys.stderr)
        return 2
    except BenchError as error:
        print(f"load: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
