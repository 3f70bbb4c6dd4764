"""Models built from a config alone, without memory, and filled with tensors that exist already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from secateur.errors import ModelError
from secateur.hf import modeling_secateur
from secateur.hf.modeling_secateur import SecateurForCausalLM, carved_config

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


def filled_(
    model: PreTrainedModel,
    original: PreTrainedModel,
    tensors: Mapping[str, Tensor],
    before: Mapping[str, str],
) -> PreTrainedModel:
    """Gives a blank model its tensors: those of `tensors`, else those of `original`, both under the original's names.

    `before` says which path of a block of the original a block's path stands for. Raises `ModelError` where a tensor
    is missing or does not fit: a blank rest would compute nonsense in silence.
    """
    known = dict(original.named_parameters(remove_duplicate=False)) | dict(original.named_buffers())
    for module, path, name, blank_tensor in _tensors(model):
        old = _original_name(f"{path}.{name}".lstrip("."), before)
        found = tensors.get(old, known.get(old))
        if found is None or found.shape != blank_tensor.shape:
            raise ModelError(
                f"{path}.{name} {tuple(blank_tensor.shape)} has no tensor that fits in the original."
            )
        if isinstance(blank_tensor, nn.Parameter):
            module._parameters[name] = nn.Parameter(found.detach(), requires_grad=False)
        else:
            module._buffers[name] = found
    model.tie_weights()
    return model.eval()


def _tensors(model: nn.Module) -> Iterator[tuple[nn.Module, str, str, Tensor]]:
    for path, module in model.named_modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                yield module, path, name, tensor


def _original_name(name: str, before: Mapping[str, str]) -> str:
    for new, old in before.items():
        if name.startswith(f"{new}."):
            return old + name.removeprefix(new)
    return name
