"""The time left of a run: what was expected, corrected by what the stages so far took."""

from __future__ import annotations

import logging

import pytest
from rich.progress import Progress

from secateur.cli import progress as shown
from secateur.core.progress import StagedProgress, TimeLeft, duration, silent


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_forecast_corrects_itself_by_the_stages_that_ended():
    clock = Clock()
    left = TimeLeft({"screen": 10.0, "race": 100.0, "verify": 50.0}, clock)
    assert left.seconds() == 160.0
    left.begin("screen")
    clock.now = 5.0
    assert (left.number, left.seconds()) == (1, 155.0)
    clock.now = 20.0  # twice as long as expected
    left.begin("race")
    assert left.seconds() == 2 * 150.0
    clock.now = 120.0
    assert left.seconds() == 2 * 150.0 - 100.0
    assert left.share() == pytest.approx(120 / 320)
    clock.now = 500.0  # longer than expected: it is about to end
    assert left.seconds() == pytest.approx(0.05 * 200 + 100)
    left.begin("verify")
    assert left.seconds() == pytest.approx(50 * (20 + 480) / 110)


def test_a_stage_that_nobody_expected_changes_nothing():
    clock = Clock()
    left = TimeLeft({"race": 10.0}, clock)
    left.begin("warming up")
    clock.now = 3.0
    assert (left.number, left.seconds()) == (0, 10.0)
    left.begin("race")
    assert left.seconds() == 10.0
    assert TimeLeft({}, clock).share() == 1.0


def test_what_was_known_already_says_nothing_of_the_rest():
    """Of a run that was stopped the first stages take no time when it goes on."""
    clock = Clock()
    left = TimeLeft({"screen": 10.0, "race": 100.0, "verify": 50.0}, clock)
    left.begin("screen")
    clock.now = 0.1
    left.begin("race")
    assert left.seconds() == 150.0
    assert left.share() < 0.01


def test_a_stage_may_go_on_after_another():
    clock = Clock()
    left = TimeLeft({"analyze": 40.0, "choose": 10.0, "verify": 50.0}, clock)
    for stage, now in (("analyze", 0.0), ("choose", 20.0), ("analyze", 30.0)):
        clock.now = now
        left.begin(stage)
    assert left.seconds() == 40.0 - 20.0 + 50.0
    left.begin("tidying up")
    assert left.seconds() == pytest.approx(50.0 * 30 / 50)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (0.44, "0.4 s"),
        (99.4, "99 s"),
        (130, "2 min"),
        (5990, "1 h 40 min"),
        (7800, "2 h 10 min"),
        (40000, "11 h"),
        (71 * 3600, "71 h"),
        (3.4 * 86400, "3 days"),
    ],
)
def test_durations_are_read_at_a_glance(seconds, said):
    assert duration(seconds) == said


def test_off_a_terminal_there_is_a_line_a_minute(caplog):
    clock = Clock()
    bars = shown.Bars(Progress(disable=True), lines=True, clock=clock)
    assert isinstance(bars, StagedProgress)
    assert not isinstance(silent, StagedProgress)
    bars.expect({"race": 300.0, "verify": 100.0})
    bars.begin("race")
    with caplog.at_level(logging.INFO, "secateur"):
        for step in range(1, 301):
            clock.now = float(step)
            bars("race", step, 300)
    said = [record.message for record in caplog.records]
    assert len(said) == 5
    assert (
        said[0]
        == "stage 1 of 2, racing candidates on the validation split: 60 of 300; 15% of all, about 6 min left"
    )
