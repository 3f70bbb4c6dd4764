"""Build models from a config alone, without memory, and fill them with tensors that exist already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from secateur.errors import ModelError
from secateur.hf import modeling_secateur
from secateur.hf.anatomy import stock_class
from secateur.hf.families import DECISIONS
from secateur.hf.family import CAUSAL, LABELS, Head
from secateur.hf.generation import generation_config
from secateur.hf.modeling_secateur import CLASSIFIES, SecateurForCausalLM, carved_config
from secateur.hf.weights import stored

Auto = (
    type[SecateurForCausalLM]
    | type[AutoModelForCausalLM]
    | type[AutoModelForImageTextToText]
    | type[AutoModelForMaskedLM]
    | type[AutoModelForSeq2SeqLM]
    | type[AutoModelForSequenceClassification]
    | type[AutoModel]
)
Find = Callable[[str], Tensor | None]  # a tensor by its name in the model that is built

AUTO_MAP = {
    "AutoConfig": "modeling_secateur.SecateurConfig",
    "AutoModelForCausalLM": "modeling_secateur.SecateurForCausalLM",
}
_FIRST = (
    "first_k_dense_replace",
    "num_dense_layers",
    "moe_layer_start_index",
)  # so many blocks are of another kind
_LISTED = ("mlp_only_layers", "full_attn_idxs", "attn_layer_indices")  # the numbers of blocks of another kind
IMAGES = {"AutoModelForImageTextToText": AUTO_MAP["AutoModelForCausalLM"]}


def repaired(config: PreTrainedConfig, blocks: Sequence[int], **changes: object) -> PreTrainedConfig:
    """Return the config of the model that has only `blocks` left, with `changes`.

    Of a multimodal model both are of its language model, and the rest stays. Lists that are named after layers and
    have an entry for each are cut alike, such as `layer_types` and `no_rope_layers`.
    """
    text = config.get_text_config()
    stated = text.to_dict()
    for name, values in _by_block(text).items():
        kept = [values[block] for block in blocks]
        changes[name] = kept
        if name == "attention_layers":  # of GPT-Neo, which makes that list from another
            changes["attention_types"] = [[[value], 1] for value in kept]
        if name in _FIRST:
            changes[name] = sum(kept)
        if name in _LISTED:
            changes[name] = [new for new, listed in enumerate(kept) if listed]
    if "decoder_sparse_step" in stated and len(blocks) < text.num_hidden_layers:
        changes["decoder_sparse_step"] = 1  # what it leaves out is in the list now
    changes["num_hidden_layers"] = len(blocks)
    named = {text.attribute_map.get(name, name): value for name, value in changes.items()}
    return restated(config, **(named if text is config else {"text_config": stated | named}))


def restated(config: PreTrainedConfig, **changes: object) -> PreTrainedConfig:
    """Return the config of the family's stock class with `changes`."""
    whole = config.to_dict() | changes
    whole = {key: value for key, value in whole.items() if key not in ("carving", "auto_map")}
    stock: type[PreTrainedConfig] = type(config)
    if stock.__name__ == modeling_secateur.SecateurConfig.__name__:
        stock = stock.__mro__[1]
    return stock.from_dict(whole)


def _by_block(text: PreTrainedConfig) -> dict[str, list[Any]]:
    """Return what a config says of each block, by the attribute that says it: an entry of a list that is named after
    layers, or True for a block that is counted or listed."""
    found, every, stated = {}, range(text.num_hidden_layers), text.to_dict()
    for name, value in stated.items():
        if "layer" in name and isinstance(value, list) and len(value) == len(every):
            found[name] = value
        if name in _FIRST and isinstance(value, int):
            found[name] = [block < value for block in every]
        if name in _LISTED and isinstance(value, list):
            found[name] = [block in value for block in every]
    if "decoder_sparse_step" in stated:  # every so many blocks are mixtures, the others are as if listed
        listed = found["mlp_only_layers"]
        found["mlp_only_layers"] = [listed[b] or (b + 1) % stated["decoder_sparse_step"] > 0 for b in every]
    return found


