"""Several processes that train one model: one of them touches the disk, all of them go on or fail together.

With one process, which is the rule, all of this does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from secateur.core.distributed import is_main, world
from secateur.errors import SecateurError, TrainingError
from secateur.hf.placement import torch_device

PATIENCE = timedelta(hours=24)  # while the main process writes and measures


def join(device: str) -> None:
    """Meets the other processes, on every kind of device that there is; where `device` is CUDA each has one of its own.

    Raises: `TrainingError` where there are fewer than processes on this machine, and as `torch_device`."""
    if world() == 1 or distributed.is_initialized():
        return
    if torch_device(device).type == "cuda":
        torch.cuda.set_device(_own_gpu())
    distributed.init_process_group(timeout=PATIENCE)


def _own_gpu() -> int:
    """Refused in every process of the machine, also in those that would have one, for one of those speaks."""
    number, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    here = max(int(os.environ.get("LOCAL_WORLD_SIZE", 0)), number + 1)
    if here > there:
        raise TrainingError(
            f"{here} processes on a machine with {there} GPU: each needs one of its own. Start at most {there} there, "
            "such as by torchrun's --nproc-per-node, or give --device cpu."
        )
    return number


def by_main(act: Callable[[], Any]) -> None:
    """Does something in the main process while the others wait. Raises what that raises, of our errors, in all."""
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


def from_main(find: Callable[[], Any]) -> Any:
    """What the main process finds, in all. Raises as `by_main`."""
    found: list[Any] = [None]

    def look() -> None:
        found[0] = find()

    by_main(look)
    if world() > 1:
        distributed.broadcast_object_list(found)
    return found[0]


def any_of(flag: bool) -> bool:
    """Whether it is true in at least one process."""
    if world() == 1:
        return flag
    flags = [False] * world()
    distributed.all_gather_object(flags, flag)
    return any(flags)


def share(size: float | Tensor) -> float:
    """The weight of a mean over so much in this process, so that the mean over processes is that over all they have."""
    return 1.0 if world() == 1 else float(size) * world() / added(float(size))[0]


def added(*numbers: float) -> list[float]:
    """The sum over all processes of each number, in float64."""
    if world() == 1:
        return list(numbers)
    parts: list[Any] = [None] * world()
    distributed.all_gather_object(parts, numbers)
    return [sum(column) for column in zip(*parts, strict=True)]
