"""The signature by which long work reports how far it is, and how long all of it will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """Ignore progress."""


def duration(seconds: float) -> str:
    """Return a time in words: `40 s`, `7 min`, `2 h 10 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 10 else f"{hours} h"


@runtime_checkable
class StagedProgress(Protocol):
    """A `Progress` that also takes what stages are to come, and which of them began."""

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Take the seconds that are expected of each stage, in their order."""

    def begin(self, stage: str) -> None:
        """Take note that a stage began; the one before has ended."""


@dataclass
class TimeLeft:
    """The time left of a run, from what was expected of each stage and what the stages so far took.

    Stages to come are expected to be off by as much as those that ended: a forecast corrects itself.

    Args:
        expected: Seconds of each stage, in their order.
        clock: Seconds now.
    """

    expected: Mapping[str, float]
    clock: Callable[[], float] = time.perf_counter
    stage: str = ""
    _ended: dict[str, float] = field(default_factory=dict)  # seconds that stages took
    _began: float = 0.0

    def begin(self, stage: str) -> None:
        """Begin a stage."""
        now = self.clock()
        if self.stage:
            self._ended[self.stage] = self._ended.get(self.stage, 0.0) + now - self._began
        self.stage, self._began = stage, now

    @property
    def number(self) -> int:
        """The place of the stage among all, from 1."""
        return list(self.expected).index(self.stage) + 1 if self.stage in self.expected else 0

    def seconds(self) -> float:
        """Return the seconds left."""
        running = self.clock() - self._began if self.stage else 0.0
        known = [name for name in self._ended if name in self.expected]
        planned = sum(self.expected[name] for name in known)
        pace = sum(self._ended[name] for name in known) / planned if planned else 1.0
        here = pace * self.expected.get(self.stage, 0.0)
        to_come = list(self.expected)[self.number :]
        return max(here - running, 0.05 * here) + pace * sum(self.expected[name] for name in to_come)

    def share(self) -> float:
        """Return the share of the run that is done, 0 to 1."""
        spent = sum(self._ended.values()) + (self.clock() - self._began if self.stage else 0.0)
        left = self.seconds()
        return spent / (spent + left) if spent + left else 1.0
