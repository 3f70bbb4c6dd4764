"""Writes checkpoints that other runtimes are to load, with what transformers computes from each.

    python tests/runtimes/write.py FOLDER [SMOLLM2]

In the project's own environment. FOLDER gets a folder for each checkpoint, and `jobs.json`: models of every family, whole
and cut in the ways that leave a stock class; tokenizers of every kind around one model. SMOLLM2 is the folder of
SmolLM2-135M that `make llm` makes. Each job says what the checkpoint's own record says of GGUF and vLLM.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the zoo

import numpy as np
import torch
import transformers
from cuts import edits_of, linear, removals
from rotary import ROTARY
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel
from zoo import VOCAB_SIZE, ZOO, variant

from secateur import api
from secateur.core.plan import Edit, Plan, parse_edits
from secateur.hf.load import Loaded, load_model

TOKENS = list(range(3, 43))
GREEDY = 8
TEXT = "The quick brown fox jumps over the lazy dog. It was 1984, and"
SPECIAL = ("<unk>", "<s>", "</s>")
TOKENIZER_CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast"} | dict(
    zip(("unk_token", "bos_token", "eos_token"), SPECIAL, strict=True)
)
BLOCKS, BIASES = ("block 0", "last block"), "directions, folded into biases"
KINDS = ("rank 3", *BLOCKS, "folded", "KV groups everywhere", "neurons everywhere", BIASES)
OTHERS: dict[str, tuple[str, dict[str, Any], Sequence[str]]] = {  # a model of the zoo, changes, and its cuts
    "phi, 4 d_model neurons": ("phi", {"intermediate_size": 128}, KINDS),
    "phi3, window": ("phi3", {"sliding_window": 16}, BLOCKS),
    "qwen2, window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0},
        BLOCKS,
    ),
    "mistral, no window": ("mistral", {"sliding_window": None}, KINDS),
    "gemma3, 7 blocks": ("gemma3", {"num_hidden_layers": 7}, BLOCKS),
    "gemma2, as 27B": ("gemma2", {"num_hidden_layers": 46, "query_pre_attn_scalar": 8}, ("last block",)),
    "gemma3, as 27B": ("gemma3", {"num_hidden_layers": 62, "query_pre_attn_scalar": 8}, ("last block",)),
}


def main(place: Path, smollm2: Path | None) -> None:
    jobs = []
    for name, model, kinds in _models():
        jobs += list(_cut_in_all_ways(name, model, kinds, place / _file_name(name)))
        print(name, flush=True)
    jobs += list(_tokenizers(place / "tokenizers"))
    jobs += list(_real(smollm2, place / "smollm2-135m")) if smollm2 else []
    (place / "jobs.json").write_text(json.dumps(jobs, indent=1))


# ---------------------------------------------------------------------------------------------------------- the models


def _models() -> Iterator[tuple[str, PreTrainedModel, Sequence[str]]]:
    """Name, model, and kinds of cuts."""
    for name in ZOO:
        yield name, variant(name), KINDS
    for title, (name, changes, kinds) in OTHERS.items():
        yield title, variant(name, **changes), kinds
    for case, (name, changes, _) in ROTARY.items():
        yield f"{name}, rotary {case}", variant(name, **deepcopy(changes)), ("last block",)


def _cut_in_all_ways(
    name: str, model: PreTrainedModel, kinds: Sequence[str], place: Path
) -> Iterator[dict[str, Any]]:
    loaded = load_model(str(_save(place / "model", model, byte_level())), device="cpu")
    about = {"model": name, "family": loaded.anatomy.family, "known_tokenizer": True, "tokens": TOKENS}
    for kind in ("whole", *kinds):
        if job := _written(loaded, _edits(kind, loaded), place / _file_name(kind), about | {"cut": kind}):
            yield job


def _edits(kind: str, loaded: Loaded) -> list[Edit]:
    if kind == "whole":
        return []
    if kind == BIASES:
        parts = {part for switched in loaded.anatomy.details.biases.values() for part in switched}
        return removals(loaded.anatomy, 0, " ".join(sorted(parts)))
    return edits_of(kind, loaded.anatomy)


def _save(folder: Path, model: PreTrainedModel, tokenizer: Tokenizer) -> Path:
    """With the files of a tokenizer as most published models have them. Two families are not converted without a
    tokenizer.model; where the converter is told that it knows the tokenizer, it does not read that file."""
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    if model.config.model_type in ("gemma2", "phi3"):
        (folder / "tokenizer.model").write_bytes(b"")
    return folder


def _file_name(text: str) -> str:
    return re.sub(r"\W+", "-", text)


def _written(loaded: Loaded, edits: list[Edit], out: Path, about: dict[str, Any]) -> dict[str, Any] | None:
    """A checkpoint and what transformers computes from it; None where no stock class holds it."""
    api.apply(loaded.source, Plan(loaded.fingerprint, tuple(edits)), out, device="cpu")
    loads = json.loads((out / "plan.json").read_text())["provenance"]["loads"]
    if loads["form"] != "stock":
        return None
    said = {place["place"]: place for place in loads["where"]}
    told = {
        "said": {"llama.cpp": said["GGUF (llama.cpp)"], "vLLM": said["vLLM"]},
        "d_head": loaded.anatomy.d_head,
    }
    return about | {"folder": str(out), "greedy": _computed(out, about["tokens"])} | told


@torch.inference_mode()
def _computed(folder: Path, tokens: list[int]) -> list[int]:
    """Writes the logits to `folder` and gives the greedy tokens. Gemma 2 caps its scores in the plain attention alone."""
    eager = json.loads((folder / "config.json").read_text())["model_type"] == "gemma2"
    how = {"attn_implementation": "eager"} if eager else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how).eval()
    np.save(folder / "expected.npy", model(torch.tensor([tokens])).logits[0].numpy())
    row = list(tokens)
    for _ in range(GREEDY):
        row.append(int(model(torch.tensor([row])).logits[0, -1].argmax()))
    return row[len(tokens) :]


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


def _kinds_of_tokenizers() -> dict[str, Tokenizer]:
    words, spaces = _vocabulary(), pre_tokenizers.WhitespaceSplit()
    return {
        "a byte-level BPE that nobody published": byte_level(),
        "a BPE with byte fallback": byte_fallback(),
        "WordLevel": _tokenizer(models.WordLevel(words, unk_token="<unk>"), spaces),
        "WordPiece": _tokenizer(models.WordPiece(words, unk_token="<unk>"), spaces),
        "Unigram": _tokenizer(models.Unigram([(token, -1.0) for token in words], unk_id=0), spaces),
    }


def _tokenizers(place: Path) -> Iterator[dict[str, Any]]:
    """One Llama of the zoo with each of them; the converter has to take them as they are."""
    for kind, tokenizer in _kinds_of_tokenizers().items():
        count = tokenizer.get_vocab_size()
        model = variant("llama", vocab_size=count, pad_token_id=None)
        loaded = load_model(str(_save(place / _file_name(kind) / "model", model, tokenizer)), device="cpu")
        about = {"model": f"llama with {kind}", "family": "llama", "known_tokenizer": False, "cut": "whole"}
        job = _written(
            loaded, [], place / _file_name(kind) / "whole", about | {"tokens": [t % count for t in TOKENS]}
        )
        assert job is not None
        yield job


# ----------------------------------------------------------------------------------------------------- a real model


def _real(source: Path, place: Path) -> Iterator[dict[str, Any]]:
    """SmolLM2-135M, whole and cut; its tokens are those of a text."""
    loaded = load_model(str(source), device="cpu")
    about = {"model": "SmolLM2-135M-Instruct", "family": "llama", "known_tokenizer": False, "text": TEXT}
    about |= {"tokens": loaded.tokenizer(TEXT).input_ids}
    cuts: dict[str, Sequence[Edit]] = {
        "whole": [],
        "b20.down=64": parse_edits(["b20.down=64"]),
        "b20 dropped": parse_edits(["b20=drop"]),
        "b20 folded": [linear(loaded.anatomy, 20, form="fold")],
        "KV groups everywhere": edits_of("KV groups everywhere", loaded.anatomy),
        BIASES: removals(loaded.anatomy, 20, "o down"),
    }
    for cut, edits in cuts.items():
        job = _written(loaded, list(edits), place / _file_name(cut), about | {"cut": cut})
        assert job is not None, cut
        yield job


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
