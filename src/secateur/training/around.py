"""What surrounds a training and is put back after it: random states, exact kernels, Ctrl-C. Knows no model."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """The Trainer seeds Python, numpy and torch, for all; afterwards they go on as they were.

    On CUDA, kernels that give the same numbers every time, as far as torch has them.
    """
    python, numpy = random.getstate(), np.random.get_state()
    strict, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    on_cuda = device.type == "cuda"
    if on_cuda:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
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
