"""A transformers model with parts of it cut away: its family's stock class, then carved to the shapes that are left.

This file lies beside the weights of a checkpoint that secateur cut, and needs torch and transformers only:

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

A masked language model is read so by `AutoModelForMaskedLM`, a sequence classifier by
`AutoModelForSequenceClassification`, an encoder-decoder by `AutoModelForSeq2SeqLM`, a decision transformer by
`AutoModel`. `config.json` holds the family's own configuration under `stock`, and under `carving` what is different: a
list of operations on modules named by their paths. Parameters keep the names they have in the stock model.
"""

# mypy: ignore-errors
# Base classes here are known at run time only, which no type checker can follow.
from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    Cache,
    EncoderDecoderCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)

VERSION = 1
CLASSIFIES = "classifies"  # in a carving: the model is its family's sequence classifier
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
NOT_STOCK = {
    "attn_implementation": "(parts of this model are cut away: load it with trust_remote_code=True)",
    "vocab_size": -1,
    **dict.fromkeys(TOKEN_IDS),
}
"""Values at the top of config.json of which no stock class can be built. The error about the attention implementation
repeats these words; the vocabulary size stops callers who name another one. Without token ids the configuration itself
is read in silence, which `AutoTokenizer` needs."""

# -------------------------------------------------------------------------------------------------------- configuration


class SecateurConfig(PreTrainedConfig):
    """The class that `AutoConfig` finds by name; it loads the family's own configuration, which keeps the carving."""

    @classmethod
    def from_pretrained(cls, name: str, **kwargs: object) -> PreTrainedConfig:
        """Load the configuration from a folder or the hub."""
        stated, unused = cls.get_config_dict(name, **kwargs)
        return cls.from_dict(stated, **unused)

    @classmethod
    def from_dict(cls, config_dict: dict[str, object], **kwargs: object) -> PreTrainedConfig:
        """Return the family's configuration, with the carving. Raises: `ValueError` for another version."""
        carving = config_dict["carving"]
        if carving["version"] != VERSION:
            raise ValueError(
                f"this checkpoint is carved by version {carving['version']}, and this code reads version {VERSION}."
            )
        own = {
            key: config_dict[key] for key in ("carving", "auto_map", "architectures") if key in config_dict
        }
        stock = CONFIG_MAPPING[carving["family"]]
        return carved_config(stock).from_dict(config_dict["stock"] | own, **kwargs)


def _not_stock(stock: type[PreTrainedConfig]) -> dict[str, object]:
    """Return the values of NOT_STOCK that the family's configuration can be read with: some want a number."""
    declared: dict[str, object] = {}
    for cls in reversed(stock.__mro__):
        declared |= vars(cls).get("__annotations__", {})
    wanted = [name for name in TOKEN_IDS if name in declared and "None" not in str(declared[name])]
    return NOT_STOCK | {name: getattr(stock(), name) for name in wanted}


@lru_cache
def carved_config(stock: type[PreTrainedConfig]) -> type[PreTrainedConfig]:
    """Return the family's configuration class with a `to_diff_dict` from which no stock class can be built.

    `AutoTokenizer` still finds the family in what it writes.
    """

    class CarvedConfig(stock):
        _auto_class = "AutoConfig"

        def get_text_config(
            self, decoder: bool | None = None, encoder: bool | None = None
        ) -> PreTrainedConfig:
            found = super().get_text_config(decoder=decoder, encoder=encoder)
            if not decoder or encoder or not hasattr(found, "num_decoder_layers"):
                return found
            found = copy.deepcopy(found)  # caches are made of it, with a layer for each block of T5's encoder
            found.num_layers = found.num_decoder_layers
            return found

        def to_diff_dict(self) -> dict[str, object]:
            inner = super().to_diff_dict()
            outer = ("model_type", "carving", "auto_map", "architectures", "transformers_version")
            shown = {key: inner.pop(key) for key in outer if key in inner}
            return _not_stock(stock) | shown | {"stock": inner}

    CarvedConfig.__name__ = CarvedConfig.__qualname__ = SecateurConfig.__name__  # config.json names it so
    return CarvedConfig


