"""Plans applied for a while: the model is whole again, to the bit, when the context closes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateur.hf.matrices import Matrix
from secateur.hf.weights import writable
from secateur.surgery.operations import Decompose, OnBlock, Operation, ReplaceWithLinear, decompose


@contextmanager
def masked(
    model: nn.Module, operations: Sequence[Operation], decompose: Decompose = decompose
) -> Iterator[None]:
    """Inside, `model` computes as if cut. Costs one copy of each parameter touched, and no time is saved."""
    changed: dict[str, Tensor] = {}
    with torch.no_grad(), ExitStack() as stack:
        for operation in operations:
            if isinstance(operation, OnBlock):
                block = model.get_submodule(operation.path)
                change = operation.apply if isinstance(operation, ReplaceWithLinear) else torch.clone
                stack.enter_context(lent(block, _giving(block.forward, change)))
                continue
            weight = _changed(model, operation.parameter, changed, stack)
            added = operation.apply_(weight, decompose)
            if added is not None:
                constant = operation.matrix.in_output(added, weight)
                _fold(model, operation.matrix, constant, changed, stack)
        yield


def _fold(
    model: nn.Module, matrix: Matrix, constant: Tensor, changed: dict[str, Tensor], stack: ExitStack
) -> None:
    """A layer adds a constant to its output: in its bias, or where it has none by another forward for a while."""
    if matrix.bias is not None:
        bias = _changed(model, matrix.bias, changed, stack)
        bias.copy_(bias.to(constant.dtype) + constant)
    else:
        layer = model.get_submodule(matrix.module)
        stack.enter_context(lent(layer, _adding(layer.forward, constant)))


def _changed(model: nn.Module, name: str, changed: dict[str, Tensor], stack: ExitStack) -> Tensor:
    """A parameter to change in place, which is as it was when `stack` closes."""
    if name not in changed:
        changed[name], undo = writable(model, name)
        stack.callback(undo)
    return changed[name]


@contextmanager
def lent(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, `module` runs `forward` instead of its own; loans may be nested."""
    before = module.__dict__.get("forward")
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def _giving(own: Callable[..., Any], change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """A block that gives what it got, changed. Where there is a cache it runs all the same, so that the cache keeps
    count."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        entered = change(args[0] if args else kwargs["hidden_states"])
        out = own(*args, **kwargs)
        return (entered, *out[1:]) if isinstance(out, tuple) else entered

    return forward


def _adding(own: Callable[..., Any], vector: Tensor) -> Callable[..., Any]:
    """A layer whose output has a constant added."""

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        y = own(*args, **kwargs)
        return y + vector.to(y.dtype)

    return forward
