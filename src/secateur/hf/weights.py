"""Read and change a model's parameters, on a device, or offloaded to memory or disk.

Accelerate's hooks bring an offloaded weight in for one call of its module and drop it after that; between calls
its parameter has a shape and no numbers. All code that reads or changes parameters outside a call comes through
here. Changed weights are kept in memory and handed to the hooks in place of the original: no file is ever
written to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook
from accelerate.utils import OffloadedWeightsLoader, PrefixedDataset
from safetensors import safe_open
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import PreTrainedModel

from secateur.errors import ModelError


def read(model: nn.Module, name: str) -> Tensor:
    """Return a parameter's numbers on the device that computes with them, with edits where there are."""
    weights, key = _offloaded(model, name)
    return model.get_parameter(name).detach() if weights is None else weights[key]


def stored(model: nn.Module, name: str) -> Tensor:
    """Return the same where it lies: an offloaded weight is a view of its file and must not be changed."""
    weights, key = _offloaded(model, name)
    return model.get_parameter(name).detach() if weights is None else weights.stored(key)


def writable(model: nn.Module, name: str) -> tuple[Tensor, Callable[[], None]]:
    """Return a tensor to change in place, which the model computes with from now on.

    Returns: the tensor, and a function that undoes the change to the bit.
    """
    weights, key = _offloaded(model, name)
    if weights is not None:
        return weights.edit(key)
    parameter = model.get_parameter(name)
    original, parameter.data = parameter.data, parameter.data.clone()  # others may read the same memory

    def undo() -> None:
        parameter.data = original

    return parameter, undo


@contextmanager
def differentiable(model: nn.Module, names: Iterable[str]) -> Iterator[list[nn.Parameter]]:
    """Let a graph begin at some parameters, inside; yield them.

    Raises: `ModelError` for one that is offloaded, which is not the same tensor in two calls.
    """
    parameters = []
    with ExitStack() as stack:
        for name in names:
            if _offloaded(model, name)[0] is not None:
                raise ModelError(f"{name} is offloaded, and its gradient is read of weights in memory alone.")
            parameter = model.get_parameter(name)
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_()
            parameters.append(parameter)
        yield parameters


def parameter_or_buffer(model: nn.Module, name: str) -> Tensor:
    """Return a parameter as the module holds it (an offloaded one without numbers), or a buffer."""
    path, _, last = name.rpartition(".")
    tensor = getattr(model.get_submodule(path), last)
    assert isinstance(tensor, Tensor), name
    return tensor


