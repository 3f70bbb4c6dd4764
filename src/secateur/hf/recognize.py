"""Recognize the family of a model by its class and config; say why another is not read; list what is.

Names and attributes only, before anything is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import NamedTuple

from transformers import CONFIG_MAPPING

from secateur.errors import ModelError
from secateur.hf.families import ARCHITECTURES, CLASSIFIERS, DECISIONS, FAMILIES, OF_TYPE, TOWERS
from secateur.hf.family import ACTIONS, CLASSIFIER, PAIRS, Family

_LATENT = "whose keys and values come from a code of low rank (latent attention), which no head owns"
_UNREAD: Mapping[str, Sequence[str]] = {
    "a model that keeps a state in place of attention": (
        "FalconMambaForCausalLM", "Mamba2ForCausalLM", "MambaForCausalLM", "RwkvForCausalLM", "xLSTMForCausalLM",
    ),
    "a hybrid, of which some blocks keep a state or convolve in place of attention": (
        "BambaForCausalLM", "Lfm2ForCausalLM", "Lfm3ForCausalLM", "OlmoHybridForCausalLM",
        "Qwen3_5ForCausalLM", "RecurrentGemmaForCausalLM", "Zamba2ForCausalLM", "ZambaForCausalLM",
    ),
    "a hybrid, of which blocks keep a state beside their attention": ("FalconH1ForCausalLM",),
    "a mixture of experts and a hybrid, of which some blocks keep a state or convolve in place of attention": (
        "BailingHybridForCausalLM", "GraniteMoeHybridForCausalLM", "Inkling2ForCausalLM", "InklingForCausalLM",
        "JambaForCausalLM", "KimiLinearForCausalLM", "Lfm2MoeForCausalLM", "MiniMaxForCausalLM", "NemotronHForCausalLM",
        "Qwen3NextForCausalLM", "Qwen3_5MoeForCausalLM", "Qwen4ExpForCausalLM",
    ),
    f"a decoder {_LATENT}": ("MiniCPM3ForCausalLM",),
    "a decoder of which transformers empties the padding's embedding while it is loaded": ("YoutuForCausalLM",),
    f"a mixture of experts {_LATENT}": ("AXK1ForCausalLM", "LongcatFlashForCausalLM"),
    "a mixture of experts of which an indexer chooses the keys that attention looks at": (
        "AXK2ForCausalLM", "DeepseekV32ForCausalLM", "DeepseekV4ForCausalLM", "Dots3NoteForCausalLM",
        "GlmMoeDsaForCausalLM", "HYV4ForCausalLM", "MiniMaxM3VLForCausalLM",
    ),
    "a mixture of experts of which a gate multiplies what attention gives": (
        "AfmoeForCausalLM", "BeamForCausalLM", "LagunaForCausalLM",
    ),
    "a mixture of experts with attention of other shapes in some blocks": ("MiMoV2FlashForCausalLM",),
    "a mixture of experts of which the router weighs what enters an expert": ("Llama4ForCausalLM",),
    "a decoder of which blocks differ in the size of heads, and later ones read the keys and values of earlier ones": (
        "Gemma3nForCausalLM", "Gemma4ForCausalLM", "Gemma4UnifiedForCausalLM",
    ),
    "a small model beside a large one, of which it reads the keys and values": (
        "Gemma4AssistantForCausalLM", "Gemma4UnifiedAssistantForCausalLM",
    ),
    "a decoder of which heads are taken in pairs, one from the other": ("DiffLlamaForCausalLM",),
    "a decoder whose attention is masked by what all value heads hold": ("DogeForCausalLM",),
    "a decoder that runs its blocks more than once": ("HrmTextForCausalLM",),
    "a decoder of which the first block, or the last, has other parameters than the rest": (
        "GPTNeoXJapaneseForCausalLM", "ModernBertDecoderForCausalLM",
    ),
    "a decoder that keeps its cache as an encoder-decoder does": (
        "MegatronBertForCausalLM", "RemBertForCausalLM",
    ),
    "the decoder of an encoder-decoder model": (
        "BartForCausalLM", "BigBirdPegasusForCausalLM", "BlenderbotForCausalLM", "BlenderbotSmallForCausalLM",
        "MBartForCausalLM", "MarianForCausalLM", "MusicgenForCausalLM", "MusicgenMelodyForCausalLM", "MvpForCausalLM",
        "PLBartForCausalLM", "PegasusForCausalLM", "ProphetNetForCausalLM", "TrOCRForCausalLM", "WhisperForCausalLM",
    ),
    "a model that reads and writes sound": ("MoshiForCausalLM",),
    "a model of bytes, with models of its own at both ends": ("BltForCausalLM",),
    "a model that attends within chunks of its text, by hashes": ("ReformerModelWithLMHead",),
    "a model whose attention matrices are no linear layers": ("XLNetLMHeadModel",),
}  # fmt: skip
"""Reasons why classes of transformers are not read, as far as they are known → these classes."""
_WHY_UNREAD = {name: why for why, names in _UNREAD.items() for name in names if name not in FAMILIES}

_EXPERTS = (  # a class that can do without experts states the last even so
    "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_tok",
)  # fmt: skip
_MODALITIES = ("vision_config", "audio_config", "speech_config", "text_config", "image_token_id")


def family_of(architecture: str, config: Mapping[str, object]) -> Family:
    """Return the family of a model, from its class name and its config as a dictionary.

    Raises: `ModelError`, by kind (quantized, mixture of experts, encoder-decoder, multimodal, no causal
    language model, unknown).
    """
    refuse_quantized(architecture, config)
    if architecture in TOWERS:
        return _tower_of(architecture, config)
    kind = _kind(architecture, config)
    if kind is not None:
        raise ModelError(f"{architecture} is {kind}, and is not read; `secateur models` lists what is.")
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"unknown family {architecture}.{_misspelled(architecture)} `secateur models` lists those that are read."
        )
    family = ARCHITECTURES[architecture].stated_by(config)
    if family.bidirectional and config.get("is_decoder"):
        raise ModelError(
            f"config.json of this {architecture} has is_decoder, with which positions attend to what precedes them "
            "alone: set it to false, or take the class of a causal model."
        )
    if family.is_decoder and not config.get("is_decoder"):
        raise ModelError(
            f"config.json of this {architecture} has no is_decoder, without which positions attend to what follows "
            "them too: set it to true, or take the class of a masked language model."
        )
    return family


def _tower_of(architecture: str, config: Mapping[str, object]) -> Family:
    """Return the family of the language model in a multimodal one. Raises: `ModelError` where that is not cut."""
    stated = config.get("text_config")
    text = stated if isinstance(stated, Mapping) else {}
    kind = str(
        text.get("model_type") or CONFIG_MAPPING[str(config["model_type"])]().get_text_config().model_type
    )
    if kind not in OF_TYPE:
        raise ModelError(
            f"{architecture}: its language model is of type {kind!r}, which secateur does not cut."
        )
    inner = OF_TYPE[kind]
    family_of(inner.architecture, text)
    return inner.stated_by(text).within(architecture, TOWERS[architecture])


_KIND_OF_HEAD = re.compile("For(CausalLM|MaskedLM|SequenceClassification)$")


def _misspelled(architecture: str) -> str:
    """Return the family that must have been meant; empty where none is nearly the same, their common ending aside."""
    head = _KIND_OF_HEAD.search(architecture)
    among = CLASSIFIERS if head and head[1] == "SequenceClassification" else FAMILIES
    alike = (known for known in among if head is None or known.endswith(head[0]))
    names = {_KIND_OF_HEAD.sub("", known): known for known in alike}
    near = get_close_matches(_KIND_OF_HEAD.sub("", architecture), names, 1, 0.85)
    return f" Did you mean {names[near[0]]}?" if near else ""


def refuse_quantized(architecture: str, config: Mapping[str, object]) -> None:
    """Raise `ModelError` where the config says that weights are stored as codes."""
    found = config.get("quantization_config") or config.get("quantization")
    if not found:
        return
    method = found.get("quant_method", "") if isinstance(found, Mapping) else ""
    how = f" ({method})" if method else ""
    raise ModelError(
        f"this {architecture} is quantized{how}: its stored codes cannot be cut. Use the original float "
        "checkpoint, or dequantize it and save that."
    )


def _kind(architecture: str, config: Mapping[str, object]) -> str | None:
    """Return the kind of a refused model in words, or None for a plain decoder as far as the config tells."""
    if architecture in _WHY_UNREAD:
        return _WHY_UNREAD[architecture]
    nested = config.get("ffn_config")  # where DBRX keeps the number of experts
    stated = {**config, **nested} if isinstance(nested, Mapping) else config
    family = ARCHITECTURES.get(architecture)
    counted = any(stated.get(key) for key in (_EXPERTS if family is None else _EXPERTS[:-1]))
    named = family is None and "moe" in architecture.lower()
    if (counted or named) and not (family and family.experts):
        return "a mixture of experts"
    if config.get("is_encoder_decoder") and not (family and family.encoder):
        return "an encoder-decoder"
    if any(config.get(key) is not None for key in _MODALITIES):
        return "a multimodal model"
    if architecture not in ARCHITECTURES and not architecture.endswith(
        ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForSequenceClassification")
    ):
        return "not a causal language model with its head, nor a masked one, nor a sequence classifier"
    return None


# --------------------------------------------------------------------------------------------------- what is listed


class FamilyInfo(NamedTuple):
    """A family as it is listed.

    `silenced` are units that stay stored when they are dropped; `fold`: a linear map can be folded into a network;
    `masked`: it is a masked language model; `mixers` are what some blocks have in place of attention; `classifier`:
    the class of its sequence classifier, empty for none; `caches`: it keeps keys and values of the past; `float64`:
    it runs in that; `counts_from_pad`: positions begin behind the padding's id; `pairs`: it is an encoder-decoder;
    `stock_heads`: a stock checkpoint may have fewer heads; `stock_biases` are the matrices that get a bias there;
    `acts`: it is a decision transformer.
    """

    family: str
    architecture: str
    gated: bool
    silenced: tuple[str, ...]
    fold: bool
    stock_heads: bool
    stock_biases: tuple[str, ...]
    experts: bool
    masked: bool
    mixers: tuple[str, ...]
    classifier: str
    caches: bool
    float64: bool
    counts_from_pad: bool
    pairs: bool
    acts: bool

    @property
    def limits(self) -> str:
        """Return in words what is not possible; empty where everything is."""
        found = ["a masked language model: it fills masks, and generates no text"] if self.masked else []
        found += ["an encoder-decoder: no block is folded or made linear"] if self.pairs else []
        found += ["it gives actions: its tasks are episodes and trajectories"] if self.acts else []
        found += [f"dropped {unit} stay, silenced" for unit in self.silenced]
        found += [] if self.fold or self.pairs else ["nothing is folded: a norm follows"]
        found += [] if self.stock_heads else ["stock checkpoints keep all heads"]
        found += (
            ["networks are mixtures of experts, of which whole experts go, and nothing is folded into them"]
            if self.experts
            else []
        )
        found += [
            f"in blocks without heads {mixer} stays; one block of each kind stays" for mixer in self.mixers
        ]
        found += [] if self.caches else ["not timed: it keeps no cache"]
        found += [] if self.float64 else ["not in float64"]
        if self.counts_from_pad and not self.masked:
            found += [
                "transformers' own generate counts its positions from 0, which is not how it was trained"
            ]
        return "; ".join(found)


class Listed(NamedTuple):
    """A class of transformers with a head for language, and what is read of it: `limits`, or `refusal`, one of which is
    empty where the other is not, or both where all is read."""

    architecture: str
    family: str
    limits: str
    refusal: str


def list_classes(names: Mapping[str, str]) -> list[Listed]:
    """Return for every class of one of transformers' mappings (model type → class) whether it is read, and why not."""
    limits = {info.architecture: info.limits for info in list_families()}
    listed = []
    for architecture in sorted({*names.values()}):
        if architecture in TOWERS:
            listed.append(Listed(architecture, "of its language model", "everything else stays as it is", ""))
        elif architecture in FAMILIES:
            listed.append(Listed(architecture, FAMILIES[architecture].name, limits[architecture], ""))
        else:
            listed.append(Listed(architecture, "", "", _refusal(architecture, names)))
    return listed


