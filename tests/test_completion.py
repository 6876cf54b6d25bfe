"""From where on a title is completed and up to where a position is too early, by length and by credits marker."""

from __future__ import annotations

import math

import pytest

from engine.completion import Thresholds, completed_point, too_early_point
from engine.errors import BadRequest, ConfigError
from engine.settings import Settings
from engine.wire import decode_heartbeat

MINUTE = 60.0
DEFAULTS = Thresholds.of(Settings())


@pytest.mark.parametrize(
    ("duration", "point"),
    [
        (20, 18),
        (299, 269.1),
        (300, 240),
        (10 * MINUTE, 8 * MINUTE),
        (15 * MINUTE, 12 * MINUTE),
        (22 * MINUTE, 19 * MINUTE),
        (30 * MINUTE, 27 * MINUTE),
        (45 * MINUTE, 40.5 * MINUTE),
        (100 * MINUTE, 90 * MINUTE),
        (120 * MINUTE, 110 * MINUTE),
        (200 * MINUTE, 190 * MINUTE),
    ],
)
def test_completed_by_length(duration: float, point: float) -> None:
    assert completed_point(duration, None, DEFAULTS) == pytest.approx(point)


@pytest.mark.parametrize(
    ("duration", "credits", "point"),
    [
        (6000, 5000, 5000),
        (6000, 5990, 5990),
        (6000, 6000, 6000),
        (100, 60, 60),
        (None, 5000, 5000),
        (0, 5000, 5000),
        (6000, 6001, 5400),
        (6000, 0, 5400),
        (6000, -1, 5400),
    ],
)
def test_a_sensible_credits_marker_wins(duration: float | None, credits: float, point: float) -> None:
    assert completed_point(duration, credits, DEFAULTS) == pytest.approx(point)


@pytest.mark.parametrize("duration", [None, 0, -5])
def test_an_unknown_length_completes_nothing(duration: float | None) -> None:
    """jellyfin #7051 marked such titles as fully played."""
    assert completed_point(duration, None, DEFAULTS) is None


def test_longer_titles_are_never_completed_earlier_and_always_within_reach() -> None:
    for duration in range(300, 6 * 3600, 7):
        here, next_ = completed_point(duration, None, DEFAULTS), completed_point(duration + 7, None, DEFAULTS)
        assert here is not None
        assert next_ is not None
        assert too_early_point(duration, DEFAULTS) < here <= next_
        assert here < duration


@pytest.mark.parametrize(
    ("duration", "point"), [(None, 120), (0, 120), (299, math.inf), (300, 15), (22 * MINUTE, 66), (120 * MINUTE, 120)]
)
def test_too_early(duration: float | None, point: float) -> None:
    assert too_early_point(duration, DEFAULTS) == pytest.approx(point)


@pytest.mark.parametrize("credits", ["-1", "1e9", '"ten"'])
def test_a_marker_that_is_none_is_refused(credits: str) -> None:
    body = '{"session":"s","device":"d","content":"c","kind":"vod","state":"playing","seq":0,"position":1,"credits":%s}'
    with pytest.raises(BadRequest) as caught:
        decode_heartbeat((body % credits).encode())
    assert caught.value.field == "credits"
    assert decode_heartbeat((body % "null").encode()).credits is None


def test_settings_move_the_points_and_are_checked() -> None:
    settings = Settings.from_env({
        "PULSEGATE_RESUME_SHORT_S": "0", "PULSEGATE_RESUME_EARLY_RATIO": "0.1", "PULSEGATE_RESUME_EARLY_S": "30",
        "PULSEGATE_COMPLETED_RATIO": "0.95", "PULSEGATE_COMPLETED_LEFT_S": "0", "PULSEGATE_COMPLETED_LEFT_MAX_S": "3600",
    })  # fmt: skip
    moved = Thresholds.of(settings)
    assert too_early_point(100, moved) == 10
    assert too_early_point(1000, moved) == 30
    assert completed_point(1000, None, moved) == 950
    for env, named in (
        ({"PULSEGATE_COMPLETED_RATIO": "0.7"}, "PULSEGATE_COMPLETED_LEAST_RATIO"),
        ({"PULSEGATE_COMPLETED_RATIO": "1"}, "PULSEGATE_COMPLETED_RATIO"),
        ({"PULSEGATE_COMPLETED_LEFT_S": "601"}, "PULSEGATE_COMPLETED_LEFT_S"),
        ({"PULSEGATE_NO_PROGRESS_MS": "10"}, "PULSEGATE_NO_PROGRESS_MS"),
    ):
        with pytest.raises(ConfigError) as caught:
            Settings.from_env(env)
        assert caught.value.field == named
