"""Types of the options of the Python API, for checkers and completion. Written by dev/write_keywords.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from secateur.given import OneTask, Tasks


class CommonOptions(TypedDict, total=False):
    """Options of every verb that reads a model on a task."""

    test_task: OneTask | None
    side: Tasks
    objective: str | None
    layers: tuple[int, int] | str | None
    zeroed: bool
    factorize: bool
    seed: int
    split_seed: int
    limit: int | None
    shots: int
    seqlen: int
    chat: bool
    allow_small: bool
    skip_long: bool
    revision: str | None
    dtype: str
    device: str
    device_map: str | None
    offload_folder: str | None
    max_memory: str | None
    spectra: str | None
    max_tokens: int | str
    trust_remote_code: bool


class TrainingOptions(TypedDict, total=False):
    """Options of `finetune` and `heal` that say what model and task are."""

    test_task: OneTask | None
    seed: int
    split_seed: int
    limit: int | None
    shots: int
    seqlen: int
    chat: bool
    allow_small: bool
    skip_long: bool
    revision: str | None
    dtype: str
    device: str
    max_tokens: int | str
    trust_remote_code: bool


class PruneOptions(CommonOptions, total=False):
    """Options of `prune`: those of every method, and of each."""

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
    portable: bool


class ProbeOptions(TypedDict, total=False):
    """Options of `probe`, which takes several numbers of shots itself."""

    test_task: OneTask | None
    side: Tasks
    objective: str | None
    layers: tuple[int, int] | str | None
    zeroed: bool
    factorize: bool
    seed: int
    split_seed: int
    limit: int | None
    seqlen: int
    chat: bool
    allow_small: bool
    skip_long: bool
    revision: str | None
    dtype: str
    device: str
    device_map: str | None
    offload_folder: str | None
    max_memory: str | None
    spectra: str | None
    max_tokens: int | str
    trust_remote_code: bool
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
    portable: bool
