"""Several processes that train one model: the main one writes to disk, and an error in it is raised in all of them.

With one process all of this does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar, cast

import torch
from torch import Tensor, distributed

from secateur.core.distributed import is_main, world
from secateur.errors import SecateurError, TrainingError
from secateur.hf.placement import torch_device

PATIENCE = timedelta(hours=24)  # longer than the main process takes to write and measure
T = TypeVar("T")


def join(device: str) -> None:
    """Meet the other processes, on every kind of device; where `device` is CUDA, each takes a GPU of its own.

    Raises: `TrainingError` where the machine has fewer GPUs than processes, and what `torch_device` raises.
    """
    if world() == 1 or distributed.is_initialized():
        return
    if torch_device(device).type == "cuda":
        torch.cuda.set_device(_gpu_of_this_process())
    distributed.init_process_group(timeout=PATIENCE)


def _gpu_of_this_process() -> int:
    """Return the number of this process's GPU.

    Raises: `TrainingError` where there are too few, in every process of the machine: only one process prints errors,
    and it may be one that would have a GPU.
    """
    number, available = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    needed = max(int(os.environ.get("LOCAL_WORLD_SIZE", 0)), number + 1)
    if needed > available:
        raise TrainingError(
            f"{needed} processes on a machine with {available} GPU: each needs one of its own. Start at most "
            f"{available} there, such as by torchrun's --nproc-per-node, or give --device cpu."
        )
    return number


def on_main(act: Callable[[], object]) -> None:
    """Call `act` in the main process while the others wait. Raise any `SecateurError` of it in all processes."""
    if world() == 1:
        act()
        return
    failed: list[SecateurError | None] = [None]
    if is_main():
        try:
            act()
        except SecateurError as error:
            failed = [error]
    distributed.broadcast_object_list(failed)
    if failed[0] is not None:
        raise failed[0]


def from_main(find: Callable[[], T]) -> T:
    """Return in all processes what `find` returns in the main one. Raises as `on_main`."""
    sent: list[T | None] = [None]

    def keep() -> None:
        sent[0] = find()

    on_main(keep)
    if world() > 1:
        distributed.broadcast_object_list(sent)
    return cast(T, sent[0])


def any_process(flag: bool) -> bool:
    """Return whether `flag` is true in at least one process."""
    if world() == 1:
        return flag
    flags = [False] * world()
    distributed.all_gather_object(flags, flag)
    return any(flags)


def mean_scale(size: float | Tensor) -> float:
    """Return the scale that turns the mean over processes of per-process means into the mean over all elements.

    Args:
        size: How many elements, or how much weight, the mean of this process is over.
    """
    return 1.0 if world() == 1 else float(size) * world() / sum_over_processes(float(size))[0]


def sum_over_processes(*numbers: float) -> list[float]:
    """Return the sum of each number over all processes, in float64."""
    if world() == 1:
        return list(numbers)
    parts: list[tuple[float, ...]] = [()] * world()
    distributed.all_gather_object(parts, numbers)
    return [sum(column) for column in zip(*parts, strict=True)]
