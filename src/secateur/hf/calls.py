"""Find the hidden states in a call of a block and in what it returns, whichever way its family passes them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def entering(args: tuple[object, ...], kwargs: Mapping[str, object]) -> Tensor:
    """Return the hidden states that a block is called with: its first argument, or the one of this name."""
    hidden = args[0] if args else kwargs["hidden_states"]
    assert isinstance(hidden, Tensor), type(hidden)
    return hidden


def leaving(output: object) -> Tensor:
    """Return the hidden states that a block returns: by themselves, or first in a tuple."""
    hidden = output[0] if isinstance(output, tuple) else output
    assert isinstance(hidden, Tensor), type(hidden)
    return hidden
