"""Arrays that were fitted to data for an edit; they lie beside a plan, named by a digest of their content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Fitted:
    """Fitted arrays, equal by `digest`. `arrays` is None where only the digest was read, as from a `plan.json` alone.

    Applying an edit takes these arrays and never fits again, so that a plan computes the same everywhere.
    """

    digest: str
    arrays: Mapping[str, np.ndarray] | None = field(default=None, compare=False, repr=False)

    @property
    def content(self) -> Mapping[str, np.ndarray]:
        """Return the arrays, which must have been read: `resolve` refuses a plan where they were not."""
        assert self.arrays is not None, f"only the name of {self.digest} was read"
        return self.arrays

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Fitted:
        """Return the arrays with the digest of their content."""
        kept = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
        digest = hashlib.sha256()
        for name, array in kept.items():
            digest.update(f"{name} {array.dtype.str} {array.shape}\0".encode())
            digest.update(array.tobytes())
        return cls(digest.hexdigest()[:32], kept)