def _refusal(architecture: str, names: Mapping[str, str]) -> str:
    """Return the kind of a class that is not read, as far as it or the config that it has by default tells."""
    if architecture in _WHY_UNREAD:
        return _WHY_UNREAD[architecture]
    kinds = [CONFIG_MAPPING[model_type]() for model_type, name in names.items() if name == architecture]
    found = next((kind for one in kinds if (kind := _kind(architecture, one.to_dict()))), None)
    return found or "not in the table of families"


def list_families() -> list[FamilyInfo]:
    """Return the families that can be cut, by name."""
    classifiers = {family.name: architecture for architecture, family in CLASSIFIERS.items()}
    return [
        FamilyInfo(
            family.name,
            family.architecture,
            "gate" in family.slots,
            family.indivisible,
            not (family.after or family.post_norm),
            family.free_heads,
            tuple(part for parts in family.biases.values() for part in parts),
            bool(family.experts),
            family.masked,
            tuple(family.mixers.values()),
            classifiers.get(f"{family.name}{CLASSIFIER}", ""),
            family.caches,
            not family.no_float64,
            family.counts_from_pad,
            family.head is PAIRS,
            family.head is ACTIONS,
        )
        for family in sorted([*FAMILIES.values(), *DECISIONS.values()], key=lambda family: family.name)
    ]
