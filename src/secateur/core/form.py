"""The options of writing a cut model: its shapes, size of files, method of decomposition and of checks."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.core.machine import check_device
from secateur.errors import SecateurError, UnknownName, nearest

SVDS = ("auto", "exact", "randomized")
CHECKS = ("auto", "logits", "digests")
SHARD_SIZE = 5 * 10**9  # what the hub's tools take


@dataclass(frozen=True)
class Form:
    """The shapes in which a cut model is written. At most one of them is set.

    `zeroed`: the original shapes, with zeros where something was removed; loads wherever the original does and saves
    nothing. `factorize`: truncated matrices as two factors where that is smaller. `portable`: the plan was chosen so
    that a stock class can hold its result. With none of them, removed parts are not stored.

    Raises: `SecateurError` for two of them.
    """

    zeroed: bool = False
    factorize: bool = False
    portable: bool = False

    def __post_init__(self) -> None:
        flags = [f"--{name}" for name, value in vars(self).items() if value]
        if len(flags) > 1:
            raise SecateurError(f"{' and '.join(flags)} contradict each other: give one of them.")


@dataclass(frozen=True)
class Way:
    """The options of writing a cut model tensor by tensor.

    `shard_size` is in bytes. `svd` is one of `SVDS`; `auto` is randomized for small ranks of large matrices. `check` is
    one of `CHECKS`: `logits` runs the written model, `digests` reads the files again, `auto` runs the model where it
    takes at most a quarter of the free memory. `device` is where matrices are decomposed.

    Raises: `UnknownName`.
    """

    shard_size: int = SHARD_SIZE
    svd: str = "auto"
    check: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        check_device(self.device)
        for name, value, known in (("svd", self.svd, SVDS), ("check", self.check, CHECKS)):
            if value not in known:
                raise UnknownName(f"unknown --{name} {value!r}.{nearest(value, known)}")


GGUF_TYPES = ("f16", "q8_0", "f32")
"""Types that the numbers of an exported GGUF file may be stored in."""


def check_gguf_type(name: str) -> None:
    """Raise `UnknownName` for a type that no GGUF file is written in."""
    if name not in GGUF_TYPES:
        raise UnknownName(f"unknown --type {name!r}.{nearest(name, GGUF_TYPES)}")
