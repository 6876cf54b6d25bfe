"""The plans of the simulated households, and the plans.toml that the deployment must use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """One rule, `streams`. `unit` is device or stream; `mode` what happens at the limit (docs/plans.md)."""

    limit: int
    unit: str
    mode: str


PLANS = {
    "solo": Plan(1, "device", "deny_new"),
    "solo-oldest": Plan(1, "device", "stop_oldest"),
    "solo-stream": Plan(1, "stream", "stop_latest"),
    "duo": Plan(2, "device", "deny_new"),
    "duo-latest": Plan(2, "device", "stop_latest"),
    "trio-stream": Plan(3, "stream", "deny_new"),
    "quad": Plan(4, "device", "deny_new"),
    "quad-oldest": Plan(4, "stream", "stop_oldest"),
}
DEFAULT = "solo"


def toml() -> str:
    """The text of plans.toml."""
    lines = [
        "# The plans of the simulated households (python -m loadtest.simulator --write-plans).",
        f'default = "{DEFAULT}"',
    ]
    for name, plan in PLANS.items():
        lines += [
            "",
            f"[plans.{name}]",
            f'at_limit = "{plan.mode}"',
            "",
            f"[[plans.{name}.rules]]",
            'name = "streams"',
            f"limit = {plan.limit}",
            f'unit = "{plan.unit}"',
        ]
    return "\n".join(lines) + "\n"
