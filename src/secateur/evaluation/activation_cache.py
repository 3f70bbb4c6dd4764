"""Reuse activations inside the lowest edited block: the first plan computes them, later plans read them.

An edit of `down` does not change the attention beside it, and an edit of `q` does not change `k` and `v`. Which modules
stay the same is traced, not read from a table of families: one tiny forward pass in which only the output of the edited
module requires a gradient shows what depends on it; a second one shows which outputs are still read once the input of
the edited module is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias, TypeGuard

import torch
from torch import Tensor, nn

from secateur.evaluation.forward import Forward
from secateur.hf.calls import entering, leaving
from secateur.surgery.mask import swapped_forward

Plain: TypeAlias = "Tensor | tuple[Plain, ...] | list[Plain] | None"
Hook = Callable[..., object]


@dataclass(frozen=True)
class Unchanged:
    """Hold the paths of modules of one block that can be reused while some of its modules are edited.

    Attributes:
        given: Edited modules whose input never changes.
        live: Modules whose output never changes and is read by modules that do change.
        dead: Modules whose output never changes and is read by nobody once the inputs of `given` are known.
    """

    given: tuple[str, ...]
    live: tuple[str, ...]
    dead: tuple[str, ...]


NOTHING = Unchanged((), (), ())


@torch.inference_mode(False)
@torch.enable_grad()
def find_unchanged(forward: Forward, model: nn.Module, block: str, edited: Sequence[str]) -> Unchanged:
    """Find the largest modules of `block` whose output the modules `edited`, all inside it, cannot change.

    Returns:
        `NOTHING` where an edited module is not called exactly once with one tensor and nothing else.
    """
    calls, inputs, dependent = _trace_dependence(forward, model, block, edited)
    if any(calls[name] != 1 or inputs[name] is None for name in edited):
        return NOTHING
    same = list(_largest(model, block, lambda name: calls[name] == 1 and name not in dependent, set(edited)))
    given = tuple(name for name in edited if name not in dependent)
    read = _read_outputs(forward, model, block, given, same)
    return Unchanged(given, tuple(n for n in same if n in read), tuple(n for n in same if n not in read))


def _trace_dependence(
    forward: Forward, model: nn.Module, block: str, edited: Sequence[str]
) -> tuple[Counter[str], dict[str, Tensor | None], set[str]]:
    """Return how often each module of the block is called, the one tensor that each edited module gets (None where it
    gets something else), and the modules whose input depends on an edited module."""
    calls: Counter[str] = Counter()
    inputs: dict[str, Tensor | None] = {}
    dependent: set[str] = set()

    def hook(name: str) -> Hook:
        def note(
            module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object
        ) -> object:
            calls[name] += 1
            if not _is_plain(output) or any(tensor.requires_grad for tensor in _tensors((args, kwargs))):
                dependent.add(name)
            if name not in edited:
                return output
            inputs[name] = args[0] if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) else None
            return leaving(output).detach().requires_grad_().clone()

        return note

    _run_with_hooks(forward, model, block, hook)
    return calls, inputs, dependent


def _read_outputs(
    forward: Forward, model: nn.Module, block: str, given: Sequence[str], same: Sequence[str]
) -> set[str]:
    """Return the modules of `same` whose output reaches the block's output other than through the inputs of
    `given`."""
    leaves: dict[str, list[Tensor]] = {name: [] for name in same}

    def leaf(name: str, tensor: Tensor) -> Tensor:
        leaves[name].append(tensor.detach().requires_grad_())
        return leaves[name][-1].clone()  # in-place arithmetic on a leaf is refused

    def hook(name: str) -> Hook:
        def note(
            module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object
        ) -> object:
            if name in given:
                return leaving(output).detach()
            return _map_tensors(output, lambda tensor: leaf(name, tensor)) if name in leaves else output

        return note

    out = _run_with_hooks(forward, model, block, hook)
    outputs = [(name, tensor) for name, tensors in leaves.items() for tensor in tensors]
    if not outputs or not out.requires_grad:
        return set()
    gradients = torch.autograd.grad(out.sum(), [tensor for _, tensor in outputs], allow_unused=True)
    return {name for (name, _), gradient in zip(outputs, gradients, strict=True) if gradient is not None}


def _run_with_hooks(forward: Forward, model: nn.Module, block: str, hook: Callable[[str], Hook]) -> Tensor:
    """Run `block` alone with a hook on each module in it; return its output, (1, 2, d_model)."""
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
        holds_edited = any(module == path or module.startswith(path + ".") for module in edited)
        if same(path) and not holds_edited:
            yield path
        elif path not in edited:
            yield from _largest(model, path, same, edited)


@dataclass
class ActivationCache:
    """Keep module outputs by batch for one set of edited modules, at most `max_bytes` in all.

    What no longer fits is computed again by every plan.
    """

    model: nn.Module
    parts: Unchanged
    max_bytes: int
    used: int = 0
    _outputs: dict[int, dict[str, object]] = field(default_factory=dict)  # by batch, then by module

    @contextmanager
    def on(self, batch: int) -> Iterator[None]:
        """Record the outputs of the next whole-model call on batch number `batch`, or replay them where they are
        known."""
        if batch in self._outputs:
            with ExitStack() as stack:
                for name, value in self._outputs[batch].items():
                    module = self.model.get_submodule(name)
                    stack.enter_context(swapped_forward(module, self._replay(name, module, value)))
                yield
        elif self.used < self.max_bytes:
            with self._recording(batch):
                yield
        else:
            yield

    @contextmanager
    def _recording(self, batch: int) -> Iterator[None]:
        outputs: dict[str, object] = {}
        handles = []
        for name in (*self.parts.given, *self.parts.live, *self.parts.dead):
            handles.append(
                self.model.get_submodule(name).register_forward_hook(self._recorder(name, outputs))
            )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        size = sum(tensor.untyped_storage().nbytes() for tensor in _tensors(outputs))
        if self.used + size <= self.max_bytes:
            self.used += size
            self._outputs[batch] = outputs
        else:
            self.used = self.max_bytes

    def _recorder(self, name: str, outputs: dict[str, object]) -> Hook:
        def record(module: nn.Module, args: tuple[object, ...], output: object) -> None:
            if name in self.parts.given:
                outputs[name] = entering(args, {}).clone()
            elif name in self.parts.live:
                outputs[name] = _map_tensors(output, torch.clone)
            else:  # nobody reads it: one number in its shape
                outputs[name] = _map_tensors(output, lambda t: t.new_zeros(()).expand(t.shape))

        return record

    def _replay(self, name: str, module: nn.Module, value: object) -> Hook:
        """Return a `forward` for the module that takes its input (`given`) or its output from the cache."""
        original = module.forward
        if name in self.parts.given:
            return lambda *args, **kwargs: original(value)
        return lambda *args, **kwargs: _map_tensors(value, torch.clone)  # a family may add to it in place


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _is_plain(value: object) -> TypeGuard[Plain]:
    """Return whether `_map_tensors` can copy this: a tensor, None, or a tuple or list of those."""
    if value is None or isinstance(value, Tensor):
        return True
    return isinstance(value, tuple | list) and type(value) in (tuple, list) and all(map(_is_plain, value))


def _map_tensors(value: object, change: Callable[[Tensor], Tensor]) -> Plain:
    """Return `value`, which is plain, with every floating-point tensor changed."""
    if isinstance(value, Tensor):
        return change(value) if value.is_floating_point() else value
    if value is None:
        return None
    assert isinstance(value, tuple | list), type(value)
    mapped = [_map_tensors(item, change) for item in value]
    return tuple(mapped) if isinstance(value, tuple) else mapped
