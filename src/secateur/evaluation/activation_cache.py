"""What inside the lowest edited block an edit leaves alone: computed by the first candidate, kept for the rest.

Editing `down` leaves the attention beside it alone, and editing `q` leaves `k` and `v` alone. Which modules those are
is not read from a table of families but traced: one tiny forward pass in which only the edited module's output needs
a gradient shows what depends on it, a second one what is still read once the edited module's input is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.evaluation.forward import Forward
from secateur.surgery.mask import swapped_forward


@dataclass(frozen=True)
class Unchanged:
    """Modules of one block by path. `given` ones are edited but get what they always got; the outputs of the others
    stay the same: `live` ones are read by what changes, `dead` ones by nobody once `given` have their inputs."""

    given: tuple[str, ...]
    live: tuple[str, ...]
    dead: tuple[str, ...]


NOTHING = Unchanged((), (), ())


@torch.inference_mode(False)
@torch.enable_grad()
def unchanged(forward: Forward, model: nn.Module, block: str, edited: Sequence[str]) -> Unchanged:
    """The largest modules of `block` whose output the modules `edited`, all in it, cannot change.

    `NOTHING` where the edited modules are not each called exactly once, with one tensor and nothing else.
    """
    calls, inputs, dependent = _depends(forward, model, block, edited)
    if any(calls[name] != 1 or inputs[name] is None for name in edited):
        return NOTHING
    same = list(_largest(model, block, lambda name: calls[name] == 1 and name not in dependent, set(edited)))
    given = tuple(name for name in edited if name not in dependent)
    read = _read(forward, model, block, given, same)
    return Unchanged(given, tuple(n for n in same if n in read), tuple(n for n in same if n not in read))


def _depends(
    forward: Forward, model: nn.Module, block: str, edited: Sequence[str]
) -> tuple[Counter[str], dict[str, Tensor | None], set[str]]:
    """How often each module of the block is called, the one tensor an edited one gets, and who gets what it made."""
    calls: Counter[str] = Counter()
    inputs: dict[str, Tensor | None] = {}
    dependent: set[str] = set()

    def hook(name: str) -> Callable:
        def note(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
            calls[name] += 1
            if not _plain(output) or any(tensor.requires_grad for tensor in _tensors((args, kwargs))):
                dependent.add(name)
            if name not in edited:
                return output
            inputs[name] = args[0] if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) else None
            return output.detach().requires_grad_().clone()

        return note

    _trace(forward, model, block, hook)
    return calls, inputs, dependent


def _read(
    forward: Forward, model: nn.Module, block: str, given: Sequence[str], same: Sequence[str]
) -> set[str]:
    """Those of `same` whose output reaches the block's, but not through the inputs of `given`."""
    leaves: dict[str, list[Tensor]] = {name: [] for name in same}

    def leaf(name: str, tensor: Tensor) -> Tensor:
        leaves[name].append(tensor.detach().requires_grad_())
        return leaves[name][-1].clone()  # in-place arithmetic on a leaf is refused

    def hook(name: str) -> Callable:
        def note(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
            if name in given:
                return output.detach()
            return _mapped(output, lambda tensor: leaf(name, tensor)) if name in leaves else output

        return note

    out = _trace(forward, model, block, hook)
    asked = [(name, tensor) for name, tensors in leaves.items() for tensor in tensors]
    if not asked or not out.requires_grad:
        return set()
    reached = torch.autograd.grad(out.sum(), [tensor for _, tensor in asked], allow_unused=True)
    return {name for (name, _), gradient in zip(asked, reached, strict=True) if gradient is not None}


def _trace(forward: Forward, model: nn.Module, block: str, hook: Callable[[str], Callable]) -> Tensor:
    """One pass through `block` alone with a hook on each module in it. What the block gives back, (1, 2, d)."""
    parts = [(f"{block}.{name}", part) for name, part in model.get_submodule(block).named_modules() if name]
    handles = [part.register_forward_hook(hook(name), with_kwargs=True) for name, part in parts]
    try:
        return forward.through(block)
    finally:
        for handle in handles:
            handle.remove()


def _largest(model: nn.Module, root: str, same: Callable[[str], bool], edited: set[str]) -> Iterator[str]:
    for name, _ in model.get_submodule(root).named_children():
        path = f"{root}.{name}"
        holds_edited = any(other == path or other.startswith(path + ".") for other in edited)
        if same(path) and not holds_edited:
            yield path
        elif path not in edited:
            yield from _largest(model, path, same, edited)


@dataclass
class ActivationCache:
    """Outputs kept per batch for one set of edited modules, at most `max_bytes` in all; beyond it nothing is reused."""

    model: nn.Module
    parts: Unchanged
    max_bytes: int
    used: int = 0
    _kept: dict[int, dict[str, Any]] = field(default_factory=dict)

    @contextmanager
    def on(self, batch: int) -> Iterator[None]:
        """The next whole-model call is on batch number `batch`: the first time it is watched, then helped."""
        if batch in self._kept:
            with self._lending(self._kept[batch]):
                yield
        elif self.used < self.max_bytes:
            with self._watching(batch):
                yield
        else:
            yield

    @contextmanager
    def _watching(self, batch: int) -> Iterator[None]:
        seen: dict[str, Any] = {}
        handles = []
        for name in (*self.parts.given, *self.parts.live, *self.parts.dead):
            handles.append(self.model.get_submodule(name).register_forward_hook(self._keeper(name, seen)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        size = sum(tensor.untyped_storage().nbytes() for tensor in _tensors(seen))
        if self.used + size <= self.max_bytes:
            self.used += size
            self._kept[batch] = seen
        else:
            self.used = self.max_bytes

    def _keeper(self, name: str, seen: dict[str, Any]) -> Callable:
        def keep(module: nn.Module, args: tuple, output: Any) -> None:
            if name in self.parts.given:
                seen[name] = args[0].clone()
            elif name in self.parts.live:
                seen[name] = _mapped(output, torch.clone)
            else:  # nobody reads it: one number in its shape
                seen[name] = _mapped(output, lambda t: t.new_zeros(()).expand(t.shape))

        return keep

    @contextmanager
    def _lending(self, kept: dict[str, Any]) -> Iterator[None]:
        with ExitStack() as stack:
            for name, value in kept.items():
                module = self.model.get_submodule(name)
                stack.enter_context(swapped_forward(module, self._standin(name, module, value)))
            yield

    def _standin(self, name: str, module: nn.Module, value: Any) -> Callable[..., Any]:
        own = module.forward
        if name in self.parts.given:
            return lambda *args, **kwargs: own(value)
        return lambda *args, **kwargs: _mapped(value, torch.clone)  # a family may add into what it gets


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _plain(value: Any) -> bool:
    """Whether this is a tensor, None, or a tuple or list of such: what `_mapped` can copy."""
    return (
        value is None
        or isinstance(value, Tensor)
        or (type(value) in (tuple, list) and all(map(_plain, value)))
    )


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value`, which is plain, with every floating-point tensor changed."""
    if isinstance(value, Tensor):
        return change(value) if value.is_floating_point() else value
    return value if value is None else type(value)(_mapped(item, change) for item in value)