# ---------------------------------------------------------------------------------------------------------------- model


class SecateurForCausalLM(PreTrainedModel, GenerationMixin):
    """The class that `AutoModelForCausalLM` and its like find by name; it loads the family's own class, carved."""

    config_class = SecateurConfig

    @classmethod
    def from_pretrained(
        cls, name: str, *args: object, config: PreTrainedConfig | None = None, **kwargs: object
    ) -> PreTrainedModel:
        """Load the carved model from a folder or the hub."""
        config = SecateurConfig.from_pretrained(name) if config is None else config
        return carved_model(_stock(config)).from_pretrained(name, *args, config=config, **kwargs)

    @classmethod
    def _from_config(cls, config: PreTrainedConfig, **kwargs: object) -> PreTrainedModel:
        return carved_model(_stock(config))._from_config(config, **kwargs)


def _stock(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class that a configuration carves: a classifier, or with a head of language.

    What can be masked comes first, unless it is a decoder, for BERT has a causal class too; so has Qwen3.5 with images.
    """
    stock = type(config).__mro__[1]
    if config.carving.get(CLASSIFIES):
        return MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[stock]
    if getattr(config, "is_encoder_decoder", False):
        return MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING[stock]
    by_kind = (
        *(() if getattr(config, "is_decoder", False) else (MODEL_FOR_MASKED_LM_MAPPING,)),
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_MAPPING,  # of a model that has no head of language at all
    )
    return next(mapping[stock] for mapping in by_kind if stock in mapping)


@lru_cache
def carved_model(stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return the family's model class, which carves itself as soon as it is built, before any weight is read."""
    kinds = {
        "ForSeq2SeqLM": MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        "ForMaskedLM": MODEL_FOR_MASKED_LM_MAPPING,
        "ForSequenceClassification": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        "": MODEL_MAPPING,
    }
    config_of_stock = stock.config_class
    of_stock = (name for name, known in kinds.items() if known.get(config_of_stock, None) is stock)
    kind = next(of_stock, "ForCausalLM")

    class CarvedForCausalLM(stock):
        config_class = carved_config(config_of_stock)
        _auto_class = f"AutoModel{kind}"

        def __init__(self, config: PreTrainedConfig, *args: object, **kwargs: object) -> None:
            inner = config
            if kind == "ForSequenceClassification":  # many find their blocks' class by the configuration's
                inner = copy.copy(config)
                inner.__class__ = config_of_stock
            super().__init__(inner, *args, **kwargs)
            self.config = config
            carve_(self, config.carving["operations"])

        def _init_weights(self, module: nn.Module) -> None:
            if not any(isinstance(part, SUBSTITUTES) for part in module.children()):
                super()._init_weights(module)  # else it would look for the part that was there

    CarvedForCausalLM.__name__ = CarvedForCausalLM.__qualname__ = SecateurForCausalLM.__name__
    return CarvedForCausalLM


def carve_(model: nn.Module, operations: Sequence[Mapping[str, object]]) -> None:
    """Resize, replace or remove modules of `model`. New parameters are undefined until weights are loaded."""
    for operation in operations:
        if operation["op"] not in OPERATIONS:
            raise ValueError(f"this checkpoint asks for {operation['op']!r}, which this code cannot do.")
        arguments = {key: value for key, value in operation.items() if key not in ("op", "path")}
        OPERATIONS[operation["op"]](model, operation["path"], **arguments)


def _resize(model: nn.Module, path: str, rows: int, columns: int) -> None:
    """Resize a linear layer to `columns` inputs and `rows` outputs; it stays of its class."""
    linear = model.get_submodule(path)
    conv1d = hasattr(linear, "nf")  # GPT-2 keeps weights (in, out)
    shape = (columns, rows) if conv1d else (rows, columns)
    linear.weight = nn.Parameter(nn.init.normal_(linear.weight.new_empty(shape), std=0.02))
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.new_zeros(rows))
    if conv1d:
        linear.nx, linear.nf = columns, rows
    else:
        linear.in_features, linear.out_features = columns, rows


