"""Apply plans reversibly: the model is restored, to the bit, when the context closes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from secateur.hf.calls import entering
from secateur.hf.matrices import Matrix
from secateur.hf.weights import writable
from secateur.surgery.operations import (
    Decompose,
    DropExperts,
    OnBlock,
    Operation,
    RemoveComponents,
    ReplaceWithLinear,
    decompose,
)


@contextmanager
def masked(
    model: nn.Module, operations: Sequence[Operation], decompose: Decompose = decompose
) -> Iterator[None]:
    """Make `model` compute as if cut while the context is open.

    Costs one copy of each parameter touched; no time is saved.
    """
    changed: dict[str, Tensor] = {}
    with torch.no_grad(), ExitStack() as stack:
        for operation in operations:
            if isinstance(operation, OnBlock):
                block = model.get_submodule(operation.path)
                change = operation.apply if isinstance(operation, ReplaceWithLinear) else torch.clone
                stack.enter_context(swapped_forward(block, giving(block.forward, change)))
                continue
            if isinstance(operation, DropExperts):
                stack.enter_context(swapped_forward(*operation.fewer(model)))
                continue
            weight = _changed(model, operation.parameter, changed, stack)
            added = operation.apply_(weight, decompose)
            if added is not None:
                assert isinstance(operation, RemoveComponents), "only removed directions fold their mean"
                constant = operation.matrix.in_output(added, weight)
                _fold(model, operation.matrix, constant, changed, stack)
        yield


def _fold(
    model: nn.Module, matrix: Matrix, constant: Tensor, changed: dict[str, Tensor], stack: ExitStack
) -> None:
    """Add a constant to a layer's output: in its bias, or else by another forward while `stack` is open."""
    if matrix.bias is not None:
        bias = _changed(model, matrix.bias, changed, stack)
        bias.copy_(bias.to(constant.dtype) + constant)
    else:
        layer = model.get_submodule(matrix.module)
        stack.enter_context(swapped_forward(layer, _adding(layer.forward, constant)))


def _changed(model: nn.Module, name: str, changed: dict[str, Tensor], stack: ExitStack) -> Tensor:
    """Return a parameter to change in place; it is restored when `stack` closes."""
    if name not in changed:
        changed[name], undo = writable(model, name)
        stack.callback(undo)
    return changed[name]


@contextmanager
def swapped_forward(module: nn.Module, forward: Callable[..., object]) -> Iterator[None]:
    """Run `forward` in place of the module's own while the context is open; contexts may be nested."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def giving(block: Callable[..., object], change: Callable[[Tensor], Tensor]) -> Callable[..., object]:
    """Return a forward that runs the block but returns its input, changed by `change`.

    The block runs all the same, so that a cache keeps count of its tokens.
    """

    def forward(*args: object, **kwargs: object) -> object:
        entered = change(entering(args, kwargs))
        out = block(*args, **kwargs)
        return (entered, *out[1:]) if isinstance(out, tuple | list) else entered

    return forward


def _adding(layer: Callable[..., Tensor], vector: Tensor) -> Callable[..., Tensor]:
    """Return a forward that adds a constant to the layer's output."""

    def forward(*args: object, **kwargs: object) -> Tensor:
        y = layer(*args, **kwargs)
        return y + vector.to(y.dtype)

    return forward
