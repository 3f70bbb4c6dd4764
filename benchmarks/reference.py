"""The authors' loop, plain: copy the model, decompose one matrix, measure every prompt. Three ways to do the last part.

An independent yardstick: uses torch and transformers only, nothing of secateur. Source of the loop: Sharma, Ash,
Misra 2023 (arXiv 2312.13558), their public code, read, not copied: a deep copy per candidate, one decomposition per
candidate, one example per forward pass, log-softmax over every position of full logits. Differs: the decomposition
is the exact one (theirs is a randomized one), so that losses can be compared.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Prompt = tuple[tuple[int, ...], int]  # tokens, the one token that should follow


def truncated(model: nn.Module, parameter: str, rank: int) -> nn.Module:
    """A copy of `model` whose `parameter` (out, in) is its exact truncation to `rank`."""
    edited = copy.deepcopy(model)
    weight = edited.get_parameter(parameter)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    with torch.no_grad():
        weight.copy_((u[:, :rank] * s[:rank]) @ vh[:rank])
    return edited


@torch.inference_mode()
def one_at_a_time(model: nn.Module, parameter: str, rank: int, prompts: Sequence[Prompt]) -> Tensor:
    """(a) one example per forward pass, logits and log-softmax of all positions. Losses (prompts,)."""
    edited = truncated(model, parameter, rank)
    losses = []
    for tokens, answer in prompts:
        logits = edited(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
        losses.append(-torch.log_softmax(logits, dim=-1)[-1, answer])
    return torch.stack(losses)


@torch.inference_mode()
def batched(model: nn.Module, parameter: str, rank: int, prompts: Sequence[Prompt], size: int = 50) -> Tensor:
    """(b) `size` prompts of similar length per pass, logits of all positions, log-softmax of the last ones."""
    edited = truncated(model, parameter, rank)

    def at_last(tokens: Tensor, last: Tensor) -> Tensor:
        logits = edited(input_ids=tokens, use_cache=False).logits
        return logits[torch.arange(len(tokens)), last]

    return _losses(at_last, prompts, size)


@torch.inference_mode()
def last_position(
    model: nn.Module, parameter: str, rank: int, prompts: Sequence[Prompt], size: int = 50
) -> Tensor:
    """(c) as (b), but the unembedding sees the last position of each prompt only."""
    edited = truncated(model, parameter, rank)
    trunk, head = edited.base_model, edited.get_output_embeddings()

    def at_last(tokens: Tensor, last: Tensor) -> Tensor:
        hidden = trunk(input_ids=tokens, use_cache=False).last_hidden_state
        return head(hidden[torch.arange(len(tokens)), last])

    return _losses(at_last, prompts, size)


def _losses(at_last, prompts: Sequence[Prompt], size: int) -> Tensor:
    """Prompts by length, padded on the right (no causal position sees what is right of it). (prompts,)"""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i][0]))
    losses = torch.zeros(len(prompts))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        length = max(len(prompts[i][0]) for i in chosen)
        tokens = torch.tensor([[*prompts[i][0], *[0] * (length - len(prompts[i][0]))] for i in chosen])
        last = torch.tensor([len(prompts[i][0]) - 1 for i in chosen])
        answers = torch.tensor([prompts[i][1] for i in chosen])
        logp = torch.log_softmax(at_last(tokens, last), dim=-1)
        losses[torch.tensor(chosen)] = -logp[torch.arange(len(chosen)), answers]
    return losses
