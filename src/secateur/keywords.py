"""Types of the options of the Python API, for checkers and completion. Written by dev/write_keywords.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from secateur.given import OneTask, Tasks


class TaskOptions(TypedDict, total=False):
    """Options that say how model and task are opened."""

    revision: str | None
    test_task: OneTask | None
    seed: int
    split_seed: int
    limit: int | None
    seqlen: int
    chat: bool
    join: str
    allow_small: bool
    skip_long: bool
    gguf_file: str | None
    dtype: str
    device: str
    max_tokens: int | str
    trust_remote_code: bool


class ReadingOptions(TaskOptions, total=False):
    """Options of every verb that reads a model."""

    side: Tasks
    objective: str | None
    report: str
    layers: tuple[int, int] | str | None
    zeroed: bool
    factorize: bool
    extract: str
    max_new_tokens: int | None
    device_map: str | None
    offload_folder: str | None
    max_memory: str | None
    spectra: str | None


class CommonOptions(ReadingOptions, total=False):
    """Those, and solved examples."""

    shots: int


class TrainingOptions(TaskOptions, total=False):
    """Options of model and task of `finetune`, `heal`."""

    shots: int


class MethodOptions(TypedDict, total=False):
    """Options of one method of `prune` or more."""

    matrices: Sequence[str] | str
    exhaustive: bool
    keep_unproven: bool
    fractions: Sequence[float]
    small_ranks: Sequence[int] | str
    compose: bool
    max_loss: float | None
    target: float | str | None
    step: float | str
    rescore: bool
    protocol: str | None
    per_head: bool
    overall: bool
    dynamic: bool
    weakest: bool | None
    second_order: bool
    whitened: bool
    blocks: int | None
    by: str
    form: str
    contiguous: bool
    rank: int | None
    attentions: int | None
    params: float | str | None
    random_orders: int
    vote: int
    portable: bool
    kv_bytes: float | str | None
    latency: float | str | None
    prompt: int
    new: int
    kinds: Sequence[str] | str


class PruneOptions(CommonOptions, MethodOptions, total=False):
    """Options of `prune`."""


class ProbeOptions(ReadingOptions, MethodOptions, total=False):
    """Options of `probe`, which takes several numbers of shots itself."""
