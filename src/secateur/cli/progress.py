"""Progress on stderr, one bar a stage, with the time left; silent where nobody looks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
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

STAGES = {
    "load": "reading model and task",
    "train": "training",
    "losses": "losses, epoch by epoch",
    "evaluate": "measuring on the split",
    "baseline": "measuring the original",
    "screen": "screening candidates by gradients",
    "race": "racing candidates on select",
    "compose": "composing several cuts",
    "prune": "removing step by step",
    "choose": "choosing on select",
    "curves": "loss against rank",
    "component answers": "what the parts answer",
    "verify": "verifying on test",
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
        if task.description not in IN_BYTES:
            return super().render(task)
        return Text(f"{task.completed / 1e9:.2f}/{(task.total or 0) / 1e9:.2f} GB", style="progress.download")


class Bars:
    """A progress callback. A stage that is entered again goes on where it was: totals add up."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._before: dict[str, int] = {}
        self._last: dict[str, tuple[int, int]] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(STAGES.get(stage, stage), total=total)
        last_done, last_total = self._last.get(stage, (0, 0))
        if done < last_done or (total != last_total and last_done == last_total):
            self._before[stage] = self._before.get(stage, 0) + last_done
        self._last[stage] = (done, total)
        before = self._before.get(stage, 0)
        self._progress.update(self._tasks[stage], completed=before + done, total=before + total)


@contextmanager
def bars(*, quiet: bool) -> Iterator[Bars]:
    """Yield bars on a terminal's stderr, and log how it goes; nothing when `quiet`, no bars off a terminal."""
    logging.getLogger("secateur").setLevel(logging.WARNING if quiet else logging.INFO)
    console = terminal(stderr=True)
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=28),
        Amount(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, disable=quiet or not console.is_terminal or not is_main(), transient=False
    ) as progress:
        yield Bars(progress)
