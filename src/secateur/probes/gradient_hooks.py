"""Read inputs and gradients of linear layers by hooks: a backward pass of the loss of the gold answers.

No parameter gets a gradient: the graph begins at the first hooked input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.evaluation.batching import Batch, target_logps
from secateur.evaluation.forward import scored_logits
from secateur.hf.load import Loaded
from secateur.hf.weights import differentiable, reread

OnInput = Callable[[str, str, Tensor], None]
OnGradient = Callable[[str, Tensor, Tensor], None]


def summed_loss(logits: Float[Tensor, "kept vocab"], batch: Batch) -> Tensor:
    """Return the mean log-loss of each example's answer, summed over examples: each row has a gradient of its own."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    token, example = (t.to(logits.device) for t in (batch.token, batch.example))
    assert torch.equal(batch.where, torch.arange(len(logits))), (
        "one answer alone asks one token of each position"
    )
    if batch.controls is None:
        nll = nn.functional.cross_entropy(logits, token, reduction="none")
    else:
        nll = -target_logps(logits, batch)
    _, index, count = torch.unique(example, return_inverse=True, return_counts=True)
    total: Tensor = (nll / count[index]).sum()
    return total


def read_linear_layers(
    loaded: Loaded,
    batch: Batch,
    paths: Iterable[str],
    on_input: OnInput,
    on_gradient: OnGradient | None = None,
    parameters: Sequence[str] = (),
    on_parameter: Callable[[str, Tensor], None] | None = None,
) -> None:
    """Run `batch` at all its positions and pass the inputs of the linear layers at `paths` to callbacks.

    Args:
        on_input: Called as `on_input(path, first, x)` with the layer's input and the layer that was the first to read
            that same tensor.
        on_gradient: Called as `on_gradient(path, x, g)` with the input and the gradient at the layer's output, which is
            freed when it returns; x and g are (rows, length, in / out). Without it there is no backward pass.
        parameters: Names of parameters whose gradients are read too.
        on_parameter: Called as `on_parameter(name, gradient)`, with that of all examples together.

    Raises: `ModelError` for a layer that never runs as a module, or that the loss does not depend on.
    """
    modules = {path: loaded.model.get_submodule(path) for path in paths}
    missing = set(modules)

    def shaped(values: Tensor) -> Tensor:
        # an encoder's rows are of another length
        return values.reshape(len(batch.tokens), -1, values.shape[-1])

    def value(path: str, first: str, x: Tensor) -> None:
        if on_gradient is None:
            missing.discard(path)
        on_input(path, first, shaped(x))

    def gradient(path: str, x: Tensor, g: Tensor) -> None:
        missing.discard(path)
        if on_gradient is not None:
            on_gradient(path, shaped(x), shaped(g))

    model = loaded.model
    with (
        torch.set_grad_enabled(on_gradient is not None),
        _hooked(modules, value, gradient) as leaves,
        differentiable(model, parameters) as asked,
    ):
        # all positions run, also those of the last block that the loss does not depend on: means of inputs are over all
        with reread(model):
            logits = scored_logits(model, loaded.anatomy, batch, loaded.device)
        loss = summed_loss(logits, batch)
        if leaves or asked:
            gradients = torch.autograd.grad(
                loss, [*asked, *leaves]
            )  # hooks keep what is wanted of the leaves'
            for name, found in zip(parameters, gradients, strict=False):
                assert on_parameter is not None
                on_parameter(name, found)
    if missing:
        raise ModelError(f"{min(missing)} never ran, or the loss does not hang on it, so it cannot be read.")


@contextmanager
def _hooked(
    modules: Mapping[str, nn.Module], on_input: OnInput, on_gradient: OnGradient
) -> Iterator[list[Tensor]]:
    """Hook every module; yield the list of the tensors where the graph begins."""
    seen: dict[int, tuple[Tensor, Tensor, str]] = {}  # by id, which the input itself, kept here, makes unique
    leaves: list[Tensor] = []

    def before(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = args[0]
            if id(x) not in seen:
                leaf = x
                if torch.is_grad_enabled() and not x.requires_grad:
                    leaf = x.detach().requires_grad_()
                    leaves.append(leaf)
                seen[id(x)] = x, leaf, path
            leaf, first = seen[id(x)][1:]
            on_input(path, first, x.detach())
            return (leaf, *args[1:])

        return hook

    def after(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            x = args[0].detach()  # a hook that holds its own tensor would never be freed
            if output.requires_grad:
                output.register_hook(lambda g: on_gradient(path, x, g))

        return hook

    with ExitStack() as stack:
        for path, linear in modules.items():
            stack.callback(linear.register_forward_pre_hook(before(path)).remove)
            stack.callback(linear.register_forward_hook(after(path)).remove)
        yield leaves
