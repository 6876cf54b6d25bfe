"""One seed on one kind of deployment, and all of them: each result is kept as JSON, so that a long run can be gone on with."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from loadtest.bench_rig import ROOT, SECRET, BenchError
from loadtest.simulator.plans import toml
from loadtest.truth.deployment import Deployment, clean, deployment
from loadtest.truth.figures import Finding
from loadtest.truth.questions import ask
from loadtest.truth.score import score
from loadtest.truth.truth import Truth


@dataclass(frozen=True)
class Size:
    """What is simulated: the same for every seed. `households` 0: the simulator's default."""

    minutes: float
    households: int

    def words(self) -> list[str]:
        """As arguments, of the simulator and of ours."""
        return ["--minutes", f"{self.minutes:g}", *(["--households", str(self.households)] if self.households else [])]

    @property
    def name(self) -> str:
        return f"{self.minutes:g}min-{self.households or 'default'}"


class Result(Struct):
    """One seed on one kind of deployment. `took_s` is real time."""

    seed: int
    on: str
    size: str
    took_s: float
    findings: dict[str, Finding]


@dataclass(frozen=True)
class Job:
    seed: int
    on: str
    size: Size
    out: Path

    @property
    def path(self) -> Path:
        return self.out / f"{self.on}-{self.seed}-{self.size.name}.json"

    def kept(self) -> Result | None:
        """The result of an earlier run, if there is one."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=Result)
        except (OSError, msgspec.DecodeError):
            return None


class Simulators:
    """The child processes under way, so that they can be ended together."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._over = False

    def run(self, command: list[str], log: Path, env: dict[str, str]) -> None:
        """Runs to its end. Raises BenchError with the end of what it said."""
        with log.open("wb") as out:
            with self._lock:
                if self._over:
                    raise BenchError("ended before it began")
                process = subprocess.Popen(
                    command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
                )
                self._running.add(process)
            try:
                status = process.wait()
            finally:
                self._running.discard(process)
        if status:
            raise BenchError(f"the simulator ended with {status}:\n{log.read_text(errors='replace')[-2_000:]}")

    def end(self) -> None:
        with self._lock:
            self._over = True
            for process in list(self._running):
                process.terminate()


def simulate(deployed: Deployment, job: Job, simulators: Simulators, only: str = "") -> Truth:
    """Runs the simulator against the deployment; what it wrote. Raises BenchError, TruthError."""
    path = deployed.directory / "truth.jsonl"
    command = [
        sys.executable, "-m", "loadtest.simulator", "--base", deployed.base, "--seed", str(job.seed), *job.size.words(),
        "--truth", str(path), "--time", "virtual", *(["--only", only] if only else []),
    ]  # fmt: skip
    env = clean(deployed.env) | {"PULSEGATE_SECRET": SECRET}
    simulators.run(command, deployed.directory / "simulator.log", env)
    return Truth.read(path)


def one(job: Job, simulators: Simulators) -> Result:
    """Deploys, simulates, asks, scores, and keeps the result. Raises BenchError, TruthError."""
    began = time.monotonic()
    with deployment(job.on, toml()) as deployed:
        truth = simulate(deployed, job, simulators)
        answers = ask(deployed, truth)
    findings = score(truth, answers, job.on)
    for finding in findings.values():
        for case in finding.cases:
            case.size = " ".join(job.size.words())
    result = Result(job.seed, job.on, job.size.name, round(time.monotonic() - began, 1), findings)
    job.out.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=job.out, delete=False) as file:
        file.write(msgspec.json.encode(result))
    Path(file.name).replace(job.path)
    return result


def every(jobs: list[Job], *, parallel: int, resume: bool) -> Iterator[Result]:
    """Their results, as they come; with `resume` those first that an earlier run has left. Raises the first job's error, after
    ending the others."""
    left = []
    for job in jobs:
        kept = job.kept() if resume else None
        if kept is None:
            left.append(job)
        else:
            yield kept
    simulators = Simulators()
    with ThreadPoolExecutor(parallel) as pool:
        waiting: set[Future[Result]] = {pool.submit(one, job, simulators) for job in left}
        try:
            while waiting:
                done, waiting = wait(waiting, return_when="FIRST_COMPLETED")
                for future in done:
                    yield future.result()
        except BaseException:
            for future in waiting:
                future.cancel()
            simulators.end()
            raise
