"""What surrounds a training and is put back after it: random states, exact kernels, Ctrl-C, memory that runs out, time.

Knows no model."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from secateur.core.distributed import is_main, rank
from secateur.errors import TrainingError

LOG = logging.getLogger("secateur")
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@dataclass(frozen=True)
class Clock:
    """Wall-clock seconds of a training over all its sittings; `before` is what those before this one took."""

    before: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.started


@contextmanager
def fixed_workspace() -> Iterator[None]:
    """cuBLAS gives the same numbers every time only with this in the environment before a process first uses it: so it
    goes around all of a verb, not the steps alone. Afterwards the environment is as it was."""
    before = os.environ.get(WORKSPACE)
    os.environ.setdefault(WORKSPACE, ":4096:8")
    try:
        yield
    finally:
        if before is None:
            del os.environ[WORKSPACE]


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """The Trainer seeds Python, numpy and torch, for all; afterwards they go on as they were.

    On CUDA, kernels that give the same numbers every time, as far as torch has them; see `fixed_workspace`.
    """
    python, numpy = random.getstate(), np.random.get_state()
    strict, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.random.fork_rng(devices=[device] if on_cuda else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if on_cuda:
            torch.use_deterministic_algorithms(strict, warn_only=warns)


@contextmanager
def within_memory(batch_size: int) -> Iterator[None]:
    """Raises `TrainingError` where the device's memory does not suffice."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        LOG.log(logging.DEBUG if is_main() else logging.ERROR, "process %d is out of memory.", rank())
        raise TrainingError(
            f"out of memory with --batch-size {batch_size}. Give a smaller one; weights, gradients and AdamW's two "
            "moments alone take 16 bytes a parameter."
        ) from error


@contextmanager
def held_back() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C waits until the step is done and saved, a second one does not. Only the main thread hears it."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    heard: list[int] = []
    before = signal.getsignal(signal.SIGINT) or signal.default_int_handler

    def hear(number: int, frame: object) -> None:
        heard.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, hear)
    try:
        yield lambda: bool(heard)
    finally:
        signal.signal(signal.SIGINT, before)