def of_each_kind(config: PreTrainedConfig, count: int, least: int) -> list[int]:
    """Return the first `count` blocks of each kind that a config tells apart, and the first others up to `least`."""
    text = config.get_text_config()
    said = _by_block(text).values()
    kinds = [repr([values[block] for values in said]) for block in range(text.num_hidden_layers)]
    first = [block for block, kind in enumerate(kinds) if kinds[:block].count(kind) < count]
    others = [block for block in range(len(kinds)) if block not in first]
    return sorted(first + others[: max(0, least - len(first))])


def carving_of(config: PreTrainedConfig) -> Sequence[Mapping[str, object]]:
    """Return the operations that a carved model's config carries; none for a stock one."""
    carving = getattr(config, "carving", None)
    return () if carving is None else carving["operations"]


def carved(
    config: PreTrainedConfig, operations: Sequence[Mapping[str, object]], head: Head
) -> PreTrainedConfig:
    """Return a stock config with operations to replay: the config of a model of our own class, with this head."""
    carving: dict[str, object] = {
        "version": modeling_secateur.VERSION,
        "family": config.model_type,
        "operations": list(operations),
    }
    if head is LABELS:
        carving[CLASSIFIES] = True
    auto_map = AUTO_MAP if config.get_text_config() is config else AUTO_MAP | IMAGES
    if head is not CAUSAL:
        auto_map = {"AutoConfig": AUTO_MAP["AutoConfig"], head.auto: AUTO_MAP["AutoModelForCausalLM"]}
    added = {"carving": carving, "auto_map": auto_map, "architectures": [SecateurForCausalLM.__name__]}
    family_config: type[PreTrainedConfig] = type(config)
    made: PreTrainedConfig = carved_config(family_config).from_dict(config.to_dict() | added)  # type: ignore[arg-type]  # it hashes
    return made


def carved_architecture(name: str, stated: Mapping[str, Any]) -> str:
    """Return the stock class of a carved checkpoint, from its config.json.

    Raises: `ModelError` where that is damaged.
    """
    wrong = _unlike(stated, stock=dict, carving=dict)
    wrong = wrong or _unlike(stated["carving"], version=int, family=str, operations=list)
    if wrong:
        raise ModelError(
            f"config.json of {name} has no {' and no '.join(wrong)} as secateur writes it: damaged. Copy it again."
        )
    family = stated["carving"]["family"]
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES | MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    known |= {of.name: architecture for architecture, of in DECISIONS.items()}
    if not stated["stock"].get("is_decoder"):
        known |= MODEL_FOR_MASKED_LM_MAPPING_NAMES  # above the causal class that some of them have too
    if stated["carving"].get(CLASSIFIES):
        known = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    elif stated["stock"].get("is_encoder_decoder"):
        known = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    if family not in known:
        raise ModelError(
            f"{name} was carved from a model of type {family!r}, which this version of transformers does not know."
        )
    return known[family]


def _unlike(stated: Mapping[str, object], **kinds: type) -> list[str]:
    return [repr(key) for key, kind in kinds.items() if not isinstance(stated.get(key), kind)]


def blank(config: PreTrainedConfig, *, like: PreTrainedModel) -> PreTrainedModel:
    """Return the model of a config, stock or carved, on the meta device, that computes as `like` does."""
    is_carved = bool(getattr(config, "carving", None))
    cls: type[PreTrainedModel] = SecateurForCausalLM if is_carved else stock_class(type(like))
    with torch.device("meta"):
        model: PreTrainedModel = cls._from_config(
            config,
            dtype=like.dtype,
            attn_implementation=like.config._attn_implementation,
            experts_implementation=like.config._experts_implementation,
        )
    ties = like.all_tied_weights_keys  # not always those of the config: T5's own class ties whatever it says
    model.all_tied_weights_keys = {
        name: source for name, source in model.all_tied_weights_keys.items() if name in ties
    }
    if (generation := generation_config(like)) is not None:
        model.generation_config = generation
    return model


