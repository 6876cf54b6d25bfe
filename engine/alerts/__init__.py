"""Alerts on stream quality: rules from a file, judged every few seconds, told once when they fire and once when it is over (docs/alerts.md)."""

from engine.alerts.judge import State, Told, judge
from engine.alerts.rules import Rule, RuleFile, parse

__all__ = ["Rule", "RuleFile", "State", "Told", "judge", "parse"]
