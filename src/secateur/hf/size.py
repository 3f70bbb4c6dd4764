"""The shapes of a Mistral, checked before one is made. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.core.ranges import check_ranges, whole
from secateur.errors import ModelError


@dataclass(frozen=True)
class Size:
    """The shapes of a Mistral.

    `kv_heads` defaults to `heads`, `d_ff` to 8/3 of `d_model`, up to a multiple of 8; `context` counts
    positions.

    Raises: `ModelError` for shapes that no Mistral has.
    """

    layers: int = whole(4)
    d_model: int = whole(128)
    heads: int = whole(4)
    kv_heads: int | None = whole(None)
    d_ff: int | None = whole(None)
    context: int = whole(512, 2)

    def __post_init__(self) -> None:
        check_ranges(self, ModelError)
        if self.d_model % self.heads or (self.d_model // self.heads) % 2:
            raise ModelError(
                f"--d-model {self.d_model} with --heads {self.heads}: a head has an even, whole number of channels."
            )
        if self.heads % (self.kv_heads or self.heads):
            raise ModelError(f"--heads {self.heads} cannot share --kv-heads {self.kv_heads} evenly.")

    @property
    def width(self) -> int:
        """Return the neurons of a feed-forward network."""
        return self.d_ff or -(-self.d_model * 8 // 3 // 8) * 8

    def num_parameters(self, vocab_size: int) -> int:
        """Return the parameters of the model that has these shapes, with untied embeddings."""
        attention = (
            2 * self.d_model * (self.d_model + self.d_model // self.heads * (self.kv_heads or self.heads))
        )
        block = attention + 3 * self.d_model * self.width + 2 * self.d_model
        return 2 * vocab_size * self.d_model + self.layers * block + self.d_model
