"""Stock checkpoints as GGUF files: written under the names of that format, read back by transformers.

The conversion here is a reference of few lines, for Llama alone; `make gguf` runs llama.cpp's own converter.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.folders import save_model, secateur
from fixtures.zoo import tiny
from safetensors.numpy import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

gguf = pytest.importorskip("gguf")

CUTS = {
    "LASER": ["--edit", "b0.up=3", "--edit", "b1.o=tail:5"],
    "a block dropped": ["--edit", "b0=drop"],
    "KV groups, portable": ["--edit", "b0.attn.g1=drop", "--edit", "b1.attn.g0=drop", "--portable"],
}


def convert(folder: Path, file: Path) -> None:
    """A Llama checkpoint as one GGUF file in float32."""
    config, tensors = (
        json.loads((folder / "config.json").read_text()),
        load_file(folder / "model.safetensors"),
    )
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in tensors.items():
        turned = {"q_proj": heads, "k_proj": groups}.get(name.split(".")[-2])
        stored = interleaved(tensor, turned) if turned else tensor
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Rotary pairs of rows beside each other, where transformers has them half a head apart."""
    halves = matrix.reshape(heads, 2, -1, matrix.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(matrix.shape)


@torch.no_grad()
def logits(folder: Path, **how: str) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how).eval()
    return model(torch.arange(3, 43)[None]).logits


@pytest.mark.parametrize("cut", CUTS)
def test_a_stock_checkpoint_survives_the_way_to_gguf_and_back(cut, words, tmp_path):
    original = save_model(tmp_path / "model", tiny("llama"), words)
    assert secateur("apply", original, *CUTS[cut], "-o", tmp_path / "out").exit_code == 0
    convert(tmp_path / "out", tmp_path / "out/model.gguf")
    expected = logits(tmp_path / "out")
    torch.testing.assert_close(
        logits(tmp_path / "out", gguf_file="model.gguf"), expected, rtol=1e-5, atol=1e-5
    )
    assert not torch.allclose(expected, logits(tmp_path / "model"), atol=1e-2), "a cut that does nothing"