def filled_(model: PreTrainedModel, find: Find) -> PreTrainedModel:
    """Give a blank model its parameters and buffers, each as `find` returns it for its name.

    Raises: `ModelError` where one is missing or does not fit: a partly blank model would compute nonsense
    silently.
    """
    for module, path, name, blank_tensor in _tensors(model):
        tensor = fitting(find, f"{path}.{name}".lstrip("."), blank_tensor)
        if isinstance(blank_tensor, nn.Parameter):
            module._parameters[name] = nn.Parameter(tensor.detach(), requires_grad=False)
        else:
            module._buffers[name] = tensor
    model.tie_weights()
    model.eval()
    return model


def held_by(model: nn.Module) -> Find:
    """Return a function from a name to the model's parameter or buffer; an offloaded one is a view of its file."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = dict(model.named_buffers())
    return lambda name: stored(model, name) if name in names else buffers.get(name)


def fitting(find: Find, name: str, blank_tensor: Tensor) -> Tensor:
    """Return the tensor that `find` has for a name. Raises: `ModelError` for none, or another shape."""
    tensor = find(name)
    if tensor is None or tensor.shape != blank_tensor.shape:
        raise ModelError(f"{name} {tuple(blank_tensor.shape)} has no tensor that fits in the original.")
    return tensor


def _tensors(model: nn.Module) -> Iterator[tuple[nn.Module, str, str, Tensor]]:
    for path, module in model.named_modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                yield module, path, name, tensor


def as_stored(model: PreTrainedModel) -> dict[str, tuple[str, Tensor]]:
    """Return the tensors that `save_pretrained` would store: name in the file → (name in the model, tensor).

    The tensor has the stored shape and dtype. Tied weights are there once, and names are those of the family's
    checkpoints. Tensors that are stored in another form, as experts are one by one, have their name in the file for
    that in the model too, which `finding_stored` understands. Works on the meta device.

    Raises: `ModelError` where a stored tensor is made of several of the model.
    """
    named, whole, parts = _forms(model)
    foreign = [name for name in named if name not in whole and name not in parts]
    if foreign:
        raise ModelError(
            f"{type(model).__name__} is stored in another form than it computes with ({foreign[0]}), so apply cannot "
            "write it tensor by tensor. prune writes it from memory."
        )
    return {name: (whole.get(name, name), tensor) for name, tensor in named.items()}


def finding_stored(model: PreTrainedModel, find: Find) -> Find:
    """Return `find` with all that transformers would make of its tensors to store them, by their names in files.

    The parts of at most two tensors are kept: those that all experts of a network are in.

    Args:
        model: May be blank.
    """
    _, _, parts = _forms(model)
    kept: dict[str, Mapping[str, Tensor]] = {}

    def found(name: str) -> Tensor | None:
        if name not in parts:
            return find(name)
        source = parts[name]
        if source not in kept:
            while len(kept) > 1:
                del kept[next(iter(kept))]
            whole = find(source)
            kept[source] = {} if whole is None else revert_weight_conversion(model, {source: whole})
        return kept[source].get(name)

    return found


def _forms(model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """Return the tensors that would be stored, by their names in files; the model's names of those that are stored as
    they are; and those of the tensors that others are a part of."""
    held = model.state_dict()
    for name in model._keys_to_ignore_on_save or ():
        held.pop(name, None)
    held = remove_tied_weights_from_state_dict(held, model)
    named = revert_weight_conversion(model, held)
    names = {id(tensor): name for name, tensor in held.items()}
    whole = {name: names[id(tensor)] for name, tensor in named.items() if id(tensor) in names}
    sources = set(whole.values())
    parts = {
        part: source
        for source, tensor in held.items()
        if source not in sources
        for part, made in revert_weight_conversion(model, {source: tensor}).items()
        if part in named and made.shape == named[part].shape
    }
    return named, whole, parts
