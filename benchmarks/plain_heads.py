"""Reading heads in plain ways: a full backward pass, and scores by loops. An independent yardstick for OPT models that
uses torch and transformers only, nothing of secateur.

Source of the loops: Bansal et al. 2022 (arXiv 2212.09095), the definitions; their code, read, not copied, visits the
needed entries of prefix matching one by one. Loops over a torch tensor's entries are what one writes beside a model;
over those of numpy arrays they are several times faster, so both are measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

Matrices = Tensor | np.ndarray  # one a head
Batch = tuple[
    Tensor, Tensor, Tensor, Tensor
]  # tokens (rows, length); of each answer token: place, id, weight


def full_backward(model: nn.Module, batches: Sequence[Batch]) -> Tensor:
    """Sum of |A · dL/dA| by block and head: logits of every position, gradients of every parameter."""
    return torch.stack([_backward(model, batch) for batch in batches]).sum(0)


def _backward(model: nn.Module, batch: Batch) -> Tensor:
    (tokens, places, answers, weights), inputs = batch, []
    projections = [layer.self_attn.out_proj for layer in model.model.decoder.layers]
    handles = [p.register_forward_pre_hook(lambda _, args: _kept(args[0], inputs)) for p in projections]
    logits = model(input_ids=tokens, use_cache=False).logits.flatten(0, 1)
    nll = nn.functional.cross_entropy(logits[places], answers, reduction="none")
    (nll * weights).sum().backward()
    found = torch.stack([_absolute(x, model.config.num_attention_heads) for x in inputs])
    model.zero_grad(set_to_none=True)
    for handle in handles:
        handle.remove()
    return found


def _kept(x: Tensor, inputs: list[Tensor]) -> None:
    x.retain_grad()
    inputs.append(x)


def _absolute(x: Tensor, heads: int) -> Tensor:
    return (x * x.grad).detach().unflatten(-1, (heads, -1)).sum(-1).abs().flatten(0, -2).sum(0)


# ------------------------------------------------------------------------------------------------ prefix matching


def prefix_by_triple_loop(weights: Matrices, tokens: Sequence[int], segment: int) -> list[float]:
    """The definition: heads, positions after the first repeat, all earlier places of the position's token."""
    found = []
    for head in weights:
        total = 0.0
        for p in range(1 + segment, len(tokens)):
            for earlier in range(1, p):
                if tokens[earlier] == tokens[p]:
                    total += head[p, earlier + 1]
        found.append(total / (len(tokens) - 1 - segment))
    return found


def prefix_by_needed_entries(weights: Matrices, tokens: Sequence[int], segment: int) -> list[float]:
    """The same, where it is known that a token comes again after `segment` others."""
    found = []
    for head in weights:
        total = 0.0
        for p in range(1 + segment, len(tokens)):
            for earlier in range(p - segment, 0, -segment):
                total += head[p, earlier + 1]
        found.append(total / (len(tokens) - 1 - segment))
    return found


@torch.no_grad()
def prefix_matching(model: nn.Module, bos: int, segments: Sequence[np.ndarray], repeats: int) -> np.ndarray:
    """Of a model with eager attention: one sequence at a time, all weights at once, all logits."""
    total = 0.0
    for segment in segments:
        tokens = [bos, *segment.tolist() * repeats]
        out = model(input_ids=torch.tensor([tokens]), use_cache=False, output_attentions=True)
        found = [prefix_by_needed_entries(w[0], tokens, len(segment)) for w in out.attentions]
        total = total + np.array(found)
    return total / len(segments)


# -------------------------------------------------------------------------------------------------------- copying


def copying_by_loops(logits: Matrices, attended: Matrices) -> list[float]:
    """Logits of the sequence's own tokens, (heads, length, length); the position each head attends to most."""
    found = []
    for head, looked in zip(logits, attended, strict=True):
        shares = []
        for j in range(1, len(head)):
            row = head[j]
            top = max(row[: j + 1])
            mine = [math.exp(row[i] - top) for i in range(j + 1)]
            mean = sum(mine) / len(mine)
            raised = [max(0.0, value - mean) for value in mine]
            shares.append(raised[looked[j]] / sum(raised) if sum(raised) else 0.0)
        found.append(sum(shares) / len(shares))
    return found


@torch.no_grad()
def copying(model: nn.Module, bos: int, segments: Sequence[np.ndarray]) -> np.ndarray:
    """Of a model with eager attention: head by head, the softmax over the whole vocabulary."""
    found = [_copying(model, torch.tensor([[bos, *segment.tolist()]])) for segment in segments]
    return np.mean(found, axis=0)


def _copying(model: nn.Module, tokens: Tensor) -> np.ndarray:
    layers, entering = model.model.decoder.layers, []
    handles = [
        layer.self_attn_layer_norm.register_forward_hook(lambda _, args, y: entering.append(y[0]))
        for layer in layers
    ]
    weights = model(input_ids=tokens, use_cache=False, output_attentions=True).attentions
    for handle in handles:
        handle.remove()
    return np.array(
        [_of_block(model, tokens[0], *block) for block in zip(layers, entering, weights, strict=True)]
    )


def _of_block(model: nn.Module, tokens: Tensor, layer: nn.Module, x: Tensor, weights: Tensor) -> list[float]:
    attention, found = layer.self_attn, []
    size = attention.head_dim
    values = attention.v_proj(x)
    for head in range(attention.num_heads):
        own = slice(head * size, (head + 1) * size)
        out = values[:, own] @ attention.out_proj.weight[:, own].T
        likely = model.lm_head(model.model.decoder.final_layer_norm(out)).softmax(-1)
        logits = likely[:, tokens].log()[None]
        found += copying_by_loops(logits, weights[0, head].argmax(-1)[None])
    return found
