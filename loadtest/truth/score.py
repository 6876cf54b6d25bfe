"""All figures of one seed: a pure function of the truth and of what the engine answered."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from loadtest.truth.blocks import blocks
from loadtest.truth.conservation import conservation
from loadtest.truth.counts import counts
from loadtest.truth.figures import Finding
from loadtest.truth.households import homes
from loadtest.truth.matching import sittings
from loadtest.truth.positions import positions
from loadtest.truth.slots import slots
from loadtest.truth.trends import trends
from loadtest.truth.truth import Truth
from loadtest.truth.views import views


class Position(Struct):
    """`GET /v1/resume/{content}`; `item` None: 404."""

    account: str
    profile: str
    content: str
    item: dict[str, Any] | None


class Answers(Struct):
    """What the engine was asked when all was over."""

    records: list[dict[str, Any]]
    """`GET /v1/views`."""
    positions: list[Position]
    metrics: str
    """The text of `/metrics`."""
    audience_differences: list[str] | None = None
    """Lines of `pulsegate verify audience`; None: not asked."""


def score(truth: Truth, answers: Answers, on: str) -> dict[str, Finding]:
    """Topic → finding; every case names the seed and the kind of deployment (`on`)."""
    households = homes(truth)
    sat, strays = sittings(truth, households, answers.records)
    start = truth.run.start
    judged = [sitting for sitting in sat if sitting.started_at >= start]
    found = {
        "blocks": blocks(households, start),
        "slots": slots(households, judged, start),
        "positions": positions(sat, start, {(p.account, p.profile, p.content): p.item for p in answers.positions}),
        "views": views(judged, [record for record in strays if record["started_at"] >= start]),
        "counts": counts(truth, households),
        "trends": trends(truth),
        "conservation": conservation(truth, households, answers.records, answers.metrics, answers.audience_differences),
    }
    for finding in found.values():
        for case in finding.cases:
            case.seed, case.on = truth.seed, on
    return found