def distinct(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return every parameter once, tied ones under their first name. Offloaded ones have only shape and dtype."""
    first: dict[str | int, tuple[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first.setdefault(_identity(model, name), (name, parameter))
    return dict(first.values())


def same(model: nn.Module, first: str, second: str) -> bool:
    """Return True where two names are of one parameter."""
    return _identity(model, first) == _identity(model, second)


def keep_own_unembedding_(model: PreTrainedModel) -> None:
    """Set `tie_word_embeddings` to false where the files hold an unembedding that differs from the embedding.

    A merged adapter with trained embeddings leaves that behind. Transformers computes with both, whatever the
    config says; it compares the two while it loads them, and of offloaded ones they are compared here.
    """
    ties, weights = model.all_tied_weights_keys, _weights(model)
    for name, source in list(ties.items()):
        if weights is not None and weights.are_apart(name, source):
            del ties[name]
    if not ties and model.get_output_embeddings() is not None:
        model.config.tie_word_embeddings = False


def device_of(model: nn.Module, name: str) -> torch.device:
    """Return the device that computes with a parameter."""
    weights, _ = _offloaded(model, name)
    return model.get_parameter(name).device if weights is None else weights.device


def is_offloaded(model: nn.Module) -> bool:
    """Return True where some weights are brought in for each call."""
    return _weights(model) is not None


def reread(model: nn.Module) -> AbstractContextManager[object]:
    """Make autograd read offloaded weights again in the backward pass, instead of keeping them.

    Else all weights of a model would be in memory at once when that begins. Does nothing for a model on its
    devices.
    """
    weights = _weights(model)
    return nullcontext() if weights is None else saved_tensors_hooks(weights.pack, weights.unpack)


# ------------------------------------------------------------------------------------------------------ the machinery


Packed = (
    Tensor | tuple[str, Sequence[int], Sequence[int], int | torch.SymInt]
)  # a weight's name and which view of it


class Weights(Mapping[str, Tensor]):
    """The offloaded weights by parameter name, in memory or in safetensors files, with the edits made to them."""

    def __init__(self, loader: OffloadedWeightsLoader, device: torch.device, keeps: object) -> None:
        self.device, self._keeps = device, keeps
        self._loader = loader
        self._files: dict[str, Any] = {}
        self._edited: dict[str, Tensor] = {}
        self._lent: dict[int, tuple[StorageWeakRef, str]] = {}

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.stored(name).to(self.device)
        storage = tensor.untyped_storage()
        self._lent[storage.data_ptr()] = StorageWeakRef(storage), name
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._loader)

    def __len__(self) -> int:
        return len(self._loader)

    def stored(self, name: str) -> Tensor:
        """Return a weight where it lies.

        Raises: `ModelError` for one that is nowhere: of two tied ones, the map left one behind.
        """
        held = self._edited if name in self._edited else self._loader.state_dict
        if name in held:
            return held[name]
        if name not in self._loader.index:
            raise ModelError(f"{name} was offloaded and lies nowhere; give tied modules the same device.")
        place = self._loader.index[name]
        file = place["safetensors_file"]
        if file not in self._files:  # once: reading a file's header costs more than a small weight
            self._files[file] = safe_open(file, framework="pt", device="cpu")
        tensor: Tensor = self._files[file].get_tensor(place.get("weight_name", name))
        return tensor.to(getattr(torch, place["dtype"])) if "dtype" in place else tensor

    def are_apart(self, first: str, second: str) -> bool:
        """Return True where files hold a weight under each of two names, and the two differ."""
        places = [self._loader.index.get(name) for name in (first, second)]
        if None in places or places[0] == places[1]:
            return False
        return not torch.equal(self.stored(first), self.stored(second))

    def edit(self, name: str) -> tuple[Tensor, Callable[[], None]]:
        """Return a copy of a weight to change in place, which is used from now on, and a function that undoes that."""
        before = self._edited.get(name)
        self._edited[name] = self.stored(name).to(self.device, copy=True)

        def undo() -> None:
            if before is None:
                del self._edited[name]
            else:
                self._edited[name] = before

        return self._edited[name], undo

    def pack(self, tensor: Tensor) -> Packed:
        """Return the name of the weight that `tensor` is a view of, and which view; or `tensor` itself."""
        storage = tensor.untyped_storage()
        alive, name = self._lent.get(storage.data_ptr(), (None, ""))
        if alive is None or alive.expired() or not storage.data_ptr():
            return tensor
        return name, tensor.size(), tensor.stride(), tensor.storage_offset()

    def unpack(self, packed: Packed) -> Tensor:
        """Return the tensor that `pack` was given."""
        if isinstance(packed, Tensor):
            return packed
        name, size, stride, offset = packed
        return torch.as_strided(self[name], size, stride, offset)


def open_door_(model: PreTrainedModel, keeps: object = None) -> None:
    """Give all offloaded weights of a model one `Weights`, which keeps `keeps` alive as long as it lives."""
    hooks = [hook for module in model.modules() if (hook := _hook(module)) is not None]
    if not hooks:
        return
    loader, device = hooks[0].weights_map.dataset, torch.device(hooks[0].execution_device)
    for name, source in model.all_tied_weights_keys.items():
        if name in loader.index:  # perhaps alone: the other way round transformers does this
            loader.index.setdefault(source, loader.index[name])
    weights = Weights(loader, device, keeps)
    for hook in hooks:
        assert hook.weights_map.dataset is loader
        assert torch.device(hook.execution_device) == device
        hook.weights_map.dataset = weights


def _hook(module: nn.Module) -> AlignDevicesHook | None:
    """Return the hook that brings a module's own weights in, if they are offloaded."""
    hook = getattr(module, "_hf_hook", None)
    for part in getattr(hook, "hooks", (hook,)):
        if not isinstance(part, AlignDevicesHook) or not part.offload:
            continue
        if isinstance(part.weights_map, PrefixedDataset):
            return part
    return None


def _weights(model: nn.Module) -> Weights | None:
    return next((hook.weights_map.dataset for m in model.modules() if (hook := _hook(m)) is not None), None)


def _offloaded(model: nn.Module, name: str) -> tuple[Weights | None, str]:
    """Return the `Weights` that holds an offloaded parameter, and its name there."""
    path, _, last = name.rpartition(".")
    hook = _hook(model.get_submodule(path))
    return (None, name) if hook is None else (hook.weights_map.dataset, hook.weights_map.prefix + last)


def _identity(model: nn.Module, name: str) -> str | int:
    """Return a value that tied parameters share: of offloaded ones by transformers' ties, of others the object."""
    weights, key = _offloaded(model, name)
    if weights is None:
        return id(model.get_parameter(name))
    ties = getattr(model, "all_tied_weights_keys", {})
    while key in ties:
        key = ties[key]
    return key