def _bias(model: nn.Module, path: str) -> None:
    """Give a linear layer a bias."""
    linear = model.get_submodule(path)
    linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features))


def _like(model: nn.Module, path: str, other: str) -> None:
    """Put a copy of the module `other` beside it at `path`, where this block of the class has none of its own."""
    beside = model.get_submodule(f"{path.rpartition('.')[0]}.{other}")
    model.set_submodule(path, copy.deepcopy(beside))


def _attributes(model: nn.Module, path: str, values: Mapping[str, int]) -> None:
    """Set counts of heads that the module keeps for itself, or reads from its configuration (`config.NAME`)."""
    module = model.get_submodule(path)
    of_config = {key[7:]: value for key, value in values.items() if key.startswith("config.")}
    if of_config:
        module.config = Otherwise(module.config, of_config)
    for name, value in values.items():
        if not name.startswith("config."):
            setattr(module, name, value)


class Otherwise:
    """A configuration that has other values for one module."""

    def __init__(self, config: PreTrainedConfig, values: Mapping[str, int]) -> None:
        self._config, self._values = config, dict(values)

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") or name in ("_config", "_values"):  # asked while this is being copied
            raise AttributeError(name)
        return self._values[name] if name in self._values else getattr(self._config, name)


def _some_heads(model: nn.Module, path: str, heads: Sequence[int], of: int) -> None:
    """Select the positions' biases (ALiBi), made for `of` heads, of the `heads` that are left."""

    def select(tensor: object) -> object:
        if not isinstance(tensor, Tensor):
            return tensor
        if tensor.dim() == 3:  # (batch × heads, 1, length)
            return tensor.unflatten(0, (-1, of))[:, heads].flatten(0, 1)
        return tensor[:, heads] if tensor.dim() == 4 and tensor.shape[1] == of else tensor

    def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple:
        biases = ("alibi", "position_bias", "attention_mask")
        return args, {k: select(v) if k in biases else v for k, v in kwargs.items()}

    model.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True)


def _per_head(model: nn.Module, path: str, names: Sequence[str], heads: int) -> None:
    """Give parameters that have a number for each head room for `heads`."""
    module = model.get_submodule(path)
    for name in names:
        put_tensor(module, name, module.get_parameter(name).detach()[:heads].clone())


def _experts(model: nn.Module, path: str, rows: Mapping[str, int], of: int, left: int) -> None:
    """Give a mixture of `of` experts and its router room for `left`; `rows` has the dimension of each tensor that
    counts them."""
    network = model.get_submodule(path)
    for name, dimension in rows.items():
        within, _, last = name.rpartition(".")
        module = network.get_submodule(within)
        put_tensor(module, last, getattr(module, last).detach().narrow(dimension, 0, left).clone())
    recount_experts(network, of, left)


