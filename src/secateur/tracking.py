"""Trackers of experiments that show a search as it goes: trackio, Weights & Biases, TensorBoard.

None of them is a dependency: the one that is asked for is imported, and only once a search begins.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

from secateur.core.search_log import Judgment, Log, OpenLog
from secateur.errors import SecateurError, UnknownName, nearest

PLACES = {
    "trackio": "secateur",
    "wandb": "secateur",
    "tensorboard": "runs",
}  # by package: a project, a folder
TRACKERS = "trackio[:PROJECT]|wandb[:PROJECT]|tensorboard[:DIR]"


def open_log(log: Log | str | None) -> OpenLog | None:
    """Return what opens the log of a run: a callback as it is, or a tracker by its word, such as `tensorboard:DIR`.

    Raises: `UnknownName` for another word; `SecateurError` where the package is not installed.
    """
    if log is None:
        return None
    if not isinstance(log, str):
        callback = log
        return lambda run, command: nullcontext(callback)
    name, colon, place = log.partition(":")
    if name not in PLACES:
        raise UnknownName(f"--log {log!r}: write {TRACKERS}.{nearest(name, PLACES)}")
    if colon and not place:
        raise SecateurError(f"--log {log!r}: nothing stands after the colon. Write {TRACKERS}.")
    if find_spec(name) is None:
        raise SecateurError(
            f"--log {name} needs the package {name}, which is not installed: pip install {name}"
        )
    place = place or PLACES[name]

    def opened(run: str, command: Mapping[str, object]) -> AbstractContextManager[Log]:
        if name == "tensorboard":
            return _event_file(Path(place) / run)
        return _tracked_run(name, place, run, command)

    return opened


@contextmanager
def _tracked_run(package: str, project: str, run: str, command: Mapping[str, object]) -> Iterator[Log]:
    """Open a run of wandb or of trackio, which has the same functions. Standard output stays ours."""
    with redirect_stdout(sys.stderr):
        tracker = importlib.import_module(package)
        tracked = tracker.init(project=project, name=run, config=dict(command))
    try:
        yield lambda judgment: tracked.log(_values(judgment), step=judgment.step)
    finally:
        with redirect_stdout(sys.stderr):
            tracker.finish()


@contextmanager
def _event_file(folder: Path) -> Iterator[Log]:
    """Open an event file of TensorBoard; the steps of an earlier one in the same folder are hidden by it."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(log_dir=str(folder), purge_step=0)

    def tell(judgment: Judgment) -> None:
        for name, value in _values(judgment).items():
            add = writer.add_text if isinstance(value, str) else writer.add_scalar
            add(name, value, judgment.step)

    try:
        yield tell
    finally:
        writer.close()


def _values(judgment: Judgment) -> dict[str, str | float]:
    """Return what a tracker shows of a judgment, by name; the step is told apart."""
    numbers = {judgment.metric: judgment.value, "loss": judgment.loss, "examples": judgment.n}
    return {**numbers, "stage": judgment.stage, "plan": judgment.plan}
