"""Writes checkpoints that other runtimes are to load, with what transformers computes from each.

    python tests/runtimes/write.py FOLDER SMOLLM2

In the project's own environment. FOLDER gets a folder for each checkpoint, and `jobs.json`: models of every family,
whole and cut in the ways that leave a stock class, and tokenizers of every kind. SMOLLM2 is the folder of SmolLM2-135M
that `make llm` makes; where it is not there, that model is left out. Each job tells what secateur says of llama.cpp and
vLLM.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the zoo

import numpy as np
import torch
import transformers
from fixtures.cuts import edits_of, linear, removals
from fixtures.rotary import ROTARY, rope
from fixtures.zoo import VOCAB_SIZE, ZOO, variant
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel

from secateur import api
from secateur.checkpoint.loadability import where_it_loads
from secateur.core.form import Form
from secateur.core.plan import Edit, Plan, parse_edits
from secateur.core.records.verdict import PlaceRecord
from secateur.hf.load import Loaded, load_model

TOKENS = list(range(3, 43))
GREEDY = 8
TEXT = "The quick brown fox jumps over the lazy dog. It was 1984, and"
SPECIAL = ("<unk>", "<s>", "</s>")
TOKENIZER_CONFIG = dict(zip(("unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
BLOCKS, BIASES = ("block 0", "last block"), "directions, folded into biases"
KINDS = ("rank 3", *BLOCKS, "folded", "KV groups everywhere", "neurons everywhere", BIASES)
YARN = rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
WINDOW = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}
RELU = ("gpt-neox", "llama", "mistral", "phi3", "qwen2", "qwen3")
OTHERS: dict[str, tuple[str, dict[str, Any], Sequence[str]]] = {  # a model of the zoo, changes, and its cuts
    "phi, 4 d_model neurons": ("phi", {"intermediate_size": 128}, KINDS),
    "phi3, window": ("phi3", {"sliding_window": 16}, BLOCKS),
    "qwen2, window": ("qwen2", WINDOW, BLOCKS),
    "mistral, no window": ("mistral", {"sliding_window": None}, KINDS),
    "gemma3, 7 blocks": ("gemma3", {"num_hidden_layers": 7}, BLOCKS),
    "gemma2, as 27B": ("gemma2", {"num_hidden_layers": 46, "query_pre_attn_scalar": 8}, ("last block",)),
    "gemma3, as 27B": ("gemma3", {"num_hidden_layers": 62, "query_pre_attn_scalar": 8}, ("last block",)),
    "qwen3, rotary yarn, nothing else stated": ("qwen3", YARN, ("last block",)),
    "falcon-40b, alibi": ("falcon-40b", {"alibi": True}, ()),
    "gpt2, scores unscaled": ("gpt2", {"scale_attn_weights": False}, ()),
    "gpt2, scores scaled by block": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, ()),
    "bloom, residual after norms": ("bloom", {"apply_residual_connection_post_layernorm": True}, ()),
    "phi, norms of queries": ("phi", {"qk_layernorm": True, "intermediate_size": 128}, ()),
    "gemma3, logits capped": ("gemma3", {"final_logit_softcapping": 5.0}, ()),
    "gemma3, scores capped": ("gemma3", {"attn_logit_softcapping": 5.0}, ()),
    "gpt2, relu": ("gpt2", {"activation_function": "relu"}, ()),
    "falcon-40b, relu": ("falcon-40b", {"activation": "relu"}, ()),
    "phi, relu": ("phi", {"hidden_act": "relu", "intermediate_size": 128}, ()),
    **{f"{name}, relu": (name, {"hidden_act": "relu"}, ()) for name in RELU},
    **{f"{name}, relu": (name, {"hidden_activation": "relu"}, ()) for name in ("gemma2", "gemma3")},
}


@dataclass(frozen=True)
class Case:
    """A checkpoint to be: `about` is what its row of the results says first, `known` that the converter is made to take
    its tokenizer for a known one."""

    about: dict[str, Any]
    loaded: Loaded
    edits: Sequence[Edit]
    known: bool
    text: str | None = None

    @property
    def plan(self) -> Plan:
        return Plan(self.loaded.fingerprint, tuple(self.edits))

    def said(self) -> dict[str, str] | None:
        """What secateur says of each place, before anything is cut; None where no stock class holds it."""
        loads = where_it_loads(self.plan, self.loaded, Form(), read_back=False)
        return {place.place: _words(place) for place in loads.where} if loads.form == "stock" else None


def main(place: Path, smollm2: Path) -> None:
    jobs = []
    for case in cases(place / "models", smollm2):
        if said := case.said():
            jobs.append(_job(case, place / "cut" / str(len(jobs))) | {"said": said})
            print(*case.about.values(), sep=" | ", flush=True)
    (place / "jobs.json").write_text(json.dumps(jobs, indent=1))


def _words(place: PlaceRecord) -> str:
    if place.evidence == "no":
        return f"no, {place.how}"
    return f"{place.evidence}, {place.condition}" if place.condition else place.evidence


def cases(place: Path, smollm2: Path) -> Iterator[Case]:
    """All that may be written; the models are put into `place`."""
    for name, model, kinds in _models():
        folder = place / _file_name(name)
        if model.config.model_type in ("gemma2", "phi3"):  # not converted without one, which is not read here
            folder.mkdir(parents=True)
            (folder / "tokenizer.model").write_bytes(b"")
        loaded = _loaded(folder, model, byte_level())
        for kind in ("whole", *kinds):
            if (edits := _edits(kind, loaded)) is not None:
                yield Case(_about(name, loaded, kind), loaded, edits, known=True)
    yield from _with_tokenizers(place)
    if smollm2.is_dir():
        yield from _real(smollm2)
    else:
        print(f"SmolLM2-135M is left out: there is no {smollm2}. `make llm` fetches it.", file=sys.stderr)


def _about(name: str, loaded: Loaded, cut: str) -> dict[str, Any]:
    return {"model": name, "family": loaded.anatomy.family, "cut": cut}


def _edits(kind: str, loaded: Loaded) -> Sequence[Edit] | None:
    """None where every block has one KV group."""
    if kind == "whole":
        return ()
    if kind == "KV groups everywhere" and loaded.anatomy.num_kv_heads == 1:
        return None
    if kind == BIASES:
        switched = {part for parts in loaded.anatomy.details.biases.values() for part in parts}
        return removals(loaded.anatomy, 0, " ".join(sorted(switched)) or "q k v o gate up down")
    return edits_of(kind, loaded.anatomy)


def _loaded(
    folder: Path, model: PreTrainedModel, tokenizer: Tokenizer, cls: str = "PreTrainedTokenizerFast"
) -> Loaded:
    """With the files of a tokenizer as most published models have them."""
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG | {"tokenizer_class": cls}))
    return load_model(str(folder), device="cpu")


def _file_name(text: str) -> str:
    return re.sub(r"\W+", "-", text)


def _job(case: Case, folder: Path) -> dict[str, Any]:
    """Writes the checkpoint, and beside it the logits that transformers computes from it."""
    api.apply(case.loaded.source, case.plan, folder, device="cpu")
    tokens = case.loaded.tokenizer(case.text).input_ids if case.text else TOKENS
    about = case.about | {"known_tokenizer": case.known, "text": case.text, "tokens": tokens}
    return about | {"folder": str(folder), "greedy": _computed(folder, tokens)}


@torch.inference_mode()
def _computed(folder: Path, tokens: list[int]) -> list[int]:
    """Writes the logits to `folder` and gives the greedy tokens. Gemma 2 caps scores in the plain attention alone."""
    eager = json.loads((folder / "config.json").read_text())["model_type"] == "gemma2"
    how = {"attn_implementation": "eager"} if eager else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how).eval()
    np.save(folder / "expected.npy", model(torch.tensor([tokens])).logits[0].numpy())
    row = list(tokens)
    for _ in range(GREEDY):
        row.append(int(model(torch.tensor([row])).logits[0, -1].argmax()))
    return row[len(tokens) :]


# ---------------------------------------------------------------------------------------------------------- the models


def _models() -> Iterator[tuple[str, PreTrainedModel, Sequence[str]]]:
    """Name, model, and kinds of cuts."""
    for name in ZOO:
        yield name, variant(name), KINDS
    for title, (name, changes, kinds) in OTHERS.items():
        yield title, variant(name, **changes), kinds
    for case, (name, changes, _) in ROTARY.items():
        yield f"{name}, rotary {case}", variant(name, **deepcopy(changes)), ("last block",)


# ------------------------------------------------------------------------------------------------------- tokenizers


def byte_level() -> Tokenizer:
    """Byte pairs over bytes, as GPT-2 and Llama 3 have them; the converter knows it by none of its hashes."""
    return _tokenizer(
        models.BPE(_vocabulary(), [("a", "b")]), pre_tokenizers.ByteLevel(add_prefix_space=False)
    )


def byte_fallback() -> Tokenizer:
    """Byte pairs over characters, with bytes for those that are missing, as Llama 2 and Mistral have them."""
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "ab", "▁a"]
    numbers = {token: number for number, token in enumerate(tokens)}
    made = _tokenizer(
        models.BPE(numbers, [("a", "b"), ("▁", "a")], unk_token="<unk>", byte_fallback=True),
        pre_tokenizers.Metaspace(),
    )
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return made


def _vocabulary() -> dict[str, int]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCAB_SIZE - len(SPECIAL) - 1]
    return {token: number for number, token in enumerate([*SPECIAL, *letters, "ab"])}


def _tokenizer(model: Any, splits: Any) -> Tokenizer:
    made = Tokenizer(model)
    made.pre_tokenizer = splits
    return made


def _with_tokenizers(place: Path) -> Iterator[Case]:
    """The converter has to take them as they are."""
    words, spaces = _vocabulary(), pre_tokenizers.WhitespaceSplit()
    fast = "PreTrainedTokenizerFast"
    made = [
        ("llama", "a byte-level BPE that nobody published", byte_level(), fast),
        ("llama", "a BPE with byte fallback", byte_fallback(), fast),
        ("llama", "WordLevel", _tokenizer(models.WordLevel(words, unk_token="<unk>"), spaces), fast),
        ("llama", "WordPiece", _tokenizer(models.WordPiece(words, unk_token="<unk>"), spaces), fast),
        ("llama", "Unigram", _tokenizer(models.Unigram([(t, -1.0) for t in words], unk_id=0), spaces), fast),
        ("mistral", "a BPE with byte fallback", byte_fallback(), fast),
        ("gemma2", "a BPE with byte fallback", byte_fallback(), fast),
        ("phi3", "a BPE with byte fallback", byte_fallback(), fast),
        ("phi3", "a byte-level BPE, stated as GPT-2's", byte_level(), "GPT2Tokenizer"),
    ]
    for number, (family, title, tokenizer, cls) in enumerate(made):
        model = variant(family, vocab_size=tokenizer.get_vocab_size(), pad_token_id=None)
        loaded = _loaded(place / f"tokenizer-{number}", model, tokenizer, cls)
        yield Case(_about(f"{family} with {title}", loaded, "whole"), loaded, (), known=False)


# ----------------------------------------------------------------------------------------------------- a real model


def _real(source: Path) -> Iterator[Case]:
    """SmolLM2-135M, whole and cut; its tokens are those of a text."""
    loaded = load_model(str(source), device="cpu")
    cuts: dict[str, Sequence[Edit]] = {
        "whole": [],
        "b20.down=64": parse_edits(["b20.down=64"]),
        "b20 dropped": parse_edits(["b20=drop"]),
        "b20 folded": [linear(loaded.anatomy, 20, form="fold")],
        "KV groups everywhere": edits_of("KV groups everywhere", loaded.anatomy),
        BIASES: removals(loaded.anatomy, 20, "o down"),
    }
    for cut, edits in cuts.items():
        yield Case(_about("SmolLM2-135M-Instruct", loaded, cut), loaded, edits, known=False, text=TEXT)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    main(Path(sys.argv[1]), Path(sys.argv[2]))