def put_tensor(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in the place of a module's parameter or buffer, which may have another shape."""
    if name in module._parameters:
        module._parameters[name] = nn.Parameter(tensor, module._parameters[name].requires_grad)
    else:
        module._buffers[name] = tensor


def recount_experts(network: nn.Module, of: int, left: int) -> None:
    """Write `left` in the place of the number of experts that modules keep for themselves."""
    for module in network.modules():
        if getattr(module, "num_experts", None) == of:
            module.num_experts = left


class Nothing(nn.Module):
    """The substitute of a linear layer that has no outputs left."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_empty(*x.shape[:-1], 0)


class Constant(nn.Module):
    """The substitute of a feed-forward network, or of its output: `width` zeros, or the bias that was left of it."""

    weight = None  # T5 looks for one

    def __init__(self, width: int, bias: bool = False) -> None:
        super().__init__()
        self.width = width
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(*x.shape[:-1], self.width)
        return out if self.bias is None else out + self.bias


class NoAttention(nn.Module):
    """The substitute of an attention: zeros, or the bias that was left of it (some families: plus the residual).

    It keeps one number a token in the cache, because block 0's part of the cache tells how many tokens there
    are. `alone`: it returns a list of what it computes and nothing else.
    """

    def __init__(
        self, width: int, layer: int, bias: bool = False, residual: bool = False, alone: bool = False
    ) -> None:
        super().__init__()
        self.output, self.layer_idx, self.residual, self.alone = Constant(width, bias), layer, residual, alone

    def forward(
        self, hidden_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, None] | list[Tensor]:
        source = kwargs.get("key_value_states")
        for value in (*args, *kwargs.values()):
            if isinstance(value, Cache):
                _mark(value, hidden_states, source, self.layer_idx)
        out = self.output(hidden_states)
        if self.residual:
            out = out + (kwargs["residual"] if "residual" in kwargs else args[0])
        return [out] if self.alone else (out, None)


def _mark(cache: Cache, hidden_states: Tensor, source: Tensor | None, layer: int) -> None:
    """Let a cache count the tokens that an attention would have kept: those of its text, or once those of a source."""
    if isinstance(cache, EncoderDecoderCache):
        if source is not None and cache.is_updated.get(layer):
            return
        if source is not None:
            cache.is_updated[layer] = True
        cache = cache.self_attention_cache if source is None else cache.cross_attention_cache
    kept = hidden_states if source is None else source
    mark = kept.new_zeros(kept.shape[0], 1, kept.shape[1], 1)
    cache.update(mark, mark, layer)


def _positions(
    attention: nn.Module,
    hidden_states: Tensor,
    source: Tensor | None,
    bias: Tensor | None,
    cache: Cache | None,
) -> Tensor | None:
    """Return the biases of positions that an attention got from the one before, or, of the first to its own, makes."""
    if source is not None or bias is not None or not attention.has_relative_attention_bias:
        return bias
    past = 0 if cache is None else cache.get_seq_length(attention.layer_idx)
    length = hidden_states.shape[1]
    return attention.compute_bias(length, past + length, device=hidden_states.device, past_seen_tokens=past)


def _shared_bias(model: nn.Module, path: str, heads: Sequence[int]) -> None:
    """Let an attention that got biases of positions for all heads use those of `heads`, and hand all of them on."""
    module = model.get_submodule(path)
    earlier = getattr(module, "kept_heads", None)
    if earlier is None:
        module.__class__ = _some_of_shared(type(module))
    module.kept_heads = list(heads) if earlier is None else [earlier[head] for head in heads]


@lru_cache
def _some_of_shared(cls: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass under the same name; of an attention to a source biases are zeros, and made anew."""

    class SomeOfShared(cls):
        def forward(
            self,
            hidden_states: Tensor,
            mask: Tensor | None = None,
            key_value_states: Tensor | None = None,
            position_bias: Tensor | None = None,
            past_key_values: Cache | None = None,
            **kwargs: object,
        ) -> tuple[Tensor, Tensor | None, Tensor | None]:
            shared = _positions(self, hidden_states, key_value_states, position_bias, past_key_values)
            crosses = key_value_states is not None
            own = None if crosses or shared is None else shared[:, self.kept_heads]
            out, _, weights = super().forward(
                hidden_states, mask, key_value_states, own, past_key_values, **kwargs
            )
            return out, shared, weights

    SomeOfShared.__name__ = cls.__name__
    return SomeOfShared


class NoSharedAttention(nn.Module):
    """The substitute of an attention that makes biases of positions for other blocks, or hands them on: zeros."""

    def __init__(self, attention: nn.Module, layer: int) -> None:
        super().__init__()
        self.layer_idx, self.is_decoder = layer, attention.is_decoder
        self.has_relative_attention_bias = attention.has_relative_attention_bias
        self.relative_attention_num_buckets = attention.relative_attention_num_buckets
        self.relative_attention_max_distance = attention.relative_attention_max_distance
        self._relative_position_bucket = attention._relative_position_bucket
        if self.has_relative_attention_bias:
            self.relative_attention_bias = attention.relative_attention_bias
        self._compute_bias = type(attention).compute_bias

    def compute_bias(self, *args: object, **kwargs: object) -> Tensor:
        return self._compute_bias(self, *args, **kwargs)

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None = None,
        key_value_states: Tensor | None = None,
        position_bias: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor | None, None]:
        shared = _positions(self, hidden_states, key_value_states, position_bias, past_key_values)
        if past_key_values is not None:
            _mark(past_key_values, hidden_states, key_value_states, self.layer_idx)
        return torch.zeros_like(hidden_states), shared, None


