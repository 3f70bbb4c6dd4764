"""Context managers around a training: random states, deterministic kernels, Ctrl-C, memory errors; and its clock.

Knows no model.
"""

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
from typing import NoReturn

import numpy as np
import torch

from secateur.core.distributed import is_main, rank
from secateur.errors import TrainingError

LOG = logging.getLogger("secateur")
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@dataclass(frozen=True)
class Clock:
    """Measure the wall-clock seconds of a training over all its sittings; those before this one took `before`."""

    before: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def seconds(self) -> float:
        """Return the seconds until now."""
        return self.before + time.perf_counter() - self.started


@contextmanager
def deterministic_workspace() -> Iterator[None]:
    """Set the environment variable without which cuBLAS gives other numbers each time; put it back afterwards.

    It counts only before a process first uses cuBLAS, so this goes around a whole verb, not around the steps alone.
    """
    before = os.environ.get(WORKSPACE)
    os.environ.setdefault(WORKSPACE, ":4096:8")
    try:
        yield
    finally:
        if before is None:
            del os.environ[WORKSPACE]


@contextmanager
def isolated_randomness(device: torch.device) -> Iterator[None]:
    """Put the random states of Python, numpy and torch back afterwards, which the Trainer seeds for the whole process.

    On CUDA, also use deterministic kernels as far as torch has them; see `deterministic_workspace`.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    strict = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.random.fork_rng(devices=[device] if on_cuda else []):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        if on_cuda:
            torch.use_deterministic_algorithms(strict, warn_only=warns)


@contextmanager
def memory_errors(batch_size: int) -> Iterator[None]:
    """Raise `TrainingError` where the device's memory does not suffice for batches of this size."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        LOG.log(logging.DEBUG if is_main() else logging.ERROR, "process %d is out of memory.", rank())
        raise TrainingError(
            f"out of memory with --batch-size {batch_size}. Give a smaller one; weights, gradients and AdamW's two "
            "moments alone take 16 bytes a parameter."
        ) from error


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Defer the first Ctrl-C until the step is done and saved; a second one interrupts at once.

    Signals reach the main thread only, so in another one nothing is deferred.

    Yields: A function that says whether Ctrl-C was pressed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    received: list[int] = []
    before = signal.getsignal(signal.SIGINT) or signal.default_int_handler

    def receive(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, receive)
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGINT, before)


def deliver_interrupt() -> NoReturn:
    """Raise the Ctrl-C that was deferred by the handler that it was kept from, which then knows that it was the first.

    Raises: `KeyboardInterrupt`, also in a process that was not interrupted itself.
    """
    if threading.current_thread() is threading.main_thread():
        signal.raise_signal(signal.SIGINT)
    raise KeyboardInterrupt
