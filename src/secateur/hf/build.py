"""Models built from a config alone, without memory, and filled with tensors that exist already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from secateur.errors import ModelError
from secateur.hf import modeling_secateur
from secateur.hf.modeling_secateur import SecateurForCausalLM, carved_config
from secateur.hf.weights import stored

Find = Callable[[str], Tensor | None]  # a tensor by its name in the model that is built

AUTO_MAP = {
    "AutoConfig": "modeling_secateur.SecateurConfig",
    "AutoModelForCausalLM": "modeling_secateur.SecateurForCausalLM",
}


def repaired(config: Any, blocks: Sequence[int], **changes: Any) -> Any:
    """The config of the model that has only `blocks` left, with `changes`. Lists of one entry a block follow."""
    changes["num_hidden_layers"] = len(blocks)
    types = getattr(config, "layer_types", None)
    if types is not None:
        changes["layer_types"] = [types[block] for block in blocks]
    named = {config.attribute_map.get(name, name): value for name, value in changes.items()}
    stated = {key: value for key, value in config.to_dict().items() if key not in ("carving", "auto_map")}
    return _stock_config(type(config)).from_dict(stated | named)


def _stock_config(cls: type) -> type:
    return cls.__mro__[1] if cls.__name__ == modeling_secateur.SecateurConfig.__name__ else cls


def carving_of(config: Any) -> Sequence[Mapping[str, Any]]:
    """The operations that a carved model's config carries; none of a stock one."""
    carving = getattr(config, "carving", None)
    return () if carving is None else carving["operations"]


def carved(config: Any, operations: Sequence[Mapping[str, Any]]) -> Any:
    """A stock config with operations to replay: that of a model of our own class."""
    carving = {
        "version": modeling_secateur.VERSION,
        "family": config.model_type,
        "operations": list(operations),
    }
    own = {"carving": carving, "auto_map": AUTO_MAP, "architectures": [SecateurForCausalLM.__name__]}
    return carved_config(type(config)).from_dict(config.to_dict() | own)


def carved_architecture(name: str, stated: Mapping[str, Any]) -> str:
    """The class that a carved checkpoint was of, from its config.json. Raises `ModelError` where that is damaged."""
    wrong = _unlike(stated, stock=dict, carving=dict)
    wrong = wrong or _unlike(stated["carving"], version=int, family=str, operations=list)
    if wrong:
        raise ModelError(
            f"config.json of {name} has no {' and no '.join(wrong)} as secateur writes it: damaged. Copy it again."
        )
    family = stated["carving"]["family"]
    if family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(
            f"{name} was carved from a model of type {family!r}, which this version of transformers does not know."
        )
    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]


def _unlike(stated: Mapping[str, Any], **kinds: type) -> list[str]:
    return [repr(key) for key, kind in kinds.items() if not isinstance(stated.get(key), kind)]


def blank(config: Any, *, like: PreTrainedModel) -> PreTrainedModel:
    """The model of a config, stock or carved, on the meta device; dtype and attention as `like` has them."""
    is_carved = bool(getattr(config, "carving", None))
    cls = SecateurForCausalLM if is_carved else MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with torch.device("meta"):
        model = cls._from_config(
            config, dtype=like.dtype, attn_implementation=like.config._attn_implementation
        )
    model.generation_config = like.generation_config
    return model


def filled_(model: PreTrainedModel, find: Find) -> PreTrainedModel:
    """Gives a blank model its parameters and buffers, each as `find` gives it for its name.

    Raises `ModelError` where one is missing or does not fit: a blank rest would compute nonsense in silence.
    """
    for module, path, name, blank_tensor in _tensors(model):
        found = fitting(find, f"{path}.{name}".lstrip("."), blank_tensor)
        if isinstance(blank_tensor, nn.Parameter):
            module._parameters[name] = nn.Parameter(found.detach(), requires_grad=False)
        else:
            module._buffers[name] = found
    model.tie_weights()
    return model.eval()


def held_by(model: nn.Module) -> Find:
    """A model's own parameters and buffers, where they lie: an offloaded one is a view of its file."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = dict(model.named_buffers())
    return lambda name: stored(model, name) if name in names else buffers.get(name)


def fitting(find: Find, name: str, blank_tensor: Tensor) -> Tensor:
    """What `find` gives for a name. Raises `ModelError` for nothing, or another shape."""
    found = find(name)
    if found is None or found.shape != blank_tensor.shape:
        raise ModelError(f"{name} {tuple(blank_tensor.shape)} has no tensor that fits in the original.")
    return found


def _tensors(model: nn.Module) -> Iterator[tuple[nn.Module, str, str, Tensor]]:
    for path, module in model.named_modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                yield module, path, name, tensor


def as_stored(model: PreTrainedModel) -> dict[str, tuple[str, Tensor]]:
    """What `save_pretrained` would store: the name in the file → the model's own name for it, and a tensor of its
    shape and dtype. Tied weights are there once, and names are those of the family's checkpoints.

    Works on the meta device. Raises `ModelError` where transformers would store other tensors than the model has.
    """
    held = model.state_dict()
    own = {id(tensor): name for name, tensor in held.items()}
    for name in model._keys_to_ignore_on_save or ():
        held.pop(name, None)
    named = revert_weight_conversion(model, remove_tied_weights_from_state_dict(held, model))
    foreign = [name for name, tensor in named.items() if id(tensor) not in own]
    if foreign:
        raise ModelError(
            f"{type(model).__name__} is stored in another form than it computes with ({foreign[0]}), which cannot be "
            "written tensor by tensor."
        )
    return {name: (own[id(tensor)], tensor) for name, tensor in named.items()}
