"""Locust's entry: users, the shape of the evening, thresholds, the achieved rate beside the target. docs/load.md is the guide.

    python -m locust -f loadtest/locustfile.py --host http://… --shape premiere --players 2000

`make load` (loadtest/load.py) starts a deployment for it. Workers want the deployment's secret (PULSEGATE_JWT_SECRET, or
PULSEGATE_JWT_SECRET_FILE), with which they sign their players' tokens.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import gevent
from locust import LoadTestShape, events
from locust.html import get_html_report
from locust.runners import WORKER_REPORT_INTERVAL, MasterRunner, WorkerRunner

from loadtest import locust_goals as goals
from loadtest import locust_page, locust_report
from loadtest.locust_outage import Outage, ready
from loadtest.locust_shapes import MINUTES, SHAPES, Moment, moment, outages
from loadtest.locust_tally import END, Tally, percentile
from loadtest.locust_users import CROWDS, OUTAGE, Crowd, Stage, users_for

# Locust takes the user classes from this module's names.
Players, Checkers, EdgeRequests, EventSenders, Dashboards = CROWDS

MAX_MS = "heartbeat:p50=50,p95=250,p99=500 heartbeat-due:p99=1000 check:p99=500 edge:p99=500 events:p99=1000"
_PRINT_EVERY_S = 5.0
# A mass exit is meant to be sudden.
logging.getLogger("locust.runners").addFilter(lambda record: "spawn rate is very high" not in record.getMessage())
_TICK_S = 0.5
_WAIT_S = 60.0
"""For the API to be back after an outage; then what fails counts again."""
_BEGIN, _MOMENT = "begin", "moment"
"""Messages from the master to all generators."""


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def arguments(parser: Any) -> None:
    add = parser.add_argument
    add("--shape", choices=list(SHAPES), default="final", env_var="LOAD_SHAPE", help="how the evening goes")
    add("--players", type=int, default=2000, env_var="LOAD_PLAYERS", help="at the peak")
    add("--minutes", type=float, default=0.0, env_var="LOAD_MINUTES", help="how long; 0: as long as the shape wants")
    add("--people", type=int, default=20, env_var="LOAD_PEOPLE", help="players that one locust user drives")
    add("--seed", type=int, default=1, env_var="LOAD_SEED", help="of who does what when")
    add("--max-fail-ratio", type=float, default=0.001, env_var="LOAD_MAX_FAIL_RATIO", help="of all requests")
    add("--min-achieved", type=float, default=0.98, env_var="LOAD_MIN_ACHIEVED", help="achieved ÷ target rate")
    add(
        "--max-ms", default=MAX_MS, env_var="LOAD_MAX_MS", include_in_web_ui=False,
        help="percentiles: 'heartbeat:p50=50,p99=500 check:p99=500'",
    )  # fmt: skip
    add(
        "--outage-command", default="", env_var="LOAD_OUTAGE_COMMAND", include_in_web_ui=False,
        help="makes the outage of a shape for as long as it runs; empty: the operator makes it",
    )  # fmt: skip


def checked(options: Any) -> goals.Limits:
    """The limits. Raises ValueError that names the argument."""
    for name, value, least in (("--players", options.players, 1), ("--people", options.people, 1)):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    if options.minutes < 0:
        raise ValueError(f"--minutes: expected a time, got {options.minutes:g}")
    for name, value in (("--max-fail-ratio", options.max_fail_ratio), ("--min-achieved", options.min_achieved)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: expected a ratio from 0 to 1, got {value:g}")
    if users_for(options.players, options.people) < len(CROWDS):
        raise ValueError(f"--players: {options.players} are too few for crowds of --people {options.people}")
    return goals.limits(options.max_ms)


def secret() -> str:
    """Raises ValueError if there is none."""
    file = os.environ.get("PULSEGATE_JWT_SECRET_FILE", "")
    try:
        found = Path(file).read_text(encoding="utf-8").strip() if file else os.environ.get("PULSEGATE_JWT_SECRET", "")
    except OSError as error:
        raise ValueError(f"PULSEGATE_JWT_SECRET_FILE: {error}") from None
    if not found:
        raise ValueError("PULSEGATE_JWT_SECRET: the deployment's secret is missing; players' tokens are signed with it")
    return found


class Run:
    """One process's part in the run: it counts; the master (or the only process) also judges and shows."""

    def __init__(self, environment: Any, limits: goals.Limits) -> None:
        self.environment, self._limits = environment, limits
        self.options = environment.parsed_options
        self.tally = Tally()
        self.outage = Outage(self.options.outage_command, lambda: ready(environment.host))
        self.began = time.monotonic()

    @property
    def away(self) -> frozenset[str]:
        return outages(self.options.shape)

    def _measured(self, name: str, percent: float) -> float | None:
        if name == goals.DUE:
            return percentile(self.tally.total(self.away).from_due, percent)
        for (entry, _), stats in list(self.environment.stats.entries.items()):
            if entry == name and stats.num_requests:
                return float(stats.get_response_time_percentile(percent / 100))
        return None

    def verdicts(self) -> list[goals.Verdict]:
        entries = [
            each for (name, _), each in list(self.environment.stats.entries.items()) if not name.endswith(OUTAGE)
        ]
        failed, asked = sum(each.num_failures for each in entries), sum(each.num_requests for each in entries)
        # A false block counts whenever it comes, in an outage too.
        everything, counted = self.tally.total(), self.tally.total(self.away)
        return [
            goals.judge_achieved(counted.answered, counted.due, self.options.min_achieved),
            goals.judge_failures(failed, asked, self.options.max_fail_ratio),
            goals.judge_count("false blocks", everything.false_blocks),
            goals.judge_count("degraded answers", counted.degraded),
            *goals.judge_latency(self._limits, self._measured),
        ]

    def told(self) -> dict[str, Any]:
        behind_s = 1
        if isinstance(self.environment.runner, MasterRunner):
            behind_s = 1 + math.ceil(WORKER_REPORT_INTERVAL)
        elif self.tally.phase != END:
            self.tally.advance(time.monotonic())
        return locust_report.document(self.tally, self.options.shape, self.away, self.verdicts(), behind_s)

    def print_lines(self) -> None:
        while True:
            gevent.sleep(_PRINT_EVERY_S)
            if self.tally.phase and self.tally.phase != END:
                print(locust_report.line(self.told(), time.monotonic() - self.began), flush=True)

    def finish(self) -> None:
        """Judges: sets the exit code, prints the phases and what was missed, and puts them into the report."""
        verdicts = self.verdicts()
        told = self.told()
        lost = goals.missed(verdicts)
        print("\n" + locust_report.summary(told), flush=True)
        for verdict in lost:
            print(f"threshold missed: {verdict}", file=sys.stderr, flush=True)
        broken = [each["msg"] for each in self.environment.runner.exceptions.values()]
        for each in broken:
            print(f"the generator itself failed: {each}", file=sys.stderr, flush=True)
        self.environment.process_exit_code = 1 if lost or broken else 0
        if self.options.html_file:
            path = Path(self.options.html_file)
            page = get_html_report(self.environment, show_download_link=False)
            path.write_text(locust_report.into_report(page, locust_report.block(told, verdicts)), encoding="utf-8")
            print(f"report: {path.resolve()}", flush=True)


