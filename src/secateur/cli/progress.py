"""Progress on stderr, one bar a stage, with the time left; silent where nobody looks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from secateur.cli.terminal import terminal
from secateur.core.distributed import is_main
from secateur.core.progress import TimeLeft, duration

LOG = logging.getLogger("secateur")
EVERY = 60.0  # seconds between lines off a terminal
STAGES = {
    "load": "reading model and task",
    "train": "training",
    "losses": "losses, epoch by epoch",
    "evaluate": "measuring on the split",
    "baseline": "measuring the original",
    "depth": "measuring without blocks",
    "head screen": "screening parts by gradients",
    "head measurement": "measuring without single heads",
    "importance": "importance by gradients",
    "in block": "pricing each component in its block",
    "ablation": "measuring without single parts",
    "screen": "screening candidates by gradients",
    "race": "racing candidates on the validation split",
    "compose": "composing several cuts",
    "prune": "removing step by step",
    "choose": "choosing on the validation split",
    "fit": "fitting linear maps",
    "copying": "what heads copy",
    "prefix matching": "what heads look for",
    "norms": "lengths of vectors",
    "linearity": "how linear blocks are",
    "similarity": "how alike blocks' ends are",
    "look": "timing one pass",
    "curves": "loss against rank",
    "component answers": "what the parts answer",
    "verify": "verifying on the test split",
    "paraphrases": "other phrasings",
    "side effects": "side effects",
    "alternatives": "trivial alternatives",
    "write": "writing the cut model",
    "check": "reading it back",
}
IN_BYTES = {STAGES["write"], STAGES["check"]}


class Amount(MofNCompleteColumn):
    """A column of a progress bar: done and total, in GB for stages that count bytes."""

    def render(self, task: Task) -> Text:
        if task.fields.get("left") is not None:
            return Text(f"{task.completed:.0f} %", style="progress.download")
        if task.description not in IN_BYTES:
            return super().render(task)
        return Text(f"{task.completed / 1e9:.2f}/{(task.total or 0) / 1e9:.2f} GB", style="progress.download")


class Left(TimeRemainingColumn):
    """A column with the time left: of the whole run as it was forecast, of a stage as it went so far."""

    def render(self, task: Task) -> Text:
        """Return the text of a bar."""
        if (left := task.fields.get("left")) is None:
            return super().render(task)
        return Text(f"~{duration(left)} left", style="progress.remaining")


class Bars:
    """A progress callback: bars on a terminal, elsewhere a line a minute.

    A stage that is entered again goes on where it was: totals add up.

    Args:
        progress: The bars.
        lines: Whether to write lines instead.
        clock: Seconds now.
    """

    def __init__(
        self, progress: Progress, *, lines: bool = False, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._progress, self._lines, self._clock = progress, lines, clock
        self._tasks: dict[str, TaskID] = {}
        self._before: dict[str, int] = {}
        self._last: dict[str, tuple[int, int]] = {}
        self._left: TimeLeft | None = None
        self._all: TaskID | None = None
        self._share = 0.0
        self._said = clock()

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Show how much of the whole run is done."""
        self._left = TimeLeft(seconds, self._clock)
        if not self._lines:
            self._all = self._progress.add_task("all stages", total=100, left=sum(seconds.values()))

    def end(self) -> None:
        """Take the bar over all stages away: nothing is left."""
        if self._all is not None:
            self._progress.remove_task(self._all)
            self._all = None

    def begin(self, stage: str) -> None:
        """Take note that a stage began."""
        if self._left is not None:
            self._left.begin(stage)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show how far a stage is."""
        last_done, last_total = self._last.get(stage, (0, 0))
        if done < last_done or (total != last_total and last_done == last_total):
            self._before[stage] = self._before.get(stage, 0) + last_done
        self._last[stage] = (done, total)
        done, total = (self._before.get(stage, 0) + each for each in (done, total))
        if self._left is not None:
            self._share = max(self._share, self._left.share())  # a forecast may grow; what is done stays done
        if self._lines:
            self._write_line(stage, done, total)
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(STAGES.get(stage, stage), total=total)
        self._progress.update(self._tasks[stage], completed=done, total=total)
        if self._left is not None and self._all is not None:
            self._progress.update(self._all, completed=100 * self._share, left=self._left.seconds())

    def _write_line(self, stage: str, done: int, total: int) -> None:
        """Log how far the run is, once a minute."""
        now = self._clock()
        if now - self._said < EVERY:
            return
        self._said = now
        line = f"{STAGES.get(stage, stage)}: {done} of {total}"
        if self._left is not None:
            where = f"stage {self._left.number} of {len(self._left.expected)}, "
            line = f"{where}{line}; {self._share:.0%} of all, about {duration(self._left.seconds())} left"
        LOG.info("%s", line)


@contextmanager
def bars(*, quiet: bool) -> Iterator[Bars]:
    """Yield bars on a terminal's stderr, and log how it goes; off a terminal a line a minute, nothing when `quiet`."""
    LOG.setLevel(logging.WARNING if quiet else logging.INFO)
    console = terminal(stderr=True)
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=28 if console.width >= 100 else 12),
        Amount(),
        TimeElapsedColumn(),
        Left(),
    )
    lines = not console.is_terminal and is_main()
    with Progress(
        *columns, console=console, disable=quiet or lines or not is_main(), transient=False
    ) as progress:
        shown = Bars(progress, lines=lines)
        yield shown
        shown.end()
