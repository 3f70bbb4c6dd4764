"""Tiny models in which a truth was planted, and texts that they foretell best."""

from __future__ import annotations

import copy

import torch
from transformers import PreTrainedModel
from zoo import tiny


def massive() -> PreTrainedModel:
    """At position 0 the stream of GPT-2 is hundreds of times as long as elsewhere."""
    model = tiny("gpt2-untied-wide")
    model.transformer.wpe.weight[0, 3] += 1000
    return model


def affine_(model: PreTrainedModel, block: int, times: float = 3) -> PreTrainedModel:
    """GPT-2's block adds one constant vector to the stream, whatever it reads: its bias so many times."""
    own = model.transformer.h[block]
    own.attn.c_proj.weight.data.zero_()
    own.mlp.c_proj.weight.data.zero_()
    own.mlp.c_proj.bias.data.mul_(times)  # so that the model misses it
    return model


def silenced(model: PreTrainedModel, block: int) -> PreTrainedModel:
    """A copy whose block adds nothing."""
    quiet = copy.deepcopy(model)
    for part in ("attn.c_proj", "mlp.c_proj"):
        for parameter in quiet.transformer.h[block].get_submodule(part).parameters():
            parameter.data.zero_()
    return quiet


@torch.no_grad()
def spoken(model: PreTrainedModel, count: int = 300, length: int = 24) -> list[dict[str, str]]:
    """Texts drawn from what the model itself predicts: little foretells them better, so what changes it costs loss.

    Of the words from w30 on: w1 and w2 are special, and the tokenizer would see them in w12.
    """
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(30, 96, (count, 1), generator=draw)
    for _ in range(length - 1):
        chances = model(ids).logits[:, -1].softmax(-1)
        chances[:, :30] = 0
        ids = torch.cat([ids, torch.multinomial(chances, 1, generator=draw)], dim=1)
    return [{"text": " ".join(f"w{token}" for token in row)} for row in ids.tolist()]