class Evening(LoadTestShape):
    """Follows `--shape`: tells all processes what the moment is, and Locust how many users there are."""

    run: Run
    _ticked = _waited_s = 0.0

    def reset_time(self) -> None:
        """A run begins: perhaps not the first, for the web page can start another."""
        super().reset_time()  # type: ignore[no-untyped-call]
        self.run.began = self._ticked = time.monotonic()
        self._waited_s = 0.0
        self.run.tally.reset()
        self.run.environment.runner.send_message(_BEGIN)

    def tick(self) -> tuple[int, float] | None:
        run, options = self.run, self.run.options
        minutes = options.minutes or MINUTES[options.shape]
        passed, self._ticked = time.monotonic() - self._ticked, time.monotonic()
        now = moment(options.shape, self._ticked - run.began, 60 * minutes, options.players)
        if now is None:
            run.outage.end()
            return None
        if run.outage.hold(now.outage) and not now.outage and self._waited_s < _WAIT_S:
            # The API is not back yet: the outage goes on, and the rest of the evening waits.
            now = dataclasses.replace(now, phase=run.tally.phase, outage=True)
            run.began += passed
            self._waited_s += passed
        run.environment.runner.send_message(_MOMENT, dataclasses.asdict(now))
        if isinstance(run.environment.runner, MasterRunner):
            run.tally.advance(time.monotonic(), now.phase)
        users = users_for(now.players, options.people)
        return users, max(1.0, abs(users - run.environment.runner.user_count))


@events.init.add_listener  # type: ignore[untyped-decorator]
def init(environment: Any, runner: Any, web_ui: Any, **_: Any) -> None:
    options, alone = environment.parsed_options, not isinstance(runner, MasterRunner | WorkerRunner)
    try:
        run = Run(environment, checked(options))
        if not isinstance(runner, MasterRunner):
            if not environment.host:
                raise ValueError("--host: the address of the deployment is missing")
            Crowd.stage = Stage(environment, run.tally, secret(), options.seed, options.people)
            runner.register_message(_BEGIN, lambda environment, msg, **_: run.tally.reset())
            runner.register_message(_MOMENT, lambda environment, msg, **_: Crowd.stage.enter(Moment(**msg.data)))
    except ValueError as error:
        print(f"locust: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    Evening.run = run
    listen(environment, run, alone)
    if not isinstance(runner, WorkerRunner):
        gevent.spawn(run.print_lines)
        if web_ui:
            locust_page.add(web_ui, run.told)


def listen(environment: Any, run: Run, alone: bool) -> None:
    """Counts begin and end with the test, travel to the master, and are judged there."""
    on = environment.events

    @on.test_start.add_listener  # type: ignore[untyped-decorator]
    def start(**_: Any) -> None:
        if not isinstance(environment.runner, MasterRunner):
            Crowd.stage.people, Crowd.stage.seed = run.options.people, run.options.seed

    @on.test_stopping.add_listener  # type: ignore[untyped-decorator]
    def stop(**_: Any) -> None:
        run.outage.end()
        run.tally.advance(time.monotonic(), END)

    if not alone:

        @on.report_to_master.add_listener  # type: ignore[untyped-decorator]
        def report(client_id: str, data: dict[str, Any]) -> None:
            run.tally.advance(time.monotonic())
            data["tally"] = run.tally.drain()

        @on.worker_report.add_listener  # type: ignore[untyped-decorator]
        def merge(client_id: str, data: dict[str, Any]) -> None:
            run.tally.merge(data["tally"])

    if not isinstance(environment.runner, WorkerRunner):

        @on.quitting.add_listener  # type: ignore[untyped-decorator]
        def finish(**_: Any) -> None:
            run.finish()