def _no_shared_attention(model: nn.Module, path: str, layer: int) -> None:
    """Take the matrices of an attention away; what it makes and hands on for other blocks stays."""
    model.set_submodule(path, NoSharedAttention(model.get_submodule(path), layer))


class LowRank(nn.Module):
    """A linear layer of low rank as two: first to `rank` numbers, then to the outputs, y = (x Aᵀ) B + b."""

    def __init__(self, rows: int, columns: int, rank: int, bias: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = columns, rows
        self.a = nn.Parameter(nn.init.normal_(torch.empty(rank, columns), std=0.02))
        self.b = nn.Parameter(nn.init.normal_(torch.empty(rank, rows), std=0.02))
        self.bias = nn.Parameter(torch.zeros(rows)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(x, self.a) @ self.b
        return y if self.bias is None else y + self.bias

    @property
    def weight(self) -> Tensor:
        """Return a tensor of the dtype that it computes in, which T5 looks at."""
        return self.b


class Side(nn.Module):
    """Several linear layers that were one fused layer: their outputs side by side, in each of `groups` groups."""

    def __init__(self, parts: Sequence[nn.Module], groups: int) -> None:
        super().__init__()
        self.parts, self.groups = nn.ModuleList(parts), groups
        self.out_features = sum(part.out_features for part in parts)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [part(x).unflatten(-1, (self.groups, -1)) for part in self.parts]
        return torch.cat(outputs, dim=-1).flatten(-2)


SUBSTITUTES = (Nothing, Constant, NoAttention, NoSharedAttention, LowRank, Side)


class Beside(LowRank):
    """A linear map of low rank beside the identity: y = x + (x Aᵀ) B + b."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def _entry(model: nn.Module, path: str, width: int, ranks: Sequence[int | None]) -> None:
    """Put linear maps, which replace removed blocks, before the module at `path`."""
    module = model.get_submodule(path)
    maps = (nn.Linear(width, width) if rank is None else Beside(width, width, rank, True) for rank in ranks)
    module.entry = nn.Sequential(*maps)
    module.__class__ = _entered(type(module))


@lru_cache
def _entered(cls: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass under the same name, so that code that asks for it by name or kind still finds it."""

    class Entered(cls):
        def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> object:
            return super().forward(self.entry(hidden_states), *args, **kwargs)

    Entered.__name__ = cls.__name__
    return Entered


def _stand(make: Callable[..., nn.Module]) -> Callable[..., None]:
    def put(model: nn.Module, path: str, **arguments: object) -> None:
        model.set_submodule(path, make(**arguments))

    return put


def _linear(rows: int, columns: int, bias: bool, rank: int | None = None) -> nn.Module:
    return nn.Linear(columns, rows, bias) if rank is None else LowRank(rows, columns, rank, bias)


def _side(parts: Sequence[Mapping[str, object]], groups: int) -> Side:
    return Side([_linear(**part) for part in parts], groups)


OPERATIONS: Mapping[str, Callable[..., None]] = {
    "bias": _bias,
    "entry": _entry,
    "like": _like,
    "resize": _resize,
    "attributes": _attributes,
    "some_heads": _some_heads,
    "per_head": _per_head,
    "experts": _experts,
    "shared_bias": _shared_bias,
    "no_shared_attention": _no_shared_attention,
    "nothing": _stand(Nothing),
    "constant": _stand(Constant),
    "no_attention": _stand(NoAttention),
    "low_rank": _stand(LowRank),
    "side": _stand(_side),
}
