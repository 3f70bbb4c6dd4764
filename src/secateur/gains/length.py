"""The lengths and repeats of a timing, checked before models are read. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from secateur.core.ranges import Range, check_ranges, whole
from secateur.errors import ModelError

THREADS = Range(1, 4096, whole=True)  # of torch, which believes any number


@dataclass(frozen=True)
class Length:
    """The work that is timed: `batch` prompts of `prompt` tokens, then `new` tokens each; `repeats` times. Raises:
    `SecateurError` for what is no number of them."""

    prompt: int = whole(512)
    new: int = whole(32)
    batch: int = whole(1)
    repeats: int = whole(7)

    def __post_init__(self) -> None:
        check_ranges(self)

    def within(self, *contexts: int | None) -> Length:
        """Return these lengths, cut down to the shortest context, half of it at most for new tokens."""
        context = min((c for c in contexts if c is not None), default=self.prompt + self.new)
        if context < 2:
            raise ModelError(f"a context of {context} has no room for a prompt and a new token.")
        new = min(self.new, context // 2)
        return replace(self, new=new, prompt=min(self.prompt, context - new))
