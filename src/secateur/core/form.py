"""The options of writing a cut: shapes, size of files, way of decomposition and of checks."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.core.machine import check_device
from secateur.errors import SecateurError, UnknownName, nearest

SVDS = ("auto", "exact", "randomized")
CHECKS = ("auto", "logits", "digests")
SHARD_SIZE = 5 * 10**9  # what the hub's tools take


@dataclass(frozen=True)
class Form:
    """The shapes in which a cut is written.

    `zeroed`: in the original's shapes, with zeros where something went, which loads wherever the original does and
    saves nothing; else what went is not stored. `factorize`: truncated matrices as two factors where that is smaller.
    `portable`: the plan is one whose result a stock class can hold. One of them at most.

    Raises: `SecateurError` for two."""

    zeroed: bool = False
    factorize: bool = False
    portable: bool = False

    def __post_init__(self) -> None:
        asked = [f"--{name}" for name, value in vars(self).items() if value]
        if len(asked) > 1:
            raise SecateurError(f"{' and '.join(asked)} contradict each other: give one of them.")


@dataclass(frozen=True)
class Way:
    """The way in which a plan is streamed.

    `shard_size` in bytes; `svd` is one of `SVDS`, auto is randomized for small ranks of large matrices; `check` of
    `CHECKS`: `logits` computes with what was written, `digests` reads it again, `auto` computes where the model is at
    most a quarter of the memory that is free. `device` is where matrices are decomposed.

    Raises: `UnknownName`."""

    shard_size: int = SHARD_SIZE
    svd: str = "auto"
    check: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        check_device(self.device)
        for name, value, known in (("svd", self.svd, SVDS), ("check", self.check, CHECKS)):
            if value not in known:
                raise UnknownName(f"unknown --{name} {value!r}.{nearest(value, known)}")
