"""The signature by which long work reports how far it is, and how long all of it will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

Progress = Callable[[str, int, int], None]
KNOWN = 0.05  # of what was expected of a stage: one that took less was known already
NEARLY = 0.05  # of a stage is left as long as it runs


def silent(stage: str, done: int, total: int) -> None:
    """Ignore progress."""


def duration(seconds: float) -> str:
    """Return a time in words: `0.4 s`, `40 s`, `7 min`, `2 h 10 min`, `5 days`."""
    if 0 < seconds < 1:
        return f"{seconds:.1g} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 10:
        return f"{hours} h {minutes} min"
    return f"{hours} h" if hours < 72 else f"{hours / 24:.0f} days"


@runtime_checkable
class StagedProgress(Protocol):
    """A `Progress` that also takes what stages are to come, and which of them began."""

    def __call__(self, stage: str, done: int, total: int, /) -> None:
        """Take how far a stage is."""

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Take the seconds that are expected of each stage, in their order."""

    def begin(self, stage: str) -> None:
        """Take note that a stage began; the one before has ended."""


@dataclass
class TimeLeft:
    """The time left of a run, from what was expected of each stage and what the stages so far took.

    Stages to come are expected to be off by as much as those that ended: a forecast corrects itself. A stage that took
    next to nothing was known already, from a run that was stopped, and says nothing of the others.

    Args:
        expected: Seconds of each stage, in their order.
        clock: Seconds now.
    """

    expected: Mapping[str, float]
    clock: Callable[[], float] = time.perf_counter
    stage: str = ""
    _spent: dict[str, float] = field(
        default_factory=dict
    )  # seconds by stage, but for the time since `_began`
    _began: float = 0.0

    def begin(self, stage: str) -> None:
        """Begin a stage, or go on with one."""
        now = self.clock()
        if self.stage:
            self._spent[self.stage] = self._spent.get(self.stage, 0.0) + now - self._began
        self.stage, self._began = stage, now

    @property
    def number(self) -> int:
        """The place of the stage among those expected, from 1; 0 where nobody expected it."""
        return list(self.expected).index(self.stage) + 1 if self.stage in self.expected else 0

    def seconds(self) -> float:
        """Return the seconds left."""
        done = [name for name in self.expected if name in self._spent and name != self.stage]
        worked = [name for name in done if self._spent[name] > KNOWN * self.expected[name]]
        planned = sum(self.expected[name] for name in worked)
        pace = sum(self._spent[name] for name in worked) / planned if planned else 1.0
        here = pace * self.expected.get(self.stage, 0.0)
        to_come = [name for name in self.expected if name not in done and name != self.stage]
        return max(here - self._here(), NEARLY * here) + pace * sum(self.expected[name] for name in to_come)

    def share(self) -> float:
        """Return the share of the run that is done, 0 to 1."""
        others = sum(taken for name, taken in self._spent.items() if name != self.stage)
        spent, left = others + self._here(), self.seconds()
        return spent / (spent + left) if spent + left else 1.0

    def _here(self) -> float:
        """Return the seconds that the stage took so far."""
        return self._spent.get(self.stage, 0.0) + (self.clock() - self._began if self.stage else 0.0)
