"""How probes come by gradients: the loss of the gold answers, and linear layers tapped where they read and write.

No parameter gets a gradient: the graph begins at the first tapped input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.evaluation.batching import Batch
from secateur.evaluation.forward import gathered
from secateur.hf.load import Loaded
from secateur.hf.weights import reread

Entered = Callable[[str, str, Tensor], None]
Arrived = Callable[[str, Tensor, Tensor], None]


def summed_loss(logits: Float[Tensor, "kept vocab"], batch: Batch) -> Tensor:
    """The mean log-loss of each example's answer, summed over examples, so that each row has its own gradient."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    token, example = (t.to(logits.device) for t in (batch.token, batch.example))
    assert torch.equal(batch.where, torch.arange(len(logits))), (
        "one answer alone asks one token of each position"
    )
    nll = nn.functional.cross_entropy(logits, token, reduction="none")
    _, index, count = torch.unique(example, return_inverse=True, return_counts=True)
    return (nll / count[index]).sum()


def read_taps(
    loaded: Loaded, batch: Batch, paths: Iterable[str], entered: Entered, arrived: Arrived | None = None
) -> None:
    """Runs `batch` at all its positions and shows what passes the linear layers at `paths`.

    `entered(path, first, x)` gets each layer's true input, and which layer was the first to read that same tensor.
    With `arrived` there is a backward pass of `summed_loss` too, and `arrived(path, x, g)` gets the input and the
    gradient at the layer's output, which is freed when it returns. x and g are (rows, length, in / out).
    Raises: `ModelError` for a layer that never runs as a module, or that no loss hangs on.
    """
    modules = {path: loaded.model.get_submodule(path) for path in paths}
    missing = set(modules)

    def shaped(values: Tensor) -> Tensor:
        return values.reshape(*batch.tokens.shape, -1)

    def value(path: str, first: str, x: Tensor) -> None:
        if arrived is None:
            missing.discard(path)
        entered(path, first, shaped(x))

    def gradient(path: str, x: Tensor, g: Tensor) -> None:
        missing.discard(path)
        arrived(path, shaped(x), shaped(g))

    with torch.set_grad_enabled(arrived is not None), _tapped(modules, value, gradient) as leaves:
        loss = summed_loss(_logits(loaded, batch), batch)
        if leaves:
            torch.autograd.grad(loss, leaves)  # the taps keep what is wanted of it
    if missing:
        raise ModelError(f"{min(missing)} never ran, or the loss does not hang on it, so it cannot be read.")


def _logits(loaded: Loaded, batch: Batch) -> Float[Tensor, "kept vocab"]:
    """All positions run, also those of the last block that no loss hangs on: means of inputs are over all."""
    model = loaded.model
    with reread(model), gathered(model.get_submodule(loaded.anatomy.unembedding), batch.keep):
        return model(input_ids=batch.tokens.to(loaded.device), use_cache=False).logits[0]


@contextmanager
def _tapped(modules: Mapping[str, nn.Module], entered: Entered, arrived: Arrived) -> Iterator[list[Tensor]]:
    """While open, every module is tapped; gives the list of the tensors where the graph begins."""
    seen: dict[int, tuple[Tensor, Tensor, str]] = {}  # by id, which the input itself, kept here, makes unique
    leaves: list[Tensor] = []

    def before(path: str) -> Callable[[nn.Module, tuple], tuple]:
        def hook(_: nn.Module, args: tuple) -> tuple:
            x = args[0]
            if id(x) not in seen:
                seen[id(x)] = x, _begun(x, leaves), path
            _, begun, first = seen[id(x)]
            entered(path, first, x.detach())
            return (begun, *args[1:])

        return hook

    def after(path: str) -> Callable[[nn.Module, tuple, Tensor], None]:
        def hook(_: nn.Module, args: tuple, output: Tensor) -> None:
            x = args[0].detach()  # a hook that holds its own tensor would never be freed
            if output.requires_grad:
                output.register_hook(lambda g: arrived(path, x, g))

        return hook

    with ExitStack() as stack:
        for path, module in modules.items():
            stack.callback(module.register_forward_pre_hook(before(path)).remove)
            stack.callback(module.register_forward_hook(after(path)).remove)
        yield leaves


def _begun(x: Tensor, leaves: list[Tensor]) -> Tensor:
    """`x`, or where nothing has a gradient yet a leaf in its place."""
    if x.requires_grad or not torch.is_grad_enabled():
        return x
    leaves.append(x.detach().requires_grad_())
    return leaves[-1]
