"""A random GPT-J of the size the sweep is measured on, and prompts for it: nothing is read from disk.

GPT-J because it is the model of LASER's first table, has six matrices a block (q k v o up down, no gate) and owns
the vocabulary of 50,400.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from transformers import GPTJConfig, GPTJForCausalLM

from secateur.hf.anatomy import anatomy
from secateur.hf.fingerprint import fingerprint
from secateur.hf.load import Loaded
from secateur.tasks.encode import Encoded
from secateur.tasks.example import Example, Task


@dataclass(frozen=True)
class Size:
    layers: int = 8
    d_model: int = 512
    heads: int = 8
    vocabulary: int = 50_400
    prompts: int = 200
    tokens: tuple[int, int] = (16, 24)  # of a prompt, both included: 20 on average


def gptj(size: Size, seed: int = 0) -> Loaded:
    """The model as the evaluator wants it. It has no tokenizer: its prompts are made of token ids."""
    torch.manual_seed(seed)
    config = GPTJConfig(
        vocab_size=size.vocabulary,
        n_positions=256,
        n_embd=size.d_model,
        n_layer=size.layers,
        n_head=size.heads,
        rotary_dim=size.d_model // size.heads // 2,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPTJForCausalLM(config).eval().requires_grad_(False)
    return Loaded("random GPT-J", model, None, anatomy(model), fingerprint(model), None, None)


def prompts(size: Size, seed: int = 0) -> list[tuple[tuple[int, ...], int]]:
    rng = random.Random(seed)
    lengths = [rng.randint(*size.tokens) for _ in range(size.prompts)]
    return [
        (tuple(rng.randrange(size.vocabulary) for _ in range(length)), rng.randrange(size.vocabulary))
        for length in lengths
    ]


def as_task(asked: list[tuple[tuple[int, ...], int]]) -> tuple[Task, dict[int, Encoded]]:
    """The prompts as a generation task with one-token answers, already encoded."""
    examples = tuple(Example(str(i), str(tokens), str(answer)) for i, (tokens, answer) in enumerate(asked))
    everything = tuple(range(len(examples)))
    task = Task("random prompts", "generation", examples, {"probe": (), "select": everything, "test": ()})
    encoded = {i: Encoded(((tokens, (answer,)),), 0, (1,)) for i, (tokens, answer) in enumerate(asked)}
    return task, encoded
